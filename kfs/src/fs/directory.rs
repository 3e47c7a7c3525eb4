//! `InodeBlocks`: a directory's blocks as its inode maps them.

use crate::allocator::{Allocator, BlockRequest, Reservation};
use crate::corrupt::Corrupt;
use crate::dir::{DirectoryBlocks, DirectoryFormat};
use crate::error::{Error, Result};
use crate::extent::{Extent, Mapping, NodeAllocator};
use crate::ids::{BlockNr, LogicalBlock, Run};
use crate::inode::Inode;
use crate::layout::inode::InodeFlags;
use crate::storage::{Buffer, Handle};
use crate::volume::Volume;
use std::cell::RefCell;
use std::sync::Arc;

/// A directory's inode, seen as the blocks of a directory.
pub(crate) struct InodeBlocks<'a> {
    volume: &'a Volume,
    inode: &'a Inode,
    /// Blocks for `append`, and for the tree nodes that it may need.
    pool: NodePool,
}

impl<'a> InodeBlocks<'a> {
    /// Who calls holds the inode's `io` lock: shared for lookups, exclusive for changes.
    pub(crate) fn new(volume: &'a Volume, inode: &'a Inode) -> Self {
        Self {
            volume,
            inode,
            pool: NodePool::default(),
        }
    }

    fn map_one(&self, logical: LogicalBlock) -> Result<Option<BlockNr>> {
        Ok(match self.inode.map(self.volume, logical, 1)? {
            Mapping::Mapped { physical, .. } => Some(physical),
            Mapping::Unwritten { .. } | Mapping::Hole { .. } => None,
        })
    }

    /// Maps a new block at the end; everything it needs was prepared.
    fn grow(&mut self, handle: &mut Handle<'_>, logical: LogicalBlock) -> Result<Arc<Buffer>> {
        let physical = self.pool.peek().ok_or(Error::NoSpace)?;
        let buffer = self.volume.cache.get_zeroed(physical)?;
        self.pool.take(&self.volume.allocator, handle);
        let block_size = self.volume.block_size();
        self.inode
            .try_update(self.volume, handle, |state, handle| {
                let tree = self.inode.tree(self.volume);
                let extent = Extent {
                    logical,
                    physical,
                    len: 1,
                    unwritten: false,
                };
                let area = state.fields_mut().block_area_mut();
                let pool = PoolNodes {
                    pool: &self.pool,
                    allocator: &self.volume.allocator,
                };
                let nodes = tree.insert(area, handle, &pool, extent, physical)?;
                state.add_blocks(self.volume, 1 + nodes.net())?;
                let size = (u64::from(logical.0) + 1) * block_size;
                state.fields_mut().set_size_bytes(size);
                state.mark_data_changed(handle);
                Ok::<_, Error>(())
            })?;
        Ok(buffer)
    }
}

impl DirectoryBlocks for InodeBlocks<'_> {
    fn format(&self) -> DirectoryFormat {
        DirectoryFormat::new(
            &self.volume.geometry,
            self.inode.nr(),
            self.inode.generation(),
        )
    }

    fn blocks_count(&self) -> u32 {
        if self.inode.has_inline_data() {
            return 1;
        }
        let blocks = self.inode.size_bytes() >> self.volume.geometry.block_size_bits;
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    fn block(&self, block: LogicalBlock) -> Result<Arc<Buffer>> {
        if self.inode.has_inline_data() {
            return self.inode.inline_directory(self.volume);
        }
        let inode = self.inode.nr();
        let physical = self.map_one(block)?.ok_or(Corrupt::DirectoryHole {
            inode,
            block: block.0,
        })?;
        self.volume.cache.get(physical)
    }

    fn prepare(&mut self, count: u32) -> Result<()> {
        self.inode.check_extents()?;
        let next = LogicalBlock(self.blocks_count());
        // Reading the last block's path now leaves nothing to be read when the block is entered.
        let goal = self.inode.goal(self.volume, next)?;
        // Each block may split the extent tree's nodes on its path, and the root.
        let nodes = self.inode.tree_depth(self.volume)? + 1;
        self.pool
            .fill(&self.volume.allocator, count * (1 + nodes), goal)
    }

    fn append(&mut self, handle: &mut Handle<'_>) -> (LogicalBlock, Arc<Buffer>) {
        let logical = LogicalBlock(self.blocks_count());
        match self.grow(handle, logical) {
            Ok(buffer) => (logical, buffer),
            Err(error) => {
                // Only damage to the extent tree leads here. The caller is promised a buffer: it
                // gets one that the aborted journal will never write.
                handle.abort(&error);
                let block = BlockNr(u64::from(self.volume.geometry.first_data_block));
                let buffer = self.volume.cache.get_zeroed(block);
                (logical, buffer.expect("every volume has its first block"))
            }
        }
    }

    fn is_indexed(&self) -> bool {
        self.inode
            .state()
            .fields()
            .flags()
            .contains(InodeFlags::INDEX)
    }

    fn set_indexed(&mut self, handle: &mut Handle<'_>, indexed: bool) {
        self.inode.update(self.volume, handle, |state, _| {
            let mut flags = state.fields().flags();
            flags.set(InodeFlags::INDEX, indexed);
            state.fields_mut().set_flags(flags);
        });
    }
}

/// Single blocks reserved before a change.
#[derive(Default)]
struct NodePool {
    reservations: RefCell<Vec<Reservation>>,
}

impl NodePool {
    /// Reserves `count` blocks, in one run where there is one.
    fn fill(&self, allocator: &Allocator, count: u32, goal: BlockNr) -> Result<()> {
        let mut have = 0;
        let mut reservations = Vec::new();
        while have < count {
            let request = BlockRequest {
                goal,
                len: count - have,
                privileged: true,
            };
            let reservation = allocator.reserve(request)?;
            have += reservation.len();
            reservations.push(reservation);
        }
        // Taken from the end: the run nearest to the goal comes first.
        reservations.reverse();
        *self.reservations.borrow_mut() = reservations;
        Ok(())
    }

    fn peek(&self) -> Option<BlockNr> {
        self.reservations
            .borrow()
            .last()
            .map(|reservation| reservation.run().start)
    }

    fn take(&self, allocator: &Allocator, handle: &mut Handle<'_>) -> BlockNr {
        let mut reservations = self.reservations.borrow_mut();
        let last = reservations
            .last_mut()
            .expect("filled for all that is taken");
        let run = allocator.allocate(handle, last, 1);
        if last.is_empty() {
            reservations.pop();
        }
        run.start
    }
}

/// Gives nodes of the extent tree from the pool.
struct PoolNodes<'p> {
    pool: &'p NodePool,
    allocator: &'p Allocator,
}

impl NodeAllocator for PoolNodes<'_> {
    type Reservation = ();

    fn reserve_nodes(&self, count: u32, _goal: BlockNr) -> Result<()> {
        let have: u32 = self
            .pool
            .reservations
            .borrow()
            .iter()
            .map(Reservation::len)
            .sum();
        if have < count {
            Err(Error::NoSpace)
        } else {
            Ok(())
        }
    }

    fn allocate_node(&self, handle: &mut Handle<'_>, (): &mut ()) -> BlockNr {
        self.pool.take(self.allocator, handle)
    }

    fn check_free(&self, run: Run) -> Result<()> {
        self.allocator.check_free(run)
    }

    fn free_node(&self, handle: &mut Handle<'_>, block: BlockNr) -> Result<()> {
        self.allocator.free(
            handle,
            Run {
                start: block,
                len: 1,
            },
        )
    }
}
