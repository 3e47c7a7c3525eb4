//! The journal's blocks (JBD2), big-endian unlike everything else in ext4.
//!
//! Source: kernel documentation, ext4, "Journal (jbd2)".

use crate::checksum::{CRC32C_INIT, crc32c};
use crate::corrupt::Corrupt;
use bitflags::bitflags;
use std::mem::{offset_of, size_of};
use zerocopy::big_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// First four bytes of every block that belongs to the log itself.
pub const JBD2_MAGIC: u32 = 0xc03b_3998;

/// Checksum type of crc32c in `s_checksum_type`.
const CHECKSUM_CRC32C: u8 = 4;

const TYPE_SUPERBLOCK_V2: u32 = 4;

bitflags! {
    /// Features of a log that a reader has to know.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct JournalIncompat: u32 {
        /// Revoke blocks may be there.
        const REVOKE = 0x1;
        /// Block numbers have 64 bits.
        const BIT64 = 0x2;
        /// Commit blocks may be written before the blocks they commit.
        const ASYNC_COMMIT = 0x4;
        /// Checksums of version 2: 16 bits a tag.
        const CSUM_V2 = 0x8;
        /// Checksums of version 3: 32 bits a tag.
        const CSUM_V3 = 0x10;
        /// A fast commit area at the log's end is in use.
        const FAST_COMMIT = 0x20;
        const _ = !0;
    }

    /// Flags of a block tag.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TagFlags: u16 {
        /// The block began with the log's magic number, which is zeroed in the log.
        const ESCAPE = 0x1;
        /// No UUID follows this tag.
        const SAME_UUID = 0x2;
        /// The block was deleted by this transaction (unused).
        const DELETED = 0x4;
        /// Last tag of the descriptor.
        const LAST_TAG = 0x8;
        const _ = !0;
    }
}

/// Kinds of blocks that make up the log, besides its superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockType {
    /// Tags of the blocks that follow.
    Descriptor,
    /// End of a transaction.
    Commit,
    /// Blocks that must not be replayed.
    Revoke,
}

impl BlockType {
    fn code(self) -> u32 {
        match self {
            Self::Descriptor => 1,
            Self::Commit => 2,
            Self::Revoke => 5,
        }
    }
}

/// Header of every block of the log itself.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawJournalHeader {
    /// [`JBD2_MAGIC`].
    pub h_magic: U32,
    /// Kind of block.
    pub h_blocktype: U32,
    /// The transaction that the block belongs to.
    pub h_sequence: U32,
}
const _: () = assert!(size_of::<RawJournalHeader>() == 12);

impl RawJournalHeader {
    /// A header of the given kind.
    #[must_use]
    pub fn new(block_type: BlockType, sequence: u32) -> Self {
        Self {
            h_magic: U32::new(JBD2_MAGIC),
            h_blocktype: U32::new(block_type.code()),
            h_sequence: U32::new(sequence),
        }
    }

    /// The kind of a block that belongs to transaction `sequence`; `None` if it is no such block.
    #[must_use]
    pub fn parse(block: &[u8], sequence: u32) -> Option<BlockType> {
        let (header, _) = Self::ref_from_prefix(block).ok()?;
        if header.h_magic.get() != JBD2_MAGIC || header.h_sequence.get() != sequence {
            return None;
        }
        [BlockType::Descriptor, BlockType::Commit, BlockType::Revoke]
            .into_iter()
            .find(|kind| kind.code() == header.h_blocktype.get())
    }
}

/// The log's superblock, at the start of log block 0.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawJournalSuperblock {
    /// Magic, kind 3 (version 1) or 4 (version 2).
    pub s_header: RawJournalHeader,
    /// Block size of the log in bytes.
    pub s_blocksize: U32,
    /// Blocks in the log, this one included.
    pub s_maxlen: U32,
    /// First block of the ring.
    pub s_first: U32,
    /// Id of the first transaction in the log.
    pub s_sequence: U32,
    /// Log block that it starts at, 0 for an empty log.
    pub s_start: U32,
    /// Error of an aborted journal.
    pub s_errno: U32,
    /// Features that a reader may ignore.
    pub s_feature_compat: U32,
    /// Features that a reader must know.
    pub s_feature_incompat: U32,
    /// Features that a writer must know.
    pub s_feature_ro_compat: U32,
    /// Identity of the log.
    pub s_uuid: [u8; 16],
    /// File systems that share the log.
    pub s_nr_users: U32,
    /// Unused.
    pub s_dynsuper: U32,
    /// Unused.
    pub s_max_transaction: U32,
    /// Unused.
    pub s_max_trans_data: U32,
    /// Algorithm of the checksums, 4 for crc32c.
    pub s_checksum_type: u8,
    /// Unused.
    pub s_padding2: [u8; 3],
    /// Blocks of the fast commit area at the end.
    pub s_num_fc_blks: U32,
    /// Log block of the head, where the journal was closed.
    pub s_head: U32,
    /// Unused.
    pub s_padding: [u8; 160],
    /// crc32c of the superblock with this field 0.
    pub s_checksum: U32,
    /// Identities of the file systems that share the log.
    pub s_users: [u8; 768],
}
const _: () = assert!(size_of::<RawJournalSuperblock>() == 1024);

impl RawJournalSuperblock {
    /// Superblock of an empty log of `maxlen` blocks, as mke2fs makes it: without features, which
    /// whoever first writes to the log sets.
    #[must_use]
    pub fn new(block_size: u32, maxlen: u32, uuid: [u8; 16]) -> Self {
        let mut raw = Self::new_zeroed();
        raw.s_header.h_magic.set(JBD2_MAGIC);
        raw.s_header.h_blocktype.set(TYPE_SUPERBLOCK_V2);
        raw.s_blocksize.set(block_size);
        raw.s_maxlen.set(maxlen);
        raw.s_first.set(1);
        raw.s_sequence.set(1);
        raw.s_nr_users.set(1);
        raw.s_uuid = uuid;
        raw
    }

    fn new_zeroed() -> Self {
        Self::read_from_bytes(&[0; size_of::<Self>()]).expect("as many bytes as it has")
    }

    /// Features that a reader must know. A version 1 superblock has none.
    #[must_use]
    pub fn incompat(&self) -> JournalIncompat {
        if self.s_header.h_blocktype.get() == TYPE_SUPERBLOCK_V2 {
            JournalIncompat::from_bits_retain(self.s_feature_incompat.get())
        } else {
            JournalIncompat::empty()
        }
    }

    /// Sets the features that the log will be written with.
    pub fn set_written_features(&mut self, incompat: JournalIncompat) {
        self.s_header.h_blocktype.set(TYPE_SUPERBLOCK_V2);
        self.s_feature_compat.set(0);
        self.s_feature_incompat.set(incompat.bits());
        self.s_checksum_type = CHECKSUM_CRC32C;
    }

    /// Log block after the last one of the ring.
    #[must_use]
    pub fn log_end(&self) -> u32 {
        self.s_maxlen
            .get()
            .saturating_sub(self.fast_commit_blocks())
    }

    fn fast_commit_blocks(&self) -> u32 {
        let in_use = self.incompat().contains(JournalIncompat::FAST_COMMIT);
        if in_use { self.s_num_fc_blks.get() } else { 0 }
    }

    fn has_checksum(&self) -> bool {
        self.incompat()
            .intersects(JournalIncompat::CSUM_V2 | JournalIncompat::CSUM_V3)
    }

    /// Stores the checksum, where the log has checksums.
    pub fn update_checksum(&mut self) {
        if self.has_checksum() {
            self.s_checksum.set(0);
            let checksum = crc32c(CRC32C_INIT, self.as_bytes());
            self.s_checksum.set(checksum);
        }
    }

    /// Checks everything that a reader relies on. `area_len` is the length of the journal inode in
    /// blocks.
    ///
    /// # Errors
    /// The first check that fails.
    pub fn check(&self, block_size: u32, area_len: u32) -> Result<(), Corrupt> {
        let field = |field, value: u32| Corrupt::JournalSuperblockField { field, value };
        let header = &self.s_header;
        if header.h_magic.get() != JBD2_MAGIC {
            return Err(field("h_magic", header.h_magic.get()));
        }
        if !(3..=4).contains(&header.h_blocktype.get()) {
            return Err(field("h_blocktype", header.h_blocktype.get()));
        }
        if self.s_blocksize.get() != block_size {
            return Err(field("s_blocksize", self.s_blocksize.get()));
        }
        if self.s_maxlen.get() > area_len || self.s_maxlen.get() < 8 {
            return Err(field("s_maxlen", self.s_maxlen.get()));
        }
        if self.s_first.get() == 0 || self.s_first.get().saturating_add(4) > self.log_end() {
            return Err(field("s_first", self.s_first.get()));
        }
        let start = self.s_start.get();
        if start != 0 && !(self.s_first.get()..self.log_end()).contains(&start) {
            return Err(field("s_start", start));
        }
        let both = JournalIncompat::CSUM_V2 | JournalIncompat::CSUM_V3;
        if self.incompat().contains(both) {
            return Err(field("s_feature_incompat", self.s_feature_incompat.get()));
        }
        if self.has_checksum() {
            if self.s_checksum_type != CHECKSUM_CRC32C {
                return Err(field("s_checksum_type", self.s_checksum_type.into()));
            }
            let mut copy = self.clone();
            copy.update_checksum();
            if copy.s_checksum.get() != self.s_checksum.get() {
                return Err(field("s_checksum", self.s_checksum.get()));
            }
        }
        Ok(())
    }
}

/// A block tag as logs with checksums of version 3 have it.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawBlockTag3 {
    /// Low 32 bits of the block's place.
    pub t_blocknr: U32,
    /// [`TagFlags`], in 32 bits.
    pub t_flags: U32,
    /// High 32 bits of the block's place.
    pub t_blocknr_high: U32,
    /// crc32c over UUID, transaction id and block.
    pub t_checksum: U32,
}
const _: () = assert!(size_of::<RawBlockTag3>() == 16);

impl RawBlockTag3 {
    /// Tag of a block whose place is `block`.
    #[must_use]
    pub fn new(block: u64, flags: TagFlags, checksum: u32) -> Self {
        let [b0, b1, b2, b3, b4, b5, b6, b7] = block.to_be_bytes();
        Self {
            t_blocknr: U32::from_bytes([b4, b5, b6, b7]),
            t_flags: U32::new(u32::from(flags.bits())),
            t_blocknr_high: U32::from_bytes([b0, b1, b2, b3]),
            t_checksum: U32::new(checksum),
        }
    }
}

/// A block tag of logs without checksums of version 3; `t_blocknr_high` is there in 64-bit logs.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawBlockTag {
    t_blocknr: U32,
    t_checksum: U16,
    t_flags: U16,
    t_blocknr_high: U32,
}
const _: () = assert!(size_of::<RawBlockTag>() == 12);

/// A block tag in whatever form it was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tag {
    /// Place of the block.
    pub block: u64,
    /// Flags.
    pub flags: TagFlags,
    /// As stored: 16 or 32 bits.
    pub checksum: u32,
}

/// The form of a log's block tags, by its features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagFormat {
    is_v3: bool,
    is_v2: bool,
    is_64bit: bool,
    has_tail: bool,
}

impl TagFormat {
    /// The form that goes with these features.
    #[must_use]
    pub fn of(incompat: JournalIncompat) -> Self {
        Self {
            is_v3: incompat.contains(JournalIncompat::CSUM_V3),
            is_v2: incompat.contains(JournalIncompat::CSUM_V2),
            is_64bit: incompat.contains(JournalIncompat::BIT64),
            has_tail: incompat.intersects(JournalIncompat::CSUM_V2 | JournalIncompat::CSUM_V3),
        }
    }

    fn tag_bytes(self) -> usize {
        if self.is_v3 {
            return size_of::<RawBlockTag3>();
        }
        // Tags of version 2 have two bytes more that nothing uses.
        let unused = if self.is_v2 { 2 } else { 0 };
        let high = if self.is_64bit { 0 } else { size_of::<U32>() };
        size_of::<RawBlockTag>() - high + unused
    }

    /// Whether a tag's stored checksum is that of a block with checksum `computed`.
    #[must_use]
    pub fn checksum_matches(self, stored: u32, computed: u32) -> bool {
        if self.is_v3 {
            stored == computed
        } else {
            stored == computed & 0xffff
        }
    }

    /// The tags of a descriptor block, up to the last or to the block's end.
    pub fn tags(self, block: &[u8]) -> impl Iterator<Item = Tag> + '_ {
        let tail = if self.has_tail {
            size_of::<RawBlockTail>()
        } else {
            0
        };
        let end = block.len().saturating_sub(tail);
        let mut at = size_of::<RawJournalHeader>();
        let mut is_done = false;
        std::iter::from_fn(move || {
            let stored = block.get(at..at + self.tag_bytes()).filter(|_| !is_done)?;
            if at + self.tag_bytes() > end {
                return None;
            }
            let tag = self.parse(stored);
            at += self.tag_bytes();
            if !tag.flags.contains(TagFlags::SAME_UUID) {
                at += 16;
            }
            is_done = tag.flags.contains(TagFlags::LAST_TAG);
            Some(tag)
        })
    }

    fn parse(self, stored: &[u8]) -> Tag {
        let join = |high: u32, low: u32| u64::from(high) << 32 | u64::from(low);
        if self.is_v3 {
            let raw = RawBlockTag3::read_from_bytes(stored).expect("as many bytes as it has");
            let [_, _, high, low] = raw.t_flags.get().to_be_bytes();
            return Tag {
                block: join(raw.t_blocknr_high.get(), raw.t_blocknr.get()),
                flags: TagFlags::from_bits_retain(u16::from_be_bytes([high, low])),
                checksum: raw.t_checksum.get(),
            };
        }
        let high = if self.is_64bit { 0 } else { size_of::<U32>() };
        let used = size_of::<RawBlockTag>() - high;
        let mut bytes = [0; size_of::<RawBlockTag>()];
        bytes[..used].copy_from_slice(&stored[..used]);
        let raw = RawBlockTag::read_from_bytes(&bytes).expect("as many bytes as it has");
        Tag {
            block: join(raw.t_blocknr_high.get(), raw.t_blocknr.get()),
            flags: TagFlags::from_bits_retain(raw.t_flags.get()),
            checksum: u32::from(raw.t_checksum.get()),
        }
    }
}

/// End of descriptor and revoke blocks in logs with checksums.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawBlockTail {
    /// crc32c over UUID and block, with this field 0.
    pub t_checksum: U32,
}
const _: () = assert!(size_of::<RawBlockTail>() == 4);

impl RawBlockTail {
    /// Whether the checksum at the end of `block` is right.
    #[must_use]
    pub fn verify_checksum(block: &[u8], seed: u32) -> bool {
        let (content, tail) = block.split_at(block.len() - size_of::<Self>());
        let computed = crc32c(crc32c(seed, content), &[0; size_of::<Self>()]);
        tail == computed.to_be_bytes()
    }

    /// Stores the checksum at the end of `block`.
    pub fn update_checksum(block: &mut [u8], seed: u32) {
        let at = block.len() - size_of::<Self>();
        block[at..].fill(0);
        let checksum = crc32c(seed, block);
        block[at..].copy_from_slice(&checksum.to_be_bytes());
    }
}

/// Start of a revoke block; records of 4 or 8 bytes follow.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawRevokeHeader {
    /// Magic, kind 5, transaction.
    pub r_header: RawJournalHeader,
    /// Bytes in use, this header included.
    pub r_count: U32,
}
const _: () = assert!(size_of::<RawRevokeHeader>() == 16);

impl RawRevokeHeader {
    /// Header of a revoke block with `count` bytes in use.
    #[must_use]
    pub fn new(sequence: u32, count: u32) -> Self {
        Self {
            r_header: RawJournalHeader::new(BlockType::Revoke, sequence),
            r_count: U32::new(count),
        }
    }

    /// The blocks that a revoke block names.
    pub fn records(block: &[u8], is_64bit: bool) -> impl Iterator<Item = u64> + '_ {
        let used = Self::ref_from_prefix(block).map_or(0, |(header, _)| header.r_count.get());
        let end = block.len().min(used as usize).max(size_of::<Self>());
        let width = if is_64bit { 8 } else { 4 };
        block[size_of::<Self>()..end]
            .chunks_exact(width)
            .map(|record| {
                record
                    .iter()
                    .fold(0, |value, byte| value << 8 | u64::from(*byte))
            })
    }
}

/// The block that ends a transaction.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct RawCommitBlock {
    /// Magic, kind 2, transaction.
    pub h_header: RawJournalHeader,
    /// Unused by checksums of version 2 and 3.
    pub h_chksum_type: u8,
    /// Unused by checksums of version 2 and 3.
    pub h_chksum_size: u8,
    /// Unused.
    pub h_padding: [u8; 2],
    /// First word: crc32c over UUID and block, with this field 0.
    pub h_chksum: [U32; 8],
    /// Time of the commit, seconds since 1970.
    pub h_commit_sec: U64,
    /// And nanoseconds.
    pub h_commit_nsec: U32,
}
const _: () = assert!(size_of::<RawCommitBlock>() == 60);

impl RawCommitBlock {
    /// Commit block of a transaction.
    #[must_use]
    pub fn new(sequence: u32) -> Self {
        Self {
            h_header: RawJournalHeader::new(BlockType::Commit, sequence),
            h_chksum_type: 0,
            h_chksum_size: 0,
            h_padding: [0; 2],
            h_chksum: [U32::new(0); 8],
            h_commit_sec: U64::new(0),
            h_commit_nsec: U32::new(0),
        }
    }

    /// Stores the checksum of the whole commit block.
    pub fn update_checksum(block: &mut [u8], seed: u32) {
        let at = offset_of!(Self, h_chksum);
        block[at..at + 4].fill(0);
        let checksum = crc32c(seed, block);
        block[at..at + 4].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Whether the checksum of the whole commit block is right.
    #[must_use]
    pub fn verify_checksum(block: &[u8], seed: u32) -> bool {
        let mut copy = block.to_vec();
        Self::update_checksum(&mut copy, seed);
        let at = offset_of!(Self, h_chksum);
        copy[at..at + 4] == block[at..at + 4]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_of_all_forms_are_read() {
        for (incompat, bytes) in [
            (JournalIncompat::empty(), 8),
            (JournalIncompat::BIT64, 12),
            (JournalIncompat::CSUM_V2, 10),
            (JournalIncompat::CSUM_V2 | JournalIncompat::BIT64, 14),
            (JournalIncompat::CSUM_V3, 16),
        ] {
            let format = TagFormat::of(incompat);
            assert_eq!(format.tag_bytes(), bytes);
            let mut block = vec![0; 1024];
            let mut at = 12;
            for index in 0..3u32 {
                block[at..at + 4].copy_from_slice(&(100 + index).to_be_bytes());
                let flags = u8::from(index > 0) * 2 + u8::from(index == 2) * 8;
                block[at + 7] = flags;
                at += bytes + if index == 0 { 16 } else { 0 };
            }
            let blocks: Vec<u64> = format.tags(&block).map(|tag| tag.block).collect();
            assert_eq!(blocks, [100, 101, 102]);
        }
    }

    #[test]
    fn tags_end_with_the_block() {
        let block = vec![0; 64];
        let format = TagFormat::of(JournalIncompat::empty());
        // Tags without SAME_UUID take 24 bytes each: two fit behind the header.
        assert_eq!(format.tags(&block).count(), 2);
    }

    #[test]
    fn revoke_records_stay_within_the_block() {
        let mut block = vec![0; 64];
        block[12..16].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(RawRevokeHeader::records(&block, true).count(), 6);
        block[12..16].copy_from_slice(&3u32.to_be_bytes());
        assert_eq!(RawRevokeHeader::records(&block, false).count(), 0);
    }
}
