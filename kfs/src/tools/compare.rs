//! What differs between two trees: a snapshot and a later one, or the volume as it is.
//!
//! An inode is the same when number and generation are; it has changed when its change time, size,
//! mode or owner have. So nothing but inodes and directories is read.

use super::entries;
use crate::error::Result;
use crate::fs::Filesystem;
use crate::inode::{Attr, Inode};
use crate::layout::inode::{S_IFDIR, S_IFMT};
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// `Corrupt`, `Io`.
    pub fn changes_since(&self, earlier: &Self) -> Result<Vec<Change>> {
        let mut trees = [Tree::new(), Tree::new()];
        for (fs, tree) in [earlier, self].into_iter().zip(&mut trees) {
            walk(fs, &fs.root()?, &mut Vec::new(), tree)?;
        }
        let [before, after] = trees;
        Ok(differences(&before, &after))
    }
}

fn walk(
    fs: &Filesystem,
    directory: &Arc<Inode>,
    path: &mut Vec<u8>,
    tree: &mut Tree,
) -> Result<()> {
    for (name, inode) in entries(fs, directory)? {
        let len = path.len();
        path.push(b'/');
        path.extend_from_slice(&name);
        tree.insert(path.clone(), fs.attr(&inode));
        if inode.is_directory() {
            walk(fs, &inode, path, tree)?;
        }
        path.truncate(len);
    }
    Ok(())
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
