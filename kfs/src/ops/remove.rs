//! unlink(2) and rmdir(2).

use crate::corrupt::Corrupt;
use crate::dir::{CHANGE_CREDITS, FileName};
use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::inode::{CREDITS_INODE, CREDITS_ORPHAN, Inode};
use crate::storage::Handle;
use std::sync::Arc;

/// Removing a name, touching the directory, and making the inode an orphan.
const CREDITS_REMOVE: u32 = CHANGE_CREDITS + 2 * CREDITS_INODE + CREDITS_ORPHAN;

impl Filesystem {
    /// Removes a name of anything but a directory. The inode goes with its last name, or later when
    /// the last client lets it go.
    ///
    /// # Errors
    /// `NotFound`, `IsADirectory`, `NotPermitted`, `ReadOnly`, `Corrupt`, `Io`.
    pub fn unlink(&self, directory: &Inode, name: &[u8]) -> Result<()> {
        self.unlink_entry(directory, self.visible_name(directory, name)?)
    }

    /// As [`Filesystem::unlink`], for any name.
    pub(crate) fn unlink_entry(&self, directory: &Inode, name: FileName<'_>) -> Result<()> {
        let inode = {
            let _io = directory.io.write();
            self.check_entries_changeable(directory, true)?;
            let inode = self.find(directory, name)?.ok_or(Error::NotFound)?;
            if inode.is_directory() {
                return Err(Error::IsADirectory);
            }
            inode.check_changeable()?;
            self.volume.transact(CREDITS_REMOVE, |handle| {
                self.directory(directory).remove(handle, name)?;
                self.touch_directory(directory, handle, 0);
                self.drop_link(handle, &inode);
                Ok(())
            })?;
            inode
        };
        self.delete_if_nameless(&inode);
        Ok(())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `NotEmpty`, `NotPermitted`, `ReadOnly`, `Corrupt`, `Io`.
    pub fn rmdir(&self, directory: &Inode, name: &[u8]) -> Result<()> {
        self.rmdir_entry(directory, self.visible_name(directory, name)?)
    }

    /// As [`Filesystem::rmdir`], for any name.
    pub(crate) fn rmdir_entry(&self, directory: &Inode, name: FileName<'_>) -> Result<()> {
        if name.is_dot() {
            return Err(if name.as_bytes() == b"." {
                Error::Invalid
            } else {
                Error::NotEmpty
            });
        }
        let inode = {
            let _io = directory.io.write();
            self.check_entries_changeable(directory, true)?;
            let inode = self.find(directory, name)?.ok_or(Error::NotFound)?;
            if !inode.is_directory() {
                return Err(Error::NotADirectory);
            }
            inode.check_changeable()?;
            if inode.nr() == directory.nr() {
                return Err(Corrupt::DirectoryInItself { inode: inode.nr() }.into());
            }
            let _child = inode.lock_below()?;
            if !self.directory(&inode).is_empty()? {
                return Err(Error::NotEmpty);
            }
            self.volume.transact(CREDITS_REMOVE, |handle| {
                self.directory(directory).remove(handle, name)?;
                self.touch_directory(directory, handle, -1);
                self.drop_all_links(handle, &inode);
                Ok(())
            })?;
            drop(_child);
            inode
        };
        self.delete_if_nameless(&inode);
        Ok(())
    }

    /// Takes one name away. Without names the inode is an orphan.
    pub(super) fn drop_link(&self, handle: &mut Handle<'_>, inode: &Arc<Inode>) {
        let now = self.volume.now();
        self.orphans
            .lose_names(&self.volume, handle, inode, |fields| {
                fields.set_links_count(fields.links_count().saturating_sub(1));
                fields.set_ctime(now);
            });
    }

    /// Makes a directory, which has just lost its only name, an orphan.
    pub(super) fn drop_all_links(&self, handle: &mut Handle<'_>, inode: &Arc<Inode>) {
        let now = self.volume.now();
        self.orphans
            .lose_names(&self.volume, handle, inode, |fields| {
                fields.set_links_count(0);
                fields.set_ctime(now);
            });
    }

    /// Deletes an inode that has lost its last name, unless a client holds it. The name is gone, so
    /// what goes wrong here is no failure of the operation: the inode stays an orphan, and the next
    /// open tries again.
    pub(super) fn delete_if_nameless(&self, inode: &Arc<Inode>) {
        let links = inode.state().fields().links_count();
        if links > 0 {
            return;
        }
        if let Err(error) = self.delete_unreferenced(inode) {
            log::error!("inode {} stays an orphan: {error}", inode.nr());
            self.note(&error);
        }
    }
}
