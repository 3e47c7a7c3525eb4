//! Moving blocks of a file to a better place, while it is used.
//!
//! As a write over kept blocks (`moved.rs`): the new blocks are reserved in memory, get the data, and a
//! handle puts them in the place of the old ones. Nothing of the file changes but where it lies, so
//! neither do its times; what is unwritten stays so, and holes stay holes.
//!
//! The io lock is held exclusively, so nobody reads from blocks that are freed, or writes to them what
//! the copy would not have. Who moves much does it in steps, and others get the lock in between.

use super::File;
use crate::allocator::Reservation;
use crate::error::Result;
use crate::extent::{Extent, Mapping};
use crate::ids::{BlockNr, LogicalBlock};
use std::io::{IoSlice, IoSliceMut};

/// Bytes copied at a time.
const COPY_BYTES: u64 = 1 << 20;

/// What became of the wish to move blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Relocated {
    /// They are in the new place.
    Done,
    /// The file has changed since it was looked at; nothing was done.
    Changed,
    /// A snapshot sees some of them, and they are to stay where they are; nothing was done.
    Kept,
}

impl File<'_> {
    /// Moves extents of the file, or parts of them, to the first blocks of a reservation, one after
    /// the other. Blocks that a snapshot sees only if `moves_kept`.
    ///
    /// # Errors
    /// `NoSpace` when there is no block for a node of the tree: what was moved until then is moved.
    /// `Stale` for a file that was deleted, `ReadOnly`, `Io`, `Corrupt`.
    ///
    /// # Panics
    /// When the reservation is too small.
    pub(crate) fn relocate(
        self,
        pieces: &[Extent],
        reservation: &mut Reservation,
        moves_kept: bool,
    ) -> Result<Relocated> {
        let blocks: u64 = pieces.iter().map(|piece| u64::from(piece.len)).sum();
        assert!(
            blocks <= u64::from(reservation.len()),
            "all pieces have their place"
        );
        self.inode.check_extents()?;
        let _io = self.inode.io.write();
        let _data = self.volume.begin_data_write();
        self.check_alive()?;
        for piece in pieces {
            if !self.is_still(*piece)? {
                return Ok(Relocated::Changed);
            }
        }
        if !moves_kept && self.keeps_any(pieces)? {
            return Ok(Relocated::Kept);
        }
        // A file that goes on growing does so behind its new blocks.
        self.inode.drop_preallocation();
        self.copy_data(pieces, reservation.run().start)?;
        for (logical, len, unwritten) in joined(pieces) {
            self.enter_moved(reservation, (logical, len), unwritten, None)?;
        }
        Ok(Relocated::Done)
    }

    /// Whether the file has this extent, or part of one, still where it was.
    pub(super) fn is_still(self, piece: Extent) -> Result<bool> {
        let mut done = 0;
        while done < piece.len {
            let Some(logical) = piece.logical.checked_plus(done) else {
                return Ok(false);
            };
            let wanted = piece.physical.plus(done.into());
            let len = match self.inode.map(self.volume, logical, piece.len - done)? {
                Mapping::Mapped { physical, len } if physical == wanted && !piece.unwritten => len,
                Mapping::Unwritten { physical, len } if physical == wanted && piece.unwritten => {
                    len
                }
                _ => return Ok(false),
            };
            done += len;
        }
        Ok(true)
    }

    /// Whether a snapshot sees any of the blocks.
    pub(crate) fn keeps_any(self, pieces: &[Extent]) -> Result<bool> {
        if !self.volume.snapshots.is_active() {
            return Ok(false);
        }
        for piece in pieces {
            let mut done = 0;
            while done < piece.len {
                let start = piece.physical.plus(done.into());
                let (is_kept, len) = self.volume.kept_run(start, piece.len - done)?;
                if is_kept {
                    return Ok(true);
                }
                done += len.max(1);
            }
        }
        Ok(false)
    }

    /// Copies the data of written pieces to where they will be.
    fn copy_data(self, pieces: &[Extent], start: BlockNr) -> Result<()> {
        let block_size = self.volume.block_size();
        let most = (COPY_BYTES / block_size).max(1) as u32;
        let mut buffer = Vec::new();
        // Where the bytes in the buffer belong.
        let mut target = start;
        let mut at = start;
        for piece in pieces {
            let mut done = 0;
            while done < piece.len && !piece.unwritten {
                let held = (buffer.len() as u64 / block_size) as u32;
                if held == most || (held > 0 && target.plus(held.into()) != at) {
                    self.flush_copy(target, &mut buffer)?;
                    continue;
                }
                if held == 0 {
                    target = at;
                }
                let len = (piece.len - done).min(most - held);
                let old = buffer.len();
                buffer.resize(old + (u64::from(len) * block_size) as usize, 0);
                let from = piece.physical.plus(done.into());
                self.volume
                    .read_data(from, 0, &mut [IoSliceMut::new(&mut buffer[old..])])?;
                at = at.plus(len.into());
                done += len;
            }
            at = at.plus((piece.len - done).into());
        }
        self.flush_copy(target, &mut buffer)
    }

    fn flush_copy(self, target: BlockNr, buffer: &mut Vec<u8>) -> Result<()> {
        if !buffer.is_empty() {
            self.volume.write_data(target, 0, &[IoSlice::new(buffer)])?;
            buffer.clear();
        }
        Ok(())
    }
}

/// The pieces as ranges of the file, those that follow each other as one.
fn joined(pieces: &[Extent]) -> Vec<(LogicalBlock, u32, bool)> {
    let mut ranges: Vec<(LogicalBlock, u32, bool)> = Vec::new();
    for piece in pieces {
        match ranges.last_mut() {
            Some((logical, len, unwritten))
                if *unwritten == piece.unwritten
                    && logical.checked_plus(*len) == Some(piece.logical) =>
            {
                *len += piece.len;
            }
            _ => ranges.push((piece.logical, piece.len, piece.unwritten)),
        }
    }
    ranges
}
