//! Writes a plan to a device.
//!
//! The old superblock goes first and the new one comes last, each behind a flush: a device on which
//! mkfs was interrupted holds no file system, neither the old one nor half of the new.

use crate::contents::{self, Block};
use crate::error::{Error, Result};
use crate::options::{Content, Options};
use crate::plan::{LOST_FOUND_INODE, Plan};
use kfs::layout::superblock::{JOURNAL_BACKUP_BLOCKS, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE};
use kfs::layout::{GroupFlags, Incompat, RawGroupDesc, RawSuperblock};
use kfs::{BlockNr, GroupNr, InodeNr};
use kfs_disk::BlockDevice;
use std::ops::Range;
use zerocopy::little_endian::{U16, U64};
use zerocopy::{FromZeros, IntoBytes};

/// Bytes at both ends of a device that may hold what other systems would recognise.
const SIGNATURE_BYTES: u64 = 128 * 1024;

/// Writes the file system. Gives the count of bytes written.
pub(crate) fn write(device: &dyn BlockDevice, plan: &Plan, options: &Options) -> Result<u64> {
    let mut writer = Writer {
        device,
        plan,
        written: 0,
        zeroed: options.content == Content::Zeros,
        lazy: options.lazy_inode_tables && plan.geometry.has_group_checksums(),
    };
    writer.erase(options.discard)?;
    let descs = writer.write_groups()?;
    for (nr, block) in contents::file_blocks(plan) {
        writer.put(nr, &block)?;
    }
    writer.write_inodes()?;
    writer.flush()?;
    writer.write_superblocks(&descs)?;
    writer.flush()?;
    Ok(writer.written)
}

struct Writer<'a> {
    device: &'a dyn BlockDevice,
    plan: &'a Plan,
    written: u64,
    /// The whole device is known to hold zeros but for what was written.
    zeroed: bool,
    /// Inode tables are left to the kernel.
    lazy: bool,
}

fn io_error(what: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    move |source| Error::Io { what, source }
}

impl Writer<'_> {
    fn offset(&self, nr: BlockNr) -> u64 {
        self.plan.geometry.offset_of(nr)
    }

    fn put_at(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len() as u64;
        self.device
            .write_at(offset, bytes)
            .map_err(io_error("writing"))
    }

    fn put(&mut self, nr: BlockNr, bytes: &[u8]) -> Result<()> {
        self.put_at(self.offset(nr), bytes)
    }

    fn zero(&mut self, range: Range<u64>) -> Result<()> {
        let len = range.end - range.start;
        self.device
            .write_zeroes(range.start, len)
            .map_err(io_error("writing zeros"))
    }

    fn zero_blocks(&mut self, range: Range<u64>) -> Result<()> {
        if self.zeroed {
            return Ok(());
        }
        let bits = self.plan.geometry.block_size_bits;
        self.zero(range.start << bits..range.end << bits)
    }

    fn flush(&self) -> Result<()> {
        self.device.flush().map_err(io_error("flushing"))
    }

    /// Takes away what was there, and makes zeros of what must be zero.
    fn erase(&mut self, discard: bool) -> Result<()> {
        if self.zeroed {
            return Ok(());
        }
        let size = self.device.size_bytes();
        // Alone, as the rest of what follows it must not be changed under an old superblock.
        let superblock_end = SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64;
        self.zero(0..superblock_end)?;
        self.flush()?;
        self.zero(superblock_end..SIGNATURE_BYTES.min(size))?;
        if discard {
            // Only advice: what must be zero is zeroed below all the same.
            self.device
                .discard(0, size)
                .map_err(io_error("discarding"))?;
        }
        self.zero(size.saturating_sub(SIGNATURE_BYTES)..size)?;
        if let Some(journal) = &self.plan.journal {
            for run in &journal.extents {
                self.zero_blocks(run.start.0..run.end().0)?;
            }
        }
        if self.lazy {
            return Ok(());
        }
        let mut pending = 0..0;
        for places in &self.plan.groups {
            let start = places.inode_table.0;
            // Tables of a flex group follow each other: one long range is cheaper than many.
            if start != pending.end {
                self.zero_blocks(pending)?;
                pending = start..start;
            }
            pending.end = start + u64::from(self.plan.geometry.inode_table_blocks);
        }
        self.zero_blocks(pending)
    }

    /// Writes the bitmaps that are needed and makes the descriptor table.
    fn write_groups(&mut self) -> Result<Vec<u8>> {
        let plan = self.plan;
        let geometry = &plan.geometry;
        let desc_size = geometry.desc_size as usize;
        let table = geometry.desc_blocks() as usize * geometry.block_size as usize;
        let mut descs = vec![0; table];
        for (slot, group) in descs
            .chunks_exact_mut(desc_size)
            .zip(0..geometry.groups_count())
        {
            let group = GroupNr(group);
            let (desc, blocks) = self.describe(group);
            for (nr, block) in blocks {
                self.put(nr, &block)?;
            }
            desc.write_to_slice(slot);
        }
        Ok(descs)
    }

    /// The descriptor of a group, and its bitmaps where they must be on disk.
    fn describe(&self, group: GroupNr) -> (RawGroupDesc, Vec<Block>) {
        let (plan, geometry) = (self.plan, &self.plan.geometry);
        let places = plan.groups[group.0 as usize];
        let range = plan.group_range(group);
        let used = plan.space.used_in(range.clone());
        let used_inodes = self.used_inodes(group);
        let may_skip = geometry.has_group_checksums();
        let mut desc = RawGroupDesc::new_zeroed();
        desc.set_block_bitmap(places.block_bitmap);
        desc.set_inode_bitmap(places.inode_bitmap);
        desc.set_inode_table(places.inode_table);
        desc.set_free_blocks_count((range.end - range.start - used) as u32);
        desc.set_free_inodes_count(geometry.inodes_per_group - used_inodes);
        desc.set_used_dirs_count(self.used_directories(group));
        let mut flags = GroupFlags::empty();
        let mut blocks = Vec::new();
        if may_skip {
            desc.set_itable_unused(geometry.inodes_per_group - used_inodes);
            flags.set(GroupFlags::INODE_ZEROED, !self.lazy || self.zeroed);
        }
        // Linux makes up the bitmap of a group that has only its own metadata. It cannot do so for
        // the last group, whose bitmap has padding.
        let is_last = group.0 + 1 == geometry.groups_count();
        let only_own = used == self.own_metadata(group);
        if may_skip && only_own && !is_last {
            flags |= GroupFlags::BLOCK_UNINIT;
        } else {
            let bitmap = self.block_bitmap(range);
            desc.update_block_bitmap(geometry, &bitmap);
            blocks.push((places.block_bitmap, bitmap));
        }
        if may_skip && used_inodes == 0 {
            flags |= GroupFlags::INODE_UNINIT;
        } else {
            let bitmap = self.inode_bitmap(used_inodes);
            desc.update_inode_bitmap(geometry, &bitmap);
            blocks.push((places.inode_bitmap, bitmap));
        }
        desc.set_flags(flags);
        desc.update_checksum(geometry, group);
        (desc, blocks)
    }

    /// Blocks of a group for its superblock, descriptors, and own bitmaps and table.
    fn own_metadata(&self, group: GroupNr) -> u64 {
        let geometry = &self.plan.geometry;
        let places = self.plan.groups[group.0 as usize];
        let range = self.plan.group_range(group);
        let table =
            places.inode_table.0..places.inode_table.0 + u64::from(geometry.inode_table_blocks);
        let table = table
            .end
            .min(range.end)
            .saturating_sub(table.start.max(range.start));
        let bitmaps = [places.block_bitmap, places.inode_bitmap];
        let bitmaps = bitmaps
            .iter()
            .filter(|place| range.contains(&place.0))
            .count() as u64;
        u64::from(geometry.base_metadata_blocks(group)) + bitmaps + table
    }

    fn used_inodes(&self, group: GroupNr) -> u32 {
        let per_group = self.plan.geometry.inodes_per_group;
        self.plan
            .used_inodes()
            .saturating_sub(group.0 * per_group)
            .min(per_group)
    }

    fn used_directories(&self, group: GroupNr) -> u32 {
        let here = |inode: InodeNr| {
            let location = self.plan.geometry.inode_location(inode);
            location.is_ok_and(|(owner, _)| owner == group)
        };
        [InodeNr::ROOT, LOST_FOUND_INODE]
            .into_iter()
            .filter(|&inode| here(inode))
            .count() as u32
    }

    fn block_bitmap(&self, group: Range<u64>) -> Vec<u8> {
        let mut bitmap = vec![0; self.plan.geometry.block_size as usize];
        for used in self.plan.space.used(group.clone()) {
            set_bits(
                &mut bitmap,
                used.start - group.start..used.end - group.start,
            );
        }
        let padding = group.end - group.start..bitmap.len() as u64 * 8;
        set_bits(&mut bitmap, padding);
        bitmap
    }

    fn inode_bitmap(&self, used: u32) -> Vec<u8> {
        let mut bitmap = vec![0; self.plan.geometry.block_size as usize];
        set_bits(&mut bitmap, 0..u64::from(used));
        let padding = u64::from(self.plan.geometry.inodes_per_group)..bitmap.len() as u64 * 8;
        set_bits(&mut bitmap, padding);
        bitmap
    }

    /// Writes the used inodes, in whole blocks of their tables.
    fn write_inodes(&mut self) -> Result<()> {
        let geometry = &self.plan.geometry;
        let (size, block_size) = (geometry.inode_size as usize, geometry.block_size as usize);
        let inodes = contents::inodes(self.plan);
        for group in 0..self.plan.used_inodes().div_ceil(geometry.inodes_per_group) {
            let group = GroupNr(group);
            let used = self.used_inodes(group) as usize * size;
            let mut table = vec![0; used.next_multiple_of(block_size)];
            for (nr, inode) in &inodes {
                let (owner, index) = geometry.inode_location(*nr).map_err(Error::Invalid)?;
                if owner == group {
                    let at = index as usize * size;
                    table[at..at + size].copy_from_slice(inode.bytes());
                }
            }
            self.put(self.plan.groups[group.0 as usize].inode_table, &table)?;
        }
        Ok(())
    }

    /// Writes all copies of superblock and descriptors, the primary superblock last of all.
    fn write_superblocks(&mut self, descs: &[u8]) -> Result<()> {
        let plan = self.plan;
        let geometry = &plan.geometry;
        let mut raw = plan.superblock.clone();
        if let Some(journal) = &plan.journal {
            raw.s_jnl_backup_type = JOURNAL_BACKUP_BLOCKS;
            raw.s_jnl_blocks = contents::journal_backup(plan, journal);
        }
        let copies = plan.backups().count() as u64 + 1;
        let copy_size = (SUPERBLOCK_SIZE + descs.len()) as u64;
        raw.s_kbytes_written = U64::new((self.written + copies * copy_size) / 1024);
        if geometry.incompat.contains(Incompat::META_BG) {
            self.write_meta_descriptors(descs)?;
        } else {
            let (table, _) = geometry.desc_location(GroupNr(0));
            self.put(table, descs)?;
        }
        for group in plan.backups() {
            let first = geometry.group_first_block(group);
            if !geometry.incompat.contains(Incompat::META_BG) {
                self.put(first.plus(1), descs)?;
            }
            let copy = with_checksum(raw.clone(), group);
            self.put(first, copy.as_bytes())?;
        }
        self.flush()?;
        let primary = with_checksum(raw, GroupNr(0));
        self.put_at(SUPERBLOCK_OFFSET, primary.as_bytes())
    }

    /// Writes each block of descriptors to the first, second and last group that it describes.
    fn write_meta_descriptors(&mut self, descs: &[u8]) -> Result<()> {
        let geometry = &self.plan.geometry;
        let per_block = geometry.descs_per_block();
        for (n, block) in descs.chunks_exact(geometry.block_size as usize).enumerate() {
            let first = n as u32 * per_block;
            for group in [first, first + 1, first + per_block - 1] {
                let group = GroupNr(group);
                if group.0 < geometry.groups_count() {
                    let superblock = u64::from(geometry.has_superblock_backup(group));
                    self.put(geometry.group_first_block(group).plus(superblock), block)?;
                }
            }
        }
        Ok(())
    }
}

fn with_checksum(mut raw: RawSuperblock, group: GroupNr) -> RawSuperblock {
    // The field has 16 bits, as in every ext4: copies beyond that say what fits.
    raw.s_block_group_nr = U16::new(group.0 as u16);
    raw.update_checksum();
    raw
}

fn set_bits(bitmap: &mut [u8], bits: Range<u64>) {
    let mut bit = bits.start as usize;
    let end = bits.end as usize;
    while bit < end {
        if bit.is_multiple_of(8) && end - bit >= 8 {
            let bytes = (end - bit) / 8;
            bitmap[bit / 8..bit / 8 + bytes].fill(0xff);
            bit += bytes * 8;
        } else {
            bitmap[bit / 8] |= 1 << (bit % 8);
            bit += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits() {
        for (start, end) in [(0, 0), (0, 3), (3, 8), (3, 29), (8, 24), (7, 9), (0, 32)] {
            let mut bitmap = [0u8; 4];
            set_bits(&mut bitmap, start..end);
            let value = u64::from(u32::from_le_bytes(bitmap));
            assert_eq!(value, (1u64 << end) - (1u64 << start), "{start} {end}");
        }
    }
}
