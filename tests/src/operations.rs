//! Single operations on a small prepared tree, for tests that try all sequences of them.

use kfs::{
    Error, Filesystem, Inode, NewNode, RenameMode, Result, SetAttr, SetMode, SliceSource,
    SpaceChange, WriteOptions,
};
use std::sync::Arc;

/// A named operation. Failing with what an earlier operation makes inevitable (no such file, not
/// empty) counts as done: nothing must have changed then.
pub struct Operation {
    /// For messages.
    pub name: &'static str,
    act: fn(&Filesystem) -> Result<()>,
    /// What is durable after it: everything for "", else this path; `None` for nothing.
    pub syncs: Option<&'static str>,
}

impl Operation {
    /// Does it, and returns what it made durable.
    ///
    /// # Errors
    /// What has nothing to do with other operations: `Io`, `Corrupt`, `NoSpace`, ....
    pub fn run(&self, fs: &Filesystem) -> Result<Option<&'static str>> {
        match (self.act)(fs) {
            Ok(()) => Ok(self.syncs),
            Err(
                Error::NotFound
                | Error::Exists
                | Error::NotEmpty
                | Error::NoAttribute
                | Error::IsADirectory
                | Error::NotADirectory
                | Error::IntoItself,
            ) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn find(fs: &Filesystem, path: &str) -> Result<Arc<Inode>> {
    let mut inode = fs.root()?;
    for name in path.split('/') {
        inode = fs.lookup(&inode, name.as_bytes())?;
    }
    Ok(inode)
}

fn place<'p>(fs: &Filesystem, path: &'p str) -> Result<(Arc<Inode>, &'p [u8])> {
    match path.rsplit_once('/') {
        Some((directory, name)) => Ok((find(fs, directory)?, name.as_bytes())),
        None => Ok((fs.root()?, path.as_bytes())),
    }
}

fn make(fs: &Filesystem, path: &str, mode: u16, target: &[u8]) -> Result<Arc<Inode>> {
    let (directory, name) = place(fs, path)?;
    let node = NewNode {
        mode,
        uid: 5,
        gid: 6,
        target,
        ..NewNode::default()
    };
    fs.create(&directory, name, &node)
}

fn append(fs: &Filesystem, path: &str, content: &[u8]) -> Result<()> {
    let inode = find(fs, path)?;
    let mut source = SliceSource::new(content);
    let offset = fs.attr(&inode).size_bytes;
    let len = content.len();
    fs.write(&inode, offset, len, &mut source, WriteOptions::default())?;
    Ok(())
}

fn resize(fs: &Filesystem, path: &str, size_bytes: u64) -> Result<()> {
    let change = SetAttr {
        size_bytes: Some(size_bytes),
        ..SetAttr::default()
    };
    fs.set_attr(&find(fs, path)?, &change).map(drop)
}

fn change_space(fs: &Filesystem, offset: u64, len: u64, change: SpaceChange) -> Result<()> {
    let inode = find(fs, "a")?;
    fs.change_space(&inode, offset, len, change, WriteOptions::default())
}

fn rename(fs: &Filesystem, from: &str, to: &str, mode: RenameMode) -> Result<()> {
    let (old, old_name) = place(fs, from)?;
    let (new, new_name) = place(fs, to)?;
    fs.rename(&old, old_name, &new, new_name, mode)
}

fn unlink(fs: &Filesystem, path: &str) -> Result<()> {
    let (directory, name) = place(fs, path)?;
    fs.unlink(&directory, name)
}

fn set_xattr(fs: &Filesystem, path: &str, len: usize) -> Result<()> {
    let (inode, value) = (find(fs, path)?, vec![8; len]);
    fs.set_xattr(&inode, b"user.name", &value, SetMode::Any, false)
}

/// Makes the tree that [`all`] works on.
///
/// # Errors
/// What the file system reports.
pub fn prepare(fs: &Filesystem) -> Result<()> {
    make(fs, "a", 0o100_644, b"")?;
    append(fs, "a", &[b'a'; 10_000])?;
    make(fs, "b", 0o104_755, b"")?;
    append(fs, "b", &[b'b'; 5000])?;
    set_xattr(fs, "b", 20)?;
    make(fs, "d", 0o042_755, b"")?;
    make(fs, "d/x", 0o100_600, b"")?;
    append(fs, "d/x", &[b'x'; 3000])?;
    make(fs, "d/y", 0o120_777, b"../a")?;
    make(fs, "e", 0o040_700, b"")?;
    fs.link(&find(fs, "a")?, &*fs.root()?, b"h")
}

/// The operations.
#[must_use]
pub fn all() -> Vec<Operation> {
    let operation = |name, act| Operation {
        name,
        act,
        syncs: None,
    };
    vec![
        operation("create f", |fs| make(fs, "f", 0o100_644, b"").map(drop)),
        operation("mkdir d/n", |fs| make(fs, "d/n", 0o040_755, b"").map(drop)),
        operation("symlink l", |fs| {
            make(fs, "l", 0o120_777, &[b't'; 100]).map(drop)
        }),
        operation("mkfifo p", |fs| make(fs, "p", 0o010_644, b"").map(drop)),
        operation("link d/x as k", |fs| {
            fs.link(&find(fs, "d/x")?, &*fs.root()?, b"k")
        }),
        operation("unlink a", |fs| unlink(fs, "a")),
        operation("unlink d/x", |fs| unlink(fs, "d/x")),
        operation("unlink b, still open", |fs| {
            // The reference is given up by closing the volume only.
            let inode = find(fs, "b")?;
            fs.acquire(&inode, 1);
            unlink(fs, "b")
        }),
        operation("rmdir e", |fs| fs.rmdir(&*fs.root()?, b"e")),
        operation("rename a to d/z", |fs| {
            rename(fs, "a", "d/z", RenameMode::NoReplace)
        }),
        operation("rename a over b", |fs| {
            rename(fs, "a", "b", RenameMode::Replace)
        }),
        operation("rename d to e/d", |fs| {
            rename(fs, "d", "e/d", RenameMode::NoReplace)
        }),
        operation("exchange b and d", |fs| {
            rename(fs, "b", "d", RenameMode::Exchange)
        }),
        operation("append to a", |fs| append(fs, "a", &[b'A'; 7000])),
        operation("append to d/x", |fs| append(fs, "d/x", &[b'X'; 100])),
        operation("cut a", |fs| resize(fs, "a", 4500)),
        operation("cut b to nothing", |fs| resize(fs, "b", 0)),
        operation("grow d/x", |fs| resize(fs, "d/x", 20_000)),
        operation("allocate for a", |fs| {
            change_space(fs, 8000, 60_000, SpaceChange::Allocate { keep_size: false })
        }),
        operation("punch a", |fs| {
            change_space(fs, 4096, 4096, SpaceChange::PunchHole)
        }),
        operation("attribute in b", |fs| set_xattr(fs, "b", 30)),
        operation("long attribute of a", |fs| set_xattr(fs, "a", 600)),
        operation("attribute gone from b", |fs| {
            fs.remove_xattr(&find(fs, "b")?, b"user.name")
        }),
        operation("owner and mode of d", |fs| {
            let change = SetAttr {
                mode: Some(0o511),
                uid: Some(77),
                ..SetAttr::default()
            };
            fs.set_attr(&find(fs, "d")?, &change).map(drop)
        }),
        operation("name for a nameless file", |fs| {
            let node = NewNode {
                mode: 0o100_640,
                ..NewNode::default()
            };
            let inode = fs.create_unnamed(&*fs.root()?, &node)?;
            fs.acquire(&inode, 1);
            let linked = fs.link(&inode, &*fs.root()?, b"named");
            fs.release(&inode, 1)?;
            linked
        }),
        Operation {
            name: "fsync a",
            act: |fs| fs.fsync(&*find(fs, "a")?, false),
            syncs: Some("/a"),
        },
        Operation {
            name: "sync",
            act: Filesystem::sync,
            syncs: Some(""),
        },
    ]
}
