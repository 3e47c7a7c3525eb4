//! From the size and the options to the numbers of a superblock, as mke2fs chooses them. Pure.

use crate::error::{Error, Result};
use crate::features::Features;
use crate::options::{Options, Usage};
use kfs::layout::features::{Compat, Incompat, RoCompat};

/// Inodes 1 to 10 are reserved, 11 is lost+found, and the orphan file is 12.
pub(crate) const FIRST_INODE: u32 = 11;
/// Free blocks that the last group must have beyond its metadata to be worth having.
const LAST_GROUP_MIN: u64 = 50;
/// Most journal blocks.
pub(crate) const JOURNAL_MAX: u64 = 10_240_000;

/// The numbers of a new file system.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Numbers {
    /// Bytes in a block.
    pub block_size: u32,
    /// Bytes of an inode.
    pub inode_size: u32,
    /// Blocks of the volume; may be fewer than the device has.
    pub blocks_count: u64,
    /// Blocks only root may take.
    pub reserved_blocks: u64,
    /// 1 with blocks of 1 KiB, else 0.
    pub first_data_block: u32,
    /// Blocks in a group.
    pub blocks_per_group: u32,
    /// Groups.
    pub groups_count: u32,
    /// Inodes in a group.
    pub inodes_per_group: u32,
    /// Groups whose metadata lies together.
    pub groups_per_flex: u32,
    /// Groups with the backups of sparse_super2.
    pub backup_groups: [u32; 2],
    /// Blocks of the journal; 0 is none.
    pub journal_blocks: u64,
    /// Blocks of the orphan file; 0 is none.
    pub orphan_blocks: u64,
    /// The features that go with all this.
    pub features: Features,
}

fn usage_of(size_bytes: u64) -> Usage {
    match size_bytes >> 20 {
        0..3 => Usage::Floppy,
        3..512 => Usage::Small,
        512..0x40_0000 => Usage::Default,
        0x40_0000..0x100_0000 => Usage::Big,
        _ => Usage::Huge,
    }
}

fn block_size_for(options: &Options, usage: Usage, sector_size: u32) -> Result<u32> {
    let default = match usage {
        Usage::Floppy | Usage::Small => 1024,
        _ => 4096,
    };
    let size = options.block_size.unwrap_or(default.max(sector_size));
    if ![1024, 2048, 4096].contains(&size) {
        return Err(Error::value(
            "block size",
            size,
            "it must be 1024, 2048 or 4096",
        ));
    }
    if size < sector_size {
        let rule = "blocks may not be smaller than the sectors of the device";
        return Err(Error::value("block size", size, rule));
    }
    Ok(size)
}

fn inode_size_for(options: &Options, block_size: u32) -> Result<u32> {
    let size = options.inode_size.unwrap_or(256);
    if !size.is_power_of_two() || size < 128 || size > block_size {
        let rule = "it must be a power of two from 128 to the block size";
        return Err(Error::value("inode size", size, rule));
    }
    Ok(size)
}

/// Inodes wanted, before they are spread over the groups.
fn inodes_for(options: &Options, usage: Usage, blocks: u64, block_size: u32) -> Result<u64> {
    if let Some(count) = options.inodes_count {
        if options.inode_ratio.is_some() {
            return Err(Error::value(
                "inode count",
                count,
                "give -i or -N, not both",
            ));
        }
        if count == 0 || count > u64::from(u32::MAX) {
            return Err(Error::value(
                "inode count",
                count,
                "it must be from 1 to 2^32 - 1",
            ));
        }
        return Ok(count.max(u64::from(FIRST_INODE) + 1));
    }
    let default = match usage {
        Usage::Floppy => 8192,
        Usage::Small => 4096,
        Usage::Default => 16384,
        Usage::Big => 32768,
        Usage::Huge => 65536,
    };
    let ratio = options
        .inode_ratio
        .unwrap_or(default.max(u64::from(block_size)));
    if !(1024..=64 << 20).contains(&ratio) {
        return Err(Error::value(
            "inode ratio",
            ratio,
            "it must be from 1024 to 67108864",
        ));
    }
    let count = blocks * u64::from(block_size) / ratio;
    Ok(count.clamp(u64::from(FIRST_INODE) + 1, u64::from(u32::MAX)))
}

/// Blocks of the journal by the size of the volume, as in mke2fs; 0 where it is too small for one.
fn default_journal_blocks(blocks: u64) -> u64 {
    match blocks {
        0..0x800 => 0,
        0x800..0x8000 => 1024,
        0x8000..0x4_0000 => 4096,
        0x4_0000..0x8_0000 => 8192,
        0x8_0000..0x40_0000 => 16384,
        0x40_0000..0x80_0000 => 32768,
        0x80_0000..0x100_0000 => 65536,
        0x100_0000..0x200_0000 => 131_072,
        _ => 262_144,
    }
}

fn journal_blocks_for(options: &Options, blocks: u64, block_size: u32) -> Result<u64> {
    let Some(bytes) = options.journal_bytes else {
        return Ok(default_journal_blocks(blocks));
    };
    let wanted = bytes / u64::from(block_size);
    let (min, max) = (1024, JOURNAL_MAX.min(blocks / 2));
    if wanted < min || wanted > max {
        return Err(Error::Journal {
            bytes,
            min: min * u64::from(block_size),
            max: max * u64::from(block_size),
        });
    }
    Ok(wanted)
}

fn orphan_blocks_for(options: &Options, blocks: u64, block_size: u32) -> Result<u64> {
    let Some(bytes) = options.orphan_file_bytes else {
        return Ok((blocks / 4096).clamp(32, 512));
    };
    let wanted = bytes.div_ceil(u64::from(block_size));
    if !(1..=512).contains(&wanted) {
        let rule = "the orphan file may have 1 to 512 blocks";
        return Err(Error::value("orphan file size", bytes, rule));
    }
    Ok(wanted)
}

/// Whether a group starts with a copy of the superblock.
fn has_backup(features: Features, backups: [u32; 2], group: u32) -> bool {
    if group == 0 {
        return true;
    }
    if features.compat.contains(Compat::SPARSE_SUPER2) {
        return backups.contains(&group);
    }
    let power = |base: u32| (1..21).any(|n| base.checked_pow(n) == Some(group));
    !features.ro_compat.contains(RoCompat::SPARSE_SUPER)
        || group == 1
        || [3, 5, 7].into_iter().any(power)
}

/// The two groups with backups under sparse_super2.
fn backup_groups(features: Features, groups: u32) -> [u32; 2] {
    match groups {
        _ if !features.compat.contains(Compat::SPARSE_SUPER2) => [0, 0],
        1 => [0, 0],
        2 => [1, 0],
        _ => [1, groups - 1],
    }
}

/// Sizes of the parts of a group while they are being settled.
struct Shape {
    block_size: u32,
    inode_size: u32,
    first_data_block: u32,
    blocks_count: u64,
    blocks_per_group: u32,
    groups: u32,
    inodes_per_group: u32,
}

impl Shape {
    /// Spreads `inodes` over the groups; `None` when a group would need more than its bitmap has.
    fn spread_inodes(&mut self, inodes: u64) -> Result<Option<()>> {
        let limit = self.block_size * 8;
        let mut per_group = inodes.div_ceil(u64::from(self.groups));
        if per_group > u64::from(limit) {
            return Ok(None);
        }
        loop {
            // Inode tables are filled to the last block, in steps of 8 inodes.
            let table = (per_group * u64::from(self.inode_size)).div_ceil(self.block_size.into());
            let filled = table * u64::from(self.block_size) / u64::from(self.inode_size);
            let rounded = (filled & !7).clamp(8, u64::from(limit));
            if rounded * u64::from(self.groups) <= u64::from(u32::MAX) {
                self.inodes_per_group = rounded as u32;
                return Ok(Some(()));
            }
            per_group = per_group
                .checked_sub(1)
                .ok_or(Error::TooManyInodes { inodes })?;
        }
    }

    fn inode_table_blocks(&self) -> u64 {
        let bytes = u64::from(self.inodes_per_group) * u64::from(self.inode_size);
        bytes.div_ceil(u64::from(self.block_size))
    }

    fn descs_per_block(&self, features: Features) -> u32 {
        let desc_size = if features.incompat.contains(Incompat::BIT64) {
            64
        } else {
            32
        };
        self.block_size / desc_size
    }

    fn desc_blocks(&self, features: Features) -> u32 {
        self.groups.div_ceil(self.descs_per_block(features))
    }

    /// Metadata blocks of a group that has its own tables.
    fn overhead(&self, features: Features, group: u32) -> u64 {
        let backup = has_backup(features, backup_groups(features, self.groups), group);
        let descs = if features.incompat.contains(Incompat::META_BG) {
            let index = group % self.descs_per_block(features);
            u32::from(index < 2 || index + 1 == self.descs_per_block(features))
        } else if backup {
            self.desc_blocks(features)
        } else {
            0
        };
        2 + self.inode_table_blocks() + u64::from(u32::from(backup) + descs)
    }

    /// Blocks of the last group, 0 when it is a full one.
    fn remainder(&self) -> u64 {
        (self.blocks_count - u64::from(self.first_data_block)) % u64::from(self.blocks_per_group)
    }
}

/// Settles groups and inodes: a last group too small to be useful is left out, and groups shrink
/// where one would need more inodes than its bitmap can hold.
fn settle_groups(
    options: &Options,
    usage: Usage,
    features: &mut Features,
    shape: &mut Shape,
) -> Result<()> {
    let too_small = |shape: &Shape| Error::TooSmall {
        size_bytes: shape.blocks_count * u64::from(shape.block_size),
        block_size: shape.block_size,
    };
    let wanted_blocks = shape.blocks_count;
    loop {
        let first = u64::from(shape.first_data_block);
        if shape.blocks_count <= first {
            return Err(too_small(shape));
        }
        let groups = (shape.blocks_count - first).div_ceil(shape.blocks_per_group.into());
        shape.groups = u32::try_from(groups).map_err(|_| Error::TooManyBlocks {
            blocks: wanted_blocks,
            limit: "there can be at most 2^32 groups",
        })?;
        let inodes = inodes_for(options, usage, wanted_blocks, shape.block_size)?;
        if shape.spread_inodes(inodes)?.is_none() {
            if shape.blocks_per_group < 264 || options.blocks_per_group.is_some() {
                return Err(Error::TooManyInodes { inodes });
            }
            shape.blocks_per_group -= 8;
            shape.blocks_count = wanted_blocks;
            continue;
        }
        // A descriptor table of most of a group would be repeated in every group with a backup.
        if u64::from(shape.desc_blocks(*features)) * 4 > u64::from(shape.blocks_per_group) * 3 {
            features.incompat |= Incompat::META_BG;
        }
        let overhead = shape.overhead(*features, shape.groups - 1);
        let remainder = shape.remainder();
        if remainder == 0 && overhead < u64::from(shape.blocks_per_group) {
            return Ok(());
        }
        if remainder >= overhead + LAST_GROUP_MIN {
            return Ok(());
        }
        if remainder == 0 || shape.groups == 1 {
            return Err(too_small(shape));
        }
        shape.blocks_count -= remainder;
    }
}

/// Chooses everything for a device of `device_bytes`.
///
/// # Errors
/// The option that is not possible, by name.
pub(crate) fn choose(options: &Options, device_bytes: u64, sector_size: u32) -> Result<Numbers> {
    let size_bytes = options.size_bytes.unwrap_or(device_bytes);
    if size_bytes > device_bytes {
        return Err(Error::DeviceTooSmall {
            have: device_bytes,
            need: size_bytes,
        });
    }
    let usage = options.usage.unwrap_or_else(|| usage_of(size_bytes));
    let block_size = block_size_for(options, usage, sector_size)?;
    let mut blocks_count = size_bytes / u64::from(block_size);
    if options.size_bytes.is_none() {
        // Linux cannot map the tail of a device that is not a whole page.
        blocks_count &= !u64::from(4096 / block_size - 1);
    }
    let mut features = options.features.settle();
    let bit64 = features.incompat.contains(Incompat::BIT64);
    if blocks_count > u64::from(u32::MAX) && !bit64 {
        let limit = "without the feature 64bit there can be at most 2^32 - 1";
        return Err(Error::TooManyBlocks {
            blocks: blocks_count,
            limit,
        });
    }
    let mut shape = Shape {
        block_size,
        inode_size: inode_size_for(options, block_size)?,
        first_data_block: u32::from(block_size == 1024),
        blocks_count,
        blocks_per_group: blocks_per_group_for(options, block_size)?,
        groups: 0,
        inodes_per_group: 0,
    };
    settle_groups(options, usage, &mut features, &mut shape)?;
    check_first_group(&shape, features)?;
    let has_journal = features.compat.contains(Compat::HAS_JOURNAL);
    let mut journal_blocks = 0;
    if has_journal {
        journal_blocks = journal_blocks_for(options, shape.blocks_count, block_size)?;
    }
    if journal_blocks == 0 {
        features
            .compat
            .remove(Compat::HAS_JOURNAL | Compat::ORPHAN_FILE);
    }
    let mut orphan_blocks = 0;
    if features.compat.contains(Compat::ORPHAN_FILE) {
        orphan_blocks = orphan_blocks_for(options, shape.blocks_count, block_size)?;
    }
    Ok(Numbers {
        block_size,
        inode_size: shape.inode_size,
        blocks_count: shape.blocks_count,
        reserved_blocks: reserved_blocks_for(options, shape.blocks_count)?,
        first_data_block: shape.first_data_block,
        blocks_per_group: shape.blocks_per_group,
        groups_count: shape.groups,
        inodes_per_group: shape.inodes_per_group,
        groups_per_flex: groups_per_flex_for(options, features)?,
        backup_groups: backup_groups(features, shape.groups),
        journal_blocks,
        orphan_blocks,
        features,
    })
}

fn blocks_per_group_for(options: &Options, block_size: u32) -> Result<u32> {
    let max = block_size * 8;
    let count = options.blocks_per_group.unwrap_or(max);
    if !(256..=max).contains(&count) || !count.is_multiple_of(8) {
        let rule = "it must be a multiple of 8 from 256 to 8 times the block size";
        return Err(Error::value("number of blocks per group", count, rule));
    }
    Ok(count)
}

fn groups_per_flex_for(options: &Options, features: Features) -> Result<u32> {
    if !features.incompat.contains(Incompat::FLEX_BG) {
        return match options.groups_per_flex {
            Some(count) => Err(Error::value("flex group size", count, "it needs flex_bg")),
            None => Ok(1),
        };
    }
    let count = options.groups_per_flex.unwrap_or(16);
    if !count.is_power_of_two() {
        return Err(Error::value(
            "flex group size",
            count,
            "it must be a power of two",
        ));
    }
    Ok(count)
}

fn reserved_blocks_for(options: &Options, blocks: u64) -> Result<u64> {
    let percent = options.reserved_percent;
    if !(0.0..=50.0).contains(&percent) {
        let rule = "it must be from 0 to 50 percent";
        return Err(Error::value("reserved share", percent, rule));
    }
    Ok((blocks as f64 * percent / 100.0) as u64)
}

/// Groups with all kinds of metadata must have room for it.
fn check_first_group(shape: &Shape, features: Features) -> Result<()> {
    let overhead = shape.overhead(features, 0);
    if shape.groups > 1 && overhead + LAST_GROUP_MIN > u64::from(shape.blocks_per_group) {
        let limit = "the metadata would fill whole groups; use larger blocks or fewer inodes";
        return Err(Error::TooManyBlocks {
            blocks: shape.blocks_count,
            limit,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks, inodes, journal and orphan blocks for a size and block size.
    fn numbers(size: &str, block_size: Option<u32>) -> (u64, u32, u64, u64) {
        let options = Options {
            block_size,
            ..Options::default()
        };
        let size = crate::size::parse_size(size, 1).unwrap();
        let n = choose(&options, size, 512).unwrap();
        (
            n.blocks_count,
            n.inodes_per_group * n.groups_count,
            n.journal_blocks,
            n.orphan_blocks,
        )
    }

    /// What mke2fs 1.47.0 makes of the same options.
    #[test]
    fn same_as_mke2fs() {
        assert_eq!(numbers("128K", None), (128, 16, 0, 0));
        assert_eq!(numbers("400K", None), (400, 48, 0, 0));
        assert_eq!(numbers("2M", None), (2048, 256, 1024, 32));
        assert_eq!(numbers("33M", None), (33792, 8440, 4096, 32));
        assert_eq!(numbers("33M", Some(4096)), (8448, 8448, 1024, 32));
        assert_eq!(numbers("200M", Some(1024)), (204_800, 51200, 4096, 50));
        assert_eq!(numbers("513M", None), (131_072, 32832, 4096, 32));
        assert_eq!(numbers("513M", Some(1024)), (525_312, 32760, 16384, 128));
        assert_eq!(numbers("1000M", None), (256_000, 64000, 4096, 62));
        assert_eq!(numbers("20G", None), (5_242_880, 1_310_720, 32768, 512));
        assert_eq!(numbers("1T", None), (268_435_456, 67_108_864, 262_144, 512));
        assert_eq!(
            numbers("5T", None),
            (1_342_177_280, 167_772_160, 262_144, 512)
        );
    }

    #[test]
    fn bad_options_are_refused() {
        let check = |change: fn(&mut Options), size: u64| {
            let mut options = Options::default();
            change(&mut options);
            choose(&options, size, 512).unwrap_err()
        };
        let small = check(|o| o.block_size = Some(4096), 128 << 10);
        assert!(matches!(small, Error::TooSmall { .. }), "{small}");
        assert!(matches!(check(|_| (), 0), Error::TooSmall { .. }));
        for change in [
            (|o| o.block_size = Some(512)) as fn(&mut Options),
            |o| o.block_size = Some(3000),
            |o| o.block_size = Some(65536),
            |o| o.inode_size = Some(100),
            |o| o.inode_size = Some(8192),
            |o| o.inode_ratio = Some(10),
            |o| o.inodes_count = Some(0),
            |o| o.inodes_count = Some(1 << 33),
            |o| o.reserved_percent = 51.0,
            |o| o.reserved_percent = f64::NAN,
            |o| o.blocks_per_group = Some(100),
            |o| o.groups_per_flex = Some(3),
            |o| o.orphan_file_bytes = Some(0),
        ] {
            let error = check(change, 1 << 30);
            assert!(matches!(error, Error::Value { .. }), "{error}");
        }
        let error = check(|o| o.inodes_count = Some(u64::from(u32::MAX)), 1 << 30);
        assert!(matches!(error, Error::TooManyInodes { .. }), "{error}");
        let error = check(|o| o.journal_bytes = Some(1 << 29 | 4096), 1 << 30);
        assert!(matches!(error, Error::Journal { .. }), "{error}");
        let error = check(|o| o.size_bytes = Some(1 << 31), 1 << 30);
        assert!(matches!(error, Error::DeviceTooSmall { .. }), "{error}");
        let error = check(|o| o.apply_features("^64bit").unwrap(), 1 << 45);
        assert!(matches!(error, Error::TooManyBlocks { .. }), "{error}");
        let error = check(|o| o.block_size = Some(1024), 1 << 60);
        assert!(matches!(error, Error::TooManyBlocks { .. }), "{error}");
    }
}
