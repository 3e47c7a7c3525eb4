//! `Nodes`: the inodes that the session's kernel knows, with its lookup counts.
//!
//! Each count is a reference of the inode, so that an open file outlives its names. Sharded: an
//! operation takes one short lock to turn a node id into an inode.
//!
//! The id of an inode of the volume follows from its number and generation. An inode in a snapshot has
//! both in common with others, so it is given an id when it is looked up; the lower half of that is 0, which is no
//! number of an inode.

use super::errno::errno;
use super::tree::{Node, Tree};
use crate::fuse::Result;
use kfs::{Inode, InodeNr};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::Arc;

const SHARDS: usize = 64;

/// The id that FUSE gives to the root.
pub(super) const ROOT_ID: u64 = 1;
/// That of the directory of snapshots.
pub(super) const SNAPSHOTS_ID: u64 = (u32::MAX as u64) << 32;

/// The known inodes.
pub(super) struct Nodes {
    live: Arc<Tree>,
    /// What is added to generations to make node ids.
    salt: u32,
    root: Arc<Inode>,
    shards: Vec<Mutex<HashMap<u64, Known>>>,
    /// Held before a shard's lock.
    given: Mutex<GivenIds>,
}

struct Known {
    node: Node,
    lookups: u64,
}

/// Ids of inodes in snapshots.
#[derive(Default)]
struct GivenIds {
    /// By snapshot, number and generation.
    ids: HashMap<(u32, InodeNr, u32), u64>,
    last: u32,
}

impl GivenIds {
    fn key(snapshot: u32, inode: &Inode) -> (u32, InodeNr, u32) {
        (snapshot, inode.nr(), inode.generation())
    }

    /// The id of an inode, a new one if need be.
    fn id_of(&mut self, snapshot: u32, inode: &Inode, is_used: impl Fn(u64) -> bool) -> u64 {
        let last = &mut self.last;
        let new = || loop {
            *last = last.wrapping_add(1);
            let id = u64::from(*last) << 32;
            if id != 0 && id != SNAPSHOTS_ID && !is_used(id) {
                return id;
            }
        };
        let key = Self::key(snapshot, inode);
        *self.ids.entry(key).or_insert_with(new)
    }
}

/// Whether an id was given to an inode in a snapshot.
fn is_given(id: u64) -> bool {
    id as u32 == 0
}

impl Nodes {
    pub(super) fn new(live: Arc<Tree>, salt: u32) -> kfs::Result<Self> {
        let root = live.filesystem.root()?;
        let shards = (0..SHARDS).map(|_| Mutex::new(HashMap::new())).collect();
        Ok(Self {
            live,
            salt,
            root,
            shards,
            given: Mutex::default(),
        })
    }

    /// The volume's root.
    pub(super) fn root(&self) -> Node {
        self.of_volume(Arc::clone(&self.root))
    }

    fn of_volume(&self, inode: Arc<Inode>) -> Node {
        let tree = Arc::clone(&self.live);
        Node { tree, inode }
    }

    /// The node id of an inode of the volume: its generation and number.
    fn id_of(&self, inode: &Inode) -> u64 {
        if inode.nr() == InodeNr::ROOT {
            return ROOT_ID;
        }
        let generation = inode.generation().wrapping_add(self.salt);
        u64::from(generation) << 32 | u64::from(inode.nr().0)
    }

    fn shard(&self, id: u64) -> &Mutex<HashMap<u64, Known>> {
        &self.shards[(id ^ id >> 32) as usize % SHARDS]
    }

    /// The node of an id. One of the volume that was not looked up is found as after a restart.
    pub(super) fn get(&self, id: u64) -> Result<Node> {
        // The root has one id, whatever generation a guest makes up.
        if id == ROOT_ID || id as u32 == InodeNr::ROOT.0 {
            return Ok(self.root());
        }
        let known = self
            .shard(id)
            .lock()
            .get(&id)
            .map(|known| known.node.clone());
        let node = match known {
            Some(node) => node,
            // Nothing is changed in the directory of snapshots.
            None if id == SNAPSHOTS_ID => return Err(Errno::ROFS),
            None if is_given(id) => return Err(Errno::STALE),
            None => {
                let generation = ((id >> 32) as u32).wrapping_sub(self.salt);
                let fs = &self.live.filesystem;
                let inode = fs.inode(InodeNr(id as u32), generation);
                self.of_volume(inode.map_err(errno(fs))?)
            }
        };
        if node.is_deleted() {
            Err(Errno::STALE)
        } else {
            Ok(node)
        }
    }

    /// Counts a lookup and gives the node id.
    pub(super) fn remember(&self, node: &Node) -> u64 {
        let Some(snapshot) = node.tree.snapshot else {
            let id = self.id_of(node);
            if id != ROOT_ID {
                self.count_lookup(id, node);
            }
            return id;
        };
        let mut given = self.given.lock();
        let is_used = |id| self.shard(id).lock().contains_key(&id);
        let id = given.id_of(snapshot, node, is_used);
        self.count_lookup(id, node);
        id
    }

    fn count_lookup(&self, id: u64, node: &Node) {
        node.fs().acquire(node, 1);
        let mut shard = self.shard(id).lock();
        let new = || Known {
            node: node.clone(),
            lookups: 0,
        };
        shard.entry(id).or_insert_with(new).lookups += 1;
    }

    /// Takes lookups back.
    pub(super) fn forget(&self, id: u64, count: u64) {
        let mut given = is_given(id).then(|| self.given.lock());
        let (node, count) = {
            let mut shard = self.shard(id).lock();
            let Some(known) = shard.get_mut(&id) else {
                return;
            };
            let count = count.min(known.lookups);
            known.lookups -= count;
            let node = known.node.clone();
            if known.lookups == 0 {
                shard.remove(&id);
                if let (Some(given), Some(snapshot)) = (&mut given, node.tree.snapshot) {
                    given.ids.remove(&GivenIds::key(snapshot, &node));
                }
            }
            (node, count)
        };
        drop(given);
        release(&node, count);
    }

    /// Takes all lookups back.
    pub(super) fn clear(&self) {
        self.given.lock().ids.clear();
        for shard in &self.shards {
            let known = std::mem::take(&mut *shard.lock());
            for known in known.into_values() {
                release(&known.node, known.lookups);
            }
        }
    }

    /// Takes the lookups of all nodes in some snapshots back.
    pub(super) fn revoke(&self, snapshots: &[u32]) {
        let mut given = self.given.lock();
        let gone = |snapshot: Option<u32>| snapshot.is_some_and(|id| snapshots.contains(&id));
        given.ids.retain(|(id, _, _), _| !snapshots.contains(id));
        for shard in &self.shards {
            let taken: Vec<Known> = shard
                .lock()
                .extract_if(|_, known| gone(known.node.tree.snapshot))
                .map(|(_, known)| known)
                .collect();
            for known in taken {
                release(&known.node, known.lookups);
            }
        }
    }

    pub(super) fn count(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// The last reference of a nameless file takes it along, which may fail; nobody waits to hear.
fn release(node: &Node, count: u64) {
    if let Err(error) = node.fs().release(node, count) {
        log::error!("deleting inode {}: {error}", node.nr());
    }
}

impl std::fmt::Debug for Nodes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Nodes({})", self.count())
    }
}
