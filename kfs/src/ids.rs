//! Numbers that must not be mixed up: blocks, inodes, groups, transactions.
//!
//! A count or a length of blocks is a plain `u64` (units in the name or the docs); a *position* has a
//! type of its own, so that a physical block can never be passed where a logical one is meant.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl From<$inner> for $name {
            fn from(value: $inner) -> Self {
                Self(value)
            }
        }
    };
}

number! {
    /// A physical block of the volume, in units of the file system's block size.
    BlockNr(u64)
}
number! {
    /// A block within a file, in units of the file system's block size. ext4 files have at most
    /// 2^32 - 1 blocks.
    LogicalBlock(u32)
}
number! {
    /// An inode number; the first is 1, the root directory is 2.
    InodeNr(u32)
}
number! {
    /// A block group, counted from 0.
    GroupNr(u32)
}
number! {
    /// A transaction id as in the journal. Wraps around: compare with [`Tid::is_after`].
    Tid(u32)
}

impl BlockNr {
    /// The block `count` blocks further on.
    ///
    /// # Panics
    /// When the sum does not fit 64 bits: callers add lengths already checked against the volume.
    #[must_use]
    pub fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl LogicalBlock {
    /// The block `count` blocks further on, or `None` beyond the largest file.
    #[must_use]
    pub fn checked_plus(self, count: u32) -> Option<Self> {
        self.0.checked_add(count).map(Self)
    }
}

impl InodeNr {
    /// Inode of the root directory.
    pub const ROOT: Self = Self(2);
    /// Inode of the journal where the superblock names no other.
    pub const JOURNAL: Self = Self(8);
    /// First inode that is not reserved where the superblock is of revision 0.
    pub const FIRST_UNRESERVED: Self = Self(11);
}

impl Tid {
    /// Whether `self` was started after `other`, with wrap-around (jbd2's `tid_gt`).
    #[must_use]
    pub fn is_after(self, other: Self) -> bool {
        self.0 != other.0 && self.0.wrapping_sub(other.0) < 1 << 31
    }

    /// Itself, or 1 in place of 0, which no transaction has.
    #[must_use]
    pub fn or_first(self) -> Self {
        Self(self.0.max(1))
    }

    /// The id of the transaction that follows.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// A run of physical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// First block.
    pub start: BlockNr,
    /// Length in blocks, never 0 where a run is the answer of an allocation.
    pub len: u32,
}

impl Run {
    /// The block just after the run.
    #[must_use]
    pub fn end(self) -> BlockNr {
        self.start.plus(u64::from(self.len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tid_order_wraps_around() {
        assert!(Tid(1).is_after(Tid(u32::MAX)));
        assert!(!Tid(u32::MAX).is_after(Tid(1)));
        assert!(!Tid(7).is_after(Tid(7)));
        assert_eq!(Tid(u32::MAX).next(), Tid(0));
    }
}
