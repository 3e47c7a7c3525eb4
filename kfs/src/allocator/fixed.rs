//! `FixedRuns`: blocks that no file can have.
//!
//! Superblock copies, descriptor tables with the blocks kept for their growth, bitmaps and inode
//! tables of all groups. With flex_bg those of one group may lie in another, so the runs are one
//! sorted list for the whole volume: short, for they touch each other.

use crate::ids::{BlockNr, GroupNr, Run};
use crate::layout::{Geometry, RawGroupDesc};

/// Sorted, disjoint runs as half-open ranges of block numbers.
#[derive(Debug, Default)]
pub(super) struct FixedRuns {
    ranges: Vec<(u64, u64)>,
}

impl FixedRuns {
    /// The fixed metadata that the descriptors name. Only descriptors whose numbers are inside the
    /// volume may be given.
    pub(super) fn of_volume<'d>(
        geometry: &Geometry,
        descs: impl Iterator<Item = &'d RawGroupDesc>,
    ) -> Self {
        let mut ranges = Vec::new();
        for group in (0..geometry.groups_count()).map(GroupNr) {
            let base = u64::from(geometry.base_metadata_blocks(group));
            let first = geometry.group_first_block(group).0;
            ranges.push((first, first + base));
        }
        for desc in descs {
            ranges.push((desc.block_bitmap().0, desc.block_bitmap().0 + 1));
            ranges.push((desc.inode_bitmap().0, desc.inode_bitmap().0 + 1));
            let table = desc.inode_table().0;
            ranges.push((table, table + u64::from(geometry.inode_table_blocks)));
        }
        Self::from_ranges(ranges)
    }

    /// Any runs.
    pub(super) fn from_runs(runs: &[Run]) -> Self {
        Self::from_ranges(runs.iter().map(|run| (run.start.0, run.end().0)).collect())
    }

    fn from_ranges(mut ranges: Vec<(u64, u64)>) -> Self {
        ranges.retain(|&(start, end)| start < end);
        ranges.sort_unstable();
        let mut merged: Vec<(u64, u64)> = Vec::new();
        for (start, end) in ranges {
            match merged.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((start, end)),
            }
        }
        merged.shrink_to_fit();
        Self { ranges: merged }
    }

    /// Adds a range behind all others.
    pub(super) fn add(&mut self, start: u64, end: u64) {
        match self.ranges.last_mut() {
            Some(last) if start <= last.1 => last.1 = last.1.max(end),
            _ => self.ranges.push((start, end)),
        }
    }

    /// Takes a range out.
    pub(super) fn remove(&mut self, start: u64, end: u64) {
        let first = self.ranges.partition_point(|range| range.1 <= start);
        let behind = self.ranges.partition_point(|range| range.0 < end);
        if start >= end || first >= behind {
            return;
        }
        let left = (self.ranges[first].0, start);
        let right = (end, self.ranges[behind - 1].1);
        let rest = [left, right].into_iter().filter(|range| range.0 < range.1);
        self.ranges.splice(first..behind, rest);
    }

    /// The parts of the runs that lie in `start..end`, as half-open ranges.
    pub(super) fn within(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = self
            .ranges
            .partition_point(|&(_, range_end)| range_end <= start);
        self.ranges[first..]
            .iter()
            .take_while(move |&&(range_start, _)| range_start < end)
            .map(move |&(range_start, range_end)| (range_start.max(start), range_end.min(end)))
    }

    /// The first of these blocks in a run.
    pub(super) fn first_in(&self, run: Run) -> Option<BlockNr> {
        self.within(run.start.0, run.end().0)
            .next()
            .map(|(start, _)| BlockNr(start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, len: u32) -> Run {
        Run {
            start: BlockNr(start),
            len,
        }
    }

    #[test]
    fn touching_and_overlapping_runs_become_one() {
        let fixed =
            FixedRuns::from_runs(&[run(20, 5), run(10, 5), run(15, 2), run(12, 1), run(9, 0)]);
        assert_eq!(fixed.ranges, [(10, 17), (20, 25)]);
        assert_eq!(
            fixed.within(0, 100).collect::<Vec<_>>(),
            [(10, 17), (20, 25)]
        );
        assert_eq!(
            fixed.within(16, 21).collect::<Vec<_>>(),
            [(16, 17), (20, 21)]
        );
        assert_eq!(fixed.within(17, 20).next(), None);
        assert_eq!(fixed.first_in(run(0, 11)), Some(BlockNr(10)));
        assert_eq!(fixed.first_in(run(25, 1000)), None);
    }

    #[test]
    fn what_is_taken_out_is_gone() {
        let removed = |start, end| {
            let mut fixed = FixedRuns::from_runs(&[run(10, 5), run(20, 5), run(30, 5)]);
            fixed.remove(start, end);
            fixed.ranges
        };
        assert_eq!(removed(0, 10), [(10, 15), (20, 25), (30, 35)]);
        assert_eq!(removed(12, 12), [(10, 15), (20, 25), (30, 35)]);
        assert_eq!(removed(12, 13), [(10, 12), (13, 15), (20, 25), (30, 35)]);
        assert_eq!(removed(12, 32), [(10, 12), (32, 35)]);
        assert_eq!(removed(20, 25), [(10, 15), (30, 35)]);
        assert_eq!(removed(0, 99), []);
    }
}
