//! Changing the size of a file, and taking blocks away.

use super::File;
use super::write::{CREDITS_RUN, CREDITS_SIZE, WriteOptions};
use crate::allocator::{BlockRequest, Reservation};
use crate::error::{Error, Result};
use crate::extent::{LOGICAL_END, Mapping, REWRITE_CREDITS_MIN, TRIM_CREDITS, step_credits};
use crate::ids::LogicalBlock;
use crate::inode::{CREDITS_INODE, InodeState, Removal};
use crate::storage::Handle;
use std::io::{IoSlice, IoSliceMut};

/// Credits for one step of taking blocks away from a file of a few extents, which it takes all.
const REMOVAL_CREDITS_FEW: u32 = REWRITE_CREDITS_MIN + 16;

/// Credits for one step in a larger tree. More would do more in a step, but a handle that asks for
/// much of a transaction makes others wait for a commit.
const REMOVAL_CREDITS_MANY: u32 = REWRITE_CREDITS_MIN + 128;

/// A new block for the last, now partial, block of a file: the part that stays, and zeros.
///
/// Zeroing the rest in place would destroy data that a crash brings back with the old size.
struct Tail {
    logical: LogicalBlock,
    reservation: Reservation,
}

impl File<'_> {
    /// Makes the file `size` bytes long: cuts it, or adds a hole.
    ///
    /// The change of size is one transaction, whatever the file's length: if the blocks cannot be
    /// freed in the same one, the inode is an orphan until they are, and recovery goes on.
    ///
    /// # Errors
    /// `FileTooLarge`, `ReadOnly`, `Io`, `Corrupt`.
    pub(crate) fn set_size(self, size: u64, options: WriteOptions) -> Result<()> {
        self.check_range(size, 0)?;
        let _io = self.inode.io.write();
        let _data = self.volume.begin_data_write();
        self.check_alive()?;
        self.inode.drop_preallocation();
        let before = self.inode.size_bytes();
        self.prepare_growth(size, size)?;
        let tail = if size < before {
            self.plan_tail(size)?
        } else {
            None
        };
        if size >= before {
            return self.volume.transact(CREDITS_SIZE, |handle| {
                self.inode.update(self.volume, handle, |state, handle| {
                    self.grow(state, handle, size);
                    self.stamp_change(state, options);
                });
                Ok(())
            });
        }
        self.cut(size, tail, options)
    }

    /// Copies what stays of the block that `size` falls into to a new block. `None` when no block is
    /// cut, or when there is no other block for it: then the rest of the block was zeroed in place.
    fn plan_tail(self, size: u64) -> Result<Option<Tail>> {
        let within = self.within_block(size);
        if within == 0 {
            return Ok(None);
        }
        let logical = self.block_of(size)?;
        let Mapping::Mapped { physical, .. } = self.inode.map(self.volume, logical, 1)? else {
            return Ok(None);
        };
        if self.inode.check_extents().is_err() {
            // A block map takes no new blocks.
            self.zero_rest(physical, within)?;
            return Ok(None);
        }
        let reservation = match self.volume.allocator.reserve(BlockRequest {
            goal: physical,
            len: 1,
            privileged: true,
        }) {
            Ok(reservation) => reservation,
            Err(Error::NoSpace) => {
                self.zero_rest(physical, within)?;
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let mut block = vec![0; self.volume.block_size() as usize];
        let kept = &mut block[..within as usize];
        self.volume
            .read_data(physical, 0, &mut [IoSliceMut::new(kept)])?;
        self.volume
            .write_data(reservation.run().start, 0, &[IoSlice::new(&block)])?;
        Ok(Some(Tail {
            logical,
            reservation,
        }))
    }

    fn move_tail(self, handle: &mut Handle<'_>, mut tail: Tail) -> Result<()> {
        self.inode.try_update(self.volume, handle, |state, handle| {
            let physical = tail.reservation.run().start;
            state.replace_block(self.volume, self.inode, handle, tail.logical, physical)?;
            self.volume
                .allocator
                .allocate(handle, &mut tail.reservation, 1);
            Ok(())
        })
    }

    fn cut(self, size: u64, tail: Option<Tail>, options: WriteOptions) -> Result<()> {
        let first = size.div_ceil(self.volume.block_size());
        // The size and the last block change together: with either alone, a crash would show zeros
        // before the old end or old bytes behind the new one.
        let credits = self.removal_credits()? + CREDITS_SIZE + CREDITS_RUN + REWRITE_CREDITS_MIN;
        let mut zeroes_in_place = false;
        let removal = self.volume.transact(credits, |handle| {
            // First what can fail and changes nothing then.
            let removal = self.cut_some(handle, first)?;
            if let Some(tail) = tail {
                // No block for a node of the tree, say: that must not keep a file from shrinking.
                zeroes_in_place = self.move_tail(handle, tail).is_err();
            }
            self.inode.update(self.volume, handle, |state, handle| {
                state.fields_mut().set_size_bytes(size);
                state.mark_data_changed(handle);
                self.stamp_change(state, options);
            });
            Ok(removal)
        })?;
        if zeroes_in_place {
            self.zero_behind(size)?;
        }
        match self.cut_rest(first, removal) {
            // Even freeing takes room in the snapshot store. The file has its size; what is left waits, and the
            // inode is an orphan as long.
            Err(error @ (Error::NoSpace | Error::SnapshotStoreFull)) => {
                let nr = self.inode.nr();
                log::warn!("blocks that file {nr} had are not free yet: {error}");
                Ok(())
            }
            other => other,
        }
    }

    fn cut_rest(self, first: u64, mut removal: Removal) -> Result<()> {
        let mut has_committed = false;
        while removal == Removal::More {
            let step = self.volume.transact(self.removal_credits()?, |handle| {
                self.cut_some(handle, first)
            });
            removal = match step {
                // What a handle asks for is more than it uses: a commit gives the rest back.
                Err(Error::NoSpace | Error::SnapshotStoreFull) if !has_committed => {
                    has_committed = true;
                    self.volume.journal.commit_all()?;
                    Removal::More
                }
                other => other?,
            };
        }
        Ok(())
    }

    /// To be called before anything is put at or behind the end of the file: finishes a truncation that had
    /// to stop, since the file must not show again what it has cut off.
    ///
    /// # Errors
    /// `NoSpace` and `SnapshotStoreFull` while there is no room to go on, `Io`, `Corrupt`, `ReadOnly`.
    pub(super) fn finish_cut(self) -> Result<()> {
        if !self.inode.is_being_cut() {
            return Ok(());
        }
        let first = self.inode.size_bytes().div_ceil(self.volume.block_size());
        self.cut_rest(first, Removal::More)
    }

    /// Zeros the rest of the block that `size` falls into, in place.
    fn zero_behind(self, size: u64) -> Result<()> {
        let within = self.within_block(size);
        let mapping = self.inode.map(self.volume, self.block_of(size)?, 1)?;
        match mapping {
            Mapping::Mapped { physical, .. } if within > 0 => self.zero_rest(physical, within),
            _ => Ok(()),
        }
    }

    /// Frees blocks from `first` on; while some are left the inode is an orphan.
    pub(super) fn cut_some(self, handle: &mut Handle<'_>, first: u64) -> Result<Removal> {
        let removal = self
            .inode
            .remove_blocks(self.volume, handle, first, LOGICAL_END)?;
        self.inode.set_being_cut(removal == Removal::More);
        match removal {
            // An open file without names stays an orphan.
            Removal::Done => self.orphans.end_truncation(self.volume, handle, self.inode),
            Removal::More => self.orphans.add(self.volume, handle, self.inode),
        }
        Ok(removal)
    }

    /// Finishes what a crash interrupted: frees all blocks beyond the size.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `ReadOnly`.
    pub(crate) fn finish_truncate(self) -> Result<()> {
        let _io = self.inode.io.write();
        let _data = self.volume.begin_data_write();
        self.check_alive()?;
        self.inode.set_being_cut(true);
        self.finish_cut()
    }

    /// Frees all blocks, without a change of size. The inode must be an orphan.
    ///
    /// # Errors
    /// `Io`, `Corrupt`, `ReadOnly`.
    pub(crate) fn free_all(self) -> Result<()> {
        self.inode.drop_preallocation();
        while self.volume.transact(self.removal_credits()?, |handle| {
            self.inode
                .remove_blocks(self.volume, handle, 0, LOGICAL_END)
        })? == Removal::More
        {}
        Ok(())
    }

    pub(super) fn removal_credits(self) -> Result<u32> {
        if self.inode.check_extents().is_err() {
            return Ok(TRIM_CREDITS + CREDITS_INODE);
        }
        let has_nodes = self.inode.insert_credits(self.volume)? > step_credits(0);
        Ok(if has_nodes {
            REMOVAL_CREDITS_MANY
        } else {
            REMOVAL_CREDITS_FEW
        })
    }

    pub(super) fn stamp_change(self, state: &mut InodeState, options: WriteOptions) {
        let now = self.volume.now();
        state.fields_mut().set_mtime(now);
        state.fields_mut().set_ctime(now);
        if options.kill_privileges {
            state.kill_suid_sgid();
        }
    }
}
