//! Sync and close: everything durable, and the image marked clean.

use super::Filesystem;
use super::superblock::{mark_error, read_superblock, write_second_sector, write_superblock};
use crate::error::{Error, ReadOnlyReason, Result};
use crate::inode::Inode;
use crate::layout::superblock::STATE_VALID;
use crate::layout::{Compat, Incompat, RawSuperblock, RoCompat};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::IntoBytes;

impl Filesystem {
    /// Makes everything durable, as sync(2).
    ///
    /// # Errors
    /// What the device reports.
    pub fn sync(&self) -> Result<()> {
        match self.volume.read_only() {
            Some(reason @ ReadOnlyReason::Error) => Err(Error::ReadOnly { reason }),
            Some(_) => Ok(()),
            None => self.volume.journal.commit_all(),
        }
    }

    /// Makes one inode durable, as fsync(2), or what is needed to read its data, as fdatasync(2).
    ///
    /// # Errors
    /// What the device reports.
    pub fn fsync(&self, inode: &Inode, data_only: bool) -> Result<()> {
        match self.volume.read_only() {
            Some(reason @ ReadOnlyReason::Error) => return Err(Error::ReadOnly { reason }),
            Some(_) => return Ok(()),
            None => {}
        }
        let tid = inode.state().sync_tid(data_only);
        match tid {
            Some(tid) if !self.volume.journal.is_committed(tid) => {
                self.volume.journal.commit_with_data(tid)
            }
            _ => self.volume.flush(),
        }
    }

    /// Commits, writes everything to its place and marks the image clean. After that the volume takes
    /// no changes. Does nothing the second time.
    ///
    /// # Errors
    /// What the device reports: the image needs recovery then, which the next open does.
    pub fn close(&self) -> Result<()> {
        self.end_freezes();
        if let Some(mut committer) = self.committer.lock().take() {
            committer.stop();
        }
        match self.volume.read_only() {
            Some(ReadOnlyReason::Error) if self.volume.journal.is_aborted() => {
                return self.mark_error();
            }
            // Damage was found, and nothing was changed since: what was changed before is whole.
            Some(ReadOnlyReason::Error) => return self.finish(),
            Some(_) => return Ok(()),
            None => {}
        }
        for inode in self.inodes.in_memory() {
            inode.drop_preallocation();
        }
        // An orphan that stays one is no reason not to commit what all others have done.
        let orphans = self.finish_all_orphans();
        // A change of size may have been left half-way, by whom nobody waits for any more.
        let copies = match self.has_old_copies.load(Ordering::Relaxed) {
            true => self.refresh_all_copies(),
            false => Ok(()),
        };
        let finished = match self.volume.journal.is_aborted() {
            true => self.mark_error(),
            false => self.finish(),
        };
        orphans.and(copies).and(finished)
    }

    /// Ends the journal, brings the superblock's counts up to date (between times they are old, as
    /// in Linux: the group descriptors have the truth) and marks the image clean.
    fn finish(&self) -> Result<()> {
        let journal = &self.volume.journal;
        // Nobody gets a handle from here on; the commit waits for those who have one.
        journal.close();
        self.volume.set_read_only(ReadOnlyReason::Closed);
        journal.commit_all()?;
        journal.checkpoint()?;
        journal.mark_empty()?;
        self.volume.snapshots.close()?;
        let mut superblock = read_superblock(&**self.volume.device())?;
        self.settle_size(&mut superblock)?;
        self.settle_superblock(&mut superblock);
        mark_clean(&mut superblock, self.was_clean);
        write_superblock(&**self.volume.device(), &mut superblock)
    }

    /// Brings in line what has changed with the size of the volume and lies in the superblock's second
    /// sector, with the checksum: a disk writes a sector as a whole, so the first must not change with it
    /// ([`RawSuperblock::seal`]). Nobody relies on it: until the volume is closed it may be old.
    fn settle_size(&self, superblock: &mut RawSuperblock) -> Result<()> {
        let before = superblock.as_bytes().to_vec();
        let now = self.overhead_blocks.load(Ordering::Relaxed);
        let old = u64::from(superblock.s_overhead_clusters.get());
        if old != 0 {
            let overhead = (old + now).saturating_sub(self.overhead_before);
            // 0 is for whoever wants to know to find out.
            let overhead = u32::try_from(overhead).unwrap_or(0);
            let is_possible = u64::from(overhead) < self.volume.geometry.blocks_count();
            let overhead = if is_possible { overhead } else { 0 };
            superblock.s_overhead_clusters.set(overhead);
        }
        if superblock.compat().contains(Compat::SPARSE_SUPER2) {
            let groups = self.volume.geometry.groups_count();
            for group in &mut superblock.s_backup_bgs {
                if group.get() >= groups {
                    group.set(0);
                }
            }
        }
        if superblock.as_bytes() == before {
            return Ok(());
        }
        superblock.update_checksum();
        write_second_sector(&**self.volume.device(), superblock)
    }

    /// Brings what is old in the superblock up to date.
    pub(super) fn settle_superblock(&self, superblock: &mut RawSuperblock) {
        let counts = self.volume.allocator.free_counts();
        superblock.set_free_blocks_count(counts.blocks);
        superblock.s_free_inodes_count.set(counts.inodes);
        superblock.set_write_time(self.volume.now().seconds);
        // Where opening has failed half-way nobody knows, and damage keeps some from being deleted.
        if self.orphans.have_empty_file() {
            let ro_compat = superblock.ro_compat() - RoCompat::ORPHAN_PRESENT;
            superblock.s_feature_ro_compat.set(ro_compat.bits());
        }
    }

    /// After an abort: leaves the journal for recovery and tells e2fsck that it is wanted. In the
    /// journal, too, as its recovery may bring an older superblock back.
    fn mark_error(&self) -> Result<()> {
        if self.volume.device().is_read_only() {
            return Ok(());
        }
        let noted = self.volume.journal.record_error();
        mark_error(&**self.volume.device()).and(noted)
    }

    /// Forgets metadata that can be read again.
    pub fn drop_caches(&self) {
        self.volume.cache.drop_clean();
    }

    /// Drops references of clients; an inode without names goes with the last one.
    ///
    /// # Errors
    /// What deleting the inode reports.
    pub fn release(&self, inode: &Arc<Inode>, count: u64) -> Result<()> {
        if inode.drop_references(count) > 0 {
            return Ok(());
        }
        inode.drop_preallocation();
        let links = inode.state().fields().links_count();
        if links > 0 || inode.is_deleted() || self.volume.read_only().is_some() {
            return Ok(());
        }
        self.delete_unreferenced(inode)
    }

    /// Takes references for a client: while it has any, the inode stays though its names go.
    pub fn acquire(&self, inode: &Arc<Inode>, count: u64) {
        inode.add_references(count);
    }
}

pub(super) fn mark_clean(superblock: &mut RawSuperblock, was_clean: bool) {
    let incompat = superblock.incompat() - Incompat::RECOVER;
    superblock.s_feature_incompat.set(incompat.bits());
    // Without a journal, what an earlier crash has left is for e2fsck to find.
    if !superblock.compat().contains(Compat::HAS_JOURNAL) && was_clean {
        superblock
            .s_state
            .set(superblock.s_state.get() | STATE_VALID);
    }
}
