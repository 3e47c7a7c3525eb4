//! The journal gets another place: what lies behind the new end cannot be moved by what is in the journal.
//!
//! ```text
//!  file blocks   0 ...... N ...... 2N  2N+1
//!  before        | old   |                      the log is the first N blocks, as its superblock says
//!  extended      | old   | new    | t |         one transaction
//!  switched      | new   | old    | . |         the volume is closed, the log empty: one sector is written
//!  trimmed       | new   |                      opened again; one transaction
//! ```
//!
//! A journal file that is longer than its log is sound to everybody. The tree of the switched file has as
//! many blocks as that before: where it needs a node, that is block `t`, and the node before takes the place
//! of `t` in the file. Interrupted anywhere, what is behind the log is trimmed by the next call.

use super::refused;
use super::survey::raw_inode;
use crate::allocator::{BlockRequest, Reservation};
use crate::error::{Error, IoOp, Result};
use crate::extent::{Extent, ROOT_EXTENTS};
use crate::fs::{Filesystem, own_file_runs, write_superblock};
use crate::ids::{BlockNr, LogicalBlock, Run};
use crate::inode::{CREDITS_INODE, Inode};
use crate::layout::RawSuperblock;
use crate::layout::inode::InodeBytes;
use crate::layout::journal::RawJournalSuperblock;
use crate::volume::Volume;
use kfs_disk::BlockDevice;
use std::io::{IoSlice, IoSliceMut};
use std::sync::Arc;
use zerocopy::FromBytes;
use zerocopy::little_endian::U32;

/// Pieces that the new place may have.
const PIECES_MAX: usize = 32;
/// The unit that a disk writes whole.
const SECTOR: u64 = 512;
/// The superblock repeats where the journal is.
const BACKUP_KIND: u8 = 1;

/// What is to be written when the volume is closed.
pub(super) struct Switch {
    /// Where the superblocks of the old and the new log lie, in bytes.
    old_log: u64,
    new_log: u64,
    /// A node of the new tree, and where it lies, in bytes.
    leaf: Option<(u64, Vec<u8>)>,
    /// The journal's inode, and where it lies, in bytes.
    inode: InodeBytes<Vec<u8>>,
    inode_offset: u64,
    block_size: u64,
}

fn journal(fs: &Filesystem) -> Result<Option<Arc<Inode>>> {
    let Some(nr) = fs.volume.geometry.journal_inode else {
        return Ok(None);
    };
    fs.inodes.get(&fs.volume, nr).map(Some)
}

/// All extents of the journal, and the blocks of its log.
fn extents(volume: &Volume, inode: &Inode) -> Result<(Vec<Extent>, u32)> {
    let extents = inode.extents_from(volume, LogicalBlock(0), usize::MAX)?;
    let first = extents
        .first()
        .ok_or_else(|| refused("its journal has no blocks"))?;
    let mut bytes = vec![0; size_of::<RawJournalSuperblock>()];
    volume.read_data(first.physical, 0, &mut [IoSliceMut::new(&mut bytes)])?;
    let log = RawJournalSuperblock::read_from_bytes(&bytes).expect("as many bytes as it has");
    let len = log.s_maxlen.get();
    let mut end = 0;
    for extent in &extents {
        if u64::from(extent.logical.0) != end || extent.unwritten {
            return Err(refused("its journal has holes: run e2fsck first"));
        }
        end = extent.end();
    }
    if end < len.into() || inode.state().fields().file_acl() != 0 {
        return Err(refused(
            "its journal is shorter than it says, or has attributes: run e2fsck first",
        ));
    }
    Ok((extents, len))
}

/// Takes away what the journal's file has behind its log.
pub(super) fn trim(fs: &Filesystem) -> Result<()> {
    let volume = &*fs.volume;
    let Some(inode) = journal(fs)? else {
        return Ok(());
    };
    if inode.check_extents().is_err() {
        return Ok(());
    }
    let (all, len) = extents(volume, &inode)?;
    if all.last().is_none_or(|last| last.end() <= len.into()) {
        return Ok(());
    }
    let log: Vec<Extent> = all
        .iter()
        .filter_map(|extent| part(*extent, 0, len))
        .collect();
    let behind = all.iter().filter_map(|extent| part(*extent, len, u32::MAX));
    let mut freed: Vec<Run> = behind.map(run_of).collect();
    freed.extend(nodes(volume, &inode)?);
    let mut own: Vec<Run> = log.iter().copied().map(run_of).collect();
    if let Some(nr) = volume.geometry.orphan_file_inode {
        own.extend(own_file_runs(volume, nr)?);
    }
    volume.allocator.protect(&own);
    let change = Change {
        extents: log,
        allocated: Vec::new(),
        leaf: one_block(fs)?,
        freed,
    };
    change.make(fs, &inode)?;
    Ok(())
}

/// The part of an extent from logical block `first` on, up to, not including, `end`.
fn part(extent: Extent, first: u32, end: u32) -> Option<Extent> {
    let start = extent.logical.0.max(first);
    let end = extent.end().min(end.into());
    let len = u32::try_from(end.saturating_sub(start.into())).ok()?;
    (len > 0).then(|| Extent {
        logical: LogicalBlock(start),
        physical: extent.physical.plus(u64::from(start - extent.logical.0)),
        len,
        ..extent
    })
}

fn run_of(extent: Extent) -> Run {
    Run {
        start: extent.physical,
        len: extent.len,
    }
}

/// The nodes of the journal's tree.
fn nodes(volume: &Volume, inode: &Inode) -> Result<Vec<Run>> {
    let mut nodes = Vec::new();
    let state = inode.state();
    inode
        .tree(volume)
        .for_each_node(state.fields().block_area(), |start| {
            nodes.push(Run { start, len: 1 });
            Ok(())
        })?;
    Ok(nodes)
}

fn one_block(fs: &Filesystem) -> Result<Reservation> {
    let request = BlockRequest {
        goal: BlockNr(0),
        len: 1,
        privileged: true,
    };
    let allocator = &fs.volume.allocator;
    fs.with_space(|| allocator.reserve(request))
}

/// Other extents for the journal's file, in one transaction.
///
/// Who recovers the volume finds the log by what is in the places of inode and nodes, before the replay. So
/// no node is changed where it is: the new one is durable before the inode names it, and the old one is not
/// used again before the inode's place in the table has the new root.
struct Change {
    extents: Vec<Extent>,
    allocated: Vec<Reservation>,
    /// For a node, if the tree needs one.
    leaf: Reservation,
    freed: Vec<Run>,
}

impl Change {
    /// Returns the block of the node, if there is one.
    fn make(mut self, fs: &Filesystem, inode: &Inode) -> Result<Option<BlockNr>> {
        let volume = &*fs.volume;
        let leaf = self.leaf.run().start;
        let encoded = inode
            .tree(volume)
            .encode(&self.extents, leaf)
            .ok_or_else(too_many)?;
        for run in &self.freed {
            volume.allocator.check_free(*run)?;
        }
        let buffer = volume.cache.get_zeroed(leaf)?;
        if let Some(content) = &encoded.leaf {
            volume.write_data(leaf, 0, &[IoSlice::new(content)])?;
            volume.flush()?;
        }
        let lens = |runs: &[Run]| runs.iter().map(|run| i64::from(run.len)).sum::<i64>();
        let added: i64 = self.allocated.iter().map(|run| i64::from(run.len())).sum();
        let added = added + i64::from(encoded.leaf.is_some()) - lens(&self.freed);
        let end = self.extents.last().map_or(0, |last| last.end());
        let freeing = self.freed.iter();
        let freeing: u32 = freeing
            .map(|run| volume.allocator.free_credits(run.len))
            .sum();
        let credits = CREDITS_INODE + 2 + 2 * (self.allocated.len() as u32 + 1) + freeing;
        if credits > volume.journal.large_credits_max() {
            return Err(too_many());
        }
        volume.transact_large(credits, |handle| {
            for place in &mut self.allocated {
                let len = place.len();
                volume.allocator.allocate(handle, place, len);
            }
            if let Some(content) = &encoded.leaf {
                volume.allocator.allocate(handle, &mut self.leaf, 1);
                handle.get_create_access(&buffer).copy_from_slice(content);
            }
            for run in &self.freed {
                volume.allocator.free(handle, *run)?;
            }
            let bytes = inode.try_update(volume, handle, |state, handle| {
                *state.fields_mut().block_area_mut() = encoded.root;
                let size = end << volume.geometry.block_size_bits;
                state.fields_mut().set_size_bytes(size);
                state.add_blocks(volume, added)?;
                state.mark_data_changed(handle);
                Ok(InodeBytes::new(state.fields().bytes().to_vec()))
            })?;
            volume.update_superblock(handle, |raw| note(raw, &bytes));
            Ok(())
        })?;
        volume.journal.commit_all()?;
        volume.journal.checkpoint()?;
        Ok(encoded.leaf.map(|_| leaf))
    }
}

fn too_many() -> Error {
    refused(
        "its journal is in too many pieces to be moved: make another (tune2fs -O ^has_journal, then tune2fs -j)",
    )
}

/// Lets the superblock repeat where the journal is, if it does.
fn note(raw: &mut RawSuperblock, inode: &InodeBytes<Vec<u8>>) {
    if raw.s_jnl_backup_type != BACKUP_KIND {
        return;
    }
    let words = inode.block_area().as_chunks::<4>().0;
    for (slot, word) in raw.s_jnl_blocks.iter_mut().zip(words) {
        *slot = U32::from_bytes(*word);
    }
    raw.s_jnl_blocks[15] = inode.raw().i_size_high;
    raw.s_jnl_blocks[16] = inode.raw().i_size_lo;
}

/// Makes the journal's file twice as long, its second half before the fence. Returns what makes that the
/// first half.
pub(super) fn extend(fs: &Filesystem) -> Result<Switch> {
    let volume = &*fs.volume;
    let geometry = &volume.geometry;
    let inode = journal(fs)?.ok_or(Error::NotFound)?;
    let (old, len) = extents(volume, &inode)?;
    if old.iter().map(|extent| extent.len).sum::<u32>() != len {
        return Err(refused(
            "its journal has holes, or is longer than its file: run e2fsck first",
        ));
    }
    let mut allocated = reserve(fs, len)?;
    let mut new = Vec::new();
    let mut at = 0;
    for place in &allocated {
        let run = place.run();
        volume.zero_run(run)?;
        new.push(Extent {
            logical: LogicalBlock(at),
            physical: run.start,
            len: run.len,
            unwritten: false,
        });
        at += run.len;
    }
    let behind = |extent: &Extent| Extent {
        logical: LogicalBlock(len + extent.logical.0),
        ..*extent
    };
    let second = |first: &[Extent], second: &[Extent]| {
        let second = second.iter().map(behind);
        first.iter().copied().chain(second).collect::<Vec<Extent>>()
    };
    // The node of the tree changed over, which is data until then.
    let mut spare = None;
    let mut extended = second(&old, &new);
    if extended.len() > ROOT_EXTENTS {
        let place = one_block(fs)?;
        spare = Some(place.run().start);
        extended.push(one_behind(len, place.run().start));
        allocated.push(place);
    }
    let change = Change {
        extents: extended,
        allocated,
        leaf: one_block(fs)?,
        freed: nodes(volume, &inode)?,
    };
    let node = change.make(fs, &inode)?;
    let mut switched = second(&new, &old);
    switched.extend(node.map(|node| one_behind(len, node)));
    let leaf = spare.unwrap_or(BlockNr(0));
    let encoded = inode
        .tree(volume)
        .encode(&switched, leaf)
        .ok_or_else(too_many)?;
    let nr = inode.nr();
    let mut bytes = raw_inode(volume, nr)?;
    *bytes.block_area_mut() = encoded.root;
    bytes.update_checksum(geometry, nr);
    let (block, offset) = volume.allocator.inode_block(nr)?;
    Ok(Switch {
        old_log: geometry.offset_of(old[0].physical),
        new_log: geometry.offset_of(new[0].physical),
        leaf: encoded
            .leaf
            .map(|content| (geometry.offset_of(leaf), content)),
        inode: bytes,
        inode_offset: geometry.offset_of(block) + offset as u64,
        block_size: volume.block_size(),
    })
}

/// The block behind both halves.
fn one_behind(len: u32, physical: BlockNr) -> Extent {
    Extent {
        logical: LogicalBlock(2 * len),
        physical,
        len: 1,
        unwritten: false,
    }
}

/// Room for a journal.
fn reserve(fs: &Filesystem, len: u32) -> Result<Vec<Reservation>> {
    let allocator = &fs.volume.allocator;
    let mut places = Vec::new();
    let mut left = len;
    while left > 0 {
        let request = BlockRequest {
            goal: BlockNr(0),
            len: left.min(Extent::LEN_MAX),
            privileged: true,
        };
        let place = fs.with_space(|| allocator.reserve(request))?;
        left -= place.len();
        places.push(place);
        if places.len() > PIECES_MAX {
            return Err(refused(
                "its journal must be moved, and free space before the new end is in too many pieces for that: a larger size may do, or another journal (tune2fs -O ^has_journal, then tune2fs -j)",
            ));
        }
    }
    Ok(places)
}

impl Switch {
    /// Makes the new half the log. The volume is closed, and the log empty.
    pub(super) fn make(&self, device: &dyn BlockDevice) -> Result<()> {
        let io = |op| move |source| Error::Device { op, source };
        let mut block = vec![0; self.block_size as usize];
        device
            .read_at(self.old_log, &mut block)
            .map_err(io(IoOp::Read))?;
        device
            .write_at(self.new_log, &block)
            .map_err(io(IoOp::Write))?;
        if let Some((offset, leaf)) = &self.leaf {
            device.write_at(*offset, leaf).map_err(io(IoOp::Write))?;
        }
        device.flush().map_err(io(IoOp::Flush))?;
        let start = self.inode_offset / SECTOR * SECTOR;
        let within = (self.inode_offset - start) as usize;
        let mut sector = vec![0; SECTOR as usize];
        device.read_at(start, &mut sector).map_err(io(IoOp::Read))?;
        // All that changes of a large inode lies in its first sector.
        let len = self.inode.bytes().len().min(sector.len() - within);
        sector[within..within + len].copy_from_slice(&self.inode.bytes()[..len]);
        device.write_at(start, &sector).map_err(io(IoOp::Write))?;
        device.flush().map_err(io(IoOp::Flush))?;
        let mut superblock = crate::fs::read_superblock(device)?;
        note(&mut superblock, &self.inode);
        write_superblock(device, &mut superblock)
    }
}
