//! `Nodes`: the inodes that the session's kernel knows, with its lookup counts.
//!
//! Each count is a reference of the inode, so that an open file outlives its names. Sharded: an
//! operation takes one short lock to turn a node id into an inode.

use super::errno::errno;
use crate::fuse::Result;
use kfs::{Filesystem, Inode, InodeNr};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::Arc;

const SHARDS: usize = 64;

/// The id that FUSE gives to the root.
pub(super) const ROOT_ID: u64 = 1;

/// Generations of successive epochs are this far apart on the wire: no id of one is a likely id of another.
const EPOCH_STEP: u32 = 0x9e37_79b9;

/// The known inodes.
pub(super) struct Nodes {
    filesystem: Arc<Filesystem>,
    /// What is added to generations to make node ids.
    salt: u32,
    root: Arc<Inode>,
    shards: Vec<Mutex<HashMap<u64, Node>>>,
}

struct Node {
    inode: Arc<Inode>,
    lookups: u64,
}

impl Nodes {
    pub(super) fn new(filesystem: Arc<Filesystem>, epoch: u32) -> kfs::Result<Self> {
        let root = filesystem.root()?;
        let shards = (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect();
        Ok(Self {
            filesystem,
            salt: epoch.wrapping_mul(EPOCH_STEP),
            root,
            shards,
        })
    }

    /// The node id of an inode: its generation and number.
    fn id_of(&self, inode: &Inode) -> u64 {
        if inode.nr() == InodeNr::ROOT {
            return ROOT_ID;
        }
        let generation = inode.generation().wrapping_add(self.salt);
        u64::from(generation) << 32 | u64::from(inode.nr().0)
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Node>> {
        &self.shards[id as usize % SHARDS]
    }

    /// The inode of a node id. One that was not looked up is found as after a restart.
    pub(super) fn get(&self, id: u64) -> Result<Arc<Inode>> {
        if id == ROOT_ID {
            return Ok(Arc::clone(&self.root));
        }
        let known = self
            .shard(id)
            .lock()
            .get(&id)
            .map(|node| Arc::clone(&node.inode));
        let inode = match known {
            Some(inode) => inode,
            None => {
                let generation = ((id >> 32) as u32).wrapping_sub(self.salt);
                let nr = InodeNr(id as u32);
                self.filesystem
                    .inode(nr, generation)
                    .map_err(errno(&self.filesystem))?
            }
        };
        if inode.is_deleted() {
            Err(Errno::STALE)
        } else {
            Ok(inode)
        }
    }

    /// Counts a lookup and gives the node id.
    pub(super) fn remember(&self, inode: &Arc<Inode>) -> u64 {
        let id = self.id_of(inode);
        if id != ROOT_ID {
            self.filesystem.acquire(inode, 1);
            let mut shard = self.shard(id).lock();
            let new = || Node {
                inode: Arc::clone(inode),
                lookups: 0,
            };
            shard.entry(id).or_insert_with(new).lookups += 1;
        }
        id
    }

    /// Takes lookups back.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let (inode, count) = {
            let mut shard = self.shard(id).lock();
            let Some(node) = shard.get_mut(&id) else {
                return;
            };
            let count = count.min(node.lookups);
            node.lookups -= count;
            let inode = Arc::clone(&node.inode);
            if node.lookups == 0 {
                shard.remove(&id);
            }
            (inode, count)
        };
        self.release(&inode, count);
    }

    /// Takes all lookups back.
    pub(super) fn clear(&self) {
        for shard in &self.shards {
            let nodes = std::mem::take(&mut *shard.lock());
            for node in nodes.into_values() {
                self.release(&node.inode, node.lookups);
            }
        }
    }

    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    /// The last reference of a nameless file takes it along, which may fail; nobody waits to hear.
    fn release(&self, inode: &Arc<Inode>, count: u64) {
        if let Err(error) = self.filesystem.release(inode, count) {
            log::error!("deleting inode {}: {error}", inode.nr());
        }
    }
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nodes({})", self.count())
    }
}
