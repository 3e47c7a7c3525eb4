//! A file system for tests of the wire layer and the transports: a root, a directory `d`, a file
//! `f` whose bytes are in memory. It counts lookups, opens and ends.

use std::io::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;

use super::*;
use crate::fuse::abi::{Attr, Kstatfs};
use crate::fuse::flags::{FopenFlags, OpenRequestFlags, ReleaseFlags, SetxattrFlags, WriteFlags};

pub(crate) const FILE: u64 = 2;
pub(crate) const DIR: u64 = 3;
const TIMEOUT: Duration = Duration::from_millis(1500);

#[derive(Default)]
pub(crate) struct TinyFs {
    pub(crate) content: Mutex<Vec<u8>>,
    pub(crate) lookups: AtomicI64,
    pub(crate) begun: AtomicU64,
    pub(crate) ended: AtomicU64,
    pub(crate) synced: AtomicU64,
    /// What `read`, `write` and `lookup` fail with, when not 0.
    pub(crate) fail: AtomicI64,
    /// While somebody holds this, `fsync` waits.
    pub(crate) gate: Mutex<()>,
    pub(crate) label: Mutex<Vec<u8>>,
}

impl TinyFs {
    fn attr(&self, node: u64) -> Result<Attr> {
        let (mode, size) = match node {
            abi::ROOT_ID | DIR => (0o040_755, 4096),
            FILE => (0o100_644, self.content.lock().len() as u64),
            _ => return Err(Errno::STALE),
        };
        Ok(Attr {
            ino: node,
            size,
            blocks: size.div_ceil(512),
            mode,
            nlink: if node == FILE { 1 } else { 2 },
            blksize: 4096,
            ..Attr::default()
        })
    }

    fn check(&self) -> Result<()> {
        match self.fail.load(Ordering::Relaxed) {
            0 => Ok(()),
            raw => Err(Errno::from_raw_os_error(raw as i32)),
        }
    }

    fn entry(&self, node: u64) -> Result<Entry> {
        self.lookups.fetch_add(1, Ordering::Relaxed);
        Ok(Entry {
            nodeid: node,
            generation: 1,
            attr: self.attr(node)?,
            attr_timeout: TIMEOUT,
            entry_timeout: TIMEOUT,
        })
    }
}

impl FileSystem for TinyFs {
    fn init(&self, _: &InitRequest, _: &mut InitReply) -> Result<()> {
        self.begun.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn destroy(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
        self.lookups.store(0, Ordering::Relaxed);
    }

    fn lookup(&self, _: &Context, parent: u64, name: &[u8]) -> Result<Entry> {
        self.check()?;
        match (parent, name) {
            (abi::ROOT_ID, b"f") => self.entry(FILE),
            (abi::ROOT_ID, b"d") => self.entry(DIR),
            (abi::ROOT_ID | DIR, _) => Err(Errno::NOENT),
            (FILE, _) => Err(Errno::NOTDIR),
            _ => Err(Errno::STALE),
        }
    }

    fn forget(&self, _: u64, count: u64) {
        self.lookups.fetch_sub(count as i64, Ordering::Relaxed);
    }

    fn getattr(&self, _: &Context, node: u64, _: Option<u64>) -> Result<(Attr, Duration)> {
        Ok((self.attr(node)?, TIMEOUT))
    }

    fn setattr(
        &self,
        _: &Context,
        node: u64,
        change: &SetAttr,
        _: Option<u64>,
    ) -> Result<(Attr, Duration)> {
        if change.valid.contains(flags::SetattrValid::SIZE) && node == FILE {
            self.content.lock().resize(change.size as usize, 0);
        }
        Ok((self.attr(node)?, TIMEOUT))
    }

    fn readlink(&self, _: &Context, _: u64, _: &mut DataSink<'_>) -> Result<()> {
        Err(Errno::INVAL)
    }

    fn symlink(&self, _: &Context, _: u64, _: &[u8], _: &[u8], _: &Creation<'_>) -> Result<Entry> {
        Err(Errno::ROFS)
    }

    fn mknod(
        &self,
        _: &Context,
        _: u64,
        _: &[u8],
        _: u32,
        _: u32,
        _: &Creation<'_>,
    ) -> Result<Entry> {
        Err(Errno::ROFS)
    }

    fn mkdir(&self, _: &Context, _: u64, _: &[u8], _: u32, c: &Creation<'_>) -> Result<Entry> {
        let security = c.security.ok_or(Errno::ROFS)?;
        *self.label.lock() = security.value.to_vec();
        self.entry(DIR)
    }

    fn unlink(&self, _: &Context, _: u64, _: &[u8]) -> Result<()> {
        Err(Errno::ROFS)
    }

    fn rmdir(&self, _: &Context, _: u64, _: &[u8]) -> Result<()> {
        Err(Errno::ROFS)
    }

    fn rename(&self, _: &Context, _: u64, _: &[u8], _: u64, _: &[u8], _: u32) -> Result<()> {
        Err(Errno::ROFS)
    }

    fn link(&self, _: &Context, _: u64, _: u64, _: &[u8]) -> Result<Entry> {
        Err(Errno::ROFS)
    }

    fn open(&self, _: &Context, node: u64, _: u32, _: OpenRequestFlags) -> Result<Opened> {
        Ok(Opened {
            fh: node,
            flags: FopenFlags::empty(),
        })
    }

    fn create(
        &self,
        _: &Context,
        _: u64,
        _: &[u8],
        _: u32,
        _: u32,
        _: OpenRequestFlags,
        _: &Creation<'_>,
    ) -> Result<(Entry, Opened)> {
        Err(Errno::ROFS)
    }

    fn read(
        &self,
        _: &Context,
        node: u64,
        _: u64,
        offset: u64,
        size: u32,
        data: &mut DataSink<'_>,
    ) -> Result<()> {
        self.check()?;
        if node != FILE {
            return Err(Errno::ISDIR);
        }
        let content = self.content.lock();
        let start = content.len().min(offset as usize);
        let mut rest = &content[start..];
        let len = rest.len().min(size as usize);
        data.fill_with(len, |slices| {
            let copied = slices.iter_mut().map(|s| std::io::Read::read(&mut rest, s));
            Ok(copied.map(|count| count.unwrap()).sum())
        })?;
        Ok(())
    }

    fn write(
        &self,
        _: &Context,
        node: u64,
        _: u64,
        offset: u64,
        _: WriteFlags,
        data: &mut DataSource<'_>,
    ) -> Result<u32> {
        self.check()?;
        if node != FILE {
            return Err(Errno::ISDIR);
        }
        let mut content = self.content.lock();
        let end = offset as usize + data.remaining();
        if content.len() < end {
            content.resize(end, 0);
        }
        let mut target = &mut content[offset as usize..];
        let count = data.with_buffers(usize::MAX, |slices| target.write_vectored(slices).unwrap());
        data.advance(count);
        Ok(count as u32)
    }

    fn statfs(&self, _: &Context, _: u64) -> Result<Kstatfs> {
        Ok(Kstatfs {
            blocks: 1000,
            bsize: 4096,
            frsize: 4096,
            namelen: 255,
            ..Kstatfs::default()
        })
    }

    fn flush(&self, _: &Context, _: u64, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn release(&self, _: &Context, _: u64, _: u64, _: ReleaseFlags, _: Option<u64>) -> Result<()> {
        Ok(())
    }

    fn fsync(&self, _: &Context, _: u64, _: u64, _: bool) -> Result<()> {
        drop(self.gate.lock());
        self.synced.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn syncfs(&self, _: &Context) -> Result<()> {
        self.synced.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn setxattr(
        &self,
        _: &Context,
        _: u64,
        _: &[u8],
        _: &[u8],
        _: u32,
        _: SetxattrFlags,
    ) -> Result<()> {
        Err(Errno::ROFS)
    }

    fn getxattr(
        &self,
        _: &Context,
        _: u64,
        name: &[u8],
        value: &mut XattrSink<'_, '_>,
    ) -> Result<()> {
        if name != b"user.tiny" {
            return Err(Errno::NODATA);
        }
        value.put(b"value")
    }

    fn listxattr(&self, _: &Context, _: u64, names: &mut XattrSink<'_, '_>) -> Result<()> {
        names.put_name(b"user.tiny")
    }

    fn removexattr(&self, _: &Context, _: u64, _: &[u8]) -> Result<()> {
        Err(Errno::ROFS)
    }

    fn opendir(&self, _: &Context, node: u64, _: u32) -> Result<Opened> {
        Ok(Opened {
            fh: node,
            flags: FopenFlags::empty(),
        })
    }

    fn readdir(
        &self,
        _: &Context,
        node: u64,
        _: u64,
        offset: u64,
        entries: &mut DirSink<'_, '_>,
    ) -> Result<()> {
        let all: [(&[u8], u64, u8); 4] = [
            (b".", node, 4),
            (b"..", abi::ROOT_ID, 4),
            (b"f", FILE, 8),
            (b"d", DIR, 4),
        ];
        let count = if node == abi::ROOT_ID { 4 } else { 2 };
        for (index, (name, ino, kind)) in all.iter().enumerate().take(count) {
            let next = index as u64 + 1;
            if next <= offset {
                continue;
            }
            let added = match (entries.wants_entries(), name) {
                (false, _) => entries.add(*ino, next, *kind, name),
                (true, [b'.', ..]) => entries.add_entry(&Entry::default(), next, *kind, name),
                (true, _) => {
                    entries.fits(name) && entries.add_entry(&self.entry(*ino)?, next, *kind, name)
                }
            };
            if !added {
                break;
            }
        }
        Ok(())
    }

    fn releasedir(&self, _: &Context, _: u64, _: u64) -> Result<()> {
        Ok(())
    }

    fn fsyncdir(&self, _: &Context, _: u64, _: u64, _: bool) -> Result<()> {
        Ok(())
    }
}
