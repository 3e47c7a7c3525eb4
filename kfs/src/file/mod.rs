//! The content of regular files: read, write, truncate, fallocate, seek.
//!
//! Data goes between the caller's buffers and the device at the extent's offset. New blocks are
//! reserved in memory, written, and only then entered into the file by a handle: a crash at any
//! instant shows either the old mapping or the new one with its data, never somebody else's bytes.
//!
//! Beyond the end of a file its last block holds zeros: writes fill up the blocks that they add,
//! and a truncate to the middle of a block moves the block (see `truncate.rs`).

mod data;
mod fallocate;
mod moved;
mod read;
mod relocate;
mod seek;
#[cfg(test)]
mod tests;
mod truncate;
mod write;

pub use data::{DataSink, DataSource, SliceSink, SliceSource};
pub use fallocate::SpaceChange;
pub(crate) use relocate::Relocated;
pub use seek::SeekTarget;
pub use write::WriteOptions;

use crate::error::{Error, Result};
use crate::ids::LogicalBlock;
use crate::inode::orphan::Orphans;
use crate::inode::{Inode, InodeTable};
use crate::volume::Volume;
use std::sync::Arc;

/// Blocks that a file can have: the last block number, 2^32 - 1, is not used.
const FILE_BLOCKS_MAX: u64 = u32::MAX as u64;

/// A view on a regular file's content.
#[derive(Clone, Copy)]
pub(crate) struct File<'a> {
    volume: &'a Volume,
    inodes: &'a InodeTable,
    orphans: &'a Orphans,
    inode: &'a Arc<Inode>,
}

impl<'a> File<'a> {
    /// The content of `inode`.
    #[must_use]
    pub(crate) fn new(
        volume: &'a Volume,
        inodes: &'a InodeTable,
        orphans: &'a Orphans,
        inode: &'a Arc<Inode>,
    ) -> Self {
        Self {
            volume,
            inodes,
            orphans,
            inode,
        }
    }

    /// Largest size that the file can get, in bytes.
    fn size_max(self) -> u64 {
        let geometry = &self.volume.geometry;
        let blocks = match self.inode.check_extents() {
            Ok(()) => FILE_BLOCKS_MAX,
            Err(_) => self
                .inode
                .indirect(self.volume)
                .blocks_max()
                .min(FILE_BLOCKS_MAX),
        };
        // Offsets are signed in all interfaces above.
        (blocks << geometry.block_size_bits).min(i64::MAX as u64)
    }

    /// The block that holds byte `offset`.
    fn block_of(self, offset: u64) -> Result<LogicalBlock> {
        let block = offset >> self.volume.geometry.block_size_bits;
        u32::try_from(block)
            .ok()
            .filter(|block| u64::from(*block) < FILE_BLOCKS_MAX)
            .map(LogicalBlock)
            .ok_or(Error::FileTooLarge)
    }

    /// How far `offset` is into its block, in bytes.
    fn within_block(self, offset: u64) -> u64 {
        offset & (self.volume.block_size() - 1)
    }

    /// Blocks from the one that holds `first` to the one that holds the byte before `end`.
    fn blocks_spanned(self, first: u64, end: u64) -> u32 {
        let bits = self.volume.geometry.block_size_bits;
        let count = (end.saturating_sub(1) >> bits).saturating_sub(first >> bits) + 1;
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Fails for an inode that was deleted before its lock was ours.
    fn check_alive(self) -> Result<()> {
        if self.inode.is_deleted() {
            Err(Error::Stale)
        } else {
            Ok(())
        }
    }

    fn check_range(self, offset: u64, len: u64) -> Result<u64> {
        let end = offset.checked_add(len).ok_or(Error::FileTooLarge)?;
        if end > self.size_max() {
            return Err(Error::FileTooLarge);
        }
        Ok(end)
    }
}
