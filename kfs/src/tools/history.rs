//! The versions of a file: what each snapshot has at a path.
//!
//! Two snapshots have the same version when inode, generation, change time, size and mode are the same: nothing
//! of its content is read.

use super::resolve;
use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::inode::Attr;

/// A state of a path that several successive snapshots have in common.
#[derive(Clone, Debug)]
pub struct FileVersion {
    /// Their names, oldest first.
    pub snapshots: Vec<String>,
    /// The volume has it still.
    pub is_current: bool,
    /// What is there; `None`: nothing.
    pub attr: Option<Attr>,
}

impl Filesystem {
    /// The versions of what is at a path, oldest first.
    ///
    /// # Errors
    /// `NotFound` when there never was anything, `NameTooLong`, `Corrupt`, `Io`.
    pub fn versions(&self, path: &[u8]) -> Result<Vec<FileVersion>> {
        let mut versions: Vec<FileVersion> = Vec::new();
        for snapshot in self.snapshots() {
            let view = match self.open_snapshot(&snapshot.name) {
                Ok(view) => view,
                // Deleted meanwhile.
                Err(Error::NotFound) => continue,
                Err(error) => return Err(error),
            };
            let attr = attr_at(&view, path)?;
            version_of(&mut versions, attr)
                .snapshots
                .push(snapshot.name);
        }
        version_of(&mut versions, attr_at(self, path)?).is_current = true;
        if versions.iter().all(|version| version.attr.is_none()) {
            return Err(Error::NotFound);
        }
        Ok(versions)
    }
}

fn attr_at(fs: &Filesystem, path: &[u8]) -> Result<Option<Attr>> {
    match resolve(fs, path) {
        Ok(inode) => Ok(Some(fs.attr(&inode))),
        Err(Error::NotFound | Error::NotADirectory) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The newest version if it is this one, else a new one.
fn version_of(versions: &mut Vec<FileVersion>, attr: Option<Attr>) -> &mut FileVersion {
    let identity = |attr: &Attr| {
        let numbers = (attr.inode, attr.generation, attr.size_bytes, attr.mode);
        (numbers, attr.ctime)
    };
    let is_same = versions
        .last()
        .is_some_and(|last| last.attr.as_ref().map(identity) == attr.as_ref().map(identity));
    if !is_same {
        versions.push(FileVersion {
            snapshots: Vec::new(),
            is_current: false,
            attr,
        });
    }
    versions.last_mut().expect("there is one now")
}
