//! The FUSE wire format, version 7.41: what the kernel and we exchange, byte for byte.
//!
//! Facts from the kernel's uapi header `linux/fuse.h`, with its field names. All numbers are in
//! native order (virtio-fs is little endian, and so is every machine kfsd runs on); no structure
//! has implicit padding, so all of them are plain bytes. Sizes are pinned beside the structures.
#![expect(
    missing_docs,
    reason = "fields carry the kernel's names; linux/fuse.h says what they mean"
)]

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol's major number; another one means a kernel we cannot talk to.
pub const KERNEL_VERSION: u32 = 7;
/// The newest minor number we speak.
pub const KERNEL_MINOR_VERSION: u32 = 41;
/// The oldest minor number we serve (Linux 4.20); older ones have other structure sizes.
pub const MIN_KERNEL_MINOR_VERSION: u32 = 27;
/// The node id of the root directory.
pub const ROOT_ID: u64 = 1;
/// Most bytes in a name.
pub const NAME_MAX: usize = 255;
/// Extension type of the caller's supplementary group; smaller types are security contexts.
pub const EXT_GROUPS: u32 = 32;
/// Set in `unique` when the kernel sends a request a second time.
pub const UNIQUE_RESEND: u64 = 1 << 63;

/// Declares wire structures and pins their sizes.
macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident = $size:literal { $($field:ident: $ty:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[derive(FromBytes, IntoBytes, Immutable, KnownLayout)]
        #[repr(C)]
        pub struct $name { $(pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

/// Declares the operation codes and the way back from a number.
macro_rules! opcodes {
    ($($name:ident = $code:literal,)*) => {
        /// What a request asks for.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Opcode { $($name = $code,)* }

        impl Opcode {
            /// Every operation, in the order of the codes.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// The operation of a number, or `None` for one we have never heard of.
            pub fn from_code(code: u32) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }

            /// The name, for logs and statistics.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

opcodes! {
    Lookup = 1,
    Forget = 2,
    Getattr = 3,
    Setattr = 4,
    Readlink = 5,
    Symlink = 6,
    Mknod = 8,
    Mkdir = 9,
    Unlink = 10,
    Rmdir = 11,
    Rename = 12,
    Link = 13,
    Open = 14,
    Read = 15,
    Write = 16,
    Statfs = 17,
    Release = 18,
    Fsync = 20,
    Setxattr = 21,
    Getxattr = 22,
    Listxattr = 23,
    Removexattr = 24,
    Flush = 25,
    Init = 26,
    Opendir = 27,
    Readdir = 28,
    Releasedir = 29,
    Fsyncdir = 30,
    Getlk = 31,
    Setlk = 32,
    Setlkw = 33,
    Access = 34,
    Create = 35,
    Interrupt = 36,
    Bmap = 37,
    Destroy = 38,
    Ioctl = 39,
    Poll = 40,
    NotifyReply = 41,
    BatchForget = 42,
    Fallocate = 43,
    Readdirplus = 44,
    Rename2 = 45,
    Lseek = 46,
    CopyFileRange = 47,
    Setupmapping = 48,
    Removemapping = 49,
    Syncfs = 50,
    Tmpfile = 51,
    Statx = 52,
}

wire! {
    InHeader = 40 {
        len: u32, opcode: u32, unique: u64, nodeid: u64,
        uid: u32, gid: u32, pid: u32, total_extlen: u16, padding: u16,
    }
    OutHeader = 16 { len: u32, error: i32, unique: u64, }

    /// Attributes of a node. `flags` holds [`AttrFlags`](super::flags::AttrFlags).
    Attr = 88 {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// Numbers of a whole file system.
    Kstatfs = 80 {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64,
        bsize: u32, namelen: u32, frsize: u32, padding: u32, spare: [u32; 6],
    }
    /// A time of [`Statx`].
    SxTime = 16 { tv_sec: i64, tv_nsec: u32, reserved: i32, }
    /// Attributes as statx(2) gives them, birth time included.
    Statx = 256 {
        mask: u32, blksize: u32, attributes: u64, nlink: u32, uid: u32, gid: u32,
        mode: u16, spare0: u16, ino: u64, size: u64, blocks: u64, attributes_mask: u64,
        atime: SxTime, btime: SxTime, ctime: SxTime, mtime: SxTime,
        rdev_major: u32, rdev_minor: u32, dev_major: u32, dev_minor: u32, spare2: [u64; 14],
    }
    /// A byte range lock.
    FileLock = 24 { start: u64, end: u64, kind: u32, pid: u32, }

    EntryOut = 128 {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64,
        entry_valid_nsec: u32, attr_valid_nsec: u32, attr: Attr,
    }
    AttrOut = 104 { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr, }
    StatxIn = 24 { getattr_flags: u32, reserved: u32, fh: u64, sx_flags: u32, sx_mask: u32, }
    StatxOut = 288 {
        attr_valid: u64, attr_valid_nsec: u32, flags: u32, spare: [u64; 2], stat: Statx,
    }
    ForgetIn = 8 { nlookup: u64, }
    ForgetOne = 16 { nodeid: u64, nlookup: u64, }
    BatchForgetIn = 8 { count: u32, dummy: u32, }
    GetattrIn = 16 { getattr_flags: u32, dummy: u32, fh: u64, }
    SetattrIn = 88 {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64,
        atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32, ctimensec: u32,
        mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    MknodIn = 16 { mode: u32, rdev: u32, umask: u32, padding: u32, }
    MkdirIn = 8 { mode: u32, umask: u32, }
    RenameIn = 8 { newdir: u64, }
    Rename2In = 16 { newdir: u64, flags: u32, padding: u32, }
    LinkIn = 8 { oldnodeid: u64, }
    OpenIn = 8 { flags: u32, open_flags: u32, }
    CreateIn = 16 { flags: u32, mode: u32, umask: u32, open_flags: u32, }
    OpenOut = 16 { fh: u64, open_flags: u32, backing_id: i32, }
    ReleaseIn = 24 { fh: u64, flags: u32, release_flags: u32, lock_owner: u64, }
    FlushIn = 24 { fh: u64, unused: u32, padding: u32, lock_owner: u64, }
    ReadIn = 40 {
        fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteIn = 40 {
        fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32,
    }
    WriteOut = 8 { size: u32, padding: u32, }
    FsyncIn = 16 { fh: u64, fsync_flags: u32, padding: u32, }
    /// What SETXATTR sends when SETXATTR_EXT was agreed on; else only the first 8 bytes.
    SetxattrIn = 16 { size: u32, flags: u32, setxattr_flags: u32, padding: u32, }
    SetxattrInCompat = 8 { size: u32, flags: u32, }
    GetxattrIn = 8 { size: u32, padding: u32, }
    GetxattrOut = 8 { size: u32, padding: u32, }
    LkIn = 48 { fh: u64, owner: u64, lk: FileLock, lk_flags: u32, padding: u32, }
    AccessIn = 8 { mask: u32, padding: u32, }
    /// INIT as every kernel sends it; newer ones add [`InitInExt`].
    InitIn = 16 { major: u32, minor: u32, max_readahead: u32, flags: u32, }
    InitInExt = 48 { flags2: u32, unused: [u32; 11], }
    InitOut = 64 {
        major: u32, minor: u32, max_readahead: u32, flags: u32,
        max_background: u16, congestion_threshold: u16, max_write: u32, time_gran: u32,
        max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused0: u16, unused: [u32; 5],
    }
    InterruptIn = 8 { unique: u64, }
    IoctlIn = 32 { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32, }
    IoctlOut = 16 { result: i32, flags: u32, in_iovs: u32, out_iovs: u32, }
    FallocateIn = 32 { fh: u64, offset: u64, length: u64, mode: u32, padding: u32, }
    LseekIn = 24 { fh: u64, offset: u64, whence: u32, padding: u32, }
    LseekOut = 8 { offset: u64, }
    CopyFileRangeIn = 56 {
        fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64,
    }
    /// A request to map a part of a file into the DAX window.
    SetupmappingIn = 40 { fh: u64, foffset: u64, len: u64, flags: u64, moffset: u64, }
    RemovemappingIn = 4 { count: u32, }
    /// One range of the DAX window that is not needed any more.
    RemovemappingOne = 16 { moffset: u64, len: u64, }
    /// Head of a directory entry; the name follows, padded to 8 bytes.
    Dirent = 24 { ino: u64, off: u64, namelen: u32, kind: u32, }
    /// Head of one security context; a name with its NUL and `size` bytes of label follow.
    Secctx = 8 { size: u32, padding: u32, }
    /// Head of any extension. For security contexts `kind` is their number.
    ExtHeader = 8 { size: u32, kind: u32, }
}
