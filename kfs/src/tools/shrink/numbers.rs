//! Inodes whose places lie behind the new end get other numbers: one transaction each, in which the inode is
//! copied to its new place, all entries that named it name the new one, and the old place is freed.
//!
//! The checksums of a directory's blocks and of nodes of extent trees begin with number and generation of
//! the inode. The new inode gets that generation with which they begin with the same value, so that none of
//! these blocks has to change.

use super::survey::raw_inode;
use super::{ShrinkPhase, ShrinkProgress, Watch, refused};
use crate::allocator::{ALLOCATE_INODE_CREDITS, FREE_INODE_CREDITS};
use crate::checksum::crc32c_patch;
use crate::dir::{Directory, DirectoryBlocks, NamingBlock};
use crate::error::Result;
use crate::fs::{Filesystem, InodeBlocks};
use crate::ids::{GroupNr, InodeNr, LogicalBlock};
use crate::inode::Inode;
use crate::layout::Geometry;
use crate::layout::inode::{InodeBytes, S_IFDIR, S_IFMT};
use std::collections::HashMap;
use std::sync::Arc;

/// Inodes whose names are looked up in one walk over all directories: bounds the memory.
const INODES_A_WALK: usize = 1 << 20;

/// A block of a directory.
type Place = (InodeNr, LogicalBlock);

/// Gives other numbers to inodes.
pub(super) struct Renumber<'r, 'w> {
    fs: &'r Filesystem,
    /// The lowest number that goes.
    from: InodeNr,
    done: u64,
    total: u64,
    /// New numbers of directories, by the old ones.
    directories: HashMap<InodeNr, InodeNr>,
    watch: &'r mut Watch<'w>,
}

impl<'r, 'w> Renumber<'r, 'w> {
    pub(super) fn new(fs: &'r Filesystem, from: InodeNr, watch: &'r mut Watch<'w>) -> Self {
        Self {
            fs,
            from,
            done: 0,
            total: 0,
            directories: HashMap::new(),
            watch,
        }
    }

    /// Gives all these inodes other numbers. Returns false when it was stopped.
    pub(super) fn run(&mut self, inodes: &[InodeNr]) -> Result<bool> {
        self.total = inodes.len() as u64;
        for some in inodes.chunks(INODES_A_WALK) {
            let names = self.names_of(some)?;
            for &nr in some {
                let places = names.get(&nr).filter(|places| !places.is_empty());
                let places = places.ok_or_else(|| {
                    refused(format!("no directory names inode {nr}: run e2fsck first"))
                })?;
                self.renumber(nr, places)?;
                self.done += 1;
                let progress = ShrinkProgress {
                    phase: ShrinkPhase::Renumber,
                    done: self.done,
                    total: self.total,
                };
                if (self.watch)(progress).is_break() {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The blocks of directories that name each of these inodes, found in one walk.
    fn names_of(&self, inodes: &[InodeNr]) -> Result<HashMap<InodeNr, Vec<Place>>> {
        let volume = &*self.fs.volume;
        let mut names: HashMap<InodeNr, Vec<Place>> =
            inodes.iter().map(|&nr| (nr, Vec::new())).collect();
        for group in (0..volume.geometry.groups_count()).map(GroupNr) {
            for nr in volume.allocator.used_inodes(group)? {
                if raw_inode(volume, nr)?.mode() & S_IFMT != S_IFDIR {
                    continue;
                }
                let inode = self.fs.inodes.get(volume, nr)?;
                let blocks = InodeBlocks::new(volume, &inode);
                let count = blocks.blocks_count();
                let directory = Directory::new(blocks);
                for block in (0..count).map(LogicalBlock) {
                    for found in directory.inodes_from(block, self.from)? {
                        if let Some(places) = names.get_mut(&found) {
                            places.push((nr, block));
                        }
                    }
                }
            }
        }
        Ok(names)
    }

    fn renumber(&mut self, nr: InodeNr, places: &[Place]) -> Result<()> {
        let volume = &*self.fs.volume;
        let geometry = &volume.geometry;
        let bytes = raw_inode(volume, nr)?;
        let is_directory = bytes.mode() & S_IFMT == S_IFDIR;
        let old = self.fs.inodes.get(volume, nr)?;
        let naming = self.naming_blocks(nr, places)?;
        let parent = naming.iter().map(|(inode, _)| inode.nr());
        let parent = parent.filter(|nr| *nr < self.from).min();
        let parent = parent.unwrap_or(InodeNr::ROOT);
        let credits = ALLOCATE_INODE_CREDITS + FREE_INODE_CREDITS + 2 + naming.len() as u32;
        if credits > volume.journal.large_credits_max() {
            return Err(refused(format!(
                "inode {nr} has too many names, or subdirectories, for the journal to give it another number at once: make a larger journal, with tune2fs -O ^has_journal and tune2fs -J size="
            )));
        }
        volume.allocator.check_free_inode(nr)?;
        let (old_block, old_offset) = volume.allocator.inode_block(nr)?;
        let old_table = volume.cache.get(old_block)?;
        let reservation = self
            .fs
            .with_space(|| volume.allocator.reserve_inode(parent, is_directory))?;
        let (new_block, new_offset) = volume.allocator.inode_block(reservation.inode())?;
        let new_table = volume.cache.get(new_block)?;
        let size = geometry.inode_size as usize;
        let new = volume.transact_large(credits, |handle| {
            let new = volume.allocator.allocate_inode(handle, reservation);
            let moved = moved(geometry, bytes, nr, new);
            handle.get_write_access(&new_table)[new_offset..new_offset + size]
                .copy_from_slice(moved.bytes());
            handle.get_write_access(&old_table)[old_offset..old_offset + size].fill(0);
            for (directory, block) in &naming {
                let blocks = InodeBlocks::new(volume, directory);
                Directory::new(blocks).rename_inode(handle, block, new);
            }
            volume.allocator.free_inode(handle, nr, is_directory)?;
            Ok(new)
        })?;
        old.set_deleted();
        if is_directory {
            self.directories.insert(nr, new);
        }
        Ok(())
    }

    /// Reads the blocks that name an inode.
    fn naming_blocks(
        &self,
        nr: InodeNr,
        places: &[Place],
    ) -> Result<Vec<(Arc<Inode>, NamingBlock)>> {
        let volume = &*self.fs.volume;
        let mut naming = Vec::with_capacity(places.len());
        for (directory, block) in places {
            let directory = self.directories.get(directory).unwrap_or(directory);
            let inode = self.fs.inodes.get(volume, *directory)?;
            let found =
                Directory::new(InodeBlocks::new(volume, &inode)).naming_block(*block, nr)?;
            naming.push((inode, found));
        }
        Ok(naming)
    }
}

/// The inode under its new number.
fn moved(
    geometry: &Geometry,
    mut inode: InodeBytes<Vec<u8>>,
    old: InodeNr,
    new: InodeNr,
) -> InodeBytes<Vec<u8>> {
    let wanted = geometry.inode_seed(old, inode.generation());
    if let (Some(seed), Some(wanted)) = (geometry.csum_seed, wanted) {
        let generation = crc32c_patch(seed, &new.0.to_le_bytes(), &[], wanted);
        inode.set_generation(u32::from_le_bytes(generation));
    }
    inode.update_checksum(geometry, new);
    inode
}
