//! Writing over data that a snapshot sees: to new blocks, and the file's extents change to them.
//!
//! Nothing is copied but what a write leaves of its first and last block. The old blocks are freed and
//! stay as they are, for the snapshot.
//!
//! Within the file, others read and write meanwhile. What is kept stays kept while a write goes on (a
//! deletion of the snapshot waits for those that have begun), so two who write to the same block both
//! move it; the second sees that its place has changed. One who reads may have looked up the old block
//! and read it only when it was given away: the inode counts moves, and a reader who met one looks again.

use super::write::{CREDITS_RUN, CREDITS_SIZE, Overwritten, WriteOptions};
use super::{DataSource, File, SliceSource};
use crate::allocator::Reservation;
use crate::error::{Error, Result};
use crate::extent::{Extent, Mapping, REWRITE_CREDITS_MIN};
use crate::ids::{BlockNr, LogicalBlock};
use smallvec::{SmallVec, smallvec};
use std::io::{IoSlice, IoSliceMut};

/// Blocks moved at a time.
const MOVED_BLOCKS_MAX: u32 = 2048;

/// Blocks of a file that snapshots keep: at least one, one after the other in the file.
pub(super) struct Kept {
    extents: SmallVec<[Extent; 4]>,
    len: u32,
}

impl Kept {
    fn logical(&self) -> LogicalBlock {
        self.extents[0].logical
    }

    /// Where the n-th block is.
    fn physical(&self, mut n: u32) -> BlockNr {
        let mut extents = self.extents.iter();
        let mut extent = extents.next().expect("at least one");
        while n >= extent.len {
            n -= extent.len;
            extent = extents.next().expect("n is less than there are");
        }
        extent.physical.plus(n.into())
    }

    /// The first blocks.
    fn first(&self, count: u32) -> impl Iterator<Item = Extent> {
        let mut left = count;
        self.extents.iter().map_while(move |extent| {
            let len = extent.len.min(left);
            left -= len;
            (len > 0).then_some(Extent { len, ..*extent })
        })
    }
}

/// Written blocks that snapshots keep.
pub(super) fn kept_extent(logical: LogicalBlock, physical: BlockNr, len: u32) -> Extent {
    Extent {
        logical,
        physical,
        len,
        unwritten: false,
    }
}

/// What was written for blocks that a snapshot keeps, and is not the file's yet.
struct Moved {
    reservation: Reservation,
    /// Blocks of it that the write needs.
    count: u32,
    /// Bytes of the source that are in them.
    bytes: u64,
}

impl File<'_> {
    /// Whether a snapshot sees a block that a write of `offset..end` would change, the block at the end
    /// of the file included if that is before.
    pub(super) fn meets_kept(self, offset: u64, end: u64) -> Result<bool> {
        if !self.volume.snapshots.is_active() {
            return Ok(false);
        }
        let size = self.inode.size_bytes();
        // What lies between the end of the file and the write may have to be zeroed.
        let from = offset.min(size);
        let mut logical = self.block_of(from)?;
        let mut left = self.blocks_spanned(from, end.max(from + 1));
        while left > 0 {
            let len = match self.inode.map(self.volume, logical, left)? {
                Mapping::Mapped { physical, len } => {
                    let (is_kept, run) = self.volume.kept_run(physical, len)?;
                    if is_kept {
                        return Ok(true);
                    }
                    run
                }
                Mapping::Unwritten { len, .. } | Mapping::Hole { len } => len,
            };
            left -= len;
            let Some(next) = logical.checked_plus(len) else {
                break;
            };
            logical = next;
        }
        Ok(false)
    }

    /// Kept blocks of the file one after the other, from those at `first` on: `wanted` at most, wherever
    /// they lie.
    pub(super) fn kept_from(self, first: Extent, wanted: u32) -> Result<Kept> {
        let most = wanted.min(MOVED_BLOCKS_MAX);
        let mut len = first.len.min(most);
        let mut kept = smallvec![first];
        while len < most {
            let Some(logical) = first.logical.checked_plus(len) else {
                break;
            };
            let mapping = self.inode.map(self.volume, logical, most - len)?;
            let Mapping::Mapped { physical, len: run } = mapping else {
                break;
            };
            let (true, run) = self.volume.kept_run(physical, run)? else {
                break;
            };
            kept.push(kept_extent(logical, physical, run));
            len += run;
        }
        Ok(Kept { extents: kept, len })
    }

    /// Writes to new blocks what belongs over kept ones, and returns the number of bytes. The file then
    /// ends at the end of the write at least, if it `grows`. The io lock is held exclusively.
    pub(super) fn write_moved(
        self,
        kept: &Kept,
        (at, end): (u64, u64),
        source: &mut dyn DataSource,
        options: WriteOptions,
        grows: bool,
    ) -> Result<u64> {
        let mut moved = self.write_elsewhere(kept, (at, end), source, options)?;
        let end_of_file = if grows { at + moved.bytes } else { 0 };
        let range = (kept.logical(), moved.count);
        let change = Some((end_of_file, options));
        self.enter_moved(&mut moved.reservation, range, false, change)?;
        Ok(moved.bytes)
    }

    /// As [`File::write_moved`] within the file, with the io lock shared: others read and write meanwhile.
    ///
    /// Who else has moved a block first wins, and what was written for it here is written once more, over
    /// theirs: parts of the block that this write leaves alone may have changed.
    pub(super) fn move_over(
        self,
        kept: &Kept,
        (at, end): (u64, u64),
        source: &mut dyn DataSource,
        options: WriteOptions,
    ) -> Result<Overwritten> {
        self.inode.check_extents()?;
        let mut moved = self.write_elsewhere(kept, (at, end), source, options)?;
        let one_at_a_time = self.inode.allocation.lock();
        if self.are_still(kept.first(moved.count))? {
            let range = (kept.logical(), moved.count);
            self.inode.begin_move();
            let entered =
                self.enter_moved(&mut moved.reservation, range, false, Some((0, options)));
            self.inode.end_move();
            return entered.map(|()| Overwritten {
                bytes: moved.bytes,
                is_moved: true,
                is_short: false,
            });
        }
        drop(one_at_a_time);
        let taken = moved.bytes;
        let mut bytes = vec![0; taken as usize];
        let written = moved.reservation.run().start;
        self.read_old(written, self.within_block(at), &mut bytes)?;
        // The blocks may be needed for the second try.
        drop(moved);
        let source = &mut SliceSource::new(&bytes);
        let bytes = self.overwrite(at, at + taken, source, options)? as u64;
        Ok(Overwritten {
            bytes,
            is_moved: true,
            is_short: bytes < taken,
        })
    }

    fn are_still(self, extents: impl Iterator<Item = Extent>) -> Result<bool> {
        for extent in extents {
            if !self.is_still(extent)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reserves blocks for a write over kept ones, and fills them: with what is written, and what it leaves
    /// of its first and last block.
    fn write_elsewhere(
        self,
        kept: &Kept,
        (at, end): (u64, u64),
        source: &mut dyn DataSource,
        options: WriteOptions,
    ) -> Result<Moved> {
        let block_size = self.volume.block_size();
        let within = self.within_block(at);
        let wanted = self.blocks_spanned(at, end).min(kept.len);
        let goal = self.inode.goal(self.volume, kept.logical())?;
        let reservation = self.reserve_run(goal, wanted, options.privileged)?;
        let run = reservation.run();
        let count = run.len.min(wanted);
        let bytes = (u64::from(count) * block_size - within).min(end - at);
        let filled = within + bytes;
        let mut head = vec![0; within as usize];
        let mut tail = vec![0; (filled.next_multiple_of(block_size) - filled) as usize];
        self.read_old(kept.physical(0), 0, &mut head)?;
        self.read_old(kept.physical(count - 1), filled % block_size, &mut tail)?;
        source.take(bytes as usize, &mut |bufs| {
            let mut all: Vec<IoSlice<'_>> = Vec::with_capacity(bufs.len() + 2);
            all.push(IoSlice::new(&head));
            all.extend(bufs.iter().map(|buf| IoSlice::new(buf)));
            all.push(IoSlice::new(&tail));
            self.volume.write_data(run.start, 0, &all)
        })?;
        Ok(Moved {
            reservation,
            count,
            bytes,
        })
    }

    fn read_old(self, physical: BlockNr, offset: u64, buf: &mut [u8]) -> Result<()> {
        if buf.is_empty() {
            return Ok(());
        }
        self.volume
            .read_data(physical, offset, &mut [IoSliceMut::new(buf)])
    }

    /// Makes the first blocks of a reservation those of a range of the file, in place of its own. With a
    /// `change` of content the file then ends where that says at least, and has its times.
    pub(super) fn enter_moved(
        self,
        reservation: &mut Reservation,
        (logical, len): (LogicalBlock, u32),
        unwritten: bool,
        change: Option<(u64, WriteOptions)>,
    ) -> Result<()> {
        let mut first = logical;
        let mut left = len;
        while left > 0 {
            let credits = CREDITS_SIZE + CREDITS_RUN + REWRITE_CREDITS_MIN;
            let done = self.transact_with_nodes(credits, |handle| {
                self.inode.try_update(self.volume, handle, |state, handle| {
                    let to = (reservation.run().start, unwritten);
                    let done =
                        state.replace_blocks(self.volume, self.inode, handle, (first, left), to)?;
                    self.volume.allocator.allocate(handle, reservation, done);
                    if let Some((end, options)) = change {
                        // Not before all of it is there: what is behind the old end may be anything.
                        if done >= left {
                            self.grow(state, handle, end);
                        }
                        self.stamp_change(state, options);
                    }
                    Ok(done)
                })
            })?;
            left -= done.min(left);
            first = first.checked_plus(done).ok_or(Error::FileTooLarge)?;
        }
        Ok(())
    }

    /// Zeros a range within one block, where that holds data.
    pub(super) fn zero_within_block(self, from: u64, end: u64) -> Result<()> {
        if from >= end {
            return Ok(());
        }
        let logical = self.block_of(from)?;
        let Mapping::Mapped { physical, .. } = self.inode.map(self.volume, logical, 1)? else {
            return Ok(());
        };
        let (is_kept, _) = self.volume.kept_run(physical, 1)?;
        if !is_kept {
            return self
                .volume
                .zero_data(physical, self.within_block(from), end - from);
        }
        self.inode.check_extents()?;
        let options = WriteOptions {
            privileged: true,
            ..WriteOptions::default()
        };
        let kept = self.kept_from(kept_extent(logical, physical, 1), 1)?;
        self.write_moved(&kept, (from, end), &mut Zeros, options, false)?;
        Ok(())
    }

    /// Zeros the rest of a block behind the end of the file, for want of another block to move to. Where
    /// a snapshot sees it, it stays: who makes the file grow zeros it first.
    pub(super) fn zero_rest(self, physical: BlockNr, within: u64) -> Result<()> {
        let (is_kept, _) = self.volume.kept_run(physical, 1)?;
        if is_kept {
            return Ok(());
        }
        let rest = self.volume.block_size() - within;
        self.volume.zero_data(physical, within, rest)
    }
}

/// Gives zeros, for less than a block.
struct Zeros;

impl DataSource for Zeros {
    fn take(
        &mut self,
        len: usize,
        write: &mut dyn FnMut(&[IoSlice<'_>]) -> Result<()>,
    ) -> Result<()> {
        write(&[IoSlice::new(&vec![0; len])])
    }
}
