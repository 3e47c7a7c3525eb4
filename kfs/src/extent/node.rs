//! `Node` and `Entry`: a node's bytes as a sorted array of 12-byte entries.
//!
//! Index entries and extents have the same size and begin with the key, so that splitting, merging
//! and searching are the same on all levels. A `Node` is made of checked bytes only (`check.rs`):
//! its header is whole and its entries lie within the bytes. Sortedness is not relied on for safety.

use super::Extent;
use crate::ids::{BlockNr, LogicalBlock};
pub(super) use crate::layout::extent::{ENTRY_SIZE, ROOT_ENTRIES};
use crate::layout::extent::{RawExtentHeader, RawExtentIndex, RawExtentLeaf};
use smallvec::SmallVec;
use zerocopy::{FromBytes, IntoBytes, little_endian::U16};

/// An index entry or an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry([u8; ENTRY_SIZE]);

/// Entries that replace others in a node.
pub(super) type Entries = SmallVec<[Entry; 8]>;

impl Entry {
    pub(super) fn extent(extent: Extent) -> Self {
        let Extent {
            logical,
            physical,
            len,
            unwritten,
        } = extent;
        let raw = RawExtentLeaf::new(logical, physical, len, unwritten);
        Self(zerocopy::transmute!(raw))
    }

    pub(super) fn index(key: u32, child: BlockNr) -> Self {
        Self(zerocopy::transmute!(RawExtentIndex::new(
            LogicalBlock(key),
            child
        )))
    }

    /// First logical block of the extent or below the index entry.
    pub(super) fn key(self) -> u32 {
        self.as_index().logical().0
    }

    /// The block of the child, for an entry of an index node.
    pub(super) fn child(self) -> BlockNr {
        self.as_index().child()
    }

    /// The extent, for an entry of a leaf.
    pub(super) fn as_extent(self) -> Extent {
        let raw: RawExtentLeaf = zerocopy::transmute!(self.0);
        Extent {
            logical: raw.logical(),
            physical: raw.physical(),
            len: raw.len(),
            unwritten: raw.is_unwritten(),
        }
    }

    fn as_index(self) -> RawExtentIndex {
        zerocopy::transmute!(self.0)
    }
}

/// The checked bytes of a node.
#[derive(Clone, Copy)]
pub(super) struct Node<'b> {
    header: &'b RawExtentHeader,
    entries: &'b [[u8; ENTRY_SIZE]],
}

impl<'b> Node<'b> {
    /// A view on bytes whose header was checked, or that this module wrote: `None` when the entries
    /// do not fit the bytes.
    pub(super) fn new(bytes: &'b [u8]) -> Option<Self> {
        let (header, rest) = RawExtentHeader::ref_from_prefix(bytes).ok()?;
        let entries = rest
            .as_chunks()
            .0
            .get(..usize::from(header.eh_entries.get()))?;
        Some(Self { header, entries })
    }

    pub(super) fn depth(self) -> u16 {
        self.header.eh_depth.get()
    }

    pub(super) fn max(self) -> usize {
        usize::from(self.header.eh_max.get())
    }

    pub(super) fn len(self) -> usize {
        self.entries.len()
    }

    /// # Panics
    /// When `index` is not less than [`Node::len`].
    pub(super) fn entry(self, index: usize) -> Entry {
        Entry(self.entries[index])
    }

    pub(super) fn entries(self) -> impl DoubleEndedIterator<Item = Entry> + ExactSizeIterator + 'b {
        self.entries.iter().map(|bytes| Entry(*bytes))
    }

    /// How many entries have a key of at most `logical`.
    pub(super) fn rank(self, logical: u32) -> usize {
        self.entries
            .partition_point(|bytes| Entry(*bytes).key() <= logical)
    }

    /// All entries, with `remove` of them from `at` on replaced by `insert`.
    pub(super) fn spliced(self, at: usize, remove: usize, insert: &[Entry]) -> Vec<Entry> {
        let before = self.entries().take(at);
        let after = self.entries().skip(at + remove);
        before.chain(insert.iter().copied()).chain(after).collect()
    }
}

/// Replaces `remove` entries from `at` on by `insert`, for which there is room. The room that falls
/// free is zeroed.
pub(super) fn splice(bytes: &mut [u8], at: usize, remove: usize, insert: &[Entry]) {
    let (header, rest) =
        RawExtentHeader::mut_from_prefix(bytes).expect("a checked node has a whole header");
    let len = usize::from(header.eh_entries.get());
    let new_len = len - remove + insert.len();
    header.eh_entries = U16::new(u16::try_from(new_len).expect("entries fit the node"));
    let entries = rest.as_chunks_mut::<ENTRY_SIZE>().0;
    entries.copy_within(at + remove..len, at + insert.len());
    for (slot, entry) in entries[at..].iter_mut().zip(insert) {
        *slot = entry.0;
    }
    if new_len < len {
        entries[new_len..len].fill([0; ENTRY_SIZE]);
    }
}

/// Makes a node of `entries`; the rest of the bytes is zeroed.
pub(super) fn write(bytes: &mut [u8], depth: u16, max: u16, entries: &[Entry]) {
    bytes.fill(0);
    let header = RawExtentHeader::new(max, depth);
    header
        .write_to_prefix(bytes)
        .expect("a node has room for its header");
    splice(bytes, 0, 0, entries);
}
