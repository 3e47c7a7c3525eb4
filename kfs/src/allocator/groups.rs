//! `GroupTable`: descriptors, bitmaps and counters of all block groups.
//!
//! Each group has a lock of its own; what a search needs to pass a group by is in atomics beside it.
//! Several groups are locked in ascending order only. Under a group's lock buffers may be read and
//! changed, never a handle started.
//!
//! Of each bitmap there are two forms: the buffer, which is what the disk shows, and `busy`, which is
//! what may not be handed out: the buffer's bits, those promised to reservations, those whose free
//! has not committed, and what lies beyond the group's end. `held` counts the bits that only `busy`
//! has for a while; a bitmap without any may be dropped from memory and read again. What snapshots keep
//! (`kept.rs`) is busy, too.
//!
//! A group whose content contradicts itself is `damaged`: it is logged once, counted out of what is
//! available, and never allocated from nor freed into.

use super::fixed::FixedRuns;
use super::group_list::GroupList;
use super::kept::{Kept, KeptBlocks};
use super::pending::PendingFrees;
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::{BlockNr, GroupNr, Run};
use crate::layout::{Geometry, GroupFlags, RawGroupDesc, RawSuperblock};
use crate::storage::{Buffer, BufferCache, Handle};
use crate::sync::{MutexGuard, Rank};
use parking_lot::{Mutex, RwLock};
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use zerocopy::FromBytes;

/// The groups of a volume.
pub(super) struct GroupTable {
    pub(super) geometry: Geometry,
    pub(super) cache: Arc<BufferCache>,
    pub(super) groups: GroupList,
    /// The blocks of the descriptor table, in order.
    pub(super) desc_buffers: RwLock<Vec<Arc<Buffer>>>,
    pub(super) fixed: RwLock<FixedRuns>,
    /// Blocks of the journal and the like, in use but of no file.
    protected: RwLock<FixedRuns>,
    /// From this block on nothing is handed out: the volume is about to end here.
    pub(super) fence: AtomicU64,
    pub(super) totals: Totals,
    pub(super) pending: PendingFrees,
    /// In the lower half: no run of allocatable blocks is longer. A hint to searches.
    pub(super) run_bound: AtomicU64,
    /// Who knows what snapshots keep.
    pub(super) keeper: OnceLock<Arc<dyn KeptBlocks>>,
    /// The first damage found.
    damage: Mutex<Option<Corrupt>>,
    /// Groups with bitmaps in memory, and where the search for idle ones goes on.
    pub(super) loaded: AtomicUsize,
    pub(super) eviction_hand: AtomicU32,
    /// How many want all that is loaded to stay so.
    pub(super) stays_loaded: AtomicU32,
    /// Counts directories made below the root, to spread them.
    pub(super) spread: AtomicU32,
}

/// Sums over all groups.
#[derive(Default)]
pub(super) struct Totals {
    /// Clear bits of the block bitmaps as the disk shows them.
    pub(super) free_blocks: AtomicU64,
    /// Blocks that may be handed out, less those claimed by reservations being made. Negative for a
    /// moment when a group turns out to be damaged.
    pub(super) available_blocks: AtomicI64,
    /// Blocks that only privileged requests may take.
    pub(super) privileged_blocks: AtomicU64,
    pub(super) free_inodes: AtomicU64,
    pub(super) available_inodes: AtomicI64,
    pub(super) directories: AtomicU64,
    /// Blocks that are free on disk and kept by snapshots.
    pub(super) pinned_blocks: AtomicI64,
}

/// One group. The atomics change under the lock of `state` only.
pub(super) struct Group {
    /// Blocks that may be handed out; 0 when damaged.
    pub(super) available_blocks: AtomicU32,
    /// No run that may be handed out is longer.
    pub(super) run_max: AtomicU32,
    /// Inodes that may be handed out; 0 when damaged.
    pub(super) available_inodes: AtomicU32,
    pub(super) directories: AtomicU32,
    /// `None` when the descriptor cannot be believed.
    inode_table: Option<BlockNr>,
    state: crate::sync::Mutex<GroupState>,
}

pub(super) struct GroupState {
    pub(super) desc: RawGroupDesc,
    pub(super) blocks: Option<GroupBitmap>,
    pub(super) inodes: Option<GroupBitmap>,
    /// First block of the inode table, counted in the table, whose content is not valid: never
    /// written since the volume was made.
    pub(super) fresh_table_block: u32,
    pub(super) damage: Option<Corrupt>,
    /// Blocks that are free and kept by snapshots, as far as was looked.
    pub(super) pinned: u32,
}

/// A bitmap in memory.
pub(super) struct GroupBitmap {
    pub(super) buffer: Arc<Buffer>,
    pub(super) busy: Box<[u64]>,
    /// Bits of `busy` that are clear in the buffer, except the padding and what snapshots keep.
    pub(super) held: u32,
    /// What snapshots keep, of a block bitmap once there are any.
    pub(super) kept: Option<Kept>,
}

impl GroupState {
    pub(super) fn has(&self, flag: GroupFlags) -> bool {
        self.desc.flags().contains(flag)
    }

    pub(super) fn is_usable(&self) -> bool {
        self.damage.is_none()
    }

    pub(super) fn is_idle(&self) -> bool {
        let held = |map: &Option<GroupBitmap>| map.as_ref().map_or(0, |map| map.held);
        held(&self.blocks) == 0 && held(&self.inodes) == 0
    }
}

/// What in a descriptor cannot be, if anything.
fn check_desc(geometry: &Geometry, group: GroupNr, desc: &RawGroupDesc) -> Option<Corrupt> {
    if !desc.verify_checksum(geometry, group) {
        return Some(Corrupt::GroupChecksum { group });
    }
    let table = u64::from(geometry.inode_table_blocks);
    let blocks = geometry.blocks_in_group(group);
    let inodes = geometry.inodes_per_group;
    let (free_blocks, free_inodes) = (desc.free_blocks_count(), desc.free_inodes_count());
    let (unused, directories) = (desc.itable_unused(), desc.used_dirs_count());
    let unused_ok = unused <= inodes || !geometry.has_group_checksums();
    let checks = [
        (
            geometry.contains_run(desc.block_bitmap(), 1),
            "bg_block_bitmap",
            desc.block_bitmap().0,
        ),
        (
            geometry.contains_run(desc.inode_bitmap(), 1),
            "bg_inode_bitmap",
            desc.inode_bitmap().0,
        ),
        (
            geometry.contains_run(desc.inode_table(), table),
            "bg_inode_table",
            desc.inode_table().0,
        ),
        (
            free_blocks <= blocks,
            "bg_free_blocks_count",
            free_blocks.into(),
        ),
        (
            free_inodes <= inodes,
            "bg_free_inodes_count",
            free_inodes.into(),
        ),
        (
            directories <= inodes - free_inodes.min(inodes),
            "bg_used_dirs_count",
            directories.into(),
        ),
        (unused_ok, "bg_itable_unused", unused.into()),
    ];
    let wrong = checks.into_iter().find(|(ok, ..)| !ok);
    wrong.map(|(_, field, value)| Corrupt::GroupField {
        group,
        field,
        value,
    })
}

impl Group {
    pub(super) fn new(geometry: &Geometry, nr: GroupNr, mut desc: RawGroupDesc) -> Self {
        let damage = check_desc(geometry, nr, &desc);
        if !geometry.has_group_checksums() {
            let lazy = GroupFlags::INODE_UNINIT | GroupFlags::BLOCK_UNINIT;
            desc.set_flags(desc.flags() - lazy);
        }
        let usable = damage.is_none();
        let count = |count| AtomicU32::new(if usable { count } else { 0 });
        let (blocks, inodes, directories) = (
            desc.free_blocks_count(),
            desc.free_inodes_count(),
            desc.used_dirs_count(),
        );
        let inode_table = usable.then(|| desc.inode_table());
        let state = GroupState {
            fresh_table_block: fresh_table_block(geometry, &desc),
            desc,
            blocks: None,
            inodes: None,
            damage,
            pinned: 0,
        };
        Self {
            available_blocks: count(blocks),
            run_max: count(blocks),
            available_inodes: count(inodes),
            directories: count(directories),
            inode_table,
            state: crate::sync::Mutex::keyed(Rank::Group, nr.0, state),
        }
    }
}

fn fresh_table_block(geometry: &Geometry, desc: &RawGroupDesc) -> u32 {
    if !geometry.has_group_checksums() || desc.flags().contains(GroupFlags::INODE_ZEROED) {
        return geometry.inode_table_blocks;
    }
    if desc.flags().contains(GroupFlags::INODE_UNINIT) {
        return 0;
    }
    let used = u64::from(
        geometry
            .inodes_per_group
            .saturating_sub(desc.itable_unused()),
    );
    geometry.blocks_for(used * u64::from(geometry.inode_size)) as u32
}

/// Blocks only privileged requests may take, by the superblock on disk.
fn read_privileged_blocks(cache: &BufferCache, geometry: &Geometry) -> Result<u64> {
    let block_size = u64::from(geometry.block_size);
    let offset = crate::layout::superblock::SUPERBLOCK_OFFSET;
    let buffer = cache.get(BlockNr(offset / block_size))?;
    let bytes = buffer.read();
    let raw = RawSuperblock::ref_from_prefix(&bytes[(offset % block_size) as usize..]);
    let (raw, _) = raw.map_err(|_| Corrupt::SuperblockMagic { found: 0 })?;
    Ok(raw.reserved_blocks_count())
}

impl GroupTable {
    /// Reads all descriptors. Groups with bad ones are damaged; only a device failure is an error.
    pub(super) fn open(cache: Arc<BufferCache>, geometry: Geometry) -> Result<Self> {
        let desc_buffers = (0..geometry.desc_blocks())
            .map(|nr| {
                cache.get(
                    geometry
                        .desc_location(GroupNr(nr * geometry.descs_per_block()))
                        .0,
                )
            })
            .collect::<Result<Vec<_>>>()?;
        let read_desc = |nr: GroupNr| {
            let bytes = desc_buffers[(nr.0 / geometry.descs_per_block()) as usize].read();
            let (_, offset) = geometry.desc_location(nr);
            RawGroupDesc::from_slice(&bytes[offset..offset + geometry.desc_size as usize])
        };
        let groups: Box<[Group]> = (0..geometry.groups_count())
            .map(|nr| Group::new(&geometry, GroupNr(nr), read_desc(GroupNr(nr))))
            .collect();
        let mut first_damage = None;
        let mut descs = Vec::new();
        let totals = Totals::default();
        for group in &groups {
            let state = group.state.lock();
            if let Some(damage) = &state.damage {
                log::error!("{damage}; the group is not used");
                first_damage.get_or_insert_with(|| damage.clone());
                continue;
            }
            totals.add_group(&state.desc);
            descs.push(state.desc.clone());
        }
        let privileged = read_privileged_blocks(&cache, &geometry)?;
        totals
            .privileged_blocks
            .store(privileged.min(geometry.blocks_count()), Relaxed);
        Ok(Self {
            fixed: RwLock::new(FixedRuns::of_volume(&geometry, descs.iter())),
            geometry,
            cache,
            groups: GroupList::new(groups),
            desc_buffers: RwLock::new(desc_buffers),
            protected: RwLock::default(),
            fence: AtomicU64::new(u64::MAX),
            totals,
            pending: PendingFrees::default(),
            run_bound: AtomicU64::new(u32::MAX.into()),
            keeper: OnceLock::new(),
            damage: Mutex::new(first_damage),
            loaded: AtomicUsize::new(0),
            eviction_hand: AtomicU32::new(0),
            stays_loaded: AtomicU32::new(0),
            spread: AtomicU32::new(0),
        })
    }

    pub(super) fn group(&self, nr: GroupNr) -> &Group {
        self.groups.get(nr.0 as usize)
    }

    pub(super) fn lock(&self, nr: GroupNr) -> MutexGuard<'_, GroupState> {
        self.group(nr).state.lock()
    }

    pub(super) fn try_lock(&self, nr: GroupNr) -> Option<MutexGuard<'_, GroupState>> {
        self.group(nr).state.try_lock()
    }

    pub(super) fn damage(&self) -> Option<Corrupt> {
        self.damage.lock().clone()
    }

    /// First block of a group's inode table.
    pub(super) fn inode_table(&self, group: GroupNr) -> Result<BlockNr> {
        self.group(group).inode_table.ok_or_else(|| {
            let damage = self.lock(group).damage.clone();
            damage.unwrap_or(Corrupt::GroupChecksum { group }).into()
        })
    }

    pub(super) fn protect(&self, runs: &[Run]) {
        *self.protected.write() = FixedRuns::from_runs(runs);
    }

    /// The first block of a run that belongs to the volume itself.
    pub(super) fn fixed_block_in(&self, run: Run) -> Option<BlockNr> {
        let protected = || self.protected.read().first_in(run);
        self.fixed.read().first_in(run).or_else(protected)
    }

    /// The parts of a run, one a group.
    pub(super) fn parts(&self, run: Run) -> impl Iterator<Item = (GroupNr, Range<u32>)> + use<'_> {
        let geometry = &self.geometry;
        let mut at = run.start;
        let end = run.end();
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (nr, index) = geometry.group_of(at);
            let len = u64::from(geometry.blocks_per_group - index).min(end.0 - at.0) as u32;
            at = at.plus(u64::from(len));
            Some((nr, index..index + len))
        })
    }

    /// Counts a group out for good.
    pub(super) fn set_damaged(
        &self,
        nr: GroupNr,
        state: &mut GroupState,
        damage: Corrupt,
    ) -> Error {
        log::error!("{damage}; the group is not used");
        let group = self.group(nr);
        let blocks = group.available_blocks.swap(0, Relaxed);
        let inodes = group.available_inodes.swap(0, Relaxed);
        group.run_max.store(0, Relaxed);
        self.totals
            .available_blocks
            .fetch_sub(blocks.into(), Relaxed);
        self.totals
            .available_inodes
            .fetch_sub(inodes.into(), Relaxed);
        state.damage = Some(damage.clone());
        self.damage.lock().get_or_insert_with(|| damage.clone());
        damage.into()
    }

    /// Writes the descriptor into its block.
    pub(super) fn write_desc(&self, handle: &mut Handle<'_>, nr: GroupNr, state: &mut GroupState) {
        state.desc.update_checksum(&self.geometry, nr);
        let (_, offset) = self.geometry.desc_location(nr);
        let index = (nr.0 / self.geometry.descs_per_block()) as usize;
        let buffer = Arc::clone(&self.desc_buffers.read()[index]);
        let mut bytes = handle.get_write_access(&buffer);
        let end = offset + self.geometry.desc_size as usize;
        state.desc.write_to_slice(&mut bytes[offset..end]);
    }
}

impl Totals {
    pub(super) fn add_group(&self, desc: &RawGroupDesc) {
        let (blocks, inodes) = (desc.free_blocks_count(), desc.free_inodes_count());
        self.free_blocks.fetch_add(blocks.into(), Relaxed);
        self.available_blocks.fetch_add(blocks.into(), Relaxed);
        self.free_inodes.fetch_add(inodes.into(), Relaxed);
        self.available_inodes.fetch_add(inodes.into(), Relaxed);
        self.directories
            .fetch_add(desc.used_dirs_count().into(), Relaxed);
    }
}
