//! Taking blocks away from the end of a block map of ext2 or ext3, in steps.
//!
//! A step goes from the last pointer towards the first and stops where what it would free lies in
//! more block groups than its handle has credits for. Pointers to what is freed become holes in the
//! same step, so the map is whole after each of them: an orphan's deletion goes on after a crash
//! from where it had come to.

use super::{IndirectMap, Root};
use crate::error::Result;
use crate::ids::{BlockNr, GroupNr, Run};
use crate::layout::Geometry;
use crate::storage::{Buffer, Handle};
use smallvec::SmallVec;
use std::sync::Arc;

/// Block groups whose bitmaps and descriptors one step changes.
const GROUPS_MAX: usize = 48;
/// Blocks that one step frees: bounds how long it takes.
const BLOCKS_MAX: u32 = 1 << 16;
/// Levels of indirect blocks.
const LEVELS: u32 = 3;

/// Credits for one step: two blocks a group, and an indirect block a level.
pub const TRIM_CREDITS: u32 = 2 * GROUPS_MAX as u32 + LEVELS;

/// What one step frees. Made before anything is changed.
#[derive(Default)]
pub struct Trim {
    /// Data blocks, the last of the file first.
    pub data: Vec<Run>,
    /// Indirect blocks.
    pub nodes: Vec<BlockNr>,
    /// Whether nothing is left beyond the new end.
    pub is_done: bool,
    /// Indirect blocks that stay, and from which pointer on they become empty.
    kept: SmallVec<[(Arc<Buffer>, usize); LEVELS as usize]>,
    /// The same for the root in the inode.
    root_from: Option<usize>,
    groups: SmallVec<[GroupNr; GROUPS_MAX]>,
    blocks: u32,
}

/// What became of a pointer.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pointer {
    /// Nothing is below it any more.
    Empty,
    /// It leads to blocks before the new end.
    Kept,
    /// The step is full.
    Full,
}

impl Trim {
    /// Whether another block still fits into the step.
    fn charge(&mut self, geometry: &Geometry, block: BlockNr) -> bool {
        let (group, _) = geometry.group_of(block);
        if !self.groups.contains(&group) {
            if self.groups.len() == GROUPS_MAX {
                return false;
            }
            self.groups.push(group);
        }
        self.blocks += 1;
        self.blocks <= BLOCKS_MAX
    }

    fn free_data(&mut self, block: BlockNr) {
        match self.data.last_mut() {
            // Blocks come in falling order.
            Some(run) if block.plus(1) == run.start => {
                run.start = block;
                run.len += 1;
            }
            _ => self.data.push(Run {
                start: block,
                len: 1,
            }),
        }
    }

    /// Makes holes of the pointers to what is freed. Takes [`LEVELS`] credits at the most.
    pub fn apply(&self, root: &mut Root, handle: &mut Handle<'_>) {
        for (buffer, from) in &self.kept {
            handle.get_write_access(buffer)[from * 4..].fill(0);
        }
        if let Some(from) = self.root_from {
            root[from * 4..].fill(0);
        }
    }
}

impl IndirectMap<'_> {
    /// Finds what one step takes away of the blocks from `first` to the end.
    ///
    /// # Errors
    /// `Corrupt` for a pointer out of the volume, `Io`.
    pub fn plan_trim(&self, root: &Root, first: u64) -> Result<Trim> {
        let mut trim = Trim::default();
        let slots: SmallVec<[_; 16]> = self.slots().collect();
        for (slot, level, slot_first) in slots.into_iter().rev() {
            if slot_first + self.reach(level) <= first {
                break;
            }
            let block = super::indirect::pointer(root, slot);
            match self.trim_pointer(&mut trim, block, level, slot_first, first)? {
                Pointer::Empty => trim.root_from = Some(slot),
                Pointer::Kept => break,
                Pointer::Full => return Ok(trim),
            }
        }
        trim.is_done = true;
        Ok(trim)
    }

    /// Takes away what is below one pointer, whose first logical block is `at`. The recursion is at
    /// most [`LEVELS`] deep.
    fn trim_pointer(
        &self,
        trim: &mut Trim,
        block: BlockNr,
        level: u32,
        at: u64,
        first: u64,
    ) -> Result<Pointer> {
        let Some(block) = self.checked(block)? else {
            return Ok(Pointer::Empty);
        };
        if level == 0 {
            if !trim.charge(self.geometry, block) {
                return Ok(Pointer::Full);
            }
            trim.free_data(block);
            return Ok(Pointer::Empty);
        }
        let buffer = self.cache.get(block)?;
        let bytes = buffer.freeze();
        let reach = self.reach(level - 1);
        let mut empty_from = self.fanout();
        let mut end = Pointer::Empty;
        for index in (0..self.fanout()).rev() {
            let child_at = at + index * reach;
            if child_at + reach <= first {
                end = Pointer::Kept;
                break;
            }
            let child = super::indirect::pointer(&bytes, index as usize);
            end = self.trim_pointer(trim, child, level - 1, child_at, first)?;
            if end != Pointer::Empty {
                break;
            }
            empty_from = index;
        }
        if end == Pointer::Empty {
            if trim.charge(self.geometry, block) {
                trim.nodes.push(block);
                return Ok(Pointer::Empty);
            }
            end = Pointer::Full;
        }
        if empty_from < self.fanout() {
            trim.kept.push((buffer, empty_from as usize));
        }
        Ok(end)
    }
}
