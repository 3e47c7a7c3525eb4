//! What lies behind the new end of a volume, and whether it fits before it. Changes nothing.

use super::{ShrinkPhase, ShrinkProgress, Watch, refused};
use crate::error::{Error, Result};
use crate::extent::{ExtentTree, IndirectMap};
use crate::fs::{Filesystem, shortened, worthwhile};
use crate::ids::{BlockNr, GroupNr, InodeNr, LogicalBlock};
use crate::layout::inode::{InodeBytes, InodeFlags, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::volume::Volume;
use std::collections::HashSet;
use std::ops::ControlFlow;

/// Number of the resize inode, whose blocks are those kept for descriptors.
const RESIZE_INODE: InodeNr = InodeNr(7);

/// What lies behind the new end.
pub(super) struct Survey {
    /// The first block that goes.
    end: BlockNr,
    /// Blocks to be moved.
    pub(super) move_blocks: u64,
    /// Inodes that have some of them.
    pub(super) with_blocks: Vec<InodeNr>,
    /// Blocks of the journal, if any of it lies behind the end.
    journal_blocks: u64,
    journal_behind: u64,
    /// Inodes whose own places go.
    pub(super) inodes_behind: Vec<InodeNr>,
    /// Blocks of attributes, which inodes may share.
    xattr_blocks: HashSet<u64>,
    /// Runs of free blocks before the end.
    free_runs: u64,
}

/// Blocks before `end` that may be files': what is fixed metadata now stays until the end goes.
fn room_before(volume: &Volume, end: u64) -> u64 {
    let first = u64::from(volume.geometry.first_data_block);
    let fixed = volume.allocator.fixed_before(BlockNr(end));
    end.saturating_sub(first).saturating_sub(fixed)
}

/// Blocks in use that are no fixed metadata.
fn data_blocks(volume: &Volume) -> u64 {
    let free = volume.allocator.free_counts().blocks;
    room_before(volume, volume.geometry.blocks_count()).saturating_sub(free)
}

fn used_inodes(volume: &Volume) -> u64 {
    let free = volume.allocator.free_counts().inodes;
    u64::from(volume.geometry.inodes_count().saturating_sub(free))
}

/// Blocks that moving may need for more nodes: files fall apart where free space is in pieces.
fn spare(moved: u64, free_runs: u64) -> u64 {
    if moved == 0 {
        0
    } else {
        8 + moved.min(free_runs) / 2
    }
}

/// Whether so many blocks and inodes have room in a volume of this size.
fn has_room(volume: &Volume, blocks_count: u64, data: u64, inodes: u64) -> bool {
    let after = shortened(&volume.geometry, blocks_count);
    room_before(volume, blocks_count) >= data && u64::from(after.inodes_count()) >= inodes
}

impl Survey {
    /// Blocks that the volume has at least, about, when it is made as small as can be.
    pub(super) fn minimum(fs: &Filesystem) -> Result<u64> {
        let volume = &*fs.volume;
        let geometry = &volume.geometry;
        let mut free_runs = 0;
        for group in (0..geometry.groups_count()).map(GroupNr) {
            free_runs += u64::from(volume.allocator.free_runs(group, u32::MAX)?.1);
        }
        let data = data_blocks(volume);
        let data = data + spare(data, free_runs);
        let inodes = used_inodes(volume);
        let (mut too_few, mut blocks) = (0, geometry.blocks_count());
        while blocks - too_few > 1 {
            let half = too_few + (blocks - too_few) / 2;
            if has_room(volume, half, data, inodes) {
                blocks = half;
            } else {
                too_few = half;
            }
        }
        // A last group that is too small is none.
        while blocks < geometry.blocks_count() && worthwhile(geometry, blocks) != blocks {
            blocks += 1;
        }
        Ok(blocks)
    }

    /// Fails when what is in use has no room in so many blocks.
    pub(super) fn check_size(fs: &Filesystem, target: u64) -> Result<()> {
        Self::check_room(fs, target, data_blocks(&fs.volume))
    }

    fn check_room(fs: &Filesystem, target: u64, data: u64) -> Result<()> {
        let volume = &*fs.volume;
        if has_room(volume, target, data, used_inodes(volume)) {
            return Ok(());
        }
        let minimum = BlockNr(Self::minimum(fs)?);
        Err(Error::TooSmall {
            minimum_bytes: volume.geometry.offset_of(minimum),
        })
    }

    /// Looks at all inodes. `None` when it was stopped.
    pub(super) fn take(
        fs: &Filesystem,
        target: u64,
        watch: &mut Watch<'_>,
    ) -> Result<Option<Self>> {
        let volume = &*fs.volume;
        let mut survey = Self {
            end: BlockNr(target),
            move_blocks: 0,
            with_blocks: Vec::new(),
            journal_blocks: 0,
            journal_behind: 0,
            inodes_behind: Vec::new(),
            xattr_blocks: HashSet::new(),
            free_runs: 0,
        };
        let groups = volume.geometry.groups_count();
        for group in 0..groups {
            let progress = ShrinkProgress {
                phase: ShrinkPhase::Survey,
                done: group.into(),
                total: groups.into(),
            };
            if watch(progress).is_break() {
                return Ok(None);
            }
            survey.look_at_group(volume, GroupNr(group))?;
        }
        let found = volume.allocator.used_behind(survey.end)?;
        if found != survey.move_blocks {
            return Err(refused(format!(
                "{found} blocks behind the new end are in use, and {} of them belong to files: run e2fsck first",
                survey.move_blocks
            )));
        }
        Ok(Some(survey))
    }

    fn look_at_group(&mut self, volume: &Volume, group: GroupNr) -> Result<()> {
        let geometry = &volume.geometry;
        self.check_metadata(volume, group)?;
        let first = geometry.group_first_block(group).0;
        let before = self.end.0.saturating_sub(first);
        let before = u32::try_from(before).unwrap_or(u32::MAX);
        self.free_runs += u64::from(volume.allocator.free_runs(group, before)?.1);
        for nr in volume.allocator.used_inodes(group)? {
            if nr == RESIZE_INODE {
                continue;
            }
            if before == 0 {
                self.inodes_behind.push(nr);
            }
            self.look_at_inode(volume, nr, before == 0)?;
        }
        Ok(())
    }

    /// What belongs to a group that stays has to stay, and what belongs to one that goes, to go with it.
    fn check_metadata(&self, volume: &Volume, group: GroupNr) -> Result<()> {
        let geometry = &volume.geometry;
        let first = geometry.group_first_block(group).0;
        let end = match first < self.end.0 {
            true => self.end.0,
            false => first + u64::from(geometry.blocks_in_group(group)),
        };
        for run in volume.allocator.metadata_runs(group)? {
            if run.end().0 > end {
                return Err(refused(format!(
                    "metadata of group {group} is at block {}, behind the new end or in a group after it; a larger size may do",
                    run.start
                )));
            }
        }
        Ok(())
    }

    fn look_at_inode(&mut self, volume: &Volume, nr: InodeNr, is_behind: bool) -> Result<()> {
        let geometry = &volume.geometry;
        let inode = raw_inode(volume, nr)?;
        let is_reserved = nr < geometry.first_inode;
        if inode.links_count() == 0 && !is_reserved && geometry.orphan_file_inode != Some(nr) {
            return Err(refused(format!(
                "inode {nr} was deleted and is not freed: run e2fsck first"
            )));
        }
        let is_own = is_reserved
            || geometry.journal_inode == Some(nr)
            || geometry.orphan_file_inode == Some(nr);
        if is_behind && is_own {
            return Err(refused(format!(
                "the volume's own inode {nr} lies behind the new end; a larger size may do"
            )));
        }
        let mut blocks = 0;
        let kind = inode.mode() & S_IFMT;
        if matches!(kind, S_IFREG | S_IFDIR | S_IFLNK) || nr == InodeNr(1) {
            blocks += self.blocks_behind(volume, nr, &inode)?;
        }
        let acl = inode.file_acl();
        let has_acl = acl >= self.end.0;
        if has_acl && self.xattr_blocks.insert(acl) {
            blocks += 1;
        }
        if blocks > 0 || has_acl {
            if geometry.journal_inode == Some(nr) && inode.flags().contains(InodeFlags::EXTENTS) {
                self.move_blocks += blocks;
                self.journal_blocks =
                    inode.blocks_512(geometry) / u64::from(geometry.block_size / 512);
                self.journal_behind = blocks;
                return Ok(());
            }
            if is_own && nr != InodeNr::ROOT {
                return Err(refused(format!(
                    "blocks of the volume's own inode {nr} lie behind the new end, the first that it could lose is block {}",
                    self.end
                )));
            }
            self.move_blocks += blocks;
            self.with_blocks.push(nr);
        }
        Ok(())
    }

    /// Blocks of an inode, of data and of its tree, that lie behind the end.
    fn blocks_behind(
        &self,
        volume: &Volume,
        nr: InodeNr,
        inode: &InodeBytes<Vec<u8>>,
    ) -> Result<u64> {
        let (geometry, root) = (&volume.geometry, inode.block_area());
        if !inode.flags().contains(InodeFlags::EXTENTS) {
            let is_link = inode.mode() & S_IFMT == S_IFLNK;
            let acl = u64::from(inode.file_acl() != 0) * u64::from(geometry.block_size / 512);
            // The target of a short link is where the map of others is.
            if is_link && inode.blocks_512(geometry) <= acl {
                return Ok(0);
            }
            let map = IndirectMap::new(&volume.cache, geometry, nr);
            if map.reaches(root, self.end)? {
                return Err(refused(format!(
                    "inode {nr} has a block map as in ext2, which kfs does not move: copy the file and delete it (debugfs -R 'ncheck {nr}' tells its name)"
                )));
            }
            return Ok(0);
        }
        let tree = ExtentTree::new(&volume.cache, geometry, nr, inode.generation());
        let mut blocks = 0;
        tree.for_each_node(root, |block| {
            blocks += u64::from(block >= self.end);
            Ok(())
        })?;
        tree.for_each(root, LogicalBlock(0), |extent| {
            let end = extent.physical.0 + u64::from(extent.len);
            blocks += end.saturating_sub(extent.physical.0.max(self.end.0));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(blocks)
    }

    /// Whether the journal is to be moved.
    pub(super) fn has_journal(&self) -> bool {
        self.journal_behind > 0
    }

    /// Blocks of the journal, if it is to be moved.
    pub(super) fn journal_blocks(&self) -> u64 {
        self.journal_blocks
    }

    /// Whether all has room before the end.
    pub(super) fn check_fit(&self, fs: &Filesystem) -> Result<()> {
        let volume = &*fs.volume;
        let data = data_blocks(volume) + spare(self.move_blocks, self.free_runs);
        log::info!(
            "shrinking to {} blocks: {} of {data} in use are moved, {} runs are free before the end, {} inodes are in use, {} get other numbers",
            self.end,
            self.move_blocks,
            self.free_runs,
            used_inodes(volume),
            self.inodes_behind.len()
        );
        Self::check_room(fs, self.end.0, data)?;
        // All of the journal is moved, also what lies before the end.
        let twice = self.journal_blocks - self.journal_behind.min(self.journal_blocks);
        if has_room(volume, self.end.0, data + twice, 0) {
            return Ok(());
        }
        Err(refused(
            "its journal lies on both sides of the new end, and there is no room for another one before it: a larger size may do, or a smaller journal (tune2fs -O ^has_journal, then tune2fs -J size=)",
        ))
    }
}

/// An inode as the table has it, checked. Reserved ones that nobody has made may be zeros.
pub(super) fn raw_inode(volume: &Volume, nr: InodeNr) -> Result<InodeBytes<Vec<u8>>> {
    let (block, offset) = volume.allocator.inode_block(nr)?;
    let table = volume.cache.get(block)?;
    let end = offset + volume.geometry.inode_size as usize;
    let inode = InodeBytes::new(table.read()[offset..end].to_vec());
    let is_made = inode.bytes().iter().any(|byte| *byte != 0);
    if is_made && !inode.verify_checksum(&volume.geometry, nr) {
        return Err(crate::corrupt::Corrupt::InodeChecksum { inode: nr }.into());
    }
    Ok(inode)
}
