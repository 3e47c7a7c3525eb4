//! One guest's or mount's view of an image: each FUSE operation decoded, done by `kfs`, encoded.

use super::data::{Sink, Source};
use super::errno::errno;
use super::nodes::Nodes;
use super::{Rules, convert};
use crate::config::CachePolicy;
use crate::fuse::abi::{Attr, Kstatfs, Statx};
use crate::fuse::flags::{
    FopenFlags, InitFlags, IoctlFlags, OpenRequestFlags, ReleaseFlags, SetxattrFlags, WriteFlags,
};
use crate::fuse::{
    Context, CopyRange, Creation, DataSink, DataSource, DirSink, Entry, FileSystem, InitReply,
    InitRequest, Opened, Result, SetAttr, Usage, XattrSink,
};
use kfs::{
    Filesystem, Inode, InodeFlags, NewNode, RenameMode, SeekTarget, SetMode, SpaceChange,
    WriteOptions,
};
use rustix::io::Errno;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

const O_ACCMODE: u32 = 0o3;
const O_APPEND: u32 = 0o2000;
const O_TRUNC: u32 = 0o1000;
const O_EXCL: u32 = 0o200;

const S_IFREG: u16 = 0o100_000;
const S_IFLNK: u16 = 0o120_000;
const S_IFMT: u32 = 0o170_000;

/// What a file handle says: no state is behind it, so a restarted daemon understands it.
const FH_APPEND: u64 = 1;
const FH_WRITE: u64 = 2;

/// Most bytes that one COPY_FILE_RANGE copies before it answers.
const COPY_MAX: u64 = 64 << 20;

/// A session of an [`Image`](super::Image).
pub struct Session {
    pub(super) filesystem: Arc<Filesystem>,
    rules: Arc<Rules>,
    nodes: Nodes,
}

/// Whether set-id bits go when somebody changes a file without saying so in the request. Root keeps
/// them, who has CAP_FSETID; capabilities of files go in any case.
fn loses_privileges(ctx: &Context) -> bool {
    ctx.uid != 0
}

/// What a session never agrees to: locks stay with each guest, and ids are taken as they come.
const NEVER: InitFlags = InitFlags::POSIX_LOCKS
    .union(InitFlags::FLOCK_LOCKS)
    .union(InitFlags::EXPORT_SUPPORT)
    .union(InitFlags::HANDLE_KILLPRIV)
    .union(InitFlags::NO_OPEN_SUPPORT)
    .union(InitFlags::SUBMOUNTS)
    .union(InitFlags::HAS_INODE_DAX)
    .union(InitFlags::PASSTHROUGH)
    .union(InitFlags::ALLOW_IDMAP);

impl Session {
    pub(super) fn new(
        filesystem: Arc<Filesystem>,
        epoch: u32,
        rules: Arc<Rules>,
    ) -> kfs::Result<Self> {
        let nodes = Nodes::new(Arc::clone(&filesystem), epoch)?;
        Ok(Self {
            filesystem,
            rules,
            nodes,
        })
    }

    fn block_size(&self) -> u32 {
        self.filesystem.volume().geometry.block_size
    }

    fn attr(&self, inode: &Inode) -> (Attr, Duration) {
        let attr = self.filesystem.attr(inode);
        (convert::attr(&attr, self.block_size()), self.rules.timeout)
    }

    /// The entry of an inode whose lookup counts.
    fn entry(&self, inode: &Arc<Inode>) -> Entry {
        let nodeid = self.nodes.remember(inode);
        let (attr, timeout) = self.attr(inode);
        Entry {
            nodeid,
            generation: u64::from(inode.generation()),
            attr,
            attr_timeout: timeout,
            entry_timeout: timeout,
        }
    }

    fn make(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        node: NewNode<'_>,
        creation: &Creation<'_>,
    ) -> Result<Arc<Inode>> {
        let directory = self.nodes.get(parent)?;
        let node = Self::new_node(ctx, node, creation);
        self.filesystem
            .create(&directory, name, &node)
            .map_err(errno(&self.filesystem))
    }

    fn new_node<'a>(ctx: &Context, node: NewNode<'a>, creation: &Creation<'a>) -> NewNode<'a> {
        NewNode {
            umask: creation.umask as u16 & 0o777,
            uid: ctx.uid,
            gid: ctx.gid,
            label: creation.security.map(|label| (label.name, label.value)),
            ..node
        }
    }

    /// Opens a file that exists.
    fn open_inode(
        &self,
        inode: &Arc<Inode>,
        flags: u32,
        request_flags: OpenRequestFlags,
    ) -> Result<Opened> {
        let writes = flags & O_ACCMODE != 0;
        if writes || flags & O_TRUNC != 0 {
            self.check_open_for_write(inode, flags)?;
        }
        if flags & O_TRUNC != 0 {
            let change = kfs::SetAttr {
                size_bytes: Some(0),
                kill_privileges: request_flags.contains(OpenRequestFlags::KILL_SUIDGID),
                ..kfs::SetAttr::default()
            };
            self.filesystem
                .set_attr(inode, &change)
                .map_err(errno(&self.filesystem))?;
        }
        let mut fh = 0;
        if flags & O_APPEND != 0 && !self.rules.writeback {
            fh |= FH_APPEND;
        }
        if writes {
            fh |= FH_WRITE;
        }
        Ok(Opened {
            fh,
            flags: self.open_flags(),
        })
    }

    fn check_open_for_write(&self, inode: &Inode, flags: u32) -> Result<()> {
        if self.filesystem.volume().read_only().is_some() {
            return Err(Errno::ROFS);
        }
        let has = self.filesystem.attr(inode).flags;
        let appends = flags & O_APPEND != 0 && flags & O_TRUNC == 0;
        if has.contains(InodeFlags::IMMUTABLE) || (has.contains(InodeFlags::APPEND) && !appends) {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    fn open_flags(&self) -> FopenFlags {
        match self.rules.cache {
            CachePolicy::Always => FopenFlags::KEEP_CACHE,
            CachePolicy::Never | CachePolicy::Metadata => FopenFlags::DIRECT_IO,
            CachePolicy::Auto => FopenFlags::empty(),
        }
    }

    /// Adds an entry of a listing, with attributes and a lookup where they are asked for; false when
    /// the sink is full.
    fn add_listed(&self, listed: &kfs::ListedEntry<'_>, entries: &mut DirSink<'_, '_>) -> bool {
        let ino = u64::from(listed.entry.inode.0);
        let kind = convert::dirent_kind(listed.entry.file_type);
        if !entries.wants_entries() {
            return entries.add(ino, listed.cookie, kind, listed.name);
        }
        let mut entry = Entry::default();
        entry.attr.ino = ino;
        let is_dot = matches!(listed.name, b"." | b"..");
        if !is_dot && entries.fits(listed.name) {
            // An entry without an inode is still listed; looking it up will tell what is wrong.
            if let Ok(inode) = self.filesystem.inode_of(&listed.entry) {
                entry = self.entry(&inode);
            }
        }
        entries.add_entry(&entry, listed.cookie, kind, listed.name)
    }

    fn write_options(ctx: &Context, kills: bool, fh: u64) -> WriteOptions {
        WriteOptions {
            kill_privileges: kills,
            privileged: ctx.uid == 0,
            append: fh & FH_APPEND != 0,
            delayed: false,
        }
    }
}

impl FileSystem for Session {
    fn init(&self, request: &InitRequest, reply: &mut InitReply) -> Result<()> {
        reply.flags.remove(NEVER);
        // ACLs are inherited here, so the umask has to come along.
        let acl = InitFlags::POSIX_ACL | InitFlags::DONT_MASK;
        reply.flags.set(acl, request.offered.contains(acl));
        reply
            .flags
            .set(InitFlags::WRITEBACK_CACHE, self.rules.writeback);
        for flag in [InitFlags::DO_READDIRPLUS, InitFlags::READDIRPLUS_AUTO] {
            reply.flags.set(flag, self.rules.readdirplus);
        }
        Ok(())
    }

    fn destroy(&self) {
        self.nodes.clear();
    }

    fn usage(&self) -> Option<Usage> {
        Some(Usage {
            handles: 0,
            nodes: self.nodes.count() as u64,
        })
    }

    fn lookup(&self, _ctx: &Context, parent: u64, name: &[u8]) -> Result<Entry> {
        let directory = self.nodes.get(parent)?;
        match self.filesystem.lookup(&directory, name) {
            Ok(inode) => Ok(self.entry(&inode)),
            Err(kfs::Error::NotFound) => Ok(Entry::negative(self.rules.timeout)),
            Err(error) => Err(errno(&self.filesystem)(error)),
        }
    }

    fn forget(&self, node: u64, count: u64) {
        self.nodes.forget(node, count);
    }

    fn getattr(&self, _ctx: &Context, node: u64, _fh: Option<u64>) -> Result<(Attr, Duration)> {
        Ok(self.attr(&*self.nodes.get(node)?))
    }

    fn setattr(
        &self,
        _ctx: &Context,
        node: u64,
        change: &SetAttr,
        _fh: Option<u64>,
    ) -> Result<(Attr, Duration)> {
        let _change = self.filesystem.begin_change();
        let inode = self.nodes.get(node)?;
        let change = convert::set_attr(change);
        self.filesystem
            .set_attr(&inode, &change)
            .map_err(errno(&self.filesystem))?;
        Ok(self.attr(&inode))
    }

    fn statx(
        &self,
        _ctx: &Context,
        node: u64,
        _fh: Option<u64>,
        _flags: u32,
        _mask: u32,
    ) -> Result<(Statx, Duration)> {
        let inode = self.nodes.get(node)?;
        let attr = self.filesystem.attr(&inode);
        Ok((convert::statx(&attr, self.block_size()), self.rules.timeout))
    }

    fn readlink(&self, _ctx: &Context, node: u64, target: &mut DataSink<'_>) -> Result<()> {
        let inode = self.nodes.get(node)?;
        target.write(
            &self
                .filesystem
                .read_link(&inode)
                .map_err(errno(&self.filesystem))?,
        )
    }

    fn symlink(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        target: &[u8],
        creation: &Creation<'_>,
    ) -> Result<Entry> {
        let _change = self.filesystem.begin_change();
        let node = NewNode {
            mode: S_IFLNK | 0o777,
            target,
            ..NewNode::default()
        };
        Ok(self.entry(&self.make(ctx, parent, name, node, creation)?))
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
        let _change = self.filesystem.begin_change();
        let mode = if mode & S_IFMT == 0 {
            mode | u32::from(S_IFREG)
        } else {
            mode
        };
        let kind = mode & S_IFMT;
        if kind == u32::from(S_IFLNK) || kind == 0o040_000 {
            return Err(Errno::INVAL);
        }
        let device = convert::decode_device(rdev);
        let node = NewNode {
            mode: mode as u16,
            device,
            ..NewNode::default()
        };
        Ok(self.entry(&self.make(ctx, parent, name, node, creation)?))
    }

    fn mkdir(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        mode: u32,
        creation: &Creation<'_>,
    ) -> Result<Entry> {
        let _change = self.filesystem.begin_change();
        let mode = 0o040_000 | (mode as u16 & 0o7777);
        let node = NewNode {
            mode,
            ..NewNode::default()
        };
        Ok(self.entry(&self.make(ctx, parent, name, node, creation)?))
    }

    fn unlink(&self, _ctx: &Context, parent: u64, name: &[u8]) -> Result<()> {
        let _change = self.filesystem.begin_change();
        self.filesystem
            .unlink(&*self.nodes.get(parent)?, name)
            .map_err(errno(&self.filesystem))
    }

    fn rmdir(&self, _ctx: &Context, parent: u64, name: &[u8]) -> Result<()> {
        let _change = self.filesystem.begin_change();
        self.filesystem
            .rmdir(&*self.nodes.get(parent)?, name)
            .map_err(errno(&self.filesystem))
    }

    fn rename(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()> {
        let _change = self.filesystem.begin_change();
        const WHITEOUT: u32 = 4;
        let mode = match flags & !WHITEOUT {
            0 => RenameMode::Replace,
            1 => RenameMode::NoReplace,
            2 => RenameMode::Exchange,
            _ => return Err(Errno::INVAL),
        };
        let (old, new) = (self.nodes.get(parent)?, self.nodes.get(new_parent)?);
        let renamed = if flags & WHITEOUT == 0 {
            self.filesystem.rename(&old, name, &new, new_name, mode)
        } else {
            let owner = NewNode {
                uid: ctx.uid,
                gid: ctx.gid,
                ..NewNode::default()
            };
            self.filesystem
                .rename_with_whiteout(&old, name, &new, new_name, mode, &owner)
        };
        renamed.map_err(errno(&self.filesystem))
    }

    fn link(&self, _ctx: &Context, node: u64, new_parent: u64, new_name: &[u8]) -> Result<Entry> {
        let _change = self.filesystem.begin_change();
        let (inode, directory) = (self.nodes.get(node)?, self.nodes.get(new_parent)?);
        self.filesystem
            .link(&inode, &directory, new_name)
            .map_err(errno(&self.filesystem))?;
        Ok(self.entry(&inode))
    }

    fn open(
        &self,
        _ctx: &Context,
        node: u64,
        flags: u32,
        request_flags: OpenRequestFlags,
    ) -> Result<Opened> {
        let truncates = flags & O_TRUNC != 0;
        let _change = truncates.then(|| self.filesystem.begin_change());
        self.open_inode(&self.nodes.get(node)?, flags, request_flags)
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
        let _change = self.filesystem.begin_change();
        let node = NewNode {
            mode: S_IFREG | (mode as u16 & 0o7777),
            ..NewNode::default()
        };
        let (inode, flags) = match self.make(ctx, parent, name, node, creation) {
            Ok(inode) => (inode, flags & !O_TRUNC),
            Err(Errno::EXIST) if flags & O_EXCL == 0 => {
                // Another session was faster.
                let directory = self.nodes.get(parent)?;
                (
                    self.filesystem
                        .lookup(&directory, name)
                        .map_err(errno(&self.filesystem))?,
                    flags,
                )
            }
            Err(error) => return Err(error),
        };
        let opened = self.open_inode(&inode, flags, request_flags)?;
        Ok((self.entry(&inode), opened))
    }

    fn tmpfile(
        &self,
        ctx: &Context,
        parent: u64,
        mode: u32,
        flags: u32,
        creation: &Creation<'_>,
    ) -> Result<(Entry, Opened)> {
        let _change = self.filesystem.begin_change();
        let directory = self.nodes.get(parent)?;
        let node = NewNode {
            mode: S_IFREG | (mode as u16 & 0o7777),
            ..NewNode::default()
        };
        let node = Self::new_node(ctx, node, creation);
        let inode = self
            .filesystem
            .create_unnamed(&directory, &node)
            .map_err(errno(&self.filesystem))?;
        let entry = self.entry(&inode);
        Ok((
            entry,
            self.open_inode(&inode, flags, OpenRequestFlags::empty())?,
        ))
    }

    fn read(
        &self,
        _ctx: &Context,
        node: u64,
        _fh: u64,
        offset: u64,
        size: u32,
        data: &mut DataSink<'_>,
    ) -> Result<()> {
        let inode = self.nodes.get(node)?;
        let len = (size as usize).min(data.remaining());
        self.filesystem
            .read(&inode, offset, len, &mut Sink(data))
            .map_err(errno(&self.filesystem))?;
        Ok(())
    }

    fn write(
        &self,
        ctx: &Context,
        node: u64,
        fh: u64,
        offset: u64,
        flags: WriteFlags,
        data: &mut DataSource<'_>,
    ) -> Result<u32> {
        let _change = self.filesystem.begin_change();
        let inode = self.nodes.get(node)?;
        let is_cached = flags.contains(WriteFlags::CACHE);
        let fh = if is_cached { 0 } else { fh };
        let kills = flags.contains(WriteFlags::KILL_SUIDGID);
        let options = WriteOptions {
            delayed: is_cached,
            ..Self::write_options(ctx, kills, fh)
        };
        let len = data.remaining();
        let written = self
            .filesystem
            .write(&inode, offset, len, &mut Source(data), options)
            .map_err(errno(&self.filesystem))?;
        u32::try_from(written).map_err(|_| Errno::INVAL)
    }

    fn statfs(&self, _ctx: &Context, _node: u64) -> Result<Kstatfs> {
        Ok(convert::statfs(&self.filesystem.space()))
    }

    fn release(
        &self,
        _ctx: &Context,
        node: u64,
        fh: u64,
        _flags: ReleaseFlags,
        _lock_owner: Option<u64>,
    ) -> Result<()> {
        if fh & FH_WRITE != 0
            && let Ok(inode) = self.nodes.get(node)
        {
            self.filesystem.finish_writing(&inode);
        }
        Ok(())
    }

    fn fsync(&self, _ctx: &Context, node: u64, _fh: u64, data_only: bool) -> Result<()> {
        self.filesystem
            .fsync(&*self.nodes.get(node)?, data_only)
            .map_err(errno(&self.filesystem))
    }

    fn syncfs(&self, _ctx: &Context) -> Result<()> {
        self.filesystem.sync().map_err(errno(&self.filesystem))
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
        let _change = self.filesystem.begin_change();
        let mode = match flags {
            0 => SetMode::Any,
            1 => SetMode::Create,
            2 => SetMode::Replace,
            3 => SetMode::Neither,
            _ => return Err(Errno::INVAL),
        };
        let kills = request_flags.contains(SetxattrFlags::ACL_KILL_SGID);
        let inode = self.nodes.get(node)?;
        self.filesystem
            .set_xattr(&inode, name, value, mode, kills)
            .map_err(errno(&self.filesystem))
    }

    fn getxattr(
        &self,
        _ctx: &Context,
        node: u64,
        name: &[u8],
        value: &mut XattrSink<'_, '_>,
    ) -> Result<()> {
        let inode = self.nodes.get(node)?;
        value.put(
            &self
                .filesystem
                .get_xattr(&inode, name)
                .map_err(errno(&self.filesystem))?,
        )
    }

    fn listxattr(&self, ctx: &Context, node: u64, names: &mut XattrSink<'_, '_>) -> Result<()> {
        let inode = self.nodes.get(node)?;
        for name in self
            .filesystem
            .list_xattrs(&inode)
            .map_err(errno(&self.filesystem))?
        {
            if ctx.uid == 0 || !name.is_trusted() {
                names.put_name(&name.full())?;
            }
        }
        Ok(())
    }

    fn removexattr(&self, _ctx: &Context, node: u64, name: &[u8]) -> Result<()> {
        let _change = self.filesystem.begin_change();
        self.filesystem
            .remove_xattr(&self.nodes.get(node)?, name)
            .map_err(errno(&self.filesystem))
    }

    fn opendir(&self, _ctx: &Context, node: u64, _flags: u32) -> Result<Opened> {
        if !self.nodes.get(node)?.is_directory() {
            return Err(Errno::NOTDIR);
        }
        let flags = match self.rules.cache {
            CachePolicy::Always | CachePolicy::Metadata => {
                FopenFlags::CACHE_DIR | FopenFlags::KEEP_CACHE
            }
            CachePolicy::Auto | CachePolicy::Never => FopenFlags::empty(),
        };
        Ok(Opened { fh: 0, flags })
    }

    fn readdir(
        &self,
        _ctx: &Context,
        node: u64,
        _fh: u64,
        offset: u64,
        entries: &mut DirSink<'_, '_>,
    ) -> Result<()> {
        let directory = self.nodes.get(node)?;
        let mut add = |listed: &kfs::ListedEntry<'_>| {
            if self.add_listed(listed, entries) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        };
        self.filesystem
            .list(&directory, offset, &mut add)
            .map_err(errno(&self.filesystem))
    }

    fn releasedir(&self, _ctx: &Context, _node: u64, _fh: u64) -> Result<()> {
        Ok(())
    }

    fn fsyncdir(&self, ctx: &Context, node: u64, fh: u64, data_only: bool) -> Result<()> {
        self.fsync(ctx, node, fh, data_only)
    }

    fn fallocate(
        &self,
        ctx: &Context,
        node: u64,
        _fh: u64,
        offset: u64,
        len: u64,
        mode: u32,
    ) -> Result<()> {
        let _change = self.filesystem.begin_change();
        const KEEP_SIZE: u32 = 0x01;
        const PUNCH_HOLE: u32 = 0x02;
        const ZERO_RANGE: u32 = 0x10;
        let keep_size = mode & KEEP_SIZE != 0;
        let change = match mode & !KEEP_SIZE {
            0 => SpaceChange::Allocate { keep_size },
            PUNCH_HOLE if keep_size => SpaceChange::PunchHole,
            ZERO_RANGE => SpaceChange::ZeroRange { keep_size },
            _ => return Err(Errno::OPNOTSUPP),
        };
        let inode = self.nodes.get(node)?;
        let options = Self::write_options(ctx, loses_privileges(ctx), 0);
        self.filesystem
            .change_space(&inode, offset, len, change, options)
            .map_err(errno(&self.filesystem))
    }

    fn lseek(&self, _ctx: &Context, node: u64, _fh: u64, offset: u64, whence: u32) -> Result<u64> {
        const SEEK_DATA: u32 = 3;
        const SEEK_HOLE: u32 = 4;
        let target = match whence {
            SEEK_DATA => SeekTarget::Data,
            SEEK_HOLE => SeekTarget::Hole,
            _ => return Err(Errno::INVAL),
        };
        self.filesystem
            .seek(&self.nodes.get(node)?, offset, target)
            .map_err(errno(&self.filesystem))
    }

    fn copy_file_range(&self, ctx: &Context, range: &CopyRange) -> Result<u32> {
        let _change = self.filesystem.begin_change();
        if range.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (source, _, source_offset) = range.source;
        let (target, _, target_offset) = range.target;
        let (source, target) = (self.nodes.get(source)?, self.nodes.get(target)?);
        let options = Self::write_options(ctx, loses_privileges(ctx), 0);
        let copied = self
            .filesystem
            .copy_range(
                (&source, source_offset),
                (&target, target_offset),
                range.len.min(COPY_MAX),
                options,
            )
            .map_err(errno(&self.filesystem))?;
        u32::try_from(copied).map_err(|_| Errno::INVAL)
    }

    fn ioctl(
        &self,
        _ctx: &Context,
        node: u64,
        _fh: u64,
        _flags: IoctlFlags,
        command: u32,
        input: &[u8],
        output: &mut DataSink<'_>,
    ) -> Result<i32> {
        let _change = self.filesystem.begin_change();
        self.flags_ioctl(&*self.nodes.get(node)?, command, input, output)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}
