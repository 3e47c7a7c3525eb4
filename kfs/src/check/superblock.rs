//! The superblock: whether the volume can be judged at all, its fields, and its copies.

use super::Checker;
use super::image::Image;
use super::report::{Finding, FindingKind, Findings};
use crate::corrupt::Corrupt;
use crate::error::{Error, IoOp, Result};
use crate::ids::{BlockNr, GroupNr};
use crate::layout::superblock::{
    EXT4_MAGIC, STATE_ERROR, STATE_VALID, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE,
};
use crate::layout::{Access, Compat, Geometry, Incompat, RawSuperblock, RoCompat, features};
use kfs_disk::BlockDevice;
use std::sync::Arc;
use zerocopy::FromBytes;

/// More groups than any volume that is in use has; their descriptors are held in memory.
const GROUPS_MAX: u32 = 1 << 22;
/// Compatible features that the check knows what they mean for.
const COMPAT_KNOWN: Compat = Compat::DIR_PREALLOC
    .union(Compat::IMAGIC_INODES)
    .union(Compat::HAS_JOURNAL)
    .union(Compat::EXT_ATTR)
    .union(Compat::RESIZE_INODE)
    .union(Compat::DIR_INDEX)
    .union(Compat::SPARSE_SUPER2)
    .union(Compat::FAST_COMMIT)
    .union(Compat::STABLE_INODES)
    .union(Compat::ORPHAN_FILE);
/// `s_desc_size` must be in reason even where nothing uses it.
const DESC_SIZE_MAX: u16 = 1024;
/// `s_creator_os`: the only one whose inodes the crate knows.
const OS_LINUX: u32 = 0;
/// Copies of the superblock that are compared.
const BACKUPS_MAX: usize = 16;

/// A superblock with which the rest can be checked.
pub(super) struct Opened {
    pub(super) image: Image,
    pub(super) superblock: RawSuperblock,
}

/// Reads the superblock. `None` when it is too damaged for the check to go on, which a finding says.
///
/// # Errors
/// `Corrupt` when there is no superblock at all, `Unsupported` for features that cannot be judged,
/// `Io`.
pub(super) fn open(
    device: Arc<dyn BlockDevice>,
    findings: &mut Findings,
) -> Result<Option<Opened>> {
    let mut superblock = read(&*device)?;
    check_support(&superblock)?;
    if !superblock.verify_checksum() {
        let (found, expected) = (superblock.s_checksum.get(), superblock.checksum());
        let damage = Corrupt::SuperblockChecksum { found, expected };
        findings.add(Finding::corrupt(FindingKind::Superblock, &damage));
        superblock.update_checksum();
    }
    let geometry = match Geometry::try_from(&superblock) {
        Ok(geometry) => geometry,
        Err(Error::Corrupt(damage)) => {
            findings.add(Finding::corrupt(FindingKind::Superblock, &damage));
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    let wanted = geometry.offset_of(BlockNr(geometry.blocks_count()));
    let found = device.size_bytes();
    if wanted > found {
        let damage = Corrupt::Truncated { wanted, found };
        findings.add(Finding::corrupt(FindingKind::Superblock, &damage));
        return Ok(None);
    }
    if geometry.groups_count() > GROUPS_MAX {
        let names = format!("{} block groups", geometry.groups_count());
        return Err(Error::Unsupported { names });
    }
    check_rules(&superblock, &geometry, findings);
    let image = Image { device, geometry };
    Ok(Some(Opened { image, superblock }))
}

fn read(device: &dyn BlockDevice) -> Result<RawSuperblock> {
    let bytes = device.size_bytes();
    if bytes < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64 {
        return Err(Corrupt::TooSmall { bytes }.into());
    }
    let raw = read_at(device, SUPERBLOCK_OFFSET, BlockNr(0))?;
    let found = raw.s_magic.get();
    if found != EXT4_MAGIC {
        return Err(Corrupt::SuperblockMagic { found }.into());
    }
    Ok(raw)
}

fn read_at(device: &dyn BlockDevice, offset: u64, block: BlockNr) -> Result<RawSuperblock> {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    device
        .read_at(offset, &mut bytes)
        .map_err(|source| Error::Io {
            op: IoOp::Read,
            block,
            source,
        })?;
    Ok(RawSuperblock::read_from_bytes(&bytes).expect("as many bytes as it has"))
}

/// Only what kfs can write can be judged: of other features it does not know all rules.
fn check_support(superblock: &RawSuperblock) -> Result<()> {
    let mut names = Vec::new();
    if features::check(superblock)? != Access::Write {
        names = features::read_only_names(superblock);
    }
    let unknown = superblock.compat().difference(COMPAT_KNOWN);
    if !unknown.is_empty() {
        names.push(format!("compatible features {:#x}", unknown.bits()));
    }
    let revision = superblock.s_rev_level.get();
    if revision > 1 {
        names.push(format!("revision {revision}"));
    }
    let os = superblock.s_creator_os.get();
    if os != OS_LINUX {
        names.push(format!("inodes of operating system {os}"));
    }
    if names.is_empty() {
        return Ok(());
    }
    let names = names.join(", ");
    Err(Error::Unsupported { names })
}

/// Checks fields that [`Geometry`] has no use for, and features that exclude each other.
fn check_rules(raw: &RawSuperblock, geometry: &Geometry, findings: &mut Findings) {
    let mut wrong = |text: String| {
        findings.add(Finding::error(FindingKind::Superblock, text));
    };
    for (is_wrong, text) in feature_rules(raw) {
        if is_wrong {
            wrong(format!("superblock: {text}"));
        }
    }
    for (is_wrong, field, value) in field_rules(raw, geometry) {
        if is_wrong {
            let text = format!("superblock field {field} has the impossible value {value}");
            wrong(text);
        }
    }
}

impl Checker<'_> {
    /// Notes what the superblock says of the volume's state.
    pub(super) fn check_state(&mut self) {
        let raw = &self.superblock;
        if raw.s_state.get() & STATE_ERROR != 0 {
            let text = "superblock: errors are on record";
            self.findings
                .add(Finding::warning(FindingKind::Superblock, text));
        } else if raw.s_state.get() & STATE_VALID == 0 {
            let text = "superblock: the volume was not closed";
            self.findings
                .add(Finding::warning(FindingKind::Superblock, text));
        }
    }

    /// Compares the copies of the superblock: what never changes must be the same.
    pub(super) fn check_backups(&mut self) -> Result<()> {
        let geometry = self.image.geometry.clone();
        let groups = (1..geometry.groups_count()).map(GroupNr);
        let with_backup = groups.filter(|&group| geometry.has_superblock_backup(group));
        for group in with_backup.take(BACKUPS_MAX) {
            let block = geometry.group_first_block(group);
            let copy = read_at(&*self.image.device, geometry.offset_of(block), block)?;
            if let Some(field) = differing_field(&self.superblock, &copy) {
                let text = format!("backup superblock in block {block}: {field} differs");
                let finding = Finding::warning(FindingKind::Backup, text);
                self.findings.add(finding.group(group).block(block));
            }
        }
        Ok(())
    }
}

/// Features that cannot be together, with the fields that go with them.
fn feature_rules(raw: &RawSuperblock) -> Vec<(bool, &'static str)> {
    let (compat, incompat, ro) = (raw.compat(), raw.incompat(), raw.ro_compat());
    let has_journal = compat.contains(Compat::HAS_JOURNAL);
    let has_csum = ro.contains(RoCompat::METADATA_CSUM);
    let any =
        raw.s_feature_compat.get() | raw.s_feature_incompat.get() | raw.s_feature_ro_compat.get();
    vec![
        (
            raw.s_rev_level.get() == 0 && any != 0,
            "features in a volume of revision 0",
        ),
        (
            has_csum && ro.contains(RoCompat::GDT_CSUM),
            "both metadata_csum and uninit_bg",
        ),
        (
            !has_csum && incompat.contains(Incompat::CSUM_SEED),
            "metadata_csum_seed without metadata_csum",
        ),
        (
            incompat.contains(Incompat::BIT64) && !incompat.contains(Incompat::EXTENTS),
            "64bit without extents",
        ),
        (
            compat.contains(Compat::RESIZE_INODE) && incompat.contains(Incompat::META_BG),
            "both resize_inode and meta_bg",
        ),
        (
            !has_journal && incompat.contains(Incompat::RECOVER),
            "a journal to be replayed in a volume without one",
        ),
        (
            !has_journal && (raw.s_journal_inum.get() != 0 || raw.s_journal_dev.get() != 0),
            "a journal in a volume without one",
        ),
        (
            raw.s_journal_uuid != [0; 16] || has_journal && raw.s_journal_dev.get() != 0,
            "an external journal besides the inode",
        ),
        (
            has_journal && raw.s_journal_inum.get() == 0,
            "the journal has no inode",
        ),
        (
            ro.contains(RoCompat::ORPHAN_PRESENT) && !compat.contains(Compat::ORPHAN_FILE),
            "entries of an orphan file that is not there",
        ),
        (
            compat.contains(Compat::ORPHAN_FILE) && raw.s_orphan_file_inum.get() == 0,
            "the orphan file has no inode",
        ),
    ]
}

/// Fields that are wrong, by name and value.
fn field_rules(raw: &RawSuperblock, geometry: &Geometry) -> Vec<(bool, &'static str, u64)> {
    let extra_max = (geometry.inode_size - 128) as u16;
    let bad_extra = |extra: u16| extra_max > 0 && extra > extra_max;
    let reserved = raw.s_reserved_gdt_blocks.get();
    let desc_size = raw.s_desc_size.get();
    let overhead = u64::from(raw.s_overhead_clusters.get());
    vec![
        (
            raw.reserved_blocks_count() > geometry.blocks_count() / 2,
            "s_r_blocks_count",
            raw.reserved_blocks_count(),
        ),
        (
            geometry.cluster_blocks == 1 && raw.s_log_cluster_size != raw.s_log_block_size,
            "s_log_cluster_size",
            raw.s_log_cluster_size.get().into(),
        ),
        (
            geometry.cluster_blocks == 1 && raw.s_clusters_per_group != raw.s_blocks_per_group,
            "s_clusters_per_group",
            raw.s_clusters_per_group.get().into(),
        ),
        (
            reserved != 0 && !raw.compat().contains(Compat::RESIZE_INODE),
            "s_reserved_gdt_blocks",
            reserved.into(),
        ),
        (
            bad_extra(raw.s_min_extra_isize.get()),
            "s_min_extra_isize",
            raw.s_min_extra_isize.get().into(),
        ),
        (
            bad_extra(raw.s_want_extra_isize.get()),
            "s_want_extra_isize",
            raw.s_want_extra_isize.get().into(),
        ),
        (
            desc_size != 0 && (!desc_size.is_power_of_two() || desc_size > DESC_SIZE_MAX),
            "s_desc_size",
            desc_size.into(),
        ),
        (raw.s_uuid == [0; 16], "s_uuid", 0),
        (
            raw.s_usr_quota_inum.get() != 0,
            "s_usr_quota_inum",
            raw.s_usr_quota_inum.get().into(),
        ),
        (
            raw.s_grp_quota_inum.get() != 0,
            "s_grp_quota_inum",
            raw.s_grp_quota_inum.get().into(),
        ),
        (
            raw.s_prj_quota_inum.get() != 0,
            "s_prj_quota_inum",
            raw.s_prj_quota_inum.get().into(),
        ),
        (
            overhead > geometry.blocks_count(),
            "s_overhead_clusters",
            overhead,
        ),
    ]
}

/// The first field in which a copy differs though it never changes.
fn differing_field(primary: &RawSuperblock, copy: &RawSuperblock) -> Option<&'static str> {
    let pairs = [
        (
            "s_magic",
            primary.s_magic.get().into(),
            copy.s_magic.get().into(),
        ),
        (
            "s_blocks_count",
            primary.blocks_count(),
            copy.blocks_count(),
        ),
        (
            "s_inodes_count",
            primary.s_inodes_count.get().into(),
            copy.s_inodes_count.get().into(),
        ),
        (
            "s_log_block_size",
            primary.s_log_block_size.get().into(),
            copy.s_log_block_size.get().into(),
        ),
        (
            "s_blocks_per_group",
            primary.s_blocks_per_group.get().into(),
            copy.s_blocks_per_group.get().into(),
        ),
        (
            "s_inodes_per_group",
            primary.s_inodes_per_group.get().into(),
            copy.s_inodes_per_group.get().into(),
        ),
        (
            "s_inode_size",
            primary.s_inode_size.get().into(),
            copy.s_inode_size.get().into(),
        ),
        (
            "s_desc_size",
            u64::from(primary.s_desc_size.get()),
            copy.s_desc_size.get().into(),
        ),
    ];
    if let Some((field, _, _)) = pairs.iter().find(|(_, ours, theirs)| ours != theirs) {
        return Some(field);
    }
    if primary.s_uuid != copy.s_uuid {
        return Some("s_uuid");
    }
    (!copy.verify_checksum()).then_some("s_checksum")
}
