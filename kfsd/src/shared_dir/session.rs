//! One guest's or mount's view of the directory: the FUSE operations, most of them in the files
//! beside this one.

use super::handle::Handles;
use super::node::{self, Node, Nodes};
use super::{HostFds, Rules, attributes};
use crate::fuse::abi::{Attr, Kstatfs, Statx};
use crate::fuse::flags::{
    AttrFlags, InitFlags, OpenRequestFlags, ReleaseFlags, SetattrValid, SetxattrFlags, WriteFlags,
};
use crate::fuse::{
    Context, CopyRange, Creation, DataSink, DataSource, DirSink, Entry, FileSystem, InitReply,
    InitRequest, Opened, Result, SetAttr, Usage, XattrSink,
};
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid};
use rustix::io::Errno;
use rustix::path::DecInt;
use std::sync::Arc;
use std::time::Duration;

/// A session of a [`SharedDir`](super::SharedDir).
#[derive(Debug)]
pub struct Session {
    pub(super) host: Arc<HostFds>,
    pub(super) rules: Arc<Rules>,
    pub(super) nodes: Nodes,
    pub(super) handles: Handles,
}

/// What a session never agrees to: locks stay with each guest, handles are always used, and ids
/// are taken as they come.
const NEVER: InitFlags = InitFlags::POSIX_LOCKS
    .union(InitFlags::FLOCK_LOCKS)
    .union(InitFlags::EXPORT_SUPPORT)
    .union(InitFlags::HANDLE_KILLPRIV)
    .union(InitFlags::NO_OPEN_SUPPORT)
    .union(InitFlags::NO_OPENDIR_SUPPORT)
    .union(InitFlags::EXPLICIT_INVAL_DATA)
    .union(InitFlags::HAS_INODE_DAX)
    .union(InitFlags::PASSTHROUGH)
    .union(InitFlags::ALLOW_IDMAP);

impl Session {
    pub(super) fn new(host: Arc<HostFds>, rules: Arc<Rules>) -> Result<Self> {
        let root = rustix::io::fcntl_dupfd_cloexec(&host.root, 3)?;
        Ok(Self {
            host,
            rules,
            nodes: Nodes::new(root)?,
            handles: Handles::new(),
        })
    }

    /// Fails where changes are refused.
    pub(super) fn check_writable(&self) -> Result<()> {
        if self.rules.read_only {
            Err(Errno::ROFS)
        } else {
            Ok(())
        }
    }

    /// Opens a node for I/O. Devices, fifos and sockets are the guest kernel's own business.
    pub(super) fn open_node(&self, node: &Node, flags: OFlags) -> Result<OwnedFd> {
        match node.kind {
            FileType::RegularFile | FileType::Directory => {}
            FileType::Symlink => return Err(Errno::LOOP),
            _ => return Err(Errno::NXIO),
        }
        let flags = flags | OFlags::CLOEXEC | OFlags::NOCTTY;
        rustix::fs::openat(
            &self.host.proc_self_fd,
            DecInt::from_fd(&node.fd),
            flags,
            Mode::empty(),
        )
    }

    /// Makes an entry of an O_PATH descriptor that was found in `parent`, counting a lookup.
    pub(super) fn entry(&self, parent: &Node, fd: OwnedFd) -> Result<(Entry, Arc<Node>)> {
        let stat = node::stat(&fd)?;
        let (nodeid, node) = self.nodes.remember(fd, &stat)?;
        let mut attr = attributes::attr(&stat);
        if self.rules.options.announce_submounts
            && node.kind == FileType::Directory
            && !node.identity.same_mount(&parent.identity)
        {
            attr.flags |= AttrFlags::SUBMOUNT.bits();
        }
        let timeout = self.rules.timeout;
        let entry = Entry {
            nodeid,
            generation: 0,
            attr,
            attr_timeout: timeout,
            entry_timeout: timeout,
        };
        Ok((entry, node))
    }

    /// Finds a name, which is one component and neither "." nor "..".
    pub(super) fn find(&self, parent: &Node, name: &[u8]) -> Result<Entry> {
        if name == b"." || name == b".." || name.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&parent.fd, name, flags, Mode::empty())?;
        Ok(self.entry(parent, fd)?.0)
    }

    /// Attributes of an open file where the guest has one, which works after its removal too.
    fn stat(&self, node: u64, fh: Option<u64>) -> Result<rustix::fs::Statx> {
        match fh.filter(|&fh| fh != 0) {
            Some(fh) => node::stat(&self.handles.get(fh, node)?.file),
            None => node::stat(&self.nodes.get(node)?.fd),
        }
    }

    fn change(&self, node: &Node, id: u64, change: &SetAttr, fh: Option<u64>) -> Result<()> {
        let valid = change.valid;
        let proc_self_fd = &self.host.proc_self_fd;
        if valid.contains(SetattrValid::MODE) {
            let mode = Mode::from_raw_mode(change.mode & 0o7777);
            rustix::fs::chmodat(
                proc_self_fd,
                DecInt::from_fd(&node.fd),
                mode,
                AtFlags::empty(),
            )?;
        }
        if valid.intersects(SetattrValid::UID | SetattrValid::GID) {
            // The value of all ones means "unchanged" to the host and is no id.
            let id = |flag, id| match (valid.contains(flag), id) {
                (true, u32::MAX) => Err(Errno::INVAL),
                (true, id) => Ok(Some(id)),
                (false, _) => Ok(None),
            };
            let uid = id(SetattrValid::UID, change.uid)?.map(Uid::from_raw);
            let gid = id(SetattrValid::GID, change.gid)?.map(Gid::from_raw);
            let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(&node.fd, c"", uid, gid, flags)?;
        }
        if valid.contains(SetattrValid::SIZE) {
            self.resize(node, id, change, fh)?;
        }
        let times = SetattrValid::ATIME | SetattrValid::MTIME;
        let now = SetattrValid::ATIME_NOW | SetattrValid::MTIME_NOW;
        if valid.intersects(times | now) {
            let times = timestamps(change)?;
            let name = DecInt::from_fd(&node.fd);
            rustix::fs::utimensat(proc_self_fd, name, &times, AtFlags::empty())?;
        }
        Ok(())
    }
}

fn timestamps(change: &SetAttr) -> Result<Timestamps> {
    let time = |set, now, (tv_sec, tv_nsec): (i64, u32)| {
        let tv_nsec = if change.valid.contains(now) {
            rustix::fs::UTIME_NOW
        } else if !change.valid.contains(set) {
            rustix::fs::UTIME_OMIT
        } else if tv_nsec < 1_000_000_000 {
            tv_nsec.into()
        } else {
            return Err(Errno::INVAL);
        };
        Ok(Timespec { tv_sec, tv_nsec })
    };
    Ok(Timestamps {
        last_access: time(SetattrValid::ATIME, SetattrValid::ATIME_NOW, change.atime)?,
        last_modification: time(SetattrValid::MTIME, SetattrValid::MTIME_NOW, change.mtime)?,
    })
}

impl FileSystem for Session {
    fn init(&self, _request: &InitRequest, reply: &mut InitReply) -> Result<()> {
        let rules = &self.rules;
        reply.flags.remove(NEVER);
        let optional = [
            (InitFlags::WRITEBACK_CACHE, rules.writeback),
            (InitFlags::DO_READDIRPLUS, rules.readdirplus),
            (InitFlags::READDIRPLUS_AUTO, rules.readdirplus),
            (InitFlags::POSIX_ACL, rules.options.posix_acl),
            (InitFlags::DONT_MASK, rules.options.posix_acl),
            (InitFlags::SECURITY_CTX, rules.options.security_label),
            (InitFlags::SUBMOUNTS, rules.options.announce_submounts),
            (InitFlags::HANDLE_KILLPRIV_V2, rules.options.killpriv_v2),
        ];
        for (flag, wanted) in optional {
            reply.flags.set(flag, wanted);
        }
        Ok(())
    }

    fn destroy(&self) {
        self.handles.clear();
        self.nodes.clear();
    }

    fn usage(&self) -> Option<Usage> {
        Some(Usage {
            handles: self.handles.count() as u64,
            nodes: self.nodes.count() as u64,
        })
    }

    fn lookup(&self, _ctx: &Context, parent: u64, name: &[u8]) -> Result<Entry> {
        self.find(&*self.nodes.get(parent)?, name)
    }

    fn forget(&self, node: u64, count: u64) {
        self.nodes.forget(node, count);
    }

    fn getattr(&self, _ctx: &Context, node: u64, fh: Option<u64>) -> Result<(Attr, Duration)> {
        Ok((attributes::attr(&self.stat(node, fh)?), self.rules.timeout))
    }

    fn setattr(
        &self,
        _ctx: &Context,
        node: u64,
        change: &SetAttr,
        fh: Option<u64>,
    ) -> Result<(Attr, Duration)> {
        self.check_writable()?;
        let held = self.nodes.get(node)?;
        self.change(&held, node, change, fh.filter(|&fh| fh != 0))?;
        Ok((attributes::attr(&node::stat(&held.fd)?), self.rules.timeout))
    }

    fn statx(
        &self,
        _ctx: &Context,
        node: u64,
        fh: Option<u64>,
        _flags: u32,
        _mask: u32,
    ) -> Result<(Statx, Duration)> {
        Ok((attributes::statx(&self.stat(node, fh)?), self.rules.timeout))
    }

    fn readlink(&self, _ctx: &Context, node: u64, target: &mut DataSink<'_>) -> Result<()> {
        let node = self.nodes.get(node)?;
        let mut buffer = [0; 4096];
        let len = rustix::fs::readlinkat_raw(&node.fd, c"", &mut buffer)?;
        target.write(&buffer[..len])
    }

    fn symlink(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        target: &[u8],
        creation: &Creation<'_>,
    ) -> Result<Entry> {
        self.make_symlink(ctx, parent, name, target, creation)
    }

    fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        mode: u32,
        rdev: u32,
        creation: &Creation<'_>,
    ) -> Result<Entry> {
        self.make_node(ctx, parent, name, mode, rdev, creation)
    }

    fn mkdir(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        mode: u32,
        creation: &Creation<'_>,
    ) -> Result<Entry> {
        self.make_directory(ctx, parent, name, mode, creation)
    }

    fn unlink(&self, _ctx: &Context, parent: u64, name: &[u8]) -> Result<()> {
        self.remove(parent, name, AtFlags::empty())
    }

    fn rmdir(&self, _ctx: &Context, parent: u64, name: &[u8]) -> Result<()> {
        self.remove(parent, name, AtFlags::REMOVEDIR)
    }

    fn rename(
        &self,
        _ctx: &Context,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        self.move_name((parent, name), (new_parent, new_name), flags)
    }

    fn link(&self, _ctx: &Context, node: u64, new_parent: u64, new_name: &[u8]) -> Result<Entry> {
        self.make_link(node, new_parent, new_name)
    }

    fn open(
        &self,
        _ctx: &Context,
        node: u64,
        flags: u32,
        request_flags: OpenRequestFlags,
    ) -> Result<Opened> {
        self.open_file(node, flags, request_flags)
    }

    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        mode: u32,
        flags: u32,
        request_flags: OpenRequestFlags,
        creation: &Creation<'_>,
    ) -> Result<(Entry, Opened)> {
        self.create_file(ctx, (parent, name), mode, flags, request_flags, creation)
    }

    fn tmpfile(
        &self,
        ctx: &Context,
        parent: u64,
        mode: u32,
        flags: u32,
        creation: &Creation<'_>,
    ) -> Result<(Entry, Opened)> {
        self.create_nameless(ctx, parent, mode, flags, creation)
    }

    fn read(
        &self,
        _ctx: &Context,
        node: u64,
        fh: u64,
        offset: u64,
        size: u32,
        data: &mut DataSink<'_>,
    ) -> Result<()> {
        self.read_file(node, fh, offset, size, data)
    }

    fn write(
        &self,
        _ctx: &Context,
        node: u64,
        fh: u64,
        offset: u64,
        flags: WriteFlags,
        data: &mut DataSource<'_>,
    ) -> Result<u32> {
        self.write_file(node, fh, offset, flags, data)
    }

    fn statfs(&self, _ctx: &Context, node: u64) -> Result<Kstatfs> {
        Ok(attributes::statfs(&rustix::fs::fstatvfs(
            &self.nodes.get(node)?.fd,
        )?))
    }

    fn flush(&self, _ctx: &Context, node: u64, fh: u64, _lock_owner: u64) -> Result<()> {
        // Closing a copy of the descriptor gives the errors of delayed writes (NFS).
        drop(rustix::io::fcntl_dupfd_cloexec(
            &self.handles.get(fh, node)?.file,
            3,
        )?);
        Ok(())
    }

    fn release(
        &self,
        _ctx: &Context,
        node: u64,
        fh: u64,
        _flags: ReleaseFlags,
        _lock_owner: Option<u64>,
    ) -> Result<()> {
        self.handles.remove(fh, node)
    }

    fn fsync(&self, _ctx: &Context, node: u64, fh: u64, data_only: bool) -> Result<()> {
        let handle = self.handles.get(fh, node)?;
        if data_only {
            rustix::fs::fdatasync(&handle.file)
        } else {
            rustix::fs::fsync(&handle.file)
        }
    }

    fn syncfs(&self, _ctx: &Context) -> Result<()> {
        for node in self.nodes.one_per_device() {
            rustix::fs::syncfs(self.open_node(&node, OFlags::RDONLY | OFlags::NONBLOCK)?)?;
        }
        Ok(())
    }

    fn setxattr(
        &self,
        _ctx: &Context,
        node: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
        request_flags: SetxattrFlags,
    ) -> Result<()> {
        self.set_attribute(node, name, value, flags, request_flags)
    }

    fn getxattr(
        &self,
        _ctx: &Context,
        node: u64,
        name: &[u8],
        value: &mut XattrSink<'_, '_>,
    ) -> Result<()> {
        self.get_attribute(node, name, value)
    }

    fn listxattr(&self, _ctx: &Context, node: u64, names: &mut XattrSink<'_, '_>) -> Result<()> {
        self.list_attributes(node, names)
    }

    fn removexattr(&self, _ctx: &Context, node: u64, name: &[u8]) -> Result<()> {
        self.remove_attribute(node, name)
    }

    fn opendir(&self, _ctx: &Context, node: u64, _flags: u32) -> Result<Opened> {
        self.open_directory(node)
    }

    fn readdir(
        &self,
        _ctx: &Context,
        node: u64,
        fh: u64,
        offset: u64,
        entries: &mut DirSink<'_, '_>,
    ) -> Result<()> {
        self.list(node, fh, offset, entries)
    }

    fn releasedir(&self, _ctx: &Context, node: u64, fh: u64) -> Result<()> {
        self.handles.remove(fh, node)
    }

    fn fsyncdir(&self, ctx: &Context, node: u64, fh: u64, data_only: bool) -> Result<()> {
        self.fsync(ctx, node, fh, data_only)
    }

    fn fallocate(
        &self,
        _ctx: &Context,
        node: u64,
        fh: u64,
        offset: u64,
        len: u64,
        mode: u32,
    ) -> Result<()> {
        self.change_space(node, fh, offset..offset.saturating_add(len), mode)
    }

    fn lseek(&self, _ctx: &Context, node: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        self.seek(node, fh, offset, whence)
    }

    fn copy_file_range(&self, _ctx: &Context, range: &CopyRange) -> Result<u32> {
        self.copy_range(range)
    }
}
