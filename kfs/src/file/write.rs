//! Writing file data.
//!
//! What is mapped and written is overwritten in place, many threads at a time. What is not takes the
//! allocation lock: blocks are reserved, written, and entered into the file by a handle.

use super::moved::kept_extent;
use super::{DataSource, File};
use crate::allocator::{BlockRequest, Reservation};
use crate::error::{Error, Result};
use crate::extent::{Extent, Mapping, REWRITE_CREDITS_MIN};
use crate::ids::{BlockNr, LogicalBlock};
use crate::inode::{CREDITS_INODE, InodeState, Preallocation};
use crate::layout::RoCompat;
use crate::storage::Handle;
use std::io::IoSlice;

/// Blocks asked for ahead of a growing file, at the most.
const AHEAD_BLOCKS_MAX: u64 = 2048;

/// Metadata blocks that a change of a file's inode touches, its size included: the superblock gets a
/// feature with the first large file.
pub(super) const CREDITS_SIZE: u32 = CREDITS_INODE + 1;

/// Metadata blocks that an allocation of one run touches: bitmap and descriptor.
pub(super) const CREDITS_RUN: u32 = 2;

/// Who writes, as far as it matters here.
#[derive(Clone, Copy, Debug, Default)]
pub struct WriteOptions {
    /// Clear set-user-id and set-group-id bits.
    pub kill_privileges: bool,
    /// May use the blocks reserved for root.
    pub privileged: bool,
    /// Write at the end of the file, whatever the offset says.
    pub append: bool,
    /// Bytes that a client's kernel took earlier, when it asked what is to be asked: they are written
    /// whatever became of the file since, and take no capabilities away.
    pub delayed: bool,
}

/// What one step of an overwrite did.
pub(super) struct Overwritten {
    pub(super) bytes: u64,
    /// To other blocks; the inode has its times.
    pub(super) is_moved: bool,
    /// The source gave more than there was space for: it cannot go on.
    pub(super) is_short: bool,
}

impl File<'_> {
    /// Writes `len` bytes of `source` at `offset` and returns how many bytes were written: fewer
    /// only when the volume is full, or the file as large as a file can be.
    ///
    /// # Errors
    /// `NoSpace` when not a single byte could be written, `FileTooLarge`, `ReadOnly`, `Io`,
    /// `Corrupt`.
    pub(crate) fn write(
        self,
        offset: u64,
        len: usize,
        source: &mut dyn DataSource,
        options: WriteOptions,
    ) -> Result<usize> {
        if let Some(reason) = self.volume.read_only() {
            return Err(Error::ReadOnly { reason });
        }
        if len == 0 {
            return Ok(0);
        }
        if let Some(written) = self.write_shared(offset, len, source, options)? {
            return Ok(written);
        }
        // A file that grows while a snapshot sees blocks of the range, which is rare, or one to be cut first.
        let _io = self.inode.io.write();
        let _data = self.volume.begin_data_write();
        self.check_alive()?;
        let mut ahead = self.inode.allocation.lock();
        let offset = if options.append {
            self.inode.size_bytes()
        } else {
            offset
        };
        self.write_allocating(&mut ahead, offset, len, source, options)
    }

    /// Writes together with other readers and writers of the file, unless the file grows and a snapshot
    /// sees what would be overwritten: then nothing was done.
    fn write_shared(
        self,
        offset: u64,
        len: usize,
        source: &mut dyn DataSource,
        options: WriteOptions,
    ) -> Result<Option<usize>> {
        let _io = self.inode.io.read();
        let _data = self.volume.begin_data_write();
        self.check_alive()?;
        // What is left behind the end is freed with readers kept out.
        if self.inode.is_being_cut() {
            return Ok(None);
        }
        if options.append {
            let mut ahead = self.inode.allocation.lock();
            let end = self.inode.size_bytes();
            if self.meets_kept(end, end)? {
                return Ok(None);
            }
            return self
                .write_allocating(&mut ahead, end, len, source, options)
                .map(Some);
        }
        let end = self.write_end(offset, len)?;
        if end <= self.inode.size_bytes() && self.is_written(offset, end)? {
            return self.overwrite(offset, end, source, options).map(Some);
        }
        if self.meets_kept(offset, end)? {
            return Ok(None);
        }
        let mut ahead = self.inode.allocation.lock();
        self.write_allocating(&mut ahead, offset, len, source, options)
            .map(Some)
    }

    /// Where a write ends: at the limit of files at the latest.
    fn write_end(self, offset: u64, len: usize) -> Result<u64> {
        let end = offset.saturating_add(len as u64);
        let end = end.min(self.size_max());
        if end > offset {
            Ok(end)
        } else {
            Err(Error::FileTooLarge)
        }
    }

    /// Whether all of a range is mapped and written.
    fn is_written(self, offset: u64, end: u64) -> Result<bool> {
        let mut logical = self.block_of(offset)?;
        let mut left = self.blocks_spanned(offset, end);
        while left > 0 {
            let Mapping::Mapped { len, .. } = self.inode.map(self.volume, logical, left)? else {
                return Ok(false);
            };
            left -= len;
            logical = logical.checked_plus(len).ok_or(Error::FileTooLarge)?;
        }
        Ok(true)
    }

    /// Writes over data, in place or, where a snapshot sees that, to new blocks. Returns the bytes written:
    /// fewer only when there is no space for more.
    pub(super) fn overwrite(
        self,
        offset: u64,
        end: u64,
        source: &mut dyn DataSource,
        options: WriteOptions,
    ) -> Result<usize> {
        let mut at = offset;
        let mut is_stamped = false;
        let mut result = Ok(());
        while at < end {
            match self.overwrite_piece(at, end, source, options) {
                Ok(piece) => {
                    at += piece.bytes;
                    is_stamped |= piece.is_moved;
                    if piece.is_short {
                        break;
                    }
                }
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        let touched = if at > offset && !is_stamped {
            self.touch(options)
        } else {
            Ok(())
        };
        match result {
            Err(Error::NoSpace | Error::SnapshotStoreFull) if at > offset => {}
            other => other?,
        }
        touched?;
        Ok((at - offset) as usize)
    }

    /// Writes over one extent, or over kept ones.
    fn overwrite_piece(
        self,
        at: u64,
        end: u64,
        source: &mut dyn DataSource,
        options: WriteOptions,
    ) -> Result<Overwritten> {
        let logical = self.block_of(at)?;
        let wanted = self.blocks_spanned(at, end);
        // Blocks are taken away only with the io lock held exclusively.
        let Mapping::Mapped { physical, len } = self.inode.map(self.volume, logical, wanted)?
        else {
            return Err(Error::Invalid);
        };
        let (is_kept, len) = self.volume.kept_run(physical, len)?;
        if !is_kept {
            return Ok(Overwritten {
                bytes: self.write_mapped(physical, len, at, end, source)?,
                is_moved: false,
                is_short: false,
            });
        }
        let kept = self.kept_from(kept_extent(logical, physical, len), wanted)?;
        self.move_over(&kept, (at, end), source, options)
    }

    /// Writes into blocks that hold data already, and returns the number of bytes.
    fn write_mapped(
        self,
        physical: BlockNr,
        len: u32,
        at: u64,
        end: u64,
        source: &mut dyn DataSource,
    ) -> Result<u64> {
        let within = self.within_block(at);
        let bytes = (u64::from(len) * self.volume.block_size() - within).min(end - at);
        source.take(bytes as usize, &mut |bufs| {
            self.volume.write_data(physical, within, bufs)
        })?;
        Ok(bytes)
    }

    /// Carries times and cleared bits of an overwrite into the inode.
    fn touch(self, options: WriteOptions) -> Result<()> {
        self.volume.transact(CREDITS_SIZE, |handle| {
            self.inode.update(self.volume, handle, |state, _| {
                self.stamp_change(state, options);
            });
            Ok(())
        })
    }

    fn write_allocating(
        self,
        ahead: &mut Preallocation,
        offset: u64,
        len: usize,
        source: &mut dyn DataSource,
        options: WriteOptions,
    ) -> Result<usize> {
        self.inode.check_extents()?;
        let end = self.write_end(offset, len)?;
        self.prepare_growth(offset, end)?;
        let mut at = offset;
        while at < end {
            match self.write_piece(ahead, at, end, source, options) {
                Ok(bytes) => at += bytes,
                Err(Error::NoSpace | Error::SnapshotStoreFull) if at > offset => break,
                Err(error) => return Err(error),
            }
        }
        Ok((at - offset) as usize)
    }

    /// Writes as far as one extent, one hole or one run of new blocks goes.
    fn write_piece(
        self,
        ahead: &mut Preallocation,
        at: u64,
        end: u64,
        source: &mut dyn DataSource,
        options: WriteOptions,
    ) -> Result<u64> {
        let logical = self.block_of(at)?;
        let wanted = self.blocks_spanned(at, end);
        match self.inode.map(self.volume, logical, wanted)? {
            Mapping::Mapped { physical, len } => {
                let (is_kept, len) = self.volume.kept_run(physical, len)?;
                if is_kept {
                    let kept = self.kept_from(kept_extent(logical, physical, len), wanted)?;
                    return self.write_moved(&kept, (at, end), source, options, true);
                }
                let bytes = self.write_mapped(physical, len, at, end, source)?;
                self.volume.transact(CREDITS_SIZE, |handle| {
                    self.inode.update(self.volume, handle, |state, handle| {
                        self.grow(state, handle, at + bytes);
                        self.stamp_change(state, options);
                    });
                    Ok(())
                })?;
                Ok(bytes)
            }
            Mapping::Unwritten { physical, len } => {
                let bytes = self.write_fresh(physical, len, at, end, source)?;
                self.enter_written(
                    logical,
                    self.blocks_spanned(at, at + bytes),
                    at + bytes,
                    options,
                )?;
                Ok(bytes)
            }
            Mapping::Hole { len } => {
                let mut reservation = self.reserve(ahead, logical, len.min(wanted), at, options)?;
                let run = reservation.run();
                let usable = run.len.min(len).min(wanted);
                let bytes = self.write_fresh(run.start, usable, at, end, source)?;
                self.enter(&mut reservation, logical, usable, at + bytes, options)?;
                ahead.next = logical.checked_plus(usable).unwrap_or(logical);
                ahead.reservation = (!reservation.is_empty()).then_some(reservation);
                Ok(bytes)
            }
        }
    }

    /// Writes into blocks whose content means nothing yet: what the write does not cover of its
    /// first and last block is zeroed.
    fn write_fresh(
        self,
        physical: BlockNr,
        len: u32,
        at: u64,
        end: u64,
        source: &mut dyn DataSource,
    ) -> Result<u64> {
        let block_size = self.volume.block_size();
        let within = self.within_block(at);
        let bytes = (u64::from(len) * block_size - within).min(end - at);
        let filled = within + bytes;
        let tail = filled.next_multiple_of(block_size) - filled;
        if within == 0 && tail == 0 {
            source.take(bytes as usize, &mut |bufs| {
                self.volume.write_data(physical, 0, bufs)
            })?;
            return Ok(bytes);
        }
        let (head_zeros, tail_zeros) = (vec![0; within as usize], vec![0; tail as usize]);
        source.take(bytes as usize, &mut |bufs| {
            // One call for zeros and data, as blocks are mostly small and calls are not free.
            let mut all: Vec<IoSlice<'_>> = Vec::with_capacity(bufs.len() + 2);
            all.push(IoSlice::new(&head_zeros));
            all.extend(bufs.iter().map(|buf| IoSlice::new(buf)));
            all.push(IoSlice::new(&tail_zeros));
            self.volume.write_data(physical, 0, &all)
        })?;
        Ok(bytes)
    }

    /// Blocks for a hole at `logical`: those reserved ahead where they fit, else new ones, with some
    /// ahead when the file grows at its end.
    fn reserve(
        self,
        ahead: &mut Preallocation,
        logical: LogicalBlock,
        wanted: u32,
        at: u64,
        options: WriteOptions,
    ) -> Result<Reservation> {
        let kept = ahead.reservation.take();
        if let Some(reservation) = kept
            && ahead.next == logical
        {
            return Ok(reservation);
        }
        let size = self.inode.size_bytes();
        let mut len = wanted;
        if at >= size && size > 0 {
            let grown = (size >> self.volume.geometry.block_size_bits).min(AHEAD_BLOCKS_MAX);
            len = len.saturating_add(u32::try_from(grown).unwrap_or(0));
        }
        let goal = self.inode.goal(self.volume, logical)?;
        self.reserve_run(goal, len, options.privileged)
    }

    /// Reserves blocks; when none are free, first takes back what other files keep ahead, then
    /// commits so that what was freed may be used again.
    pub(super) fn reserve_run(
        self,
        goal: BlockNr,
        len: u32,
        privileged: bool,
    ) -> Result<Reservation> {
        let request = BlockRequest {
            goal,
            len,
            privileged,
        };
        match self.volume.allocator.reserve(request) {
            Err(Error::NoSpace) => {}
            other => return other,
        }
        self.inodes.drop_preallocations();
        match self.volume.allocator.reserve(request) {
            Err(Error::NoSpace) => {}
            other => return other,
        }
        self.volume.journal.commit_all()?;
        self.volume.allocator.reserve(request)
    }

    /// Makes written blocks of a reservation part of the file, which ends at `end` at least.
    fn enter(
        self,
        reservation: &mut Reservation,
        logical: LogicalBlock,
        len: u32,
        end: u64,
        options: WriteOptions,
    ) -> Result<()> {
        let credits = CREDITS_SIZE + CREDITS_RUN + self.inode.insert_credits(self.volume)?;
        self.transact_with_nodes(credits, |handle| {
            self.inode.try_update(self.volume, handle, |state, handle| {
                let physical = reservation.run().start;
                let extent = Extent {
                    logical,
                    physical,
                    len,
                    unwritten: false,
                };
                state.insert_extent(self.volume, self.inode, handle, extent)?;
                self.volume.allocator.allocate(handle, reservation, len);
                self.grow(state, handle, end);
                self.stamp_change(state, options);
                Ok(())
            })
        })
    }

    /// Runs a change that may need blocks for the extent tree's nodes. When there are none, blocks
    /// kept ahead are taken back and freed ones committed, and it is tried once more.
    pub(super) fn transact_with_nodes<R>(
        self,
        credits: u32,
        mut change: impl FnMut(&mut Handle<'_>) -> Result<R>,
    ) -> Result<R> {
        match self.volume.transact(credits, &mut change) {
            Err(Error::NoSpace) => {}
            other => return other,
        }
        self.inodes.drop_preallocations();
        self.volume.journal.commit_all()?;
        self.volume.transact(credits, change)
    }

    /// Turns unwritten blocks that now hold data into written ones.
    fn enter_written(
        self,
        logical: LogicalBlock,
        len: u32,
        end: u64,
        options: WriteOptions,
    ) -> Result<()> {
        let mut first = logical;
        let mut left = len;
        while left > 0 {
            let credits = CREDITS_SIZE + REWRITE_CREDITS_MIN;
            let done = self.transact_with_nodes(credits, |handle| {
                self.inode.try_update(self.volume, handle, |state, handle| {
                    let done = state.mark_written(self.volume, self.inode, handle, first, left)?;
                    if done == left {
                        self.grow(state, handle, end);
                    }
                    self.stamp_change(state, options);
                    Ok(done)
                })
            })?;
            left -= done.min(left);
            first = first.checked_plus(done).ok_or(Error::FileTooLarge)?;
        }
        Ok(())
    }

    /// Makes the file at least `end` bytes long.
    pub(super) fn grow(self, state: &mut InodeState, handle: &mut Handle<'_>, end: u64) {
        if end > state.fields().size_bytes() {
            state.fields_mut().set_size_bytes(end);
            state.mark_data_changed(handle);
            self.note_large_file(handle, end);
        }
    }

    /// Sets the feature that files beyond 2 GiB need, on volumes that do not have it from the start.
    fn note_large_file(self, handle: &mut Handle<'_>, end: u64) {
        let has = self
            .volume
            .geometry
            .ro_compat
            .contains(RoCompat::LARGE_FILE);
        if end > i32::MAX as u64 && !has {
            self.volume.update_superblock(handle, |raw| {
                let features = raw.ro_compat() | RoCompat::LARGE_FILE;
                raw.s_feature_ro_compat.set(features.bits());
            });
        }
    }

    /// Before a change of `offset..end` makes the file grow: frees what a truncation has left behind the
    /// end, and zeros what lies between the end and `offset` in the file's last block. kfs leaves zeros
    /// there itself, others may not.
    pub(super) fn prepare_growth(self, offset: u64, end: u64) -> Result<()> {
        let size = self.inode.size_bytes();
        if end > size {
            self.finish_cut()?;
        }
        let within = self.within_block(size);
        if offset <= size || within == 0 {
            return Ok(());
        }
        let block_end = size - within + self.volume.block_size();
        self.zero_within_block(size, block_end.min(offset))
    }
}
