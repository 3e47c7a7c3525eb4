//! Reading file data.

use super::{DataSink, File};
use crate::error::{Error, Result};
use crate::extent::Mapping;
use crate::ids::BlockNr;
use std::io::IoSliceMut;

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
        let moves = self.inode.moves();
        let (physical, bytes) = self.piece(at, end)?;
        let count = usize::try_from(bytes).map_err(|_| Error::Invalid)?;
        match physical {
            Some(block) => {
                let within = self.within_block(at);
                sink.fill(count, &mut |bufs| {
                    self.volume.read_data(block, within, bufs)?;
                    if self.inode.has_moved_since(moves) {
                        return self.read_again(at, bufs);
                    }
                    Ok(())
                })?;
            }
            None => sink.zeros(count)?,
        }
        Ok(bytes)
    }

    /// The block that holds the byte at `at`, `None` in a hole, and how many bytes up to `end` are so.
    fn piece(self, at: u64, end: u64) -> Result<(Option<BlockNr>, u64)> {
        let logical = self.block_of(at)?;
        let mapping = self
            .inode
            .map(self.volume, logical, self.blocks_spanned(at, end))?;
        let (physical, blocks) = match mapping {
            Mapping::Mapped { physical, len } => (Some(physical), len),
            Mapping::Unwritten { len, .. } | Mapping::Hole { len } => (None, len),
        };
        let covered = u64::from(blocks) * self.volume.block_size() - self.within_block(at);
        Ok((physical, covered.min(end - at)))
    }

    /// Reads what lies at `at` with nobody moving it meanwhile: the blocks read before may have been given
    /// away while they were read.
    fn read_again(self, at: u64, bufs: &mut [IoSliceMut<'_>]) -> Result<()> {
        let _nobody_moves = self.inode.allocation.lock();
        let len = bufs.iter().map(|buf| buf.len()).sum();
        let mut bytes = vec![0; len];
        let end = at + len as u64;
        let mut now = at;
        while now < end {
            let rest = &mut bytes[(now - at) as usize..];
            let (physical, covered) = self.piece(now, end)?;
            let part = &mut rest[..covered as usize];
            if let Some(physical) = physical {
                let within = self.within_block(now);
                self.volume
                    .read_data(physical, within, &mut [IoSliceMut::new(part)])?;
            }
            now += covered;
        }
        fill(&bytes, bufs);
        Ok(())
    }
}

/// Gives bytes that are in memory to a sink.
fn copy(mut content: &[u8], sink: &mut dyn DataSink) -> Result<()> {
    sink.fill(content.len(), &mut |bufs| {
        content = fill(content, bufs);
        Ok(())
    })
}

/// Copies bytes to buffers and returns what does not fit.
fn fill<'c>(mut content: &'c [u8], bufs: &mut [IoSliceMut<'_>]) -> &'c [u8] {
    for buf in bufs {
        let (now, later) = content.split_at(buf.len().min(content.len()));
        buf[..now.len()].copy_from_slice(now);
        content = later;
    }
    content
}
