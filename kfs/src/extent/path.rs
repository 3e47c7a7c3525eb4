//! `ExtentPath`: the nodes from the root to one leaf, held while a change is planned and made.

use super::Root;
use super::check::Span;
use super::node::Node;
use crate::layout::extent::MAX_DEPTH;
use crate::storage::Buffer;
use std::sync::Arc;

/// Nodes from the root to a leaf at the most.
const LEVELS_MAX: usize = MAX_DEPTH as usize + 1;

/// One node of a path.
#[derive(Debug)]
pub(super) struct PathLevel {
    /// `None` for the root, which lies in the inode.
    pub(super) buffer: Option<Arc<Buffer>>,
    pub(super) span: Span,
    /// Index nodes: the entry that leads on. Leaf: not used.
    pub(super) position: usize,
    pub(super) len: usize,
    pub(super) max: usize,
}

impl PathLevel {
    pub(super) fn new(
        buffer: Option<Arc<Buffer>>,
        node: Node<'_>,
        span: Span,
        logical: u32,
    ) -> Self {
        let position = node.rank(logical).saturating_sub(1);
        // The root's header is written anew with each change, so a smaller `eh_max` does not last.
        let max = if buffer.is_some() {
            node.max()
        } else {
            usize::from(super::node::ROOT_ENTRIES)
        };
        Self {
            buffer,
            span,
            position,
            len: node.len(),
            max,
        }
    }

    /// Looks at the node. The tree's lock, held by the caller, keeps it as it was when checked.
    pub(super) fn look<R>(&self, root: &Root, look: impl FnOnce(Node<'_>) -> R) -> R {
        match &self.buffer {
            None => look(Node::new(root).expect("checked when the path was made")),
            Some(buffer) => {
                let bytes = buffer.read();
                look(Node::new(&bytes).expect("checked when the path was made"))
            }
        }
    }
}

/// The nodes from the root (level 0) to a leaf (level `depth`).
#[derive(Debug)]
pub(super) struct ExtentPath {
    levels: [Option<PathLevel>; LEVELS_MAX],
    depth: usize,
}

impl ExtentPath {
    pub(super) fn new(root: PathLevel) -> Self {
        let mut levels = [const { None }; LEVELS_MAX];
        levels[0] = Some(root);
        Self { levels, depth: 0 }
    }

    /// Adds the next node; the root's checked depth bounds how often.
    pub(super) fn push(&mut self, level: PathLevel) {
        self.depth += 1;
        self.levels[self.depth] = Some(level);
    }

    /// The depth of the tree, which is the leaf's level.
    pub(super) fn depth(&self) -> usize {
        self.depth
    }

    pub(super) fn level(&self, level: usize) -> &PathLevel {
        self.levels[level]
            .as_ref()
            .expect("levels up to the depth are set")
    }

    pub(super) fn leaf(&self) -> &PathLevel {
        self.level(self.depth)
    }
}
