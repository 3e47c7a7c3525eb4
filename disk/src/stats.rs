//! `StatsDevice`: counts what passes, for status output and benchmarks.
//!
//! The counters are relaxed: each is exact, but several read together are of slightly different
//! moments. What goes to the backing file directly (a mapping of it) is not seen.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::bounds::total_len;
use crate::device::BlockDevice;

/// Operations and bytes since the device was wrapped. Failed operations count only as errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceStats {
    /// Read operations.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Write operations.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Discards.
    pub discards: u64,
    /// Bytes discarded.
    pub discarded_bytes: u64,
    /// Operations that made zeros of a range.
    pub zeroings: u64,
    /// Bytes so made zeros.
    pub zeroed_bytes: u64,
    /// Operations of any kind that failed.
    pub errors: u64,
}

#[derive(Debug, Default)]
struct Counter {
    operations: AtomicU64,
    bytes: AtomicU64,
}

/// Counts the operations on another device.
#[derive(Debug)]
pub struct StatsDevice<D> {
    inner: D,
    reads: Counter,
    writes: Counter,
    flushes: Counter,
    discards: Counter,
    zeroings: Counter,
    errors: AtomicU64,
}

impl<D: BlockDevice> StatsDevice<D> {
    /// Counts from zero what is done to `inner` through the new device.
    pub fn new(inner: D) -> Self {
        StatsDevice {
            inner,
            reads: Counter::default(),
            writes: Counter::default(),
            flushes: Counter::default(),
            discards: Counter::default(),
            zeroings: Counter::default(),
            errors: AtomicU64::new(0),
        }
    }

    /// The device that is counted.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// The counters now.
    pub fn stats(&self) -> DeviceStats {
        let operations = |counter: &Counter| counter.operations.load(Ordering::Relaxed);
        let bytes = |counter: &Counter| counter.bytes.load(Ordering::Relaxed);
        DeviceStats {
            reads: operations(&self.reads),
            read_bytes: bytes(&self.reads),
            writes: operations(&self.writes),
            written_bytes: bytes(&self.writes),
            flushes: operations(&self.flushes),
            discards: operations(&self.discards),
            discarded_bytes: bytes(&self.discards),
            zeroings: operations(&self.zeroings),
            zeroed_bytes: bytes(&self.zeroings),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }

    fn count(&self, counter: &Counter, bytes: u64, result: io::Result<()>) -> io::Result<()> {
        if result.is_ok() {
            counter.operations.fetch_add(1, Ordering::Relaxed);
            counter.bytes.fetch_add(bytes, Ordering::Relaxed);
        } else {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        result
    }
}

impl<D: BlockDevice> BlockDevice for StatsDevice<D> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let result = self.inner.read_at(offset, buf);
        self.count(&self.reads, buf.len() as u64, result)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.count(
            &self.writes,
            buf.len() as u64,
            self.inner.write_at(offset, buf),
        )
    }

    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let result = self.inner.read_vectored_at(offset, bufs);
        self.count(&self.reads, total_len(bufs), result)
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let result = self.inner.write_vectored_at(offset, bufs);
        self.count(&self.writes, total_len(bufs), result)
    }

    fn flush(&self) -> io::Result<()> {
        self.count(&self.flushes, 0, self.inner.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.count(&self.discards, len, self.inner.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.count(&self.zeroings, len, self.inner.write_zeroes(offset, len))
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn grow(&self, size: u64) -> io::Result<()> {
        self.inner.grow(size)
    }

    fn sector_size(&self) -> u32 {
        self.inner.sector_size()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }

    fn backing_file(&self) -> Option<&File> {
        self.inner.backing_file()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDevice;

    #[test]
    fn counts_what_was_done() {
        let device = StatsDevice::new(MemoryDevice::new(4096));
        device.write_at(0, &[1; 100]).unwrap();
        device
            .write_vectored_at(0, &[IoSlice::new(b"ab"), IoSlice::new(b"c")])
            .unwrap();
        device.read_at(0, &mut [0; 10]).unwrap();
        let mut buf = [0; 5];
        device
            .read_vectored_at(0, &mut [IoSliceMut::new(&mut buf)])
            .unwrap();
        device.flush().unwrap();
        device.discard(0, 512).unwrap();
        device.write_zeroes(0, 1024).unwrap();
        assert!(device.read_at(4096, &mut [0; 1]).is_err());
        let expected = DeviceStats {
            reads: 2,
            read_bytes: 15,
            writes: 2,
            written_bytes: 103,
            flushes: 1,
            discards: 1,
            discarded_bytes: 512,
            zeroings: 1,
            zeroed_bytes: 1024,
            errors: 1,
        };
        assert_eq!(device.stats(), expected);
    }
}
