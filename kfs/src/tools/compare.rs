//! What differs between two trees: a snapshot and a later one, or the volume as it is.
//!
//! An inode is the same when number and generation are; it has changed when its change time, size,
//! mode or owner have. So nothing but inodes and directories is read.

use super::{Seen, entries};
use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::inode::Attr;
use crate::layout::inode::{S_IFDIR, S_IFMT};
use std::collections::BTreeMap;

/// How a path differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// It is only in the second tree.
    Added,
    /// It is only in the first tree.
    Removed,
    /// Content or attributes differ.
    Changed,
    /// It was at this path in the first tree.
    Renamed {
        /// The path then.
        from: Vec<u8>,
    },
}

/// A path that differs between two trees.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// With a slash at the beginning.
    pub path: Vec<u8>,
    /// How.
    pub kind: ChangeKind,
}

type Tree = BTreeMap<Vec<u8>, Attr>;

impl Filesystem {
    /// What differs in `self` from an `earlier` state of the same volume, by path. What is below an
    /// added, removed or renamed directory is told, too.
    ///
    /// # Errors
    /// `NameTooLong` when a path has more than 4096 bytes, `Corrupt`, `Io`.
    pub fn changes_since(&self, earlier: &Self) -> Result<Vec<Change>> {
        Ok(differences(&walk(earlier)?, &walk(self)?))
    }
}

/// Longest path that is followed, in bytes: no client can name a longer one.
const PATH_MAX: usize = 4096;

/// All paths of a volume.
fn walk(fs: &Filesystem) -> Result<Tree> {
    let mut tree = Tree::new();
    let root = fs.root()?;
    let mut seen = Seen::default();
    seen.enter(&root)?;
    let mut waiting = vec![(Vec::new(), root)];
    while let Some((path, directory)) = waiting.pop() {
        for (name, inode) in entries(fs, &directory)? {
            let path = [&path[..], b"/", &name].concat();
            if path.len() > PATH_MAX {
                return Err(Error::NameTooLong);
            }
            tree.insert(path.clone(), fs.attr(&inode));
            if inode.is_directory() {
                seen.enter(&inode)?;
                waiting.push((path, inode));
            }
        }
    }
    Ok(tree)
}

fn differences(before: &Tree, after: &Tree) -> Vec<Change> {
    let gone: BTreeMap<_, &Vec<u8>> = before
        .iter()
        .filter(|(path, attr)| !is_at(after, path, attr))
        .map(|(path, attr)| (identity(attr), path))
        .collect();
    let mut renamed_from = Vec::new();
    let mut changes = Vec::new();
    for (path, attr) in after {
        let kind = if is_at(before, path, attr) {
            match before.get(path) {
                Some(old) if has_changed(old, attr) => ChangeKind::Changed,
                _ => continue,
            }
        } else if let Some(&from) = gone.get(&identity(attr)) {
            renamed_from.push(from);
            ChangeKind::Renamed { from: from.clone() }
        } else if before.contains_key(path) {
            // Another inode under the same name: replaced.
            ChangeKind::Changed
        } else {
            ChangeKind::Added
        };
        let path = path.clone();
        changes.push(Change { path, kind });
    }
    renamed_from.sort();
    let removed = before
        .keys()
        .filter(|path| !after.contains_key(*path) && renamed_from.binary_search(path).is_err());
    changes.extend(removed.map(|path| Change {
        path: path.clone(),
        kind: ChangeKind::Removed,
    }));
    changes.sort_by(|a, b| a.path.cmp(&b.path));
    changes
}

fn identity(attr: &Attr) -> (u32, u32) {
    (attr.inode.0, attr.generation)
}

/// Whether the same inode has this path in a tree.
fn is_at(tree: &Tree, path: &[u8], attr: &Attr) -> bool {
    tree.get(path)
        .is_some_and(|other| identity(other) == identity(attr))
}

fn has_changed(old: &Attr, new: &Attr) -> bool {
    // The entries of a directory speak for themselves.
    let is_directory = new.mode & S_IFMT == S_IFDIR;
    let facts = |attr: &Attr| (attr.mode, attr.uid, attr.gid);
    facts(old) != facts(new)
        || (!is_directory && (old.ctime != new.ctime || old.size_bytes != new.size_bytes))
}
