//! Finding the extent of a logical block. Allocates nothing.

use super::check::{Span, check_child, check_extent};
use super::node::Node;
use super::path::{ExtentPath, PathLevel};
use super::{Extent, ExtentTree, Mapping, Root};
use crate::error::Result;
use crate::ids::{BlockNr, LogicalBlock};
use std::sync::Arc;

/// What a node says of a logical block.
enum Step {
    /// The child to ask.
    Child { block: BlockNr, span: Span },
    /// The last extent that begins at or before the block, and where the next begins.
    Leaf { extent: Option<Extent>, next: u64 },
}

/// The span that an index node's entry gives to its child.
pub(super) fn child_span(node: Node<'_>, position: usize, span: Span) -> Span {
    let high = if position + 1 < node.len() {
        u64::from(node.entry(position + 1).key())
    } else {
        span.high
    };
    Span {
        low: node.entry(position).key(),
        high,
    }
}

impl ExtentTree<'_> {
    /// What `logical` is mapped to, and for how many blocks on, at most `max_len`.
    ///
    /// A hole may be reported shorter than it is, a mapping where the next extent goes on.
    ///
    /// # Errors
    /// `Corrupt` when a node on the way is damaged, `Io` when it cannot be read.
    pub fn map(&self, root: &Root, logical: LogicalBlock, max_len: u32) -> Result<Mapping> {
        let (extent, next) = self.find(root, logical)?;
        let at = u64::from(logical.0);
        let clip = |end: u64| {
            u32::try_from(end.saturating_sub(at))
                .unwrap_or(max_len)
                .min(max_len)
        };
        Ok(match extent {
            Some(extent) if extent.end() > at => {
                let len = clip(extent.end());
                let physical = extent.physical.plus(at - u64::from(extent.logical.0));
                if extent.unwritten {
                    Mapping::Unwritten { physical, len }
                } else {
                    Mapping::Mapped { physical, len }
                }
            }
            _ => Mapping::Hole { len: clip(next) },
        })
    }

    /// The last extent that begins at or before `logical` in the leaf where `logical` belongs: where
    /// an allocation for `logical` best goes on.
    ///
    /// # Errors
    /// As [`ExtentTree::map`].
    pub fn nearest_before(&self, root: &Root, logical: LogicalBlock) -> Result<Option<Extent>> {
        Ok(self.find(root, logical)?.0)
    }

    /// The last extent of the file.
    ///
    /// # Errors
    /// As [`ExtentTree::map`].
    pub fn last(&self, root: &Root) -> Result<Option<Extent>> {
        self.nearest_before(root, LogicalBlock(u32::MAX))
    }

    fn find(&self, root: &Root, logical: LogicalBlock) -> Result<(Option<Extent>, u64)> {
        let node = self.root_node(root)?;
        let mut depth = node.depth();
        let mut step = self.step(node, Span::ALL, logical)?;
        loop {
            match step {
                Step::Leaf { extent, next } => return Ok((extent, next)),
                Step::Child { block, span } => {
                    // A node's depth is one less than its parent's, so this ends.
                    depth -= 1;
                    let buffer = self.cache.get(block)?;
                    let bytes = buffer.read();
                    let node = self.block_node(&buffer, &bytes, depth, span, false)?;
                    step = self.step(node, span, logical)?;
                }
            }
        }
    }

    fn step(&self, node: Node<'_>, span: Span, logical: LogicalBlock) -> Result<Step> {
        let rank = node.rank(logical.0);
        if node.depth() > 0 {
            let position = rank.saturating_sub(1);
            let block = node.entry(position).child();
            check_child(self.inode, block, self.geometry)?;
            return Ok(Step::Child {
                block,
                span: child_span(node, position, span),
            });
        }
        let extent = rank
            .checked_sub(1)
            .map(|index| node.entry(index).as_extent());
        if let Some(extent) = extent {
            check_extent(self.inode, extent, self.geometry)?;
        }
        let next = if rank < node.len() {
            u64::from(node.entry(rank).key())
        } else {
            span.high
        };
        Ok(Step::Leaf { extent, next })
    }

    /// The nodes from the root to the leaf where `logical` is or would be, all of their entries
    /// checked.
    pub(super) fn path(&self, root: &Root, logical: u32) -> Result<ExtentPath> {
        let node = self.root_node(root)?;
        let mut path = ExtentPath::new(PathLevel::new(None, node, Span::ALL, logical));
        let mut depth = node.depth();
        let mut child = Self::child_at(node, Span::ALL, logical);
        while let Some((block, span)) = child {
            depth -= 1;
            check_child(self.inode, block, self.geometry)?;
            let buffer = self.cache.get(block)?;
            let bytes = buffer.read();
            let node = self.block_node(&buffer, &bytes, depth, span, true)?;
            child = Self::child_at(node, span, logical);
            let level = PathLevel::new(Some(Arc::clone(&buffer)), node, span, logical);
            path.push(level);
        }
        Ok(path)
    }

    fn child_at(node: Node<'_>, span: Span, logical: u32) -> Option<(BlockNr, Span)> {
        (node.depth() > 0).then(|| {
            let position = node.rank(logical).saturating_sub(1);
            (
                node.entry(position).child(),
                child_span(node, position, span),
            )
        })
    }
}
