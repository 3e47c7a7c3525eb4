//! Snapshots of the volume: what they see stays as it was, and the volume goes on.
//!
//! ```text
//!   file data      a write to a block that a snapshot sees goes to a new block        file/moved.rs
//!   freed blocks   those that a snapshot sees are not handed out                      allocator/kept.rs
//!   metadata       has its place: the old content is kept aside before it changes     here
//! ```
//!
//! - `format.rs`, `table.rs`, `store.rs`: the store on disk, a hidden file of the volume
//! - `index.rs`: where the old content of which block is
//! - `sink.rs`: takes old content when a block joins a transaction, and writes it before the commit
//! - `kept.rs`: which blocks of a group may neither be overwritten nor handed out
//! - `growth.rs`: more blocks for the store
//! - `life.rs`: create, delete
//! - `view.rs`: a device that shows the volume as a snapshot sees it
//! - `usage.rs`: who holds how much
//!
//! Nothing here knows files or directories: `fs/snapshots.rs` makes and hides the store's file.
//!
//! Locks, all inner ones: `state` is taken with the journal's and with a group's lock held, and never
//! held over I/O.

mod format;
mod growth;
mod index;
mod kept;
mod life;
mod sink;
mod store;
mod table;
mod usage;
mod view;

pub(crate) use growth::GrowthParts;
pub use table::{COMMENT_MAX, NAME_MAX, SnapshotRecord};
pub use usage::SnapshotUsage;
pub use view::SnapshotDevice;

use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::{BlockNr, InodeNr, Run, Tid};
use crate::layout::superblock::SUPERBLOCK_OFFSET;
use crate::layout::{Geometry, RawSuperblock};
use crate::sync::Rank;
use format::Kind;
use growth::StoreFile;
use index::Index;
use kfs_disk::BlockDevice;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use store::{Found, Location, Store};
use table::Table;
use zerocopy::FromBytes;

/// The snapshots of a mounted volume.
pub struct Snapshots {
    device: Arc<dyn BlockDevice>,
    geometry: Geometry,
    /// Whether there are any: what costs time is done only then.
    active: AtomicBool,
    /// Grows with each snapshot taken.
    epoch: AtomicU64,
    state: RwLock<State>,
    store: RwLock<Option<Arc<Store>>>,
    /// The store's inode, 0 while there is none.
    inode: AtomicU32,
    /// The same, held by who makes it grow.
    file: crate::sync::Mutex<Option<StoreFile>>,
    /// Blocks of the store promised to open handles.
    reserved: Mutex<u64>,
    /// Blocks that the volume had when each snapshot was taken, as far as somebody has asked.
    sizes: Mutex<HashMap<u32, u64>>,
    /// Damage of old content is logged once.
    damage_is_told: AtomicBool,
}

#[derive(Default)]
struct State {
    table: Table,
    index: Index,
    /// Old content that the commit of its transaction will write to the store, by block.
    pending: BTreeMap<u64, (Tid, Arc<[u8]>)>,
    /// Metadata blocks made since the newest snapshot, which none sees.
    fresh: HashSet<u64>,
    /// Where the newest table is.
    table_blocks: Vec<Location>,
    /// Who looks at which snapshot.
    viewers: HashMap<u32, usize>,
    /// The snapshot that is being deleted. It keeps what it keeps until that is durable.
    deleting: Option<u32>,
}

/// Old content of a block.
enum OldContent {
    Stored(Location),
    /// Not written to the store yet.
    InMemory(Arc<[u8]>),
}

impl State {
    /// The old content through which a snapshot sees a block, `None` where that is in place.
    fn find(&self, snapshot: u32, block: u64) -> Option<OldContent> {
        if let Some(location) = self.index.find(snapshot, block) {
            return Some(OldContent::Stored(location));
        }
        let (_, content) = self.pending.get(&block)?;
        Some(OldContent::InMemory(Arc::clone(content)))
    }
}

impl Snapshots {
    /// Of a volume that has none, or whose store [`Snapshots::attach`] will name.
    #[must_use]
    pub fn new(device: Arc<dyn BlockDevice>, geometry: Geometry) -> Arc<Self> {
        Arc::new(Self {
            device,
            geometry,
            active: AtomicBool::new(false),
            epoch: AtomicU64::new(1),
            state: RwLock::default(),
            store: RwLock::default(),
            inode: AtomicU32::new(0),
            file: crate::sync::Mutex::new(Rank::StoreGrowth, None),
            reserved: Mutex::default(),
            sizes: Mutex::default(),
            damage_is_told: AtomicBool::new(false),
        })
    }

    /// Reads the store, a file whose content lies in `runs`. Returns whether there are snapshots.
    ///
    /// # Errors
    /// `Corrupt::SnapshotTable`, `Io`.
    pub fn attach(&self, inode: InodeNr, runs: &[Run]) -> Result<bool> {
        let opened = Store::open(Arc::clone(&self.device), self.geometry.block_size, runs)?;
        let Some((store, mut found)) = opened else {
            return Ok(false);
        };
        self.void_torn(&store, &mut found)?;
        let Some((table, locations)) = self.newest_table(&store, &found)? else {
            return Ok(false);
        };
        let mut state = State::default();
        for location in &locations {
            store.need(*location);
        }
        state.table_blocks = locations;
        for id in table.ids() {
            state.index.add(id);
        }
        for found in &found {
            enter(&store, &mut state.index, found);
        }
        let newest_used = found.iter().filter_map(|found| match found.batch.kind {
            Kind::PreImages { snapshot } => Some(snapshot),
            Kind::Table { .. } | Kind::Void => None,
        });
        state.table = table;
        state.table.next_id = state
            .table
            .next_id
            .max(newest_used.max().map_or(1, |id| id.saturating_add(1)));
        let is_active = !state.table.snapshots.is_empty();
        *self.state.write() = state;
        *self.store.write() = Some(Arc::new(store));
        self.set_file(Some(inode));
        self.set_active(is_active);
        Ok(is_active)
    }

    /// What a crash has torn is in the last commit of pre-images, or the last table. If any of it is,
    /// the transaction has not committed: all of it is voided, in the store, too, as nobody could tell
    /// later.
    fn void_torn(&self, store: &Store, found: &mut [Found]) -> Result<()> {
        let is_table = |found: &Found| matches!(found.batch.kind, Kind::Table { .. });
        for tables in [true, false] {
            let same_kind =
                |found: &&mut Found| is_table(found) == tables && found.batch.kind != Kind::Void;
            let commits = found.iter_mut().filter(same_kind).map(|f| f.batch.commit);
            let Some(last) = commits.max() else { continue };
            let last: Vec<&mut Found> = found
                .iter_mut()
                .filter(same_kind)
                .filter(|found| found.batch.commit == last)
                .collect();
            let mut is_whole = true;
            for found in &last {
                is_whole &= store.is_whole(found)?;
            }
            if is_whole {
                continue;
            }
            for found in last {
                if !self.device.is_read_only() {
                    store.void(found)?;
                }
                found.batch.kind = Kind::Void;
            }
        }
        Ok(())
    }

    /// The newest table with the blocks that hold it; `None` where no snapshot was ever taken.
    fn newest_table(
        &self,
        store: &Store,
        found: &[Found],
    ) -> Result<Option<(Table, Vec<Location>)>> {
        let tables = |found: &&Found| matches!(found.batch.kind, Kind::Table { .. });
        if let Some(newest) = found.iter().rev().find(tables) {
            return self.read_table(store, newest).map(Some);
        }
        // The first one's superblock comes before the first table.
        let pre_images = found.iter().filter(|found| found.batch.kind != Kind::Void);
        if pre_images.count() > 1 {
            let what = "it has no table";
            return Err(Corrupt::SnapshotStore { what }.into());
        }
        Ok(None)
    }

    fn read_table(&self, store: &Store, found: &Found) -> Result<(Table, Vec<Location>)> {
        let size = self.geometry.block_size as usize;
        let mut table = vec![0; found.batch.entries.len() * size];
        let mut locations = Vec::new();
        let blocks = (found.first..).zip(&found.batch.entries);
        for ((block, entry), content) in blocks.zip(table.chunks_exact_mut(size)) {
            let location = Location {
                block,
                checksum: entry.checksum,
            };
            store.read_content(location, content)?;
            locations.push(location);
        }
        let bytes = match found.batch.kind {
            Kind::Table { bytes } => bytes as usize,
            _ => 0,
        };
        let table = table.get(..bytes).and_then(Table::decode);
        let table = table.ok_or(Corrupt::SnapshotStore {
            what: "its table makes no sense",
        })?;
        Ok((table, locations))
    }

    fn set_active(&self, is_active: bool) {
        self.active.store(is_active, Ordering::Release);
    }

    /// Whether there are snapshots.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// All snapshots, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<SnapshotRecord> {
        self.state.read().table.snapshots.clone()
    }

    /// The snapshot of this name.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn find(&self, name: &str) -> Result<SnapshotRecord> {
        let state = self.state.read();
        state.table.find(name).cloned().ok_or(Error::NotFound)
    }

    /// The store's inode, while there is one.
    #[must_use]
    pub fn store_inode(&self) -> Option<InodeNr> {
        Some(InodeNr(self.inode.load(Ordering::Acquire))).filter(|nr| nr.0 != 0)
    }

    fn set_file(&self, inode: Option<InodeNr>) {
        *self.file.lock() = inode.map(|nr| StoreFile { nr });
        self.inode
            .store(inode.map_or(0, |nr| nr.0), Ordering::Release);
    }

    fn store(&self) -> Result<Arc<Store>> {
        self.store.read().clone().ok_or(Error::NotFound)
    }

    /// Fills `content` with a block's old content.
    fn read_old(&self, old: &OldContent, content: &mut [u8]) -> Result<()> {
        match old {
            OldContent::Stored(location) => self.store()?.read_content(*location, content),
            OldContent::InMemory(bytes) => {
                content.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// Blocks that the volume had when a snapshot was taken.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn blocks_count_at(&self, snapshot: u32) -> Result<u64> {
        if let Some(count) = self.sizes.lock().get(&snapshot) {
            return Ok(*count);
        }
        let size = self.geometry.block_size as usize;
        let mut content = vec![0; size];
        let block = BlockNr(SUPERBLOCK_OFFSET / size as u64);
        self.read_block(snapshot, block, &mut content)?;
        let bytes = &content[SUPERBLOCK_OFFSET as usize % size..];
        let (raw, _) = RawSuperblock::ref_from_prefix(bytes).expect("a block holds a superblock");
        let count = raw.blocks_count();
        self.sizes.lock().insert(snapshot, count);
        Ok(count)
    }

    /// Fills `content`, a block long, with what a snapshot sees of a block.
    ///
    /// # Errors
    /// `Corrupt::PreImageChecksum`, `Io`.
    pub(crate) fn read_block(
        &self,
        snapshot: u32,
        block: BlockNr,
        content: &mut [u8],
    ) -> Result<()> {
        let old = self.state.read().find(snapshot, block.0);
        if let Some(old) = old {
            return self.read_old(&old, content);
        }
        view::read_in_place(&*self.device, &self.geometry, block, content)?;
        // It may have been overwritten before it was read: then its old content was taken first.
        let old = self.state.read().find(snapshot, block.0);
        old.map_or(Ok(()), |old| self.read_old(&old, content))
    }
}

/// Enters the pre-images of a batch.
fn enter(store: &Store, index: &mut Index, found: &Found) {
    let Kind::PreImages { snapshot } = found.batch.kind else {
        return;
    };
    for (block, entry) in (found.first..).zip(&found.batch.entries) {
        let location = Location {
            block,
            checksum: entry.checksum,
        };
        if index.insert(snapshot, entry.block, location) {
            store.need(location);
        }
    }
}
