//! Inodes that recovery, or lack of room, has left something to do for: deleted ones, and ones that a
//! truncation has not cut yet.

use super::Filesystem;
use crate::checksum::inode_seed;
use crate::corrupt::Corrupt;
use crate::error::{Error, IoOp, Result};
use crate::extent::Mapping;
use crate::ids::{InodeNr, LogicalBlock};
use crate::inode::orphan::read_list;
use crate::inode::{CREDITS_ORPHAN, Inode};
use crate::layout::superblock::RawSuperblock;
use std::sync::Arc;

impl Filesystem {
    /// Deletes inodes without names and finishes truncates that a crash interrupted. Returns how many.
    pub(super) fn finish_orphans(&self, superblock: &RawSuperblock) -> Result<u32> {
        let mut orphans = Vec::new();
        if let Some(nr) = self.volume.geometry.orphan_file_inode {
            orphans.extend(self.load_orphan_file(nr)?);
        }
        let first = InodeNr(superblock.s_last_orphan.get());
        let listed = read_list(&self.volume, &self.inodes, first)?;
        for inode in listed.iter().rev() {
            self.orphans.adopt_from_list(Arc::clone(inode));
        }
        orphans.extend(listed);
        let count = u32::try_from(orphans.len()).unwrap_or(u32::MAX);
        if count > 0 {
            log::info!("finishing what {count} orphan inodes need");
        }
        for inode in &orphans {
            self.settle(inode, self.finish_orphan(inode))?;
        }
        Ok(count)
    }

    /// At the end: all clients are gone.
    pub(super) fn finish_all_orphans(&self) -> Result<()> {
        for inode in self.orphans.all() {
            self.settle(&inode, self.finish_orphan(&inode))?;
        }
        Ok(())
    }

    /// Finishes what had to wait for room in the snapshot store. Files that clients hold open stay. What
    /// fails stays for the next time.
    pub(super) fn finish_waiting_orphans(&self) {
        for inode in self.orphans.all() {
            let finished = self.finish_waiting(&inode);
            if let Err(error) = self.settle(&inode, finished) {
                log::error!("inode {} stays an orphan: {error}", inode.nr());
            }
        }
    }

    fn finish_waiting(&self, inode: &Arc<Inode>) -> Result<()> {
        let is_cut = inode.is_being_cut();
        if is_cut {
            self.file(inode).finish_truncate()?;
        }
        if is_cut || inode.is_deletion_due() {
            self.delete_unreferenced(inode)?;
        }
        Ok(())
    }

    /// What one file cannot do is no reason to keep all others from their owner: it stays an orphan.
    fn settle(&self, inode: &Inode, finished: Result<()>) -> Result<()> {
        match finished {
            // Somebody else was faster.
            Err(Error::Stale) => Ok(()),
            // Even freeing takes room in the snapshot store. Without an open volume no snapshot could be
            // deleted to make room.
            Err(error @ (Error::NoSpace | Error::SnapshotStoreFull)) => {
                let nr = inode.nr();
                log::warn!("blocks that file {nr} had are not free yet: {error}");
                Ok(())
            }
            Err(error @ Error::Corrupt(_)) if !self.volume.journal.is_aborted() => {
                log::error!("inode {} stays an orphan", inode.nr());
                self.note(&error);
                Ok(())
            }
            // So does one that comes after damage that has ended all changes, and one whose blocks
            // cannot be read.
            Err(error @ (Error::ReadOnly { .. } | Error::Io { op: IoOp::Read, .. }))
                if !self.volume.journal.is_aborted() =>
            {
                log::error!("inode {} stays an orphan: {error}", inode.nr());
                Ok(())
            }
            other => other,
        }
    }

    fn finish_orphan(&self, inode: &Arc<Inode>) -> Result<()> {
        if inode.state().fields().links_count() == 0 {
            return self.delete(inode);
        }
        if inode.is_regular() {
            return self.file(inode).finish_truncate();
        }
        self.volume.transact(CREDITS_ORPHAN, |handle| {
            self.orphans.remove(&self.volume, handle, inode);
            Ok(())
        })
    }

    fn load_orphan_file(&self, nr: InodeNr) -> Result<Vec<Arc<Inode>>> {
        let volume = &self.volume;
        let file = self.inodes.get(volume, nr)?;
        let count = file.size_bytes() >> volume.geometry.block_size_bits;
        let mut blocks = Vec::new();
        for index in 0..u32::try_from(count).unwrap_or(0) {
            match file.map(volume, LogicalBlock(index), 1)? {
                Mapping::Mapped { physical, .. } => {
                    blocks.push(volume.cache.get(physical)?);
                }
                _ => {
                    return Err(Corrupt::DirectoryHole {
                        inode: nr,
                        block: index,
                    }
                    .into());
                }
            }
        }
        let seed = volume
            .geometry
            .csum_seed
            .map(|seed| inode_seed(seed, nr.0, file.generation()));
        let mut orphans = Vec::new();
        for (nr, slot) in self.orphans.load_file(volume, blocks, seed)? {
            if nr < volume.geometry.first_inode {
                return Err(Corrupt::OrphanList { inode: nr }.into());
            }
            let inode = self.inodes.get_orphan(volume, nr)?;
            self.orphans.adopt_from_file(Arc::clone(&inode), slot);
            orphans.push(inode);
        }
        Ok(orphans)
    }
}
