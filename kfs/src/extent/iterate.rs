//! Walking over a tree in logical order.

use super::check::{Span, check_child};
use super::node::Node;
use super::search::child_span;
use super::{Extent, ExtentTree, Root};
use crate::error::Result;
use crate::ids::{BlockNr, LogicalBlock};
use std::ops::ControlFlow;

/// What a walk meets: a node before its content.
enum Item {
    Node(BlockNr),
    Extent(Extent),
}

type Visit<'v> = dyn FnMut(Item) -> Result<ControlFlow<()>> + 'v;

impl ExtentTree<'_> {
    /// Calls `visit` with each extent that ends after `from`, in order, until it breaks. No lock of a
    /// buffer is held meanwhile.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, and what `visit` returns.
    pub fn for_each(
        &self,
        root: &Root,
        from: LogicalBlock,
        mut visit: impl FnMut(Extent) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let mut extents_only = |item| match item {
            Item::Extent(extent) if extent.end() > u64::from(from.0) => visit(extent),
            _ => Ok(ControlFlow::Continue(())),
        };
        let node = self.root_node(root)?;
        self.walk(node, Span::ALL, from.0, &mut extents_only)
            .map(|_| ())
    }

    /// Calls `visit` with the block of each node, parents before children.
    ///
    /// # Errors
    /// `Corrupt`, `Io`, and what `visit` returns.
    pub fn for_each_node(
        &self,
        root: &Root,
        mut visit: impl FnMut(BlockNr) -> Result<()>,
    ) -> Result<()> {
        let mut nodes_only = |item| {
            if let Item::Node(block) = item {
                visit(block)?;
            }
            Ok(ControlFlow::Continue(()))
        };
        let node = self.root_node(root)?;
        self.walk(node, Span::ALL, 0, &mut nodes_only).map(|_| ())
    }

    /// Visits what is below a node. The recursion is as deep as the tree, 5 at the most; a node has
    /// entries within its parent's span only and is never empty, so the walk ends.
    fn walk(
        &self,
        node: Node<'_>,
        span: Span,
        from: u32,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>> {
        let start = node.rank(from).saturating_sub(1);
        for index in start..node.len() {
            let entry = node.entry(index);
            let flow = if node.depth() == 0 {
                visit(Item::Extent(entry.as_extent()))?
            } else {
                let span = child_span(node, index, span);
                self.walk_child(entry.child(), node.depth() - 1, span, from, visit)?
            };
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn walk_child(
        &self,
        block: BlockNr,
        depth: u16,
        span: Span,
        from: u32,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>> {
        check_child(self.inode, block, self.geometry)?;
        if visit(Item::Node(block))?.is_break() {
            return Ok(ControlFlow::Break(()));
        }
        let buffer = self.cache.get(block)?;
        let bytes = buffer.freeze();
        let node = self.block_node(&buffer, &bytes, depth, span, true)?;
        self.walk(node, span, from, visit)
    }
}
