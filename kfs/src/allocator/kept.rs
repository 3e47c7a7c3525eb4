//! Blocks that snapshots keep: they are not handed out though free, and not overwritten though in use.
//!
//! Each group knows its own, from its bitmap's first use on. A snapshot adds what is in use when it is
//! taken: the group hears of it before its bitmap changes next. What deleting a snapshot gives back
//! is found by looking at each group again.

use super::bitmap;
use super::groups::{GroupBitmap, GroupState, GroupTable};
use crate::error::Result;
use crate::ids::{BlockNr, GroupNr, Run};
use crate::layout::GroupFlags;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Relaxed};

/// A block bitmap as it is now.
pub struct LiveBitmap<'b> {
    /// Its block.
    pub block: BlockNr,
    /// Its content; a set bit is a block in use.
    pub bytes: &'b [u8],
    /// The group is not initialised: none but fixed metadata is in use.
    pub is_uninit: bool,
}

/// Who knows what snapshots keep. Called with a group's lock held.
pub trait KeptBlocks: Send + Sync {
    /// Grows with each snapshot.
    fn epoch(&self) -> u64;

    /// Whether there are snapshots, or were until a moment ago.
    fn is_active(&self) -> bool;

    /// Whether there are snapshots.
    fn keeps_any(&self) -> bool;

    /// The blocks of a group that snapshots keep, a bit each.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    fn kept(&self, group: GroupNr, live: &LiveBitmap<'_>) -> Result<Vec<u64>>;
}

/// What snapshots keep of a group.
pub(super) struct Kept {
    epoch: u64,
    bits: Box<[u64]>,
    /// Those that are busy for this reason alone.
    pinned: Box<[u64]>,
}

impl Kept {
    /// Takes blocks out that were behind the end of the group until now.
    pub(super) fn forget(&mut self, range: Range<u32>) {
        bitmap::clear(&mut self.bits, range.clone());
        bitmap::clear(&mut self.pinned, range);
    }
}

/// Keeps group bitmaps in memory.
pub(super) struct StaysLoaded<'t>(&'t GroupTable);

impl<'t> StaysLoaded<'t> {
    pub(super) fn new(table: &'t GroupTable) -> Self {
        table.stays_loaded.fetch_add(1, AcqRel);
        Self(table)
    }
}

impl Drop for StaysLoaded<'_> {
    fn drop(&mut self) {
        self.0.stays_loaded.fetch_sub(1, AcqRel);
    }
}

impl GroupTable {
    /// Who knows of snapshots, if there can be any.
    fn keeper(&self) -> Option<&Arc<dyn KeptBlocks>> {
        self.keeper.get().filter(|keeper| keeper.is_active())
    }

    /// Brings what is known of a group's kept blocks up to date. Its block bitmap is in memory, and has
    /// not changed since the newest snapshot unless that is known already.
    pub(super) fn refresh_kept(&self, state: &mut GroupState) {
        let Some(keeper) = self.keeper() else {
            return;
        };
        let epoch = keeper.epoch();
        let is_uninit = state.has(GroupFlags::BLOCK_UNINIT);
        let map = state.blocks.as_mut().expect("the caller has loaded it");
        let len = map.busy.len();
        let kept = map.kept.get_or_insert_with(|| Kept {
            epoch: 0,
            bits: vec![0; len].into(),
            pinned: vec![0; len].into(),
        });
        if kept.epoch == epoch {
            return;
        }
        kept.epoch = epoch;
        if !is_uninit && keeper.keeps_any() {
            let live = bitmap::words_from_bytes(&map.buffer.read());
            let bits = kept.bits.iter_mut().zip(live);
            bits.for_each(|(kept, live)| *kept |= live);
        }
    }

    /// What snapshots keep of a group whose bitmap was just read.
    pub(super) fn ask_kept(
        &self,
        nr: GroupNr,
        state: &GroupState,
        map: &GroupBitmap,
    ) -> Result<Option<Kept>> {
        let Some(keeper) = self.keeper() else {
            return Ok(None);
        };
        let epoch = keeper.epoch();
        let live = LiveBitmap {
            block: map.buffer.nr(),
            bytes: &map.buffer.freeze(),
            is_uninit: state.has(GroupFlags::BLOCK_UNINIT),
        };
        let mut bits = keeper.kept(nr, &live)?;
        // Nothing beyond the end of the group is a block.
        let end = self.geometry.blocks_in_group(nr);
        bitmap::clear(&mut bits, end..self.geometry.block_size * 8);
        let pinned = vec![0; bits.len()].into();
        Ok(Some(Kept {
            epoch,
            bits: bits.into(),
            pinned,
        }))
    }

    /// Makes busy what is kept and not busy, and counts it out.
    pub(super) fn pin(&self, nr: GroupNr, state: &mut GroupState) {
        let map = state.blocks.as_mut().expect("the caller has loaded it");
        let Some(kept) = map.kept.as_mut() else {
            return;
        };
        let mut pinned = 0;
        for ((busy, bits), pins) in map.busy.iter_mut().zip(&kept.bits).zip(&mut kept.pinned) {
            *pins = bits & !*busy;
            *busy |= bits;
            pinned += pins.count_ones();
        }
        // A bitmap that was dropped and read again has its pins counted already.
        let added = i64::from(pinned) - i64::from(state.pinned);
        state.pinned = pinned;
        let group = self.group(nr);
        let available = i64::from(group.available_blocks.load(Relaxed)) - added;
        let available = u32::try_from(available.max(0)).expect("no more than there were");
        group.available_blocks.store(available, Relaxed);
        if added < 0 {
            // Fewer than when it was dropped: a snapshot was deleted meanwhile, and any run may be there.
            group.run_max.store(available, Relaxed);
            self.raise_run_bound(available);
        } else {
            let run_max = group.run_max.load(Relaxed).min(available);
            group.run_max.store(run_max, Relaxed);
        }
        self.totals.available_blocks.fetch_sub(added, Relaxed);
        self.totals.pinned_blocks.fetch_add(added, Relaxed);
    }

    /// Blocks freed by a transaction that is durable: what snapshots keep stays busy.
    pub(super) fn free_or_pin(&self, nr: GroupNr, state: &mut GroupState, range: Range<u32>) {
        let keeps_any = self.keeper().is_some();
        let map = state
            .blocks
            .as_mut()
            .expect("held bits keep the bitmap loaded");
        map.held -= range.end - range.start;
        let mut kept = map.kept.as_mut().filter(|_| keeps_any);
        let (mut freed, mut pinned) = (0, 0);
        for (word, mask) in bitmap::masks(range) {
            let mut free = mask;
            if let Some(kept) = &mut kept {
                let pins = kept.bits[word] & mask;
                kept.pinned[word] |= pins;
                pinned += pins.count_ones();
                free &= !pins;
            }
            map.busy[word] &= !free;
            freed += free.count_ones();
        }
        state.pinned += pinned;
        self.totals.pinned_blocks.fetch_add(pinned.into(), Relaxed);
        if freed > 0 {
            self.add_available(nr, state, freed);
        }
    }

    /// Whether the first block of a run is kept, and how many after it are like it.
    pub(super) fn kept_run(&self, run: Run) -> Result<(bool, u32)> {
        if self.keeper().is_none() {
            return Ok((false, run.len));
        }
        let Some((nr, range)) = self.parts(run).next() else {
            return Ok((false, run.len));
        };
        let mut state = self.lock(nr);
        self.load_blocks(nr, &mut state)?;
        let map = state.blocks.as_ref().expect("just loaded");
        let Some(kept) = &map.kept else {
            return Ok((false, range.end - range.start));
        };
        let start = range.start;
        if bitmap::all_set(&kept.bits, start..start + 1) {
            let end = bitmap::next_clear(&kept.bits, range.clone()).unwrap_or(range.end);
            Ok((true, end - start))
        } else {
            Ok((false, bitmap::next_set(&kept.bits, range) - start))
        }
    }

    /// The groups that know of kept blocks, and should look again when a snapshot was deleted.
    pub(super) fn groups_with_kept(&self) -> Vec<GroupNr> {
        let groups = (0..self.geometry.groups_count()).map(GroupNr);
        groups
            .filter(|nr| {
                let state = self.lock(*nr);
                let knows = state.blocks.as_ref().is_some_and(|map| map.kept.is_some());
                knows || state.pinned > 0
            })
            .collect()
    }

    /// Looks again at what snapshots keep of a group, after one was deleted.
    pub(super) fn review_kept(&self, nr: GroupNr) -> Result<()> {
        let mut state = self.lock(nr);
        self.load_blocks(nr, &mut state)?;
        let map = state.blocks.as_ref().expect("just loaded");
        let bits = match self.ask_kept(nr, &state, map)? {
            Some(kept) => kept.bits,
            None => vec![0; map.busy.len()].into(),
        };
        let map = state.blocks.as_mut().expect("just loaded");
        let Some(kept) = map.kept.as_mut() else {
            return Ok(());
        };
        let mut freed = 0;
        for ((busy, bits), pins) in map.busy.iter_mut().zip(&bits).zip(&mut kept.pinned) {
            let given_back = *pins & !bits;
            *busy &= !given_back;
            *pins &= bits;
            freed += given_back.count_ones();
        }
        kept.bits = bits;
        state.pinned -= freed;
        self.totals.pinned_blocks.fetch_sub(freed.into(), Relaxed);
        if freed > 0 {
            self.add_available(nr, &state, freed);
        }
        Ok(())
    }
}
