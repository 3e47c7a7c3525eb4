//! Content of files: read, write, allocate, seek, copy.

use crate::error::{Error, Result};
use crate::file::{
    DataSink, DataSource, SeekTarget, SliceSink, SliceSource, SpaceChange, WriteOptions,
};
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::layout::inode::InodeFlags;
use std::sync::Arc;

/// Bytes copied at a time by [`Filesystem::copy_range`].
const COPY_BYTES: usize = 1 << 20;

impl Filesystem {
    /// Reads up to `len` bytes from `offset` into `sink`: fewer only at the end of the file.
    ///
    /// # Errors
    /// `IsADirectory`, `Invalid` for other things than files, `Stale`, `Corrupt`, `Io`.
    pub fn read(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        len: usize,
        sink: &mut dyn DataSink,
    ) -> Result<usize> {
        check_file(inode)?;
        self.file(inode).read(offset, len, sink)
    }

    /// Writes `len` bytes of `source` at `offset`: fewer only when the volume is full.
    ///
    /// # Errors
    /// As [`Filesystem::read`], and `NotPermitted` for immutable and append-only files, `NoSpace`,
    /// `FileTooLarge`, `ReadOnly`.
    pub fn write(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        len: usize,
        source: &mut dyn DataSource,
        options: WriteOptions,
    ) -> Result<usize> {
        check_file(inode)?;
        if !options.delayed {
            let flags = inode.state().fields().flags();
            if flags.contains(InodeFlags::IMMUTABLE) {
                return Err(Error::NotPermitted);
            }
            self.remove_capabilities(inode)?;
        }
        self.file(inode).write(offset, len, source, options)
    }

    /// A client has closed a file that it may have written: blocks kept ahead are given back.
    pub fn finish_writing(&self, inode: &Inode) {
        inode.drop_preallocation();
    }

    /// fallocate(2).
    ///
    /// # Errors
    /// As [`Filesystem::write`].
    pub fn change_space(
        &self,
        inode: &Arc<Inode>,
        offset: u64,
        len: u64,
        change: SpaceChange,
        options: WriteOptions,
    ) -> Result<()> {
        check_file(inode)?;
        let flags = inode.state().fields().flags();
        let forbids = match change {
            SpaceChange::Allocate { .. } => InodeFlags::IMMUTABLE,
            _ => InodeFlags::IMMUTABLE | InodeFlags::APPEND,
        };
        if flags.intersects(forbids) {
            return Err(Error::NotPermitted);
        }
        self.remove_capabilities(inode)?;
        self.file(inode).change_space(offset, len, change, options)
    }

    /// SEEK_DATA and SEEK_HOLE.
    ///
    /// # Errors
    /// `NoData` beyond the end of the file; as [`Filesystem::read`].
    pub fn seek(&self, inode: &Arc<Inode>, offset: u64, target: SeekTarget) -> Result<u64> {
        check_file(inode)?;
        self.file(inode).seek(offset, target)
    }

    /// Copies `len` bytes between files and returns how many: fewer at the end of the source or when
    /// the volume is full. Holes stay holes where the target has none to fill.
    ///
    /// # Errors
    /// `Invalid` for overlapping ranges of one file; as [`Filesystem::write`].
    pub fn copy_range(
        &self,
        source: (&Arc<Inode>, u64),
        target: (&Arc<Inode>, u64),
        len: u64,
        options: WriteOptions,
    ) -> Result<u64> {
        let (from, from_offset) = source;
        let (to, to_offset) = target;
        let len = len.min(from.size_bytes().saturating_sub(from_offset));
        let is_same = from.nr() == to.nr();
        if is_same && from_offset.abs_diff(to_offset) < len {
            return Err(Error::Invalid);
        }
        let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(len).unwrap_or(COPY_BYTES))];
        let mut copied = 0;
        while copied < len {
            let piece = (len - copied).min(buffer.len() as u64) as usize;
            let bytes = &mut buffer[..piece];
            let read = self.read(
                from,
                from_offset + copied,
                piece,
                &mut SliceSink::new(bytes),
            )?;
            if read == 0 {
                break;
            }
            let bytes = &buffer[..read];
            let at = to_offset + copied;
            match self.write(to, at, read, &mut SliceSource::new(bytes), options) {
                Ok(written) => copied += written as u64,
                Err(Error::NoSpace) if copied > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(copied)
    }
}

fn check_file(inode: &Inode) -> Result<()> {
    if inode.is_deleted() {
        return Err(Error::Stale);
    }
    if inode.is_directory() {
        return Err(Error::IsADirectory);
    }
    if inode.is_regular() {
        Ok(())
    } else {
        Err(Error::Invalid)
    }
}
