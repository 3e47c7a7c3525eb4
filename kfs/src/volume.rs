//! `Volume`: the parts that inodes, files and directories work on.
//!
//! Put together once by `fs::mount` and never changed: each part has its own locks. It knows nothing
//! of inodes in memory; `fs::Filesystem` adds those.

use crate::allocator::Allocator;
use crate::error::{Error, IoOp, ReadOnlyReason, Result};
use crate::ids::{BlockNr, Run};
use crate::layout::superblock::SUPERBLOCK_OFFSET;
use crate::layout::{Geometry, RawSuperblock};
use crate::snapshot::{GrowthParts, Snapshots};
use crate::storage::{Buffer, BufferCache, Handle, Journal};
use crate::sync::{Rank, ReadGuard, WriteGuard};
use crate::time::{Clock, Timestamp};
use kfs_disk::BlockDevice;
use parking_lot::RwLock;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use zerocopy::FromBytes;

/// The parts of a mounted volume below its inodes.
pub struct Volume {
    /// Immutable facts.
    pub geometry: Geometry,
    /// Metadata blocks.
    pub cache: Arc<BufferCache>,
    /// Makes changes of metadata atomic.
    pub journal: Journal,
    /// Free blocks and inodes.
    pub allocator: Arc<Allocator>,
    /// What must stay as it was.
    pub snapshots: Arc<Snapshots>,
    /// Held shared by those who write file data, from the choice of its place to the end of the
    /// write, and alone by who takes a snapshot. An outer lock, taken after those of inodes.
    data_writes: crate::sync::RwLock<()>,
    device: Arc<dyn BlockDevice>,
    /// The block that holds the superblock, kept in memory so that an update cannot fail.
    superblock: Arc<Buffer>,
    clock: Arc<dyn Clock>,
    read_only: RwLock<Option<ReadOnlyReason>>,
    /// Sequence from which generations of new inodes are taken.
    generation: AtomicU32,
}

/// What a [`Volume`] is put together from.
pub struct VolumeParts {
    /// Immutable facts.
    pub geometry: Geometry,
    /// What everything is on.
    pub device: Arc<dyn BlockDevice>,
    /// Metadata blocks.
    pub cache: Arc<BufferCache>,
    /// The block that holds the superblock.
    pub superblock: Arc<Buffer>,
    /// Makes changes of metadata atomic.
    pub journal: Journal,
    /// Free blocks and inodes.
    pub allocator: Arc<Allocator>,
    /// What must stay as it was.
    pub snapshots: Arc<Snapshots>,
    /// For time stamps.
    pub clock: Arc<dyn Clock>,
    /// Why no changes are taken.
    pub read_only: Option<ReadOnlyReason>,
    /// Where generations of new inodes start.
    pub generation_seed: u32,
}

/// Where in its block the superblock starts, in bytes.
pub fn superblock_offset(geometry: &Geometry) -> usize {
    SUPERBLOCK_OFFSET as usize % geometry.block_size as usize
}

impl Volume {
    /// Puts the parts together.
    pub fn new(parts: VolumeParts) -> Self {
        Self {
            geometry: parts.geometry,
            cache: parts.cache,
            journal: parts.journal,
            allocator: parts.allocator,
            snapshots: parts.snapshots,
            data_writes: crate::sync::RwLock::new(Rank::DataWrites, ()),
            device: parts.device,
            superblock: parts.superblock,
            clock: parts.clock,
            read_only: RwLock::new(parts.read_only),
            generation: AtomicU32::new(parts.generation_seed),
        }
    }

    /// The superblock as it is now.
    #[must_use]
    pub fn superblock(&self) -> RawSuperblock {
        let block = self.superblock.read();
        let bytes = &block[superblock_offset(&self.geometry)..];
        RawSuperblock::read_from_prefix(bytes)
            .expect("a block holds a superblock")
            .0
    }

    /// Changes the superblock, one block of the handle's credits.
    pub fn update_superblock(
        &self,
        handle: &mut Handle<'_>,
        change: impl FnOnce(&mut RawSuperblock),
    ) {
        let mut block = handle.get_write_access(&self.superblock);
        let bytes = &mut block[superblock_offset(&self.geometry)..];
        let (raw, _) = RawSuperblock::mut_from_prefix(bytes).expect("a block holds a superblock");
        change(raw);
        raw.seal();
    }

    /// The time for time stamps.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// A generation for a new inode: differs from that of the inode's earlier lives.
    #[must_use]
    pub fn new_generation(&self) -> u32 {
        // A step that is odd visits all values before it repeats one.
        self.generation.fetch_add(0x9e37_79b9, Ordering::Relaxed)
    }

    /// Why the volume takes no changes, `None` when it does.
    #[must_use]
    pub fn read_only(&self) -> Option<ReadOnlyReason> {
        if self.journal.is_aborted() {
            return Some(ReadOnlyReason::Error);
        }
        *self.read_only.read()
    }

    /// From now on the volume takes no changes.
    pub fn set_read_only(&self, reason: ReadOnlyReason) {
        *self.read_only.write() = Some(reason);
    }

    /// Opens a handle for up to `credits` metadata blocks.
    ///
    /// # Errors
    /// `ReadOnly`, or what a commit reports that was needed to make room.
    pub fn start(&self, credits: u32) -> Result<Handle<'_>> {
        if let Some(reason) = self.read_only() {
            return Err(Error::ReadOnly { reason });
        }
        loop {
            match self.journal.start(credits) {
                Err(Error::SnapshotStoreFull) => self.grow_store(credits)?,
                other => return other,
            }
        }
    }

    /// Gives the snapshot store room for handles of `credits` blocks.
    pub(crate) fn grow_store(&self, credits: u32) -> Result<()> {
        self.snapshots.grow(&self.growth_parts(), credits)
    }

    pub(crate) fn growth_parts(&self) -> GrowthParts<'_> {
        GrowthParts {
            journal: &self.journal,
            cache: &self.cache,
            allocator: &self.allocator,
        }
    }

    /// To be held while file data is written: no snapshot is taken meanwhile.
    pub(crate) fn begin_data_write(&self) -> ReadGuard<'_, ()> {
        self.data_writes.read()
    }

    /// To be held while a snapshot is taken: no file data is being written.
    pub(crate) fn stop_data_writes(&self) -> WriteGuard<'_, ()> {
        self.data_writes.write()
    }

    /// Whether a snapshot sees the first block of a run, so that its data must not be overwritten, and
    /// how many blocks after it are like it.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn kept_run(&self, start: BlockNr, len: u32) -> Result<(bool, u32)> {
        if !self.snapshots.is_active() {
            return Ok((false, len));
        }
        self.allocator.kept_run(Run { start, len })
    }

    /// Runs `change` with a handle. If it fails with something that leaves metadata half changed,
    /// the journal is aborted before the change can commit.
    ///
    /// # Errors
    /// What `start` or `change` report.
    pub fn transact<R>(
        &self,
        credits: u32,
        change: impl FnOnce(&mut Handle<'_>) -> Result<R>,
    ) -> Result<R> {
        self.transact_with(self.start(credits)?, change)
    }

    /// As [`Volume::transact`], with up to [`Journal::large_credits_max`] credits.
    ///
    /// # Errors
    /// What `start` or `change` report.
    pub fn transact_large<R>(
        &self,
        credits: u32,
        change: impl FnOnce(&mut Handle<'_>) -> Result<R>,
    ) -> Result<R> {
        loop {
            match self.journal.start_large(credits) {
                Err(Error::SnapshotStoreFull) => self.grow_store(credits)?,
                handle => return self.transact_with(handle?, change),
            }
        }
    }

    fn transact_with<R>(
        &self,
        mut handle: Handle<'_>,
        change: impl FnOnce(&mut Handle<'_>) -> Result<R>,
    ) -> Result<R> {
        let result = change(&mut handle);
        if let Err(error) = &result
            && handle.is_modified()
            && matches!(
                error,
                Error::Io { .. } | Error::Device { .. } | Error::Corrupt(_)
            )
        {
            handle.abort(error);
        }
        result
    }

    /// Bytes in a block.
    #[must_use]
    pub fn block_size(&self) -> u64 {
        u64::from(self.geometry.block_size)
    }

    /// The device, for what maps or measures it.
    #[must_use]
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// Makes completed data writes durable without a commit.
    ///
    /// # Errors
    /// What the device reports; the journal is aborted then, as nobody knows what is durable.
    pub fn flush(&self) -> Result<()> {
        let flushed = self.device.flush();
        flushed.map_err(|source| {
            let error = Error::Device {
                op: IoOp::Flush,
                source,
            };
            self.journal.abort(&error);
            error
        })
    }

    /// Reads file data: fills `bufs` from `offset` bytes behind the start of block `block`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn read_data(
        &self,
        block: BlockNr,
        offset: u64,
        bufs: &mut [IoSliceMut<'_>],
    ) -> Result<()> {
        self.device
            .read_vectored_at(self.geometry.offset_of(block) + offset, bufs)
            .map_err(|source| Error::Io {
                op: IoOp::Read,
                block,
                source,
            })
    }

    /// Writes file data: all of `bufs` at `offset` bytes behind the start of block `block`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn write_data(&self, block: BlockNr, offset: u64, bufs: &[IoSlice<'_>]) -> Result<()> {
        self.device
            .write_vectored_at(self.geometry.offset_of(block) + offset, bufs)
            .map_err(|source| Error::Io {
                op: IoOp::Write,
                block,
                source,
            })
    }

    /// Zeros `len` bytes of file data from `offset` bytes behind the start of block `block`.
    ///
    /// # Errors
    /// When the device fails.
    pub fn zero_data(&self, block: BlockNr, offset: u64, len: u64) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        self.device
            .write_zeroes(self.geometry.offset_of(block) + offset, len)
            .map_err(|source| Error::Io {
                op: IoOp::Write,
                block,
                source,
            })
    }

    /// Zeros whole blocks of file data.
    ///
    /// # Errors
    /// When the device fails.
    pub fn zero_run(&self, run: Run) -> Result<()> {
        self.zero_data(run.start, 0, u64::from(run.len) * self.block_size())
    }
}
