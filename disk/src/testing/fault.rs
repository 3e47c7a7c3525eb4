//! `FaultDevice`: makes chosen operations fail, as a bad disk or a full host would.
//!
//! A vectored call is one operation. Faults are looked at in the order in which they were
//! injected, each counts the operations it matches, and the first that strikes decides.

use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;

use parking_lot::Mutex;
use rustix::io::Errno;

use crate::bounds::{check_bounds, total_len};
use crate::device::BlockDevice;
use crate::testing::op::{Op, OpKind, OpKinds};
use crate::testing::rng::SplitMix64;

/// Which of the matching operations a fault strikes; they are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultTrigger {
    /// This one only.
    Nth(u64),
    /// This one and all later ones.
    From(u64),
    /// Every one.
    Always,
}

/// The error that a struck operation returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultError {
    /// `EIO`.
    Io,
    /// `ENOSPC`: the host has no room for a sparse image to grow.
    NoSpace,
}

/// What of a struck operation still happens before its error is returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEffect {
    /// Nothing.
    Nothing,
    /// The first bytes are transferred.
    Short {
        /// How many, at most.
        bytes: u64,
    },
    /// A random choice of the sectors of a write is written; other operations do nothing.
    Torn {
        /// Seed of the choice.
        seed: u64,
    },
}

/// A rule: which operations fail, and how.
#[derive(Clone, Debug)]
pub struct Fault {
    kinds: OpKinds,
    range: Option<Range<u64>>,
    trigger: FaultTrigger,
    effect: FaultEffect,
    error: FaultError,
}

impl Fault {
    /// Operations of the given kinds fail with `EIO` and do nothing.
    pub fn new(kinds: impl Into<OpKinds>, trigger: FaultTrigger) -> Self {
        Fault {
            kinds: kinds.into(),
            range: None,
            trigger,
            effect: FaultEffect::Nothing,
            error: FaultError::Io,
        }
    }

    /// Only operations that touch a byte of `range` match (so no flush does).
    #[must_use]
    pub fn in_range(mut self, range: Range<u64>) -> Self {
        self.range = Some(range);
        self
    }

    /// The error returned.
    #[must_use]
    pub fn error(mut self, error: FaultError) -> Self {
        self.error = error;
        self
    }

    /// What still happens.
    #[must_use]
    pub fn effect(mut self, effect: FaultEffect) -> Self {
        self.effect = effect;
        self
    }

    fn matches(&self, op: &Op) -> bool {
        self.kinds.contains(op.kind) && self.range.as_ref().is_none_or(|range| op.overlaps(range))
    }
}

impl FaultTrigger {
    fn strikes(self, count: u64) -> bool {
        match self {
            FaultTrigger::Nth(n) => count == n,
            FaultTrigger::From(n) => count >= n,
            FaultTrigger::Always => true,
        }
    }
}

impl FaultError {
    fn to_io(self) -> io::Error {
        match self {
            FaultError::Io => Errno::IO.into(),
            FaultError::NoSpace => Errno::NOSPC.into(),
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Each with the number of operations that it has matched.
    faults: Vec<(Fault, u64)>,
    /// Operations seen, by kind.
    seen: [u64; 5],
    struck: u64,
}

/// Another device, some of whose operations fail.
#[derive(Debug)]
pub struct FaultDevice<D> {
    inner: D,
    state: Mutex<State>,
}

impl<D: BlockDevice> FaultDevice<D> {
    /// A device without faults yet.
    pub fn new(inner: D) -> Self {
        FaultDevice {
            inner,
            state: Mutex::new(State::default()),
        }
    }

    /// The device below; what is done to it directly never fails by a fault.
    pub fn inner(&self) -> &D {
        &self.inner
    }

    /// Adds a fault, which counts from now.
    pub fn inject(&self, fault: Fault) {
        self.state.lock().faults.push((fault, 0));
    }

    /// Removes all faults.
    pub fn clear(&self) {
        self.state.lock().faults.clear();
    }

    /// Operations of these kinds so far, failed ones included.
    pub fn count(&self, kinds: impl Into<OpKinds>) -> u64 {
        let (kinds, state) = (kinds.into(), self.state.lock());
        KINDS
            .into_iter()
            .filter(|&kind| kinds.contains(kind))
            .map(|kind| state.seen[kind as usize])
            .sum()
    }

    /// How many operations were made to fail.
    pub fn struck(&self) -> u64 {
        self.state.lock().struck
    }

    /// Counts an operation and finds the fault that strikes it, if any.
    fn pass(&self, op: &Op) -> Option<(FaultEffect, FaultError)> {
        let mut state = self.state.lock();
        state.seen[op.kind as usize] += 1;
        let mut result = None;
        for (fault, count) in &mut state.faults {
            if fault.matches(op) {
                if result.is_none() && fault.trigger.strikes(*count) {
                    result = Some((fault.effect, fault.error));
                }
                *count += 1;
            }
        }
        state.struck += u64::from(result.is_some());
        result
    }

    /// Does what is left of a struck write.
    fn write_damaged(&self, offset: u64, data: &[u8], effect: FaultEffect) -> io::Result<()> {
        match effect {
            FaultEffect::Nothing => Ok(()),
            FaultEffect::Short { bytes } => self
                .inner
                .write_at(offset, &data[..short_len(data.len(), bytes)]),
            FaultEffect::Torn { seed } => {
                check_bounds(offset, data.len() as u64, self.size_bytes())?;
                let mut rng = SplitMix64::new(seed);
                let sector = u64::from(self.sector_size());
                let mut done = 0;
                while done < data.len() {
                    let place = offset + done as u64;
                    let to_boundary = (sector - place % sector) as usize;
                    let len = to_boundary.min(data.len() - done);
                    if rng.coin() {
                        self.inner.write_at(place, &data[done..done + len])?;
                    }
                    done += len;
                }
                Ok(())
            }
        }
    }
}

const KINDS: [OpKind; 5] = [
    OpKind::Read,
    OpKind::Write,
    OpKind::Flush,
    OpKind::Discard,
    OpKind::WriteZeroes,
];

fn short_len(len: usize, bytes: u64) -> usize {
    (len as u64).min(bytes) as usize
}

impl<D: BlockDevice> BlockDevice for FaultDevice<D> {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self.pass(&Op::new(OpKind::Read, offset, buf.len() as u64)) {
            None => self.inner.read_at(offset, buf),
            Some((effect, error)) => {
                if let FaultEffect::Short { bytes } = effect {
                    let len = short_len(buf.len(), bytes);
                    self.inner.read_at(offset, &mut buf[..len])?;
                }
                Err(error.to_io())
            }
        }
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        match self.pass(&Op::new(OpKind::Write, offset, buf.len() as u64)) {
            None => self.inner.write_at(offset, buf),
            Some((effect, error)) => {
                self.write_damaged(offset, buf, effect)?;
                Err(error.to_io())
            }
        }
    }

    fn read_vectored_at(&self, offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        match self.pass(&Op::new(OpKind::Read, offset, total_len(bufs))) {
            None => self.inner.read_vectored_at(offset, bufs),
            Some((effect, error)) => {
                if let FaultEffect::Short { bytes } = effect {
                    let mut done = 0;
                    for buf in bufs {
                        let len = short_len(buf.len(), bytes - done);
                        self.inner.read_at(offset + done, &mut buf[..len])?;
                        done += len as u64;
                    }
                }
                Err(error.to_io())
            }
        }
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        match self.pass(&Op::new(OpKind::Write, offset, total_len(bufs))) {
            None => self.inner.write_vectored_at(offset, bufs),
            Some((effect, error)) => {
                let data: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
                self.write_damaged(offset, &data, effect)?;
                Err(error.to_io())
            }
        }
    }

    fn flush(&self) -> io::Result<()> {
        match self.pass(&Op::new(OpKind::Flush, 0, 0)) {
            None => self.inner.flush(),
            Some((_, error)) => Err(error.to_io()),
        }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.pass(&Op::new(OpKind::Discard, offset, len)) {
            None => self.inner.discard(offset, len),
            Some((_, error)) => Err(error.to_io()),
        }
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.pass(&Op::new(OpKind::WriteZeroes, offset, len)) {
            None => self.inner.write_zeroes(offset, len),
            Some((effect, error)) => {
                if let FaultEffect::Short { bytes } = effect {
                    self.inner.write_zeroes(offset, len.min(bytes))?;
                }
                Err(error.to_io())
            }
        }
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

    fn device() -> FaultDevice<MemoryDevice> {
        FaultDevice::new(MemoryDevice::new(8192))
    }

    fn errno(result: io::Result<()>) -> Option<i32> {
        result.err().and_then(|err| err.raw_os_error())
    }

    #[test]
    fn the_nth_write_fails_and_no_other() {
        let device = device();
        device.inject(Fault::new(OpKind::Write, FaultTrigger::Nth(2)));
        let failed: Vec<bool> = (0..5)
            .map(|i| {
                device.read_at(0, &mut [0; 1]).unwrap();
                device.write_at(i, &[1]).is_err()
            })
            .collect();
        assert_eq!(failed, [false, false, true, false, false]);
        assert_eq!(device.inner().to_vec()[..5], [1, 1, 0, 1, 1]);
        assert_eq!(
            (device.count(OpKind::Write), device.count(OpKinds::ALL)),
            (5, 10)
        );
        assert_eq!(device.struck(), 1);
    }

    #[test]
    fn all_after_n_fail_until_cleared() {
        let device = device();
        let fault = Fault::new(OpKinds::CHANGES_AND_FLUSHES, FaultTrigger::From(1));
        device.inject(fault.error(FaultError::NoSpace));
        device.write_at(0, &[1]).unwrap();
        let no_space = Some(Errno::NOSPC.raw_os_error());
        assert_eq!(errno(device.flush()), no_space);
        assert_eq!(
            errno(device.write_vectored_at(0, &[IoSlice::new(&[2])])),
            no_space
        );
        assert_eq!(errno(device.discard(0, 1)), no_space);
        assert_eq!(errno(device.write_zeroes(0, 1)), no_space);
        device.read_at(0, &mut [0; 1]).unwrap();
        device.clear();
        device.flush().unwrap();
        assert_eq!(device.inner().to_vec()[0], 1);
    }

    #[test]
    fn only_the_range_is_bad() {
        let device = device();
        device.inject(Fault::new(OpKinds::ALL, FaultTrigger::Always).in_range(4096..4608));
        device.read_at(0, &mut [0; 4096]).unwrap();
        assert_eq!(
            errno(device.read_at(0, &mut [0; 4097])),
            Some(Errno::IO.raw_os_error())
        );
        assert!(device.write_at(4607, &[1]).is_err());
        device.write_at(4608, &[1]).unwrap();
        device.flush().unwrap();
    }

    #[test]
    fn a_short_write_leaves_its_beginning() {
        let device = device();
        let fault = || {
            Fault::new(OpKinds::ALL, FaultTrigger::Always).effect(FaultEffect::Short { bytes: 3 })
        };
        device.inject(fault());
        let bufs = [IoSlice::new(b"ab"), IoSlice::new(b"cd")];
        assert!(device.write_vectored_at(0, &bufs).is_err());
        assert_eq!(&device.inner().to_vec()[..4], b"abc\0");
        let (mut a, mut b) = ([9; 2], [9; 2]);
        let mut bufs = [IoSliceMut::new(&mut a), IoSliceMut::new(&mut b)];
        assert!(device.read_vectored_at(0, &mut bufs).is_err());
        assert_eq!((&a, &b), (b"ab", b"c\x09"));
    }

    #[test]
    fn a_torn_write_mixes_whole_sectors() {
        let device = device();
        let fault = Fault::new(OpKind::Write, FaultTrigger::Always);
        device.inject(fault.effect(FaultEffect::Torn { seed: 5 }));
        assert!(device.write_at(100, &[1; 8000]).is_err());
        let bytes = device.inner().to_vec();
        let sectors: Vec<u8> = bytes.chunks(512).map(|sector| sector[200]).collect();
        assert!(sectors.contains(&0) && sectors.contains(&1));
        for sector in bytes[512..7680].chunks(512) {
            assert!(sector.iter().all(|&byte| byte == sector[0]));
        }
        assert!(device.write_at(8000, &[1; 300]).is_err());
    }
}
