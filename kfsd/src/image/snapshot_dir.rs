//! `.snapshots` in the root: a directory that is not in the volume, with the root of each snapshot in it.
//!
//! A snapshot is opened when somebody looks into it, once for all sessions, and closed when no kernel knows a
//! node of it any more. One that is to be deleted is taken away before that: its nodes fail with ESTALE.

use super::convert::STATX_BASIC;
use super::nodes::SNAPSHOTS_ID;
use super::session::Session;
use super::tree::{Node, Tree};
use crate::fuse::abi::{Attr, Statx, SxTime};
use crate::fuse::{DirSink, Entry, Result};
use kfs::{Filesystem, SnapshotRecord};
use parking_lot::Mutex;
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Weak};
use std::time::Duration;

/// Its name.
const NAME: &[u8] = b".snapshots";
/// What stat(2) calls it; an inode number that no volume has.
const INO: u64 = u32::MAX as u64;
/// Where the root's listing goes on after it: nowhere.
pub(super) const SNAPSHOT_DIR_COOKIE: u64 = i64::MAX as u64;
/// Offsets in its own listing: those of the dots, then the snapshots' ids above them.
const DOTS: u64 = 2;
/// So many views may have metadata in memory at a time, about.
const WARM_MAX: usize = 16;
const S_IFDIR: u32 = 0o040_000;
const DT_DIR: u8 = 4;

/// The snapshots that somebody looks into.
pub(crate) struct SnapshotTrees {
    filesystem: Arc<Filesystem>,
    /// The root's listing shows the directory.
    is_visible: bool,
    open: Mutex<HashMap<u32, Weak<Tree>>>,
    /// Those that are being deleted.
    closed: Mutex<HashSet<u32>>,
}

/// While it lives, nobody opens a snapshot.
pub(super) struct ClosedForGood<'t> {
    trees: &'t SnapshotTrees,
    snapshot: u32,
}

impl Drop for ClosedForGood<'_> {
    fn drop(&mut self) {
        self.trees.closed.lock().remove(&self.snapshot);
    }
}

impl SnapshotTrees {
    pub(super) fn new(filesystem: Arc<Filesystem>, is_visible: bool) -> Self {
        Self {
            filesystem,
            is_visible,
            open: Mutex::default(),
            closed: Mutex::default(),
        }
    }

    /// Lets nobody look into a snapshot any more, which is about to be deleted.
    pub(super) fn close_for_good(&self, snapshot: u32) -> ClosedForGood<'_> {
        self.closed.lock().insert(snapshot);
        ClosedForGood {
            trees: self,
            snapshot,
        }
    }

    /// The snapshot of a name, opened if need be.
    fn open(&self, record: &SnapshotRecord) -> kfs::Result<Arc<Tree>> {
        let mut open = self.open.lock();
        if self.closed.lock().contains(&record.id) {
            return Err(kfs::Error::NotFound);
        }
        if let Some(tree) = open.get(&record.id).and_then(Weak::upgrade) {
            return Ok(tree);
        }
        open.retain(|_, tree| tree.strong_count() > 0);
        if open.len() >= WARM_MAX {
            let others = open.values().filter_map(Weak::upgrade);
            others.for_each(|tree| tree.filesystem.drop_caches());
        }
        let tree = Arc::new(Tree {
            filesystem: self.filesystem.open_snapshot(&record.name)?,
            snapshot: Some(record.id),
        });
        // The name may be another one's by now.
        let records = self.filesystem.snapshots();
        if records.iter().all(|known| known.id != record.id) {
            return Err(kfs::Error::NotFound);
        }
        open.insert(record.id, Arc::downgrade(&tree));
        Ok(tree)
    }
}

impl Session {
    /// Whether this name in this directory is it.
    pub(super) fn is_snapshot_dir(&self, directory: &Node, name: &[u8]) -> bool {
        self.snapshots.is_some() && name == NAME && self.is_root(directory)
    }

    /// Whether a directory is the volume's root.
    fn is_root(&self, directory: &Node) -> bool {
        directory.tree.snapshot.is_none() && directory.nr() == kfs::InodeNr::ROOT
    }

    /// Its entry in the root; no lookup of it needs to be counted.
    pub(super) fn snapshots_entry(&self) -> Entry {
        Entry {
            nodeid: SNAPSHOTS_ID,
            generation: 0,
            attr: self.snapshots_attr(),
            // Nobody is told when a snapshot comes or goes.
            attr_timeout: Duration::ZERO,
            entry_timeout: Duration::ZERO,
        }
    }

    /// The same as statx(2) has it.
    pub(super) fn snapshots_statx(&self) -> Statx {
        let attr = self.snapshots_attr();
        let time = SxTime {
            tv_sec: attr.mtime.cast_signed(),
            ..SxTime::default()
        };
        Statx {
            mask: STATX_BASIC,
            blksize: attr.blksize,
            nlink: attr.nlink,
            mode: (S_IFDIR | 0o555) as u16,
            ino: attr.ino,
            atime: time,
            mtime: time,
            ctime: time,
            ..Statx::default()
        }
    }

    /// Its attributes: it is as old as the newest snapshot.
    pub(super) fn snapshots_attr(&self) -> Attr {
        let records = self.live.filesystem.snapshots();
        let time = records.last().map(|record| record.time).unwrap_or_default();
        let seconds = time.seconds.cast_unsigned();
        Attr {
            ino: INO,
            mode: S_IFDIR | 0o555,
            nlink: 2 + u32::try_from(records.len()).unwrap_or(u32::MAX - 2),
            atime: seconds,
            mtime: seconds,
            ctime: seconds,
            blksize: 4096,
            ..Attr::default()
        }
    }

    /// The root of a snapshot.
    pub(super) fn lookup_snapshot(&self, name: &[u8]) -> Result<Entry> {
        let trees = self.snapshots.as_ref().ok_or(Errno::STALE)?;
        let records = self.live.filesystem.snapshots();
        let record = records.iter().find(|record| record.name.as_bytes() == name);
        let Some(record) = record else {
            return Ok(Entry::negative(Duration::ZERO));
        };
        let tree = match trees.open(record) {
            Ok(tree) => tree,
            // Deleted just now.
            Err(kfs::Error::NotFound) => return Err(Errno::NOENT),
            Err(error) => return Err(super::errno::errno(&self.live.filesystem)(error)),
        };
        let root = tree.filesystem.root();
        let inode = root.map_err(super::errno::errno(&tree.filesystem))?;
        Ok(self.entry(&Node { tree, inode }))
    }

    /// Lists it.
    pub(super) fn list_snapshots(&self, offset: u64, entries: &mut DirSink<'_, '_>) {
        let mut add = |ino: u64, cookie: u64, name: &[u8]| {
            if cookie <= offset {
                return true;
            }
            let entry = Entry {
                attr: Attr {
                    ino,
                    ..Attr::default()
                },
                ..Entry::default()
            };
            if entries.wants_entries() {
                entries.add_entry(&entry, cookie, DT_DIR, name)
            } else {
                entries.add(ino, cookie, DT_DIR, name)
            }
        };
        let root = self.nodes.root();
        if !add(INO, 1, b".") || !add(root.ino_of(root.nr()), DOTS, b"..") {
            return;
        }
        for record in self.live.filesystem.snapshots() {
            // The root of a snapshot has the number of every root.
            let ino = u64::from(record.id) << 32 | u64::from(kfs::InodeNr::ROOT.0);
            if !add(ino, DOTS + u64::from(record.id), record.name.as_bytes()) {
                return;
            }
        }
    }

    /// Adds it to the end of the root's listing, where it is to be seen.
    pub(super) fn list_snapshot_dir(&self, directory: &Node, entries: &mut DirSink<'_, '_>) {
        let is_visible = self
            .snapshots
            .as_ref()
            .is_some_and(|trees| trees.is_visible);
        // A volume may have a directory of this name, which comes first.
        if !is_visible || !self.is_root(directory) || directory.fs().lookup(directory, NAME).is_ok()
        {
            return;
        }
        if entries.wants_entries() {
            let mut entry = Entry::default();
            entry.attr.ino = INO;
            entries.add_entry(&entry, SNAPSHOT_DIR_COOKIE, DT_DIR, NAME);
        } else {
            entries.add(INO, SNAPSHOT_DIR_COOKIE, DT_DIR, NAME);
        }
    }

    /// Takes snapshots away that are to be deleted.
    pub(super) fn revoke(&self, snapshots: &[u32]) {
        self.nodes.revoke(snapshots);
    }
}
