//! Moving nodes of a tree to other blocks.

use super::node::{self, Entry, Node, ROOT_ENTRIES};
use super::{Extent, ExtentTree, NODE_CREDITS, NodeAllocator, Root};
use crate::error::Result;
use crate::ids::{BlockNr, LogicalBlock, Run};
use crate::layout::extent::{RawExtentHeader, update_checksum};
use crate::storage::Handle;

/// Credits of [`ExtentTree::relocate_node`]: the node and the one above it, the blocks allocated and freed.
pub const RELOCATE_CREDITS: u32 = 2 + 2 * NODE_CREDITS;

/// Extents that a root holds.
pub const ROOT_EXTENTS: usize = ROOT_ENTRIES as usize;

/// The bytes of a whole tree.
#[derive(Clone, Debug)]
pub struct EncodedTree {
    /// Its root.
    pub root: Root,
    /// The content of its only other node, if it has one.
    pub leaf: Option<Vec<u8>>,
}

impl ExtentTree<'_> {
    /// A tree with these extents, of which as many fit as one leaf holds. A leaf that it needs is to lie in
    /// `leaf`. `None` when they do not fit.
    #[must_use]
    pub fn encode(&self, extents: &[Extent], leaf: BlockNr) -> Option<EncodedTree> {
        let entries: Vec<Entry> = extents
            .iter()
            .map(|extent| Entry::extent(*extent))
            .collect();
        let mut root: Root = [0; 60];
        if entries.len() <= ROOT_EXTENTS {
            node::write(&mut root, 0, ROOT_ENTRIES, &entries);
            return Some(EncodedTree { root, leaf: None });
        }
        let max = RawExtentHeader::block_entries(self.geometry.block_size);
        if entries.len() > usize::from(max) {
            return None;
        }
        let mut bytes = vec![0; self.geometry.block_size as usize];
        node::write(&mut bytes, 0, max, &entries);
        update_checksum(self.seed, &mut bytes);
        node::write(
            &mut root,
            1,
            ROOT_ENTRIES,
            &[Entry::index(entries[0].key(), leaf)],
        );
        Some(EncodedTree {
            root,
            leaf: Some(bytes),
        })
    }

    /// Where the first leaf from `from` on is to whose path a node belongs that is `end` or lies behind it.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn find_node_behind(
        &self,
        root: &Root,
        from: LogicalBlock,
        end: BlockNr,
    ) -> Result<Option<LogicalBlock>> {
        let mut at = from.0;
        loop {
            let path = self.path(root, at)?;
            let is_behind = |level: usize| {
                let buffer = path.level(level).buffer.as_ref();
                buffer.is_some_and(|buffer| buffer.nr() >= end)
            };
            if (0..=path.depth()).any(is_behind) {
                return Ok(Some(LogicalBlock(at)));
            }
            match u32::try_from(path.leaf().span.high) {
                Ok(next) if !path.leaf().span.is_last() => at = next,
                _ => return Ok(None),
            }
        }
    }

    /// Moves the highest node on the way to `at` that is `end` or lies behind it. The node's content does not
    /// change: its checksum is that of the inode. Returns the new block; `None` when there is no such node.
    ///
    /// # Errors
    /// `NoSpace`, `Corrupt`, `Io`; nothing has changed then.
    pub fn relocate_node<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        at: LogicalBlock,
        end: BlockNr,
    ) -> Result<Option<BlockNr>> {
        let path = self.path(root, at.0)?;
        let found = (1..=path.depth()).find_map(|level| {
            let buffer = path.level(level).buffer.as_ref()?;
            (buffer.nr() >= end).then_some((level, buffer))
        });
        let Some((level, old)) = found else {
            return Ok(None);
        };
        let start = old.nr();
        nodes.check_free(Run { start, len: 1 })?;
        let mut reserved = nodes.reserve_nodes(1, BlockNr(0))?;
        let content = old.read().to_vec();
        let nr = nodes.allocate_node(handle, &mut reserved);
        let buffer = self.cache.get_zeroed(nr)?;
        handle.get_create_access(&buffer).copy_from_slice(&content);
        let above = path.level(level - 1);
        let position = above.position;
        let key = above.look(root, |node| node.entry(position).key());
        let entry = Entry::index(key, nr);
        if let Some(buffer) = &above.buffer {
            let mut bytes = handle.get_write_access(buffer);
            node::splice(&mut bytes, position, 1, &[entry]);
            update_checksum(self.seed, &mut bytes);
        } else {
            let node = Node::new(root).expect("checked when the path was made");
            let (depth, entries) = (node.depth(), node.spliced(position, 1, &[entry]));
            node::write(root, depth, ROOT_ENTRIES, &entries);
        }
        handle.forget(start);
        nodes.free_node(handle, start)?;
        Ok(Some(nr))
    }
}
