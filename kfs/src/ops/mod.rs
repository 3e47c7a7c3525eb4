//! What a server of the volume calls, a file for each family of operations.
//!
//! All operations are methods of [`Filesystem`] and take inodes by reference: who serves a client
//! keeps its inodes alive, and counts its references with [`Filesystem::acquire`] and
//! [`Filesystem::release`] so that an open file survives the loss of its names.
//!
//! Permissions are the caller's business (the kernel of the mount or guest checks them); flags of
//! inodes, such as immutable, are checked here, as kernels do not know them.
//!
//! Locks: rename, then directories (ancestors before descendants), then other inodes by number, then
//! a handle. `crate::sync` has the whole order.

mod acl;
mod attr;
mod create;
mod data;
mod delete;
mod link;
mod list;
mod lookup;
mod remove;
mod rename;
mod xattr;

pub use create::NewNode;
pub use rename::RenameMode;

use crate::dir::Directory;
use crate::error::{Error, Result};
use crate::fs::{Filesystem, InodeBlocks};
use crate::inode::Inode;
use crate::layout::FileType;
use crate::layout::inode::{
    InodeFlags, S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK,
};

/// Names that one inode may have, as in Linux.
pub(crate) const LINKS_MAX: u16 = 65_000;

impl Filesystem {
    /// The entries of a directory. Who calls holds its `io` lock.
    pub(crate) fn directory<'a>(&'a self, inode: &'a Inode) -> Directory<InodeBlocks<'a>> {
        Directory::new(InodeBlocks::new(&self.volume, inode))
    }

    /// Fails unless entries can be added to or taken from the directory.
    fn check_entries_changeable(&self, directory: &Inode, removes: bool) -> Result<()> {
        if let Some(reason) = self.volume.read_only() {
            return Err(Error::ReadOnly { reason });
        }
        let state = directory.state();
        if state.fields().mode() & S_IFMT != S_IFDIR {
            return Err(Error::NotADirectory);
        }
        if state.fields().links_count() == 0 || directory.is_deleted() {
            return Err(Error::NotFound);
        }
        let flags = state.fields().flags();
        let forbids = if removes {
            InodeFlags::IMMUTABLE | InodeFlags::APPEND
        } else {
            InodeFlags::IMMUTABLE
        };
        if flags.intersects(forbids) {
            return Err(Error::NotPermitted);
        }
        Ok(())
    }

    /// Notes a change of entries in the directory's times, and of its subdirectories in its links.
    fn touch_directory(
        &self,
        directory: &Inode,
        handle: &mut crate::storage::Handle<'_>,
        subdirectories: i32,
    ) {
        let now = self.volume.now();
        directory.update(&self.volume, handle, |state, _| {
            let fields = state.fields_mut();
            fields.set_mtime(now);
            fields.set_ctime(now);
            let links = fields.links_count();
            fields.set_links_count(links_with(links, subdirectories));
        });
    }
}

/// Links of a directory after its count of subdirectories has changed. Beyond the largest count the
/// field is 1 and stays so (feature dir_nlink).
fn links_with(links: u16, change: i32) -> u16 {
    if links == 1 {
        return 1;
    }
    let links = i32::from(links) + change;
    if links > i32::from(LINKS_MAX) {
        1
    } else {
        u16::try_from(links.max(2)).unwrap_or(1)
    }
}

/// Type of a directory entry for an inode of this mode.
fn file_type(mode: u16) -> FileType {
    match mode & S_IFMT {
        S_IFREG => FileType::Regular,
        S_IFDIR => FileType::Directory,
        S_IFCHR => FileType::CharDevice,
        S_IFBLK => FileType::BlockDevice,
        S_IFIFO => FileType::Fifo,
        S_IFSOCK => FileType::Socket,
        S_IFLNK => FileType::Symlink,
        _ => FileType::Unknown,
    }
}
