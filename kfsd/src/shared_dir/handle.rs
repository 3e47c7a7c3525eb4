//! File handles: each stands for an open descriptor of one node.

use crate::fuse::Result;
use parking_lot::{Mutex, RwLock};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// An open file or directory.
#[derive(Debug)]
pub(super) struct Handle {
    /// The node it was opened from.
    pub(super) node: u64,
    pub(super) file: OwnedFd,
    /// Whether writes go to the end. The descriptor itself is not in append mode: pages that the
    /// guest's kernel writes back have a place already.
    pub(super) append: bool,
    /// Held while the position of a directory is moved and used.
    pub(super) position: Mutex<()>,
}

/// All handles of a session.
#[derive(Debug)]
pub(super) struct Handles {
    table: RwLock<HashMap<u64, Arc<Handle>>>,
    next: AtomicU64,
}

impl Handles {
    pub(super) fn new() -> Self {
        // 0 is what a kernel sends that has no handle.
        Self {
            table: RwLock::default(),
            next: AtomicU64::new(1),
        }
    }

    pub(super) fn insert(&self, node: u64, file: OwnedFd, append: bool) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        let handle = Handle {
            node,
            file,
            append,
            position: Mutex::new(()),
        };
        self.table.write().insert(fh, Arc::new(handle));
        fh
    }

    /// The handle, if it belongs to the node; else EBADF.
    pub(super) fn get(&self, fh: u64, node: u64) -> Result<Arc<Handle>> {
        let handle = self.table.read().get(&fh).cloned().ok_or(Errno::BADF)?;
        if handle.node == node {
            Ok(handle)
        } else {
            Err(Errno::BADF)
        }
    }

    pub(super) fn remove(&self, fh: u64, node: u64) -> Result<()> {
        let mut table = self.table.write();
        match table.get(&fh) {
            Some(handle) if handle.node == node => {
                let handle = table.remove(&fh);
                drop(table);
                drop(handle);
                Ok(())
            }
            _ => Err(Errno::BADF),
        }
    }

    pub(super) fn clear(&self) {
        self.table.write().clear();
    }

    pub(super) fn count(&self) -> usize {
        self.table.read().len()
    }
}
