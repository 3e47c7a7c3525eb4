//! The snapshot store on disk: segments of batches (md-docs/format/snapshots.md).
//!
//! ```text
//!   store    | segment 0        | segment 1        | ...        SEGMENT_BLOCKS blocks each
//!   segment  | head | batch | batch | ...
//!   batch    | head: names and checksums of what follows | block | block | ...
//! ```
//!
//! All numbers are little-endian. A batch counts when its segment's sequence number is in it: what a
//! segment's earlier life has left behind does not. A sealed segment says where its batches end: so it is noticed
//! when a head of one is lost.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Blocks in a segment.
pub(super) const SEGMENT_BLOCKS: u32 = 128;
/// Where the entries of a batch start in its head, in bytes.
const ENTRIES_OFFSET: usize = 64;
const ENTRY_SIZE: usize = 16;
const MOVED_ENTRY_SIZE: usize = 32;
const SEGMENT_MAGIC: [u8; 8] = *b"kfs-segm";
const BATCH_MAGIC: [u8; 8] = *b"kfs-batc";

/// Identifies one life of a store: blocks of an earlier store mean nothing.
pub(super) type StoreId = [u8; 16];

/// Head of a segment, at the start of its first block.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSegment {
    magic: [u8; 8],
    store: StoreId,
    sequence: U64,
    end: U32,
    reserved: [u8; 24],
    checksum: U32,
}

/// Head of a batch; entries follow at [`ENTRIES_OFFSET`].
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBatch {
    magic: [u8; 8],
    store: StoreId,
    sequence: U64,
    commit: U64,
    /// Kind of the batch.
    kind: U16,
    /// Blocks that follow.
    count: U16,
    /// Snapshot that pre-images are of.
    snapshot: U32,
    /// Bytes used of the blocks that follow, for a table.
    bytes: U32,
    reserved: [u8; 8],
    /// crc32c of the head without this field, and the entries.
    checksum: U32,
}

#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    /// Block that the content is of.
    block: U64,
    /// crc32c of the content.
    checksum: U32,
    /// Only of a moved pre-image.
    snapshot: U32,
}

/// What follows a [`RawEntry`] of a moved pre-image.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawMoved {
    commit: U64,
    reserved: U64,
}

/// What the head of a segment says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHead {
    /// Of this life of the segment.
    pub(super) sequence: u64,
    /// The seal: the block behind its last batch, counted from the head. 0 while it has none.
    pub(super) end: u32,
}

/// What a batch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Old content of blocks, kept for a snapshot.
    PreImages {
        /// The newest snapshot at the time.
        snapshot: u32,
    },
    /// The table of snapshots.
    Table {
        /// Bytes of it.
        bytes: u32,
    },
    /// Pre-images that were elsewhere in the store. Their entries say when they were taken.
    Moved,
    /// Nothing: a crash has torn what was there.
    Void,
}

/// One block of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Block that the content is of; 0 in a table.
    pub(super) block: u64,
    /// crc32c of the content.
    pub(super) checksum: u32,
    /// When it was taken, if that was not with its batch.
    pub(super) taken: Option<Taken>,
}

/// When a pre-image was taken. That and its block are all that makes it what it is: wherever it is moved to,
/// it stays the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Taken {
    /// The newest snapshot at the time.
    pub(super) snapshot: u32,
    pub(super) commit: u64,
}

/// Head of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) kind: Kind,
    /// Counts commits: all batches that one commit has written have the same.
    pub(super) commit: u64,
    pub(super) entries: Vec<Entry>,
}

impl Kind {
    fn entry_size(self) -> usize {
        match self {
            Self::Moved => MOVED_ENTRY_SIZE,
            Self::PreImages { .. } | Self::Table { .. } | Self::Void => ENTRY_SIZE,
        }
    }

    /// Entries that fit into the head of a batch.
    pub(super) fn entries_max(self, block_size: usize) -> usize {
        ((block_size - ENTRIES_OFFSET) / self.entry_size()).min(SEGMENT_BLOCKS as usize - 2)
    }
}

/// Blocks that `payload` blocks take at the most, with all heads and what is left unused at the ends
/// of segments.
pub(super) fn blocks_for(payload: u64) -> u64 {
    payload + payload / 16 + 8
}

/// A segment's first block.
pub(super) fn encode_segment(block_size: usize, store: StoreId, head: SegmentHead) -> Vec<u8> {
    let mut raw = RawSegment {
        magic: SEGMENT_MAGIC,
        store,
        sequence: head.sequence.into(),
        end: head.end.into(),
        reserved: [0; 24],
        checksum: 0.into(),
    };
    raw.checksum = crc32c::crc32c(&raw.as_bytes()[..60]).into();
    let mut block = vec![0; block_size];
    block[..64].copy_from_slice(raw.as_bytes());
    block
}

/// The head of a segment that belongs to the store.
pub(super) fn decode_segment(block: &[u8], store: StoreId) -> Option<SegmentHead> {
    let (raw, _) = RawSegment::read_from_prefix(block).ok()?;
    let checksum = crc32c::crc32c(&raw.as_bytes()[..60]);
    let ours = raw.magic == SEGMENT_MAGIC && raw.store == store;
    (ours && raw.checksum.get() == checksum).then(|| SegmentHead {
        sequence: raw.sequence.get(),
        end: raw.end.get(),
    })
}

/// The store that a segment belongs to, whichever it is.
pub(super) fn store_of_segment(block: &[u8]) -> Option<StoreId> {
    let (raw, _) = RawSegment::read_from_prefix(block).ok()?;
    decode_segment(block, raw.store).map(|_| raw.store)
}

/// Whether something was in the place of a segment's head that is none any more. A head lies in one sector,
/// which a power cut leaves as it was or as it was to be.
pub(super) fn is_damaged_segment(block: &[u8]) -> bool {
    let is_zero = block[..ENTRIES_OFFSET].iter().all(|byte| *byte == 0);
    !is_zero && store_of_segment(block).is_none()
}

impl RawBatch {
    fn kind(&self) -> Option<Kind> {
        match self.kind.get() {
            1 => Some(Kind::PreImages {
                snapshot: self.snapshot.get(),
            }),
            2 => Some(Kind::Table {
                bytes: self.bytes.get(),
            }),
            3 => Some(Kind::Void),
            4 => Some(Kind::Moved),
            _ => None,
        }
    }
}

impl Entry {
    fn encode(&self, bytes: &mut [u8]) {
        let snapshot = self.taken.map_or(0, |taken| taken.snapshot);
        let raw = RawEntry {
            block: self.block.into(),
            checksum: self.checksum.into(),
            snapshot: snapshot.into(),
        };
        let (first, rest) = bytes.split_at_mut(ENTRY_SIZE);
        first.copy_from_slice(raw.as_bytes());
        if let Some(taken) = self.taken.filter(|_| !rest.is_empty()) {
            let raw = RawMoved {
                commit: taken.commit.into(),
                reserved: 0.into(),
            };
            rest.copy_from_slice(raw.as_bytes());
        }
    }

    fn decode(bytes: &[u8]) -> Self {
        let (raw, rest) = RawEntry::read_from_prefix(bytes).expect("it has this size at least");
        let moved = RawMoved::read_from_bytes(rest).ok();
        Self {
            block: raw.block.get(),
            checksum: raw.checksum.get(),
            taken: moved.map(|moved| Taken {
                snapshot: raw.snapshot.get(),
                commit: moved.commit.get(),
            }),
        }
    }
}

impl Batch {
    /// The head as a block.
    pub(super) fn encode(&self, block_size: usize, store: StoreId, sequence: u64) -> Vec<u8> {
        let (kind, snapshot, bytes) = match self.kind {
            Kind::PreImages { snapshot } => (1, snapshot, 0),
            Kind::Table { bytes } => (2, 0, bytes),
            Kind::Void => (3, 0, 0),
            Kind::Moved => (4, 0, 0),
        };
        let mut raw = RawBatch {
            magic: BATCH_MAGIC,
            store,
            sequence: sequence.into(),
            commit: self.commit.into(),
            kind: kind.into(),
            count: (self.entries.len() as u16).into(),
            snapshot: snapshot.into(),
            bytes: bytes.into(),
            reserved: [0; 8],
            checksum: 0.into(),
        };
        let mut block = vec![0; block_size];
        let size = self.kind.entry_size();
        let places = block[ENTRIES_OFFSET..].chunks_exact_mut(size);
        for (entry, bytes) in self.entries.iter().zip(places) {
            entry.encode(bytes);
        }
        let end = ENTRIES_OFFSET + self.entries.len() * size;
        raw.checksum = checksum(&raw, &block[ENTRIES_OFFSET..end]).into();
        block[..ENTRIES_OFFSET].copy_from_slice(raw.as_bytes());
        block
    }

    /// Makes nothing of a batch, of which this is the head. Only its first sector changes, so a power cut leaves it
    /// as it was or void.
    pub(super) fn void(block: &mut [u8]) {
        let (raw, rest) = RawBatch::mut_from_prefix(block).expect("a block holds a head");
        raw.kind = 3.into();
        let entries = &rest[..usize::from(raw.count.get()) * ENTRY_SIZE];
        raw.checksum = checksum(raw, entries).into();
    }

    /// The life of the segment that a head of a batch belongs to, whichever it is.
    pub(super) fn sequence(block: &[u8], store: StoreId) -> Option<u64> {
        let (raw, _) = RawBatch::read_from_prefix(block).ok()?;
        let sequence = raw.sequence.get();
        Self::decode(block, store, sequence).map(|_| sequence)
    }

    /// A head of a batch that belongs to this life of this segment.
    pub(super) fn decode(block: &[u8], store: StoreId, sequence: u64) -> Option<Self> {
        let (raw, _) = RawBatch::read_from_prefix(block).ok()?;
        let ours = raw.magic == BATCH_MAGIC && raw.store == store && raw.sequence.get() == sequence;
        let kind = raw.kind()?;
        let count = usize::from(raw.count.get());
        if !ours || count == 0 || count > kind.entries_max(block.len()) {
            return None;
        }
        let size = kind.entry_size();
        let entries = &block[ENTRIES_OFFSET..ENTRIES_OFFSET + count * size];
        if raw.checksum.get() != checksum(&raw, entries) {
            return None;
        }
        let entries = entries.chunks_exact(size).map(Entry::decode);
        Some(Self {
            kind,
            commit: raw.commit.get(),
            entries: entries.collect(),
        })
    }
}

fn checksum(raw: &RawBatch, entries: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&raw.as_bytes()[..60]), entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        let entry = |n: u32| Entry {
            block: u64::from(n) << 33,
            checksum: n,
            taken: None,
        };
        Batch {
            kind: Kind::PreImages { snapshot: 7 },
            commit: 3,
            entries: (0..60).map(entry).collect(),
        }
    }

    fn moved() -> Batch {
        let entry = |n: u32| Entry {
            block: u64::from(n) << 33,
            checksum: n,
            taken: Some(Taken {
                snapshot: n / 7,
                commit: u64::from(n) << 35,
            }),
        };
        Batch {
            kind: Kind::Moved,
            commit: 4,
            entries: (0..30).map(entry).collect(),
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let head = SegmentHead {
            sequence: 9,
            end: 61,
        };
        let segment = encode_segment(1024, [1; 16], head);
        assert_eq!(decode_segment(&segment, [1; 16]), Some(head));
        assert!(!is_damaged_segment(&segment) && !is_damaged_segment(&[0; 1024]));
        let block = batch().encode(1024, [1; 16], 9);
        assert_eq!(Batch::decode(&block, [1; 16], 9), Some(batch()));
        let mut block = moved().encode(1024, [1; 16], 9);
        assert_eq!(Batch::decode(&block, [1; 16], 9), Some(moved()));
        let before = block.clone();
        Batch::void(&mut block);
        let void = Batch::decode(&block, [1; 16], 9).expect("is one still");
        assert_eq!((void.kind, void.entries.len()), (Kind::Void, 30));
        assert_eq!(block[64..], before[64..]);
        for (kind, small) in [(Kind::Void, 60), (Kind::Moved, 30)] {
            assert_eq!(kind.entries_max(1024), small);
            assert_eq!(kind.entries_max(4096), 126);
        }
    }

    #[test]
    fn other_lives_and_flipped_bits_are_no_batches() {
        let block = batch().encode(1024, [1; 16], 9);
        assert_eq!(Batch::decode(&block, [1; 16], 8), None);
        assert_eq!(Batch::decode(&block, [2; 16], 9), None);
        assert_eq!(Batch::sequence(&block, [1; 16]), Some(9));
        assert!(is_damaged_segment(&block));
        for block in [block, moved().encode(1024, [1; 16], 9)] {
            for at in 0..64 + 60 * 16 {
                let mut flipped = block.clone();
                flipped[at] ^= 1;
                assert_eq!(Batch::decode(&flipped, [1; 16], 9), None, "byte {at}");
            }
        }
    }
}
