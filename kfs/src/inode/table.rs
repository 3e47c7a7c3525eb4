//! `InodeTable`: inodes in memory by number.
//!
//! Holds them weakly: whoever works with an inode, or serves a client that has looked it up, keeps
//! it alive. Bytes of inodes that nobody holds are still in the buffer cache.

use super::{Inode, InodeBytesCheck, InodePlace};
use crate::error::{Error, Result};
use crate::ids::InodeNr;
use crate::sync::{Mutex, Rank};
use crate::volume::Volume;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

const SHARDS: usize = 32;

/// Entries from which on a shard is swept of dead ones; doubled when the living are many.
const SWEEP_MIN: usize = 256;

/// The inodes in memory.
pub(crate) struct InodeTable {
    shards: Vec<Mutex<Shard>>,
}

struct Shard {
    inodes: HashMap<InodeNr, Weak<Inode>>,
    sweep_at: usize,
}

impl Default for InodeTable {
    fn default() -> Self {
        let shard = || {
            let shard = Shard {
                inodes: HashMap::new(),
                sweep_at: SWEEP_MIN,
            };
            Mutex::new(Rank::InodeTable, shard)
        };
        Self {
            shards: (0..SHARDS).map(|_| shard()).collect(),
        }
    }
}

impl InodeTable {
    /// The inode, read from disk unless it is in memory.
    ///
    /// # Errors
    /// `Stale` for an inode that is free or deleted, `Corrupt`, `Io`.
    pub(crate) fn get(&self, volume: &Volume, nr: InodeNr) -> Result<Arc<Inode>> {
        let inode = self.find_or_load(volume, nr, InodeBytesCheck::InUse)?;
        if inode.is_deleted() {
            return Err(Error::Stale);
        }
        Ok(inode)
    }

    /// An inode of the orphan list, which may have no names.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn get_orphan(&self, volume: &Volume, nr: InodeNr) -> Result<Arc<Inode>> {
        self.find_or_load(volume, nr, InodeBytesCheck::Orphan)
    }

    /// Enters a new inode whose number nobody else can know yet.
    pub(super) fn insert(&self, inode: &Arc<Inode>) {
        let mut shard = self.shard(inode.nr()).lock();
        shard.inodes.insert(inode.nr(), Arc::downgrade(inode));
        shard.sweep();
    }

    /// Everything in memory now.
    #[must_use]
    pub(crate) fn in_memory(&self) -> Vec<Arc<Inode>> {
        let living = |shard: &Mutex<Shard>| {
            shard
                .lock()
                .inodes
                .values()
                .filter_map(Weak::upgrade)
                .collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(living).collect()
    }

    /// Gives up all blocks reserved ahead, when none are left otherwise.
    pub(crate) fn drop_preallocations(&self) {
        for inode in self.in_memory() {
            // An inode whose lock is taken is allocating, perhaps on behalf of the caller.
            if let Some(mut allocation) = inode.allocation.try_lock() {
                allocation.reservation = None;
            }
        }
    }

    fn find_or_load(
        &self,
        volume: &Volume,
        nr: InodeNr,
        check: InodeBytesCheck,
    ) -> Result<Arc<Inode>> {
        if let Some(inode) = self.shard(nr).lock().find(nr) {
            return Ok(inode);
        }
        let place = InodePlace::find(volume, nr)?;
        let mut shard = self.shard(nr).lock();
        if let Some(inode) = shard.find(nr) {
            return Ok(inode);
        }
        // The bytes are copied under the lock: another thread may have loaded the inode, changed it
        // and let it go since the first look.
        let inode = Arc::new(Inode::load(volume, nr, place, check)?);
        shard.inodes.insert(nr, Arc::downgrade(&inode));
        shard.sweep();
        Ok(inode)
    }

    fn shard(&self, nr: InodeNr) -> &Mutex<Shard> {
        &self.shards[nr.0 as usize % SHARDS]
    }
}

impl Shard {
    fn find(&self, nr: InodeNr) -> Option<Arc<Inode>> {
        self.inodes.get(&nr).and_then(Weak::upgrade)
    }

    fn sweep(&mut self) {
        if self.inodes.len() >= self.sweep_at {
            self.inodes.retain(|_, inode| inode.strong_count() > 0);
            self.sweep_at = (self.inodes.len() * 2).max(SWEEP_MIN);
        }
    }
}
