//! From a hash to a leaf, and from leaf to leaf in the order of hashes.

use super::super::block::{self, Entries};
use super::super::{Directory, DirectoryBlocks, Found, NameHasher};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::LogicalBlock;
use crate::layout::htree::{
    MAX_LEVELS, MAX_LEVELS_LARGE, NODE_ENTRIES_OFFSET, ROOT_ENTRIES_OFFSET, ROOT_INFO_OFFSET,
    ROOT_INFO_SIZE, RawDxRootInfo,
};
use crate::storage::Buffer;
use smallvec::SmallVec;
use std::sync::Arc;
use zerocopy::FromBytes;

/// The root of a tree, and what it says of the tree.
pub(in crate::dir) struct Root {
    pub(super) buffer: Arc<Buffer>,
    pub(in crate::dir) hasher: NameHasher,
    /// Index blocks below the root on the way to a leaf.
    pub(super) levels: u8,
}

/// An index block on the way to a leaf, and the entry taken there.
pub(super) struct PathNode {
    pub(super) buffer: Arc<Buffer>,
    pub(super) entries_offset: usize,
    pub(super) at: usize,
    pub(super) count: usize,
    pub(super) limit: usize,
    pub(super) block: LogicalBlock,
}

/// The way from the root to a leaf.
pub(in crate::dir) struct Path {
    /// Root first.
    pub(super) nodes: SmallVec<[PathNode; 3]>,
    pub(super) leaf: LogicalBlock,
    /// Hash of the index entry that leads to the leaf.
    low: u32,
    /// Hash of the index entry that follows it; `None` for the last leaf.
    high: Option<u32>,
}

impl Path {
    /// The block of entries that the path leads to.
    pub(in crate::dir) fn leaf(&self) -> LogicalBlock {
        self.leaf
    }

    /// Hash of the index entry that leads to the leaf, and of the next one, if there is one.
    pub(in crate::dir) fn range(&self) -> (u32, Option<u32>) {
        (self.low, self.high)
    }

    /// Whether names of hash `hash`, found in the leaf or not, may lie in the next leaf too.
    pub(in crate::dir) fn continues(&self, hash: u32) -> bool {
        self.high == Some(hash | 1)
    }

    /// Whether the next leaf begins with names of a hash that this one ends with.
    pub(in crate::dir) fn is_continued(&self) -> bool {
        self.high.is_some_and(|high| high & 1 == 1)
    }
}

impl<B: DirectoryBlocks> Directory<B> {
    /// Reads the root of the tree.
    pub(in crate::dir) fn root(&self) -> Result<Root> {
        let buffer = self.first_block()?;
        let info = {
            let bytes = buffer.read();
            block::dots(&self.format, &bytes)?;
            let info = RawDxRootInfo::ref_from_prefix(&bytes[ROOT_INFO_OFFSET..]);
            info.expect("a block is longer than a root's info")
                .0
                .clone()
        };
        let levels = info.indirect_levels;
        let levels_max = self.levels_max();
        let sound = info.info_length == ROOT_INFO_SIZE
            && info.reserved_zero.get() == 0
            && info.unused_flags & 1 == 0
            && levels <= levels_max;
        if !sound {
            let (inode, info_length) = (self.format.inode, info.info_length);
            return Err(Corrupt::HtreeRoot {
                inode,
                info_length,
                levels,
            }
            .into());
        }
        let hasher = self.format.hasher(info.hash_version)?;
        Ok(Root {
            buffer,
            hasher,
            levels,
        })
    }

    /// Index blocks that may lie between root and leaf.
    pub(super) fn levels_max(&self) -> u8 {
        if self.format.large_dir {
            MAX_LEVELS_LARGE
        } else {
            MAX_LEVELS
        }
    }

    /// The way to the first leaf that may have names of `hash`.
    pub(in crate::dir) fn probe(&self, root: &Root, hash: u32) -> Result<Path> {
        let mut path = Path {
            nodes: SmallVec::new(),
            leaf: LogicalBlock(0),
            low: 0,
            high: None,
        };
        let buffer = Arc::clone(&root.buffer);
        self.descend(&mut path, buffer, LogicalBlock(0), Some(hash))?;
        for _ in 0..root.levels {
            let block = path.leaf;
            let buffer = self.node_block(block)?;
            self.descend(&mut path, buffer, block, Some(hash))?;
        }
        Ok(path)
    }

    /// Moves to the next leaf in the order of hashes; `false` after the last one.
    pub(in crate::dir) fn advance(&self, path: &mut Path) -> Result<bool> {
        let depth = path.nodes.len();
        while path
            .nodes
            .last()
            .is_some_and(|node| node.at + 1 >= node.count)
        {
            path.nodes.pop();
        }
        let Some(node) = path.nodes.last_mut() else {
            return Ok(false);
        };
        node.at += 1;
        self.take_entry(path)?;
        while path.nodes.len() < depth {
            let block = path.leaf;
            let buffer = self.node_block(block)?;
            self.descend(path, buffer, block, None)?;
        }
        Ok(true)
    }

    /// Adds an index block to the path: at the entry for `hash`, or at the first.
    fn descend(
        &self,
        path: &mut Path,
        buffer: Arc<Buffer>,
        block: LogicalBlock,
        hash: Option<u32>,
    ) -> Result<()> {
        let is_root = path.nodes.is_empty();
        let entries_offset = if is_root {
            ROOT_ENTRIES_OFFSET
        } else {
            NODE_ENTRIES_OFFSET
        };
        let (at, count, limit) = {
            let bytes = buffer.read();
            let index = self.parse_index(block, &bytes, entries_offset)?;
            (
                hash.map_or(0, |hash| index.search(hash)),
                index.count(),
                index.limit(),
            )
        };
        path.nodes.push(PathNode {
            buffer,
            entries_offset,
            at,
            count,
            limit,
            block,
        });
        self.take_entry(path)
    }

    /// Follows the entry that the last node of the path is at.
    fn take_entry(&self, path: &mut Path) -> Result<()> {
        let node = path.nodes.last().expect("a path has its root");
        let (inode, block, blocks_count) =
            (self.format.inode, node.block, self.blocks.blocks_count());
        let (child, low) = self.index_entry(node, node.at)?;
        if child == 0 || child >= blocks_count {
            return Err(Corrupt::HtreeChild {
                inode,
                block,
                child,
            }
            .into());
        }
        // The first entry of a block has no hash of its own: its parent's stands.
        let low = if node.at > 0 { low } else { path.low };
        let after = path
            .nodes
            .iter()
            .rev()
            .find(|node| node.at + 1 < node.count);
        let high = after
            .map(|node| self.index_entry(node, node.at + 1))
            .transpose()?;
        path.low = low;
        path.high = high.map(|(_, hash)| hash);
        path.leaf = LogicalBlock(child);
        Ok(())
    }

    /// Block and hash of an entry of a node.
    fn index_entry(&self, node: &PathNode, at: usize) -> Result<(u32, u32)> {
        let bytes = node.buffer.read();
        let index = self.parse_index(node.block, &bytes, node.entries_offset)?;
        Ok((index.child(at), index.hash(at)))
    }

    pub(in crate::dir) fn find_dot_in_root(&self, name: &[u8]) -> Result<Option<Found>> {
        let buffer = self.first_block()?;
        let position = {
            let bytes = buffer.read();
            block::find(Entries::of_root(&self.format, &bytes), name)?
        };
        let block = LogicalBlock(0);
        Ok(position.map(|position| Found {
            block,
            buffer,
            position,
        }))
    }

    pub(in crate::dir) fn find_in_tree(&self, name: &[u8]) -> Result<Option<Found>> {
        let root = self.root()?;
        let hash = root.hasher.hash(name).major;
        let mut path = self.probe(&root, hash)?;
        loop {
            let block = path.leaf;
            let buffer = self.leaf_block(block)?;
            let position = {
                let bytes = buffer.read();
                block::find(Entries::of_leaf(&self.format, block, &bytes), name)?
            };
            if let Some(position) = position {
                return Ok(Some(Found {
                    block,
                    buffer,
                    position,
                }));
            }
            if !path.continues(hash) || !self.advance(&mut path)? {
                return Ok(None);
            }
        }
    }

    pub(in crate::dir) fn is_tree_empty(&self) -> Result<bool> {
        let root = self.root()?;
        let mut path = self.probe(&root, 0)?;
        loop {
            if !self.is_leaf_empty(path.leaf)? {
                return Ok(false);
            }
            if !self.advance(&mut path)? {
                return Ok(true);
            }
        }
    }
}
