//! [`Tree`]: the volume or one of its snapshots, and [`Node`], an inode with the tree that it is in.

use super::convert;
use super::errno::errno;
use crate::fuse::Result;
use crate::fuse::abi::{Attr, Statx};
use kfs::{Error, Filesystem, Inode, InodeNr};
use rustix::io::Errno;
use std::ops::Deref;
use std::sync::Arc;

/// A tree of inodes.
pub(super) struct Tree {
    pub(super) filesystem: Arc<Filesystem>,
    /// The snapshot's id, `None` for the volume as it is.
    pub(super) snapshot: Option<u32>,
}

impl Tree {
    /// The volume as it is.
    pub(super) fn live(filesystem: Arc<Filesystem>) -> Self {
        Self {
            filesystem,
            snapshot: None,
        }
    }

    /// What stat(2) calls the inode: unique among all trees, since they share a device number.
    fn ino_of(&self, nr: InodeNr) -> u64 {
        u64::from(self.snapshot.unwrap_or(0)) << 32 | u64::from(nr.0)
    }
}

/// An inode, and where it is.
#[derive(Clone)]
pub(super) struct Node {
    pub(super) tree: Arc<Tree>,
    pub(super) inode: Arc<Inode>,
}

impl Deref for Node {
    type Target = Arc<Inode>;

    fn deref(&self) -> &Arc<Inode> {
        &self.inode
    }
}

impl Node {
    pub(super) fn fs(&self) -> &Filesystem {
        &self.tree.filesystem
    }

    /// Errors of its file system as errno.
    pub(super) fn errno(&self) -> impl Fn(Error) -> Errno + '_ {
        errno(self.fs())
    }

    /// Another inode of the same tree.
    pub(super) fn sibling(&self, inode: Arc<Inode>) -> Self {
        Self {
            tree: Arc::clone(&self.tree),
            inode,
        }
    }

    /// The file system that both are in; EXDEV where there is none.
    pub(super) fn common_fs(&self, other: &Self) -> Result<&Filesystem> {
        if Arc::ptr_eq(&self.tree, &other.tree) {
            Ok(self.fs())
        } else {
            Err(Errno::XDEV)
        }
    }

    /// What stat(2) calls another inode of the same tree.
    pub(super) fn ino_of(&self, nr: InodeNr) -> u64 {
        self.tree.ino_of(nr)
    }

    pub(super) fn attr(&self) -> Attr {
        let attr = convert::attr(&self.fs().attr(&self.inode), self.block_size());
        Attr {
            ino: self.ino_of(self.nr()),
            ..attr
        }
    }

    pub(super) fn statx(&self) -> Statx {
        let statx = convert::statx(&self.fs().attr(&self.inode), self.block_size());
        Statx {
            ino: self.ino_of(self.nr()),
            ..statx
        }
    }

    fn block_size(&self) -> u32 {
        self.fs().volume().geometry.block_size
    }
}
