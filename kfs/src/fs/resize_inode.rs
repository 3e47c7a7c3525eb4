//! The resize inode, as growing changes it.
//!
//! Its double indirect block names the blocks kept for descriptors behind the table in group 0; each of these is an
//! indirect block that names the blocks kept behind the table's copies. A block that becomes part of the table
//! leaves it with all its copies; a new group with a copy adds a block to each that stays.

use super::Filesystem;
use crate::error::{Error, Result};
use crate::ids::{BlockNr, GroupNr, InodeNr, Run};
use crate::layout::Geometry;
use crate::layout::inode::InodeBytes;
use crate::storage::{Buffer, Handle};
use std::sync::Arc;

/// Number of the resize inode.
const NR: InodeNr = InodeNr(7);
/// Where in the block area the number of the double indirect block is.
const DOUBLE_INDIRECT: usize = 13 * 4;

const DAMAGED: Error = Error::Resize {
    why: "its resize inode is damaged: e2fsck is due",
};

pub(super) const TOO_FAR: Error = Error::Resize {
    why: "the blocks that it keeps for descriptors cannot lie beyond 2^32: a volume that is to grow further is made with mkfs -O ^resize_inode,meta_bg",
};

/// What the next group does to the resize inode.
pub(super) struct ResizeInode {
    parts: Parts,
    /// The block that becomes part of the descriptor table: where the double indirect block names it.
    taken: Option<usize>,
    /// The blocks that stay, where the new group has a copy of them, and the index of its entry.
    kept: Vec<Arc<Buffer>>,
    copy: usize,
    /// How far the new group is behind the first.
    away: u64,
    /// Blocks that it has afterwards, less those before.
    gained: i64,
    /// Nothing is kept any more: it goes.
    ends: bool,
}

fn entry(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes[at * 4..at * 4 + 4].try_into();
    u32::from_le_bytes(bytes.expect("four bytes"))
}

/// Where the resize inode is.
pub(super) struct Parts {
    pub(super) table: Arc<Buffer>,
    pub(super) offset: usize,
    pub(super) double_indirect: Arc<Buffer>,
}

impl Filesystem {
    /// Finds the resize inode.
    pub(super) fn resize_inode_parts(&self) -> Result<Parts> {
        let volume = &self.volume;
        let geometry = &volume.geometry;
        let (block, offset) = volume.allocator.inode_block(NR)?;
        let table = volume.cache.get(block)?;
        let inode_end = offset + geometry.inode_size as usize;
        let inode = InodeBytes::new(table.read()[offset..inode_end].to_vec());
        if !inode.verify_checksum(geometry, NR) {
            return Err(DAMAGED);
        }
        let double = BlockNr(entry(inode.block_area(), DOUBLE_INDIRECT / 4).into());
        if !volume.allocator.is_valid_data_run(Run {
            start: double,
            len: 1,
        }) {
            return Err(DAMAGED);
        }
        Ok(Parts {
            table,
            offset,
            double_indirect: volume.cache.get(double)?,
        })
    }

    /// Adds to the number of blocks that the resize inode has.
    pub(super) fn count_resize_inode(&self, handle: &mut Handle<'_>, parts: &Parts, gained: i64) {
        let geometry = &self.volume.geometry;
        let end = parts.offset + geometry.inode_size as usize;
        let mut bytes = handle.get_write_access(&parts.table);
        let mut inode = InodeBytes::new(&mut bytes[parts.offset..end]);
        let sectors = gained * i64::from(geometry.block_size / 512);
        let blocks = inode.blocks_512(geometry).saturating_add_signed(sectors);
        // Cannot fail: it is far from the bounds.
        let _ = inode.set_blocks_512(geometry, blocks);
        inode.update_checksum(geometry, NR);
    }

    /// Reads what the next group, the last one of `after`, changes. `ends` says that the volume gets meta
    /// block groups, which have no use for it.
    pub(super) fn resize_inode(&self, after: &Geometry, ends: bool) -> Result<ResizeInode> {
        let volume = &self.volume;
        let before = &volume.geometry;
        let parts = self.resize_inode_parts()?;
        let group = GroupNr(after.groups_count() - 1);
        let copies = (1..before.groups_count()).map(GroupNr);
        let copies = copies
            .filter(|group| before.has_superblock_backup(*group))
            .count();
        let entries = before.block_size as usize / 4;
        let first = u64::from(before.first_data_block) + 1;
        let (old_table, new_table) = (before.desc_blocks(), after.desc_blocks());
        let taken = (new_table > old_table && !ends).then_some(old_table as usize % entries);
        if let Some(at) = taken
            && u64::from(entry(&parts.double_indirect.read(), at)) != first + u64::from(old_table)
        {
            return Err(DAMAGED);
        }
        let mut kept = Vec::new();
        if after.has_superblock_backup(group) && !ends {
            for index in 0..after.reserved_gdt_blocks() {
                let block = BlockNr(first + u64::from(new_table) + u64::from(index));
                kept.push(volume.cache.get(block)?);
            }
        }
        if copies >= entries {
            return Err(DAMAGED);
        }
        let away = u64::from(group.0) * u64::from(before.blocks_per_group);
        // The inode has a block map, with numbers of 32 bits.
        if kept
            .iter()
            .any(|buffer| buffer.nr().0 + away > u32::MAX.into())
        {
            return Err(TOO_FAR);
        }
        let lost = if taken.is_some() {
            1 + copies as i64
        } else {
            0
        };
        Ok(ResizeInode {
            parts,
            taken,
            gained: kept.len() as i64 - lost,
            kept,
            copy: copies,
            away,
            ends,
        })
    }

    /// Does it.
    pub(super) fn change_resize_inode(
        &self,
        handle: &mut Handle<'_>,
        change: &ResizeInode,
    ) -> Result<()> {
        let volume = &self.volume;
        let geometry = &volume.geometry;
        let Parts {
            table,
            offset,
            double_indirect,
        } = &change.parts;
        if change.ends {
            let start = double_indirect.nr();
            volume.allocator.free(handle, Run { start, len: 1 })?;
            handle.forget(start);
            let end = offset + geometry.inode_size as usize;
            handle.get_write_access(table)[*offset..end].fill(0);
            return Ok(());
        }
        if let Some(at) = change.taken {
            handle.get_write_access(double_indirect)[at * 4..at * 4 + 4].fill(0);
        }
        for buffer in &change.kept {
            let copy = u32::try_from(buffer.nr().0 + change.away).expect("looked at when planned");
            let at = change.copy * 4;
            handle.get_write_access(buffer)[at..at + 4].copy_from_slice(&copy.to_le_bytes());
        }
        self.count_resize_inode(handle, &change.parts, change.gained);
        Ok(())
    }
}

impl ResizeInode {
    /// Credits that the change takes.
    pub(super) fn credits(&self) -> u32 {
        // Inode, double indirect block, and what freeing it takes.
        8 + self.kept.len() as u32
    }
}
