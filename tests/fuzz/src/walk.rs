//! Reads everything that a volume has, within bounds: a damaged volume may claim any size.

use kfs::{Filesystem, Inode, InodeNr, SeekTarget, SliceSink};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Most inodes that a walk visits.
const INODES_MAX: usize = 120;
/// Most entries of a directory that it lists, and that it looks up.
const LISTED_MAX: usize = 400;
const LOOKED_UP_MAX: usize = 32;
/// Bytes read from each end of a file.
const READ_BYTES: usize = 8192;

/// What a walk has found.
#[derive(Default)]
pub(crate) struct Found {
    pub(crate) directories: Vec<Arc<Inode>>,
    pub(crate) others: Vec<Arc<Inode>>,
    pub(crate) names: Vec<Vec<u8>>,
}

impl Found {
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Inode>> {
        self.directories.iter().chain(&self.others)
    }
}

/// Visits what can be reached from the root.
pub(crate) fn walk(fs: &Filesystem) -> Found {
    let mut found = Found::default();
    let mut seen: HashSet<InodeNr> = HashSet::new();
    let mut waiting = Vec::from_iter(fs.root().ok());
    while let Some(inode) = waiting.pop() {
        if !seen.insert(inode.nr()) || seen.len() > INODES_MAX {
            continue;
        }
        read_inode(fs, &inode);
        if inode.is_directory() {
            let names = list(fs, &inode);
            let _ = fs.parent(&inode);
            let looked_up = names.iter().take(LOOKED_UP_MAX);
            waiting.extend(looked_up.filter_map(|name| fs.lookup(&inode, name).ok()));
            found.names.extend(names.into_iter().take(8));
            found.directories.push(inode);
        } else {
            found.others.push(inode);
        }
    }
    let _ = fs.status();
    found
}

fn list(fs: &Filesystem, directory: &Inode) -> Vec<Vec<u8>> {
    let mut names = Vec::new();
    let mut middle = 0;
    let mut count = 0;
    let mut visit = |entry: &kfs::ListedEntry<'_>| {
        if names.len() < 2 * LOOKED_UP_MAX {
            names.push(entry.name.to_vec());
            middle = entry.cookie;
        }
        count += 1;
        if count < LISTED_MAX {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    let _ = fs.list(directory, 0, &mut visit);
    // Going on in the middle, as readdir(3) does.
    let _ = fs.list(directory, middle, &mut |_| ControlFlow::Break(()));
    names
}

/// Everything that one inode tells.
pub(crate) fn read_inode(fs: &Filesystem, inode: &Arc<Inode>) {
    let attr = fs.attr(inode);
    if let Ok(names) = fs.list_xattrs(inode) {
        for name in names {
            let _ = fs.get_xattr(inode, &name.full());
        }
    }
    let _ = fs.read_link(inode);
    let mut buffer = [0; READ_BYTES];
    let end = attr.size_bytes.saturating_sub(READ_BYTES as u64 / 2);
    for offset in [0, end, attr.size_bytes / 2] {
        let mut sink = SliceSink::new(&mut buffer);
        let _ = fs.read(inode, offset, READ_BYTES, &mut sink);
    }
    for target in [SeekTarget::Data, SeekTarget::Hole] {
        let mut offset = 0;
        for _ in 0..8 {
            match fs.seek(inode, offset, target) {
                Ok(found) => offset = found.saturating_add(1),
                Err(_) => break,
            }
        }
    }
    let _ = fs.inode(inode.nr(), inode.generation());
}
