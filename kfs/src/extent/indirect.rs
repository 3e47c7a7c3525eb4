//! Block maps of ext2 and ext3: looking blocks up. [`super::trim`] takes blocks away; none are added.
//!
//! ```text
//!  60 bytes in the inode: 12 direct blocks | single | double | triple indirect
//!  an indirect block:     block_size / 4 block numbers, 0 for a hole; no header, no checksum
//! ```
//!
//! Nothing in the blocks tells that they are part of a map, so every number is checked against the
//! volume, and walks stop at more blocks than the volume has: a damaged map may contain itself.

use super::{Extent, LOGICAL_END, Mapping, Root};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::{BlockNr, InodeNr, LogicalBlock};
use crate::layout::Geometry;
use crate::storage::BufferCache;
use std::ops::ControlFlow;

const DIRECT_BLOCKS: u32 = 12;

/// A view on one inode's block map.
#[derive(Clone, Copy)]
pub struct IndirectMap<'a> {
    pub(super) cache: &'a BufferCache,
    pub(super) geometry: &'a Geometry,
    inode: InodeNr,
}

/// A walk over a map: merges blocks into extents and counts them.
struct Walk<'v> {
    visit: &'v mut dyn FnMut(Extent) -> Result<ControlFlow<()>>,
    from: u64,
    pending: Option<Extent>,
    blocks: u64,
}

impl Walk<'_> {
    fn data(&mut self, logical: u64, physical: BlockNr) -> Result<ControlFlow<()>> {
        if let Some(pending) = &mut self.pending
            && pending.end() == logical
            && pending.physical.plus(u64::from(pending.len)) == physical
        {
            pending.len += 1;
            return Ok(ControlFlow::Continue(()));
        }
        let logical = LogicalBlock(logical as u32);
        let next = Extent {
            logical,
            physical,
            len: 1,
            unwritten: false,
        };
        match self.pending.replace(next) {
            Some(done) => (self.visit)(done),
            None => Ok(ControlFlow::Continue(())),
        }
    }
}

/// The block number at `index` of pointers.
pub(super) fn pointer(bytes: &[u8], index: usize) -> BlockNr {
    let (numbers, _) = bytes.as_chunks::<4>();
    BlockNr(u64::from(u32::from_le_bytes(numbers[index])))
}

impl<'a> IndirectMap<'a> {
    /// The block map of an inode.
    #[must_use]
    pub fn new(cache: &'a BufferCache, geometry: &'a Geometry, inode: InodeNr) -> Self {
        Self {
            cache,
            geometry,
            inode,
        }
    }

    /// Block numbers in an indirect block.
    pub(super) fn fanout(&self) -> u64 {
        u64::from(self.geometry.block_size) / 4
    }

    /// Blocks below a pointer of `level`: 0 for a data block, 3 for the triple indirect block.
    pub(super) fn reach(&self, level: u32) -> u64 {
        self.fanout().pow(level)
    }

    /// Blocks that a map can reach.
    pub(crate) fn blocks_max(&self) -> u64 {
        u64::from(DIRECT_BLOCKS) + (1..=3).map(|level| self.reach(level)).sum::<u64>()
    }

    /// The root's slots, with their levels and first logical blocks.
    pub(super) fn slots(&self) -> impl Iterator<Item = (usize, u32, u64)> {
        let direct = u64::from(DIRECT_BLOCKS);
        let indirect = (1..=3).scan(direct, move |first, level| {
            let slot = (DIRECT_BLOCKS as usize + level as usize - 1, level, *first);
            *first += self.reach(level);
            Some(slot)
        });
        (0..DIRECT_BLOCKS as usize)
            .map(|slot| (slot, 0, slot as u64))
            .chain(indirect)
    }

    /// A pointer that leads on, `None` for a hole.
    pub(super) fn checked(&self, block: BlockNr) -> std::result::Result<Option<BlockNr>, Corrupt> {
        if block == BlockNr(0) {
            return Ok(None);
        }
        if !self.geometry.contains_block(block) {
            return Err(Corrupt::IndirectBlock {
                inode: self.inode,
                block,
            });
        }
        Ok(Some(block))
    }

    /// What `logical` is mapped to, and for how many blocks on, at most `max_len`.
    ///
    /// # Errors
    /// `Corrupt` for a pointer out of the volume, `Io`.
    pub fn map(&self, root: &Root, logical: LogicalBlock, max_len: u32) -> Result<Mapping> {
        let at = u64::from(logical.0);
        let clip = |len: u64| u32::try_from(len).unwrap_or(max_len).min(max_len);
        if logical.0 < DIRECT_BLOCKS {
            let direct = &root[..DIRECT_BLOCKS as usize * 4];
            return self.map_pointers(direct, logical.0 as usize, max_len);
        }
        let found = self
            .slots()
            .skip(DIRECT_BLOCKS as usize)
            .find(|(_, level, first)| at < first + self.reach(*level));
        let Some((slot, level, first)) = found else {
            return Ok(Mapping::Hole {
                len: clip(LOGICAL_END.saturating_sub(at)),
            });
        };
        let mut offset = at - first;
        let mut block = pointer(root, slot);
        for level in (1..=level).rev() {
            let Some(nr) = self.checked(block)? else {
                return Ok(Mapping::Hole {
                    len: clip(self.reach(level) - offset),
                });
            };
            let buffer = self.cache.get(nr)?;
            let bytes = buffer.read();
            let index = (offset / self.reach(level - 1)) as usize;
            if level == 1 {
                return self.map_pointers(&bytes, index, max_len);
            }
            offset %= self.reach(level - 1);
            block = pointer(&bytes, index);
        }
        unreachable!("level 1 answers")
    }

    /// The mapping that begins at `index` of pointers to data blocks.
    fn map_pointers(&self, bytes: &[u8], index: usize, max_len: u32) -> Result<Mapping> {
        let (numbers, _) = bytes.as_chunks::<4>();
        let first = pointer(bytes, index);
        let rest = numbers[index..]
            .iter()
            .map(|n| u64::from(u32::from_le_bytes(*n)));
        let rest = rest.take(max_len as usize);
        let Some(physical) = self.checked(first)? else {
            let len = rest.take_while(|nr| *nr == 0).count() as u32;
            return Ok(Mapping::Hole { len });
        };
        let end = self.geometry.blocks_count();
        let run = rest
            .zip(physical.0..end)
            .take_while(|(found, wanted)| found == wanted);
        Ok(Mapping::Mapped {
            physical,
            len: run.count() as u32,
        })
    }

    /// Whether a block of the map, or one that it names, is `end` or lies behind it.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn reaches(&self, root: &Root, end: BlockNr) -> Result<bool> {
        let mut budget = self.geometry.blocks_count();
        for (slot, level, _) in self.slots() {
            if self.pointer_reaches(pointer(root, slot), level, end, &mut budget)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The recursion is at most 3 deep.
    fn pointer_reaches(
        &self,
        block: BlockNr,
        level: u32,
        end: BlockNr,
        budget: &mut u64,
    ) -> Result<bool> {
        let Some(block) = self.checked(block)? else {
            return Ok(false);
        };
        *budget = budget
            .checked_sub(1)
            .ok_or(Corrupt::IndirectTooLarge { inode: self.inode })?;
        if level == 0 || block >= end {
            return Ok(block >= end);
        }
        let bytes = self.cache.get(block)?.freeze();
        for index in 0..self.fanout() as usize {
            if self.pointer_reaches(pointer(&bytes, index), level - 1, end, budget)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Calls `visit` with each run of blocks that ends after `from`, in logical order, until it
    /// breaks.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, and what `visit` returns.
    pub fn for_each(
        &self,
        root: &Root,
        from: LogicalBlock,
        mut visit: impl FnMut(Extent) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        self.walk(root, u64::from(from.0), &mut visit)
    }

    fn walk(
        &self,
        root: &Root,
        from: u64,
        visit: &mut dyn FnMut(Extent) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut walk = Walk {
            visit,
            from,
            pending: None,
            blocks: 0,
        };
        for (slot, level, first) in self.slots() {
            if self
                .walk_pointer(&mut walk, pointer(root, slot), level, first)?
                .is_break()
            {
                return Ok(());
            }
        }
        if let Some(last) = walk.pending {
            let _ = (walk.visit)(last)?;
        }
        Ok(())
    }

    /// Visits what is below one pointer. The recursion is at most 3 deep.
    fn walk_pointer(
        &self,
        walk: &mut Walk<'_>,
        block: BlockNr,
        level: u32,
        first: u64,
    ) -> Result<ControlFlow<()>> {
        let passed = first + self.reach(level) <= walk.from || first >= LOGICAL_END;
        let Some(block) = self.checked(block)?.filter(|_| !passed) else {
            return Ok(ControlFlow::Continue(()));
        };
        walk.blocks += 1;
        if walk.blocks > self.geometry.blocks_count() {
            return Err(Corrupt::IndirectTooLarge { inode: self.inode }.into());
        }
        if level == 0 {
            return walk.data(first, block);
        }
        let bytes = self.cache.get(block)?.freeze();
        for index in 0..self.fanout() {
            let child = pointer(&bytes, index as usize);
            let child_first = first + index * self.reach(level - 1);
            if self
                .walk_pointer(walk, child, level - 1, child_first)?
                .is_break()
            {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}
