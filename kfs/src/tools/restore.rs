//! A file or directory of a snapshot, back in the volume. Only what differs is copied: blocks that both
//! still share are left alone.

use super::{Seen, Watch, entries, parts, resolve, resolve_parent, tell};
use crate::error::{Error, Result};
use crate::extent::Mapping;
use crate::file::{SliceSink, SliceSource, SpaceChange, WriteOptions};
use crate::fs::Filesystem;
use crate::ids::LogicalBlock;
use crate::inode::{Attr, Inode, SetAttr, TimeChange};
use crate::layout::inode::{S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::ops::NewNode;
use crate::xattr::SetMode;
use std::sync::Arc;

/// Bytes copied at a time.
const COPY_BYTES: usize = 1 << 20;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Files, directories and other inodes looked at.
    pub inodes: u64,
    /// Those that were not there and were made.
    pub made: u64,
    /// Bytes copied.
    pub bytes: u64,
}

impl Filesystem {
    /// Makes `path` what it is in `snapshot`, another state of this volume, or makes it anew as `to`.
    /// Files in a directory that the snapshot does not have stay. `watch` is told the bytes looked at, and how
    /// many there are in the directories that were met so far; it ends the work after a whole file.
    ///
    /// # Errors
    /// `NotFound` for a path that the snapshot does not have or whose parent is gone; `Exists` when
    /// something of another kind is in the way; `Interrupted`; as the operations that it takes.
    pub fn restore_path(
        &self,
        snapshot: &Self,
        path: &[u8],
        to: &[u8],
        watch: &mut Watch<'_>,
    ) -> Result<Restored> {
        let source = resolve(snapshot, path)?;
        let mut work = Work {
            snapshot,
            live: self,
            seen: Seen::default(),
            waiting: Vec::new(),
            done: Restored::default(),
            watch,
            looked_at: 0,
            known: weight(&snapshot.attr(&source)),
        };
        if parts(to).next().is_none() {
            let root = self.root()?;
            work.waiting.push(Step::Fill(source, root));
        } else {
            let (directory, name) = resolve_parent(self, to)?;
            work.restore(source, &directory, name)?;
        }
        work.run()?;
        Ok(work.done)
    }
}

/// Something still to be done, with the inode in the snapshot and that in the volume.
enum Step {
    /// Content, and what is below.
    Fill(Arc<Inode>, Arc<Inode>),
    /// Attributes, when what is below is as it should be.
    Finish(Arc<Inode>, Arc<Inode>),
}

/// What an inode is in a bar: small files take their time, too.
fn weight(attr: &Attr) -> u64 {
    let content = match attr.mode & S_IFMT {
        S_IFREG => attr.size_bytes,
        _ => 0,
    };
    content.saturating_add(4096)
}

struct Work<'f, 'w> {
    snapshot: &'f Filesystem,
    live: &'f Filesystem,
    seen: Seen,
    /// The last one is the next: trees may be of any depth.
    waiting: Vec<Step>,
    done: Restored,
    watch: &'f mut Watch<'w>,
    /// The weight of what was looked at, and of all that is known to be there.
    looked_at: u64,
    known: u64,
}

impl Work<'_, '_> {
    /// Tells how far it is in the middle of a file, which is brought to its end whatever is wanted.
    fn tell_within(&mut self, bytes: u64) {
        let done = self.looked_at.saturating_add(bytes).min(self.known);
        let _ = (self.watch)(done, self.known);
    }

    fn run(&mut self) -> Result<()> {
        while let Some(step) = self.waiting.pop() {
            match step {
                Step::Fill(source, target) => self.fill(source, target)?,
                Step::Finish(source, target) => self.finish(&source, &target)?,
            }
        }
        Ok(())
    }

    /// Makes `name` what `source` is; a directory is still to be filled.
    fn restore(&mut self, source: Arc<Inode>, directory: &Arc<Inode>, name: &[u8]) -> Result<()> {
        let attr = self.snapshot.attr(&source);
        let kind = attr.mode & S_IFMT;
        let found = match self.live.lookup(directory, name) {
            Ok(found) => Some(found),
            Err(Error::NotFound) => None,
            Err(error) => return Err(error),
        };
        let target = match found {
            Some(found) if found.mode() & S_IFMT == kind && matches!(kind, S_IFREG | S_IFDIR) => {
                found
            }
            Some(found) if found.is_directory() => return Err(Error::Exists),
            Some(_) if kind == S_IFDIR => return Err(Error::Exists),
            Some(_) => {
                self.live.unlink(directory, name)?;
                self.make(&source, &attr, directory, name)?
            }
            None => self.make(&source, &attr, directory, name)?,
        };
        if kind == S_IFDIR {
            self.waiting.push(Step::Fill(source, target));
            return Ok(());
        }
        self.fill(source, target)
    }

    fn make(
        &mut self,
        source: &Arc<Inode>,
        attr: &Attr,
        directory: &Arc<Inode>,
        name: &[u8],
    ) -> Result<Arc<Inode>> {
        let target = if attr.mode & S_IFMT == S_IFLNK {
            self.snapshot.read_link(source)?
        } else {
            Vec::new()
        };
        let node = NewNode {
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            device: attr.device,
            target: &target,
            ..NewNode::default()
        };
        self.done.made += 1;
        self.live.create(directory, name, &node)
    }

    /// Gives the content of `source` to `target`, which is of its kind.
    fn fill(&mut self, source: Arc<Inode>, target: Arc<Inode>) -> Result<()> {
        self.done.inodes += 1;
        let attr = self.snapshot.attr(&source);
        match attr.mode & S_IFMT {
            S_IFREG => self.copy_content(&source, &target, attr.size_bytes)?,
            S_IFDIR => {
                self.seen.enter(&source)?;
                let finish = Step::Finish(Arc::clone(&source), Arc::clone(&target));
                self.waiting.push(finish);
                let entries = entries(self.snapshot, &source)?;
                for (_, inode) in &entries {
                    let weight = weight(&self.snapshot.attr(inode));
                    self.known = self.known.saturating_add(weight);
                }
                for (name, inode) in entries {
                    self.restore(inode, &target, &name)?;
                }
                self.looked_at = self.looked_at.saturating_add(weight(&attr));
                return Ok(());
            }
            _ => {}
        }
        self.finish(&source, &target)?;
        self.looked_at = self.looked_at.saturating_add(weight(&attr));
        tell(self.watch, self.looked_at.min(self.known), self.known)
    }

    /// Gives the attributes of `source` to `target`.
    fn finish(&mut self, source: &Arc<Inode>, target: &Arc<Inode>) -> Result<()> {
        let attr = self.snapshot.attr(source);
        self.copy_xattrs(source, target)?;
        let change = SetAttr {
            mode: (attr.mode & S_IFMT != S_IFLNK).then_some(attr.mode & 0o7777),
            uid: Some(attr.uid),
            gid: Some(attr.gid),
            atime: Some(TimeChange::To(attr.atime)),
            mtime: Some(TimeChange::To(attr.mtime)),
            ..SetAttr::default()
        };
        self.live.set_attr(target, &change)?;
        Ok(())
    }

    fn copy_content(&mut self, source: &Arc<Inode>, target: &Arc<Inode>, size: u64) -> Result<()> {
        if self.live.attr(target).size_bytes != size {
            let change = SetAttr {
                size_bytes: Some(size),
                ..SetAttr::default()
            };
            self.live.set_attr(target, &change)?;
        }
        let block_size = self.live.volume.block_size();
        let mut at = 0;
        while at < size {
            let logical = u32::try_from(at / block_size).map_err(|_| Error::FileTooLarge)?;
            let left = (size - at).div_ceil(block_size).min(32768) as u32;
            let (old, len) = self.place(self.snapshot, source, logical, left)?;
            let (new, len) = self.place(self.live, target, logical, len)?;
            if len == 0 {
                // The size of a damaged inode: no file has blocks there.
                return Err(Error::FileTooLarge);
            }
            let bytes = (u64::from(len) * block_size).min(size - at);
            match old {
                // A block that both map holds the same: what a snapshot sees is not overwritten.
                _ if old == new => {}
                None => self.punch(target, at, bytes)?,
                Some(_) => self.copy(source, target, at, bytes)?,
            }
            at += bytes;
            self.tell_within(at);
        }
        Ok(())
    }

    /// Where data of a file is, `None` where it reads as zeros, and for how many blocks on.
    fn place(
        &self,
        fs: &Filesystem,
        inode: &Arc<Inode>,
        logical: u32,
        len: u32,
    ) -> Result<(Option<u64>, u32)> {
        if inode.has_inline_data() {
            return Ok((Some(0), len));
        }
        Ok(match inode.map(&fs.volume, LogicalBlock(logical), len)? {
            Mapping::Mapped { physical, len } => (Some(physical.0), len),
            Mapping::Unwritten { len, .. } | Mapping::Hole { len } => (None, len),
        })
    }

    fn punch(&self, target: &Arc<Inode>, at: u64, len: u64) -> Result<()> {
        let options = WriteOptions::default();
        self.live
            .change_space(target, at, len, SpaceChange::PunchHole, options)
    }

    fn copy(&mut self, source: &Arc<Inode>, target: &Arc<Inode>, at: u64, len: u64) -> Result<()> {
        let mut buffer = vec![0; COPY_BYTES.min(len as usize)];
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(buffer.len() as u64) as usize;
            let bytes = &mut buffer[..piece];
            let sink = &mut SliceSink::new(bytes);
            self.snapshot.read(source, at + done, piece, sink)?;
            let bytes = &buffer[..piece];
            let data = &mut SliceSource::new(bytes);
            let options = WriteOptions::default();
            let written = self.live.write(target, at + done, piece, data, options)?;
            if written == 0 {
                return Err(Error::NoSpace);
            }
            done += written as u64;
        }
        self.done.bytes += len;
        Ok(())
    }

    fn copy_xattrs(&self, source: &Arc<Inode>, target: &Arc<Inode>) -> Result<()> {
        let wanted = self.snapshot.list_xattrs(source)?;
        for name in self.live.list_xattrs(target)? {
            if !wanted.contains(&name) {
                self.live.remove_xattr(target, &name.full())?;
            }
        }
        for name in wanted {
            let full = name.full();
            let value = self.snapshot.get_xattr(source, &full)?;
            if self.live.get_xattr(target, &full).ok().as_ref() != Some(&value) {
                self.live
                    .set_xattr(target, &full, &value, SetMode::Any, false)?;
            }
        }
        Ok(())
    }
}
