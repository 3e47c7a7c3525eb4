//! Flag words of the FUSE protocol. Unknown bits are kept, so nobody is surprised by a new kernel.

use bitflags::bitflags;

bitflags! {
    /// What both sides can do, agreed on in INIT (`flags` and, shifted up by 32, `flags2`).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct InitFlags: u64 {
        /// Several reads of one file at a time.
        const ASYNC_READ = 1 << 0;
        /// POSIX locks are sent to the server.
        const POSIX_LOCKS = 1 << 1;
        /// O_TRUNC arrives in OPEN instead of as a SETATTR.
        const ATOMIC_O_TRUNC = 1 << 3;
        /// LOOKUP of "." and ".." works, so NFS may export the tree.
        const EXPORT_SUPPORT = 1 << 4;
        /// Writes of more than a page.
        const BIG_WRITES = 1 << 5;
        /// The server applies the umask.
        const DONT_MASK = 1 << 6;
        /// The device takes splice(2) for writes.
        const SPLICE_WRITE = 1 << 7;
        /// The device moves pages.
        const SPLICE_MOVE = 1 << 8;
        /// The device takes splice(2) for reads.
        const SPLICE_READ = 1 << 9;
        /// flock(2) locks are sent to the server.
        const FLOCK_LOCKS = 1 << 10;
        /// IOCTL on directories.
        const HAS_IOCTL_DIR = 1 << 11;
        /// Cached pages are dropped when size or mtime changed.
        const AUTO_INVAL_DATA = 1 << 12;
        /// READDIRPLUS.
        const DO_READDIRPLUS = 1 << 13;
        /// READDIRPLUS only where it pays.
        const READDIRPLUS_AUTO = 1 << 14;
        /// Asynchronous direct I/O.
        const ASYNC_DIO = 1 << 15;
        /// The kernel delays writes.
        const WRITEBACK_CACHE = 1 << 16;
        /// ENOSYS to OPEN means: no OPEN and RELEASE are needed at all.
        const NO_OPEN_SUPPORT = 1 << 17;
        /// LOOKUP and READDIR of one directory in parallel.
        const PARALLEL_DIROPS = 1 << 18;
        /// The server drops suid and sgid (first version).
        const HANDLE_KILLPRIV = 1 << 19;
        /// The server has POSIX ACLs.
        const POSIX_ACL = 1 << 20;
        /// ECONNABORTED after an abort.
        const ABORT_ERROR = 1 << 21;
        /// `max_pages` is valid.
        const MAX_PAGES = 1 << 22;
        /// Link targets are cached.
        const CACHE_SYMLINKS = 1 << 23;
        /// ENOSYS to OPENDIR means: no OPENDIR and RELEASEDIR are needed at all.
        const NO_OPENDIR_SUPPORT = 1 << 24;
        /// Pages are dropped only when the server says so.
        const EXPLICIT_INVAL_DATA = 1 << 25;
        /// `map_alignment` is valid (DAX).
        const MAP_ALIGNMENT = 1 << 26;
        /// Directories may be marked as roots of submounts.
        const SUBMOUNTS = 1 << 27;
        /// The server drops suid and sgid as Linux does; the kernel says when.
        const HANDLE_KILLPRIV_V2 = 1 << 28;
        /// The longer SETXATTR.
        const SETXATTR_EXT = 1 << 29;
        /// `flags2` is valid; without it in the reply the kernel ignores our `flags2`.
        const INIT_EXT = 1 << 30;
        /// Security contexts come with new nodes.
        const SECURITY_CTX = 1 << 32;
        /// DAX is decided for each file, by `AttrFlags::DAX`.
        const HAS_INODE_DAX = 1 << 33;
        /// The caller's matching supplementary group comes with new nodes.
        const CREATE_SUPP_GROUP = 1 << 34;
        /// Entries can be expired only.
        const HAS_EXPIRE_ONLY = 1 << 35;
        /// Files open with DIRECT_IO may be mapped shared.
        const DIRECT_IO_ALLOW_MMAP = 1 << 36;
        /// Reads and writes that bypass the server.
        const PASSTHROUGH = 1 << 37;
        /// No export even by handles.
        const NO_EXPORT_SUPPORT = 1 << 38;
        /// The kernel can send requests again.
        const HAS_RESEND = 1 << 39;
        /// Mounts with mapped ids.
        const ALLOW_IDMAP = 1 << 40;
        const _ = !0;
    }

    /// How an open file is to be treated, in the reply to OPEN, OPENDIR and CREATE.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct FopenFlags: u32 {
        /// Bypass the page cache.
        const DIRECT_IO = 1 << 0;
        /// Keep what the page cache holds.
        const KEEP_CACHE = 1 << 1;
        /// The file has no position.
        const NONSEEKABLE = 1 << 2;
        /// Cache the entries of this directory.
        const CACHE_DIR = 1 << 3;
        /// Like a stream.
        const STREAM = 1 << 4;
        /// No FLUSH at close.
        const NOFLUSH = 1 << 5;
        /// Direct writes of one file at the same time.
        const PARALLEL_DIRECT_WRITES = 1 << 6;
        const _ = !0;
    }

    /// Flags of the protocol in an OPEN or CREATE request.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct OpenRequestFlags: u32 {
        /// O_TRUNC: drop suid, and sgid of an executable.
        const KILL_SUIDGID = 1 << 0;
        const _ = !0;
    }

    /// What a SETATTR changes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SetattrValid: u32 {
        /// `mode`.
        const MODE = 1 << 0;
        /// `uid`.
        const UID = 1 << 1;
        /// `gid`.
        const GID = 1 << 2;
        /// `size`.
        const SIZE = 1 << 3;
        /// `atime`.
        const ATIME = 1 << 4;
        /// `mtime`.
        const MTIME = 1 << 5;
        /// `fh` is valid.
        const FH = 1 << 6;
        /// Access time becomes now.
        const ATIME_NOW = 1 << 7;
        /// Modification time becomes now.
        const MTIME_NOW = 1 << 8;
        /// `lock_owner` is valid.
        const LOCKOWNER = 1 << 9;
        /// `ctime`.
        const CTIME = 1 << 10;
        /// Drop suid, and sgid of an executable.
        const KILL_SUIDGID = 1 << 11;
        const _ = !0;
    }

    /// How data is written.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct WriteFlags: u32 {
        /// From the page cache: the file handle is a guess and the caller is not who wrote.
        const CACHE = 1 << 0;
        /// `lock_owner` is valid.
        const LOCKOWNER = 1 << 1;
        /// Drop suid, and sgid of an executable.
        const KILL_SUIDGID = 1 << 2;
        const _ = !0;
    }

    /// What closing a file brings with it.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct ReleaseFlags: u32 {
        /// FLUSH as well.
        const FLUSH = 1 << 0;
        /// Drop the flock(2) locks.
        const FLOCK_UNLOCK = 1 << 1;
        const _ = !0;
    }

    /// Flags of a SETXATTR.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SetxattrFlags: u32 {
        /// Drop sgid, as setting `system.posix_acl_access` asks for.
        const ACL_KILL_SGID = 1 << 0;
        const _ = !0;
    }

    /// Marks in [`Attr::flags`](super::abi::Attr).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct AttrFlags: u32 {
        /// The root of another file system.
        const SUBMOUNT = 1 << 0;
        /// Use DAX for this file.
        const DAX = 1 << 1;
        const _ = !0;
    }

    /// Where an ioctl comes from.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct IoctlFlags: u32 {
        /// A 32-bit caller on a 64-bit machine.
        const COMPAT = 1 << 0;
        /// Not bound to the sizes in the command.
        const UNRESTRICTED = 1 << 1;
        /// Try again with other vectors.
        const RETRY = 1 << 2;
        /// A 32-bit ioctl.
        const BITS_32 = 1 << 3;
        /// On a directory.
        const DIR = 1 << 4;
        /// An x32 caller.
        const COMPAT_X32 = 1 << 5;
        const _ = !0;
    }

    /// What a DAX mapping is for.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct SetupmappingFlags: u64 {
        /// Writing.
        const WRITE = 1 << 0;
        /// Reading.
        const READ = 1 << 1;
        const _ = !0;
    }
}

/// GETATTR and STATX: `fh` is valid.
pub const GETATTR_FH: u32 = 1 << 0;
/// FSYNC and FSYNCDIR: the data only.
pub const FSYNC_FDATASYNC: u32 = 1 << 0;
/// READ: `lock_owner` is valid.
pub const READ_LOCKOWNER: u32 = 1 << 1;
/// GETLK, SETLK and SETLKW: a flock(2) lock.
pub const LK_FLOCK: u32 = 1 << 0;
