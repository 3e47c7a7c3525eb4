//! `Op`: one operation on a device, as traces record it and faults select it.

use std::fmt;
use std::ops::Range;

/// Kinds of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OpKind {
    /// `read_at`, `read_vectored_at`.
    Read,
    /// `write_at`, `write_vectored_at`.
    Write,
    /// `flush`.
    Flush,
    /// `discard`.
    Discard,
    /// `write_zeroes`.
    WriteZeroes,
}

/// A set of [`OpKind`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpKinds(u8);

impl OpKinds {
    /// Every operation.
    pub const ALL: OpKinds = OpKinds(0x1f);
    /// Reads only.
    pub const READS: OpKinds = OpKinds(1 << OpKind::Read as u8);
    /// Writes of data or zeros, and discards.
    pub const CHANGES: OpKinds = OpKinds(
        1 << OpKind::Write as u8 | 1 << OpKind::WriteZeroes as u8 | 1 << OpKind::Discard as u8,
    );
    /// Flushes only.
    pub const FLUSHES: OpKinds = OpKinds(1 << OpKind::Flush as u8);
    /// All that can make a change of the disk fail: changes and flushes.
    pub const CHANGES_AND_FLUSHES: OpKinds = OpKinds(Self::CHANGES.0 | Self::FLUSHES.0);

    /// Whether `kind` is in the set.
    pub fn contains(self, kind: OpKind) -> bool {
        self.0 & (1 << kind as u8) != 0
    }

    /// This set and that one together.
    #[must_use]
    pub fn and(self, other: OpKinds) -> OpKinds {
        OpKinds(self.0 | other.0)
    }
}

impl From<OpKind> for OpKinds {
    fn from(kind: OpKind) -> Self {
        OpKinds(1 << kind as u8)
    }
}

/// One operation. A flush has offset and length 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Op {
    /// What was done.
    pub kind: OpKind,
    /// Where, in bytes.
    pub offset: u64,
    /// To how many bytes.
    pub len: u64,
}

impl Op {
    pub(crate) fn new(kind: OpKind, offset: u64, len: u64) -> Self {
        Op { kind, offset, len }
    }

    /// Whether it touches a byte of `range`. A flush touches none.
    pub fn overlaps(&self, range: &Range<u64>) -> bool {
        self.len > 0
            && self.offset < range.end
            && range.start < self.offset.saturating_add(self.len)
    }
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Op { kind, offset, len } = self;
        match kind {
            OpKind::Read => write!(f, "read {offset}+{len}"),
            OpKind::Write => write!(f, "write {offset}+{len}"),
            OpKind::Flush => f.write_str("flush"),
            OpKind::Discard => write!(f, "discard {offset}+{len}"),
            OpKind::WriteZeroes => write!(f, "zero {offset}+{len}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_their_kinds() {
        let kinds = [
            OpKind::Read,
            OpKind::Write,
            OpKind::Flush,
            OpKind::Discard,
            OpKind::WriteZeroes,
        ];
        let members = |set: OpKinds| kinds.map(|kind| set.contains(kind));
        assert_eq!(members(OpKinds::ALL), [true; 5]);
        assert_eq!(members(OpKinds::CHANGES), [false, true, false, true, true]);
        assert_eq!(
            members(OpKinds::CHANGES_AND_FLUSHES),
            [false, true, true, true, true]
        );
        let reads_and_flushes = OpKinds::READS.and(OpKind::Flush.into());
        assert_eq!(
            members(reads_and_flushes),
            [true, false, true, false, false]
        );
    }

    #[test]
    fn overlap_needs_a_common_byte() {
        let op = Op::new(OpKind::Write, 100, 10);
        assert!(op.overlaps(&(109..200)) && op.overlaps(&(0..101)) && op.overlaps(&(104..105)));
        assert!(!op.overlaps(&(110..200)) && !op.overlaps(&(0..100)));
        assert!(!Op::new(OpKind::Flush, 0, 0).overlaps(&(0..u64::MAX)));
    }
}
