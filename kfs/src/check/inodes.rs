//! The inode tables: every inode by itself, and the blocks that it claims.

use super::Checker;
use super::blocks::{Visitor, walk};
use super::claims::Claims;
use super::links::Directory;
use super::report::{FindingKind, Findings};
use super::resize::RESIZE_INODE;
use super::states::InodeState;
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::extent::Extent;
use crate::ids::{BlockNr, GroupNr, InodeNr};
use crate::layout::inode::{InodeBytes, InodeFlags, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::layout::{Compat, FileType, Geometry};

/// Bytes of an inode table read at once.
const TABLE_READ_BYTES: u32 = 1 << 20;
/// The inode of bad blocks.
const BAD_BLOCKS_INODE: u32 = 1;
/// The inode of a boot loader, which may be a regular file.
const BOOT_LOADER_INODE: u32 = 5;

/// Inodes of features: user and group quota, resizing, the journal. Without their feature nothing but
/// their being empty counts.
const FEATURE_INODES: [u32; 4] = [3, 4, RESIZE_INODE, InodeNr::JOURNAL.0];

/// An inode as it lies in a table.
pub(super) type InodeRef<'b> = InodeBytes<&'b [u8]>;

/// What an inode's blocks add up to.
struct Tally<'c> {
    claims: &'c mut Claims,
    findings: &'c mut Findings,
    nr: InodeNr,
    /// Blocks of data and of the tree or map.
    blocks: u64,
    /// One beyond the last block within the file.
    end: u64,
    /// The same of the blocks that hold data.
    written_end: u64,
    has_unwritten: bool,
    is_broken: bool,
    extents: u64,
    physical_end: Option<u64>,
    is_fragmented: bool,
}

impl<'c> Tally<'c> {
    fn new(claims: &'c mut Claims, findings: &'c mut Findings, nr: InodeNr) -> Self {
        Self {
            claims,
            findings,
            nr,
            blocks: 0,
            end: 0,
            written_end: 0,
            has_unwritten: false,
            is_broken: false,
            extents: 0,
            physical_end: None,
            is_fragmented: false,
        }
    }
}

impl Visitor for Tally<'_> {
    fn node(&mut self, block: BlockNr) -> bool {
        self.blocks += 1;
        let is_new = self.claims.claim(block, 1);
        self.is_broken |= !is_new;
        is_new
    }

    fn extent(&mut self, extent: Extent) {
        self.blocks += u64::from(extent.len);
        self.claims.claim(extent.physical, extent.len.into());
        self.end = self.end.max(extent.end());
        if extent.unwritten {
            self.has_unwritten = true;
        } else {
            self.written_end = self.written_end.max(extent.end());
        }
        self.extents += 1;
        self.is_fragmented |= self
            .physical_end
            .is_some_and(|end| end != extent.physical.0);
        self.physical_end = Some(extent.physical.0 + u64::from(extent.len));
    }

    fn damage(&mut self, damage: Corrupt) {
        self.is_broken = true;
        self.findings
            .corrupt(FindingKind::BlockMap, self.nr, &damage);
    }
}

/// Whether `i_block` names blocks.
pub(super) fn has_blocks<B: AsRef<[u8]>>(inode: &InodeBytes<B>) -> bool {
    match inode.mode() & S_IFMT {
        S_IFREG | S_IFDIR => true,
        S_IFLNK => !is_fast_symlink(inode),
        _ => false,
    }
}

/// Whether the target of a symbolic link lies in the inode.
pub(super) fn is_fast_symlink<B: AsRef<[u8]>>(inode: &InodeBytes<B>) -> bool {
    inode.size_bytes() < inode.block_area().len() as u64
        && !inode.flags().contains(InodeFlags::EXTENTS)
}

impl Checker<'_> {
    /// Reads the tables and checks all inodes.
    pub(super) fn check_inodes(&mut self) -> Result<()> {
        let geometry = self.image.geometry.clone();
        for group in (0..geometry.groups_count()).map(GroupNr) {
            self.for_each_in_table(group, |checker, nr, inode| checker.check_inode(nr, inode))?;
            self.step(u64::from(group.0) + 1, geometry.groups_count().into())?;
        }
        Ok(())
    }

    /// Calls `visit` for the inodes of a group's table that may be in use.
    fn for_each_in_table(
        &mut self,
        group: GroupNr,
        mut visit: impl FnMut(&mut Self, InodeNr, &InodeRef<'_>) -> Result<()>,
    ) -> Result<()> {
        let geometry = self.image.geometry.clone();
        let count = self.groups.inodes_to_read(&geometry, group);
        let table = self.groups.desc(group).inode_table();
        let size = geometry.inode_size as usize;
        let per_read = TABLE_READ_BYTES / geometry.inode_size;
        let mut bytes = Vec::new();
        let mut first = 0;
        while first < count {
            let some = per_read.min(count - first);
            let (block, offset) = geometry.inode_table_offset(first);
            let blocks = (some * geometry.inode_size).div_ceil(geometry.block_size);
            debug_assert_eq!(offset, 0, "reads start with a block");
            bytes.resize((blocks * geometry.block_size) as usize, 0);
            self.image
                .read_into(table.plus(u64::from(block)), &mut bytes)?;
            for (index, bytes) in (first..first + some).zip(bytes.chunks_exact(size)) {
                let inode = InodeBytes::new(bytes);
                visit(self, geometry.inode_nr(group, index), &inode)?;
            }
            first += some;
        }
        Ok(())
    }

    /// Calls `visit` for all inodes found in use.
    pub(super) fn for_each_used_inode(
        &mut self,
        mut visit: impl FnMut(&mut Self, InodeNr, &InodeRef<'_>) -> Result<()>,
    ) -> Result<()> {
        for group in 0..self.image.geometry.groups_count() {
            if self.states.of_group(group).next().is_none() {
                continue;
            }
            self.for_each_in_table(GroupNr(group), |checker, nr, inode| {
                if checker.states.get(nr).is_some() {
                    visit(checker, nr, inode)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn check_inode(&mut self, nr: InodeNr, inode: &InodeRef<'_>) -> Result<()> {
        let geometry = self.image.geometry.clone();
        let is_orphan = self.orphans.contains(nr);
        let is_reserved = nr < geometry.first_inode && nr != InodeNr::ROOT;
        if !is_orphan && self.is_low_dtime(inode.dtime()) {
            let text = "looks like one of the orphan list, which does not have it";
            self.findings.inode(FindingKind::Orphans, nr, text);
        }
        if inode.links_count() == 0 && !is_orphan && !is_reserved {
            self.check_free_inode(nr, inode);
            return Ok(());
        }
        if inode.bytes().iter().any(|&byte| byte != 0) && !inode.verify_checksum(&geometry, nr) {
            let damage = Corrupt::InodeChecksum { inode: nr };
            self.findings.corrupt(FindingKind::Inode, nr, &damage);
        }
        if is_reserved {
            return self.check_reserved_inode(nr, inode);
        }
        if inode.dtime() != 0 && !is_orphan {
            let text = "in use, but has a time of deletion";
            self.findings.inode(FindingKind::Inode, nr, text);
        }
        if nr == InodeNr::ROOT && inode.mode() & S_IFMT != S_IFDIR {
            let damage = Corrupt::RootNotDirectory;
            self.findings.corrupt(FindingKind::Inode, nr, &damage);
        }
        if Some(nr) == geometry.orphan_file_inode && inode.mode() & S_IFMT != S_IFREG {
            let text = "the orphan file is not a regular file";
            self.findings.inode(FindingKind::Orphans, nr, text);
        }
        let file_type = FileType::from_mode(inode.mode());
        let mut state = InodeState::new(inode.links_count(), file_type);
        let is_special =
            Some(nr) == geometry.orphan_file_inode || Some(nr) == geometry.journal_inode;
        if is_orphan && inode.links_count() == 0 || is_special {
            state = state.nameless();
        }
        if inode.flags().contains(InodeFlags::INDEX) {
            state = state.indexed();
        }
        self.states.insert(nr, state);
        self.count(file_type);
        if file_type == FileType::Directory {
            self.directories.push(Directory::new(nr));
        }
        self.check_fields(nr, inode);
        self.check_content(nr, inode, is_orphan)
    }

    /// Whether a time of deletion is rather the number of an inode, the next one of the orphan list:
    /// a time so small, on a volume whose clock was right.
    fn is_low_dtime(&self, dtime: u32) -> bool {
        let count = self.image.geometry.inodes_count();
        let is_clock_right = self.superblock.s_wtime.get() >= count;
        dtime != 0 && dtime < count && is_clock_right
    }

    fn count(&mut self, file_type: FileType) {
        match file_type {
            FileType::Regular => self.totals.files += 1,
            FileType::Directory => self.totals.directories += 1,
            FileType::Symlink => self.totals.symlinks += 1,
            _ => self.totals.special += 1,
        }
    }

    fn check_free_inode(&mut self, nr: InodeNr, inode: &InodeRef<'_>) {
        if inode.bytes().iter().all(|&byte| byte == 0) {
            return;
        }
        if !inode.verify_checksum(&self.image.geometry, nr) {
            let damage = Corrupt::InodeChecksum { inode: nr };
            self.findings.corrupt(FindingKind::Inode, nr, &damage);
        }
        if self.image.geometry.csum_seed.is_some() {
            self.check_extra_isize(nr, inode);
        }
        if inode.dtime() == 0 && inode.mode() != 0 {
            let text = "has no names and no time of deletion";
            self.findings.inode(FindingKind::Inode, nr, text);
        }
    }

    /// Inodes below the first that files can have.
    fn check_reserved_inode(&mut self, nr: InodeNr, inode: &InodeRef<'_>) -> Result<()> {
        let geometry = self.image.geometry.clone();
        let file_type = FileType::from_mode(inode.mode());
        let state = InodeState::new(inode.links_count(), file_type);
        self.states.insert(nr, state.nameless());
        if Some(nr) == geometry.journal_inode {
            if file_type != FileType::Regular {
                let text = "the journal is not a regular file";
                self.findings.inode(FindingKind::Journal, nr, text);
            }
            self.check_fields(nr, inode);
            return self.check_content(nr, inode, false);
        }
        if nr.0 == RESIZE_INODE && geometry.compat.contains(Compat::RESIZE_INODE) {
            return self.check_resize_inode(inode);
        }
        if let Some(text) = reserved_rule(nr, inode) {
            self.findings.inode(FindingKind::Inode, nr, text);
        }
        self.check_extra_isize(nr, inode);
        if FEATURE_INODES.contains(&nr.0) {
            return Ok(());
        }
        self.check_content(nr, inode, false)
    }

    /// Blocks, size and attributes.
    fn check_content(&mut self, nr: InodeNr, inode: &InodeRef<'_>, is_orphan: bool) -> Result<()> {
        let xattr_blocks = self.check_xattrs(nr, inode)?;
        let mut tally = Tally::new(&mut self.claims, &mut self.findings, nr);
        if has_blocks(inode) || nr.0 == BAD_BLOCKS_INODE {
            walk(&self.image, nr, inode, &mut tally)?;
        }
        let Tally {
            blocks,
            end,
            written_end,
            has_unwritten,
            is_broken,
            extents,
            is_fragmented,
            ..
        } = tally;
        self.totals.fragmented += u64::from(is_fragmented);
        let counted = Counted {
            blocks: blocks + xattr_blocks,
            end,
            written_end,
            has_unwritten,
            extents,
        };
        if is_broken {
            // Its counts follow from the damage that was reported.
            return Ok(());
        }
        self.check_block_count(nr, inode, counted.blocks);
        self.check_size(nr, inode, &counted, is_orphan)
    }

    /// `i_blocks`.
    pub(super) fn check_block_count(&mut self, nr: InodeNr, inode: &InodeRef<'_>, blocks: u64) {
        let geometry: &Geometry = &self.image.geometry;
        let expected = blocks << (geometry.block_size_bits - 9);
        let found = inode.blocks_512(geometry);
        if found != expected {
            let text = format!("i_blocks is {found}, should be {expected}");
            self.findings.inode(FindingKind::Inode, nr, text);
        }
    }
}

/// The blocks of an inode.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) blocks: u64,
    pub(super) end: u64,
    pub(super) written_end: u64,
    pub(super) has_unwritten: bool,
    pub(super) extents: u64,
}

/// What is wrong with a reserved inode that no feature in use has.
fn reserved_rule(nr: InodeNr, inode: &InodeRef<'_>) -> Option<&'static str> {
    let raw = inode.raw();
    let is_clear = inode.links_count() == 0
        && raw.i_blocks_lo.get() == 0
        && raw.i_block.iter().take(4).all(|&byte| byte == 0);
    if FEATURE_INODES.contains(&nr.0) {
        return (!is_clear).then_some("reserved and not in use, but not empty");
    }
    if inode.mode() == 0 && !inode.flags().is_empty() {
        return Some("reserved and not in use, but has flags");
    }
    match nr.0 {
        BAD_BLOCKS_INODE => {
            let is_file = inode.mode() != 0
                || inode.uid() != 0
                || inode.gid() != 0
                || inode.links_count() != 0
                || inode.file_acl() != 0
                || inode.flags().contains(InodeFlags::INLINE_DATA);
            is_file.then_some("the list of bad blocks has fields of a file")
        }
        BOOT_LOADER_INODE => {
            (inode.mode() & S_IFMT == S_IFDIR).then_some("the boot loader is a directory")
        }
        _ => (inode.mode() != 0).then_some("reserved, but has a mode"),
    }
}
