//! `SnapshotDevice`: the volume as a snapshot sees it, as a device that takes no writes.

use super::Snapshots;
use crate::error::{Error, IoOp, Result};
use crate::ids::BlockNr;
use crate::layout::Geometry;
use kfs_disk::BlockDevice;
use std::io;
use std::sync::Arc;

/// A device that shows a snapshot. While it lives the snapshot cannot be deleted.
pub struct SnapshotDevice {
    snapshots: Arc<Snapshots>,
    snapshot: u32,
    size_bytes: u64,
}

impl SnapshotDevice {
    /// Shows the snapshot of this name.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` where what it shows is lost.
    pub fn open(snapshots: &Arc<Snapshots>, name: &str) -> Result<Self> {
        let mut state = snapshots.state.write();
        let record = state.table.find(name).ok_or(Error::NotFound)?;
        snapshots.check_whole(record)?;
        let id = record.id;
        if state.deleting == Some(id) {
            return Err(Error::NotFound);
        }
        *state.viewers.entry(id).or_default() += 1;
        let geometry = &snapshots.geometry;
        Ok(Self {
            snapshots: Arc::clone(snapshots),
            snapshot: id,
            size_bytes: geometry.offset_of(BlockNr(geometry.blocks_count())),
        })
    }

    /// The block that the snapshot sees as itself, in place, up to where the next differs.
    fn in_place(&self, first: u64, end: u64) -> u64 {
        let state = self.snapshots.state.read();
        let moved = state.index.next_moved(self.snapshot, first..end);
        let pending = state.pending.range(first..end).next();
        let pending = pending.map(|(block, _)| *block);
        moved.into_iter().chain(pending).min().unwrap_or(end)
    }

    /// Reads bytes that lie within the blocks `first..end`, which were in place a moment ago.
    fn read_run(&self, offset: u64, buf: &mut [u8], (first, end): (u64, u64)) -> io::Result<()> {
        self.snapshots.device.read_at(offset, buf)?;
        if self.in_place(first, end) == end {
            return Ok(());
        }
        // Something was overwritten meanwhile, and may have been read: its old content is kept.
        let size = u64::from(self.snapshots.geometry.block_size);
        let mut at = 0;
        while at < buf.len() {
            let within = (offset + at as u64) % size;
            let len = ((size - within) as usize).min(buf.len() - at);
            self.read_part(offset + at as u64, &mut buf[at..at + len])?;
            at += len;
        }
        Ok(())
    }

    /// Reads bytes within one block.
    fn read_part(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let size = u64::from(self.snapshots.geometry.block_size);
        let mut content = vec![0; size as usize];
        let block = BlockNr(offset / size);
        self.snapshots
            .read_block(self.snapshot, block, &mut content)
            .map_err(io::Error::other)?;
        let within = (offset % size) as usize;
        buf.copy_from_slice(&content[within..within + buf.len()]);
        Ok(())
    }
}

impl BlockDevice for SnapshotDevice {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let size = u64::from(self.snapshots.geometry.block_size);
        let end = offset + buf.len() as u64;
        if end > self.size_bytes {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let mut at = offset;
        while at < end {
            let block = at / size;
            let moved = self.in_place(block, end.div_ceil(size));
            let from = (at - offset) as usize;
            let stop = if moved == block {
                ((block + 1) * size).min(end)
            } else {
                (moved * size).min(end)
            };
            let piece = &mut buf[from..(stop - offset) as usize];
            if moved == block {
                self.read_part(at, piece)?;
            } else {
                self.read_run(at, piece, (block, stop.div_ceil(size)))?;
            }
            at = stop;
        }
        Ok(())
    }

    fn write_at(&self, _offset: u64, _buf: &[u8]) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
    }

    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn is_read_only(&self) -> bool {
        true
    }
}

impl Drop for SnapshotDevice {
    fn drop(&mut self) {
        let mut state = self.snapshots.state.write();
        if let Some(count) = state.viewers.get_mut(&self.snapshot) {
            *count -= 1;
            if *count == 0 {
                state.viewers.remove(&self.snapshot);
            }
        }
    }
}

/// Reads a block as it is on the device.
pub(super) fn read_in_place(
    device: &dyn BlockDevice,
    geometry: &Geometry,
    block: BlockNr,
    content: &mut [u8],
) -> Result<()> {
    device
        .read_at(geometry.offset_of(block), content)
        .map_err(|source| Error::Io {
            op: IoOp::Read,
            block,
            source,
        })
}
