//! The three sets of feature bits, their names as mke2fs prints them, and what kfs does with each.

use super::superblock::RawSuperblock;
use crate::error::{Error, Result};
use bitflags::bitflags;

bitflags! {
    /// Features an implementation may ignore.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Compat: u32 {
        /// Directory blocks are preallocated.
        const DIR_PREALLOC = 0x1;
        /// AFS server inodes.
        const IMAGIC_INODES = 0x2;
        /// There is a journal.
        const HAS_JOURNAL = 0x4;
        /// There are extended attributes.
        const EXT_ATTR = 0x8;
        /// Blocks are reserved for growing the descriptor table.
        const RESIZE_INODE = 0x10;
        /// Directories may have hash trees.
        const DIR_INDEX = 0x20;
        /// Superblock backups are in two named groups only.
        const SPARSE_SUPER2 = 0x200;
        /// The journal may have fast commits.
        const FAST_COMMIT = 0x400;
        /// Inode numbers and the uuid never change.
        const STABLE_INODES = 0x800;
        /// Orphans are listed in a file.
        const ORPHAN_FILE = 0x1000;
        const _ = !0;
    }
}

bitflags! {
    /// Features without which a volume cannot be read.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Incompat: u32 {
        /// Compressed files.
        const COMPRESSION = 0x1;
        /// Directory entries hold the type of the file.
        const FILETYPE = 0x2;
        /// The journal must be replayed.
        const RECOVER = 0x4;
        /// The device is an external journal.
        const JOURNAL_DEV = 0x8;
        /// Descriptors lie in meta block groups.
        const META_BG = 0x10;
        /// Files may have extent trees.
        const EXTENTS = 0x40;
        /// Block numbers of 64 bits, descriptors of 64 bytes.
        const BIT64 = 0x80;
        /// Multiple mount protection.
        const MMP = 0x100;
        /// Bitmaps and inode tables may lie in other groups.
        const FLEX_BG = 0x200;
        /// Values of large attributes are in inodes of their own.
        const EA_INODE = 0x400;
        /// Data in directory entries.
        const DIRDATA = 0x1000;
        /// The checksum seed is in the superblock.
        const CSUM_SEED = 0x2000;
        /// Directories above 2 GiB, hash trees of three levels.
        const LARGEDIR = 0x4000;
        /// Small files lie in their inodes.
        const INLINE_DATA = 0x8000;
        /// Encrypted files.
        const ENCRYPT = 0x1_0000;
        /// Directories that ignore case.
        const CASEFOLD = 0x2_0000;
        const _ = !0;
    }
}

bitflags! {
    /// Features without which a volume may be read but not changed.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct RoCompat: u32 {
        /// Not every group has a superblock backup.
        const SPARSE_SUPER = 0x1;
        /// Files above 2 GiB.
        const LARGE_FILE = 0x2;
        /// Files above 2 TiB.
        const HUGE_FILE = 0x8;
        /// Group descriptors have a crc16; groups may be uninitialised.
        const GDT_CSUM = 0x10;
        /// Directories may have more than 65000 subdirectories.
        const DIR_NLINK = 0x20;
        /// Inodes have extra fields.
        const EXTRA_ISIZE = 0x40;
        /// Snapshots: see md-docs/format/snapshots.md.
        const HAS_SNAPSHOT = 0x80;
        /// Quota files are kept.
        const QUOTA = 0x100;
        /// Bitmaps count clusters of blocks.
        const BIGALLOC = 0x200;
        /// All metadata has crc32c checksums.
        const METADATA_CSUM = 0x400;
        /// The volume is marked read-only.
        const READONLY = 0x1000;
        /// Project quota.
        const PROJECT = 0x2000;
        /// Blocks may be shared between files.
        const SHARED_BLOCKS = 0x4000;
        /// Files with verity trees.
        const VERITY = 0x8000;
        /// The orphan file may have entries.
        const ORPHAN_PRESENT = 0x1_0000;
        const _ = !0;
    }
}

/// What kfs may do with a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Access {
    /// Read it and change it.
    Write,
    /// Only read it.
    ReadOnly,
    /// Not open it.
    Refuse,
}

use Access::{ReadOnly, Refuse, Write};

/// One line of a support table: bit, name, policy.
type Policy = (u32, &'static str, Access);

/// Unknown bits of this set are harmless by the format's own rule.
pub const COMPAT: &[Policy] = &[
    (0x1, "dir_prealloc", Write),
    (0x2, "imagic_inodes", Write),
    (0x4, "has_journal", Write),
    (0x8, "ext_attr", Write),
    (0x10, "resize_inode", Write),
    (0x20, "dir_index", Write),
    (0x40, "lazy_bg", Write),
    (0x80, "snapshot", Write),
    (0x100, "snapshot_bitmap", Write),
    (0x200, "sparse_super2", Write),
    // Replay refuses a log that does have fast commits in it.
    (0x400, "fast_commit", Write),
    (0x800, "stable_inodes", Write),
    (0x1000, "orphan_file", Write),
];

/// Unknown bits of this set refuse the volume.
pub const INCOMPAT: &[Policy] = &[
    (0x1, "compression", Refuse),
    (0x2, "filetype", Write),
    (0x4, "needs_recovery", Write),
    (0x8, "journal_dev", Refuse),
    (0x10, "meta_bg", Write),
    (0x40, "extent", Write),
    (0x80, "64bit", Write),
    // A writer would have to keep the heartbeat.
    (0x100, "mmp", ReadOnly),
    (0x200, "flex_bg", Write),
    (0x400, "ea_inode", ReadOnly),
    (0x1000, "dirdata", Refuse),
    (0x2000, "metadata_csum_seed", Write),
    (0x4000, "large_dir", Write),
    (0x8000, "inline_data", ReadOnly),
    (0x1_0000, "encrypt", Refuse),
    (0x2_0000, "casefold", Refuse),
];

/// Unknown bits of this set make the volume read-only.
pub const RO_COMPAT: &[Policy] = &[
    (0x1, "sparse_super", Write),
    (0x2, "large_file", Write),
    (0x4, "btree_dir", ReadOnly),
    (0x8, "huge_file", Write),
    (0x10, "uninit_bg", Write),
    (0x20, "dir_nlink", Write),
    (0x40, "extra_isize", Write),
    (0x80, "snapshot", Write),
    (0x100, "quota", ReadOnly),
    (0x200, "bigalloc", ReadOnly),
    (0x400, "metadata_csum", Write),
    (0x800, "replica", ReadOnly),
    (0x1000, "read-only", ReadOnly),
    (0x2000, "project", ReadOnly),
    (0x4000, "shared_blocks", ReadOnly),
    (0x8000, "verity", ReadOnly),
    (0x1_0000, "orphan_present", Write),
];

/// Names of the bits in `bits`, unknown ones as `FEATURE_I17` (set letter and bit number).
fn names_of(bits: u32, table: &[Policy], letter: char) -> Vec<String> {
    (0..32)
        .filter(|n| bits & (1 << n) != 0)
        .map(|n| match table.iter().find(|p| p.0 == 1 << n) {
            Some(policy) => policy.1.to_string(),
            None => format!("FEATURE_{letter}{n}"),
        })
        .collect()
}

/// Bits of `bits` whose policy is `wanted`; unknown bits have the policy `unknown`.
fn select(bits: u32, table: &[Policy], wanted: Access, unknown: Access) -> u32 {
    (0..32)
        .map(|n| 1 << n)
        .filter(|bit| bits & bit != 0)
        .filter(|bit| table.iter().find(|p| p.0 == *bit).map_or(unknown, |p| p.2) == wanted)
        .sum()
}

/// All features of a volume by name, in the order in which dumpe2fs prints them.
#[must_use]
pub fn names(superblock: &RawSuperblock) -> Vec<String> {
    let mut names = names_of(superblock.s_feature_compat.get(), COMPAT, 'C');
    names.extend(names_of(superblock.s_feature_incompat.get(), INCOMPAT, 'I'));
    names.extend(names_of(
        superblock.s_feature_ro_compat.get(),
        RO_COMPAT,
        'R',
    ));
    names
}

/// Names of the features that keep a volume from being changed.
#[must_use]
pub fn read_only_names(superblock: &RawSuperblock) -> Vec<String> {
    let incompat = superblock.s_feature_incompat.get();
    let ro_compat = superblock.s_feature_ro_compat.get();
    let mut names = names_of(select(incompat, INCOMPAT, ReadOnly, Refuse), INCOMPAT, 'I');
    names.extend(names_of(
        select(ro_compat, RO_COMPAT, ReadOnly, ReadOnly),
        RO_COMPAT,
        'R',
    ));
    names
}

/// Decides what may be done with the volume.
///
/// A volume with [`Incompat::RECOVER`] must have its journal replayed before anything is read,
/// also by a reader; this function leaves that to the mount.
///
/// # Errors
/// [`Error::Unsupported`] with the names of the features that forbid to open it.
pub fn check(superblock: &RawSuperblock) -> Result<Access> {
    let incompat = superblock.s_feature_incompat.get();
    let mut refused = names_of(select(incompat, INCOMPAT, Refuse, Refuse), INCOMPAT, 'I');
    let journal = superblock.compat().contains(Compat::HAS_JOURNAL);
    if journal && superblock.s_journal_inum.get() == 0 && superblock.s_journal_dev.get() != 0 {
        refused.push("external journal".to_string());
    }
    if !refused.is_empty() {
        return Err(Error::Unsupported {
            names: refused.join(", "),
        });
    }
    Ok(if read_only_names(superblock).is_empty() {
        Write
    } else {
        ReadOnly
    })
}

/// The feature bit of a name as mke2fs takes it after `-O`: which set, and the bit.
#[must_use]
pub fn find(name: &str) -> Option<Feature> {
    // Names that mke2fs takes besides those it prints.
    let name = match name {
        "extents" => "extent",
        "gdt_csum" | "gdt_checksum" => "uninit_bg",
        "flex_groups" => "flex_bg",
        "needs_recovery" | "orphan_present" => return None,
        other => other,
    };
    let bit = |table: &[Policy]| table.iter().find(|p| p.1 == name).map(|p| p.0);
    bit(COMPAT)
        .map(|b| Feature::Compat(Compat::from_bits_retain(b)))
        .or_else(|| bit(INCOMPAT).map(|b| Feature::Incompat(Incompat::from_bits_retain(b))))
        .or_else(|| bit(RO_COMPAT).map(|b| Feature::RoCompat(RoCompat::from_bits_retain(b))))
}

/// One feature bit with the set it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feature {
    /// Of `s_feature_compat`.
    Compat(Compat),
    /// Of `s_feature_incompat`.
    Incompat(Incompat),
    /// Of `s_feature_ro_compat`.
    RoCompat(RoCompat),
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;
    use zerocopy::little_endian::U32;

    #[test]
    fn unknown_incompat_is_refused_by_name() {
        let mut superblock = RawSuperblock::new_zeroed();
        superblock.s_feature_incompat = U32::new(1 << 20 | 0x2_0000 | 0x2);
        match check(&superblock) {
            Err(Error::Unsupported { names }) => assert_eq!(names, "casefold, FEATURE_I20"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unknown_ro_compat_is_read_only() {
        let mut superblock = RawSuperblock::new_zeroed();
        superblock.s_feature_ro_compat = U32::new(1 << 25);
        superblock.s_feature_compat = U32::new(1 << 30);
        assert_eq!(check(&superblock).unwrap(), Access::ReadOnly);
        assert_eq!(read_only_names(&superblock), ["FEATURE_R25"]);
        superblock.s_feature_ro_compat = U32::new(0x400);
        assert_eq!(check(&superblock).unwrap(), Access::Write);
    }

    #[test]
    fn flags_and_tables_agree() {
        assert_eq!(find("64bit"), Some(Feature::Incompat(Incompat::BIT64)));
        assert_eq!(find("extents"), Some(Feature::Incompat(Incompat::EXTENTS)));
        assert_eq!(
            find("uninit_bg"),
            Some(Feature::RoCompat(RoCompat::GDT_CSUM))
        );
        assert_eq!(find("needs_recovery"), None);
    }
}
