//! [`FileSystem`]: what a served tree must answer, one method per FUSE operation.
//!
//! One `FileSystem` object belongs to one session (one guest, or one mount): its lookup counts,
//! file handles and DAX mappings are the session's. Several objects may stand for one volume.
//! After [`destroy`](FileSystem::destroy) nothing of the session is left; another
//! [`init`](FileSystem::init) may follow.
//!
//! Methods run on several threads at a time. Node ids, handles, offsets, sizes and names come from
//! a guest: any of them may be wrong, and a wrong one is answered with an errno. The dispatcher
//! has checked only the shape: names that become entries are 1 to 255 bytes without '/' and NUL
//! and are not "." or "..", strings end where they should, sizes fit the reply.

use std::time::Duration;

use rustix::io::Errno;

use super::abi::{Attr, EntryOut, FileLock, Kstatfs, RemovemappingOne, SetupmappingIn, Statx};
use super::buffers::{DataSink, DataSource};
use super::flags::{
    FopenFlags, InitFlags, IoctlFlags, OpenRequestFlags, ReleaseFlags, SetattrValid, SetxattrFlags,
    WriteFlags,
};
use super::sinks::{DirSink, XattrSink};

/// What an operation gives back.
pub type Result<T> = std::result::Result<T, Errno>;

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Context {
    /// User id, of the guest where there is one.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Process id; 0 where it is not known.
    pub pid: u32,
    /// The request's number.
    pub unique: u64,
}

/// What the kernel offers in INIT.
#[derive(Clone, Copy, Debug)]
pub struct InitRequest {
    /// The protocol's minor number, the lower one of both sides.
    pub minor: u32,
    /// The kernel's read-ahead limit in bytes.
    pub max_readahead: u32,
    /// Everything the kernel can do.
    pub offered: InitFlags,
}

/// What we agree to in INIT, filled with defaults; a file system changes what it must.
#[derive(Clone, Copy, Debug)]
pub struct InitReply {
    /// What both sides will use. What the kernel did not offer is removed afterwards.
    pub flags: InitFlags,
    /// Read-ahead limit in bytes.
    pub max_readahead: u32,
    /// Most bytes in a WRITE.
    pub max_write: u32,
    /// Most pages in a request.
    pub max_pages: u16,
    /// Most background requests at a time.
    pub max_background: u16,
    /// Background requests from which on the kernel holds back.
    pub congestion_threshold: u16,
    /// Granularity of times in nanoseconds.
    pub time_gran: u32,
    /// log2 of the alignment of DAX mappings.
    pub map_alignment: u16,
}

/// A node found or made, and how long the kernel may believe it.
///
/// An entry that is handed out counts as one lookup of its node, until FORGET takes it back.
#[derive(Clone, Copy, Debug, Default)]
pub struct Entry {
    /// The node; 0 says that there is none and that this may be remembered for `entry_timeout`.
    pub nodeid: u64,
    /// With the node id unique for the life of the file system.
    pub generation: u64,
    /// Its attributes; `attr.flags` are [`AttrFlags`](super::flags::AttrFlags).
    pub attr: Attr,
    /// How long the attributes hold.
    pub attr_timeout: Duration,
    /// How long the name holds.
    pub entry_timeout: Duration,
}

impl Entry {
    /// "There is no such name", for `timeout`.
    pub fn negative(timeout: Duration) -> Self {
        Self {
            entry_timeout: timeout,
            ..Self::default()
        }
    }

    /// The wire form.
    pub fn encode(&self) -> EntryOut {
        EntryOut {
            nodeid: self.nodeid,
            generation: self.generation,
            entry_valid: self.entry_timeout.as_secs(),
            attr_valid: self.attr_timeout.as_secs(),
            entry_valid_nsec: self.entry_timeout.subsec_nanos(),
            attr_valid_nsec: self.attr_timeout.subsec_nanos(),
            attr: self.attr,
        }
    }
}

/// An open file or directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// The handle that later requests name.
    pub fh: u64,
    /// How the kernel treats it.
    pub flags: FopenFlags,
}

/// A change of attributes. Only the fields that `valid` names mean anything.
#[derive(Clone, Copy, Debug, Default)]
pub struct SetAttr {
    /// What to change.
    pub valid: SetattrValid,
    /// Permission bits (and the type, which does not change).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Access time: seconds (signed, as the kernel sends them) and nanoseconds.
    pub atime: (i64, u32),
    /// Modification time.
    pub mtime: (i64, u32),
    /// Change time.
    pub ctime: (i64, u32),
}

/// A security label for a new node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SecurityContext<'a> {
    /// The xattr's name, such as `security.selinux`.
    pub name: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// What every new node comes with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Creation<'a> {
    /// Permission bits to leave out, where DONT_MASK was agreed on; else already applied.
    pub umask: u32,
    /// The label to set on the node, in the same transaction.
    pub security: Option<SecurityContext<'a>>,
    /// The parent's group, when the caller has it as a supplementary group.
    pub supplementary_group: Option<u32>,
}

/// Arguments of a SETLK or SETLKW.
#[derive(Clone, Copy, Debug)]
pub struct SetLock {
    /// Who the lock belongs to.
    pub owner: u64,
    /// Range and type (F_RDLCK, F_WRLCK, F_UNLCK).
    pub lock: FileLock,
    /// Whether this is flock(2).
    pub flock: bool,
    /// Whether to wait for it.
    pub wait: bool,
}

/// Arguments of a COPY_FILE_RANGE.
#[derive(Clone, Copy, Debug)]
pub struct CopyRange {
    /// Node and handle to read, and where.
    pub source: (u64, u64, u64),
    /// Node and handle to write, and where.
    pub target: (u64, u64, u64),
    /// Bytes to copy.
    pub len: u64,
    /// Flags of copy_file_range(2).
    pub flags: u64,
}

/// What a file system holds for a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Files and directories that are open.
    pub handles: u64,
    /// Nodes that the kernel knows.
    pub nodes: u64,
}

/// What a served tree must answer. See the module's description for who calls and what is checked.
///
/// A default of ENOSYS stands only where the kernel has a good answer of its own to it.
#[expect(
    clippy::too_many_arguments,
    reason = "the arguments of the FUSE operations, passed without an allocation"
)]
pub trait FileSystem: Send + Sync {
    /// A session begins. `reply` holds the defaults; take out of it what you cannot do.
    fn init(&self, request: &InitRequest, reply: &mut InitReply) -> Result<()>;

    /// The session ended: drop lookup counts, handles, mappings. Also called before a second INIT
    /// and when the other side is gone. Must be harmless when called twice.
    fn destroy(&self);

    /// What is held for the session, for statistics.
    fn usage(&self) -> Option<Usage> {
        None
    }

    /// Finds a name. An entry with node id 0 or ENOENT says that there is none. "." and ".." come
    /// only when EXPORT_SUPPORT was agreed on.
    fn lookup(&self, ctx: &Context, parent: u64, name: &[u8]) -> Result<Entry>;

    /// Takes back `count` lookups of a node. Forgetting too often is to be ignored.
    fn forget(&self, node: u64, count: u64);

    /// Attributes of a node, open as `fh` where that is given.
    fn getattr(&self, ctx: &Context, node: u64, fh: Option<u64>) -> Result<(Attr, Duration)>;

    /// Changes attributes and returns the new ones.
    fn setattr(
        &self,
        ctx: &Context,
        node: u64,
        change: &SetAttr,
        fh: Option<u64>,
    ) -> Result<(Attr, Duration)>;

    /// Attributes with birth time. ENOSYS makes the kernel use GETATTR.
    fn statx(
        &self,
        ctx: &Context,
        node: u64,
        fh: Option<u64>,
        flags: u32,
        mask: u32,
    ) -> Result<(Statx, Duration)> {
        let _ = (ctx, node, fh, flags, mask);
        Err(Errno::NOSYS)
    }

    /// Writes the target of a symbolic link into `target`.
    fn readlink(&self, ctx: &Context, node: u64, target: &mut DataSink<'_>) -> Result<()>;

    /// Makes a symbolic link.
    fn symlink(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        target: &[u8],
        creation: &Creation<'_>,
    ) -> Result<Entry>;

    /// Makes a file, device node, fifo or socket, as the type in `mode` says.
    fn mknod(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        mode: u32,
        rdev: u32,
        creation: &Creation<'_>,
    ) -> Result<Entry>;

    /// Makes a directory.
    fn mkdir(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        mode: u32,
        creation: &Creation<'_>,
    ) -> Result<Entry>;

    /// Removes a name of anything but a directory.
    fn unlink(&self, ctx: &Context, parent: u64, name: &[u8]) -> Result<()>;

    /// Removes an empty directory.
    fn rmdir(&self, ctx: &Context, parent: u64, name: &[u8]) -> Result<()>;

    /// Renames; `flags` are those of renameat2(2).
    fn rename(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        new_parent: u64,
        new_name: &[u8],
        flags: u32,
    ) -> Result<()>;

    /// Makes another name for a node.
    fn link(&self, ctx: &Context, node: u64, new_parent: u64, new_name: &[u8]) -> Result<Entry>;

    /// Opens a file; `flags` are those of open(2). ENOSYS where NO_OPEN_SUPPORT was agreed on
    /// means that handles are not needed: from then on `fh` is 0 everywhere.
    fn open(
        &self,
        ctx: &Context,
        node: u64,
        flags: u32,
        request_flags: OpenRequestFlags,
    ) -> Result<Opened>;

    /// Makes and opens a file. An existing one is opened, unless `flags` has O_EXCL.
    fn create(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        mode: u32,
        flags: u32,
        request_flags: OpenRequestFlags,
        creation: &Creation<'_>,
    ) -> Result<(Entry, Opened)>;

    /// Makes and opens a file without a name (O_TMPFILE).
    fn tmpfile(
        &self,
        ctx: &Context,
        parent: u64,
        mode: u32,
        flags: u32,
        creation: &Creation<'_>,
    ) -> Result<(Entry, Opened)> {
        let _ = (ctx, parent, mode, flags, creation);
        Err(Errno::NOSYS)
    }

    /// Reads up to `size` bytes from `offset` into `data`; less only at the end of the file.
    /// `data` has room for `size` bytes.
    fn read(
        &self,
        ctx: &Context,
        node: u64,
        fh: u64,
        offset: u64,
        size: u32,
        data: &mut DataSink<'_>,
    ) -> Result<()>;

    /// Writes all that remains in `data` at `offset` and returns how many bytes were taken.
    fn write(
        &self,
        ctx: &Context,
        node: u64,
        fh: u64,
        offset: u64,
        flags: WriteFlags,
        data: &mut DataSource<'_>,
    ) -> Result<u32>;

    /// Numbers of the whole file system.
    fn statfs(&self, ctx: &Context, node: u64) -> Result<Kstatfs>;

    /// A descriptor was closed (there may be others of the same handle). ENOSYS stops these calls.
    fn flush(&self, ctx: &Context, node: u64, fh: u64, lock_owner: u64) -> Result<()> {
        let _ = (ctx, node, fh, lock_owner);
        Err(Errno::NOSYS)
    }

    /// The last descriptor of a handle was closed.
    fn release(
        &self,
        ctx: &Context,
        node: u64,
        fh: u64,
        flags: ReleaseFlags,
        lock_owner: Option<u64>,
    ) -> Result<()>;

    /// Makes a file durable.
    fn fsync(&self, ctx: &Context, node: u64, fh: u64, data_only: bool) -> Result<()>;

    /// Makes everything durable.
    fn syncfs(&self, ctx: &Context) -> Result<()>;

    /// Sets an extended attribute; `flags` are those of setxattr(2).
    fn setxattr(
        &self,
        ctx: &Context,
        node: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
        request_flags: SetxattrFlags,
    ) -> Result<()>;

    /// Puts the value of an extended attribute into `value`, or fails with ENODATA.
    fn getxattr(
        &self,
        ctx: &Context,
        node: u64,
        name: &[u8],
        value: &mut XattrSink<'_, '_>,
    ) -> Result<()>;

    /// Puts the names of all extended attributes into `names`.
    fn listxattr(&self, ctx: &Context, node: u64, names: &mut XattrSink<'_, '_>) -> Result<()>;

    /// Removes an extended attribute, or fails with ENODATA.
    fn removexattr(&self, ctx: &Context, node: u64, name: &[u8]) -> Result<()>;

    /// Opens a directory. ENOSYS is allowed as in [`open`](Self::open), by NO_OPENDIR_SUPPORT.
    fn opendir(&self, ctx: &Context, node: u64, flags: u32) -> Result<Opened>;

    /// Adds entries from `offset` on (0, or the `next_offset` of an earlier entry), until the sink
    /// is full or there are no more. The sink says which form it takes: with
    /// [`DirSink::wants_entries`] each entry but "." and ".." counts as a lookup.
    fn readdir(
        &self,
        ctx: &Context,
        node: u64,
        fh: u64,
        offset: u64,
        entries: &mut DirSink<'_, '_>,
    ) -> Result<()>;

    /// A directory was closed.
    fn releasedir(&self, ctx: &Context, node: u64, fh: u64) -> Result<()>;

    /// Makes a directory durable.
    fn fsyncdir(&self, ctx: &Context, node: u64, fh: u64, data_only: bool) -> Result<()>;

    /// Checks permissions, as access(2). ENOSYS: the kernel believes everything is allowed.
    fn access(&self, ctx: &Context, node: u64, mask: u32) -> Result<()> {
        let _ = (ctx, node, mask);
        Err(Errno::NOSYS)
    }

    /// Changes the space of a file; `mode` is that of fallocate(2).
    fn fallocate(
        &self,
        ctx: &Context,
        node: u64,
        fh: u64,
        offset: u64,
        len: u64,
        mode: u32,
    ) -> Result<()> {
        let _ = (ctx, node, fh, offset, len, mode);
        Err(Errno::NOSYS)
    }

    /// Finds data or a hole; `whence` is SEEK_DATA or SEEK_HOLE.
    fn lseek(&self, ctx: &Context, node: u64, fh: u64, offset: u64, whence: u32) -> Result<u64> {
        let _ = (ctx, node, fh, offset, whence);
        Err(Errno::NOSYS)
    }

    /// Copies within the file system and returns how many bytes. ENOSYS: the kernel copies.
    fn copy_file_range(&self, ctx: &Context, range: &CopyRange) -> Result<u32> {
        let _ = (ctx, range);
        Err(Errno::NOSYS)
    }

    /// Finds a lock that is in the way, or returns one of type F_UNLCK.
    fn getlk(&self, ctx: &Context, node: u64, fh: u64, lock: &SetLock) -> Result<FileLock> {
        let _ = (ctx, node, fh, lock);
        Err(Errno::NOSYS)
    }

    /// Takes or drops a lock.
    fn setlk(&self, ctx: &Context, node: u64, fh: u64, lock: &SetLock) -> Result<()> {
        let _ = (ctx, node, fh, lock);
        Err(Errno::NOSYS)
    }

    /// An ioctl, such as FS_IOC_GETFLAGS: `input` is what the command sends, `output` takes what
    /// it gives back (never more than the caller has room for). Returns the call's result. The
    /// kernel makes ENOTTY of ENOSYS.
    fn ioctl(
        &self,
        ctx: &Context,
        node: u64,
        fh: u64,
        flags: IoctlFlags,
        command: u32,
        input: &[u8],
        output: &mut DataSink<'_>,
    ) -> Result<i32> {
        let _ = (ctx, node, fh, flags, command, input, output);
        Err(Errno::NOSYS)
    }

    /// Maps a part of a file into the DAX window.
    fn setupmapping(&self, ctx: &Context, node: u64, mapping: &SetupmappingIn) -> Result<()> {
        let _ = (ctx, node, mapping);
        Err(Errno::NOSYS)
    }

    /// Takes a range out of the DAX window.
    fn removemapping(&self, ctx: &Context, node: u64, range: &RemovemappingOne) -> Result<()> {
        let _ = (ctx, node, range);
        Err(Errno::NOSYS)
    }
}
