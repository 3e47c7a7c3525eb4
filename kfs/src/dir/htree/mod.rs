//! Hash trees: index blocks that lead from a name's hash to the block with its entry.
//!
//! The tree is at most three index blocks deep. An index entry holds the lowest hash of what lies
//! behind it; its bit 0 says that names of that same hash begin in the block before, where a search
//! starts. Entries are sorted by hash across blocks, not within.

mod insert;
mod search;
mod split;

pub(super) use search::Path;

use crate::layout::htree::{DX_ENTRY_SIZE, RawDxCountLimit, RawDxEntry};
use zerocopy::{FromBytes, IntoBytes};

/// Bits of an index entry's block number that count, as in Linux.
const BLOCK_MASK: u32 = 0x0fff_ffff;

/// The entries of an index block.
pub(crate) struct Index<'b> {
    /// As many as are in use. The hash of the first is no hash but limit and count.
    entries: &'b [RawDxEntry],
    limit: usize,
}

impl<'b> Index<'b> {
    /// Checks limit and count; as error it tells them.
    pub(crate) fn parse(
        bytes: &'b [u8],
        entries_offset: usize,
        fits: u16,
    ) -> Result<Self, (u16, u16)> {
        let bytes = bytes.get(entries_offset..).ok_or((0, 0))?;
        let (counts, _) = RawDxCountLimit::ref_from_prefix(bytes).map_err(|_| (0, 0))?;
        let (limit, count) = (counts.limit.get(), counts.count.get());
        if limit != fits || count == 0 || count > limit {
            return Err((limit, count));
        }
        let (entries, _) = <[RawDxEntry]>::ref_from_prefix_with_elems(bytes, usize::from(count))
            .map_err(|_| (limit, count))?;
        Ok(Self {
            entries,
            limit: usize::from(limit),
        })
    }

    pub(crate) fn count(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// Hash of an entry, with the bit of continuation; 0 of the first.
    pub(crate) fn hash(&self, at: usize) -> u32 {
        if at == 0 {
            0
        } else {
            self.entries[at].hash.get()
        }
    }

    /// Block of an entry within the directory.
    pub(crate) fn child(&self, at: usize) -> u32 {
        self.entries[at].block.get() & BLOCK_MASK
    }

    /// The last entry whose hash is not above `hash`.
    pub(super) fn search(&self, hash: u32) -> usize {
        self.entries[1..].partition_point(|entry| entry.hash.get() <= hash)
    }

    pub(crate) fn is_sorted(&self) -> bool {
        self.entries[1..].is_sorted_by_key(|entry| entry.hash.get())
    }
}

/// Inserts an entry behind the one at `at`. The block has room.
fn insert_index_entry(bytes: &mut [u8], entries_offset: usize, at: usize, hash: u32, block: u32) {
    let bytes = &mut bytes[entries_offset..];
    let count = index_count(bytes);
    let start = (at + 1) * DX_ENTRY_SIZE;
    bytes.copy_within(start..count * DX_ENTRY_SIZE, start + DX_ENTRY_SIZE);
    let entry = RawDxEntry {
        hash: hash.into(),
        block: block.into(),
    };
    bytes[start..start + DX_ENTRY_SIZE].copy_from_slice(entry.as_bytes());
    set_index_count(bytes, count + 1);
}

/// Number of entries of an index block whose entries start at the beginning of `bytes`.
fn index_count(bytes: &[u8]) -> usize {
    let (counts, _) = RawDxCountLimit::ref_from_prefix(bytes).expect("an index block");
    usize::from(counts.count.get())
}

fn set_index_count(bytes: &mut [u8], count: usize) {
    let (counts, _) = RawDxCountLimit::mut_from_prefix(bytes).expect("an index block");
    counts.count = (count as u16).into();
}
