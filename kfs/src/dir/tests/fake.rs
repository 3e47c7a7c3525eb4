//! A directory whose blocks are any blocks of a device.

use super::super::{Directory, DirectoryBlocks, DirectoryFormat, FileName};
use crate::error::{Error, Result};
use crate::ids::{BlockNr, InodeNr, LogicalBlock};
use crate::layout::FileType;
use crate::storage::{Buffer, BufferCache, Handle, Journal};
use kfs_disk::{BlockDevice, MemoryDevice};
use std::cell::Cell;
use std::sync::Arc;

/// Blocks of a directory on a device without journal.
pub(super) struct Fake {
    pub(super) format: DirectoryFormat,
    pub(super) blocks: Vec<BlockNr>,
    /// Where appended blocks come from, last first.
    pub(super) spare: Vec<BlockNr>,
    pub(super) prepared: u32,
    pub(super) indexed: bool,
    pub(super) cache: Arc<BufferCache>,
    pub(super) journal: Arc<Journal>,
    /// Calls of `block`.
    pub(super) reads: Cell<usize>,
}

/// A format with all features, half MD4.
pub(in crate::dir) fn format_for_tests(block_size: u32, checksums: bool) -> DirectoryFormat {
    DirectoryFormat {
        inode: InodeNr(12),
        block_size,
        checksum_seed: checksums.then_some(0x1234_5678),
        has_file_type: true,
        dir_index: true,
        large_dir: false,
        default_hash_version: 1,
        hash_unsigned: false,
        hash_seed: [1, 2, 3, 4],
    }
}

impl Fake {
    /// On a device, with no blocks.
    pub(super) fn on(device: Arc<dyn BlockDevice>, format: DirectoryFormat) -> Self {
        let blocks_count = device.size_bytes() / u64::from(format.block_size);
        let cache = BufferCache::new(
            Arc::clone(&device),
            format.block_size,
            blocks_count,
            64 << 20,
        );
        let cache = Arc::new(cache);
        let journal = Arc::new(Journal::open(device, Arc::clone(&cache), None));
        let (blocks, spare) = (Vec::new(), Vec::new());
        Self {
            format,
            blocks,
            spare,
            prepared: 0,
            indexed: false,
            cache,
            journal,
            reads: Cell::new(0),
        }
    }

    /// In memory, with room for `room` blocks.
    pub(super) fn in_memory(format: DirectoryFormat, room: u64) -> Self {
        let device = MemoryDevice::new((room + 8) * u64::from(format.block_size));
        let mut fake = Self::on(Arc::new(device), format);
        fake.spare = (8..room + 8).rev().map(BlockNr).collect();
        fake
    }
}

impl DirectoryBlocks for Fake {
    fn format(&self) -> DirectoryFormat {
        self.format
    }

    fn blocks_count(&self) -> u32 {
        self.blocks.len() as u32
    }

    fn block(&self, block: LogicalBlock) -> Result<Arc<Buffer>> {
        self.reads.set(self.reads.get() + 1);
        self.cache.get(self.blocks[block.0 as usize])
    }

    fn prepare(&mut self, count: u32) -> Result<()> {
        if count as usize > self.spare.len() {
            return Err(Error::NoSpace);
        }
        assert!(count <= super::super::APPENDS_MAX);
        self.prepared = count;
        Ok(())
    }

    fn append(&mut self, _handle: &mut Handle<'_>) -> (LogicalBlock, Arc<Buffer>) {
        assert!(self.prepared > 0, "appended without having prepared");
        self.prepared -= 1;
        let nr = self.spare.pop().unwrap();
        self.blocks.push(nr);
        (
            LogicalBlock(self.blocks.len() as u32 - 1),
            self.cache.get_zeroed(nr).unwrap(),
        )
    }

    fn is_indexed(&self) -> bool {
        self.indexed
    }

    fn set_indexed(&mut self, _handle: &mut Handle<'_>, indexed: bool) {
        self.indexed = indexed;
    }
}

/// Changes with a handle each, with exactly the credits promised.
impl Directory<Fake> {
    pub(super) fn with_handle<T>(
        &mut self,
        change: impl FnOnce(&mut Self, &mut Handle<'_>) -> Result<T>,
    ) -> Result<T> {
        let journal = Arc::clone(&self.blocks.journal);
        let mut handle = journal.start(super::super::CHANGE_CREDITS)?;
        let result = change(self, &mut handle);
        if result.is_err() {
            assert!(!handle.is_modified(), "failed after a change");
        } else {
            assert_eq!(self.blocks.prepared, 0, "prepared more than was appended");
        }
        result
    }

    pub(super) fn new_in_memory(format: DirectoryFormat, room: u64) -> Self {
        let mut directory = Self::new(Fake::in_memory(format, room));
        directory
            .with_handle(|d, handle| d.init(handle, InodeNr(2)))
            .unwrap();
        directory
    }

    pub(super) fn add_now(&mut self, name: &[u8], inode: u32) -> Result<()> {
        let name = FileName::new(name)?;
        self.with_handle(|d, handle| d.add(handle, name, InodeNr(inode), FileType::Regular))
    }

    pub(super) fn remove_now(&mut self, name: &[u8]) -> Result<InodeNr> {
        let name = FileName::new(name)?;
        self.with_handle(|d, handle| d.remove(handle, name))
            .map(|entry| entry.inode)
    }

    pub(super) fn replace_now(&mut self, name: &[u8], inode: u32) -> Result<InodeNr> {
        let name = FileName::new(name)?;
        self.with_handle(|d, handle| d.replace(handle, name, InodeNr(inode), FileType::Symlink))
            .map(|entry| entry.inode)
    }
}
