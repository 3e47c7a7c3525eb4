//! What goes where: from the numbers to a superblock and the place of every metadata block. Pure.

use crate::error::{Error, Result};
use crate::features::Features;
use crate::geometry::{FIRST_INODE, Numbers, choose};
use crate::options::Options;
use crate::space::Space;
use kfs::layout::extent::{MAX_INIT_LEN, ROOT_ENTRIES, RawExtentHeader};
use kfs::layout::features::{Compat, Incompat, RoCompat};
use kfs::layout::superblock::{CHECKSUM_CRC32C, EXT4_MAGIC, FLAG_SIGNED_HASH, STATE_VALID};
use kfs::layout::{Geometry, RawSuperblock};
use kfs::{BlockNr, Clock, GroupNr, InodeNr, Run, SystemClock, Timestamp};
use std::ops::Range;
use zerocopy::FromZeros;
use zerocopy::little_endian::{U16, U32};

/// lost+found.
pub(crate) const LOST_FOUND_INODE: InodeNr = InodeNr(FIRST_INODE);
/// The orphan file.
pub(crate) const ORPHAN_INODE: InodeNr = InodeNr(FIRST_INODE + 1);
/// Bytes of lost+found, so that e2fsck need not grow it.
const LOST_FOUND_BYTES: u32 = 16384;
/// Most blocks of lost+found.
const LOST_FOUND_BLOCKS_MAX: u32 = 12;
/// `s_default_mount_opts`: user_xattr, acl.
const DEFAULT_MOUNT_OPTIONS: u32 = 0x4 | 0x8;
/// `s_def_hash_version`: half MD4.
const HASH_HALF_MD4: u8 = 1;

/// Place of a group's bitmaps and inode table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// The block bitmap.
    pub block_bitmap: BlockNr,
    /// The inode bitmap.
    pub inode_bitmap: BlockNr,
    /// First block of the inode table.
    pub inode_table: BlockNr,
}

/// Place of a file's blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilePlan {
    /// The extents in logical order, none longer than an extent can be.
    pub extents: Vec<Run>,
    /// The leaf block, where the extents do not fit the inode.
    pub leaf: Option<BlockNr>,
}

/// A file system before it is written.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The superblock but for checksum and statistics of writing.
    pub superblock: RawSuperblock,
    /// The same as checked by kfs.
    pub geometry: Geometry,
    /// Place of each group's metadata.
    pub groups: Vec<GroupPlan>,
    /// All blocks in use.
    pub space: Space,
    /// The root directory.
    pub root: FilePlan,
    /// lost+found.
    pub lost_found: FilePlan,
    /// The journal.
    pub journal: Option<FilePlan>,
    /// The orphan file.
    pub orphan: Option<FilePlan>,
    /// Time of creation.
    pub time: Timestamp,
    /// Owner of the root directory.
    pub root_owner: (u32, u32),
}

impl FilePlan {
    /// Blocks of data.
    #[must_use]
    pub fn data_blocks(&self) -> u64 {
        self.extents
            .iter()
            .map(|extent| u64::from(extent.len))
            .sum()
    }

    /// Blocks of data in logical order.
    pub fn blocks(&self) -> impl Iterator<Item = BlockNr> + '_ {
        let blocks = |extent: &Run| {
            let start = extent.start;
            (0..extent.len).map(move |n| start.plus(u64::from(n)))
        };
        self.extents.iter().flat_map(blocks)
    }
}

impl Plan {
    /// Plans a file system for a device.
    ///
    /// # Errors
    /// Which option or size is not possible.
    pub fn new(options: &Options, device_bytes: u64, sector_size: u32) -> Result<Self> {
        let numbers = choose(options, device_bytes, sector_size)?;
        let time = match options.time {
            Some(seconds) => Timestamp::from_seconds(seconds),
            // Whole seconds, so that all times of a new file system are the same.
            None => Timestamp::from_seconds(SystemClock.now().seconds),
        };
        let mut superblock = make_superblock(options, &numbers, time)?;
        superblock.update_checksum();
        let geometry = Geometry::try_from(&superblock).map_err(Error::Invalid)?;
        let mut places = Places {
            geometry: geometry.clone(),
            numbers,
            space: Space::default(),
        };
        let groups = places.take_metadata()?;
        let root = places.take_file(1, 0)?;
        let block_size = numbers.block_size;
        let lost_found = (LOST_FOUND_BYTES / block_size).min(LOST_FOUND_BLOCKS_MAX);
        let lost_found = places.take_file(lost_found.into(), 0)?;
        let metadata = places.space.used_in(0..numbers.blocks_count) - root_blocks(&lost_found);
        let journal = places.take_journal()?;
        let orphan = match numbers.orphan_blocks {
            0 => None,
            blocks => Some(places.take_file(blocks, 0)?),
        };
        let used = places.space.used_in(0..numbers.blocks_count);
        let first = u64::from(numbers.first_data_block);
        superblock.set_free_blocks_count(numbers.blocks_count - first - used);
        let inodes = FIRST_INODE + u32::from(orphan.is_some());
        superblock.s_free_inodes_count = U32::new(geometry.inodes_count() - inodes);
        // Linux takes this for statfs; the file system's own overhead is what it counts itself.
        let overhead = first + metadata + numbers.journal_blocks;
        superblock.s_overhead_clusters = U32::new(u32::try_from(overhead).unwrap_or(0));
        Ok(Self {
            superblock,
            geometry,
            groups,
            space: places.space,
            root,
            lost_found,
            journal,
            orphan,
            time,
            root_owner: options.root_owner,
        })
    }

    /// Inodes in use: they are the first ones.
    #[must_use]
    pub fn used_inodes(&self) -> u32 {
        FIRST_INODE + u32::from(self.orphan.is_some())
    }

    /// Blocks of a group.
    #[must_use]
    pub fn group_range(&self, group: GroupNr) -> Range<u64> {
        let start = self.geometry.group_first_block(group).0;
        start..start + u64::from(self.geometry.blocks_in_group(group))
    }

    /// Groups with a backup of the superblock, in order.
    pub fn backups(&self) -> impl Iterator<Item = GroupNr> + '_ {
        (1..self.geometry.groups_count())
            .map(GroupNr)
            .filter(|&group| self.geometry.has_superblock_backup(group))
    }
}

/// Blocks of root and lost+found, which are files and not overhead.
fn root_blocks(lost_found: &FilePlan) -> u64 {
    1 + lost_found.data_blocks()
}

/// Gives out blocks.
struct Places {
    geometry: Geometry,
    numbers: Numbers,
    space: Space,
}

impl Places {
    fn too_small(&self) -> Error {
        Error::TooSmall {
            size_bytes: self.numbers.blocks_count * u64::from(self.numbers.block_size),
            block_size: self.numbers.block_size,
        }
    }

    /// Takes what has fixed places, then bitmaps and tables, those of a flex group together.
    fn take_metadata(&mut self) -> Result<Vec<GroupPlan>> {
        let geometry = self.geometry.clone();
        for group in (0..geometry.groups_count()).map(GroupNr) {
            let start = geometry.group_first_block(group).0;
            let base = u64::from(geometry.base_metadata_blocks(group));
            if base > u64::from(geometry.blocks_in_group(group)) {
                return Err(self.too_small());
            }
            self.space.take(start..start + base);
        }
        let mut groups = Vec::with_capacity(geometry.groups_count() as usize);
        let per_flex = geometry.groups_per_flex;
        let mut first = 0;
        while first < geometry.groups_count() {
            let end = first.saturating_add(per_flex).min(geometry.groups_count());
            self.take_flex_group(first..end, &mut groups)?;
            first = end;
        }
        Ok(groups)
    }

    fn take_flex_group(&mut self, flex: Range<u32>, groups: &mut Vec<GroupPlan>) -> Result<()> {
        let geometry = self.geometry.clone();
        let last = GroupNr(flex.end - 1);
        let start = geometry.group_first_block(GroupNr(flex.start)).0;
        let last_blocks = u64::from(geometry.blocks_in_group(last));
        let range = start..geometry.group_first_block(last).0 + last_blocks;
        let count = flex.len();
        let mut take = |len: u32, from: u64| {
            let run = self
                .space
                .allocate_run(u64::from(len), from.max(range.start)..range.end);
            run.ok_or_else(|| self.too_small())
        };
        // The runs of each kind follow each other, so the search goes on where the last one ended.
        let mut place = |len: u32| -> Result<Vec<BlockNr>> {
            let mut from = 0;
            (0..count)
                .map(|_| {
                    let run = take(len, from)?;
                    from = run.0 + u64::from(len);
                    Ok(run)
                })
                .collect()
        };
        let block_bitmaps = place(1)?;
        let inode_bitmaps = place(1)?;
        let tables = place(geometry.inode_table_blocks)?;
        groups.extend((0..count).map(|n| GroupPlan {
            block_bitmap: block_bitmaps[n],
            inode_bitmap: inode_bitmaps[n],
            inode_table: tables[n],
        }));
        Ok(())
    }

    /// Takes the blocks of a file: in one run from `goal` on where there is one.
    fn take_file(&mut self, blocks: u64, goal: u64) -> Result<FilePlan> {
        let first = u64::from(self.numbers.first_data_block);
        let (goal, end) = (goal.max(first), self.numbers.blocks_count);
        let whole = self
            .space
            .free(goal..end)
            .chain(self.space.free(first..goal))
            .find(|gap| gap.end - gap.start >= blocks);
        let within = whole.map_or(goal..end, |gap| gap);
        let extents = self
            .space
            .allocate_pieces(blocks, MAX_INIT_LEN, within)
            .or_else(|| self.space.allocate_pieces(blocks, MAX_INIT_LEN, first..end))
            .ok_or_else(|| self.too_small())?;
        let mut leaf = None;
        if extents.len() > usize::from(ROOT_ENTRIES) {
            let room = RawExtentHeader::block_entries(self.numbers.block_size);
            if extents.len() > usize::from(room) {
                return Err(self.too_small());
            }
            // With the metadata of the flex group in which the file begins.
            let group = self.geometry.group_of(extents[0].start).0.0;
            let flex = GroupNr(group - group % self.geometry.groups_per_flex);
            let near = self.geometry.group_first_block(flex).0;
            leaf = self.space.allocate_run(1, near..end);
            leaf = leaf.or_else(|| self.space.allocate_run(1, first..end));
            if leaf.is_none() {
                return Err(self.too_small());
            }
        }
        Ok(FilePlan { extents, leaf })
    }

    fn free_in(&self, group: u32) -> u64 {
        let start = self.geometry.group_first_block(GroupNr(group)).0;
        let len = u64::from(self.geometry.blocks_in_group(GroupNr(group)));
        len - self.space.used_in(start..start + len)
    }

    /// The journal lies in the middle of the volume, in the emptiest of the groups there.
    fn take_journal(&mut self) -> Result<Option<FilePlan>> {
        let blocks = self.numbers.journal_blocks;
        if blocks == 0 {
            return Ok(None);
        }
        let first = u64::from(self.numbers.first_data_block);
        let middle = BlockNr(((self.numbers.blocks_count - first) / 2).max(first));
        let mut group = self.geometry.group_of(middle).0.0;
        let flex = self.geometry.groups_per_flex;
        let start = if flex > 1 && group > flex {
            group &= !(flex - 1);
            group
        } else {
            group.saturating_sub(1)
        };
        let end = (group + 1).min(self.geometry.groups_count() - 1);
        let mut best = start;
        for candidate in start + 1..=end {
            if self.free_in(candidate) > self.free_in(best) {
                best = candidate;
            }
        }
        let goal = self.geometry.group_first_block(GroupNr(best)).0;
        self.take_file(blocks, goal).map(Some)
    }
}

/// Copies text into a field of the superblock.
fn text<const N: usize>(what: &'static str, value: &str, limit: usize) -> Result<[u8; N]> {
    if value.len() > limit || value.contains('\0') {
        return Err(Error::value(
            what,
            value,
            "it is too long or contains a NUL",
        ));
    }
    let mut field = [0; N];
    field[..value.len()].copy_from_slice(value.as_bytes());
    Ok(field)
}

fn make_superblock(options: &Options, numbers: &Numbers, time: Timestamp) -> Result<RawSuperblock> {
    let mut raw = RawSuperblock::new_zeroed();
    let Features {
        compat,
        incompat,
        ro_compat,
    } = numbers.features;
    raw.s_feature_compat = U32::new(compat.bits());
    raw.s_feature_incompat = U32::new(incompat.bits());
    raw.s_feature_ro_compat = U32::new(ro_compat.bits());
    raw.s_magic = U16::new(EXT4_MAGIC);
    raw.s_state = U16::new(STATE_VALID);
    raw.s_errors = U16::new(options.errors as u16);
    raw.s_rev_level = U32::new(1);
    raw.s_uuid = options
        .uuid
        .unwrap_or_else(|| uuid::Uuid::new_v4().into_bytes());
    raw.s_volume_name = text("label", &options.label, 16)?;
    raw.s_last_mounted = text("last mounted directory", &options.last_mounted, 63)?;
    set_counts(&mut raw, numbers);
    raw.set_mkfs_time(time.seconds);
    raw.set_write_time(time.seconds);
    raw.set_check_time(time.seconds);
    raw.s_max_mnt_count = U16::new(u16::MAX);
    raw.s_default_mount_opts = U32::new(DEFAULT_MOUNT_OPTIONS);
    raw.s_raid_stride = U16::new(options.stride);
    raw.s_raid_stripe_width = U32::new(options.stripe_width);
    let seed = options
        .hash_seed
        .unwrap_or_else(|| uuid::Uuid::new_v4().into_bytes());
    raw.s_hash_seed = zerocopy::transmute!(seed);
    raw.s_def_hash_version = HASH_HALF_MD4;
    raw.s_flags = U32::new(FLAG_SIGNED_HASH);
    if numbers.inode_size > 128 {
        raw.s_min_extra_isize = U16::new(32);
        raw.s_want_extra_isize = U16::new(32);
    }
    if ro_compat.contains(RoCompat::METADATA_CSUM) {
        raw.s_checksum_type = CHECKSUM_CRC32C;
    }
    if incompat.contains(Incompat::CSUM_SEED) {
        // The seed is that of the first uuid; the uuid may change later.
        raw.s_checksum_seed = U32::new(kfs::checksum::crc32c(!0, &raw.s_uuid));
    }
    if compat.contains(Compat::HAS_JOURNAL) {
        raw.s_journal_inum = U32::new(InodeNr::JOURNAL.0);
    }
    if compat.contains(Compat::ORPHAN_FILE) {
        raw.s_orphan_file_inum = U32::new(ORPHAN_INODE.0);
    }
    Ok(raw)
}

/// Fills in the sizes and counts of a superblock.
fn set_counts(raw: &mut RawSuperblock, numbers: &Numbers) {
    let log = numbers.block_size.trailing_zeros() - 10;
    raw.s_log_block_size = U32::new(log);
    raw.s_log_cluster_size = U32::new(log);
    raw.set_blocks_count(numbers.blocks_count);
    raw.set_reserved_blocks_count(numbers.reserved_blocks);
    raw.s_first_data_block = U32::new(numbers.first_data_block);
    raw.s_blocks_per_group = U32::new(numbers.blocks_per_group);
    raw.s_clusters_per_group = U32::new(numbers.blocks_per_group);
    raw.s_inodes_per_group = U32::new(numbers.inodes_per_group);
    raw.s_inodes_count = U32::new(numbers.inodes_per_group * numbers.groups_count);
    raw.s_first_ino = U32::new(FIRST_INODE);
    raw.s_inode_size = U16::new(numbers.inode_size as u16);
    if numbers.features.incompat.contains(Incompat::BIT64) {
        raw.s_desc_size = U16::new(64);
    }
    if numbers.features.incompat.contains(Incompat::FLEX_BG) {
        raw.s_log_groups_per_flex = numbers.groups_per_flex.trailing_zeros() as u8;
    }
    raw.s_backup_bgs = numbers.backup_groups.map(U32::new);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(size: u64, change: impl Fn(&mut Options)) -> Plan {
        let mut options = Options {
            time: Some(1),
            ..Options::default()
        };
        change(&mut options);
        Plan::new(&options, size, 512).unwrap()
    }

    #[test]
    fn places_of_a_small_volume() {
        let plan = plan(1000 << 20, |_| ());
        let first = plan.groups[0];
        assert_eq!(
            (first.block_bitmap, first.inode_bitmap),
            (BlockNr(2), BlockNr(10))
        );
        assert_eq!(
            (first.inode_table, plan.groups[7].inode_table),
            (BlockNr(18), BlockNr(3518))
        );
        assert_eq!(
            plan.root.extents,
            [Run {
                start: BlockNr(4018),
                len: 1
            }]
        );
        assert_eq!(
            plan.lost_found.extents,
            [Run {
                start: BlockNr(4019),
                len: 4
            }]
        );
        let journal = plan.journal.unwrap();
        assert_eq!(
            journal.extents,
            [Run {
                start: BlockNr(65536),
                len: 4096
            }]
        );
        assert_eq!(plan.superblock.free_blocks_count(), 247_811);
        assert_eq!(plan.superblock.s_overhead_clusters.get(), 8122);
    }

    #[test]
    fn a_large_journal_is_contiguous() {
        let plan = plan(1 << 40, |_| ());
        let journal = plan.journal.unwrap();
        assert_eq!(journal.extents.len(), 8);
        assert!(journal.extents.windows(2).all(|w| w[0].end() == w[1].start));
        assert!(journal.leaf.is_some());
        assert_eq!(plan.superblock.s_overhead_clusters.get(), 4_475_283);
        assert_eq!(plan.superblock.free_blocks_count(), 263_959_655);
    }

    #[test]
    fn without_flex_groups_metadata_stays_at_home() {
        let plan = plan(1 << 30, |o| o.apply_features("^flex_bg").unwrap());
        for (n, places) in plan.groups.iter().enumerate() {
            let range = plan.group_range(GroupNr(n as u32));
            let places = [places.block_bitmap, places.inode_bitmap, places.inode_table];
            assert!(places.iter().all(|place| range.contains(&place.0)));
        }
    }

    #[test]
    fn plans_are_sound_at_every_size() {
        for block_size in [1024, 2048, 4096] {
            for bits in [18, 19, 20, 21, 23, 25, 27, 28, 30, 33, 37, 40] {
                for extra in [0, 4096, 1 << (bits - 2)] {
                    let mut options = Options {
                        block_size: Some(block_size),
                        ..Options::default()
                    };
                    options.time = Some(1);
                    match Plan::new(&options, (1 << bits) + extra, 512) {
                        Ok(plan) => {
                            assert_eq!(plan.groups.len() as u32, plan.geometry.groups_count());
                        }
                        // 64 blocks, less than what a last group must have.
                        Err(Error::TooSmall { .. }) if block_size == 4096 && bits < 19 => (),
                        Err(error) => panic!("{block_size} {bits} {extra}: {error}"),
                    }
                }
            }
        }
    }
}
