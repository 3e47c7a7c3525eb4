//! Directories: their blocks, the entries in them, and what the entries name.

use super::Checker;
use super::blocks::{Visitor, walk};
use super::htree::Tree;
use super::inodes::InodeRef;
use super::report::{Finding, FindingKind, Severity};
use crate::corrupt::Corrupt;
use crate::dir::DirectoryFormat;
use crate::dir::block::{Entries, EntryRef};
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::ids::{BlockNr, InodeNr, LogicalBlock};
use crate::layout::dirent::{self, DIRENT_HEADER_SIZE, RawDirent, dirent_size};
use crate::layout::inode::InodeFlags;
use crate::layout::{Compat, FileType};
use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use zerocopy::FromBytes;

/// Bytes of a directory read at once.
const READ_BYTES: u32 = 1 << 18;
/// Pieces that a directory may lie in; more are not looked at.
const EXTENTS_MAX: usize = 1 << 22;
/// Names that are remembered to find a second one; a larger directory is compared in parts.
const NAMES_MAX: usize = 1 << 22;

/// Where a directory's blocks lie.
#[derive(Default)]
pub(super) struct Map {
    extents: Vec<Extent>,
}

impl Map {
    /// The place of a block, `None` for a hole.
    pub(super) fn find(&self, block: u32) -> Option<BlockNr> {
        let after = self
            .extents
            .partition_point(|extent| extent.end() <= u64::from(block));
        let extent = self.extents.get(after)?;
        let skipped = block.checked_sub(extent.logical.0)?;
        (!extent.unwritten).then(|| extent.physical.plus(u64::from(skipped)))
    }

    /// One beyond the last block.
    pub(super) fn end(&self) -> u64 {
        self.extents.last().map_or(0, |extent| extent.end())
    }
}

/// Collects the blocks of a directory, or the first of any file.
struct Collect<'b> {
    map: Map,
    extents_max: usize,
    budget: &'b mut u64,
}

impl Visitor for Collect<'_> {
    fn node(&mut self, _: BlockNr) -> bool {
        let may_read = *self.budget > 0 && self.map.extents.len() < self.extents_max;
        *self.budget = self.budget.saturating_sub(1);
        may_read
    }

    fn extent(&mut self, extent: Extent) {
        // Those out of order are damage that was reported.
        if u64::from(extent.logical.0) >= self.map.end()
            && self.map.extents.len() < self.extents_max
        {
            self.map.extents.push(extent);
        }
    }

    fn damage(&mut self, _: Corrupt) {}
}

/// A directory while its blocks are looked at.
struct Scan {
    format: DirectoryFormat,
    tree: Option<Tree>,
    names: HashSet<u64>,
    hasher: RandomState,
}

impl Checker<'_> {
    /// Checks the content of all directories.
    pub(super) fn check_directories(&mut self) -> Result<()> {
        let total = self.directories.len() as u64;
        let mut done = 0;
        // In a sound volume each block belongs to one directory at the most.
        self.walk_budget = self.image.geometry.blocks_count();
        self.for_each_used_inode(|checker, nr, inode| {
            // A directory that is an orphan is empty, and what it names does not count that.
            let state = checker.states.get(nr);
            if !state.is_some_and(|state| state.is_directory() && !state.is_nameless()) {
                return Ok(());
            }
            checker.check_directory(nr, inode)?;
            done += 1;
            checker.step(done, total)?;
            Ok(())
        })
    }

    /// The first block of a file.
    pub(super) fn first_block(
        &mut self,
        nr: InodeNr,
        inode: &InodeRef<'_>,
    ) -> Result<Option<BlockNr>> {
        Ok(self.map(nr, inode, 1)?.find(0))
    }

    /// Where a file's blocks lie, as far as its tree or map can be read.
    pub(super) fn map(
        &mut self,
        nr: InodeNr,
        inode: &InodeRef<'_>,
        extents_max: usize,
    ) -> Result<Map> {
        let mut collect = Collect {
            map: Map::default(),
            extents_max,
            budget: &mut self.walk_budget,
        };
        walk(&self.image, nr, inode, &mut collect)?;
        Ok(collect.map)
    }

    fn check_directory(&mut self, nr: InodeNr, inode: &InodeRef<'_>) -> Result<()> {
        let geometry = self.image.geometry.clone();
        let map = self.map(nr, inode, EXTENTS_MAX)?;
        if map.extents.len() == EXTENTS_MAX {
            let text = "a directory in too many pieces to be checked";
            self.findings.inode(FindingKind::Directory, nr, text);
        }
        self.report_holes(nr, &map);
        let format = DirectoryFormat::new(&geometry, nr, inode.generation());
        let is_indexed = inode.flags().contains(InodeFlags::INDEX)
            && geometry.compat.contains(Compat::DIR_INDEX);
        let tree = if is_indexed {
            self.check_tree(&format, &map)?
        } else {
            None
        };
        let mut scan = Scan {
            format,
            tree,
            names: HashSet::new(),
            hasher: RandomState::new(),
        };
        let per_read = READ_BYTES / geometry.block_size;
        let mut bytes = Vec::new();
        for extent in map.extents.iter().filter(|extent| !extent.unwritten) {
            let mut at = 0;
            while at < extent.len {
                let count = per_read.min(extent.len - at).max(1);
                let Some(left) = self.walk_budget.checked_sub(count.into()) else {
                    let text = "directories have more blocks than the volume";
                    self.findings.inode(FindingKind::Directory, nr, text);
                    return Ok(());
                };
                self.walk_budget = left;
                bytes.resize(count as usize * geometry.block_size as usize, 0);
                self.image
                    .read_into(extent.physical.plus(at.into()), &mut bytes)?;
                let blocks = bytes.chunks_exact(geometry.block_size as usize);
                for (index, block) in (extent.logical.0 + at..).zip(blocks) {
                    self.check_directory_block(&mut scan, LogicalBlock(index), block);
                }
                at += count;
            }
        }
        Ok(())
    }

    fn report_holes(&mut self, nr: InodeNr, map: &Map) {
        let mut end = 0;
        for extent in &map.extents {
            if u64::from(extent.logical.0) > end {
                let damage = Corrupt::DirectoryHole {
                    inode: nr,
                    block: end as u32,
                };
                self.findings.corrupt(FindingKind::Directory, nr, &damage);
            }
            end = extent.end();
        }
    }

    fn check_directory_block(&mut self, scan: &mut Scan, block: LogicalBlock, bytes: &[u8]) {
        let nr = scan.format.inode;
        if scan.tree.as_ref().is_some_and(|tree| tree.is_index(block)) {
            // The walk of the tree has checked it; of the root there are the dots left.
            if block == LogicalBlock(0) {
                let entries = Entries::of_root(&scan.format, bytes);
                self.check_entries(scan, block, bytes, entries);
            }
            return;
        }
        if !dirent::verify_checksum(scan.format.checksum_seed, bytes) {
            let damage = Corrupt::DirectoryChecksum { inode: nr, block };
            self.findings.corrupt(FindingKind::Directory, nr, &damage);
        }
        let entries = Entries::of_leaf(&scan.format, block, bytes);
        self.check_entries(scan, block, bytes, entries);
    }

    fn check_entries(
        &mut self,
        scan: &mut Scan,
        block: LogicalBlock,
        bytes: &[u8],
        entries: Entries<'_>,
    ) {
        let nr = scan.format.inode;
        for (index, entry) in entries.enumerate() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(Error::Corrupt(damage)) => {
                    self.findings.corrupt(FindingKind::Directory, nr, &damage);
                    return;
                }
                // There is no other.
                Err(_) => return,
            };
            let (raw, _) =
                RawDirent::ref_from_prefix(&bytes[entry.offset..]).expect("a checked record");
            if usize::from(raw.name_len) + DIRENT_HEADER_SIZE > entry.rec_len {
                let damage = Corrupt::DirectoryEntry {
                    inode: nr,
                    block,
                    offset: entry.offset as u32,
                };
                self.findings.corrupt(FindingKind::Directory, nr, &damage);
            }
            match (block.0, index) {
                (0, 0 | 1) => self.check_dot(scan, bytes, index, &entry),
                _ if entry.is_used() => self.check_entry(scan, block, &entry),
                _ => {}
            }
        }
    }

    /// The first two entries of a directory.
    fn check_dot(&mut self, scan: &mut Scan, bytes: &[u8], index: usize, entry: &EntryRef<'_>) {
        let nr = scan.format.inode;
        let name: &[u8] = if index == 0 { b"." } else { b".." };
        let is_right = entry.is_used()
            && entry.name == name
            && (index == 1 || entry.inode == nr.0 && entry.rec_len == dirent_size(1));
        // Readers of old compare these names as strings of C.
        let is_right =
            is_right && bytes.get(entry.offset + DIRENT_HEADER_SIZE + name.len()) == Some(&0);
        if !is_right {
            let damage = Corrupt::DirectoryDots { inode: nr };
            self.findings.corrupt(FindingKind::Directory, nr, &damage);
            if entry.is_used() && entry.name != name {
                self.check_entry(scan, LogicalBlock(0), entry);
                return;
            }
        }
        if !entry.is_used() {
            return;
        }
        if index == 1
            && let Some(directory) = self.directory_mut(nr)
        {
            directory.dot_dot = InodeNr(entry.inode);
        }
        scan.names.insert(scan.hasher.hash_one(entry.name));
        self.check_target(scan, entry);
    }

    fn check_entry(&mut self, scan: &mut Scan, block: LogicalBlock, entry: &EntryRef<'_>) {
        let nr = scan.format.inode;
        let offset = entry.offset as u32;
        if entry.name.contains(&b'/') || entry.name.contains(&0) {
            let damage = Corrupt::DirectoryName {
                inode: nr,
                block,
                offset,
            };
            self.findings.corrupt(FindingKind::Entry, nr, &damage);
        }
        if scan.names.len() >= NAMES_MAX {
            scan.names.clear();
        }
        if !scan.names.insert(scan.hasher.hash_one(entry.name)) {
            self.entry_error(nr, entry, "is there twice");
        }
        if let Some(tree) = &scan.tree
            && let Some(damage) = tree.misplaced(nr, block, entry.name)
        {
            self.findings.corrupt(FindingKind::HashTree, nr, &damage);
        }
        let is_directory = self.check_target(scan, entry);
        if nr == InodeNr::ROOT && entry.name == b"lost+found" {
            self.has_lost_found = true;
            if !is_directory {
                self.entry_error(nr, entry, "is not a directory");
            }
        }
        if is_directory {
            self.note_parent(nr, entry);
        }
    }

    fn entry_error(&mut self, nr: InodeNr, entry: &EntryRef<'_>, what: &str) {
        self.entry_finding(Severity::Error, nr, entry, what);
    }

    fn entry_finding(&mut self, severity: Severity, nr: InodeNr, entry: &EntryRef<'_>, what: &str) {
        let text = format!(
            "directory {nr}: the entry '{}' {what}",
            entry.name.escape_ascii()
        );
        let mut finding = Finding::error(FindingKind::Entry, text).inode(nr);
        finding.severity = severity;
        self.findings.add(finding);
    }

    /// Checks the inode that an entry names and counts the name. Whether it is a directory.
    fn check_target(&mut self, scan: &Scan, entry: &EntryRef<'_>) -> bool {
        let nr = scan.format.inode;
        let geometry = &self.image.geometry;
        let target = InodeNr(entry.inode);
        let is_reserved = target < geometry.first_inode && target != InodeNr::ROOT;
        if is_reserved || target.0 > geometry.inodes_count() {
            let what = format!("names inode {target}, which no file can have");
            self.entry_error(nr, entry, &what);
            return false;
        }
        let Some(state) = self.states.get_mut(target) else {
            let damage = Corrupt::EntryOfFreeInode {
                directory: nr,
                inode: target,
            };
            self.findings.corrupt(FindingKind::Entry, nr, &damage);
            return false;
        };
        state.names = state.names.saturating_add(1);
        let state = *state;
        let expected = if scan.format.has_file_type {
            state.file_type
        } else {
            FileType::Unknown as u8
        };
        if entry.file_type != expected {
            let what = format!("has type {} instead of {expected}", entry.file_type);
            if entry.file_type == FileType::Unknown as u8 {
                // Whoever wants to know asks the inode.
                self.entry_finding(Severity::Warning, nr, entry, &what);
            } else {
                self.entry_error(nr, entry, &what);
            }
        }
        state.is_directory()
    }

    /// Notes that a directory has a name.
    fn note_parent(&mut self, parent: InodeNr, entry: &EntryRef<'_>) {
        let target = InodeNr(entry.inode);
        if target == InodeNr::ROOT {
            self.entry_error(parent, entry, "names the root");
            return;
        }
        let Some(directory) = self.directory_mut(target) else {
            return;
        };
        if directory.parent == InodeNr(0) {
            directory.parent = parent;
        } else {
            let what = format!("is a second name of directory {target}");
            self.entry_error(parent, entry, &what);
        }
    }
}
