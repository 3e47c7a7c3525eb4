//! Points in time as inodes hold them, and where "now" comes from.
//!
//! ext4 keeps 32 bits of seconds, and in inodes larger than 128 bytes an extra word with two more
//! bits of seconds (the epoch) and 30 bits of nanoseconds. That reaches from 1901 to 2446.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds and nanoseconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    /// Seconds since 1970-01-01 UTC; negative before.
    pub seconds: i64,
    /// Nanoseconds within the second, below 1 000 000 000.
    pub nanoseconds: u32,
}

impl Timestamp {
    /// Earliest time an inode can hold.
    pub const MIN_SECONDS: i64 = i32::MIN as i64;
    /// Latest time an inode with extra fields can hold.
    pub const MAX_SECONDS: i64 = i32::MAX as i64 + (3 << 32);
    /// Latest time an inode of 128 bytes can hold.
    pub const MAX_SECONDS_SMALL: i64 = i32::MAX as i64;

    /// A timestamp of whole seconds.
    #[must_use]
    pub const fn from_seconds(seconds: i64) -> Self {
        Self {
            seconds,
            nanoseconds: 0,
        }
    }

    /// Decodes the two words of an inode; `extra` is `None` where the inode has no such field.
    #[must_use]
    pub fn decode(seconds_low: u32, extra: Option<u32>) -> Self {
        let base = i64::from(seconds_low.cast_signed());
        match extra {
            None => Self::from_seconds(base),
            Some(extra) => Self {
                seconds: base + (i64::from(extra & 3) << 32),
                // 30 bits hold up to 1.07e9: a damaged field must not become an invalid time.
                nanoseconds: (extra >> 2).min(999_999_999),
            },
        }
    }

    /// The two words for an inode; times out of reach become the nearest one that fits. As in Linux
    /// the first and the last second have no parts.
    #[must_use]
    pub fn encode(self) -> (u32, u32) {
        let seconds = self.seconds.clamp(Self::MIN_SECONDS, Self::MAX_SECONDS);
        let is_edge = matches!(seconds, Self::MIN_SECONDS | Self::MAX_SECONDS);
        let nanoseconds = if is_edge { 0 } else { self.nanoseconds };
        let low = seconds as u32;
        let epoch = ((seconds - i64::from(low.cast_signed())) >> 32) as u32 & 3;
        (low, epoch | nanoseconds.min(999_999_999) << 2)
    }

    /// The single word for an inode without extra fields; clamped to what fits.
    #[must_use]
    pub fn encode_small(self) -> u32 {
        self.seconds
            .clamp(Self::MIN_SECONDS, Self::MAX_SECONDS_SMALL) as u32
    }
}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        match time.duration_since(UNIX_EPOCH) {
            Ok(since) => Self {
                seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                nanoseconds: since.subsec_nanos(),
            },
            Err(before) => {
                let before = before.duration();
                let seconds = -i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
                match before.subsec_nanos() {
                    0 => Self::from_seconds(seconds),
                    nanos => Self {
                        seconds: seconds - 1,
                        nanoseconds: 1_000_000_000 - nanos,
                    },
                }
            }
        }
    }
}

/// Where the file system takes the time from.
pub trait Clock: Send + Sync {
    /// The current time.
    fn now(&self) -> Timestamp;
}

/// The clock of the machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        SystemTime::now().into()
    }
}

/// A clock that stands still until it is set: for runs that must repeat to the byte.
#[derive(Debug, Default)]
pub struct FixedClock(AtomicI64);

impl FixedClock {
    /// A clock that shows `seconds` since 1970.
    #[must_use]
    pub const fn new(seconds: i64) -> Self {
        Self(AtomicI64::new(seconds))
    }

    /// Moves the clock by `seconds`.
    pub fn advance(&self, seconds: i64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }
}

impl Clock for FixedClock {
    fn now(&self) -> Timestamp {
        Timestamp::from_seconds(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_round_trip() {
        let seconds = [
            0,
            1,
            -1,
            i64::from(i32::MAX),
            i64::from(i32::MAX) + 1,
            i64::from(u32::MAX),
            i64::from(u32::MAX) + 1,
            Timestamp::MIN_SECONDS + 1,
            Timestamp::MAX_SECONDS - 1,
        ];
        for seconds in seconds {
            let time = Timestamp {
                seconds,
                nanoseconds: 999_999_999,
            };
            let (low, extra) = time.encode();
            assert_eq!(Timestamp::decode(low, Some(extra)), time);
        }
    }

    #[test]
    fn the_first_and_the_last_second_have_no_parts() {
        for seconds in [Timestamp::MIN_SECONDS, Timestamp::MAX_SECONDS] {
            let time = Timestamp {
                seconds,
                nanoseconds: 999_999_999,
            };
            let (low, extra) = time.encode();
            let whole = Timestamp::from_seconds(seconds);
            assert_eq!(Timestamp::decode(low, Some(extra)), whole);
        }
    }

    #[test]
    fn times_are_clamped() {
        let (low, extra) = Timestamp::from_seconds(i64::MAX).encode();
        assert_eq!(
            Timestamp::decode(low, Some(extra)).seconds,
            Timestamp::MAX_SECONDS
        );
        let low = Timestamp::from_seconds(5_000_000_000).encode_small();
        assert_eq!(Timestamp::decode(low, None).seconds, i64::from(i32::MAX));
    }

    #[test]
    fn times_before_1970() {
        let half = UNIX_EPOCH - std::time::Duration::from_millis(500);
        assert_eq!(
            Timestamp::from(half),
            Timestamp {
                seconds: -1,
                nanoseconds: 500_000_000
            }
        );
    }
}
