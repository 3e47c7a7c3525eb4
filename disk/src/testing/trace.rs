//! `TraceDevice`: the ordered list of operations, for assertions such as "data before the commit
//! block".

use std::io::{self, IoSlice, IoSliceMut};

use parking_lot::Mutex;

use crate::bounds::total_len;
use crate::device::BlockDevice;
use crate::testing::op::{Op, OpKind};

/// Records every successful operation on another device.
///
/// An operation is listed when it ends, so of two that run at the same time either may be first.
#[derive(Debug)]
pub struct TraceDevice<D> {
    inner: D,
    ops: Mutex<Vec<Op>>,
}

impl<D: BlockDevice> TraceDevice<D> {
    /// Records what is done to `inner` through the new device.
    pub fn new(inner: D) -> Self {
        TraceDevice {
            inner,
            ops: Mutex::new(Vec::new()),
        }
    }

    /// The device below.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// What was done since the last [`take`](Self::take).
    pub fn ops(&self) -> Vec<Op> {
        self.ops.lock().clone()
    }

    /// What was done since the last call, which is forgotten.
    pub fn take(&self) -> Vec<Op> {
        std::mem::take(&mut self.ops.lock())
    }

    fn record(&self, op: Op, result: io::Result<()>) -> io::Result<()> {
        if result.is_ok() {
            self.ops.lock().push(op);
        }
        result
    }
}

impl<D: BlockDevice> BlockDevice for TraceDevice<D> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        let op = Op::new(OpKind::Read, offset, buf.len() as u64);
        self.record(op, self.inner.read_at(offset, buf))
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let op = Op::new(OpKind::Write, offset, buf.len() as u64);
        self.record(op, self.inner.write_at(offset, buf))
    }

    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        let op = Op::new(OpKind::Read, offset, total_len(bufs));
        self.record(op, self.inner.read_vectored_at(offset, bufs))
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let op = Op::new(OpKind::Write, offset, total_len(bufs));
        self.record(op, self.inner.write_vectored_at(offset, bufs))
    }

    fn flush(&self) -> io::Result<()> {
        self.record(Op::new(OpKind::Flush, 0, 0), self.inner.flush())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        let op = Op::new(OpKind::Discard, offset, len);
        self.record(op, self.inner.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let op = Op::new(OpKind::WriteZeroes, offset, len);
        self.record(op, self.inner.write_zeroes(offset, len))
    }

    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    fn sector_size(&self) -> u32 {
        self.inner.sector_size()
    }

    fn is_read_only(&self) -> bool {
        self.inner.is_read_only()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MemoryDevice;

    #[test]
    fn lists_operations_in_order() {
        let device = TraceDevice::new(MemoryDevice::new(4096));
        device
            .write_vectored_at(8, &[IoSlice::new(b"ab"), IoSlice::new(b"c")])
            .unwrap();
        device.flush().unwrap();
        assert!(device.write_at(4096, b"x").is_err());
        device.read_at(0, &mut [0; 4]).unwrap();
        device.write_zeroes(0, 512).unwrap();
        device.discard(512, 512).unwrap();
        let lines: Vec<String> = device.ops().iter().map(Op::to_string).collect();
        assert_eq!(
            lines,
            [
                "write 8+3",
                "flush",
                "read 0+4",
                "zero 0+512",
                "discard 512+512"
            ]
        );
        assert_eq!(device.take().len(), 5);
        assert!(device.ops().is_empty());
    }
}
