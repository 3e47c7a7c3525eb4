//! Fills a new file system from a directory of the host (`-d`).
//!
//! Everything goes through the file system's own operations, so it is journaled like any other
//! change. Kept are types, owners, modes, access and modification times, extended attributes with
//! ACLs, hard links, device numbers and holes. A directory gets its mode, attributes and times after
//! its entries, as otherwise these would inherit from it or change it.

use crate::error::{Error, Result};
use crate::source_file::{self, Attribute};
use kfs::layout::inode::{DeviceNumber, S_IFDIR, S_IFLNK, S_IFMT};
use kfs::{Filesystem, Inode, MountOptions, NewNode, SetAttr, SetMode, SliceSource, TimeChange};
use kfs::{Timestamp, WriteOptions};
use kfs_disk::BlockDevice;
use std::collections::HashMap;
use std::fs::{self, DirEntry, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes copied at a time.
const CHUNK: usize = 1 << 20;

/// How far the filling is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Progress {
    /// Files of all types, the source directory itself not counted.
    pub files: u64,
    /// Bytes of data; holes do not count.
    pub bytes: u64,
}

/// Counts what a directory holds.
///
/// # Errors
/// [`Error::Source`] when something cannot be read.
pub fn measure(source: &Path) -> Result<Progress> {
    let mut total = Progress::default();
    let mut pending = vec![source.to_path_buf()];
    while let Some(directory) = pending.pop() {
        for entry in entries(&directory)? {
            let path = entry.path();
            let metadata = metadata(&path)?;
            total.files += 1;
            if metadata.is_dir() {
                pending.push(path);
            } else if metadata.is_file() {
                total.bytes += metadata.len().min(metadata.blocks() * 512);
            }
        }
    }
    Ok(total)
}

/// Copies the content of the directory `source` into the file system on a device, and closes it.
/// `report` is called as the work goes on.
///
/// # Errors
/// [`Error::Source`] when something cannot be read, [`Error::Engine`] when it cannot be written. The
/// file system is sound then, but not complete.
pub fn populate(
    device: Arc<dyn BlockDevice>,
    source: &Path,
    report: &mut dyn FnMut(Progress),
) -> Result<Progress> {
    // The image may lie in the directory that fills it.
    let image = device.backing_file().and_then(|file| file.metadata().ok());
    let engine = |error| engine_error(source, error);
    let filesystem = Filesystem::open(device, MountOptions::default()).map_err(engine)?;
    let mut copier = Copier {
        filesystem: &filesystem,
        image: image.map(|image| (image.dev(), image.ino())),
        linked: HashMap::new(),
        done: Progress::default(),
        report,
        buffer: vec![0; CHUNK],
    };
    let result = copier.copy_tree(source);
    let done = copier.done;
    drop(copier);
    let closed = filesystem.close().map_err(engine);
    result?;
    closed?;
    Ok(done)
}

fn engine_error(path: &Path, source: kfs::Error) -> Error {
    Error::Engine {
        path: path.to_path_buf(),
        source,
    }
}

fn source_error(path: &Path, source: std::io::Error) -> Error {
    Error::Source {
        path: path.to_path_buf(),
        source,
    }
}

fn metadata(path: &Path) -> Result<Metadata> {
    fs::symlink_metadata(path).map_err(|error| source_error(path, error))
}

/// Entries of a directory by name, so that the same tree always makes the same image.
fn entries(directory: &Path) -> Result<Vec<DirEntry>> {
    let entries: std::io::Result<Vec<DirEntry>> =
        fs::read_dir(directory).and_then(Iterator::collect);
    let mut entries = entries.map_err(|error| source_error(directory, error))?;
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

/// A directory whose entries are being copied.
struct Level {
    path: PathBuf,
    metadata: Metadata,
    inode: Arc<Inode>,
    left: std::vec::IntoIter<DirEntry>,
}

struct Copier<'a> {
    filesystem: &'a Filesystem,
    /// Device and inode of the image on the host.
    image: Option<(u64, u64)>,
    /// Copies of files with more than one name, by device and inode on the host.
    linked: HashMap<(u64, u64), Arc<Inode>>,
    done: Progress,
    report: &'a mut dyn FnMut(Progress),
    buffer: Vec<u8>,
}

impl Copier<'_> {
    fn copy_tree(&mut self, source: &Path) -> Result<()> {
        let root = self.filesystem.root();
        let root = root.map_err(|error| engine_error(source, error))?;
        // A link to a directory is followed here, and nowhere below.
        let attributes = fs::metadata(source).map_err(|error| source_error(source, error))?;
        let mut levels = vec![Level {
            path: source.to_path_buf(),
            metadata: attributes,
            inode: root,
            left: entries(source)?.into_iter(),
        }];
        while let Some(level) = levels.last_mut() {
            match level.left.next() {
                Some(entry) => {
                    let parent = Arc::clone(&level.inode);
                    levels.extend(self.copy_entry(&parent, &entry)?);
                }
                None => {
                    self.finish_directory(level)?;
                    levels.pop();
                }
            }
        }
        Ok(())
    }

    /// Copies what a name stands for; a directory's entries are left to the caller.
    fn copy_entry(&mut self, parent: &Arc<Inode>, entry: &DirEntry) -> Result<Option<Level>> {
        let path = entry.path();
        let metadata = metadata(&path)?;
        let key = (metadata.dev(), metadata.ino());
        if self.image == Some(key) {
            return Ok(None);
        }
        let engine = |error| engine_error(&path, error);
        let name = entry.file_name();
        if let Some(inode) = self.linked.get(&key) {
            let linked = self.filesystem.link(inode, parent, name.as_bytes());
            linked.map_err(engine)?;
            self.count(0);
            return Ok(None);
        }
        let inode = self.make(parent, name.as_bytes(), &path, &metadata)?;
        if metadata.is_dir() {
            let left = entries(&path)?.into_iter();
            self.count(0);
            return Ok(Some(Level {
                path,
                metadata,
                inode,
                left,
            }));
        }
        if metadata.is_file() {
            self.copy_data(&inode, &path)?;
        }
        self.copy_attributes(&inode, &path)?;
        self.set_rest(&inode, &path, &metadata)?;
        if metadata.nlink() > 1 {
            self.linked.insert(key, inode);
        }
        self.count(0);
        Ok(None)
    }

    fn count(&mut self, bytes: u64) {
        self.done.bytes += bytes;
        self.done.files += u64::from(bytes == 0);
        (self.report)(self.done);
    }

    /// Makes the inode, without content.
    fn make(
        &self,
        parent: &Arc<Inode>,
        name: &[u8],
        path: &Path,
        metadata: &Metadata,
    ) -> Result<Arc<Inode>> {
        let engine = |error| engine_error(path, error);
        let full_mode = (metadata.mode() & 0o177_777) as u16;
        let file_type = full_mode & S_IFMT;
        let target = if file_type == S_IFLNK {
            let target = fs::read_link(path).map_err(|error| source_error(path, error))?;
            target.into_os_string()
        } else {
            Default::default()
        };
        let rdev = metadata.rdev();
        let node = NewNode {
            // Until it is finished nothing may inherit from a directory.
            mode: if file_type == S_IFDIR {
                S_IFDIR | 0o700
            } else {
                full_mode
            },
            uid: metadata.uid(),
            gid: metadata.gid(),
            device: DeviceNumber {
                major: rustix::fs::major(rdev),
                minor: rustix::fs::minor(rdev),
            },
            target: target.as_bytes(),
            ..NewNode::default()
        };
        match self.filesystem.create(parent, name, &node) {
            // lost+found is there already.
            Err(kfs::Error::Exists) if file_type == S_IFDIR => {
                let inode = self.filesystem.lookup(parent, name).map_err(engine)?;
                self.set_owner(&inode, path, metadata)?;
                Ok(inode)
            }
            result => result.map_err(engine),
        }
    }

    /// Copies the data of a regular file, leaving holes where there are holes.
    fn copy_data(&mut self, inode: &Arc<Inode>, path: &Path) -> Result<()> {
        let source = |error| source_error(path, error);
        let file = File::open(path).map_err(source)?;
        let size = file.metadata().map_err(source)?.len();
        let mut at = 0;
        while let Some(data) = source_file::next_data(&file, at, size).map_err(source)? {
            at = data.start;
            while at < data.end {
                let len = (data.end - at).min(CHUNK as u64) as usize;
                let read = file.read_at(&mut self.buffer[..len], at).map_err(source)?;
                if read == 0 {
                    // The file became shorter while it was copied: the rest is a hole.
                    at = size;
                    break;
                }
                self.write(inode, path, at, read)?;
                at += read as u64;
                self.count(read as u64);
            }
        }
        if inode.size_bytes() != size {
            let change = SetAttr {
                size_bytes: Some(size),
                ..SetAttr::default()
            };
            let result = self.filesystem.set_attr(inode, &change);
            result.map_err(|error| engine_error(path, error))?;
        }
        Ok(())
    }

    /// Writes the first `len` bytes of the buffer.
    fn write(&self, inode: &Arc<Inode>, path: &Path, offset: u64, len: usize) -> Result<()> {
        let options = WriteOptions {
            privileged: true,
            ..WriteOptions::default()
        };
        let mut done = 0;
        while done < len {
            let mut data = SliceSource::new(&self.buffer[done..len]);
            let at = offset + done as u64;
            let result = self
                .filesystem
                .write(inode, at, len - done, &mut data, options);
            done += result.map_err(|error| engine_error(path, error))?;
        }
        Ok(())
    }

    fn copy_attributes(&self, inode: &Arc<Inode>, path: &Path) -> Result<()> {
        let attributes = source_file::attributes(path);
        for Attribute { name, value } in attributes.map_err(|error| source_error(path, error))? {
            let result = self
                .filesystem
                .set_xattr(inode, &name, &value, SetMode::Any, false);
            match result {
                // Such as system.nfs4_acl, which only its own file system understands.
                Err(kfs::Error::NotSupported) => {
                    let name = String::from_utf8_lossy(&name);
                    log::warn!("{}: attribute {name} is left out", path.display());
                }
                result => result.map_err(|error| engine_error(path, error))?,
            }
        }
        Ok(())
    }

    /// Sets what changes by other changes: the mode, which ACLs change, and the times.
    fn set_rest(&self, inode: &Arc<Inode>, path: &Path, metadata: &Metadata) -> Result<()> {
        let mode = (metadata.mode() & 0o7777) as u16;
        let time = |seconds, nanoseconds: i64| {
            let nanoseconds = nanoseconds as u32;
            Some(TimeChange::To(Timestamp {
                seconds,
                nanoseconds,
            }))
        };
        let is_link = metadata.is_symlink();
        let same_mode = self.filesystem.attr(inode).mode & !S_IFMT == mode;
        let change = SetAttr {
            mode: (!is_link && !same_mode).then_some(mode),
            atime: time(metadata.atime(), metadata.atime_nsec()),
            mtime: time(metadata.mtime(), metadata.mtime_nsec()),
            ..SetAttr::default()
        };
        let result = self.filesystem.set_attr(inode, &change);
        result.map_err(|error| engine_error(path, error)).map(drop)
    }

    fn set_owner(&self, inode: &Arc<Inode>, path: &Path, metadata: &Metadata) -> Result<()> {
        let change = SetAttr {
            uid: Some(metadata.uid()),
            gid: Some(metadata.gid()),
            ..SetAttr::default()
        };
        let result = self.filesystem.set_attr(inode, &change);
        result.map_err(|error| engine_error(path, error)).map(drop)
    }

    fn finish_directory(&self, level: &Level) -> Result<()> {
        let Level {
            path,
            metadata,
            inode,
            ..
        } = level;
        self.copy_attributes(inode, path)?;
        if inode.nr() == kfs::InodeNr::ROOT {
            self.set_owner(inode, path, metadata)?;
        }
        self.set_rest(inode, path, metadata)
    }
}
