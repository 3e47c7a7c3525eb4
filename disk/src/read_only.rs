//! `ReadOnlyDevice`: a view that refuses every change, for read-only mounts and dry runs.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};

use crate::bounds::read_only_error;
use crate::device::BlockDevice;

/// A device that cannot be written through this view.
#[derive(Debug)]
pub struct ReadOnlyDevice<D> {
    inner: D,
}

impl<D: BlockDevice> ReadOnlyDevice<D> {
    /// A read-only view of `inner`.
    pub fn new(inner: D) -> Self {
        ReadOnlyDevice { inner }
    }
}

impl<D: BlockDevice> BlockDevice for ReadOnlyDevice<D> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner.read_at(offset, buf)
    }

    fn write_at(&self, _offset: u64, _buf: &[u8]) -> io::Result<()> {
        Err(read_only_error())
    }

    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.inner.read_vectored_at(offset, bufs)
    }

    fn write_vectored_at(&self, _offset: u64, _bufs: &[IoSlice<'_>]) -> io::Result<()> {
        Err(read_only_error())
    }

    /// Nothing was written through this view, so there is nothing to make durable.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(read_only_error())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Err(read_only_error())
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn sector_size(&self) -> u32 {
        self.inner.sector_size()
    }

    fn is_read_only(&self) -> bool {
        true
    }

    fn backing_file(&self) -> Option<&File> {
        // A file that is open for writing would be a way round this view.
        if self.inner.is_read_only() {
            self.inner.backing_file()
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{FileDevice, MemoryDevice};

    #[test]
    fn reads_and_refuses_writes() {
        let view = ReadOnlyDevice::new(MemoryDevice::from_bytes(b"data"));
        let mut buf = [0; 4];
        view.read_at(0, &mut buf).unwrap();
        assert_eq!(&buf, b"data");
        view.flush().unwrap();
        for result in [
            view.write_at(0, b"x"),
            view.write_vectored_at(0, &[IoSlice::new(b"x")]),
            view.write_zeroes(0, 1),
            view.discard(0, 1),
        ] {
            assert_eq!(
                result.unwrap_err().kind(),
                io::ErrorKind::ReadOnlyFilesystem
            );
        }
        assert_eq!(view.inner.to_vec(), b"data");
    }

    #[test]
    fn hides_a_writable_file() {
        let dir = tempfile::tempdir().unwrap();
        let device = FileDevice::create(dir.path().join("disk.img"), 512).unwrap();
        assert!(ReadOnlyDevice::new(&device).backing_file().is_none());
        let path = device.path().to_owned();
        drop(device);
        let device = FileDevice::open_read_only(path).unwrap();
        assert!(ReadOnlyDevice::new(&device).backing_file().is_some());
    }
}
