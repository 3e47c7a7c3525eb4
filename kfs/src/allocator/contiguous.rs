//! Whole runs in the right place, for files that are moved: all or nothing.
//!
//! A write takes what is near and goes on; who moves what is there already wants a run that is long
//! enough and starts where huge pages of a mapping can, wherever on the volume it is.

use super::bitmap::{self, ClearRun};
use super::groups::{GroupState, GroupTable};
use super::reservation::Reservation;
use crate::error::{Error, ReadOnlyReason, Result};
use crate::ids::{BlockNr, GroupNr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// What is asked of [`Allocator::reserve_contiguous`](super::Allocator::reserve_contiguous).
#[derive(Clone, Copy, Debug)]
pub struct ContiguousRequest {
    /// Where the run should begin; any number will do.
    pub goal: BlockNr,
    /// Blocks wanted, and no fewer.
    pub len: u32,
    /// The run starts at a block whose number modulo the first is the second; `(1, 0)` for any.
    pub align: (u32, u32),
    /// Not at the goal: nowhere.
    pub only_at_goal: bool,
}

impl GroupTable {
    /// Promises a run of exactly the requested length, or none.
    pub(super) fn reserve_contiguous(
        self: &Arc<Self>,
        request: ContiguousRequest,
    ) -> Result<Option<Reservation>> {
        if self.geometry.cluster_blocks > 1 {
            return Err(Error::ReadOnly {
                reason: ReadOnlyReason::Feature,
            });
        }
        if request.len == 0 || request.align.0 == 0 {
            return Err(Error::Invalid);
        }
        if request.len > self.geometry.blocks_per_group || !self.claim_all(request.len) {
            return Ok(None);
        }
        let found = self.search_contiguous(request);
        if !matches!(found, Ok(Some(_))) {
            self.totals
                .available_blocks
                .fetch_add(request.len.into(), Relaxed);
        }
        Ok(found?.map(|(group, start)| Reservation {
            table: Arc::clone(self),
            group,
            start,
            len: request.len,
        }))
    }

    /// Takes a number of blocks off the volume's total, those for root left alone.
    fn claim_all(&self, len: u32) -> bool {
        let left = self.totals.privileged_blocks.load(Relaxed) as i64;
        let claimed = self
            .totals
            .available_blocks
            .try_update(Relaxed, Relaxed, |available| {
                let rest = available - i64::from(len);
                (rest >= left).then_some(rest)
            });
        claimed.is_ok()
    }

    fn search_contiguous(&self, request: ContiguousRequest) -> Result<Option<(GroupNr, u32)>> {
        let geometry = &self.geometry;
        let is_inside = geometry.contains_block(request.goal);
        if !is_inside && request.only_at_goal {
            return Ok(None);
        }
        let (home, at) = if is_inside {
            geometry.group_of(request.goal)
        } else {
            (GroupNr(0), 0)
        };
        let anywhere = if request.only_at_goal {
            0..0
        } else {
            0..geometry.groups_count()
        };
        let after = anywhere.clone().skip(home.0 as usize);
        let groups = after.chain(anywhere.take(home.0 as usize));
        let places = groups.map(|nr| (GroupNr(nr), None));
        for (nr, at) in std::iter::once((home, Some(at))).chain(places) {
            if self.group(nr).run_max.load(Relaxed) < request.len {
                continue;
            }
            match self.take_whole(nr, request, at) {
                Ok(Some(start)) => return Ok(Some((nr, start))),
                // A damaged group is passed by, as when anything else looks for room.
                Ok(None) | Err(Error::Corrupt(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Takes a run of a group that is what was asked for, if there is one: `at` that block alone, or
    /// anywhere.
    fn take_whole(
        &self,
        nr: GroupNr,
        request: ContiguousRequest,
        at: Option<u32>,
    ) -> Result<Option<u32>> {
        if self.group(nr).available_blocks.load(Relaxed) < request.len {
            return Ok(None);
        }
        let mut state = self.lock(nr);
        self.load_blocks(nr, &mut state)?;
        let end = self.geometry.blocks_in_group(nr);
        let range = match at {
            Some(at) => at..at.saturating_add(request.len).min(end),
            None => 0..end,
        };
        let Some(start) = self.find_whole(nr, &state, request, range) else {
            return Ok(None);
        };
        let run = ClearRun {
            start,
            len: request.len,
        };
        self.take(nr, &mut state, run);
        Ok(Some(start))
    }

    fn find_whole(
        &self,
        nr: GroupNr,
        state: &GroupState,
        request: ContiguousRequest,
        range: Range<u32>,
    ) -> Option<u32> {
        let map = state.blocks.as_ref().expect("the caller has loaded it");
        let (align, wanted) = request.align;
        let first = self.geometry.group_first_block(nr).0;
        // `find_aligned_run` wants `(index + phase) % align == 0`.
        let phase = (first + u64::from(align) - u64::from(wanted % align)) % u64::from(align);
        let is_whole = range == (0..self.geometry.blocks_in_group(nr));
        let align = (align, phase as u32);
        let found = bitmap::find_aligned_run(&map.busy, range, request.len, align);
        if found.is_none() && align.0 == 1 && is_whole {
            self.group(nr).run_max.fetch_min(request.len - 1, Relaxed);
        }
        found.map(|run| run.start)
    }
}
