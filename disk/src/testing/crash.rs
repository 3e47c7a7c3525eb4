//! `CrashDevice`: a disk in memory that remembers every change and flush, and shows what would be
//! on it if the power had gone at any moment.
//!
//! ```text
//!  base --write--write--FLUSH--write--zero--write--FLUSH--    the log
//!    0      1      2      3      4     5      6      7        positions
//!                         |<-- pending at 6 -->|
//!                         durable at 6
//! ```
//!
//! A position is a number of log entries, flushes included: at position 7 of the picture everything
//! is durable, at 6 the same changes were made but three of them may be lost. A test that is told
//! "this is safe now" notes [`CrashDevice::position`] and asks for the thing in all images from
//! there on.

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::bounds::check_bounds;
use crate::device::BlockDevice;
use crate::memory::MemoryDevice;
use crate::testing::crash_image::{CrashPolicy, Entry, apply_pending};
use crate::testing::op::{Op, OpKind};
use crate::testing::rng::SplitMix64;

struct Log {
    /// The content before the first entry.
    base: MemoryDevice,
    entries: Vec<Entry>,
}

/// A disk in memory that can say what is on it after a power cut.
pub struct CrashDevice {
    live: MemoryDevice,
    /// Also held while `live` is changed, so that the log has the changes in their order.
    log: Mutex<Log>,
    sector_size: u32,
}

impl CrashDevice {
    /// A disk with the content of `base`, all of it durable, and sectors of 512 bytes.
    pub fn new(base: MemoryDevice) -> Self {
        Self::with_sector_size(base, 512)
    }

    /// The same with other sectors: the unit in which writes are torn.
    pub fn with_sector_size(base: MemoryDevice, sector_size: u32) -> Self {
        assert!(sector_size > 0, "a sector has bytes");
        let log = Log {
            base: base.snapshot(),
            entries: Vec::new(),
        };
        CrashDevice {
            live: base,
            log: Mutex::new(log),
            sector_size,
        }
    }

    /// Entries in the log now: the latest moment at which the power can go.
    pub fn position(&self) -> usize {
        self.log.lock().entries.len()
    }

    /// The content now, as after an orderly end.
    pub fn snapshot(&self) -> MemoryDevice {
        let _no_changes = self.log.lock();
        self.live.snapshot()
    }

    /// Takes the content as durable and forgets the log; positions start at 0 again.
    pub fn restart_log(&self) {
        let mut log = self.log.lock();
        log.base = self.live.snapshot();
        log.entries.clear();
    }

    /// The log as a list of operations, to be printed beside a failure.
    pub fn ops(&self) -> Vec<Op> {
        self.log
            .lock()
            .entries
            .iter()
            .map(|entry| entry.op)
            .collect()
    }

    /// What is on the disk when the power goes at `position`. To go through many positions,
    /// [`crash_points`](Self::crash_points) is faster.
    ///
    /// # Panics
    /// When the log has no such position.
    pub fn crash_image_at(&self, position: usize, policy: CrashPolicy, seed: u64) -> MemoryDevice {
        let mut points = self.crash_points();
        let point = points.nth(position).expect("the position is in the log");
        point.image(policy, seed)
    }

    /// Every moment at which the power could have gone, from position 0 to the present one.
    pub fn crash_points(&self) -> CrashPoints {
        let log = self.log.lock();
        CrashPoints {
            entries: log.entries.as_slice().into(),
            durable: log.base.snapshot(),
            latest: log.base.snapshot(),
            pending: 0..0,
            sector_size: self.sector_size.into(),
            started: false,
        }
    }

    fn change(&self, kind: OpKind, offset: u64, len: u64, data: Arc<[u8]>) -> io::Result<()> {
        check_bounds(offset, len, self.live.size_bytes())?;
        let entry = Entry {
            op: Op::new(kind, offset, len),
            data,
        };
        let mut log = self.log.lock();
        entry.apply(&self.live);
        log.entries.push(entry);
        Ok(())
    }
}

impl BlockDevice for CrashDevice {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.live.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.change(OpKind::Write, offset, buf.len() as u64, buf.into())
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        let data: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.change(OpKind::Write, offset, data.len() as u64, data.into())
    }

    fn flush(&self) -> io::Result<()> {
        self.change(OpKind::Flush, 0, 0, Arc::default())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(OpKind::Discard, offset, len, Arc::default())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(OpKind::WriteZeroes, offset, len, Arc::default())
    }

    fn size_bytes(&self) -> u64 {
        self.live.size_bytes()
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }
}

/// Goes through the positions of a log; each step applies one entry only.
pub struct CrashPoints {
    entries: Arc<[Entry]>,
    /// The content at the last flush before the present position.
    durable: MemoryDevice,
    /// The content at the present position.
    latest: MemoryDevice,
    /// The changes between the two; its end is the present position.
    pending: Range<usize>,
    sector_size: u64,
    started: bool,
}

impl CrashPoints {
    /// Goes to the next position; false at the end of the log.
    fn advance(&mut self) -> bool {
        if !self.started {
            self.started = true;
            return true;
        }
        let Some(entry) = self.entries.get(self.pending.end) else {
            return false;
        };
        entry.apply(&self.latest);
        self.pending.end += 1;
        if entry.op.kind == OpKind::Flush {
            self.durable = self.latest.snapshot();
            self.pending.start = self.pending.end;
        }
        true
    }
}

impl Iterator for CrashPoints {
    type Item = CrashPoint;

    fn next(&mut self) -> Option<CrashPoint> {
        self.nth(0)
    }

    /// Passes over positions without making anything of them, so `step_by` is cheap too.
    fn nth(&mut self, n: usize) -> Option<CrashPoint> {
        for _ in 0..=n {
            if !self.advance() {
                return None;
            }
        }
        Some(CrashPoint {
            entries: self.entries.clone(),
            durable: self.durable.snapshot(),
            latest: self.latest.snapshot(),
            pending: self.pending.clone(),
            sector_size: self.sector_size,
        })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.entries.len() - self.pending.end + usize::from(!self.started);
        (left, Some(left))
    }
}

impl ExactSizeIterator for CrashPoints {}

/// A moment at which the power goes.
pub struct CrashPoint {
    entries: Arc<[Entry]>,
    durable: MemoryDevice,
    latest: MemoryDevice,
    pending: Range<usize>,
    sector_size: u64,
}

impl CrashPoint {
    /// Its position in the log.
    pub fn position(&self) -> usize {
        self.pending.end
    }

    /// How many changes are not durable.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// What is on the disk after the power cut.
    pub fn image(&self, policy: CrashPolicy, seed: u64) -> MemoryDevice {
        if policy == CrashPolicy::All {
            return self.latest.snapshot();
        }
        let image = self.durable.snapshot();
        let pending = &self.entries[self.pending.clone()];
        apply_pending(&image, pending, self.sector_size, policy, seed);
        image
    }

    /// About `budget` different images, at least two where something is pending: all subsets while
    /// these are few, else none, all and random ones, and torn ones where a write can tear.
    pub fn images(&self, budget: usize, seed: u64) -> impl Iterator<Item = CrashImage> + '_ {
        let mut rng = SplitMix64::new(seed ^ self.position() as u64);
        self.policies(budget).into_iter().map(move |policy| {
            let seed = rng.next_u64();
            let device = self.image(policy, seed);
            CrashImage {
                position: self.position(),
                policy,
                seed,
                device,
            }
        })
    }

    fn policies(&self, budget: usize) -> Vec<CrashPolicy> {
        let pending = &self.entries[self.pending.clone()];
        if pending.is_empty() {
            return vec![CrashPolicy::None];
        }
        let can_tear = !pending
            .iter()
            .all(|entry| entry.is_atomic(self.sector_size));
        let subsets = u32::try_from(pending.len())
            .ok()
            .and_then(|len| 1u64.checked_shl(len));
        let mut policies;
        let random: &[CrashPolicy] = match subsets {
            Some(subsets) if subsets <= budget as u64 => {
                policies = (0..subsets).map(CrashPolicy::Mask).collect();
                if can_tear { &[CrashPolicy::Torn] } else { &[] }
            }
            _ => {
                policies = vec![CrashPolicy::None, CrashPolicy::All];
                &[
                    CrashPolicy::Subset,
                    CrashPolicy::Torn,
                    CrashPolicy::Reordered,
                ]
            }
        };
        let missing = budget.saturating_sub(policies.len());
        policies.extend(random.iter().cycle().take(missing));
        policies
    }
}

/// What is on the disk after one power cut, and how to make the same image again.
#[derive(Debug)]
pub struct CrashImage {
    /// When the power went.
    pub position: usize,
    /// What reached the medium.
    pub policy: CrashPolicy,
    /// The seed given to the policy.
    pub seed: u64,
    /// The disk.
    pub device: MemoryDevice,
}

/// The arguments of [`CrashDevice::crash_image_at`] that give this image.
impl fmt::Display for CrashImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "position {}, {}, seed {:#x}",
            self.position, self.policy, self.seed
        )
    }
}

#[cfg(test)]
#[path = "crash_tests.rs"]
mod tests;
