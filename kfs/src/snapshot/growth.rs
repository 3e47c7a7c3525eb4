//! More blocks for the store, ahead of need, so that a commit never has to look for any.
//!
//! Blocks may be written to as soon as they are the store's in the running transaction: either that
//! commits, and what was written is found again, or nothing of it counts, nor does anything that it
//! was kept for. What an earlier life has left in them is zeroed first.

use super::Snapshots;
use super::format::{SEGMENT_BLOCKS, blocks_for};
use super::store::Store;
use crate::allocator::{ALLOCATE_CREDITS, Allocator, BlockRequest, Reservation};
use crate::error::{Error, Result};
use crate::extent::{Extent, ExtentTree, STEP_CREDITS_MAX};
use crate::ids::{InodeNr, LogicalBlock, Run};
use crate::layout::inode::InodeBytes;
use crate::storage::{Buffer, BufferCache, Journal, StorePurpose};
use std::sync::Arc;

/// Credits of one growth: the tree, bitmap and descriptor, the inode.
const GROWTH_CREDITS: u32 = STEP_CREDITS_MAX + ALLOCATE_CREDITS + 1;

/// A growth is this part of the volume, if that is not too much or too little.
const GROWTH_SHARE: u64 = 512;
/// No more than this part of what is free, but for a segment.
const GROWTH_FREE_SHARE: u64 = 8;
/// Bytes of a growth at the most, unless more is needed at once.
const GROWTH_BYTES_MAX: u64 = 16 << 20;
/// Segments that only the table of snapshots and the growth itself may use, and cleaning one of them: a snapshot
/// can be deleted when nothing else can be done.
pub(super) const SPARE_SEGMENTS: u64 = 2;
/// Sparse segments that are cleaned rather than blocks added to the store.
const WORTHWHILE: usize = 4;
/// Blocks that a growth makes room for beyond what is asked for.
const MARGIN_BLOCKS: u64 = 64;

/// The store's inode: only its blocks matter here.
pub(super) struct StoreFile {
    pub(super) nr: InodeNr,
}

/// What a growth works on.
pub(crate) struct GrowthParts<'v> {
    /// Makes it atomic.
    pub(crate) journal: &'v Journal,
    /// Metadata blocks.
    pub(crate) cache: &'v BufferCache,
    /// Where the blocks come from.
    pub(crate) allocator: &'v Allocator,
}

impl Snapshots {
    /// Makes room for handles of `credits` blocks.
    ///
    /// # Errors
    /// `SnapshotStoreFull` when no block is free, `Corrupt`, `Io`.
    pub(crate) fn grow(&self, parts: &GrowthParts<'_>, credits: u32) -> Result<()> {
        let file = self.file.lock();
        let Some(file) = file.as_ref() else {
            return Err(Error::SnapshotStoreFull);
        };
        let store = self.store()?;
        loop {
            let promised = *self.reserved.lock() + self.state.read().pending.len() as u64;
            let wanted = promised + u64::from(credits) + MARGIN_BLOCKS;
            if store.has_room_for(wanted, SPARE_SEGMENTS) {
                return Ok(());
            }
            if self.clean(parts, &store, WORTHWHILE)? {
                continue;
            }
            let spare = SPARE_SEGMENTS * u64::from(SEGMENT_BLOCKS);
            let grown = self.grow_once(parts, file, &store, blocks_for(wanted) + spare);
            if let Err(Error::SnapshotStoreFull) = grown {
                // Little as it may be.
                if self.clean(parts, &store, 1)? {
                    continue;
                }
            }
            grown?;
        }
    }

    /// A new store's first blocks, for a file without any.
    ///
    /// # Errors
    /// As [`Snapshots::grow`].
    pub(crate) fn make_store(&self, parts: &GrowthParts<'_>, inode: InodeNr) -> Result<()> {
        let store = Store::new(Arc::clone(&self.device), self.geometry.block_size);
        *self.store.write() = Some(Arc::new(store));
        self.set_file(Some(inode));
        self.grow(parts, 0)
    }

    /// Forgets the store: its file is about to be deleted.
    pub(crate) fn drop_store(&self) {
        self.set_file(None);
        *self.store.write() = None;
        let next_id = self.state.read().table.next_id;
        let mut state = self.state.write();
        *state = super::State::default();
        state.table.next_id = next_id;
    }

    fn grow_once(
        &self,
        parts: &GrowthParts<'_>,
        file: &StoreFile,
        store: &Store,
        wanted: u64,
    ) -> Result<()> {
        let size = u64::from(self.geometry.block_size);
        let usual = (self.geometry.blocks_count() / GROWTH_SHARE).min(GROWTH_BYTES_MAX / size);
        let segment = u64::from(SEGMENT_BLOCKS);
        // Where little is left, a segment at a time: what is free is not for the store alone.
        let scarce = parts.allocator.free_blocks() / GROWTH_FREE_SHARE;
        let len = usual
            .max(wanted.min(GROWTH_BYTES_MAX / size))
            .min(scarce)
            .max(1)
            .next_multiple_of(segment);
        let len = u32::try_from(len).unwrap_or(u32::MAX).min(Extent::LEN_MAX);
        let mut reservation = self.reserve(parts, len)?;
        let run = reservation.run();
        Store::clear(&*self.device, self.geometry.block_size, run)?;
        self.append(parts, file, store, &mut reservation)?;
        store.add_runs(&[run]);
        Ok(())
    }

    fn reserve(&self, parts: &GrowthParts<'_>, len: u32) -> Result<Reservation> {
        let request = BlockRequest {
            goal: self
                .geometry
                .group_first_block(crate::ids::GroupNr(self.geometry.groups_count() / 2)),
            len,
            privileged: true,
        };
        match parts.allocator.reserve(request) {
            Err(Error::NoSpace) => {}
            other => return other,
        }
        // What was freed may be had after a commit.
        parts.journal.commit_all()?;
        match parts.allocator.reserve(request) {
            Err(Error::NoSpace) => Err(Error::SnapshotStoreFull),
            other => other,
        }
    }

    /// Makes reserved blocks the file's last.
    fn append(
        &self,
        parts: &GrowthParts<'_>,
        file: &StoreFile,
        store: &Store,
        reservation: &mut Reservation,
    ) -> Result<()> {
        let Run { start, len } = reservation.run();
        let (table, offset) = self.inode_place(parts, file.nr)?;
        let mut handle = parts
            .journal
            .start_for(GROWTH_CREDITS, StorePurpose::Growth)?;
        let mut inode = self.inode_bytes(&table, offset);
        let tree = ExtentTree::new(parts.cache, &self.geometry, file.nr, inode.generation());
        let logical = u32::try_from(store.blocks_count()).map_err(|_| Error::FileTooLarge)?;
        let extent = Extent {
            logical: LogicalBlock(logical),
            physical: start,
            len,
            unwritten: false,
        };
        let root = inode.block_area_mut();
        let nodes = tree.insert(root, &mut handle, parts.allocator, extent, start)?;
        parts.allocator.allocate(&mut handle, reservation, len);
        let sectors = i64::from(self.geometry.block_size / 512);
        let before = inode.blocks_512(&self.geometry);
        let added = (i64::from(len) + nodes.net()) * sectors;
        let after = before.saturating_add_signed(added);
        inode
            .set_blocks_512(&self.geometry, after)
            .inspect_err(|error| handle.abort(error))?;
        let blocks = u64::from(logical) + u64::from(len);
        inode.set_size_bytes(blocks * u64::from(self.geometry.block_size));
        inode.update_checksum(&self.geometry, file.nr);
        let bytes = inode.bytes();
        handle.get_write_access(&table)[offset..offset + bytes.len()].copy_from_slice(bytes);
        Ok(())
    }

    fn inode_place(&self, parts: &GrowthParts<'_>, nr: InodeNr) -> Result<(Arc<Buffer>, usize)> {
        let (block, offset) = parts.allocator.inode_block(nr)?;
        Ok((parts.cache.get(block)?, offset))
    }

    fn inode_bytes(&self, table: &Buffer, offset: usize) -> InodeBytes<Vec<u8>> {
        let end = offset + self.geometry.inode_size as usize;
        InodeBytes::new(table.read()[offset..end].to_vec())
    }
}
