//! `Workload`: random operations on a volume, for tests of what a crash or a failing device leaves.
//!
//! Operations never overwrite bytes in place: that is not atomic, by design.

use kfs::{
    Error, Filesystem, Inode, NewNode, RenameMode, Result, SetAttr, SetMode, SliceSource,
    SpaceChange, WriteOptions,
};
use kfs_disk::testing::SplitMix64;
use std::sync::Arc;

/// Random operations on a volume, the same for the same seed.
pub struct Workload {
    /// The volume.
    fs: Arc<Filesystem>,
    random: SplitMix64,
    /// Directories and files by path; directories end with a slash.
    names: Vec<String>,
    /// Where it works: empty for the root, else with a slash at the end.
    home: String,
    /// Bytes of a block that no append crosses, where appends are to be atomic among many writers.
    append_within: Option<u64>,
    next: u32,
}

impl Workload {
    /// A workload on an empty volume.
    #[must_use]
    pub fn new(fs: Arc<Filesystem>, seed: u64) -> Self {
        Self::within(fs, "", seed)
    }

    /// A workload in an empty directory: its path without a slash at the beginning, with one at the
    /// end.
    #[must_use]
    pub fn within(fs: Arc<Filesystem>, home: &str, seed: u64) -> Self {
        Self {
            append_within: None,
            home: home.into(),
            fs,
            random: SplitMix64::new(seed),
            names: Vec::new(),
            next: 0,
        }
    }

    /// Appends cross no bound of blocks of this size from now on: each is one transaction, even if
    /// others commit.
    #[must_use]
    pub fn appending_within(mut self, block_size: u64) -> Self {
        self.append_within = Some(block_size);
        self
    }

    /// The same, on the volume opened again.
    #[must_use]
    pub fn reopened(mut self, fs: Arc<Filesystem>) -> Self {
        self.fs = fs;
        self
    }

    /// Writes over part of a file, punches a hole into it or zeros part of it: nothing that a crash
    /// leaves whole.
    ///
    /// # Errors
    /// What the operation reports.
    pub fn overwrite(&mut self) -> Result<String> {
        let Some(path) = self.any(false) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path)?;
        let inode = self.fs.lookup(&directory, name.as_bytes())?;
        let size = self.fs.attr(&inode).size_bytes;
        let offset = self.below(size as usize + 5000) as u64;
        let len = 1 + self.below(20_000) as u64;
        let options = WriteOptions::default();
        let change = match self.below(6) {
            0 => SpaceChange::PunchHole,
            1 => SpaceChange::ZeroRange { keep_size: true },
            2 => SpaceChange::Allocate { keep_size: false },
            _ => {
                let bytes = vec![self.below(255) as u8 + 1; len as usize];
                let source = &mut SliceSource::new(&bytes);
                self.fs
                    .write(&inode, offset, bytes.len(), source, options)?;
                return Ok(format!("write {len} bytes at {offset} of {path}"));
            }
        };
        self.fs.change_space(&inode, offset, len, change, options)?;
        Ok(format!("{change:?} {len} bytes at {offset} of {path}"))
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.random.next_u64() % bound as u64) as usize
    }

    fn resolve(&self, path: &str) -> Result<(Arc<Inode>, String)> {
        let mut directory = self.fs.root()?;
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let last = parts.pop().expect("a path has a name").to_string();
        for part in parts {
            directory = self.fs.lookup(&directory, part.as_bytes())?;
        }
        Ok((directory, last))
    }

    fn any(&mut self, directories: bool) -> Option<String> {
        let fitting: Vec<String> = self
            .names
            .iter()
            .filter(|name| name.ends_with('/') == directories)
            .cloned()
            .collect();
        if fitting.is_empty() {
            return None;
        }
        let index = self.below(fitting.len());
        Some(fitting[index].clone())
    }

    fn new_path(&mut self) -> String {
        let parent = self.any(true).unwrap_or_else(|| self.home.clone());
        self.next += 1;
        let filler = "x".repeat(self.below(60));
        format!("{parent}n{}{filler}", self.next)
    }

    /// Does so many operations, of which a full volume may refuse some.
    ///
    /// # Panics
    /// When one fails otherwise.
    pub fn operate_while_room(&mut self, count: u32, context: &str) {
        for _ in 0..count {
            match self.operate() {
                Ok(_) | Err(Error::NoSpace) => {}
                Err(error) => panic!("{context}: {error}"),
            }
        }
    }

    /// Does one operation and says which, and whether everything up to it is durable. Those that
    /// find nothing to work on make a file.
    ///
    /// # Errors
    /// What the operation reports.
    pub fn operate(&mut self) -> Result<(String, bool)> {
        let what = match self.below(16) {
            0..=3 => self.make(0o100_644)?,
            4 | 5 => self.make(0o040_755)?,
            6..=8 => self.append()?,
            9 => self.truncate()?,
            10 | 11 => self.remove()?,
            12 => self.rename()?,
            13 => self.link()?,
            14 => self.set_xattr()?,
            _ => {
                self.fs.sync()?;
                return Ok(("sync".into(), true));
            }
        };
        Ok((what, false))
    }

    fn make(&mut self, mode: u16) -> Result<String> {
        let path = self.new_path();
        let (directory, name) = self.resolve(&path)?;
        let node = NewNode {
            mode,
            uid: 5,
            gid: 6,
            ..NewNode::default()
        };
        self.fs.create(&directory, name.as_bytes(), &node)?;
        let is_directory = mode & 0o040_000 != 0;
        self.names.push(if is_directory {
            format!("{path}/")
        } else {
            path.clone()
        });
        Ok(format!("make {path}"))
    }

    fn append(&mut self) -> Result<String> {
        let Some(path) = self.any(false) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path)?;
        let inode = self.fs.lookup(&directory, name.as_bytes())?;
        let offset = self.fs.attr(&inode).size_bytes;
        let most = self.append_within.map_or(9000, |size| size - offset % size);
        let len = 1 + self.below(most as usize);
        let byte = (self.random.next_u64() & 0xff) as u8;
        let content: Vec<u8> = (0..len).map(|index| byte ^ index as u8).collect();
        let mut source = SliceSource::new(&content);
        self.fs
            .write(&inode, offset, len, &mut source, WriteOptions::default())?;
        Ok(format!("append {len} to {path}"))
    }

    fn truncate(&mut self) -> Result<String> {
        let Some(path) = self.any(false) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path)?;
        let inode = self.fs.lookup(&directory, name.as_bytes())?;
        let size = self.fs.attr(&inode).size_bytes;
        let size = self.random.next_u64() % (size + 1);
        let change = SetAttr {
            size_bytes: Some(size),
            ..SetAttr::default()
        };
        self.fs.set_attr(&inode, &change)?;
        Ok(format!("truncate {path} to {size}"))
    }

    fn remove(&mut self) -> Result<String> {
        let wants_directory = self.below(3) == 0;
        let Some(path) = self.any(wants_directory) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path)?;
        if wants_directory {
            match self.fs.rmdir(&directory, name.as_bytes()) {
                Err(Error::NotEmpty) => return self.make(0o040_755),
                other => other?,
            }
        } else {
            let inode = self.fs.lookup(&directory, name.as_bytes())?;
            if self.below(3) == 0 {
                // Still open: an orphan until the volume is closed.
                self.fs.acquire(&inode, 1);
            }
            self.fs.unlink(&directory, name.as_bytes())?;
        }
        self.names.retain(|other| *other != path);
        Ok(format!("remove {path}"))
    }

    fn rename(&mut self) -> Result<String> {
        let (Some(from), Some(to)) = (self.any(false), self.any(false)) else {
            return self.make(0o100_644);
        };
        let replaces = self.below(2) == 0 && from != to;
        let to = if replaces { to } else { self.new_path() };
        let (old, old_name) = self.resolve(&from)?;
        let (new, new_name) = self.resolve(&to)?;
        let are_same = {
            let target = self.fs.lookup(&new, new_name.as_bytes()).ok();
            let source = self.fs.lookup(&old, old_name.as_bytes())?;
            target.is_some_and(|target| target.nr() == source.nr())
        };
        self.fs.rename(
            &old,
            old_name.as_bytes(),
            &new,
            new_name.as_bytes(),
            RenameMode::Replace,
        )?;
        if !are_same {
            self.names.retain(|other| *other != from && *other != to);
            self.names.push(to.clone());
        }
        Ok(format!("rename {from} to {to}"))
    }

    fn link(&mut self) -> Result<String> {
        let Some(path) = self.any(false) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path)?;
        let inode = self.fs.lookup(&directory, name.as_bytes())?;
        let other = self.new_path();
        let (directory, name) = self.resolve(&other)?;
        self.fs.link(&inode, &directory, name.as_bytes())?;
        self.names.push(other.clone());
        Ok(format!("link {path} to {other}"))
    }

    fn set_xattr(&mut self) -> Result<String> {
        let Some(path) = self.any(false) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path)?;
        let inode = self.fs.lookup(&directory, name.as_bytes())?;
        let value = vec![9; self.below(300)];
        self.fs
            .set_xattr(&inode, b"user.crash", &value, SetMode::Any, false)?;
        Ok(format!("xattr of {} bytes on {path}", value.len()))
    }
}
