//! What a disk may hold after the power went: which of the pending changes reached the medium.
//!
//! Pending are the changes after the last completed flush. The medium may have any of them, in
//! whole sectors, in any order; all that was flushed is there.

use std::fmt;
use std::sync::Arc;

use crate::device::BlockDevice;
use crate::memory::MemoryDevice;
use crate::testing::op::{Op, OpKind};
use crate::testing::rng::SplitMix64;

/// An operation of the log; `data` is empty but for a write.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) op: Op,
    pub(super) data: Arc<[u8]>,
}

impl Entry {
    /// Applies the whole change. A discard makes zeros, as on a disk that can.
    pub(super) fn apply(&self, image: &MemoryDevice) {
        self.apply_part(image, 0, self.op.len);
    }

    /// Applies `len` bytes of the change, `start` bytes into it.
    fn apply_part(&self, image: &MemoryDevice, start: u64, len: u64) {
        let offset = self.op.offset + start;
        let result = match self.op.kind {
            OpKind::Write => {
                image.write_at(offset, &self.data[start as usize..(start + len) as usize])
            }
            OpKind::WriteZeroes | OpKind::Discard => image.write_zeroes(offset, len),
            OpKind::Flush | OpKind::Read => Ok(()),
        };
        result.expect("the range was checked when the change was logged");
    }

    /// The change cut at sectors, as (start in the change, length).
    fn sectors(&self, sector_size: u64) -> impl Iterator<Item = (u64, u64)> {
        let Op { offset, len, .. } = self.op;
        let mut start = 0;
        std::iter::from_fn(move || {
            let to_boundary = sector_size - (offset + start) % sector_size;
            let piece = (start, to_boundary.min(len - start));
            start += piece.1;
            (piece.1 > 0).then_some(piece)
        })
    }

    /// Whether it reaches the medium as a whole or not at all.
    pub(super) fn is_atomic(&self, sector_size: u64) -> bool {
        self.sectors(sector_size).nth(1).is_none()
    }

    fn apply_torn(&self, image: &MemoryDevice, sector_size: u64, rng: &mut SplitMix64) {
        match rng.below(4) {
            0 => {}
            1 => self.apply(image),
            2 => {
                // The beginning only: the commonest way for a large write to end.
                let count = self.sectors(sector_size).count() as u64;
                let kept = rng.below(count.max(1)) as usize;
                for (start, len) in self.sectors(sector_size).take(kept) {
                    self.apply_part(image, start, len);
                }
            }
            _ => {
                for (start, len) in self.sectors(sector_size) {
                    if rng.coin() {
                        self.apply_part(image, start, len);
                    }
                }
            }
        }
    }
}

/// Which of the pending changes a crash image has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashPolicy {
    /// None of them.
    None,
    /// All of them.
    All,
    /// Each as a whole or not at all, by the seed.
    Subset,
    /// Each whole, not at all, its beginning, or some of its sectors, by the seed.
    Torn,
    /// The first few of them in a random order, so that an older one may cover a newer one.
    Reordered,
    /// The i-th when bit i is set, for going through all subsets; those from the 64th on are lost.
    Mask(u64),
}

impl fmt::Display for CrashPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CrashPolicy::Mask(bits) => write!(f, "mask {bits:#b}"),
            other => write!(f, "{}", format!("{other:?}").to_lowercase()),
        }
    }
}

/// Applies to `image`, which holds all that is durable, what the policy lets through.
pub(super) fn apply_pending(
    image: &MemoryDevice,
    pending: &[Entry],
    sector_size: u64,
    policy: CrashPolicy,
    seed: u64,
) {
    let mut rng = SplitMix64::new(seed);
    match policy {
        CrashPolicy::None => {}
        CrashPolicy::All => pending.iter().for_each(|entry| entry.apply(image)),
        CrashPolicy::Subset => {
            // The share varies too, else hardly any image would lack just one change or have one.
            let share = rng.below(7) + 1;
            for entry in pending {
                if rng.below(8) < share {
                    entry.apply(image);
                }
            }
        }
        CrashPolicy::Torn => {
            for entry in pending {
                entry.apply_torn(image, sector_size, &mut rng);
            }
        }
        CrashPolicy::Reordered => {
            let mut order: Vec<&Entry> = pending.iter().collect();
            rng.shuffle(&mut order);
            let kept = rng.below(order.len() as u64 + 1) as usize;
            order[..kept].iter().for_each(|entry| entry.apply(image));
        }
        CrashPolicy::Mask(bits) => {
            for (index, entry) in pending.iter().take(64).enumerate() {
                if bits & (1 << index) != 0 {
                    entry.apply(image);
                }
            }
        }
    }
}
