//! Finding names.

use crate::corrupt::Corrupt;
use crate::dir::{DirEntry, FileName};
use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::ids::InodeNr;
use crate::inode::Inode;
use std::sync::Arc;

impl Filesystem {
    /// The inode that `name` stands for in a directory.
    ///
    /// # Errors
    /// `NotFound`, `NotADirectory`, `NameTooLong`, `Corrupt`, `Io`.
    pub fn lookup(&self, directory: &Inode, name: &[u8]) -> Result<Arc<Inode>> {
        let name = self.visible_name(directory, name)?;
        if !directory.is_directory() {
            return Err(Error::NotADirectory);
        }
        let _io = directory.io.read();
        self.find(directory, name)?.ok_or(Error::NotFound)
    }

    /// The inode of an entry that a listing has told.
    ///
    /// # Errors
    /// `Stale` when it is gone, `Corrupt`, `Io`.
    pub fn inode_of(&self, entry: &DirEntry) -> Result<Arc<Inode>> {
        self.inodes.get(&self.volume, entry.inode)
    }

    /// The directory that holds this one.
    ///
    /// # Errors
    /// `NotADirectory`, `Corrupt`, `Io`.
    pub fn parent(&self, directory: &Inode) -> Result<Arc<Inode>> {
        if !directory.is_directory() {
            return Err(Error::NotADirectory);
        }
        let nr = {
            let _io = directory.io.read();
            self.directory(directory).parent()?
        };
        self.inodes.get(&self.volume, nr)
    }

    /// Like [`Filesystem::lookup`], with the directory's lock held by who calls.
    pub(crate) fn find(&self, directory: &Inode, name: FileName<'_>) -> Result<Option<Arc<Inode>>> {
        let Some(entry) = self.directory(directory).lookup(name)? else {
            return Ok(None);
        };
        let is_internal = entry.inode < self.volume.geometry.first_inode;
        if is_internal && entry.inode != InodeNr::ROOT {
            let (directory, inode) = (directory.nr(), entry.inode);
            return Err(Corrupt::EntryOfFreeInode { directory, inode }.into());
        }
        let inode = self
            .inodes
            .get(&self.volume, entry.inode)
            .map_err(|error| match error {
                Error::Stale => {
                    let (directory, inode) = (directory.nr(), entry.inode);
                    Corrupt::EntryOfFreeInode { directory, inode }.into()
                }
                other => other,
            })?;
        Ok(Some(inode))
    }
}
