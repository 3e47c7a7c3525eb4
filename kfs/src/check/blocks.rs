//! Walks the blocks of one inode: an extent tree, or a block map of ext2 and ext3.
//!
//! Unlike the readers of [`crate::extent`] a walk goes on after damage, with what the damage leaves
//! readable, and tells of it.

use super::image::Image;
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::extent::check::{Place, Span, check_node};
use crate::extent::{Extent, LOGICAL_END};
use crate::ids::{BlockNr, InodeNr, LogicalBlock};
use crate::layout::extent::{
    ENTRY_SIZE, RawExtentHeader, RawExtentIndex, RawExtentLeaf, verify_checksum,
};
use crate::layout::inode::{InodeBytes, InodeFlags};
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

const DIRECT_BLOCKS: usize = 12;

/// What a walk tells.
pub(super) trait Visitor {
    /// A block of the tree or map itself. `false` keeps the walk from reading it.
    fn node(&mut self, block: BlockNr) -> bool;
    /// Blocks of the file, in order.
    fn extent(&mut self, extent: Extent);
    /// Something is wrong; what is below is left out.
    fn damage(&mut self, damage: Corrupt);
}

/// Walks the tree or map of an inode.
///
/// # Errors
/// `Io` only.
pub(super) fn walk<B: AsRef<[u8]>>(
    image: &Image,
    nr: InodeNr,
    inode: &InodeBytes<B>,
    visitor: &mut dyn Visitor,
) -> Result<()> {
    let root = inode.block_area();
    if inode.flags().contains(InodeFlags::EXTENTS) {
        let mut tree = TreeWalk {
            image,
            nr,
            seed: image.geometry.inode_seed(nr, inode.generation()),
            visitor,
        };
        return tree.node(BlockNr(0), root, None, Span::ALL);
    }
    let mut map = MapWalk {
        image,
        nr,
        visitor,
        pending: None,
    };
    map.root(root)
}

struct TreeWalk<'w> {
    image: &'w Image,
    nr: InodeNr,
    seed: Option<u32>,
    visitor: &'w mut dyn Visitor,
}

impl TreeWalk<'_> {
    /// A node's content, which nothing has checked. Recursion ends as depths count down.
    fn node(&mut self, block: BlockNr, bytes: &[u8], depth: Option<u16>, span: Span) -> Result<()> {
        let place = Place {
            inode: self.nr,
            block,
        };
        if let Err(damage) = check_node(place, bytes, depth, span, &self.image.geometry) {
            self.visitor.damage(damage);
            return Ok(());
        }
        let (header, rest) = RawExtentHeader::ref_from_prefix(bytes).expect("checked just above");
        let entries: Vec<[u8; ENTRY_SIZE]> = rest
            .as_chunks()
            .0
            .iter()
            .take(usize::from(header.eh_entries.get()))
            .copied()
            .collect();
        if header.eh_depth.get() == 0 {
            for entry in entries {
                let leaf: RawExtentLeaf = zerocopy::transmute!(entry);
                self.visitor.extent(Extent {
                    logical: leaf.logical(),
                    physical: leaf.physical(),
                    len: leaf.len(),
                    unwritten: leaf.is_unwritten(),
                });
            }
            return Ok(());
        }
        let entries: Vec<RawExtentIndex> = entries
            .into_iter()
            .map(|entry| zerocopy::transmute!(entry))
            .collect();
        for (at, entry) in entries.iter().enumerate() {
            let low = entry.logical().0;
            let high = entries
                .get(at + 1)
                .map_or(span.high, |next| u64::from(next.logical().0));
            let span = Span { low, high };
            self.child(entry.child(), header.eh_depth.get() - 1, span)?;
        }
        Ok(())
    }

    fn child(&mut self, block: BlockNr, depth: u16, span: Span) -> Result<()> {
        if !self.visitor.node(block) {
            return Ok(());
        }
        let bytes = self.image.read(block, 1)?;
        let inode = self.nr;
        if !verify_checksum(self.seed, &bytes) {
            self.visitor
                .damage(Corrupt::ExtentChecksum { inode, block });
        }
        // An index entry's key is the first block below it; a search does not need that, changes do.
        let first = RawExtentIndex::ref_from_prefix(&bytes[ENTRY_SIZE..]).map(|(raw, _)| raw);
        if let Ok(first) = first
            && first.logical().0 > span.low
        {
            let logical = first.logical();
            self.visitor.damage(Corrupt::ExtentRange {
                inode,
                block,
                logical,
            });
        }
        self.node(block, &bytes, Some(depth), span)
    }
}

struct MapWalk<'w> {
    image: &'w Image,
    nr: InodeNr,
    visitor: &'w mut dyn Visitor,
    pending: Option<Extent>,
}

impl MapWalk<'_> {
    fn root(&mut self, root: &[u8]) -> Result<()> {
        let per_block = u64::from(self.image.geometry.block_size / 4);
        let mut first = 0;
        for (slot, pointer) in pointers(root).enumerate() {
            let level = (slot + 1).saturating_sub(DIRECT_BLOCKS) as u32;
            self.pointer(pointer, level, first)?;
            first += per_block.pow(level);
        }
        if let Some(last) = self.pending.take() {
            self.visitor.extent(last);
        }
        Ok(())
    }

    /// What is below one pointer, at most three levels.
    fn pointer(&mut self, pointer: u32, level: u32, first: u64) -> Result<()> {
        let block = BlockNr(pointer.into());
        if pointer == 0 {
            return Ok(());
        }
        if !self.image.geometry.contains_block(block) {
            let inode = self.nr;
            self.visitor.damage(Corrupt::IndirectBlock { inode, block });
            return Ok(());
        }
        if first >= LOGICAL_END {
            let inode = self.nr;
            self.visitor.damage(Corrupt::IndirectTooLarge { inode });
            return Ok(());
        }
        if level == 0 {
            self.data(first as u32, block);
            return Ok(());
        }
        if !self.visitor.node(block) {
            return Ok(());
        }
        let bytes = self.image.read(block, 1)?;
        let reach = u64::from(self.image.geometry.block_size / 4).pow(level - 1);
        for (index, pointer) in pointers(&bytes).enumerate() {
            self.pointer(pointer, level - 1, first + index as u64 * reach)?;
        }
        Ok(())
    }

    fn data(&mut self, logical: u32, physical: BlockNr) {
        if let Some(pending) = &mut self.pending {
            if pending.end() == u64::from(logical)
                && pending.physical.0 + u64::from(pending.len) == physical.0
            {
                pending.len += 1;
                return;
            }
            self.visitor.extent(*pending);
        }
        self.pending = Some(Extent {
            logical: LogicalBlock(logical),
            physical,
            len: 1,
            unwritten: false,
        });
    }
}

/// The block numbers in an indirect block or in the root of a map.
pub(super) fn pointers(bytes: &[u8]) -> impl Iterator<Item = u32> + '_ {
    bytes.as_chunks::<4>().0.iter().map(|raw| {
        let word: U32 = zerocopy::transmute!(*raw);
        word.get()
    })
}
