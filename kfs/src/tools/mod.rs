//! What is done with whole trees, built on the operations that clients use.
//!
//! - `compare.rs`: what differs between two trees
//! - `restore.rs`: a file or directory of a snapshot, back in the volume
//! - `history.rs`: the versions of a file
//! - `export.rs`, `clone.rs`: a snapshot as an image of its own, with blocks of its own or shared ones
//! - `defrag/`: files moved to better places while they are used
//! - `fragmap.rs`: what is where
//! - `shrink/`: a smaller volume, what lies behind its new end moved
//! - `trim.rs`: holes in the image where blocks are free

mod clone;
mod compare;
mod defrag;
mod export;
mod fragmap;
mod history;
mod restore;
mod shrink;
mod trim;

pub use compare::{Change, ChangeKind};
pub use defrag::{
    Candidate, Defrag, DefragOptions, DefragProgress, FileLayout, Skipped, Survey, TreeCursor,
};
pub use export::ExportError;
pub use fragmap::{MapCell, MappedExtent, VolumeMap};
pub use history::FileVersion;
pub use restore::Restored;
pub use shrink::{ShrinkPhase, ShrinkProgress, Shrunk, minimum_size, shrink, shrunk_size};

use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::ids::InodeNr;
use crate::inode::Inode;
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Whom a long operation tells how far it is: what is done, and how much there is in all (0 where nobody
/// knows). `Break` ends the operation with [`Error::Interrupted`], unless it says that it goes on.
pub type Watch<'w> = dyn FnMut(u64, u64) -> ControlFlow<()> + 'w;

/// Nobody watches.
pub fn unwatched(_done: u64, _total: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Tells how far an operation is that can be ended here.
fn tell(watch: &mut Watch<'_>, done: u64, total: u64) -> Result<()> {
    match watch(done, total) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Interrupted),
    }
}

/// The inode that a path, whose parts are separated by slashes, stands for. Symbolic links are not
/// followed.
///
/// # Errors
/// `NotFound`, `NotADirectory`, `NameTooLong`, `Corrupt`, `Io`.
pub fn resolve(fs: &Filesystem, path: &[u8]) -> Result<Arc<Inode>> {
    let mut inode = fs.root()?;
    for name in parts(path) {
        inode = fs.lookup(&inode, name)?;
    }
    Ok(inode)
}

/// The names in a path.
fn parts(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/')
        .filter(|name| !name.is_empty())
}

/// The directory that holds a path's last name, and that name.
fn resolve_parent<'p>(fs: &Filesystem, path: &'p [u8]) -> Result<(Arc<Inode>, &'p [u8])> {
    let mut names: Vec<&[u8]> = parts(path).collect();
    let name = names.pop().ok_or(Error::Invalid)?;
    let mut directory = fs.root()?;
    for name in names {
        directory = fs.lookup(&directory, name)?;
    }
    Ok((directory, name))
}

/// The entries of a directory with their inodes, `.` and `..` left out.
fn entries(fs: &Filesystem, directory: &Inode) -> Result<Vec<(Vec<u8>, Arc<Inode>)>> {
    let mut names = Vec::new();
    fs.list(directory, 0, &mut |listed| {
        if !matches!(listed.name, b"." | b"..") {
            names.push(listed.name.to_vec());
        }
        ControlFlow::Continue(())
    })?;
    let mut found = Vec::with_capacity(names.len());
    for name in names {
        match fs.lookup(directory, &name) {
            Ok(inode) => found.push((name, inode)),
            // Gone since it was listed.
            Err(Error::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The directories of a walk: one that is met twice is below itself, or has two names.
#[derive(Default)]
struct Seen(HashSet<InodeNr>);

impl Seen {
    fn enter(&mut self, directory: &Inode) -> Result<()> {
        let inode = directory.nr();
        if self.0.insert(inode) {
            return Ok(());
        }
        Err(Corrupt::DirectoryLoop { inode }.into())
    }
}
