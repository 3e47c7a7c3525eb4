//! The segments of the store: which are free, what is needed in each, where the next batch goes.

use super::format::{Kind, SEGMENT_BLOCKS, SegmentHead};
use super::seal::Seals;
use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// All segments.
#[derive(Default)]
pub(super) struct Segments {
    pub(super) list: Vec<Segment>,
    /// Segments, other than the current one, in which nobody needs anything.
    pub(super) free: BTreeSet<u32>,
    /// The segment that batches are appended to.
    pub(super) current: Option<u32>,
    pub(super) seals: Seals,
    /// Segments that could not be read when they were to be cleaned.
    pub(super) passed_by: BTreeSet<u32>,
    pub(super) next_sequence: u64,
    pub(super) next_commit: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Segment {
    /// Of its newest life, 0 when it has had none.
    pub(super) sequence: u64,
    /// Blocks in it that somebody needs.
    pub(super) needed: u32,
    /// The block behind its last batch, counted from its head.
    pub(super) end: u32,
    /// Whether its head says where they end.
    pub(super) is_sealed: bool,
}

impl Segment {
    /// Its head, with a seal.
    pub(super) fn head(&self) -> SegmentHead {
        SegmentHead {
            sequence: self.sequence,
            end: self.end,
        }
    }
}

/// Where a batch goes.
pub(super) struct Place {
    pub(super) segment: u32,
    /// Block of its head within the segment.
    pub(super) at: u32,
    /// Blocks of content.
    pub(super) len: usize,
    pub(super) sequence: u64,
}

impl Segments {
    /// Somebody needs blocks in a segment.
    pub(super) fn need(&mut self, nr: u32, blocks: u32) {
        self.list[nr as usize].needed += blocks;
        if blocks > 0 {
            self.free.remove(&nr);
        }
    }

    /// A block in a segment is not needed any more.
    pub(super) fn release(&mut self, nr: u32) {
        let segment = &mut self.list[nr as usize];
        segment.needed = segment.needed.saturating_sub(1);
        self.note_if_free(nr);
    }

    fn note_if_free(&mut self, nr: u32) {
        let is_current = self.current == Some(nr);
        if !is_current && self.list[nr as usize].needed == 0 {
            self.free.insert(nr);
        }
    }

    /// Up to `limit` segments in which somebody needs a few blocks, `most` at the most: the sparsest first.
    pub(super) fn sparsest(&self, most: u32, limit: usize) -> Vec<u32> {
        let is_sparse = |(nr, segment): &(u32, &Segment)| {
            let in_use = self.current == Some(*nr) || self.passed_by.contains(nr);
            !in_use && (1..=most).contains(&segment.needed)
        };
        let sparse = (0..).zip(&self.list).filter(is_sparse);
        let mut sparse: Vec<(u32, u32)> =
            sparse.map(|(nr, segment)| (segment.needed, nr)).collect();
        sparse.sort_unstable();
        sparse.truncate(limit);
        sparse.into_iter().map(|(_, nr)| nr).collect()
    }

    /// The number of a commit that is about to be appended.
    pub(super) fn begin_append(&mut self, kind: Kind) -> u64 {
        let commit = self.next_commit;
        self.next_commit = commit.saturating_add(1);
        if matches!(kind, Kind::PreImages { .. }) {
            self.seals.begin_pre_images(commit);
        }
        commit
    }

    /// A commit was appended, or only a part of it.
    pub(super) fn end_append(&mut self, commit: u64, is_whole: bool) {
        self.seals.end_append(commit, is_whole);
        if !is_whole && let Some(last) = self.current.take() {
            // What would come behind a batch that is not there would not be found.
            self.note_if_free(last);
        }
    }

    /// Blocks that can be appended if so many segments stay free, `None` if so many are not free.
    pub(super) fn room(&self, spare: u64) -> Option<u64> {
        let free = (self.free.len() as u64).checked_sub(spare)?;
        Some(free * u64::from(SEGMENT_BLOCKS - 1) + u64::from(self.room_in_current()))
    }

    /// Blocks behind the last batch of the current segment.
    fn room_in_current(&self) -> u32 {
        self.current.map_or(0, |nr| {
            SEGMENT_BLOCKS.saturating_sub(self.list[nr as usize].end)
        })
    }

    /// Takes a place for a batch of `least` to `most` blocks of content.
    pub(super) fn take(&mut self, least: usize, most: usize, commit: u64) -> Result<Place> {
        // The head takes one.
        if (self.room_in_current() as usize) < least + 1 {
            self.next_segment()?;
        }
        let len = (self.room_in_current().saturating_sub(1) as usize).min(most);
        let nr = self
            .current
            .filter(|_| len >= least)
            .ok_or(Error::SnapshotStoreFull)?;
        self.need(nr, len as u32);
        self.seals.note_batch(nr, commit);
        let segment = &mut self.list[nr as usize];
        let at = segment.end;
        segment.end += 1 + len as u32;
        Ok(Place {
            segment: nr,
            at,
            len,
            sequence: segment.sequence,
        })
    }

    /// Goes on in a free segment.
    fn next_segment(&mut self) -> Result<()> {
        let is_open = |nr: &&u32| !self.list[**nr as usize].is_sealed;
        let nr = self.free.iter().find(is_open).copied();
        let nr = nr.ok_or(Error::SnapshotStoreFull)?;
        self.free.remove(&nr);
        self.passed_by.remove(&nr);
        self.list[nr as usize] = Segment {
            sequence: self.next_sequence,
            end: 1,
            ..Segment::default()
        };
        self.next_sequence = self.next_sequence.saturating_add(1);
        if let Some(last) = self.current.replace(nr) {
            self.note_if_free(last);
        }
        Ok(())
    }
}
