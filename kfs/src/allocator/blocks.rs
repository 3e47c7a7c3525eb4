//! Searching, taking and freeing blocks.
//!
//! A request claims its number of blocks from the volume's total first, so that a search which
//! follows finds something unless groups are damaged, and privileged blocks stay. Then groups are
//! looked at from the goal on: first for a run of the whole length, then for shorter and shorter
//! ones. A group that cannot have such a run is passed without its lock.

use super::BlockRequest;
use super::bitmap::{self, ClearRun};
use super::groups::{GroupState, GroupTable};
use super::reservation::Reservation;
use crate::corrupt::Corrupt;
use crate::error::{Error, ReadOnlyReason, Result};
use crate::ids::{BlockNr, GroupNr, Run};
use crate::layout::GroupFlags;
use crate::storage::Handle;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

/// Large requests start where huge pages of a mapping can.
const ALIGNMENT_BYTES: u32 = 2 << 20;

/// A run at the goal itself is taken from this length on even when a longer one was asked for.
const ENOUGH_AT_GOAL: u32 = 16;

/// Groups whose bitmap is searched for one length of run, before a shorter one will do.
const LOOKS_PER_LENGTH: u32 = 32;

/// Searches repeated when blocks that exist by the count were not found: other threads may have
/// given them back in groups already passed.
const SEARCHES_MORE: u32 = 3;

/// What a group is searched for: from where on, what is asked, what would do.
#[derive(Clone, Copy)]
struct Want {
    from: u32,
    len: u32,
    least: u32,
}

impl GroupTable {
    /// Promises up to `request.len` contiguous blocks near the goal.
    pub(super) fn reserve(self: &Arc<Self>, request: BlockRequest) -> Result<Reservation> {
        if self.geometry.cluster_blocks > 1 {
            return Err(Error::ReadOnly {
                reason: ReadOnlyReason::Feature,
            });
        }
        if request.len == 0 {
            return Err(Error::Invalid);
        }
        let claimed = self.claim(request)?;
        let mut found = self.search(request.goal, claimed);
        for _ in 0..SEARCHES_MORE {
            if !matches!(found, Err(Error::NoSpace)) {
                break;
            }
            found = self.search(request.goal, claimed);
        }
        let taken = found.as_ref().map_or(0, |(_, run)| run.len);
        self.totals
            .available_blocks
            .fetch_add((claimed - taken).into(), Relaxed);
        let (group, run) = found?;
        Ok(Reservation {
            table: Arc::clone(self),
            group,
            start: run.start,
            len: run.len,
        })
    }

    /// Takes up to the requested number off the volume's total.
    fn claim(&self, request: BlockRequest) -> Result<u32> {
        let kept = if request.privileged {
            0
        } else {
            self.totals.privileged_blocks.load(Relaxed) as i64
        };
        let wanted = i64::from(request.len.min(self.geometry.blocks_per_group));
        let mut claimed = 0;
        let result = self
            .totals
            .available_blocks
            .try_update(Relaxed, Relaxed, |available| {
                claimed = wanted.min(available.saturating_sub(kept));
                (claimed > 0).then(|| available - claimed)
            });
        match result {
            Ok(_) => Ok(claimed as u32),
            Err(_) => Err(Error::NoSpace),
        }
    }

    fn search(&self, goal: BlockNr, len: u32) -> Result<(GroupNr, ClearRun)> {
        let geometry = &self.geometry;
        let first = BlockNr(geometry.first_data_block.into());
        let is_usable = goal.0 < self.fence.load(Relaxed);
        let goal = if is_usable && geometry.contains_block(goal) {
            goal
        } else {
            first
        };
        let (home, at) = geometry.group_of(goal);
        let mut failure = None;
        match self.take_at_goal(home, at, len) {
            Ok(Some(run)) => return Ok((home, run)),
            Ok(None) => {}
            Err(error) => failure = Some(error),
        }
        let bound = self.run_bound.load(Relaxed);
        let mut least = near_best(len, bound as u32);
        while least > 0 {
            let (found, longest) = self.search_groups((home, at), (len, least));
            match found {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
            if let Some(longest) = longest {
                self.lower_run_bound(bound, longest);
            }
            least = match least {
                1 => 0,
                _ => near_best(least / 4, longest.unwrap_or(least)),
            };
        }
        Err(failure
            .filter(|error| matches!(error, Error::Io { .. }))
            .unwrap_or(Error::NoSpace))
    }

    /// Looks at all groups, from that of the goal on, for a run of at least `least` blocks. When
    /// all were looked at, also returns what no run is longer than.
    fn search_groups(
        &self,
        (home, at): (GroupNr, u32),
        (len, least): (u32, u32),
    ) -> (Result<Option<(GroupNr, ClearRun)>>, Option<u32>) {
        let mut failure = None;
        let mut longest = 0;
        let mut looks = 0;
        let groups = (home.0..self.usable_groups()).chain(0..home.0).map(GroupNr);
        for nr in groups {
            let run_max = self.group(nr).run_max.load(Relaxed);
            if run_max < least {
                longest = longest.max(run_max);
                continue;
            }
            let from = if nr == home { at } else { 0 };
            // Another thread's group is passed by while there may be as good ones.
            let wait = nr == home || least == 1;
            match self.take_in(nr, Want { from, len, least }, wait) {
                Ok(Some(run)) => return (Ok(Some((nr, run))), None),
                Ok(None) => {}
                Err(error) => failure = Some(error),
            }
            longest = longest.max(self.group(nr).run_max.load(Relaxed));
            looks += 1;
            if looks == LOOKS_PER_LENGTH && least > 1 {
                return (failure.map_or(Ok(None), Err), None);
            }
        }
        (failure.map_or(Ok(None), Err), Some(longest))
    }

    /// Notes that a group may have a run of this length.
    pub(super) fn raise_run_bound(&self, run_max: u32) {
        // The upper half counts the calls: one that comes during a search voids its result.
        let raised =
            |old: u64| ((old >> 32).wrapping_add(1) << 32) | u64::from(run_max.max(old as u32));
        let _ = self
            .run_bound
            .fetch_update(Relaxed, Relaxed, |old| Some(raised(old)));
    }

    /// Notes that a search of all groups saw no longer run, unless one may have come up since.
    fn lower_run_bound(&self, before: u64, longest: u32) {
        let lowered = (before >> 32 << 32) | u64::from(longest);
        let _ = self
            .run_bound
            .compare_exchange(before, lowered, Relaxed, Relaxed);
    }

    /// Takes the run that starts at the goal, if it is long enough to be worth it.
    fn take_at_goal(&self, nr: GroupNr, at: u32, len: u32) -> Result<Option<ClearRun>> {
        if self.group(nr).available_blocks.load(Relaxed) == 0 {
            return Ok(None);
        }
        let mut state = self.lock(nr);
        self.load_blocks(nr, &mut state)?;
        let map = state.blocks.as_ref().expect("just loaded");
        let end = at.saturating_add(len).min(self.usable_blocks(nr));
        let free = bitmap::next_set(&map.busy, at..end) - at;
        if free < len.min(ENOUGH_AT_GOAL) {
            return Ok(None);
        }
        let run = ClearRun {
            start: at,
            len: free,
        };
        self.take(nr, &mut state, run);
        Ok(Some(run))
    }

    /// Takes the best run of a group if it is long enough.
    fn take_in(&self, nr: GroupNr, want: Want, wait: bool) -> Result<Option<ClearRun>> {
        let mut state = if wait {
            self.lock(nr)
        } else if let Some(state) = self.try_lock(nr) {
            state
        } else {
            return Ok(None);
        };
        if self.group(nr).run_max.load(Relaxed) < want.least {
            return Ok(None);
        }
        self.load_blocks(nr, &mut state)?;
        let map = state.blocks.as_ref().expect("just loaded");
        let Some(run) = self.best_run(nr, &map.busy, want) else {
            return Ok(None);
        };
        if run.len < want.least {
            return Ok(None);
        }
        let run = ClearRun {
            start: run.start,
            len: run.len.min(want.len),
        };
        self.take(nr, &mut state, run);
        Ok(Some(run))
    }

    /// The best run of a group: whole, aligned where large, near after `want.from`; else the
    /// longest there is, which is noted for later searches.
    fn best_run(&self, nr: GroupNr, busy: &[u64], want: Want) -> Option<ClearRun> {
        let end = self.usable_blocks(nr);
        let run_max = self.group(nr).run_max.load(Relaxed);
        let align = ALIGNMENT_BYTES >> self.geometry.block_size_bits;
        let phase = (self.geometry.group_first_block(nr).0 % u64::from(align)) as u32;
        if (align..=run_max).contains(&want.len) {
            for range in [want.from..end, 0..end] {
                let run = bitmap::find_aligned_run(busy, range, want.len, (align, phase));
                if run.is_some() {
                    return run;
                }
            }
        }
        let enough = want.len.min(run_max);
        let after = bitmap::find_run(busy, want.from..end, enough);
        let run = match after.filter(|run| run.len >= enough) {
            Some(run) => run,
            None => bitmap::find_run(busy, 0..end, enough)?,
        };
        if run.len < enough {
            self.group(nr).run_max.store(run.len, Relaxed);
        }
        if run.len >= want.len {
            return Some(run);
        }
        // A little less that is aligned serves a stream better.
        let aligned = bitmap::align_up(run.start, (align, phase)).filter(|&start| {
            run.len >= align && start < run.end() && run.end() - start >= run.len / 4 * 3
        });
        let start = aligned.unwrap_or(run.start);
        Some(ClearRun {
            start,
            len: run.end() - start,
        })
    }

    pub(super) fn take(&self, nr: GroupNr, state: &mut GroupState, run: ClearRun) {
        let map = state
            .blocks
            .as_mut()
            .expect("the caller has loaded the block bitmap");
        assert!(
            bitmap::all_clear(&map.busy, run.start..run.end()),
            "blocks are promised once"
        );
        bitmap::set(&mut map.busy, run.start..run.end());
        map.held += run.len;
        let group = self.group(nr);
        let left = group.available_blocks.load(Relaxed) - run.len;
        group.available_blocks.store(left, Relaxed);
        group
            .run_max
            .store(group.run_max.load(Relaxed).min(left), Relaxed);
    }

    /// Promises the first free run of a group from index `from` on that has `least` blocks, and `most` of it.
    pub(super) fn reserve_free_run(
        self: &Arc<Self>,
        nr: GroupNr,
        from: u32,
        (least, most): (u32, u32),
    ) -> Result<Option<Reservation>> {
        let mut state = self.lock(nr);
        self.load_blocks(nr, &mut state)?;
        let map = state.blocks.as_ref().expect("just loaded");
        let end = self.geometry.blocks_in_group(nr);
        let found = bitmap::clear_runs(&map.busy, from..end).find(|run| run.len >= least);
        let Some(mut run) = found else {
            return Ok(None);
        };
        run.len = run.len.min(most);
        self.take(nr, &mut state, run);
        self.totals
            .available_blocks
            .fetch_sub(run.len.into(), Relaxed);
        Ok(Some(Reservation {
            table: Arc::clone(self),
            group: nr,
            start: run.start,
            len: run.len,
        }))
    }

    /// Ends a promise.
    pub(super) fn give_back(&self, nr: GroupNr, range: Range<u32>) {
        let mut state = self.lock(nr);
        let map = state
            .blocks
            .as_mut()
            .expect("held bits keep the bitmap loaded");
        bitmap::clear(&mut map.busy, range.clone());
        map.held -= range.end - range.start;
        self.add_available(nr, &state, range.end - range.start);
    }

    /// Counts blocks that may be handed out again. `state` shows that the group is locked.
    pub(super) fn add_available(&self, nr: GroupNr, state: &GroupState, len: u32) {
        if !state.is_usable() {
            return;
        }
        let group = self.group(nr);
        let available = group.available_blocks.load(Relaxed) + len;
        group.available_blocks.store(available, Relaxed);
        // The run may have joined two others.
        let joined = group
            .run_max
            .load(Relaxed)
            .saturating_mul(2)
            .saturating_add(len);
        let run_max = joined.min(available);
        group.run_max.store(run_max, Relaxed);
        self.raise_run_bound(run_max);
        self.totals.available_blocks.fetch_add(len.into(), Relaxed);
    }

    /// Puts the first `len` promised blocks in use on disk.
    pub(super) fn allocate(
        &self,
        handle: &mut Handle<'_>,
        reservation: &mut Reservation,
        len: u32,
    ) -> Run {
        let (nr, start) = (reservation.group, reservation.start);
        let run = reservation.take(len);
        let mut state = self.lock(nr);
        self.change_blocks(handle, nr, &mut state, (start..start + len, true));
        state
            .blocks
            .as_mut()
            .expect("held bits keep the bitmap loaded")
            .held -= len;
        self.write_desc(handle, nr, &mut state);
        self.totals.free_blocks.fetch_sub(len.into(), Relaxed);
        run
    }

    /// Whether a run may belong to a file.
    pub(super) fn check_data_run(&self, run: Run) -> Result<()> {
        if run.len == 0 || !self.geometry.contains_run(run.start, run.len.into()) {
            return Err(Corrupt::BlockOutside { block: run.start }.into());
        }
        if self.fixed_block_in(run).is_some() {
            return Err(Corrupt::RunInMetadata {
                start: run.start,
                len: run.len,
            }
            .into());
        }
        Ok(())
    }

    /// Frees blocks on disk. They may be handed out again when the transaction has committed.
    pub(super) fn free(&self, handle: &mut Handle<'_>, run: Run) -> Result<()> {
        self.check_data_run(run)?;
        // All groups stay locked from the check to the change.
        let mut parts: SmallVec<[_; 2]> = SmallVec::new();
        for (nr, range) in self.parts(run) {
            let mut state = self.lock(nr);
            self.load_blocks(nr, &mut state)?;
            if !is_in_use(&state, range.clone()) {
                return Err(Corrupt::RunNotInUse {
                    start: run.start,
                    len: run.len,
                }
                .into());
            }
            parts.push((nr, range, state));
        }
        for (nr, range, state) in &mut parts {
            self.change_blocks(handle, *nr, state, (range.clone(), false));
            let map = state.blocks.as_mut().expect("loaded above");
            map.held += range.end - range.start;
            self.write_desc(handle, *nr, state);
        }
        self.totals.free_blocks.fetch_add(run.len.into(), Relaxed);
        self.pending.push(handle.tid(), run);
        Ok(())
    }

    /// Whether all blocks of a run, which may be a file's, are in use on disk.
    pub(super) fn is_allocated(&self, run: Run) -> Result<bool> {
        self.check_data_run(run)?;
        for (nr, range) in self.parts(run) {
            let mut state = self.lock(nr);
            self.load_blocks(nr, &mut state)?;
            if !is_in_use(&state, range) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// The length to search for: `len`, or where no run is longer than `longest`, half of that, so that
/// the nearest of the good ones is taken.
fn near_best(len: u32, longest: u32) -> u32 {
    if longest < len {
        longest.div_ceil(2).max(1)
    } else {
        len.max(1)
    }
}

/// Whether all blocks of a range are in use on disk. In an uninitialised group only fixed metadata
/// is, which nobody asks about.
fn is_in_use(state: &GroupState, range: Range<u32>) -> bool {
    let map = state
        .blocks
        .as_ref()
        .expect("the caller has loaded the block bitmap");
    !state.has(GroupFlags::BLOCK_UNINIT) && bitmap::bytes_are(&map.buffer.read(), range, true)
}
