//! `trait BlockDevice`: what every layer above may ask of a disk.

use std::io::{self, IoSlice, IoSliceMut};
use std::sync::Arc;

/// Random access to the bytes of a disk.
///
/// Writes may reach the medium in any order and in whole sectors, until [`flush`](Self::flush)
/// returns: what was written before a flush began is durable when it ends. After a failed write the
/// content of its range is unknown. Reads see all earlier writes of the same process.
pub trait BlockDevice: Send + Sync {
    /// Fills `buf` from `offset`, in bytes. Reading beyond the end is an error.
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()>;

    /// Writes all of `buf` at `offset`, in bytes. Writing beyond the end is an error.
    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()>;

    /// Fills all of `bufs`, in order, from `offset`.
    fn read_vectored_at(&self, mut offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        for buf in bufs {
            self.read_at(offset, buf)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// Writes all of `bufs`, in order, at `offset`.
    fn write_vectored_at(&self, mut offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        for buf in bufs {
            self.write_at(offset, buf)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    /// Makes all completed writes durable.
    fn flush(&self) -> io::Result<()>;

    /// Tells the device that a range is not needed any more; its content is zeros or the old
    /// content afterwards. A device that cannot does nothing.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let _ = (offset, len);
        Ok(())
    }

    /// Makes a range read as zeros, cheaply where the device can.
    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Size in bytes.
    fn size_bytes(&self) -> u64;

    /// Makes the device at least `size` bytes long, new ones being zeros, or finds out that it is that long by
    /// now. 0 only looks.
    ///
    /// # Errors
    /// When it cannot be; most devices cannot.
    fn grow(&self, size: u64) -> io::Result<()> {
        if size <= self.size_bytes() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the device has a fixed size",
        ))
    }

    /// Smallest unit that a write changes as a whole, in bytes.
    fn sector_size(&self) -> u32 {
        512
    }

    /// Whether writes are refused.
    fn is_read_only(&self) -> bool {
        false
    }

    /// The file behind the device where data lies at the same offsets in it (for mapping it into a
    /// guest); `None` where there is none.
    fn backing_file(&self) -> Option<&std::fs::File> {
        None
    }
}

macro_rules! forward {
    () => {
        fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
            (**self).read_at(offset, buf)
        }
        fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
            (**self).write_at(offset, buf)
        }
        fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
            (**self).read_vectored_at(offset, bufs)
        }
        fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
            (**self).write_vectored_at(offset, bufs)
        }
        fn flush(&self) -> io::Result<()> {
            (**self).flush()
        }
        fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
            (**self).discard(offset, len)
        }
        fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
            (**self).write_zeroes(offset, len)
        }
        fn size_bytes(&self) -> u64 {
            (**self).size_bytes()
        }
        fn grow(&self, size: u64) -> io::Result<()> {
            (**self).grow(size)
        }
        fn sector_size(&self) -> u32 {
            (**self).sector_size()
        }
        fn is_read_only(&self) -> bool {
            (**self).is_read_only()
        }
        fn backing_file(&self) -> Option<&std::fs::File> {
            (**self).backing_file()
        }
    };
}

impl<D: BlockDevice + ?Sized> BlockDevice for &D {
    forward!();
}

impl<D: BlockDevice + ?Sized> BlockDevice for Arc<D> {
    forward!();
}

impl<D: BlockDevice + ?Sized> BlockDevice for Box<D> {
    forward!();
}
