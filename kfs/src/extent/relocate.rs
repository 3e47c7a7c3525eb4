//! Moving nodes of a tree to other blocks.

use super::node::{self, Entry, Node, ROOT_ENTRIES};
use super::{ExtentTree, NODE_CREDITS, NodeAllocator, Root};
use crate::error::Result;
use crate::ids::{BlockNr, LogicalBlock, Run};
use crate::layout::extent::update_checksum;
use crate::storage::Handle;

/// Credits of [`ExtentTree::relocate_node`]: the node and the one above it, the blocks allocated and freed.
pub const RELOCATE_CREDITS: u32 = 2 + 2 * NODE_CREDITS;

impl ExtentTree<'_> {
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
