//! Opening a volume: superblock, features, recovery, layers, orphans.

use super::superblock::{end_recovery, mark_error, mark_in_use, overhead_blocks, read_superblock};
use super::{Committer, Damage, Filesystem, MountOptions, RecoveryStatus};
use crate::allocator::Allocator;
use crate::corrupt::Corrupt;
use crate::error::{Error, IoOp, ReadOnlyReason, Result};
use crate::extent::{ExtentTree, IndirectMap};
use crate::ids::{BlockNr, InodeNr, LogicalBlock, Run};
use crate::inode::{InodeTable, Orphans};
use crate::layout::inode::{InodeBytes, InodeFlags};
use crate::layout::superblock::{STATE_VALID, SUPERBLOCK_OFFSET};
use crate::layout::{Access, Compat, Geometry, Incompat, RawSuperblock, features};
use crate::snapshot::Snapshots;
use crate::storage::journal::{LogArea, LogOptions, attach, recover, reset_log};
use crate::storage::{BufferCache, Journal};
use crate::sync::Rank;
use crate::tools::{Watch, unwatched};
use crate::volume::{Volume, VolumeParts};
use kfs_disk::{BlockDevice, Count};
use parking_lot::Mutex;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64};

/// Smallest journal that mke2fs makes and Linux takes, in blocks: one operation has to fit into a
/// quarter of it.
const JOURNAL_BLOCKS_MIN: u32 = 1024;

impl Filesystem {
    /// Opens the volume on `device`: replays its journal, finishes what orphans need and, unless it
    /// is opened read-only, marks it in use.
    ///
    /// # Errors
    /// `Corrupt` for what is not an ext4 image or is damaged beyond use, `Unsupported` for features
    /// kfs does not know, `NeedsRecovery` for a dirty journal on a read-only device, `Io`.
    pub fn open(device: Arc<dyn BlockDevice>, options: MountOptions) -> Result<Arc<Self>> {
        Self::open_watched(device, options, &mut unwatched)
    }

    /// As [`Filesystem::open`], and tells how far it is where the volume has to be set back to a snapshot first.
    /// That goes on to its end, whatever `watch` says.
    ///
    /// # Errors
    /// The same.
    pub fn open_watched(
        device: Arc<dyn BlockDevice>,
        options: MountOptions,
        watch: &mut Watch<'_>,
    ) -> Result<Arc<Self>> {
        let mut image = Image::recover(&device, &options)?;
        if image.read_only.is_none() {
            mark_in_use(&*device, &mut image.superblock, &options)?;
        }
        let (read_only, was_closed) = (image.read_only, image.was_closed);
        let superblock = image.superblock.clone();
        let mut fs = Self::over(Arc::clone(&device), image, &options)?;
        fs.root()?;
        if read_only.is_none() {
            fs.volume.journal.mark_in_use()?;
        }
        let has_empty_store = fs.open_snapshots(&options, was_closed)?;
        if let Some(id) = fs.volume.snapshots.restoring() {
            if read_only.is_some() {
                return Err(Error::NeedsRecovery);
            }
            fs.finish_restore(id, watch)?;
            drop(fs);
            return Self::open(device, options);
        }
        if read_only.is_none() {
            fs.recovery.orphans = fs.finish_orphans(&superblock)?;
            // Damage that orphans have met may have ended all changes.
            if has_empty_store && fs.volume.read_only().is_none() {
                log::info!("putting away an empty snapshot store");
                fs.remove_store()?;
            }
            fs.start_committer(&options)?;
        }
        Ok(Arc::new(fs))
    }

    /// The layers over an image, with nothing of what they hold looked at.
    fn over(device: Arc<dyn BlockDevice>, image: Image, options: &MountOptions) -> Result<Self> {
        let Image {
            superblock,
            geometry,
            read_only,
            log,
            recovery,
            is_replayed,
            was_clean,
            was_closed: _,
        } = image;
        let log = log.filter(|_| read_only.is_none());
        let mut protected: Vec<Run> = log.iter().flat_map(|log| log.area.runs()).collect();
        let overhead = overhead_blocks(&superblock, &geometry);
        let volume = assemble(device, geometry, log, read_only, options)?;
        if is_replayed && read_only.is_some() {
            end_recovery(&volume)?;
        }
        protected.extend(orphan_file_runs(&volume)?);
        volume.allocator.protect(&protected);
        Ok(Self {
            volume: Arc::new(volume),
            inodes: InodeTable::default(),
            orphans: Orphans::default(),
            rename: crate::sync::Mutex::new(Rank::Rename, ()),
            committer: Mutex::new(None),
            freezer: super::Freezer::default(),
            label: superblock.label().to_vec(),
            was_clean,
            recovery,
            damage: Damage::default(),
            errors_policy: options.errors.settle(superblock.s_errors.get()),
            overhead_blocks: AtomicU64::new(overhead),
            overhead_before: overhead,
            has_old_copies: AtomicBool::new(false),
            hides_store: AtomicBool::new(false),
            store_directory: AtomicU32::new(0),
            full_noted: AtomicI64::new(0),
            snapshot_operation: crate::sync::Mutex::new(Rank::Snapshot, ()),
        })
    }

    fn start_committer(&self, options: &MountOptions) -> Result<()> {
        let Some(interval) = options.commit_interval else {
            return Ok(());
        };
        let started = Committer::start(Arc::clone(&self.volume), interval);
        *self.committer.lock() = Some(started.map_err(|source| Error::Device {
            op: IoOp::Flush,
            source,
        })?);
        Ok(())
    }
}

/// What is known of an image once its journal is replayed.
struct Image {
    superblock: RawSuperblock,
    geometry: Geometry,
    /// Why it takes no changes, if it takes none.
    read_only: Option<ReadOnlyReason>,
    log: Option<LogOptions>,
    recovery: RecoveryStatus,
    /// The log had something to replay.
    is_replayed: bool,
    /// Whether the superblock calls it clean.
    was_clean: bool,
    /// Whether it was closed, so that nothing in it can be torn.
    was_closed: bool,
}

impl Image {
    /// Looks whether it can be opened, and replays its journal if it was not closed.
    fn recover(device: &Arc<dyn BlockDevice>, options: &MountOptions) -> Result<Self> {
        let mut superblock = read_superblock(&**device)?;
        let access = features::check(&superblock)?;
        let geometry = check_geometry(&superblock, &**device)?;
        let read_only = read_only_reason(options, access, &geometry, &**device);
        let mut recovery = RecoveryStatus::default();
        let log = open_log(device, &geometry, read_only, &mut recovery)?;
        if log.is_some() {
            // The replayed journal may have held the superblock.
            superblock = read_superblock(&**device)?;
        }
        let is_replayed = log.is_some() && geometry.incompat.contains(Incompat::RECOVER);
        let geometry = check_geometry(&superblock, &**device)?;
        let was_clean = superblock.s_state.get() & STATE_VALID != 0;
        let was_closed = match geometry.compat.contains(Compat::HAS_JOURNAL) {
            true => !superblock.incompat().contains(Incompat::RECOVER),
            false => was_clean,
        };
        Ok(Self {
            superblock,
            geometry,
            read_only,
            log,
            recovery,
            is_replayed,
            was_clean,
            was_closed,
        })
    }
}

fn check_geometry(superblock: &RawSuperblock, device: &dyn BlockDevice) -> Result<Geometry> {
    let geometry = Geometry::try_from(superblock)?;
    let wanted = geometry.offset_of(BlockNr(geometry.blocks_count()));
    if wanted > device.size_bytes() {
        return Err(Corrupt::Truncated {
            wanted,
            found: device.size_bytes(),
        }
        .into());
    }
    Ok(geometry)
}

fn read_only_reason(
    options: &MountOptions,
    access: Access,
    geometry: &Geometry,
    device: &dyn BlockDevice,
) -> Option<ReadOnlyReason> {
    if options.read_only || device.is_read_only() {
        return Some(ReadOnlyReason::Requested);
    }
    let writes_new_inodes = geometry.incompat.contains(Incompat::EXTENTS);
    (access == Access::ReadOnly || !writes_new_inodes).then_some(ReadOnlyReason::Feature)
}

/// Finds the journal and replays it if the image was not closed.
fn open_log(
    device: &Arc<dyn BlockDevice>,
    geometry: &Geometry,
    read_only: Option<ReadOnlyReason>,
    recovery: &mut RecoveryStatus,
) -> Result<Option<LogOptions>> {
    let is_dirty = geometry.incompat.contains(Incompat::RECOVER);
    let Some(nr) = geometry
        .journal_inode
        .filter(|_| geometry.compat.contains(Compat::HAS_JOURNAL))
    else {
        return Ok(None);
    };
    if !is_dirty && read_only.is_some() {
        return Ok(None);
    }
    if is_dirty && device.is_read_only() {
        return Err(Error::NeedsRecovery);
    }
    let area = journal_area(device, geometry, nr)?;
    if area.len() < JOURNAL_BLOCKS_MIN {
        let (block, len) = (JOURNAL_BLOCKS_MIN, area.len());
        return Err(Corrupt::JournalBlockOutside { block, len }.into());
    }
    let device_ref = &**device;
    // The superblock may be older than the log: one that has grown has blocks behind the end it knows.
    let size = geometry.block_size;
    let count = device.size_bytes() >> geometry.block_size_bits;
    // A log that the superblock does not speak of is a leftover: e2fsck or an editor has dealt with
    // it, and the volume may have changed since.
    let recovered = if is_dirty {
        recover(device_ref, area, size, count)?
    } else {
        attach(device_ref, area, size, count)?
    };
    let mut log = recovered.log;
    if is_dirty {
        recovery.transactions = recovered.transactions;
        recovery.blocks = recovered.blocks;
        log::info!(
            "recovered the journal: {}, {}",
            Count(recovered.transactions.into(), "transaction"),
            Count(recovered.blocks, "block")
        );
        if log.superblock.s_errno.get() != 0 {
            log::warn!("the journal was aborted: the volume wants e2fsck");
            mark_error(&**device)?;
            log.superblock.s_errno.set(0);
        }
        reset_log(&**device, &mut log, geometry.block_size)?;
    }
    if read_only.is_none() && !is_dirty {
        reset_log(&**device, &mut log, geometry.block_size)?;
    }
    Ok(Some(log))
}

/// Where the journal inode's blocks lie. Read without the layers that are built on the journal.
fn journal_area(
    device: &Arc<dyn BlockDevice>,
    geometry: &Geometry,
    nr: InodeNr,
) -> Result<LogArea> {
    let cache = BufferCache::new(
        Arc::clone(device),
        geometry.block_size,
        geometry.blocks_count(),
        0,
    );
    let (group, index) = geometry.inode_location(nr)?;
    let (desc_block, desc_offset) = geometry.desc_location(group);
    let desc = {
        let block = cache.get(desc_block)?;
        let end = desc_offset + geometry.desc_size as usize;
        crate::layout::RawGroupDesc::from_slice(&block.read()[desc_offset..end])
    };
    let (block, offset) = geometry.inode_table_offset(index);
    let first = desc.inode_table();
    // Nothing has looked at the descriptor yet: it may name any block.
    if !geometry.contains_run(first, geometry.inode_table_blocks.into()) {
        return Err(Corrupt::BlockOutside { block: first }.into());
    }
    let table = cache.get(first.plus(u64::from(block)))?;
    let bytes: Vec<u8> = table.read()[offset..offset + geometry.inode_size as usize].to_vec();
    let inode = InodeBytes::new(bytes);
    if !inode.verify_checksum(geometry, nr) {
        return Err(Corrupt::InodeChecksum { inode: nr }.into());
    }
    Ok(LogArea::new(data_runs(&cache, geometry, nr, &inode)?))
}

/// Where the orphan file's blocks lie.
fn orphan_file_runs(volume: &Volume) -> Result<Vec<Run>> {
    match volume.geometry.orphan_file_inode {
        Some(nr) => own_file_runs(volume, nr),
        None => Ok(Vec::new()),
    }
}

/// Where the blocks of one of the volume's own files lie, which no client uses.
pub(crate) fn own_file_runs(volume: &Volume, nr: InodeNr) -> Result<Vec<Run>> {
    let (block, offset) = volume.allocator.inode_block(nr)?;
    let table = volume.cache.get(block)?;
    let end = offset + volume.geometry.inode_size as usize;
    let inode = InodeBytes::new(table.read()[offset..end].to_vec());
    data_runs(&volume.cache, &volume.geometry, nr, &inode)
}

/// Where the blocks of one of the volume's own files lie.
pub(super) fn data_runs(
    cache: &BufferCache,
    geometry: &Geometry,
    nr: InodeNr,
    inode: &InodeBytes<Vec<u8>>,
) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut visit = |extent: crate::extent::Extent| {
        runs.push(Run {
            start: extent.physical,
            len: extent.len,
        });
        Ok(ControlFlow::Continue(()))
    };
    let root = inode.block_area();
    if inode.flags().contains(InodeFlags::EXTENTS) {
        ExtentTree::new(cache, geometry, nr, inode.generation()).for_each(
            root,
            LogicalBlock(0),
            &mut visit,
        )?;
    } else {
        IndirectMap::new(cache, geometry, nr).for_each(root, LogicalBlock(0), &mut visit)?;
    }
    Ok(runs)
}

fn assemble(
    device: Arc<dyn BlockDevice>,
    geometry: Geometry,
    log: Option<LogOptions>,
    read_only: Option<ReadOnlyReason>,
    options: &MountOptions,
) -> Result<Volume> {
    let cache = Arc::new(BufferCache::new(
        Arc::clone(&device),
        geometry.block_size,
        geometry.blocks_count(),
        options.cache_bytes,
    ));
    let allocator = Arc::new(Allocator::open(Arc::clone(&cache), geometry.clone())?);
    let journal = Journal::open(Arc::clone(&device), Arc::clone(&cache), log);
    journal.add_observer(allocator.observer());
    let snapshots = Snapshots::new(Arc::clone(&device), geometry.clone());
    if read_only.is_none() {
        allocator.set_keeper(Arc::clone(&snapshots) as _);
        journal.set_pre_image_sink(Some(Arc::clone(&snapshots) as _));
    }
    let superblock = cache.get(BlockNr(SUPERBLOCK_OFFSET / u64::from(geometry.block_size)))?;
    let now = options.clock.now();
    let seed = (now.seconds as u32).wrapping_mul(1_000_003) ^ now.nanoseconds;
    Ok(Volume::new(VolumeParts {
        geometry,
        device,
        cache,
        superblock,
        journal,
        allocator,
        snapshots,
        clock: Arc::clone(&options.clock),
        read_only,
        generation_seed: options.generation_seed.unwrap_or(seed),
    }))
}
