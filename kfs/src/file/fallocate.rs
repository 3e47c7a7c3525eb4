//! fallocate(2): blocks ahead of data, and holes.

use super::File;
use super::write::{CREDITS_RUN, CREDITS_SIZE, WriteOptions};
use crate::error::{Error, Result};
use crate::extent::{Extent, Mapping};
use crate::ids::LogicalBlock;
use crate::inode::Removal;

/// Longest unwritten extent, in blocks.
const UNWRITTEN_BLOCKS_MAX: u32 = 32767;

/// What to do with a range of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpaceChange {
    /// Give it blocks where it has none. What is there stays.
    Allocate {
        /// Leave the size of the file as it is.
        keep_size: bool,
    },
    /// Take its blocks away: it reads as zeros. The size stays.
    PunchHole,
    /// Make it read as zeros, with blocks.
    ZeroRange {
        /// Leave the size of the file as it is.
        keep_size: bool,
    },
}

impl File<'_> {
    /// Changes the space of `len` bytes from `offset` on.
    ///
    /// # Errors
    /// `Invalid` for an empty range, `NoSpace`, `FileTooLarge`, `ReadOnly`, `Io`, `Corrupt`.
    pub(crate) fn change_space(
        self,
        offset: u64,
        len: u64,
        change: SpaceChange,
        options: WriteOptions,
    ) -> Result<()> {
        if len == 0 {
            return Err(Error::Invalid);
        }
        self.inode.check_extents()?;
        let end = self.check_range(offset, len)?;
        let _io = self.inode.io.write();
        let _data = self.volume.begin_data_write();
        self.check_alive()?;
        self.inode.drop_preallocation();
        if end > self.inode.size_bytes() {
            self.finish_cut()?;
        }
        match change {
            SpaceChange::Allocate { keep_size } => {
                self.allocate_range(offset, end, options)?;
                self.finish_change(end, keep_size, options)
            }
            SpaceChange::PunchHole => {
                self.zero_edges(offset, end)?;
                self.remove_whole_blocks(offset, end)?;
                self.finish_change(end, true, options)
            }
            SpaceChange::ZeroRange { keep_size } => {
                self.zero_edges(offset, end)?;
                // Holes in place of data read as zeros at once, whatever happens before the
                // blocks are there again.
                self.remove_whole_blocks(offset, end)?;
                self.allocate_range(offset, end, options)?;
                self.finish_change(end, keep_size, options)
            }
        }
    }

    fn finish_change(self, end: u64, keep_size: bool, options: WriteOptions) -> Result<()> {
        if !keep_size {
            self.prepare_growth(end, end)?;
        }
        self.volume.transact(CREDITS_SIZE, |handle| {
            self.inode.update(self.volume, handle, |state, handle| {
                if !keep_size {
                    self.grow(state, handle, end);
                }
                self.stamp_change(state, options);
            });
            Ok(())
        })
    }

    /// Fills the holes of a range with unwritten blocks.
    fn allocate_range(self, offset: u64, end: u64, options: WriteOptions) -> Result<()> {
        let mut logical = self.block_of(offset)?;
        let mut left = self.blocks_spanned(offset, end);
        while left > 0 {
            let done = match self.inode.map(self.volume, logical, left)? {
                Mapping::Mapped { len, .. } | Mapping::Unwritten { len, .. } => len,
                Mapping::Hole { len } => self.allocate_hole(logical, len, options)?,
            };
            left -= done;
            logical = logical.checked_plus(done).ok_or(Error::FileTooLarge)?;
        }
        Ok(())
    }

    /// Puts one run of unwritten blocks into a hole of `len` blocks and returns its length.
    fn allocate_hole(self, logical: LogicalBlock, len: u32, options: WriteOptions) -> Result<u32> {
        let goal = self.inode.goal(self.volume, logical)?;
        let wanted = len.min(UNWRITTEN_BLOCKS_MAX);
        let mut reservation = self.reserve_run(goal, wanted, options.privileged)?;
        let run = reservation.run();
        let len = run.len.min(wanted);
        let credits = CREDITS_SIZE + CREDITS_RUN + self.inode.insert_credits(self.volume)?;
        self.transact_with_nodes(credits, |handle| {
            self.inode.try_update(self.volume, handle, |state, handle| {
                let extent = Extent {
                    logical,
                    physical: run.start,
                    len,
                    unwritten: true,
                };
                state.insert_extent(self.volume, self.inode, handle, extent)?;
                self.volume
                    .allocator
                    .allocate(handle, &mut reservation, len);
                Ok(())
            })
        })?;
        Ok(len)
    }

    /// Takes away the blocks that lie wholly within a range.
    fn remove_whole_blocks(self, offset: u64, end: u64) -> Result<()> {
        let block_size = self.volume.block_size();
        let first = offset.div_ceil(block_size);
        let mut last = end / block_size;
        if end >= self.inode.size_bytes() {
            // Nothing behind the end of the file is worth keeping in its last block.
            last = end.div_ceil(block_size);
        }
        if last <= first {
            return Ok(());
        }
        let credits = self.removal_credits()?;
        while self.volume.transact(credits, |handle| {
            self.inode.remove_blocks(self.volume, handle, first, last)
        })? == Removal::More
        {}
        Ok(())
    }

    /// Zeros the parts of a range that share a block with what is outside.
    fn zero_edges(self, offset: u64, end: u64) -> Result<()> {
        let block_size = self.volume.block_size();
        let end = end.min(self.inode.size_bytes());
        if offset >= end {
            return Ok(());
        }
        let head_end = offset.next_multiple_of(block_size).min(end);
        self.zero_within_block(offset, head_end)?;
        let tail_start = end - self.within_block(end);
        if tail_start >= head_end {
            self.zero_within_block(tail_start, end)?;
        }
        Ok(())
    }
}
