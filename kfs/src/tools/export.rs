//! A snapshot as an image of its own: an ordinary volume, sparse, without the store.

use super::{Watch, resolve_parent, tell};
use crate::error::{Error, Result};
use crate::fs::{Filesystem, MountOptions};
use crate::ids::{BlockNr, GroupNr};
use kfs_disk::{BlockDevice, FileDevice};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// Bytes copied at a time.
const COPY_BYTES: u64 = 1 << 20;

/// What looking for the holes of a group takes, in blocks copied.
const TRIM_BLOCKS: u64 = 16;

/// Why a snapshot could not be exported. The new file was removed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The file cannot be made or written.
    #[error("writing the image")]
    Target(#[source] io::Error),
    /// It cannot be opened as a device.
    #[error(transparent)]
    Open(#[from] kfs_disk::OpenError),
    /// The volume cannot be read, or the new one not be finished.
    #[error(transparent)]
    Volume(#[from] Error),
}

/// How far an export is, in blocks.
struct Copied<'c, 'w> {
    watch: &'c mut Watch<'w>,
    done: u64,
    total: u64,
    bytes: u64,
}

impl Copied<'_, '_> {
    fn add(&mut self, blocks: u64) -> Result<()> {
        self.done += blocks;
        tell(self.watch, self.done.min(self.total), self.total)
    }
}

impl Filesystem {
    /// Writes the volume that `self` shows, a snapshot that was opened, to a new file, which is removed
    /// again when that fails or `watch` ends it. Returns the bytes copied.
    ///
    /// # Errors
    /// `Target` when the file exists or cannot be written; `Volume(Interrupted)`; what reading reports.
    pub fn export(
        &self,
        path: &Path,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<u64, ExportError> {
        let size = self.volume.device().size_bytes();
        let file = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            // What is in it may not be for everybody.
            .mode(0o600)
            .open(path)
            .map_err(ExportError::Target)?;
        let made = file.set_len(size).map_err(ExportError::Target);
        drop(file);
        let exported = made.and_then(|()| self.export_to(path, watch));
        if exported.is_err() {
            // What is half an image would only be taken for one.
            let _ = std::fs::remove_file(path);
        }
        exported
    }

    fn export_to(
        &self,
        path: &Path,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<u64, ExportError> {
        let device = Arc::new(FileDevice::open(path)?);
        let groups = self.volume.geometry.groups_count();
        let free = self.volume.allocator.free_blocks();
        let used = self.volume.geometry.blocks_count().saturating_sub(free);
        let mut copied = Copied {
            watch,
            done: 0,
            total: used + u64::from(groups) * TRIM_BLOCKS,
            bytes: 0,
        };
        for group in 0..groups {
            self.export_group(&*device, GroupNr(group), &mut copied)?;
        }
        device.flush().map_err(ExportError::Target)?;
        let options = MountOptions {
            commit_interval: None,
            ..MountOptions::default()
        };
        let exported = Self::open(device, options)?;
        exported.remove_exported_store()?;
        // What was the store's leaves no trace.
        copied.done = used;
        let mut trimmed = |_, _| {
            let told = copied.add(TRIM_BLOCKS);
            told.map_or(ControlFlow::Break(()), ControlFlow::Continue)
        };
        exported.trim(&mut trimmed)?;
        exported.close()?;
        Ok(copied.bytes)
    }

    /// Copies the blocks of a group that are in use.
    fn export_group(
        &self,
        target: &dyn BlockDevice,
        group: GroupNr,
        copied: &mut Copied<'_, '_>,
    ) -> std::result::Result<(), ExportError> {
        let geometry = &self.volume.geometry;
        let first = geometry.group_first_block(group);
        let blocks = geometry.blocks_in_group(group);
        let mut in_use = vec![false; blocks as usize];
        self.volume.allocator.with_live_bitmap(group, |live| {
            for (index, used) in in_use.iter_mut().enumerate() {
                let bit = live.bytes[index / 8] >> (index % 8) & 1 != 0;
                *used = bit && !live.is_uninit;
            }
            Ok(())
        })?;
        // Of a group that was never used there are still the copies of superblock and descriptors.
        for used in in_use
            .iter_mut()
            .take(geometry.base_metadata_blocks(group) as usize)
        {
            *used = true;
        }
        let most = (COPY_BYTES / u64::from(geometry.block_size)) as usize;
        let mut index = 0;
        while index < in_use.len() {
            if !in_use[index] {
                index += 1;
                continue;
            }
            let len = in_use[index..]
                .iter()
                .take(most)
                .take_while(|used| **used)
                .count();
            copied.bytes += self.export_run(target, first.plus(index as u64), len as u64)?;
            copied.add(len as u64)?;
            index += len;
        }
        // In front of the first group there may be a block that belongs to none.
        if group.0 == 0 && first.0 > 0 {
            copied.bytes += self.export_run(target, BlockNr(0), first.0)?;
        }
        Ok(())
    }

    fn export_run(
        &self,
        target: &dyn BlockDevice,
        start: BlockNr,
        len: u64,
    ) -> std::result::Result<u64, ExportError> {
        let offset = self.volume.geometry.offset_of(start);
        let mut bytes = vec![0; (len * self.volume.block_size()) as usize];
        let read = self.volume.device().read_at(offset, &mut bytes);
        read.map_err(|source| Error::Io {
            op: crate::error::IoOp::Read,
            block: start,
            source,
        })?;
        // A new file is all zeros.
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(0);
        }
        target
            .write_at(offset, &bytes)
            .map_err(ExportError::Target)?;
        Ok(bytes.len() as u64)
    }

    /// Takes the snapshot store, which means nothing in an image without snapshots, out of it.
    fn remove_exported_store(&self) -> Result<()> {
        let (directory, name) = match resolve_parent(self, b"/.kfs/snapshots") {
            Ok(found) => found,
            Err(Error::NotFound) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.unlink(&directory, name)?;
        drop(directory);
        self.rmdir(&*self.root()?, b".kfs")
    }
}
