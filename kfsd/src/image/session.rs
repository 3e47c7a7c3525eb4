//! One guest's or mount's view of an image: each FUSE operation decoded, done by `kfs`, encoded.

use super::data::{Sink, Source};
use super::errno::errno;
use super::ioctl::flags_ioctl;
use super::nodes::{Nodes, SNAPSHOTS_ID};
use super::open::{FH_WRITE, O_EXCL, O_TRUNC};
use super::snapshot_dir::{SNAPSHOT_DIR_COOKIE, SnapshotTrees};
use super::tree::Tree;
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
use kfs::{Filesystem, NewNode, RenameMode, SeekTarget, SetMode, SpaceChange, WriteOptions};
use rustix::io::Errno;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

const S_IFREG: u16 = 0o100_000;
const S_IFLNK: u16 = 0o120_000;
const S_IFMT: u32 = 0o170_000;

/// Most bytes that one COPY_FILE_RANGE copies before it answers.
const COPY_MAX: u64 = 64 << 20;

/// A session of an [`Image`](super::Image).
pub struct Session {
    pub(super) live: Arc<Tree>,
    pub(super) rules: Arc<Rules>,
    pub(super) nodes: Nodes,
    /// Snapshots to look into, where that is wanted.
    pub(super) snapshots: Option<Arc<SnapshotTrees>>,
}

/// Whether set-id bits go when somebody changes a file without saying so in the request. Root keeps
/// them, who has CAP_FSETID; capabilities of files go in any case.
fn loses_privileges(ctx: &Context) -> bool {
    ctx.uid != 0
}

/// What a session never agrees to: locks stay with each guest, and ids are taken as they come.
/// Nor is a file truncated by opening it: Linux finds out after that whether the file is being executed.
const NEVER: InitFlags = InitFlags::POSIX_LOCKS
    .union(InitFlags::ATOMIC_O_TRUNC)
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
        salt: u32,
        rules: Arc<Rules>,
        snapshots: Option<Arc<SnapshotTrees>>,
    ) -> kfs::Result<Self> {
        let live = Arc::new(Tree::live(filesystem));
        let nodes = Nodes::new(Arc::clone(&live), salt)?;
        Ok(Self {
            live,
            rules,
            nodes,
            snapshots,
        })
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
        if parent == SNAPSHOTS_ID {
            return self.lookup_snapshot(name);
        }
        let directory = self.nodes.get(parent)?;
        match directory.fs().lookup(&directory, name) {
            Ok(inode) => Ok(self.entry(&directory.sibling(inode))),
            Err(kfs::Error::NotFound) if self.is_snapshot_dir(&directory, name) => {
                Ok(self.snapshots_entry())
            }
            Err(kfs::Error::NotFound) => Ok(Entry::negative(self.rules.timeout)),
            Err(error) => Err(directory.errno()(error)),
        }
    }

    fn forget(&self, node: u64, count: u64) {
        self.nodes.forget(node, count);
    }

    fn getattr(&self, _ctx: &Context, node: u64, _fh: Option<u64>) -> Result<(Attr, Duration)> {
        if node == SNAPSHOTS_ID {
            return Ok((self.snapshots_attr(), self.rules.timeout));
        }
        Ok(self.attr(&self.nodes.get(node)?))
    }

    fn setattr(
        &self,
        _ctx: &Context,
        node: u64,
        change: &SetAttr,
        _fh: Option<u64>,
    ) -> Result<(Attr, Duration)> {
        let _change = self.live.filesystem.begin_change();
        let inode = self.nodes.get(node)?;
        let change = convert::set_attr(change);
        inode
            .fs()
            .set_attr(&inode, &change)
            .map_err(inode.errno())?;
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
        if node == SNAPSHOTS_ID {
            return Ok((self.snapshots_statx(), self.rules.timeout));
        }
        let inode = self.nodes.get(node)?;
        Ok((inode.statx(), self.rules.timeout))
    }

    fn readlink(&self, _ctx: &Context, node: u64, target: &mut DataSink<'_>) -> Result<()> {
        let inode = self.nodes.get(node)?;
        target.write(&inode.fs().read_link(&inode).map_err(inode.errno())?)
    }

    fn symlink(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        target: &[u8],
        creation: &Creation<'_>,
    ) -> Result<Entry> {
        let _change = self.live.filesystem.begin_change();
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
        let _change = self.live.filesystem.begin_change();
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
        let _change = self.live.filesystem.begin_change();
        let mode = 0o040_000 | (mode as u16 & 0o7777);
        let node = NewNode {
            mode,
            ..NewNode::default()
        };
        Ok(self.entry(&self.make(ctx, parent, name, node, creation)?))
    }

    fn unlink(&self, _ctx: &Context, parent: u64, name: &[u8]) -> Result<()> {
        let _change = self.live.filesystem.begin_change();
        let directory = self.nodes.get(parent)?;
        directory
            .fs()
            .unlink(&directory, name)
            .map_err(directory.errno())
    }

    fn rmdir(&self, _ctx: &Context, parent: u64, name: &[u8]) -> Result<()> {
        let _change = self.live.filesystem.begin_change();
        let directory = self.nodes.get(parent)?;
        if self.is_snapshot_dir(&directory, name) {
            return Err(Errno::BUSY);
        }
        directory
            .fs()
            .rmdir(&directory, name)
            .map_err(directory.errno())
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
        let _change = self.live.filesystem.begin_change();
        const WHITEOUT: u32 = 4;
        let mode = match flags & !WHITEOUT {
            0 => RenameMode::Replace,
            1 => RenameMode::NoReplace,
            2 => RenameMode::Exchange,
            _ => return Err(Errno::INVAL),
        };
        let (old, new) = (self.nodes.get(parent)?, self.nodes.get(new_parent)?);
        let fs = old.common_fs(&new)?;
        if self.is_snapshot_dir(&old, name) || self.is_snapshot_dir(&new, new_name) {
            return Err(Errno::BUSY);
        }
        let renamed = if flags & WHITEOUT == 0 {
            fs.rename(&old, name, &new, new_name, mode)
        } else {
            let owner = NewNode {
                uid: ctx.uid,
                gid: ctx.gid,
                ..NewNode::default()
            };
            fs.rename_with_whiteout(&old, name, &new, new_name, mode, &owner)
        };
        renamed.map_err(old.errno())
    }

    fn link(&self, _ctx: &Context, node: u64, new_parent: u64, new_name: &[u8]) -> Result<Entry> {
        let _change = self.live.filesystem.begin_change();
        let (inode, directory) = (self.nodes.get(node)?, self.nodes.get(new_parent)?);
        let fs = inode.common_fs(&directory)?;
        if self.is_snapshot_dir(&directory, new_name) {
            return Err(Errno::EXIST);
        }
        fs.link(&inode, &directory, new_name)
            .map_err(inode.errno())?;
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
        let _change = truncates.then(|| self.live.filesystem.begin_change());
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
        let _change = self.live.filesystem.begin_change();
        let node = NewNode {
            mode: S_IFREG | (mode as u16 & 0o7777),
            ..NewNode::default()
        };
        let (inode, flags) = match self.make(ctx, parent, name, node, creation) {
            Ok(inode) => (inode, flags & !O_TRUNC),
            Err(Errno::EXIST) if flags & O_EXCL == 0 => {
                // Another session was faster.
                let directory = self.nodes.get(parent)?;
                let found = directory.fs().lookup(&directory, name);
                let inode = found.map_err(directory.errno())?;
                (directory.sibling(inode), flags)
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
        let _change = self.live.filesystem.begin_change();
        let directory = self.nodes.get(parent)?;
        let node = NewNode {
            mode: S_IFREG | (mode as u16 & 0o7777),
            ..NewNode::default()
        };
        let node = Self::new_node(ctx, node, creation);
        let made = directory.fs().create_unnamed(&directory, &node);
        let inode = directory.sibling(made.map_err(directory.errno())?);
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
        inode
            .fs()
            .read(&inode, offset, len, &mut Sink(data))
            .map_err(inode.errno())?;
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
        let _change = self.live.filesystem.begin_change();
        let inode = self.nodes.get(node)?;
        let is_cached = flags.contains(WriteFlags::CACHE);
        let fh = if is_cached { 0 } else { fh };
        let kills = flags.contains(WriteFlags::KILL_SUIDGID);
        let options = WriteOptions {
            delayed: is_cached,
            ..Self::write_options(ctx, kills, fh)
        };
        let len = data.remaining();
        let written = inode
            .fs()
            .write(&inode, offset, len, &mut Source(data), options)
            .map_err(inode.errno())?;
        u32::try_from(written).map_err(|_| Errno::INVAL)
    }

    fn statfs(&self, _ctx: &Context, _node: u64) -> Result<Kstatfs> {
        Ok(convert::statfs(&self.live.filesystem.space()))
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
            inode.fs().finish_writing(&inode);
        }
        Ok(())
    }

    fn fsync(&self, _ctx: &Context, node: u64, _fh: u64, data_only: bool) -> Result<()> {
        let inode = self.nodes.get(node)?;
        inode.fs().fsync(&inode, data_only).map_err(inode.errno())
    }

    fn syncfs(&self, _ctx: &Context) -> Result<()> {
        let fs = &self.live.filesystem;
        fs.sync().map_err(errno(fs))
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
        let _change = self.live.filesystem.begin_change();
        let mode = match flags {
            0 => SetMode::Any,
            1 => SetMode::Create,
            2 => SetMode::Replace,
            3 => SetMode::Neither,
            _ => return Err(Errno::INVAL),
        };
        let kills = request_flags.contains(SetxattrFlags::ACL_KILL_SGID);
        let inode = self.nodes.get(node)?;
        inode
            .fs()
            .set_xattr(&inode, name, value, mode, kills)
            .map_err(inode.errno())
    }

    fn getxattr(
        &self,
        _ctx: &Context,
        node: u64,
        name: &[u8],
        value: &mut XattrSink<'_, '_>,
    ) -> Result<()> {
        if node == SNAPSHOTS_ID {
            return Err(Errno::NODATA);
        }
        let inode = self.nodes.get(node)?;
        value.put(&inode.fs().get_xattr(&inode, name).map_err(inode.errno())?)
    }

    fn listxattr(&self, ctx: &Context, node: u64, names: &mut XattrSink<'_, '_>) -> Result<()> {
        if node == SNAPSHOTS_ID {
            return Ok(());
        }
        let inode = self.nodes.get(node)?;
        for name in inode.fs().list_xattrs(&inode).map_err(inode.errno())? {
            if ctx.uid == 0 || !name.is_trusted() {
                names.put_name(&name.full())?;
            }
        }
        Ok(())
    }

    fn removexattr(&self, _ctx: &Context, node: u64, name: &[u8]) -> Result<()> {
        let _change = self.live.filesystem.begin_change();
        let inode = self.nodes.get(node)?;
        inode.fs().remove_xattr(&inode, name).map_err(inode.errno())
    }

    fn opendir(&self, _ctx: &Context, node: u64, _flags: u32) -> Result<Opened> {
        if node != SNAPSHOTS_ID && !self.nodes.get(node)?.is_directory() {
            return Err(Errno::NOTDIR);
        }
        let flags = match self.rules.cache {
            // Nobody is told when a snapshot comes or goes.
            _ if node == SNAPSHOTS_ID => FopenFlags::empty(),
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
        if node == SNAPSHOTS_ID {
            self.list_snapshots(offset, entries);
            return Ok(());
        }
        let directory = self.nodes.get(node)?;
        if offset == SNAPSHOT_DIR_COOKIE {
            return Ok(());
        }
        let (mut is_whole, mut has_some) = (true, false);
        let mut add = |listed: &kfs::ListedEntry<'_>| {
            if self.add_listed(&directory, listed, entries) {
                has_some = true;
                ControlFlow::Continue(())
            } else {
                is_whole = false;
                ControlFlow::Break(())
            }
        };
        match directory.fs().list(&directory, offset, &mut add) {
            Ok(()) => {}
            // The client has to hear of those whose lookup counts now; the next call meets the error again.
            Err(_) if has_some => return Ok(()),
            Err(error) => return Err(directory.errno()(error)),
        }
        if is_whole {
            self.list_snapshot_dir(&directory, entries);
        }
        Ok(())
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
        let _change = self.live.filesystem.begin_change();
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
        inode
            .fs()
            .change_space(&inode, offset, len, change, options)
            .map_err(inode.errno())
    }

    fn lseek(&self, _ctx: &Context, node: u64, _fh: u64, offset: u64, whence: u32) -> Result<u64> {
        const SEEK_DATA: u32 = 3;
        const SEEK_HOLE: u32 = 4;
        let target = match whence {
            SEEK_DATA => SeekTarget::Data,
            SEEK_HOLE => SeekTarget::Hole,
            _ => return Err(Errno::INVAL),
        };
        let inode = self.nodes.get(node)?;
        inode
            .fs()
            .seek(&inode, offset, target)
            .map_err(inode.errno())
    }

    fn copy_file_range(&self, ctx: &Context, range: &CopyRange) -> Result<u32> {
        let _change = self.live.filesystem.begin_change();
        if range.flags != 0 {
            return Err(Errno::INVAL);
        }
        let (source, _, source_offset) = range.source;
        let (target, _, target_offset) = range.target;
        let (source, target) = (self.nodes.get(source)?, self.nodes.get(target)?);
        let fs = source.common_fs(&target)?;
        let options = Self::write_options(ctx, loses_privileges(ctx), 0);
        let copied = fs
            .copy_range(
                (&source, source_offset),
                (&target, target_offset),
                range.len.min(COPY_MAX),
                options,
            )
            .map_err(source.errno())?;
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
        let _change = self.live.filesystem.begin_change();
        flags_ioctl(&self.nodes.get(node)?, command, input, output)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}
