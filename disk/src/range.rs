//! `RangeDevice`: a window of another device, such as a partition.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;

use crate::bounds::{check_bounds, total_len};
use crate::device::BlockDevice;

/// A range of bytes of another device, as a device of its own.
#[derive(Debug)]
pub struct RangeDevice<D> {
    inner: D,
    start: u64,
    size: u64,
}

impl<D: BlockDevice> RangeDevice<D> {
    /// The bytes `range` of `inner`. It must lie within `inner` and begin at a sector.
    pub fn new(inner: D, range: Range<u64>) -> io::Result<Self> {
        let refuse = |why: &str| {
            let Range { start, end } = range;
            let text = format!("bytes {start} to {end} cannot be a device: {why}");
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        };
        if range.start > range.end {
            return refuse("the end is before the start");
        }
        if range.end > inner.size_bytes() {
            return refuse("they reach beyond the end of the device");
        }
        if !range.start.is_multiple_of(u64::from(inner.sector_size())) {
            return refuse("they do not begin at a sector");
        }
        Ok(RangeDevice {
            inner,
            start: range.start,
            size: range.end - range.start,
        })
    }

    /// Where a request lies on the inner device; the range was checked, so it cannot overflow.
    fn place(&self, offset: u64, len: u64) -> io::Result<u64> {
        check_bounds(offset, len, self.size)?;
        Ok(self.start + offset)
    }
}

impl<D: BlockDevice> BlockDevice for RangeDevice<D> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.inner
            .read_at(self.place(offset, buf.len() as u64)?, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.inner
            .write_at(self.place(offset, buf.len() as u64)?, buf)
    }

    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        self.inner
            .read_vectored_at(self.place(offset, total_len(bufs))?, bufs)
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.inner
            .write_vectored_at(self.place(offset, total_len(bufs))?, bufs)
    }

    fn flush(&self) -> io::Result<()> {
        self.inner.flush()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(self.place(offset, len)?, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.write_zeroes(self.place(offset, len)?, len)
    }

    fn size_bytes(&self) -> u64 {
        self.size
    }

    fn sector_size(&self) -> u32 {
        self.inner.sector_size()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn backing_file(&self) -> Option<&File> {
        // Only a window that begins where the file begins has its data at the same offsets.
        if self.start == 0 {
            self.inner.backing_file()
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::MemoryDevice;

    #[test]
    fn shifts_and_confines() {
        let disk = Arc::new(MemoryDevice::new(8192));
        let window = RangeDevice::new(disk.clone(), 1024..4096).unwrap();
        assert_eq!(window.size_bytes(), 3072);
        window.write_at(0, b"first").unwrap();
        window
            .write_vectored_at(3070, &[IoSlice::new(b"a"), IoSlice::new(b"z")])
            .unwrap();
        let bytes = disk.to_vec();
        assert_eq!(
            (&bytes[1024..1029], &bytes[4094..4097]),
            (&b"first"[..], &b"az\0"[..])
        );
        let mut pair = [0; 2];
        window
            .read_vectored_at(3070, &mut [IoSliceMut::new(&mut pair)])
            .unwrap();
        assert_eq!(&pair, b"az");
        window.write_zeroes(0, 5).unwrap();
        assert_eq!(&disk.to_vec()[1024..1029], &[0; 5]);
        for (offset, len) in [(3071, 2), (u64::MAX, 1), (u64::MAX - 1024, 1)] {
            assert!(window.write_at(offset, &vec![1; len]).is_err());
            assert!(window.discard(offset, len as u64).is_err());
        }
    }

    #[test]
    fn refuses_impossible_windows() {
        let disk = Arc::new(MemoryDevice::new(8192));
        #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
        let reversed = 1024..512;
        for range in [reversed, 0..8193, 100..8192] {
            assert!(RangeDevice::new(disk.clone(), range).is_err());
        }
        RangeDevice::new(disk, 512..512).unwrap();
    }
}
