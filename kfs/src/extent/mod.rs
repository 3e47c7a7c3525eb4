//! Extent trees: which physical blocks hold a file's logical blocks.
//!
//! ```text
//!  60 bytes in the inode   | header | index or leaf entry x 4 |          the root, no checksum
//!  blocks                  | header | index entries ...       | tail |   depth 1..=4
//!                          | header | extents ...             | tail |   depth 0
//! ```
//!
//! An [`ExtentTree`] knows no inode: it is a view on one tree, given the inode's 60 bytes with each
//! call and the buffer cache for the rest. The caller's lock on the inode's map (shared for reading,
//! exclusive for changes) is the tree's lock; the inode's `i_blocks` is kept by the caller with
//! the [`NodeChange`] that each change reports, and the changed root is written by it, too.
//!
//! Invariants of every tree that this module writes:
//! - an index entry's key *is* the first logical block of its child, at every level;
//! - entries are strictly sorted and do not overlap; a node other than the root is never empty;
//! - `eh_max` is what the block can hold, and the root is no deeper than its entries need when an
//!   entry was taken out.
//!
//! Changes are planned before the first buffer is touched: an error other than one after
//! [`Handle::abort`](crate::storage::Handle::abort) leaves tree, root and handle as they were.

pub mod check;
mod indirect;
mod insert;
mod iterate;
mod node;
mod nodes;
mod path;
mod relocate;
mod remove;
mod rewrite;
mod search;
mod split;
mod trim;

#[cfg(test)]
mod tests;

pub use indirect::IndirectMap;
pub use relocate::{EncodedTree, RELOCATE_CREDITS, ROOT_EXTENTS};
pub use remove::Removed;
pub use rewrite::{KEPT_CREDITS, Progress, REWRITE_CREDITS_MIN, Replaced};
pub use trim::TRIM_CREDITS;

use crate::error::Result;
use crate::ids::{BlockNr, InodeNr, LogicalBlock, Run};
use crate::layout::Geometry;
use crate::layout::extent::{MAX_DEPTH, MAX_INIT_LEN, MAX_UNWRITTEN_LEN};
use crate::storage::{BufferCache, Handle};

/// The block area of an inode: the root of its tree.
pub type Root = [u8; 60];

/// One logical block beyond the last that a file can have.
pub const LOGICAL_END: u64 = u32::MAX as u64;

/// A run of logical blocks stored in a run of physical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Extent {
    /// First block within the file.
    pub logical: LogicalBlock,
    /// First block on the volume.
    pub physical: BlockNr,
    /// Length in blocks.
    pub len: u32,
    /// Allocated, but reads as zeros.
    pub unwritten: bool,
}

impl Extent {
    /// Longest extent of either kind.
    pub const LEN_MAX: u32 = MAX_INIT_LEN;

    /// Blocks that one entry of this kind can hold.
    fn len_max(self) -> u32 {
        if self.unwritten {
            MAX_UNWRITTEN_LEN
        } else {
            MAX_INIT_LEN
        }
    }

    /// The logical block just after the extent.
    #[must_use]
    pub fn end(self) -> u64 {
        u64::from(self.logical.0) + u64::from(self.len)
    }

    /// The part that lies in `first..end`, which the extent must overlap.
    fn part(self, first: u64, end: u64) -> Self {
        let start = first.max(u64::from(self.logical.0));
        let skipped = start - u64::from(self.logical.0);
        Self {
            logical: LogicalBlock(start as u32),
            physical: self.physical.plus(skipped),
            len: (end.min(self.end()) - start) as u32,
            unwritten: self.unwritten,
        }
    }

    /// Whether `next` goes on where this extent ends, on the volume as in the file.
    fn continues_in(self, next: Self) -> bool {
        self.unwritten == next.unwritten
            && self.end() == u64::from(next.logical.0)
            && self.physical.0.checked_add(u64::from(self.len)) == Some(next.physical.0)
    }
}

/// What a logical block is mapped to, and for how many blocks on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Blocks with data.
    Mapped {
        /// First block.
        physical: BlockNr,
        /// Blocks, at most as many as asked for.
        len: u32,
    },
    /// Allocated blocks that read as zeros.
    Unwritten {
        /// First block.
        physical: BlockNr,
        /// Blocks, at most as many as asked for.
        len: u32,
    },
    /// No blocks.
    Hole {
        /// Blocks until the next extent may begin, at most as many as asked for.
        len: u32,
    },
}

/// Blocks that a tree gained and lost, for the inode's `i_blocks`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeChange {
    /// Blocks allocated for nodes.
    pub added: u32,
    /// Blocks of nodes freed.
    pub freed: u32,
}

impl NodeChange {
    /// Added less freed blocks.
    #[must_use]
    pub fn net(self) -> i64 {
        i64::from(self.added) - i64::from(self.freed)
    }
}

impl std::ops::AddAssign for NodeChange {
    fn add_assign(&mut self, other: Self) {
        self.added += other.added;
        self.freed += other.freed;
    }
}

/// Where the blocks of nodes come from: the allocator, a pool reserved earlier, or a test's fake.
pub trait NodeAllocator {
    /// Blocks promised; gives back on drop what was not allocated.
    type Reservation;

    /// Promises `count` blocks, near `goal` if possible, not necessarily in one run.
    ///
    /// # Errors
    /// `NoSpace`, or what reading a bitmap reports; nothing is promised then.
    fn reserve_nodes(&self, count: u32, goal: BlockNr) -> Result<Self::Reservation>;

    /// Allocates one of the promised blocks, which lies within the volume. Changes at most
    /// [`NODE_CREDITS`] metadata blocks.
    fn allocate_node(
        &self,
        handle: &mut Handle<'_>,
        reservation: &mut Self::Reservation,
    ) -> BlockNr;

    /// Looks whether a run, of data or a node, can be freed: called before anything is changed, so
    /// that freeing it cannot fail half-way.
    ///
    /// # Errors
    /// When the bitmap cannot be read or a block is free already.
    fn check_free(&self, run: Run) -> Result<()>;

    /// Frees the block of a node, which the caller makes the handle forget. Changes at most
    /// [`NODE_CREDITS`] metadata blocks.
    ///
    /// # Errors
    /// When the bitmap cannot be read or the block is free already; nothing has changed then.
    fn free_node(&self, handle: &mut Handle<'_>, block: BlockNr) -> Result<()>;
}

/// Metadata blocks that allocating or freeing one node may change: a bitmap and a descriptor.
pub const NODE_CREDITS: u32 = 2;

/// Credits that one step of a change (an insert; removing or rewriting a stretch within one leaf)
/// takes at the most in a tree of `depth`, beside those for freeing data blocks.
#[must_use]
pub const fn step_credits(depth: u16) -> u32 {
    let depth = depth as u32;
    // A node and its sibling or new neighbour on every level and one level more. A step that adds
    // nodes frees none; one that frees loses one a level by merging and one by shrinking the root.
    let added = (depth + 1) * NODE_CREDITS;
    let freed = 2 * depth * NODE_CREDITS;
    2 * depth + 1 + if added > freed { added } else { freed }
}

/// [`step_credits`] of the deepest tree.
pub const STEP_CREDITS_MAX: u32 = step_credits(MAX_DEPTH);

/// A view on one inode's tree.
#[derive(Clone, Copy)]
pub struct ExtentTree<'a> {
    cache: &'a BufferCache,
    geometry: &'a Geometry,
    inode: InodeNr,
    /// Seed of the nodes' checksums, `None` on volumes without.
    seed: Option<u32>,
}

impl<'a> ExtentTree<'a> {
    /// The tree of an inode of this generation.
    #[must_use]
    pub fn new(
        cache: &'a BufferCache,
        geometry: &'a Geometry,
        inode: InodeNr,
        generation: u32,
    ) -> Self {
        let seed = geometry.inode_seed(inode, generation);
        Self {
            cache,
            geometry,
            inode,
            seed,
        }
    }

    /// The root of a tree without extents.
    #[must_use]
    pub fn empty_root() -> Root {
        let mut root = [0; 60];
        node::write(&mut root, 0, node::ROOT_ENTRIES, &[]);
        root
    }

    /// Levels below the root.
    ///
    /// # Errors
    /// `Corrupt` when the root is damaged.
    pub fn depth(&self, root: &Root) -> Result<u32> {
        Ok(self.root_node(root)?.depth().into())
    }

    /// [`step_credits`] of the tree as it is.
    ///
    /// # Errors
    /// `Corrupt` when the root is damaged.
    pub fn step_credits(&self, root: &Root) -> Result<u32> {
        Ok(step_credits(self.root_node(root)?.depth()))
    }
}
