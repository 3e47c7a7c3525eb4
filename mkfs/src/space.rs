//! The blocks in use of a file system being planned: disjoint intervals, merged where they touch.

use kfs::{BlockNr, Run};
use std::collections::BTreeMap;
use std::ops::Range;

/// Used blocks. What is not in it is free.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Start to end (exclusive) of each interval.
    used: BTreeMap<u64, u64>,
}

impl Space {
    /// Marks a range as used.
    ///
    /// # Panics
    /// When part of it is used already: the plan would give a block to two owners.
    pub fn take(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        assert_eq!(
            self.used_in(range.clone()),
            0,
            "blocks {range:?} are taken twice"
        );
        let Range { mut start, mut end } = range;
        if let Some((&before, &until)) = self.used.range(..start).next_back()
            && until == start
        {
            start = before;
        }
        if let Some(until) = self.used.remove(&end) {
            end = until;
        }
        self.used.insert(start, end);
    }

    /// Used intervals that touch a range, cut to it, in order.
    pub fn used(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let before = self.used.range(..range.start).next_back();
        let within = self.used.range(range.clone());
        before
            .into_iter()
            .chain(within)
            .map(move |(&start, &end)| start.max(range.start)..end.min(range.end))
            .filter(|used| !used.is_empty())
    }

    /// Count of used blocks in a range.
    #[must_use]
    pub fn used_in(&self, range: Range<u64>) -> u64 {
        self.used(range).map(|used| used.end - used.start).sum()
    }

    /// Free intervals of a range, in order.
    pub fn free(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let mut at = range.start;
        let end = range.end;
        self.used(range)
            .chain(std::iter::once(end..end))
            .map(move |used| {
                let gap = at..used.start;
                at = used.end;
                gap
            })
            .filter(|gap| !gap.is_empty())
    }

    /// Takes the first free run of `len` blocks within a range.
    pub fn allocate_run(&mut self, len: u64, within: Range<u64>) -> Option<BlockNr> {
        let gap = self.free(within).find(|gap| gap.end - gap.start >= len)?;
        self.take(gap.start..gap.start + len);
        Some(BlockNr(gap.start))
    }

    /// Takes `len` blocks of a range in runs of at most `run_max`, from its start on.
    pub fn allocate_pieces(
        &mut self,
        len: u64,
        run_max: u32,
        within: Range<u64>,
    ) -> Option<Vec<Run>> {
        let mut pieces = Vec::new();
        let mut left = len;
        for gap in self.free(within) {
            let mut start = gap.start;
            while left > 0 && start < gap.end {
                let piece = (gap.end - start).min(u64::from(run_max)).min(left);
                pieces.push(Run {
                    start: BlockNr(start),
                    len: piece as u32,
                });
                start += piece;
                left -= piece;
            }
            if left == 0 {
                break;
            }
        }
        if left > 0 {
            return None;
        }
        for piece in &pieces {
            self.take(piece.start.0..piece.end().0);
        }
        Some(pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn intervals_merge() {
        let mut space = Space::default();
        space.take(10..20);
        space.take(30..40);
        space.take(20..30);
        assert_eq!(space.used.len(), 1);
        assert_eq!(space.used_in(0..15), 5);
        assert_eq!(space.free(0..50).collect::<Vec<_>>(), [0..10, 40..50]);
        assert_eq!(space.allocate_run(11, 0..50), None);
        assert_eq!(space.allocate_run(10, 5..50), Some(BlockNr(40)));
    }

    #[test]
    #[should_panic(expected = "taken twice")]
    fn a_block_has_one_owner() {
        let mut space = Space::default();
        space.take(10..20);
        space.take(19..21);
    }

    proptest! {
        #[test]
        fn behaves_like_a_bitmap(runs in prop::collection::vec((1u64..30, 0u64..200), 1..40)) {
            let mut space = Space::default();
            let mut model = vec![false; 256];
            for (len, from) in runs {
                let free = |at: usize| at + len as usize <= 256
                    && model[at..at + len as usize].iter().all(|used| !used);
                let expected = (from as usize..256).find(|&at| free(at));
                let found = space.allocate_run(len, from..256);
                prop_assert_eq!(found.map(|b| b.0 as usize), expected);
                if let Some(at) = expected {
                    model[at..at + len as usize].fill(true);
                }
                let used = model[7..99].iter().filter(|&&used| used).count() as u64;
                prop_assert_eq!(space.used_in(7..99), used);
            }
        }
    }
}
