//! Node ids: each stands for a host inode, held by an O_PATH descriptor while the guest knows it.
//!
//! Because the descriptor keeps the inode alive, its numbers cannot be given to another file as
//! long as the node is in the table; so they identify it. Ids are never used twice in a session.

use crate::fuse::Result;
use crate::fuse::abi::ROOT_ID;
use parking_lot::RwLock;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What tells host inodes apart. The same file seen through two mounts is two nodes, as it may be
/// read-only in one and writable in the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    device: (u32, u32),
    mount: u64,
    ino: u64,
}

impl Identity {
    fn new(stat: &Statx) -> Self {
        Self {
            device: (stat.stx_dev_major, stat.stx_dev_minor),
            mount: stat.stx_mnt_id,
            ino: stat.stx_ino,
        }
    }

    /// Whether both lie in one mount.
    pub(super) fn same_mount(&self, other: &Self) -> bool {
        self.device == other.device && self.mount == other.mount
    }

    /// The device it lies on.
    pub(super) fn device(&self) -> (u32, u32) {
        self.device
    }
}

/// A host inode that the guest knows.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) fd: OwnedFd,
    pub(super) identity: Identity,
    pub(super) kind: FileType,
    lookups: AtomicU64,
}

/// Attributes of an O_PATH descriptor, or of any other.
pub(super) fn stat(fd: &OwnedFd) -> Result<Statx> {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID;
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    rustix::fs::statx(fd, c"", flags, mask)
}

#[derive(Debug, Default)]
struct Tables {
    by_id: HashMap<u64, Arc<Node>>,
    by_identity: HashMap<Identity, u64>,
}

/// All nodes of a session.
#[derive(Debug)]
pub(super) struct Nodes {
    tables: RwLock<Tables>,
    next_id: AtomicU64,
}

impl Nodes {
    /// A table with the root only, which stays for ever.
    pub(super) fn new(root: OwnedFd) -> Result<Self> {
        let nodes = Self {
            tables: RwLock::new(Tables::default()),
            next_id: AtomicU64::new(ROOT_ID),
        };
        let stat = stat(&root)?;
        let (id, _) = nodes.remember(root, &stat)?;
        assert_eq!(id, ROOT_ID, "the root is the first node");
        Ok(nodes)
    }

    /// The node with this id, or ESTALE.
    pub(super) fn get(&self, id: u64) -> Result<Arc<Node>> {
        self.tables
            .read()
            .by_id
            .get(&id)
            .cloned()
            .ok_or(Errno::STALE)
    }

    /// Counts a lookup of the inode behind `fd` and returns its id; `stat` are its attributes.
    pub(super) fn remember(&self, fd: OwnedFd, stat: &Statx) -> Result<(u64, Arc<Node>)> {
        let identity = Identity::new(stat);
        let find = |tables: &Tables| {
            let id = *tables.by_identity.get(&identity)?;
            let node = Arc::clone(
                tables
                    .by_id
                    .get(&id)
                    .expect("both tables hold the same nodes"),
            );
            node.lookups.fetch_add(1, Ordering::Relaxed);
            Some((id, node))
        };
        if let Some(found) = find(&self.tables.read()) {
            return Ok(found);
        }
        let mut tables = self.tables.write();
        if let Some(found) = find(&tables) {
            return Ok(found);
        }
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let kind = FileType::from_raw_mode(u32::from(stat.stx_mode));
        let node = Arc::new(Node {
            fd,
            identity,
            kind,
            lookups: AtomicU64::new(1),
        });
        tables.by_identity.insert(identity, id);
        tables.by_id.insert(id, Arc::clone(&node));
        Ok((id, node))
    }

    /// Takes back lookups; the last one drops the node.
    pub(super) fn forget(&self, id: u64, count: u64) {
        if id == ROOT_ID {
            return;
        }
        // Lookups are added under the read lock, so none can slip in here.
        let mut tables = self.tables.write();
        let Some(node) = tables.by_id.get(&id) else {
            return;
        };
        let left = node.lookups.load(Ordering::Relaxed).saturating_sub(count);
        node.lookups.store(left, Ordering::Relaxed);
        if left == 0 {
            let identity = node.identity;
            let node = tables.by_id.remove(&id);
            tables.by_identity.remove(&identity);
            drop(tables);
            // Closing the descriptor may end a deleted file, which takes its time.
            drop(node);
        }
    }

    /// Drops all but the root.
    pub(super) fn clear(&self) {
        let mut tables = self.tables.write();
        let Tables { by_id, by_identity } = &mut *tables;
        by_id.retain(|&id, _| id == ROOT_ID);
        by_identity.retain(|_, id| *id == ROOT_ID);
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.tables.read().by_id.len()
    }

    /// One node for each device that the guest has reached.
    pub(super) fn one_per_device(&self) -> Vec<Arc<Node>> {
        let tables = self.tables.read();
        let mut found: HashMap<(u32, u32), &Arc<Node>> = HashMap::new();
        for node in tables.by_id.values() {
            if matches!(node.kind, FileType::Directory | FileType::RegularFile) {
                found.entry(node.identity.device()).or_insert(node);
            }
        }
        found.into_values().cloned().collect()
    }
}
