//! The fields of an inode that need nothing else to be judged, and its size.

use super::Checker;
use super::inodes::{Counted, InodeRef, is_fast_symlink};
use super::report::FindingKind;
use crate::error::Result;
use crate::ids::InodeNr;
use crate::layout::extent::{EXTENT_MAGIC, MAX_DEPTH, ROOT_ENTRIES, RawExtentHeader};
use crate::layout::inode::{
    INODE_FIXED_SIZE, InodeFlags, RawInodeExtra, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK,
    S_IFMT, S_IFREG, S_IFSOCK,
};
use crate::layout::{Compat, Geometry, Incompat, RoCompat};
use zerocopy::FromBytes;

/// Flags of features that the check refuses, with no meaning without them.
const FOREIGN_FLAGS: InodeFlags = InodeFlags::ENCRYPT
    .union(InodeFlags::EA_INODE)
    .union(InodeFlags::INLINE_DATA)
    .union(InodeFlags::CASEFOLD)
    .union(InodeFlags::VERITY);
/// Smallest `i_extra_isize` of an inode with extra fields: itself and half a checksum.
const EXTRA_ISIZE_MIN: usize = 4;
/// Largest file of a volume without large_file.
const SMALL_FILE_MAX: u64 = 0x7fff_ffff;

impl Checker<'_> {
    /// Everything but blocks and attributes.
    pub(super) fn check_fields(&mut self, nr: InodeNr, inode: &InodeRef<'_>) {
        let geometry = self.image.geometry.clone();
        let mut wrong = |text: String| self.findings.inode(FindingKind::Inode, nr, text);
        for text in flag_rules(&geometry, inode) {
            wrong(text.to_string());
        }
        for text in field_rules(&geometry, inode) {
            wrong(text.to_string());
        }
        if has_impossible_time(inode) {
            wrong("a time is before 1901 and after 2446".to_string());
        }
        self.check_extra_isize(nr, inode);
    }

    /// The length of the extra fields, on which the place of the checksum depends.
    pub(super) fn check_extra_isize(&mut self, nr: InodeNr, inode: &InodeRef<'_>) {
        let found = inode.extra_isize_raw();
        if found != 0 && (found < EXTRA_ISIZE_MIN || inode.extra_isize() != found) {
            let text = format!("i_extra_isize is {found}");
            self.findings.inode(FindingKind::Inode, nr, text);
        }
    }

    /// Whether the size fits the kind of file and its blocks.
    pub(super) fn check_size(
        &mut self,
        nr: InodeNr,
        inode: &InodeRef<'_>,
        counted: &Counted,
        is_orphan: bool,
    ) -> Result<()> {
        let geometry = self.image.geometry.clone();
        let size = full_size(inode);
        let block_size = u64::from(geometry.block_size);
        let text = match inode.mode() & S_IFMT {
            // Inodes that are reserved may have no mode.
            S_IFREG | 0 => regular_size(&geometry, inode, counted, is_orphan),
            S_IFDIR if counted.end == 0 => Some("a directory without blocks".to_string()),
            S_IFDIR if counted.has_unwritten => {
                Some("a directory with blocks that were never written".to_string())
            }
            S_IFDIR if size != counted.end * block_size => Some(format!(
                "a directory of {size} bytes that has {} blocks",
                counted.end
            )),
            S_IFLNK => self.symlink_size(nr, inode, counted)?,
            S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK if size != 0 => {
                Some(format!("a special file of {size} bytes"))
            }
            _ => None,
        };
        if let Some(text) = text {
            self.findings.inode(FindingKind::Inode, nr, text);
        }
        Ok(())
    }

    fn symlink_size(
        &mut self,
        nr: InodeNr,
        inode: &InodeRef<'_>,
        counted: &Counted,
    ) -> Result<Option<String>> {
        let size = full_size(inode);
        let target = if is_fast_symlink(inode) {
            inode.block_area().to_vec()
        } else {
            if counted.end != 1 || counted.has_unwritten || counted.extents != 1 {
                return Ok(Some("a symbolic link must have one block".to_string()));
            }
            match self.first_block(nr, inode)? {
                Some(block) => self.image.read(block, 1)?,
                None => return Ok(None),
            }
        };
        let len = target.iter().position(|&byte| byte == 0);
        let is_right = size > 0 && len.is_some_and(|len| len as u64 == size);
        Ok((!is_right).then(|| {
            let found = len.unwrap_or(target.len());
            format!("a symbolic link of {size} bytes with a target of {found}")
        }))
    }
}

/// The size with its upper half, whatever the kind of file.
fn full_size(inode: &InodeRef<'_>) -> u64 {
    let raw = inode.raw();
    u64::from(raw.i_size_lo.get()) | u64::from(raw.i_size_high.get()) << 32
}

fn regular_size(
    geometry: &Geometry,
    inode: &InodeRef<'_>,
    counted: &Counted,
    is_orphan: bool,
) -> Option<String> {
    let size = full_size(inode);
    let block_size = u64::from(geometry.block_size);
    // An interrupted truncate leaves blocks beyond the size.
    let last = counted.written_end.saturating_sub(1);
    if size < last * block_size && !is_orphan {
        return Some(format!(
            "{size} bytes, but data up to block {last} within the file"
        ));
    }
    let per_block = block_size / 4;
    let blocks_max = if inode.flags().contains(InodeFlags::EXTENTS) {
        u64::from(u32::MAX)
    } else {
        12 + per_block + per_block.pow(2) + per_block.pow(3)
    };
    if size > blocks_max.saturating_mul(block_size) {
        return Some(format!(
            "{size} bytes, more than its map of blocks can have"
        ));
    }
    if size > SMALL_FILE_MAX && !geometry.ro_compat.contains(RoCompat::LARGE_FILE) {
        return Some(format!("{size} bytes in a volume without large_file"));
    }
    None
}

fn flag_rules(geometry: &Geometry, inode: &InodeRef<'_>) -> Vec<&'static str> {
    let flags = inode.flags();
    let kind = inode.mode() & S_IFMT;
    let is_special = matches!(kind, S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK);
    let has_extents = flags.contains(InodeFlags::EXTENTS);
    let rules = [
        (
            has_extents && !geometry.incompat.contains(Incompat::EXTENTS),
            "extents in a volume without them",
        ),
        (
            has_extents && is_special,
            "a special file with an extent tree",
        ),
        (
            has_extents && kind == S_IFLNK && full_size(inode) < inode.block_area().len() as u64,
            "a short symbolic link with an extent tree",
        ),
        (
            !has_extents
                && matches!(kind, S_IFREG | S_IFDIR)
                && geometry.incompat.contains(Incompat::EXTENTS)
                && looks_like_extents(inode),
            "an extent tree without its flag",
        ),
        (
            flags.contains(InodeFlags::INDEX)
                && (kind != S_IFDIR || !geometry.compat.contains(Compat::DIR_INDEX)),
            "marked as a directory with a hash tree",
        ),
        (
            flags.contains(InodeFlags::IMAGIC) && !geometry.compat.contains(Compat::IMAGIC_INODES),
            "marked as an AFS directory",
        ),
        (
            flags.contains(InodeFlags::HUGE_FILE)
                && !geometry.ro_compat.contains(RoCompat::HUGE_FILE),
            "marked as a huge file in a volume without them",
        ),
        (
            (is_special || kind == S_IFLNK)
                && flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND),
            "a special file that is immutable or append-only",
        ),
        (
            flags.intersects(FOREIGN_FLAGS),
            "marked with a feature that the volume has not",
        ),
    ];
    texts_of(&rules)
}

fn field_rules(geometry: &Geometry, inode: &InodeRef<'_>) -> Vec<&'static str> {
    let raw = inode.raw();
    let kind = inode.mode() & S_IFMT;
    let is_special = matches!(kind, S_IFCHR | S_IFBLK | S_IFIFO | S_IFSOCK);
    let is_known = is_special || matches!(kind, S_IFREG | S_IFDIR | S_IFLNK);
    let is_64bit = geometry.incompat.contains(Incompat::BIT64);
    let rules = [
        (!is_known, "no kind of file has this mode"),
        (raw.i_obso_faddr.get() != 0, "the address of a fragment"),
        (
            raw.i_blocks_high.get() != 0 && !geometry.ro_compat.contains(RoCompat::HUGE_FILE),
            "the upper half of i_blocks in a volume without huge files",
        ),
        (
            raw.i_file_acl_high.get() != 0 && !is_64bit,
            "the upper half of i_file_acl in a volume of 32 bits",
        ),
    ];
    texts_of(&rules)
}

fn texts_of(rules: &[(bool, &'static str)]) -> Vec<&'static str> {
    rules
        .iter()
        .filter(|(is_wrong, _)| *is_wrong)
        .map(|(_, text)| *text)
        .collect()
}

/// Whether `i_block` begins like the root of an extent tree.
fn looks_like_extents(inode: &InodeRef<'_>) -> bool {
    let Ok((header, _)) = RawExtentHeader::ref_from_prefix(inode.block_area()) else {
        return false;
    };
    header.eh_magic.get() == EXTENT_MAGIC
        && header.eh_depth.get() <= MAX_DEPTH
        && header.eh_max.get() <= ROOT_ENTRIES
        && header.eh_entries.get() <= header.eh_max.get()
}

/// A negative time whose extra bits say that it is in the last epoch: older kernels wrote times
/// before 1970 so, and nothing tells the two apart.
fn has_impossible_time(inode: &InodeRef<'_>) -> bool {
    let raw = inode.raw();
    let Ok((extra, _)) = RawInodeExtra::ref_from_prefix(&inode.bytes()[INODE_FIXED_SIZE..]) else {
        return false;
    };
    let is_bad = |seconds: u32, extra: u32, end: usize| {
        inode.extra_isize() >= end && seconds >> 31 == 1 && extra & 3 == 3
    };
    is_bad(raw.i_ctime.get(), extra.i_ctime_extra.get(), 8)
        || is_bad(raw.i_mtime.get(), extra.i_mtime_extra.get(), 12)
        || is_bad(raw.i_atime.get(), extra.i_atime_extra.get(), 16)
        || is_bad(extra.i_crtime.get(), extra.i_crtime_extra.get(), 24)
}
