//! How long requests take: a sum, and a histogram with classes that grow by four.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Classes of a histogram: each ends at four times the end of the one before, the first at 4
/// microseconds, and the last has no end. `kfsctl::status::LATENCY_BOUNDS` are the ends.
pub const LATENCY_CLASSES: usize = kfsctl::status::LATENCY_BOUNDS.len() + 1;

/// How long the requests of one kind took.
#[derive(Debug, Default)]
pub(super) struct Latency {
    nanoseconds: AtomicU64,
    classes: [AtomicU64; LATENCY_CLASSES],
}

impl Latency {
    pub(super) fn add(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
        self.classes[class(time)].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed))
    }

    pub(super) fn classes(&self) -> [u64; LATENCY_CLASSES] {
        std::array::from_fn(|index| self.classes[index].load(Ordering::Relaxed))
    }
}

fn class(time: Duration) -> usize {
    let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    // 4 us hold 4000 ns: parts of that, rounded up, from which on each two bits are a class.
    let units = nanoseconds.div_ceil(4000).max(1);
    let bits = (units - 1).checked_ilog2().map_or(0, |log| log + 1);
    (bits.div_ceil(2) as usize).min(LATENCY_CLASSES - 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfsctl::status::LATENCY_BOUNDS;

    #[test]
    fn classes_end_at_the_bounds() {
        for (index, bound) in LATENCY_BOUNDS.iter().enumerate() {
            let end = Duration::from_secs_f64(*bound);
            assert_eq!(class(end), index, "{end:?}");
            assert_eq!(class(end + Duration::from_nanos(1)), index + 1, "{end:?}");
        }
        assert_eq!(class(Duration::ZERO), 0);
        assert_eq!(class(Duration::MAX), LATENCY_CLASSES - 1);
    }

    #[test]
    fn sums_and_classes_add_up() {
        let latency = Latency::default();
        latency.add(Duration::from_micros(3));
        latency.add(Duration::from_millis(3));
        latency.add(Duration::from_secs(3));
        assert_eq!(latency.sum(), Duration::from_micros(3_003_003));
        let classes = latency.classes();
        assert_eq!((classes[0], classes[5], classes[10]), (1, 1, 1));
    }
}
