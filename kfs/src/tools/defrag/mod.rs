//! Defragmentation of a volume in use: files get the places they would have had on an empty volume.
//!
//! - `layout.rs`: how a file lies, and what could lie better
//! - `survey.rs`: a walk over files, to find those worth the work
//! - here: a stretch of a file gets a new place, if there is one that is better, step by step
//!
//! Invariants: a stretch that was moved lies better than before by one measure, fragments less twice the
//! aligned windows, so that doing it again and again comes to an end; no step takes longer than others
//! can be kept waiting.

mod layout;
mod survey;
#[cfg(test)]
mod tests;

pub use layout::FileLayout;
pub use survey::{Candidate, Skipped, Survey, TreeCursor};

use crate::allocator::{ContiguousRequest, Reservation};
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::file::Relocated;
use crate::fs::Filesystem;
use crate::ids::{BlockNr, LogicalBlock};
use crate::inode::Inode;
use crate::volume::Volume;
use layout::{Stretch, Stretches, split, window_blocks};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Bytes in a stretch, which is moved even if the time is over.
const STRETCH_BYTES_MAX: u64 = 32 << 20;

/// Shortest run that a part of a stretch is moved to, in bytes.
const PART_BYTES_MIN: u64 = 128 << 10;

/// Bytes moved in one step, while others wait for the file.
const STEP_BYTES_MAX: u64 = 8 << 20;
const STEP_BYTES_FIRST: u64 = 2 << 20;
const STEP_BYTES_MIN: u64 = 128 << 10;

/// A step that takes longer is followed by smaller ones.
const STEP_TIME: Duration = Duration::from_millis(25);

/// Extents read at a time.
const EXTENTS_READ: usize = 1024;

/// How a defragmentation goes about it.
#[derive(Clone, Copy, Debug)]
pub struct DefragOptions {
    /// Move blocks that snapshots see, too. The snapshots keep the old ones.
    pub moves_kept: bool,
    /// Begin with no other stretch after this many bytes.
    pub bytes_max: u64,
    /// Begin with no other stretch after this instant.
    pub until: Instant,
}

/// What was done with a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DefragProgress {
    /// Bytes moved.
    pub moved_bytes: u64,
    /// Where to go on; `None` when all was looked at.
    pub next: Option<LogicalBlock>,
    /// Parts for which there is no better place.
    pub no_room: u64,
    /// Parts that somebody changed meanwhile.
    pub changed: u64,
}

/// A defragmentation of some files, with what it learns about the speed of the device.
pub struct Defrag<'f> {
    fs: &'f Filesystem,
    options: DefragOptions,
    step_blocks: u32,
    moved_bytes: u64,
    has_committed: bool,
}

/// The work on one file.
struct FileWork<'w, 'f> {
    defrag: &'w mut Defrag<'f>,
    inode: &'w Arc<Inode>,
    window: u32,
    /// Blocks that are to be moved after those done.
    ahead: u64,
    progress: DefragProgress,
}

/// How far a stretch came.
enum Outcome {
    /// It lies behind this block now.
    Moved(u64),
    /// It stays where it is.
    Stays,
}

impl<'f> Defrag<'f> {
    /// Moves nothing yet.
    #[must_use]
    pub fn new(fs: &'f Filesystem, options: DefragOptions) -> Self {
        let blocks = STEP_BYTES_FIRST / fs.volume.block_size();
        Self {
            fs,
            options,
            step_blocks: blocks.max(1) as u32,
            moved_bytes: 0,
            has_committed: false,
        }
    }

    /// Whether the time or the bytes are used up.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.moved_bytes >= self.options.bytes_max || Instant::now() >= self.options.until
    }

    /// Bytes moved so far.
    #[must_use]
    pub fn moved_bytes(&self) -> u64 {
        self.moved_bytes
    }

    /// Moves what could lie better of a file, from a block on.
    ///
    /// # Errors
    /// `NotSupported` for a file that cannot be moved, `Stale` for one that is deleted meanwhile,
    /// `ReadOnly`, `Io`, `Corrupt`. That there is no room is no error.
    pub fn file(&mut self, inode: &Arc<Inode>, from: LogicalBlock) -> Result<DefragProgress> {
        if let Some(reason) = self.fs.volume.read_only() {
            return Err(Error::ReadOnly { reason });
        }
        if survey::obstacle(self.fs, inode).is_some() {
            return Err(Error::NotSupported);
        }
        let window = window_blocks(self.fs.volume.geometry.block_size);
        let (layout, _) = survey::layout(self.fs, inode, self.options.moves_kept)?;
        let work = FileWork {
            defrag: self,
            inode,
            window,
            ahead: layout.movable_blocks,
            progress: DefragProgress::default(),
        };
        work.run(LogicalBlock(from.0 / window * window))
    }

    /// Notes how long a step took.
    fn pace(&mut self, took: Duration) {
        let size = self.fs.volume.block_size();
        let bound = |bytes: u64| (bytes / size).max(1) as u32;
        let next = if took > STEP_TIME {
            self.step_blocks / 2
        } else if took < STEP_TIME / 4 {
            self.step_blocks * 2
        } else {
            self.step_blocks
        };
        self.step_blocks = next.clamp(bound(STEP_BYTES_MIN), bound(STEP_BYTES_MAX));
    }
}

impl FileWork<'_, '_> {
    fn run(mut self, from: LogicalBlock) -> Result<DefragProgress> {
        let mut at = from;
        while let Some(stretch) = self.next_stretch(at)? {
            let end = stretch.end().next_multiple_of(self.window.into());
            let blocks = stretch.blocks();
            self.place(stretch)?;
            self.ahead = self.ahead.saturating_sub(blocks);
            let Ok(end) = u32::try_from(end) else {
                break;
            };
            at = LogicalBlock(end);
            if self.defrag.is_over() {
                self.progress.next = Some(at);
                break;
            }
        }
        Ok(self.progress)
    }

    fn volume(&self) -> &Volume {
        &self.defrag.fs.volume
    }

    fn next_stretch(&self, at: LogicalBlock) -> Result<Option<Stretch>> {
        let volume = self.volume();
        let most = self.defrag.options.bytes_max.min(STRETCH_BYTES_MAX) / volume.block_size();
        let most = most.max(self.window.into());
        let prev_end = self.inode.extent_before(volume, at)?.map(|extent| {
            let len = u64::from(at.0 - extent.logical.0).min(extent.len.into());
            extent.physical.0 + len
        });
        let extents = Extents::new(volume, self.inode, at);
        let is_kept = survey::keeper(self.defrag.fs, self.inode, self.defrag.options.moves_kept);
        let mut stretches = Stretches::new(extents, self.window, prev_end, most, is_kept);
        stretches.next()
    }

    /// Moves a stretch, or parts of it, to a better place.
    fn place(&mut self, stretch: Stretch) -> Result<Outcome> {
        let mut found = self.find_place(&stretch)?;
        let pending = self.volume().allocator.pending_blocks();
        if found.is_none() && pending >= stretch.blocks() && !self.defrag.has_committed {
            // What was freed just now may be the place.
            self.defrag.has_committed = true;
            self.volume().journal.commit_all()?;
            found = self.find_place(&stretch)?;
        }
        if let Some(reservation) = found {
            return self.transfer(stretch, reservation);
        }
        let least = PART_BYTES_MIN / self.volume().block_size();
        if stretch.blocks() / 2 >= least.max(1)
            && let Some((left, mut right)) = stretch.halves(self.window)
        {
            if let Outcome::Moved(end) = self.place(left)? {
                right.prev_end = Some(end);
            }
            return self.place(right);
        }
        self.progress.no_room += 1;
        Ok(Outcome::Stays)
    }

    /// A place that is better for a stretch than the one it has.
    fn find_place(&self, stretch: &Stretch) -> Result<Option<Reservation>> {
        let window = self.window;
        let len = stretch.blocks();
        let per_group = u64::from(self.volume().geometry.blocks_per_group);
        if len == 0 || len > per_group {
            return Ok(None);
        }
        // Far from everything, with the windows of the stretch aligned or not.
        let phase = stretch.phase(window);
        let far = (u64::from(window) << 40) + u64::from(phase.unwrap_or(0));
        let aligned = phase.map_or((1, 0), |phase| (window, phase));
        let ahead = self.ahead.clamp(len, per_group) as u32;
        let len = len as u32;
        let mut wishes = Vec::new();
        let behind = |align| stretch.prev_end.map(|end| (end, len, align, true));
        // Right behind the blocks before it, aligned if it has whole windows.
        wishes.extend(behind(aligned));
        wishes.push((far, ahead, aligned, false));
        wishes.push((far, len, aligned, false));
        if phase.is_some() {
            wishes.extend(behind((1, 0)));
            wishes.push((far + 1, len, (1, 0), false));
        }
        let goal = self.inode.goal(self.volume(), stretch.first())?;
        for (start, len, align, only_at_goal) in wishes {
            if !stretch.gain_at(start, window).is_worth_it() {
                continue;
            }
            let request = ContiguousRequest {
                goal: if only_at_goal { BlockNr(start) } else { goal },
                len,
                align,
                only_at_goal,
            };
            let found = self.volume().allocator.reserve_contiguous(request)?;
            if let Some(mut reservation) = found {
                reservation.truncate(stretch.blocks() as u32);
                let start = reservation.run().start.0;
                if stretch.gain_at(start, window).is_worth_it() {
                    return Ok(Some(reservation));
                }
            }
        }
        Ok(None)
    }

    /// Moves a stretch to blocks that are reserved for it, in steps.
    fn transfer(&mut self, stretch: Stretch, mut reservation: Reservation) -> Result<Outcome> {
        let mut left = VecDeque::from(stretch.pieces);
        while !left.is_empty() {
            let step = take_blocks(&mut left, self.defrag.step_blocks);
            let began = Instant::now();
            let moves_kept = self.defrag.options.moves_kept;
            let file = self.defrag.fs.file(self.inode);
            // While the volume is frozen a step waits here, not where readers of the file would, too.
            let _change = self.defrag.fs.begin_change();
            match file.relocate(&step, &mut reservation, moves_kept) {
                Ok(Relocated::Done) => {}
                Ok(Relocated::Changed | Relocated::Kept) => {
                    self.progress.changed += 1;
                    return Ok(Outcome::Stays);
                }
                Err(Error::NoSpace | Error::SnapshotStoreFull) => {
                    self.progress.no_room += 1;
                    return Ok(Outcome::Stays);
                }
                Err(error) => return Err(error),
            }
            self.defrag.pace(began.elapsed());
            let blocks: u64 = step.iter().map(|piece| u64::from(piece.len)).sum();
            let bytes = blocks * self.volume().block_size();
            self.progress.moved_bytes += bytes;
            self.defrag.moved_bytes += bytes;
        }
        Ok(Outcome::Moved(reservation.run().start.0))
    }
}

/// Takes up to `most` blocks off the front.
fn take_blocks(pieces: &mut VecDeque<Extent>, most: u32) -> Vec<Extent> {
    let mut taken = Vec::new();
    let mut room = most;
    while room > 0
        && let Some(piece) = pieces.pop_front()
    {
        let (first, rest) = split(piece, room);
        room -= first.len;
        taken.push(first);
        if let Some(rest) = rest {
            pieces.push_front(rest);
        }
    }
    taken
}

/// The extents of a file from a block on, read some at a time.
struct Extents<'i> {
    volume: &'i Volume,
    inode: &'i Inode,
    next: Option<LogicalBlock>,
    read: std::vec::IntoIter<Extent>,
}

impl<'i> Extents<'i> {
    fn new(volume: &'i Volume, inode: &'i Inode, from: LogicalBlock) -> Self {
        Self {
            volume,
            inode,
            next: Some(from),
            read: Vec::new().into_iter(),
        }
    }
}

impl Iterator for Extents<'_> {
    type Item = Result<Extent>;

    fn next(&mut self) -> Option<Result<Extent>> {
        let from = self.next?;
        if self.read.len() == 0 {
            match self.inode.extents_from(self.volume, from, EXTENTS_READ) {
                Ok(extents) => self.read = extents.into_iter(),
                Err(error) => {
                    self.next = None;
                    return Some(Err(error));
                }
            }
        }
        let Some(mut extent) = self.read.next() else {
            self.next = None;
            return None;
        };
        if extent.logical < from {
            let (_, rest) = split(extent, from.0 - extent.logical.0);
            extent = rest?;
        }
        self.next = u32::try_from(extent.end()).ok().map(LogicalBlock);
        Some(Ok(extent))
    }
}
