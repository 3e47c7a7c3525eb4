//! Blocks of files that lie behind the new end get places before it: data, blocks of directories, nodes of
//! extent trees, blocks of attributes. Each step is one transaction, after which the volume is whole.

use super::{ShrinkPhase, ShrinkProgress, Watch, refused};
use crate::allocator::{BlockRequest, Reservation};
use crate::error::{Error, Result};
use crate::extent::{Extent, RELOCATE_CREDITS, REWRITE_CREDITS_MIN};
use crate::file::Relocated;
use crate::fs::Filesystem;
use crate::ids::{BlockNr, InodeNr, LogicalBlock};
use crate::inode::{CREDITS_INODE, Inode};
use crate::volume::Volume;
use crate::xattr::{BlockChange, XattrBlock};
use std::collections::HashMap;
use std::sync::Arc;

/// Blocks of a file moved in one step.
const STEP_BLOCKS: u32 = 2048;
/// Blocks of a directory, which go through the journal.
const DIRECTORY_STEP_BLOCKS: u32 = 16;
/// Extents looked at a time.
const EXTENTS_READ: usize = 256;
/// Credits for a new block of attributes: both blocks, the inode, bitmaps and descriptors of both.
const XATTR_CREDITS: u32 = 2 + CREDITS_INODE + 4;

/// Moves what lies behind the end.
pub(super) struct Mover<'m, 'w> {
    fs: &'m Filesystem,
    /// The first block that goes.
    end: BlockNr,
    moved: u64,
    total: u64,
    /// New blocks of attributes, by the old ones.
    xattr_blocks: HashMap<BlockNr, BlockNr>,
    watch: &'m mut Watch<'w>,
}

impl<'m, 'w> Mover<'m, 'w> {
    pub(super) fn new(
        fs: &'m Filesystem,
        end: BlockNr,
        total: u64,
        watch: &'m mut Watch<'w>,
    ) -> Self {
        Self {
            fs,
            end,
            moved: 0,
            total,
            xattr_blocks: HashMap::new(),
            watch,
        }
    }

    /// Blocks moved so far.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Moves the blocks of all these inodes. Returns false when it was stopped.
    pub(super) fn run(&mut self, inodes: &[InodeNr]) -> Result<bool> {
        for &nr in inodes {
            let inode = self.fs.inodes.get(&self.fs.volume, nr)?;
            if !self.move_inode(&inode)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn volume(&self) -> &'m Volume {
        &self.fs.volume
    }

    /// Notes what was moved. Returns whether to go on.
    fn note(&mut self, blocks: u32) -> bool {
        self.moved += u64::from(blocks);
        let progress = ShrinkProgress {
            phase: ShrinkPhase::Move,
            done: self.moved.min(self.total),
            total: self.total,
        };
        (self.watch)(progress).is_continue()
    }

    fn move_inode(&mut self, inode: &Arc<Inode>) -> Result<bool> {
        if !self.note(0) {
            return Ok(false);
        }
        if inode.check_extents().is_ok() && !(self.move_data(inode)? && self.move_nodes(inode)?) {
            return Ok(false);
        }
        let acl = inode.state().fields().file_acl();
        if acl >= self.end.0 {
            self.move_xattrs(inode, BlockNr(acl))?;
            return Ok(self.note(1));
        }
        Ok(true)
    }

    fn move_data(&mut self, inode: &Arc<Inode>) -> Result<bool> {
        let mut from = LogicalBlock(0);
        loop {
            let extents = inode.extents_from(self.volume(), from, EXTENTS_READ)?;
            let Some(last) = extents.last() else {
                return Ok(true);
            };
            let next = u32::try_from(last.end());
            for extent in &extents {
                if let Some(piece) = behind(*extent, self.end)
                    && !self.move_piece(inode, piece)?
                {
                    return Ok(false);
                }
            }
            match next {
                Ok(next) => from = LogicalBlock(next),
                Err(_) => return Ok(true),
            }
        }
    }

    /// Moves a part of a file, all of which lies behind the end, in as many steps as it takes.
    fn move_piece(&mut self, inode: &Arc<Inode>, piece: Extent) -> Result<bool> {
        let mut rest = piece;
        while rest.len > 0 {
            let is_directory = inode.is_directory();
            let most = if is_directory {
                DIRECTORY_STEP_BLOCKS
            } else {
                STEP_BLOCKS
            };
            let goal = inode.goal(self.volume(), rest.logical)?;
            let mut reservation = self.reserve(goal, rest.len.min(most))?;
            let len = reservation.len().min(rest.len);
            let part = Extent { len, ..rest };
            let done = if is_directory {
                self.move_directory(inode, part, &mut reservation)?
            } else {
                let file = self.fs.file(inode);
                if file.relocate(&[part], &mut reservation, true)? != Relocated::Done {
                    return Err(refused("somebody else changes it"));
                }
                len
            };
            rest = Extent {
                logical: LogicalBlock(rest.logical.0.saturating_add(done)),
                physical: rest.physical.plus(done.into()),
                len: rest.len - done,
                ..rest
            };
            if !self.note(done) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn reserve(&self, goal: BlockNr, len: u32) -> Result<Reservation> {
        let request = BlockRequest {
            goal,
            len,
            privileged: true,
        };
        let allocator = &self.volume().allocator;
        self.fs.with_space(|| allocator.reserve(request))
    }

    /// Moves blocks of a directory, with their content, through the journal. Returns how many.
    fn move_directory(
        &self,
        inode: &Arc<Inode>,
        piece: Extent,
        reservation: &mut Reservation,
    ) -> Result<u32> {
        let volume = self.volume();
        let mut blocks = Vec::new();
        for index in 0..u64::from(piece.len) {
            let old = volume.cache.get(piece.physical.plus(index))?;
            let new = volume
                .cache
                .get_zeroed(reservation.run().start.plus(index))?;
            let content = old.read().to_vec();
            blocks.push((old.nr(), new, content));
        }
        let _io = inode.io.write();
        let credits = CREDITS_INODE + REWRITE_CREDITS_MIN + 2 + piece.len;
        let range = (piece.logical, piece.len);
        self.fs.with_space(|| {
            volume.transact(credits, |handle| {
                let to = (reservation.run().start, piece.unwritten);
                let done = inode.try_update(volume, handle, |state, handle| {
                    let done = state.replace_blocks(volume, inode, handle, range, to)?;
                    volume.allocator.allocate(handle, reservation, done);
                    Ok(done)
                })?;
                for (old, new, content) in blocks.iter().take(done as usize) {
                    handle.forget(*old);
                    handle.get_create_access(new).copy_from_slice(content);
                }
                Ok(done)
            })
        })
    }

    fn move_nodes(&mut self, inode: &Arc<Inode>) -> Result<bool> {
        let volume = self.volume();
        let mut from = LogicalBlock(0);
        loop {
            let found = {
                let state = inode.state();
                let root = state.fields().block_area();
                inode.tree(volume).find_node_behind(root, from, self.end)?
            };
            let Some(at) = found else {
                return Ok(true);
            };
            from = at;
            self.fs.with_space(|| {
                volume.transact(CREDITS_INODE + RELOCATE_CREDITS, |handle| {
                    inode.try_update(volume, handle, |state, handle| {
                        let root = state.fields_mut().block_area_mut();
                        let tree = inode.tree(volume);
                        tree.relocate_node(root, handle, &*volume.allocator, at, self.end)?;
                        state.mark_data_changed(handle);
                        Ok(())
                    })
                })
            })?;
            if !self.note(1) {
                return Ok(false);
            }
        }
    }

    /// Gives an inode another block of attributes: one of its own, or that which was made for another inode
    /// that shared the old one.
    fn move_xattrs(&mut self, inode: &Arc<Inode>, nr: BlockNr) -> Result<()> {
        let volume = self.volume();
        let geometry = &volume.geometry;
        let open = |nr| XattrBlock::open(&volume.cache, geometry, nr);
        let old = open(nr)?;
        volume
            .allocator
            .check_free(crate::ids::Run { start: nr, len: 1 })?;
        let known = self.xattr_blocks.get(&nr).copied().map(open).transpose()?;
        let mut new = None;
        if known.is_none() {
            let goal = volume.allocator.data_goal(inode.nr(), inode.is_directory());
            let reservation = self.reserve(goal, 1)?;
            let buffer = volume.cache.get_zeroed(reservation.run().start)?;
            new = Some((reservation, buffer));
        }
        let block = volume.transact(XATTR_CREDITS, |handle| {
            let _xattrs = inode.xattrs.write();
            let (block, freed) = match (&known, &mut new) {
                (Some(known), _) => {
                    known.share(handle, geometry);
                    (known.nr(), old.clone().release(handle, geometry))
                }
                (None, Some((reservation, buffer))) => {
                    volume.allocator.allocate(handle, reservation, 1);
                    let change = BlockChange::Create(old.content_for_one());
                    let done = change.apply(handle, geometry, Some(old.clone()), Some(buffer));
                    (buffer.nr(), done.freed)
                }
                (None, None) => return Err(Error::Invalid),
            };
            inode.update(volume, handle, |state, _| {
                state.fields_mut().set_file_acl(block.0);
            });
            if let Some(start) = freed {
                volume
                    .allocator
                    .free(handle, crate::ids::Run { start, len: 1 })?;
            }
            Ok(block)
        })?;
        self.xattr_blocks.insert(nr, block);
        Ok(())
    }
}

/// The part of an extent that lies behind the end.
fn behind(extent: Extent, end: BlockNr) -> Option<Extent> {
    let skipped = end.0.saturating_sub(extent.physical.0);
    let skipped = u32::try_from(skipped)
        .ok()
        .filter(|skipped| *skipped < extent.len)?;
    Some(Extent {
        logical: LogicalBlock(extent.logical.0 + skipped),
        physical: extent.physical.plus(skipped.into()),
        len: extent.len - skipped,
        ..extent
    })
}
