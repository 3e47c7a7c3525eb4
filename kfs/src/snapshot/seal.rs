//! Seals: the head of a segment says where its batches end, so that a lost one is noticed.
//!
//! ```text
//!   batches are appended        no seal: what a power cut has torn ends the segment
//!   all of them are durable     sealed with the end
//!   nobody needs any            the seal is broken, durably, before
//!   another life begins         no seal
//! ```
//!
//! So nothing in a sealed segment changes, whenever the power goes: if its batches do not lead to that end,
//! one is damaged.

use super::format::{SEGMENT_BLOCKS, SegmentHead};
use super::segments::{Segment, Segments};
use super::store::Store;
use crate::error::Result;
use std::collections::BTreeMap;

/// Seals that are broken with one flush, if so many segments are free.
const BROKEN_AT_ONCE: usize = 32;

/// Which segments are to be sealed, and when.
#[derive(Default)]
pub(super) struct Seals {
    /// Segments with batches and without a seal, and the commit of the last batch.
    open: BTreeMap<u32, u64>,
    /// The last commit that was appended.
    appended: u64,
    /// All up to this one are durable.
    durable: u64,
    /// The last commit with pre-images.
    pre_images: u64,
}

impl Seals {
    /// What was found when the store was opened, the last commit of which is `last`.
    pub(super) fn attach(&mut self, list: &[Segment], last: u64) {
        let is_open = |segment: &Segment| segment.end > 1 && !segment.is_sealed;
        let open = (0..).zip(list).filter(|(_, segment)| is_open(segment));
        self.open = open.map(|(nr, _)| (nr, last)).collect();
    }

    /// A batch goes into a segment.
    pub(super) fn note_batch(&mut self, segment: u32, commit: u64) {
        self.open.insert(segment, commit);
    }

    /// Pre-images are about to be appended: those before were flushed with their commit, and with them
    /// whatever had been appended.
    pub(super) fn begin_pre_images(&mut self, commit: u64) {
        self.durable = self.durable.max(self.pre_images);
        self.pre_images = commit;
    }

    /// All batches of a commit have been written. If one has not, its segments never get a seal.
    pub(super) fn end_append(&mut self, commit: u64, is_whole: bool) {
        if is_whole {
            self.appended = commit;
        } else {
            self.open.retain(|_, last| *last != commit);
        }
    }
}

impl Segments {
    /// Takes the segments that are to be sealed, with their heads: those that are over and durable, or all.
    fn sealable(&mut self, all: bool) -> Vec<(u32, SegmentHead)> {
        if all {
            // Behind a seal nothing would be found.
            self.current = None;
        }
        let (current, durable) = (self.current, self.seals.durable);
        let list = &mut self.list;
        let mut heads = Vec::new();
        self.seals.open.retain(|nr, commit| {
            if !all && (current == Some(*nr) || *commit > durable) {
                return true;
            }
            let segment = &mut list[*nr as usize];
            // What nobody needs is about to be written anew.
            if segment.needed > 0 {
                segment.is_sealed = true;
                heads.push((*nr, segment.head()));
            }
            false
        });
        heads
    }

    /// Takes sealed segments that are free, if one of them is among the next in which so many blocks will
    /// find a place.
    fn sealed_ahead(&mut self, blocks: u64) -> Vec<u32> {
        let next = (blocks / u64::from(SEGMENT_BLOCKS - 1)) as usize + 1;
        let is_sealed = |nr: &&u32| self.list[**nr as usize].is_sealed;
        if !self.free.iter().take(next).any(|nr| is_sealed(&nr)) {
            return Vec::new();
        }
        let sealed = self.free.iter().filter(is_sealed);
        sealed.take(next.max(BROKEN_AT_ONCE)).copied().collect()
    }
}

impl Store {
    /// Seals what is over and durable.
    pub(super) fn seal_durable(&self) -> Result<()> {
        let heads = self.segments.lock().sealable(false);
        self.write_heads(&heads)
    }

    /// Seals all: nothing is appended any more.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn seal_all(&self) -> Result<()> {
        let _one = self.appending.lock();
        let heads = self.segments.lock().sealable(true);
        if heads.is_empty() {
            return Ok(());
        }
        self.flush()?;
        self.write_heads(&heads)
    }

    /// Makes segments ready in which so many blocks will find a place. Who calls is the one who appends.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn break_seals(&self, blocks: u64) -> Result<()> {
        let sealed = self.segments.lock().sealed_ahead(blocks);
        if sealed.is_empty() {
            return Ok(());
        }
        let heads: Vec<(u32, SegmentHead)> = {
            let mut segments = self.segments.lock();
            let head = |nr: &u32| {
                let segment = &mut segments.list[*nr as usize];
                segment.end = 0;
                (*nr, segment.head())
            };
            sealed.iter().map(head).collect()
        };
        self.write_heads(&heads)?;
        self.flush()?;
        let mut segments = self.segments.lock();
        for nr in sealed {
            segments.list[nr as usize].is_sealed = false;
        }
        Ok(())
    }

    /// Makes durable what was appended.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn flush_appended(&self) -> Result<()> {
        let appended = self.segments.lock().seals.appended;
        self.flush()?;
        let seals = &mut self.segments.lock().seals;
        seals.durable = seals.durable.max(appended);
        Ok(())
    }

    fn write_heads(&self, heads: &[(u32, SegmentHead)]) -> Result<()> {
        for (nr, head) in heads {
            self.write_head(*nr, *head)?;
        }
        Ok(())
    }
}
