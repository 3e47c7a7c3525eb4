//! The facts of a volume, checked in one place.
//!
//! Everything that holds a `Geometry` may trust its numbers: sizes are powers of two, groups cover
//! the volume, no arithmetic on valid block and inode numbers overflows.
//!
//! None of them ever changes while the volume is open but its [`Size`], which grows. All clones share it.

use super::features::{Compat, Incompat, RoCompat};
use super::size::Size;
pub use super::size::SizeFacts;
use super::superblock::{CHECKSUM_CRC32C, EXT4_MAGIC, FLAG_UNSIGNED_HASH, RawSuperblock};
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::{BlockNr, GroupNr, InodeNr};
use std::sync::Arc;
use zerocopy::little_endian::U32;

/// Facts of a volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// What growing the volume changes.
    size: Arc<Size>,
    /// Bytes in a block: 1024 to 65536, a power of two.
    pub block_size: u32,
    /// `block_size == 1 << block_size_bits`.
    pub block_size_bits: u32,
    /// Blocks in a cluster; 1 without bigalloc.
    pub cluster_blocks: u32,
    /// First block of group 0: 1 with blocks of 1 KiB, else 0.
    pub first_data_block: u32,
    /// Blocks in every group but the last.
    pub blocks_per_group: u32,
    /// Inodes in every group, a multiple of 8.
    pub inodes_per_group: u32,
    /// Bytes of an inode in the table: 128 or more, a power of two.
    pub inode_size: u32,
    /// Blocks of the inode table of one group.
    pub inode_table_blocks: u32,
    /// Bytes of a group descriptor: 32 or 64.
    pub desc_size: u32,
    /// Groups with the two backups of sparse_super2.
    pub backup_bgs: [u32; 2],
    /// Groups whose bitmaps and tables lie together; 1 without flex_bg.
    pub groups_per_flex: u32,
    /// Seed of the crc32c checksums; `None` without metadata_csum.
    pub csum_seed: Option<u32>,
    /// Features that may be ignored.
    pub compat: Compat,
    /// Features needed to read.
    pub incompat: Incompat,
    /// Features needed to write.
    pub ro_compat: RoCompat,
    /// The volume's uuid.
    pub uuid: [u8; 16],
    /// Seed of the directory hashes.
    pub hash_seed: [u32; 4],
    /// Hash of new hash trees, signed variant (0 legacy, 1 half MD4, 2 TEA).
    pub default_hash_version: u8,
    /// Hashes take characters as unsigned.
    pub hash_unsigned: bool,
    /// The journal's inode.
    pub journal_inode: Option<InodeNr>,
    /// The orphan file's inode.
    pub orphan_file_inode: Option<InodeNr>,
    /// Bytes of extra fields in new inodes; 0 with inodes of 128 bytes.
    pub want_extra_isize: u16,
    /// First inode that is not reserved.
    pub first_inode: InodeNr,
}

/// Error for a superblock field that cannot be.
fn bad(field: &'static str, value: impl Into<u64>) -> Error {
    Error::Corrupt(Corrupt::SuperblockField {
        field,
        value: value.into(),
    })
}

/// `Err` unless `ok`.
fn ensure(ok: bool, field: &'static str, value: impl Into<u64>) -> Result<()> {
    if ok { Ok(()) } else { Err(bad(field, value)) }
}

/// Log2 of the block size, and blocks in a cluster.
fn check_block_size(raw: &RawSuperblock) -> Result<(u32, u32)> {
    let log = raw.s_log_block_size.get();
    ensure(log <= 6, "s_log_block_size", log)?;
    let cluster = raw.s_log_cluster_size.get();
    if !raw.ro_compat().contains(RoCompat::BIGALLOC) {
        return Ok((log + 10, 1));
    }
    ensure(
        cluster >= log && cluster <= 20,
        "s_log_cluster_size",
        cluster,
    )?;
    Ok((log + 10, 1 << (cluster - log)))
}

fn check_inode_size(raw: &RawSuperblock, block_size: u32) -> Result<u32> {
    if raw.s_rev_level.get() == 0 {
        return Ok(128);
    }
    let size = u32::from(raw.s_inode_size.get());
    let ok = size.is_power_of_two() && size >= 128 && size <= block_size;
    ensure(ok, "s_inode_size", size)?;
    Ok(size)
}

fn check_desc_size(raw: &RawSuperblock) -> Result<u32> {
    if !raw.incompat().contains(Incompat::BIT64) {
        return Ok(32);
    }
    let size = raw.s_desc_size.get();
    ensure(size == 64, "s_desc_size", size)?;
    Ok(64)
}

/// Blocks per group, checked against what one block of bitmap can hold.
fn check_group_size(raw: &RawSuperblock, block_size: u32, cluster_blocks: u32) -> Result<u32> {
    let blocks = raw.s_blocks_per_group.get();
    let limit = u64::from(block_size) * 8 * u64::from(cluster_blocks);
    let ok = blocks >= 8 && u64::from(blocks) <= limit && blocks.is_multiple_of(8 * cluster_blocks);
    ensure(ok, "s_blocks_per_group", blocks)?;
    let clusters = raw.s_clusters_per_group.get();
    if cluster_blocks > 1 {
        ensure(
            clusters == blocks / cluster_blocks,
            "s_clusters_per_group",
            clusters,
        )?;
    }
    Ok(blocks)
}

/// Groups of the volume.
fn check_counts(raw: &RawSuperblock, block_size: u32, first: u32, per_group: u32) -> Result<u32> {
    let blocks = raw.blocks_count();
    let ok = blocks > u64::from(first) && blocks <= 1 << 48;
    ensure(ok, "s_blocks_count", blocks)?;
    let groups = (blocks - u64::from(first)).div_ceil(u64::from(per_group));
    let inodes_per_group = raw.s_inodes_per_group.get();
    let ok = inodes_per_group >= 8
        && inodes_per_group.is_multiple_of(8)
        && inodes_per_group <= block_size * 8;
    ensure(ok, "s_inodes_per_group", inodes_per_group)?;
    let inodes = raw.s_inodes_count.get();
    let ok = groups.checked_mul(u64::from(inodes_per_group)) == Some(u64::from(inodes));
    ensure(ok, "s_inodes_count", inodes)?;
    u32::try_from(groups).map_err(|_| bad("s_blocks_count", blocks))
}

/// An inode number named by the superblock; 0 is none.
fn check_special_inode(field: &'static str, inode: u32, inodes: u32) -> Result<Option<InodeNr>> {
    ensure(inode <= inodes, field, inode)?;
    Ok((inode != 0).then_some(InodeNr(inode)))
}

fn check_extra_isize(raw: &RawSuperblock, inode_size: u32) -> Result<u16> {
    let room = inode_size - 128;
    if room == 0 {
        return Ok(0);
    }
    let want = raw.s_want_extra_isize.get();
    ensure(u32::from(want) <= room, "s_want_extra_isize", want)?;
    // 32 covers all fields there are; 0 in old images means no preference.
    Ok(if want < 4 { 32 } else { want & !3 })
}

/// What shows that this is a superblock at all.
fn check_identity(raw: &RawSuperblock) -> Result<()> {
    let magic = raw.s_magic.get();
    if magic != EXT4_MAGIC {
        return Err(Corrupt::SuperblockMagic { found: magic }.into());
    }
    if !raw.verify_checksum() {
        let (found, expected) = (raw.s_checksum.get(), raw.checksum());
        return Err(Corrupt::SuperblockChecksum { found, expected }.into());
    }
    if raw.ro_compat().contains(RoCompat::METADATA_CSUM) {
        let kind = raw.s_checksum_type;
        ensure(kind == CHECKSUM_CRC32C, "s_checksum_type", kind)?;
    }
    Ok(())
}

/// First meta block group and blocks reserved for descriptors.
fn check_descriptors(raw: &RawSuperblock, block_size: u32, desc_blocks: u32) -> Result<(u32, u32)> {
    let first = raw.s_first_meta_bg.get();
    if raw.incompat().contains(Incompat::META_BG) {
        ensure(first <= desc_blocks, "s_first_meta_bg", first)?;
    }
    let reserved = u32::from(raw.s_reserved_gdt_blocks.get());
    ensure(
        reserved <= block_size / 4,
        "s_reserved_gdt_blocks",
        reserved,
    )?;
    Ok((first, reserved))
}

/// The inodes of the journal and of the orphan file, and the first that is not reserved.
fn check_special_inodes(
    raw: &RawSuperblock,
) -> Result<(Option<InodeNr>, Option<InodeNr>, InodeNr)> {
    let inodes = raw.s_inodes_count.get();
    let named = |feature, inode: U32| {
        if raw.compat().contains(feature) {
            inode.get()
        } else {
            0
        }
    };
    let journal = named(Compat::HAS_JOURNAL, raw.s_journal_inum);
    let journal = check_special_inode("s_journal_inum", journal, inodes)?;
    let orphan = named(Compat::ORPHAN_FILE, raw.s_orphan_file_inum);
    let orphan = check_special_inode("s_orphan_file_inum", orphan, inodes)?;
    let first = if raw.s_rev_level.get() == 0 {
        11
    } else {
        raw.s_first_ino.get()
    };
    ensure((11..=inodes).contains(&first), "s_first_ino", first)?;
    Ok((journal, orphan, InodeNr(first)))
}

impl TryFrom<&RawSuperblock> for Geometry {
    type Error = Error;

    /// Checks the superblock's magic, checksum and numbers. Features are judged by
    /// [`features::check`](super::features::check).
    fn try_from(raw: &RawSuperblock) -> Result<Self> {
        check_identity(raw)?;
        let (block_size_bits, cluster_blocks) = check_block_size(raw)?;
        let block_size = 1 << block_size_bits;
        let first_data_block = raw.s_first_data_block.get();
        let first_ok = first_data_block == u32::from(block_size == 1024 && cluster_blocks == 1);
        ensure(first_ok, "s_first_data_block", first_data_block)?;
        let inode_size = check_inode_size(raw, block_size)?;
        let blocks_per_group = check_group_size(raw, block_size, cluster_blocks)?;
        let groups_count = check_counts(raw, block_size, first_data_block, blocks_per_group)?;
        let inodes_per_group = raw.s_inodes_per_group.get();
        let inode_table_blocks = (inodes_per_group * inode_size).div_ceil(block_size);
        let table_ok = inode_table_blocks < blocks_per_group;
        ensure(table_ok, "s_inodes_per_group", inodes_per_group)?;
        let desc_size = check_desc_size(raw)?;
        let desc_blocks = groups_count.div_ceil(block_size / desc_size);
        let (first_meta_bg, reserved_gdt_blocks) = check_descriptors(raw, block_size, desc_blocks)?;
        let (journal_inode, orphan_file_inode, first_inode) = check_special_inodes(raw)?;
        let log_flex = raw.s_log_groups_per_flex;
        let flex = raw.incompat().contains(Incompat::FLEX_BG) && log_flex < 32;
        Ok(Self {
            block_size,
            block_size_bits,
            cluster_blocks,
            size: Arc::new(Size::new(SizeFacts {
                blocks_count: raw.blocks_count(),
                groups_count,
                reserved_gdt_blocks,
                first_meta_bg: raw
                    .incompat()
                    .contains(Incompat::META_BG)
                    .then_some(first_meta_bg),
            })),
            first_data_block,
            blocks_per_group,
            inodes_per_group,
            inode_size,
            inode_table_blocks,
            desc_size,
            backup_bgs: raw.s_backup_bgs.map(U32::get),
            groups_per_flex: if flex { 1 << log_flex } else { 1 },
            csum_seed: raw.checksum_seed(),
            compat: raw.compat(),
            incompat: raw.incompat(),
            ro_compat: raw.ro_compat(),
            uuid: raw.s_uuid,
            hash_seed: raw.s_hash_seed.map(U32::get),
            default_hash_version: raw.s_def_hash_version,
            hash_unsigned: raw.s_flags.get() & FLAG_UNSIGNED_HASH != 0,
            journal_inode,
            orphan_file_inode,
            want_extra_isize: check_extra_isize(raw, inode_size)?,
            first_inode,
        })
    }
}

impl Geometry {
    /// Blocks of the volume, at most 2^48.
    #[must_use]
    pub fn blocks_count(&self) -> u64 {
        self.size.blocks_count()
    }

    /// Block groups.
    #[must_use]
    pub fn groups_count(&self) -> u32 {
        self.size.groups_count()
    }

    /// Inodes of the volume.
    #[must_use]
    pub fn inodes_count(&self) -> u32 {
        self.groups_count() * self.inodes_per_group
    }

    /// Blocks kept after the descriptor table for its growth.
    #[must_use]
    pub fn reserved_gdt_blocks(&self) -> u32 {
        self.size.load().reserved_gdt_blocks
    }

    /// First meta block group, counted in descriptor blocks; `None` without meta block groups.
    #[must_use]
    pub fn first_meta_bg(&self) -> Option<u32> {
        self.size.first_meta_bg()
    }

    /// All that growing changes.
    #[must_use]
    pub fn size(&self) -> SizeFacts {
        self.size.load()
    }

    /// The same volume with another size, which changes for itself.
    #[must_use]
    pub fn with_size(&self, size: SizeFacts) -> Self {
        Self {
            size: Arc::new(Size::new(size)),
            ..self.clone()
        }
    }

    /// The volume has another size from now on, for all clones.
    pub(crate) fn set_size(&self, size: SizeFacts) {
        self.size.store(size);
    }

    /// Whether group descriptors have checksums (of either kind), so that groups may be
    /// uninitialised.
    #[must_use]
    pub fn has_group_checksums(&self) -> bool {
        self.csum_seed.is_some() || self.ro_compat.contains(RoCompat::GDT_CSUM)
    }

    /// Whether descriptors have the crc16 of uninit_bg; metadata_csum takes precedence.
    #[must_use]
    pub fn has_gdt_csum(&self) -> bool {
        self.csum_seed.is_none() && self.ro_compat.contains(RoCompat::GDT_CSUM)
    }

    /// Offset of a block in bytes.
    #[must_use]
    pub fn offset_of(&self, block: BlockNr) -> u64 {
        block.0 << self.block_size_bits
    }

    /// Blocks needed for `bytes`.
    #[must_use]
    pub fn blocks_for(&self, bytes: u64) -> u64 {
        bytes.div_ceil(u64::from(self.block_size))
    }

    /// Whether a block may hold file data or metadata outside the boot block.
    #[must_use]
    pub fn contains_block(&self, block: BlockNr) -> bool {
        block.0 >= u64::from(self.first_data_block) && block.0 < self.blocks_count()
    }

    /// Whether a run of blocks lies within the volume.
    #[must_use]
    pub fn contains_run(&self, start: BlockNr, len: u64) -> bool {
        self.contains_block(start) && len <= self.blocks_count() - start.0
    }

    /// Group of a block, and its index therein.
    ///
    /// # Panics
    /// When the block lies outside the volume.
    #[must_use]
    pub fn group_of(&self, block: BlockNr) -> (GroupNr, u32) {
        assert!(
            self.contains_block(block),
            "block {block} is outside the volume"
        );
        let relative = block.0 - u64::from(self.first_data_block);
        let per_group = u64::from(self.blocks_per_group);
        (
            GroupNr((relative / per_group) as u32),
            (relative % per_group) as u32,
        )
    }

    /// First block of a group.
    #[must_use]
    pub fn group_first_block(&self, group: GroupNr) -> BlockNr {
        let offset = u64::from(group.0) * u64::from(self.blocks_per_group);
        BlockNr(u64::from(self.first_data_block) + offset)
    }

    /// Blocks of a group; the last may be shorter.
    #[must_use]
    pub fn blocks_in_group(&self, group: GroupNr) -> u32 {
        let left = self.blocks_count() - self.group_first_block(group).0;
        left.min(u64::from(self.blocks_per_group)) as u32
    }

    /// Group of an inode, and its index therein.
    ///
    /// # Errors
    /// [`Corrupt::InodeOutside`] for 0 and for numbers beyond the count.
    pub fn inode_location(&self, inode: InodeNr) -> Result<(GroupNr, u32)> {
        if inode.0 == 0 || inode.0 > self.inodes_count() {
            return Err(Corrupt::InodeOutside { inode }.into());
        }
        let index = inode.0 - 1;
        Ok((
            GroupNr(index / self.inodes_per_group),
            index % self.inodes_per_group,
        ))
    }

    /// Number of the inode with an index in a group.
    #[must_use]
    pub fn inode_nr(&self, group: GroupNr, index: u32) -> InodeNr {
        InodeNr(group.0 * self.inodes_per_group + index + 1)
    }

    /// Block within a group's inode table, and offset in it, of the inode with that index.
    #[must_use]
    pub fn inode_table_offset(&self, index: u32) -> (u32, usize) {
        let offset = u64::from(index) * u64::from(self.inode_size);
        let within = offset & u64::from(self.block_size - 1);
        ((offset >> self.block_size_bits) as u32, within as usize)
    }

    /// Descriptors in one block.
    #[must_use]
    pub fn descs_per_block(&self) -> u32 {
        self.block_size / self.desc_size
    }

    /// Blocks of the descriptor table.
    #[must_use]
    pub fn desc_blocks(&self) -> u32 {
        self.groups_count().div_ceil(self.descs_per_block())
    }

    /// Block of the primary descriptor of a group, and offset in it.
    #[must_use]
    pub fn desc_location(&self, group: GroupNr) -> (BlockNr, usize) {
        let per_block = self.descs_per_block();
        let (nr, index) = (group.0 / per_block, group.0 % per_block);
        let offset = (index * self.desc_size) as usize;
        if self.first_meta_bg().is_none_or(|first| nr < first) {
            // The block of the superblock is block 0 also where blocks of 1 KiB start at 0.
            let superblock = if self.block_size == 1024 { 1 } else { 0 };
            return (BlockNr(superblock + 1 + u64::from(nr)), offset);
        }
        let first = GroupNr(nr * per_block);
        let mut block = self.group_first_block(first);
        block.0 += u64::from(self.has_superblock_backup(first));
        if self.block_size == 1024 && nr == 0 && self.first_data_block == 0 {
            block.0 += 1;
        }
        (block, offset)
    }

    /// Whether a group starts with a superblock (group 0: the primary one) and, outside meta block
    /// groups, the descriptor table.
    #[must_use]
    pub fn has_superblock_backup(&self, group: GroupNr) -> bool {
        let group = group.0;
        if group == 0 {
            return true;
        }
        if self.compat.contains(Compat::SPARSE_SUPER2) {
            return self.backup_bgs.contains(&group);
        }
        if group == 1 || !self.ro_compat.contains(RoCompat::SPARSE_SUPER) {
            return true;
        }
        group % 2 == 1 && [3, 5, 7].iter().any(|&base| is_power_of(group, base))
    }

    /// Blocks at the start of a group for superblock and descriptors, with those reserved.
    #[must_use]
    pub fn base_metadata_blocks(&self, group: GroupNr) -> u32 {
        let superblock = u32::from(self.has_superblock_backup(group));
        let per_block = self.descs_per_block();
        let size = self.size.load();
        let first_meta_bg = size.first_meta_bg;
        if first_meta_bg.is_none_or(|first| group.0 / per_block < first) {
            let all = size.groups_count.div_ceil(per_block);
            let table = first_meta_bg.unwrap_or(all);
            return superblock * (1 + table + size.reserved_gdt_blocks);
        }
        let index = group.0 % per_block;
        superblock + u32::from(index == 0 || index == 1 || index == per_block - 1)
    }

    /// Inodes whose bits the bitmap of a group has.
    #[must_use]
    pub fn inode_bitmap_bytes(&self) -> usize {
        (self.inodes_per_group / 8) as usize
    }

    /// Bytes of a block bitmap that its checksum covers.
    #[must_use]
    pub fn block_bitmap_bytes(&self) -> usize {
        (self.blocks_per_group / self.cluster_blocks / 8) as usize
    }

    /// Seed of the checksums of one inode and its blocks; `None` without metadata_csum.
    #[must_use]
    pub fn inode_seed(&self, inode: InodeNr, generation: u32) -> Option<u32> {
        self.csum_seed
            .map(|seed| crate::checksum::inode_seed(seed, inode.0, generation))
    }
}

fn is_power_of(mut value: u32, base: u32) -> bool {
    while value.is_multiple_of(base) {
        value /= base;
    }
    value == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers() {
        let backups: Vec<u32> = (1..130)
            .filter(|&g| [3, 5, 7].iter().any(|&b| is_power_of(g, b)))
            .collect();
        assert_eq!(backups, [1, 3, 5, 7, 9, 25, 27, 49, 81, 125]);
    }

    #[test]
    fn zeros_are_not_a_superblock() {
        let raw: RawSuperblock = zerocopy::FromZeros::new_zeroed();
        let error = Geometry::try_from(&raw).unwrap_err();
        assert!(matches!(
            error,
            Error::Corrupt(Corrupt::SuperblockMagic { found: 0 })
        ));
    }
}
