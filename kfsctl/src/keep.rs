//! Which snapshots to keep when old ones are to go: so many of each period, the newest in each.

use crate::snapshot::SnapshotInfo;
use std::collections::BTreeSet;
use std::str::FromStr;

/// How many to keep, such as `hourly=24,daily=7`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    rules: Vec<(Period, usize)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Period {
    /// The newest, whenever they were taken.
    Last,
    Seconds(i64),
}

const NAMES: [(&str, Period); 6] = [
    ("last", Period::Last),
    ("minutely", Period::Seconds(60)),
    ("hourly", Period::Seconds(3600)),
    ("daily", Period::Seconds(86_400)),
    ("weekly", Period::Seconds(7 * 86_400)),
    // A twelfth of a year.
    ("monthly", Period::Seconds(2_629_746)),
];

/// Why a text is no such rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' does not say what to keep: write PERIOD=COUNT,... with last, minutely, hourly, daily, weekly, monthly"
)]
pub struct KeepError(String);

impl FromStr for Keep {
    type Err = KeepError;

    fn from_str(text: &str) -> Result<Self, KeepError> {
        let rules = text.split(',').map(|rule| {
            let (name, count) = rule.split_once('=')?;
            let (_, period) = NAMES.iter().find(|(known, _)| *known == name.trim())?;
            Some((*period, count.trim().parse().ok()?))
        });
        let rules: Option<Vec<_>> = rules.collect();
        rules
            .filter(|rules| rules.iter().any(|(_, count)| *count > 0))
            .map(|rules| Self { rules })
            .ok_or_else(|| KeepError(text.into()))
    }
}

impl Keep {
    /// The names of those that no rule keeps, of snapshots in the order in which they were taken.
    #[must_use]
    pub fn to_delete(&self, snapshots: &[SnapshotInfo]) -> Vec<String> {
        let mut kept: BTreeSet<u32> = BTreeSet::new();
        for (period, count) in &self.rules {
            let mut seen = BTreeSet::new();
            for snapshot in snapshots.iter().rev() {
                let slot = match period {
                    Period::Last => i64::from(snapshot.id),
                    Period::Seconds(seconds) => snapshot.time_seconds.div_euclid(*seconds),
                };
                if seen.len() < *count && seen.insert(slot) {
                    kept.insert(snapshot.id);
                }
            }
        }
        snapshots
            .iter()
            .filter(|snapshot| !kept.contains(&snapshot.id))
            .map(|snapshot| snapshot.name.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(times: &[i64]) -> Vec<SnapshotInfo> {
        let snapshot = |(id, time): (u32, &i64)| SnapshotInfo {
            id,
            name: format!("at{time}"),
            time_seconds: *time,
            ..SnapshotInfo::default()
        };
        (1..).zip(times).map(snapshot).collect()
    }

    #[test]
    fn the_newest_of_each_period_stays() {
        let snapshots = taken(&[0, 1800, 3600, 5400, 7200, 90_000]);
        let keep: Keep = "hourly=3,daily=2".parse().expect("a rule");
        assert_eq!(keep.to_delete(&snapshots), ["at0", "at1800", "at3600"]);
        let keep: Keep = "last=1".parse().expect("a rule");
        assert_eq!(keep.to_delete(&snapshots).len(), 5);
        assert_eq!(keep.to_delete(&[]), [""; 0]);
    }

    #[test]
    fn nonsense_is_no_rule() {
        for text in ["", "daily", "daily=x", "yearly=1", "daily=0", "hourly=1,"] {
            assert!(text.parse::<Keep>().is_err(), "{text}");
        }
    }
}
