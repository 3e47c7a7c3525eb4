//! Setting the whole volume back to a snapshot.
//!
//! All blocks that a snapshot sees are where they were; only metadata has changed in its place. So the
//! old content of the metadata is written back, as changes like any other: what newer snapshots see of
//! it is kept for them first, among these the state before, which makes it possible to go back.
//!
//! ```text
//!   begin_restore    a snapshot of the present | room for all that will be kept | intent in the table
//!   close
//!   open             what the intent says, transaction by transaction | no intent any more | open again
//! ```
//!
//! The content that each block is to have follows from the snapshot and from the store's file, neither
//! of which changes meanwhile: after a crash it is done once more. What belongs to the present is the
//! store: its inode, the nodes of its tree, and its blocks in the bitmaps.

use super::Filesystem;
use super::mount::data_runs;
use crate::error::{Error, ReadOnlyReason, Result};
use crate::extent::ExtentTree;
use crate::ids::{BlockNr, GroupNr, Run};
use crate::layout::superblock::SUPERBLOCK_OFFSET;
use crate::layout::{GroupFlags, RawGroupDesc, RawSuperblock, RoCompat};
use crate::snapshot::SnapshotDevice;
use crate::storage::StorePurpose;
use crate::tools::Watch;
use crate::volume::superblock_offset;
use kfs_disk::BlockDevice;
use std::collections::{BTreeSet, HashMap};
use zerocopy::FromBytes;

/// Blocks of the store that are made ready beyond those that one attempt needs, at least. An attempt that a
/// crash ends has used some, and the next one begins in a new segment: what is left of the old is lost.
const SPARE_BLOCKS: u32 = 1024;

/// Blocks written back in one transaction.
const BATCH_BLOCKS: usize = 64;

/// The snapshot to go back to, and what of the present stays.
struct Target {
    view: SnapshotDevice,
    /// The store's blocks, and the nodes of its tree.
    store: Vec<Run>,
    nodes: BTreeSet<BlockNr>,
    /// The block of the inode table with the store's inode, its offset and its bytes.
    inode: (BlockNr, usize, Vec<u8>),
    /// The groups by the blocks of their bitmaps.
    bitmaps: HashMap<u64, GroupNr>,
    /// The first groups in the blocks of the descriptor table.
    tables: HashMap<BlockNr, GroupNr>,
}

/// A block, and what it is to hold.
type Written = (BlockNr, Vec<u8>);

impl Filesystem {
    /// Makes the volume ready to be set back to a snapshot when it is opened next; the state before is
    /// kept as the snapshot `undo`. Nothing should be changed in between: it would be lost.
    ///
    /// # Errors
    /// `NotFound`; `OtherSize`; `Corrupt` where the snapshot cannot be read; as
    /// [`Filesystem::create_snapshot`] for `undo`.
    pub fn begin_restore(&self, name: &str, undo: &str) -> Result<()> {
        let snapshots = &self.volume.snapshots;
        snapshots.check_sound()?;
        let target = snapshots.find(name)?;
        if snapshots.blocks_count_at(target.id)? != self.volume.geometry.blocks_count() {
            return Err(Error::OtherSize);
        }
        self.check_readable(target.id)?;
        self.create_snapshot(undo, &format!("before the volume was set back to '{name}'"))?;
        let count = snapshots.changed_blocks(target.id).len();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let room = count.saturating_add(count.max(SPARE_BLOCKS));
        if let Err(error) = self.volume.grow_store(room) {
            // Nothing has happened that could be undone.
            self.delete_snapshot(undo)?;
            return Err(error);
        }
        let _one = self.snapshot_operation.lock();
        // Others may have deleted it, and taken another of its name.
        if snapshots.find(name)?.id != target.id {
            return Err(Error::NotFound);
        }
        self.volume.journal.quiesce(|| {
            self.volume.set_read_only(ReadOnlyReason::Closed);
            snapshots.set_restoring(Some(target.id))
        })
    }

    /// Fails where a snapshot's old metadata is damaged: half way back there is no way out.
    fn check_readable(&self, id: u32) -> Result<()> {
        let snapshots = &self.volume.snapshots;
        let mut content = vec![0; self.volume.geometry.block_size as usize];
        for block in snapshots.changed_blocks(id) {
            snapshots.read_block(id, BlockNr(block), &mut content)?;
        }
        Ok(())
    }

    /// Does what [`Filesystem::begin_restore`] has made ready, on a volume that nobody uses yet. It has
    /// to be opened anew afterwards.
    pub(super) fn finish_restore(&self, id: u32, watch: &mut Watch<'_>) -> Result<()> {
        let record = self.volume.snapshots.list();
        let record = record.iter().find(|record| record.id == id);
        let record = record.ok_or(Error::NotFound)?;
        log::info!("setting the volume back to the snapshot '{}'", record.name);
        let target = self.target(&record.name)?;
        let mut batch: Vec<Written> = Vec::new();
        let changed = self.volume.snapshots.changed_blocks(id);
        for (done, &block) in changed.iter().enumerate() {
            let _ = watch(done as u64, changed.len() as u64);
            self.plan_block(&target, BlockNr(block), &mut batch)?;
            if batch.len() >= BATCH_BLOCKS {
                self.write_back(&mut batch)?;
            }
        }
        self.write_back(&mut batch)?;
        self.restore_superblock(&target)?;
        self.volume.journal.commit_all()?;
        self.volume.journal.checkpoint()?;
        self.volume.snapshots.set_restoring(None)?;
        // Nothing in memory is true any more.
        self.volume.set_read_only(ReadOnlyReason::Closed);
        self.volume.journal.close();
        Ok(())
    }

    fn target(&self, name: &str) -> Result<Target> {
        let volume = &self.volume;
        let geometry = &volume.geometry;
        let nr = volume.snapshots.store_inode().ok_or(Error::NotFound)?;
        let inode = self.inodes.get(volume, nr)?.place_bytes(volume);
        let (block, offset) = volume.allocator.inode_block(nr)?;
        let mut nodes = BTreeSet::new();
        let tree = ExtentTree::new(&volume.cache, geometry, nr, inode.generation());
        tree.for_each_node(inode.block_area(), |node| {
            nodes.insert(node);
            Ok(())
        })?;
        let mut store = data_runs(&volume.cache, geometry, nr, &inode)?;
        store.extend(nodes.iter().map(|&start| Run { start, len: 1 }));
        let groups = (0..geometry.groups_count()).map(GroupNr);
        let firsts = groups.clone().step_by(geometry.descs_per_block() as usize);
        Ok(Target {
            bitmaps: volume
                .allocator
                .block_bitmaps()
                .into_iter()
                .zip(groups)
                .collect(),
            tables: firsts
                .map(|nr| (geometry.desc_location(nr).0, nr))
                .collect(),
            view: SnapshotDevice::open(&volume.snapshots, name)?,
            store,
            nodes,
            inode: (block, offset, inode.bytes().to_vec()),
        })
    }

    /// Adds what is to be written for a block that has changed since the snapshot.
    fn plan_block(&self, target: &Target, block: BlockNr, batch: &mut Vec<Written>) -> Result<()> {
        let geometry = &self.volume.geometry;
        let superblock = BlockNr(SUPERBLOCK_OFFSET / u64::from(geometry.block_size));
        if block == superblock || target.nodes.contains(&block) {
            return Ok(());
        }
        let mut content = target.read(self, block)?;
        if let Some(first) = target.tables.get(&block) {
            let end = (first.0 + geometry.descs_per_block()).min(geometry.groups_count());
            for group in first.0..end {
                self.plan_group(target, GroupNr(group), &mut content, batch)?;
            }
            batch.push((block, content));
            return Ok(());
        }
        if let Some(&group) = target.bitmaps.get(&block.0) {
            // Written with its descriptor, which has changed, too.
            let (table, offset) = geometry.desc_location(group);
            let mut desc = target.read(self, table)?[offset..].to_vec();
            desc.truncate(geometry.desc_size as usize);
            let (bitmap, _) = self.bitmap_and_desc(target, group, &desc)?;
            batch.extend(bitmap.map(|bitmap| (block, bitmap)));
            return Ok(());
        }
        if !self.volume.allocator.is_fixed(block) && !target.uses(self, block)? {
            // Free then: its old content is nobody's.
            return Ok(());
        }
        let (table, offset, inode) = &target.inode;
        if block == *table {
            content[*offset..offset + inode.len()].copy_from_slice(inode);
        }
        batch.push((block, content));
        Ok(())
    }

    /// Brings a group's descriptor, and the bitmap where it was never written, in line with the store.
    fn plan_group(
        &self,
        target: &Target,
        group: GroupNr,
        table: &mut [u8],
        batch: &mut Vec<Written>,
    ) -> Result<()> {
        let geometry = &self.volume.geometry;
        let (_, offset) = geometry.desc_location(group);
        let bytes = &mut table[offset..offset + geometry.desc_size as usize];
        let before = RawGroupDesc::from_slice(bytes);
        let (bitmap, after) = self.bitmap_and_desc(target, group, bytes)?;
        let was_uninit = before.flags().contains(GroupFlags::BLOCK_UNINIT);
        if let (Some(bitmap), true) = (bitmap, was_uninit) {
            batch.push((before.block_bitmap(), bitmap));
        }
        after.write_to_slice(bytes);
        Ok(())
    }

    /// The bitmap and the descriptor that a group is to have. No bitmap for one that stays as it was
    /// made.
    fn bitmap_and_desc(
        &self,
        target: &Target,
        group: GroupNr,
        desc: &[u8],
    ) -> Result<(Option<Vec<u8>>, RawGroupDesc)> {
        let geometry = &self.volume.geometry;
        let mut desc = RawGroupDesc::from_slice(desc);
        let is_uninit =
            geometry.has_group_checksums() && desc.flags().contains(GroupFlags::BLOCK_UNINIT);
        let mut bitmap = if is_uninit {
            self.volume.allocator.initial_block_bitmap(group)
        } else {
            target.read(self, desc.block_bitmap())?
        };
        let first = geometry.group_first_block(group).0;
        let end = first + u64::from(geometry.blocks_in_group(group));
        let mut taken = 0;
        for run in &target.store {
            for block in run.start.0.max(first)..run.end().0.min(end) {
                let index = (block - first) as usize;
                let (byte, bit) = (&mut bitmap[index / 8], 1 << (index % 8));
                taken += u32::from(*byte & bit == 0);
                *byte |= bit;
            }
        }
        if taken == 0 {
            return Ok(((!is_uninit).then_some(bitmap), desc));
        }
        desc.set_flags(desc.flags() - GroupFlags::BLOCK_UNINIT);
        desc.set_free_blocks_count(desc.free_blocks_count().saturating_sub(taken));
        desc.update_block_bitmap(geometry, &bitmap);
        desc.update_checksum(geometry, group);
        Ok((Some(bitmap), desc))
    }

    /// Writes blocks back in one transaction.
    fn write_back(&self, batch: &mut Vec<Written>) -> Result<()> {
        // What can fail comes first.
        let buffers = batch
            .iter()
            .map(|(block, _)| self.volume.cache.get(*block))
            .collect::<Result<Vec<_>>>()?;
        let credits = batch.len() as u32;
        let journal = &self.volume.journal;
        let mut handle = journal.start_for(credits, StorePurpose::Growth)?;
        for (buffer, (_, content)) in buffers.iter().zip(batch.drain(..)) {
            handle.get_write_access(buffer).copy_from_slice(&content);
        }
        Ok(())
    }

    /// The orphans are those of then; all else in the superblock is of the present.
    fn restore_superblock(&self, target: &Target) -> Result<()> {
        let geometry = &self.volume.geometry;
        let block = BlockNr(SUPERBLOCK_OFFSET / u64::from(geometry.block_size));
        let content = target.read(self, block)?;
        let bytes = &content[superblock_offset(geometry)..];
        let (then, _) = RawSuperblock::ref_from_prefix(bytes).expect("a block holds a superblock");
        let orphans = then.ro_compat() & RoCompat::ORPHAN_PRESENT;
        let mut handle = self.volume.journal.start_for(1, StorePurpose::Growth)?;
        self.volume.update_superblock(&mut handle, |raw| {
            raw.s_last_orphan = then.s_last_orphan;
            let features = (raw.ro_compat() - RoCompat::ORPHAN_PRESENT) | orphans;
            raw.s_feature_ro_compat.set(features.bits());
        });
        Ok(())
    }
}

impl Target {
    /// A block as the snapshot sees it.
    fn read(&self, fs: &Filesystem, block: BlockNr) -> Result<Vec<u8>> {
        let geometry = &fs.volume.geometry;
        let mut content = vec![0; geometry.block_size as usize];
        let read = self.view.read_at(geometry.offset_of(block), &mut content);
        read.map_err(|source| Error::Io {
            op: crate::error::IoOp::Read,
            block,
            source,
        })?;
        Ok(content)
    }

    /// Whether a block was in use.
    fn uses(&self, fs: &Filesystem, block: BlockNr) -> Result<bool> {
        let geometry = &fs.volume.geometry;
        let (group, index) = geometry.group_of(block);
        let (table, offset) = geometry.desc_location(group);
        let table = self.read(fs, table)?;
        let desc = RawGroupDesc::from_slice(&table[offset..offset + geometry.desc_size as usize]);
        let is_uninit =
            geometry.has_group_checksums() && desc.flags().contains(GroupFlags::BLOCK_UNINIT);
        let bitmap = self.read(fs, desc.block_bitmap())?;
        Ok(!is_uninit && bitmap[index as usize / 8] >> (index % 8) & 1 != 0)
    }
}
