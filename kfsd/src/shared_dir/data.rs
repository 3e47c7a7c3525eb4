//! Operations on open files and directories.
//!
//! Data moves between the guest's memory and the host file in one system call; nothing is copied
//! here.

use super::credentials::{ActingUser, WithoutFsetid};
use super::node::Node;
use super::session::Session;
use crate::config::CachePolicy;
use crate::fuse::flags::{FopenFlags, OpenRequestFlags, SetattrValid, WriteFlags};
use crate::fuse::{
    Context, CopyRange, Creation, DataSink, DataSource, DirSink, Entry, Opened, Result, SetAttr,
};
use rustix::fd::OwnedFd;
use rustix::fs::{FallocateFlags, FileType, Mode, OFlags, RawDir, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};
use rustix::path::DecInt;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::ops::Range;

/// Most slices that one preadv(2) or pwritev(2) takes.
const MAX_SLICES: usize = 1024;
/// Bytes of directory entries to ask the host for at a time.
const DIR_BUFFER: usize = 32 << 10;
/// Most bytes that one COPY_FILE_RANGE copies: its answer has 32 bits.
const MAX_COPY: u64 = 1 << 30;
/// `whence` of lseek(2).
const SEEK_DATA: u32 = 3;
const SEEK_HOLE: u32 = 4;

impl Session {
    /// What of a guest's open flags the host gets to see.
    fn host_flags(&self, flags: u32) -> OFlags {
        let wanted = OFlags::from_bits_retain(flags);
        let mut kept = OFlags::RWMODE | OFlags::TRUNC | OFlags::SYNC | OFlags::DSYNC;
        kept.set(OFlags::DIRECT, self.rules.options.allow_direct_io);
        kept.set(OFlags::NOATIME, self.rules.options.preserve_noatime);
        let mut flags = wanted & kept;
        // A kernel that delays writes reads the pages it changes only in part.
        if self.rules.writeback && flags & OFlags::RWMODE == OFlags::WRONLY {
            flags = (flags - OFlags::RWMODE) | OFlags::RDWR;
        }
        flags
    }

    fn check_open(&self, flags: u32) -> Result<()> {
        let flags = OFlags::from_bits_retain(flags);
        if flags & OFlags::RWMODE == OFlags::RDONLY && !flags.contains(OFlags::TRUNC) {
            return Ok(());
        }
        self.check_writable()
    }

    fn opened(&self, node: u64, file: OwnedFd, flags: u32) -> Opened {
        // With delayed writes the guest's kernel knows where the end of the file is.
        let append =
            !self.rules.writeback && OFlags::from_bits_retain(flags).contains(OFlags::APPEND);
        let flags = match self.rules.cache {
            CachePolicy::Auto => FopenFlags::empty(),
            CachePolicy::Always => FopenFlags::KEEP_CACHE,
            CachePolicy::Never | CachePolicy::Metadata => {
                FopenFlags::DIRECT_IO | FopenFlags::PARALLEL_DIRECT_WRITES
            }
        };
        Opened {
            fh: self.handles.insert(node, file, append),
            flags,
        }
    }

    pub(super) fn open_file(
        &self,
        node: u64,
        flags: u32,
        request_flags: OpenRequestFlags,
    ) -> Result<Opened> {
        self.check_open(flags)?;
        let held = self.nodes.get(node)?;
        let _kill = WithoutFsetid::new(request_flags.contains(OpenRequestFlags::KILL_SUIDGID))?;
        let file = self.open_node(&held, self.host_flags(flags))?;
        Ok(self.opened(node, file, flags))
    }

    pub(super) fn create_file(
        &self,
        ctx: &Context,
        (parent, name): (u64, &[u8]),
        mode: u32,
        flags: u32,
        request_flags: OpenRequestFlags,
        creation: &Creation<'_>,
    ) -> Result<(Entry, Opened)> {
        self.check_writable()?;
        let directory = self.nodes.get(parent)?;
        let mode = self.mode_in(&directory, mode, creation)?;
        let host_flags = (self.host_flags(flags) - OFlags::TRUNC)
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC;
        let made = {
            let _acting = ActingUser::new(ctx.uid, ctx.gid, creation.supplementary_group)?;
            rustix::fs::openat(&directory.fd, name, host_flags, mode)
        };
        match made {
            Ok(file) => {
                let created = self.adopt(&directory, file, flags, creation);
                if created.is_err() {
                    let _ = rustix::fs::unlinkat(&directory.fd, name, rustix::fs::AtFlags::empty());
                }
                created
            }
            Err(Errno::EXIST) if !OFlags::from_bits_retain(flags).contains(OFlags::EXCL) => {
                let entry = self.find(&directory, name)?;
                match self.open_file(entry.nodeid, flags, request_flags) {
                    Ok(opened) => Ok((entry, opened)),
                    Err(errno) => {
                        self.nodes.forget(entry.nodeid, 1);
                        Err(errno)
                    }
                }
            }
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn create_nameless(
        &self,
        ctx: &Context,
        parent: u64,
        mode: u32,
        flags: u32,
        creation: &Creation<'_>,
    ) -> Result<(Entry, Opened)> {
        self.check_writable()?;
        let directory = self.nodes.get(parent)?;
        let mode = self.mode_in(&directory, mode, creation)?;
        let exclusive = OFlags::from_bits_retain(flags) & OFlags::EXCL;
        let host_flags =
            (self.host_flags(flags) - OFlags::TRUNC) | OFlags::TMPFILE | OFlags::CLOEXEC;
        let file = {
            let _acting = ActingUser::new(ctx.uid, ctx.gid, creation.supplementary_group)?;
            rustix::fs::openat(&directory.fd, c".", host_flags | exclusive, mode)?
        };
        self.adopt(&directory, file, flags, creation)
    }

    /// Makes node and handle of a file just created and open. Its descriptor says what it is, so
    /// it does not matter what has become of its name.
    fn adopt(
        &self,
        directory: &Node,
        file: OwnedFd,
        flags: u32,
        creation: &Creation<'_>,
    ) -> Result<(Entry, Opened)> {
        let path_flags = OFlags::PATH | OFlags::CLOEXEC;
        let name = DecInt::from_fd(&file);
        let proc_self_fd = &self.host.proc_self_fd;
        let held = rustix::fs::openat(proc_self_fd, name, path_flags, Mode::empty())?;
        let (entry, _) = self.entry(directory, held)?;
        if let Err(errno) = self.label(entry.nodeid, creation) {
            self.nodes.forget(entry.nodeid, 1);
            return Err(errno);
        }
        let opened = self.opened(entry.nodeid, file, flags);
        Ok((entry, opened))
    }

    pub(super) fn read_file(
        &self,
        node: u64,
        fh: u64,
        mut offset: u64,
        size: u32,
        data: &mut DataSink<'_>,
    ) -> Result<()> {
        let handle = self.handles.get(fh, node)?;
        data.fill_with(size as usize, |mut slices| {
            let mut total = 0;
            while !slices.is_empty() {
                let count = slices.len().min(MAX_SLICES);
                match rustix::io::preadv(&handle.file, &mut slices[..count], offset) {
                    Ok(0) => break,
                    Ok(count) => {
                        total += count;
                        offset = offset.saturating_add(count as u64);
                        IoSliceMut::advance_slices(&mut slices, count);
                    }
                    Err(Errno::INTR) => {}
                    // What was read before the error is good.
                    Err(_) if total > 0 => break,
                    Err(errno) => return Err(errno),
                }
            }
            Ok(total)
        })?;
        Ok(())
    }

    pub(super) fn write_file(
        &self,
        node: u64,
        fh: u64,
        mut offset: u64,
        flags: WriteFlags,
        data: &mut DataSource<'_>,
    ) -> Result<u32> {
        self.check_writable()?;
        let handle = self.handles.get(fh, node)?;
        let mut how = ReadWriteFlags::empty();
        how.set(
            ReadWriteFlags::APPEND,
            handle.append && !flags.contains(WriteFlags::CACHE),
        );
        let _kill = WithoutFsetid::new(flags.contains(WriteFlags::KILL_SUIDGID))?;
        let mut total: u32 = 0;
        while data.remaining() > 0 {
            let written = data.with_buffers(data.remaining(), |slices| {
                let slices = &slices[..slices.len().min(MAX_SLICES)];
                if how.is_empty() {
                    rustix::io::pwritev(&handle.file, slices, offset)
                } else {
                    rustix::io::pwritev2(&handle.file, slices, offset, how)
                }
            });
            let count = match written {
                Ok(0) => break,
                Ok(count) => count,
                Err(Errno::INTR) => continue,
                Err(_) if total > 0 => break,
                Err(errno) => return Err(errno),
            };
            data.advance(count);
            total = total.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
            offset = offset.saturating_add(count as u64);
        }
        Ok(total)
    }

    pub(super) fn resize(
        &self,
        node: &Node,
        id: u64,
        change: &SetAttr,
        fh: Option<u64>,
    ) -> Result<()> {
        let _kill = WithoutFsetid::new(change.valid.contains(SetattrValid::KILL_SUIDGID))?;
        match fh {
            Some(fh) => rustix::fs::ftruncate(&self.handles.get(fh, id)?.file, change.size),
            None => {
                let file = self.open_node(node, OFlags::WRONLY | OFlags::NONBLOCK)?;
                rustix::fs::ftruncate(file, change.size)
            }
        }
    }

    pub(super) fn change_space(
        &self,
        node: u64,
        fh: u64,
        range: Range<u64>,
        mode: u32,
    ) -> Result<()> {
        self.check_writable()?;
        let handle = self.handles.get(fh, node)?;
        let mode = FallocateFlags::from_bits(mode).ok_or(Errno::OPNOTSUPP)?;
        rustix::fs::fallocate(&handle.file, mode, range.start, range.end - range.start)
    }

    pub(super) fn seek(&self, node: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        let handle = self.handles.get(fh, node)?;
        match whence {
            SEEK_DATA => rustix::fs::seek(&handle.file, SeekFrom::Data(offset)),
            SEEK_HOLE => rustix::fs::seek(&handle.file, SeekFrom::Hole(offset)),
            _ => Err(Errno::INVAL),
        }
    }

    pub(super) fn copy_range(&self, range: &CopyRange) -> Result<u32> {
        self.check_writable()?;
        if range.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (node, fh, mut source_offset) = range.source;
        let source = self.handles.get(fh, node)?;
        let (node, fh, mut target_offset) = range.target;
        let target = self.handles.get(fh, node)?;
        let len = usize::try_from(range.len.min(MAX_COPY)).unwrap_or(usize::MAX);
        let copied = rustix::fs::copy_file_range(
            &source.file,
            Some(&mut source_offset),
            &target.file,
            Some(&mut target_offset),
            len,
        )?;
        u32::try_from(copied).map_err(|_| Errno::OVERFLOW)
    }

    pub(super) fn open_directory(&self, node: u64) -> Result<Opened> {
        let held = self.nodes.get(node)?;
        let file = self.open_node(&held, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let flags = match self.rules.cache {
            CachePolicy::Auto | CachePolicy::Never => FopenFlags::empty(),
            CachePolicy::Always | CachePolicy::Metadata => {
                FopenFlags::CACHE_DIR | FopenFlags::KEEP_CACHE
            }
        };
        Ok(Opened {
            fh: self.handles.insert(node, file, false),
            flags,
        })
    }

    pub(super) fn list(
        &self,
        node: u64,
        fh: u64,
        offset: u64,
        entries: &mut DirSink<'_, '_>,
    ) -> Result<()> {
        let held = self.nodes.get(node)?;
        let handle = self.handles.get(fh, node)?;
        let _position = handle.position.lock();
        rustix::fs::seek(&handle.file, SeekFrom::Start(offset))?;
        let mut buffer = [MaybeUninit::uninit(); DIR_BUFFER];
        let mut found = RawDir::new(&handle.file, &mut buffer);
        let mut is_first = true;
        while let Some(entry) = found.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(_) if !is_first => break,
                Err(errno) => return Err(errno),
            };
            let name = entry.file_name().to_bytes();
            let next = entry.next_entry_cookie();
            let kind = d_type(entry.file_type());
            let added = if !entries.wants_entries() {
                entries.add(entry.ino(), next, kind, name)
            } else if !entries.fits(name) {
                false
            } else {
                let entry = self.listed(&held, name, entry.ino(), entry.file_type());
                let added = entries.add_entry(&entry, next, kind, name);
                if !added && entry.nodeid != 0 {
                    self.nodes.forget(entry.nodeid, 1);
                }
                added
            };
            if !added {
                break;
            }
            is_first = false;
        }
        Ok(())
    }

    /// The entry of a name in a list. One that cannot be looked up (it has just gone) is listed
    /// all the same, without a node: whoever uses it will learn more.
    fn listed(&self, directory: &Node, name: &[u8], ino: u64, kind: FileType) -> Entry {
        if name != b"."
            && name != b".."
            && let Ok(entry) = self.find(directory, name)
        {
            return entry;
        }
        let mut entry = Entry::default();
        entry.attr.ino = ino;
        entry.attr.mode = u32::from(d_type(kind)) << 12;
        entry
    }
}

/// The type of an entry as getdents(2) has it; 0 where the host does not say.
fn d_type(kind: FileType) -> u8 {
    match kind {
        FileType::Unknown => 0,
        kind => (kind.as_raw_mode() >> 12) as u8,
    }
}
