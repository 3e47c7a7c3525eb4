//! Reading file data.

use super::{DataSink, File};
use crate::error::{Error, Result};
use crate::extent::Mapping;

impl File<'_> {
    /// Reads up to `len` bytes from `offset` into `sink` and returns how many: less than `len` only
    /// at the end of the file.
    ///
    /// # Errors
    /// `Io`, `Corrupt`.
    pub(crate) fn read(self, offset: u64, len: usize, sink: &mut dyn DataSink) -> Result<usize> {
        // Shared with writers: only what takes blocks away excludes readers.
        let _io = self.inode.io.read();
        self.check_alive()?;
        let size = self.inode.size_bytes();
        let end = offset.saturating_add(len as u64).min(size);
        if self.inode.has_inline_data() && offset < end {
            let content = self.inode.inline_data(self.volume)?;
            copy(&content[offset as usize..end as usize], sink)?;
            return Ok((end - offset) as usize);
        }
        let mut at = offset;
        while at < end {
            at += self.read_piece(at, end, sink)?;
        }
        Ok((end.saturating_sub(offset)) as usize)
    }

    /// Reads as far as one extent or hole goes and returns how many bytes that was.
    fn read_piece(self, at: u64, end: u64, sink: &mut dyn DataSink) -> Result<u64> {
        let logical = self.block_of(at)?;
        let within = self.within_block(at);
        let mapping = self
            .inode
            .map(self.volume, logical, self.blocks_spanned(at, end))?;
        let (physical, blocks) = match mapping {
            Mapping::Mapped { physical, len } => (Some(physical), len),
            Mapping::Unwritten { len, .. } | Mapping::Hole { len } => (None, len),
        };
        let covered = u64::from(blocks) * self.volume.block_size() - within;
        let bytes = covered.min(end - at);
        let count = usize::try_from(bytes).map_err(|_| Error::Invalid)?;
        match physical {
            Some(block) => {
                sink.fill(count, &mut |bufs| {
                    self.volume.read_data(block, within, bufs)
                })?;
            }
            None => sink.zeros(count)?,
        }
        Ok(bytes)
    }
}

/// Gives bytes that are in memory to a sink.
fn copy(mut content: &[u8], sink: &mut dyn DataSink) -> Result<()> {
    sink.fill(content.len(), &mut |bufs| {
        for buf in bufs {
            let (now, later) = content.split_at(buf.len().min(content.len()));
            buf[..now.len()].copy_from_slice(now);
            content = later;
        }
        Ok(())
    })
}
