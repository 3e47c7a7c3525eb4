//! How a file lies on the volume, and which parts of it could lie better. Pure: extents in, stretches out.
//!
//! ```text
//!   window     2 MiB of a file, from a multiple of that on: what one huge page of a mapping shows
//!   aligned    all of a window is there, in one run that starts at a multiple of 2 MiB of the volume
//!   fragment   blocks that follow each other on the volume, in the order of the file; holes do not end it
//!   stretch    windows next to each other that could lie better, to be moved into one run
//! ```

use crate::error::Result;
use crate::extent::Extent;
use crate::ids::LogicalBlock;

/// Bytes in a window.
const WINDOW_BYTES: u32 = 2 << 20;

/// Blocks in a window.
pub(super) fn window_blocks(block_size: u32) -> u32 {
    (WINDOW_BYTES / block_size).max(1)
}

/// How a file lies, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FileLayout {
    /// Entries of its tree.
    pub extents: u64,
    /// Runs on the volume, in the order of the file.
    pub fragments: u64,
    /// Blocks of the file.
    pub blocks: u64,
    /// Of these, blocks in aligned windows.
    pub aligned_blocks: u64,
    /// Blocks that a defragmentation would move.
    pub movable_blocks: u64,
    /// What that would gain: fragments less, and two for each window aligned.
    pub gain: u64,
}

/// Part of a file that could lie better.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stretch {
    /// The block behind the blocks before it, if the file has any.
    pub(super) prev_end: Option<u64>,
    pub(super) pieces: Vec<Extent>,
    /// The first block after it, if the file has any.
    pub(super) next_start: Option<u64>,
}

/// What a place for a stretch would gain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Gain {
    /// Fragments less.
    pub(super) fragments: i64,
    /// Windows aligned more.
    pub(super) windows: i64,
}

impl Gain {
    /// One number: an aligned window is worth two fragments, those that it may make at its ends.
    fn worth(self) -> i64 {
        self.fragments + 2 * self.windows
    }

    /// The file lies better afterwards.
    pub(super) fn is_worth_it(self) -> bool {
        self.worth() > 0
    }
}

/// A window of a file with the extents that lie in it.
#[derive(Clone, Debug)]
struct Window {
    index: u32,
    pieces: Vec<Extent>,
}

fn end_of(piece: &Extent) -> u64 {
    piece.physical.0 + u64::from(piece.len)
}

fn blocks_of(pieces: &[Extent]) -> u64 {
    pieces.iter().map(|piece| u64::from(piece.len)).sum()
}

fn breaks_within(pieces: &[Extent]) -> i64 {
    let pairs = pieces.windows(2);
    pairs
        .filter(|pair| end_of(&pair[0]) != pair[1].physical.0)
        .count() as i64
}

impl Window {
    fn is_full(&self, blocks: u32) -> bool {
        blocks_of(&self.pieces) == u64::from(blocks)
    }

    fn is_aligned(&self, blocks: u32) -> bool {
        let first = self.pieces.first();
        self.is_full(blocks)
            && breaks_within(&self.pieces) == 0
            && first.is_some_and(|piece| piece.physical.0.is_multiple_of(blocks.into()))
    }

    fn could_lie_better(&self, blocks: u32, prev_end: Option<u64>) -> bool {
        if self.is_full(blocks) {
            return !self.is_aligned(blocks);
        }
        let start = self.pieces.first().map(|piece| piece.physical.0);
        breaks_within(&self.pieces) > 0 || (prev_end.is_some() && prev_end != start)
    }
}

/// Cuts extents into windows.
struct Windows<I> {
    extents: I,
    /// What is left of the last extent.
    rest: Option<Extent>,
    blocks: u32,
}

impl<I: Iterator<Item = Result<Extent>>> Windows<I> {
    fn next_piece(&mut self) -> Result<Option<Extent>> {
        match self.rest.take() {
            Some(rest) => Ok(Some(rest)),
            None => self.extents.next().transpose(),
        }
    }

    fn next_window(&mut self) -> Result<Option<Window>> {
        let mut window: Option<Window> = None;
        while let Some(extent) = self.next_piece()? {
            let index = extent.logical.0 / self.blocks;
            let window = window.get_or_insert_with(|| Window {
                index,
                pieces: Vec::new(),
            });
            if index != window.index {
                self.rest = Some(extent);
                break;
            }
            let room = self.blocks - extent.logical.0 % self.blocks;
            let (piece, rest) = split(extent, room);
            window.pieces.push(piece);
            self.rest = rest;
            if rest.is_some() {
                break;
            }
        }
        Ok(window)
    }
}

/// The first `len` blocks of an extent, and the others.
pub(super) fn split(extent: Extent, len: u32) -> (Extent, Option<Extent>) {
    if extent.len <= len {
        return (extent, None);
    }
    let rest = Extent {
        logical: LogicalBlock(extent.logical.0 + len),
        physical: extent.physical.plus(len.into()),
        len: extent.len - len,
        unwritten: extent.unwritten,
    };
    (Extent { len, ..extent }, Some(rest))
}

/// Finds the stretches of a file, and sums up how it lies.
pub(super) struct Stretches<I, K> {
    windows: Windows<I>,
    /// Whether a stretch may not be moved.
    is_kept: K,
    /// Blocks in a stretch, about.
    blocks_max: u64,
    /// A window that was looked at, and the end of the one before it.
    waiting: Option<(Window, Option<u64>)>,
    prev_end: Option<u64>,
    last_extent: Option<Extent>,
    /// How the part of the file lies that was seen.
    pub(super) layout: FileLayout,
    /// Blocks that could lie better, and may not be moved.
    pub(super) kept_blocks: u64,
}

impl<I, K> Stretches<I, K>
where
    I: Iterator<Item = Result<Extent>>,
    K: FnMut(&[Extent]) -> Result<bool>,
{
    /// Of the extents of a file, or those from a window on when the block behind those before is known.
    pub(super) fn new(
        extents: I,
        window: u32,
        prev_end: Option<u64>,
        blocks_max: u64,
        is_kept: K,
    ) -> Self {
        Self {
            windows: Windows {
                extents,
                rest: None,
                blocks: window,
            },
            is_kept,
            blocks_max,
            waiting: None,
            prev_end,
            last_extent: None,
            layout: FileLayout::default(),
            kept_blocks: 0,
        }
    }

    /// The next window, and the end of the blocks before it.
    fn next_window(&mut self) -> Result<Option<(Window, Option<u64>)>> {
        if let Some(waiting) = self.waiting.take() {
            return Ok(Some(waiting));
        }
        let Some(window) = self.windows.next_window()? else {
            return Ok(None);
        };
        let before = self.prev_end;
        self.count(&window);
        Ok(Some((window, before)))
    }

    fn count(&mut self, window: &Window) {
        let layout = &mut self.layout;
        for piece in &window.pieces {
            layout.blocks += u64::from(piece.len);
            let goes_on = self.prev_end == Some(piece.physical.0);
            layout.fragments += u64::from(!goes_on);
            let is_same = self.last_extent.is_some_and(|last| {
                goes_on && last.unwritten == piece.unwritten && last.end() == piece.logical.0.into()
            });
            layout.extents += u64::from(!is_same);
            self.prev_end = Some(end_of(piece));
            self.last_extent = Some(*piece);
        }
        if window.is_aligned(self.windows.blocks) {
            layout.aligned_blocks += u64::from(self.windows.blocks);
        }
    }

    /// The next part of the file that could lie better and may be moved.
    pub(super) fn next(&mut self) -> Result<Option<Stretch>> {
        let blocks = self.windows.blocks;
        let mut stretch: Option<Stretch> = None;
        // Once whole windows were followed by one that is not, alignment is lost for what comes after.
        let mut has_full = false;
        let mut is_tail = false;
        while let Some((window, before)) = self.next_window()? {
            let mut is_bad = window.could_lie_better(blocks, before);
            if is_bad && (self.is_kept)(&window.pieces)? {
                self.kept_blocks += blocks_of(&window.pieces);
                is_bad = false;
            }
            let is_full = window.is_full(blocks);
            if let Some(found) = &mut stretch {
                let len = blocks_of(&found.pieces) + blocks_of(&window.pieces);
                let ends = !is_bad || len > self.blocks_max || (is_full && is_tail);
                if ends {
                    found.next_start = window.pieces.first().map(|piece| piece.physical.0);
                    self.waiting = Some((window, before));
                    break;
                }
            } else if !is_bad {
                continue;
            }
            has_full |= is_full;
            is_tail = has_full && !is_full;
            let stretch = stretch.get_or_insert_with(|| Stretch {
                prev_end: before,
                ..Stretch::default()
            });
            stretch.pieces.extend(window.pieces);
        }
        if let Some(stretch) = &stretch {
            let gain = stretch.best_gain(blocks);
            if gain > 0 {
                self.layout.gain += gain;
                self.layout.movable_blocks += stretch.blocks();
            }
        }
        Ok(stretch)
    }
}

impl Stretch {
    pub(super) fn blocks(&self) -> u64 {
        blocks_of(&self.pieces)
    }

    /// Where it begins in the file.
    pub(super) fn first(&self) -> LogicalBlock {
        self.pieces
            .first()
            .map_or(LogicalBlock(0), |piece| piece.logical)
    }

    /// The first block after it, in the file.
    pub(super) fn end(&self) -> u64 {
        self.pieces.last().map_or(0, |piece| piece.end())
    }

    /// The whole windows in it: where each begins in the file, how many blocks of the stretch come
    /// before it, and whether it is aligned.
    fn whole_windows(&self, window: u32) -> Vec<(u32, u64, bool)> {
        let extents = self.pieces.iter().copied().map(Ok);
        let mut windows = Windows {
            extents,
            rest: None,
            blocks: window,
        };
        let mut found = Vec::new();
        let mut before = 0;
        while let Ok(Some(next)) = windows.next_window() {
            if next.is_full(window) {
                found.push((next.index * window, before, next.is_aligned(window)));
            }
            before += blocks_of(&next.pieces);
        }
        found
    }

    /// The number, modulo a window, of the block at which it has to start to have its windows aligned.
    pub(super) fn phase(&self, window: u32) -> Option<u32> {
        let (_, before, _) = *self.whole_windows(window).first()?;
        let window = u64::from(window);
        Some(((window - before % window) % window) as u32)
    }

    /// What moving it to a run from `start` on would gain.
    pub(super) fn gain_at(&self, start: u64, window: u32) -> Gain {
        let first = self.pieces.first().map(|piece| piece.physical.0);
        let last = self.pieces.last().map(end_of);
        let breaks = |first: Option<u64>, last: Option<u64>| {
            let left = self.prev_end.is_some() && self.prev_end != first;
            let right = self.next_start.is_some() && self.next_start != last;
            i64::from(left) + i64::from(right)
        };
        let before = breaks(first, last) + breaks_within(&self.pieces);
        let after = breaks(Some(start), Some(start + self.blocks()));
        let mut windows = 0;
        for (_, offset, is_aligned) in self.whole_windows(window) {
            let will_be = (start + offset).is_multiple_of(window.into());
            windows += i64::from(will_be) - i64::from(is_aligned);
        }
        Gain {
            fragments: before - after,
            windows,
        }
    }

    /// The most that moving it can gain.
    fn best_gain(&self, window: u32) -> u64 {
        let first = self.pieces.first().map(|piece| piece.physical.0);
        let last = self.pieces.last().map(end_of);
        let left = match self.prev_end {
            None => 0,
            Some(end) if Some(end) == first => -1,
            Some(_) => 1,
        };
        let right = i64::from(self.next_start.is_some() && self.next_start == last);
        let fragments = breaks_within(&self.pieces) + left - right;
        let windows = self.whole_windows(window);
        let windows = windows.iter().filter(|(_, _, is_aligned)| !is_aligned);
        let gain = Gain {
            fragments,
            windows: windows.count() as i64,
        };
        gain.worth().max(0) as u64
    }

    /// Two stretches of about half its blocks: between windows where there are several.
    pub(super) fn halves(self, window: u32) -> Option<(Self, Self)> {
        let half = self.blocks() / 2;
        if half == 0 {
            return None;
        }
        let window_of = |block: u64| block / u64::from(window);
        let first = self.pieces.first()?.logical.0;
        let cuts_windows = window_of(first.into()) == window_of(self.end() - 1);
        let mut left: Vec<Extent> = Vec::new();
        let mut right: Vec<Extent> = Vec::new();
        let mut seen = 0;
        for piece in self.pieces {
            let end = seen + u64::from(piece.len);
            // A piece does not cross the edge of a window.
            let is_inside = !piece.logical.0.is_multiple_of(window) || left.is_empty();
            if !right.is_empty() {
                right.push(piece);
            } else if end <= half || (!cuts_windows && is_inside) {
                left.push(piece);
            } else if cuts_windows && seen < half {
                let (first, rest) = split(piece, (half - seen) as u32);
                left.push(first);
                right.extend(rest);
            } else {
                right.push(piece);
            }
            seen = end;
        }
        let (first, last) = (right.first()?.physical.0, end_of(left.last()?));
        let left = Self {
            prev_end: self.prev_end,
            pieces: left,
            next_start: Some(first),
        };
        let right = Self {
            prev_end: Some(last),
            pieces: right,
            next_start: self.next_start,
        };
        Some((left, right))
    }
}
