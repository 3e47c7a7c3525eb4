//! Snapshots of the volume: what they see stays as it was, and the volume goes on.
//!
//! ```text
//!   file data      a write to a block that a snapshot sees goes to a new block        file/moved.rs
//!   freed blocks   those that a snapshot sees are not handed out                      allocator/kept.rs
//!   metadata       has its place: the old content is kept aside before it changes     here
//! ```
//!
//! - `format.rs`, `table.rs`, `store.rs`, `segments.rs`: the store on disk, a hidden file of the volume
//! - `seal.rs`: how a lost head in it is noticed
//! - `index.rs`: where the old content of which block is
//! - `sink.rs`: takes old content when a block joins a transaction, and writes it before the commit
//! - `kept.rs`: which blocks of a group may neither be overwritten nor handed out
//! - `growth.rs`: more blocks for the store
//! - `clean.rs`: room in it, by copying what is needed out of sparse segments
//! - `life.rs`: create, delete
//! - `view.rs`: a device that shows the volume as a snapshot sees it
//! - `usage.rs`: who holds how much
//!
//! Nothing here knows files or directories: `fs/snapshots.rs` makes and hides the store's file.
//!
//! Locks, all inner ones: `state` is taken with the journal's and with a group's lock held, and never
//! held over I/O. `readers` is held, shared, by who reads old content, from the look at where it is.

mod attach;
mod clean;
mod format;
mod growth;
mod index;
mod kept;
mod life;
mod seal;
mod segments;
mod sink;
mod store;
mod table;
mod usage;
mod view;

pub(crate) use growth::GrowthParts;
pub use table::{COMMENT_MAX, NAME_MAX, NameError, SnapshotRecord, check_comment, check_name};
pub use usage::SnapshotUsage;
pub use view::SnapshotDevice;

use crate::error::{Error, Result};
use crate::ids::{BlockNr, InodeNr, Tid};
use crate::layout::superblock::SUPERBLOCK_OFFSET;
use crate::layout::{Geometry, RawSuperblock};
use crate::sync::Rank;
use growth::StoreFile;
use index::Index;
use kfs_disk::BlockDevice;
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use store::{Location, Store};
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
    /// Held, shared, while what the index says is used.
    readers: RwLock<()>,
    /// The store's inode, 0 while there is none.
    inode: AtomicU32,
    /// The same, held by who makes it grow.
    file: crate::sync::Mutex<Option<StoreFile>>,
    /// Blocks of the store promised to open handles.
    reserved: Mutex<u64>,
    /// Blocks that the volume had when each snapshot was taken, as far as somebody has asked.
    sizes: Mutex<HashMap<u32, u64>>,
    /// The newest table is damaged.
    table_is_doubtful: AtomicBool,
    /// Old metadata is lost that snapshots with ids up to this one may need.
    lost_up_to: AtomicU32,
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
            readers: RwLock::default(),
            inode: AtomicU32::new(0),
            file: crate::sync::Mutex::new(Rank::StoreGrowth, None),
            reserved: Mutex::default(),
            sizes: Mutex::default(),
            table_is_doubtful: AtomicBool::new(false),
            lost_up_to: AtomicU32::new(0),
            damage_is_told: AtomicBool::new(false),
        })
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

    /// Nobody needs these blocks of the store any more. Waits for those who may be reading them.
    fn give_up(&self, store: &Store, locations: &[Location]) {
        drop(self.readers.write());
        store.release(locations);
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
        // Who asks may hold it already.
        let reading = self.readers.read_recursive();
        self.read_block_held(snapshot, block, &mut content)?;
        drop(reading);
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
        let _reading = self.readers.read();
        self.read_block_held(snapshot, block, content)
    }

    /// The same, with `readers` held.
    fn read_block_held(&self, snapshot: u32, block: BlockNr, content: &mut [u8]) -> Result<()> {
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
