//! What an actor can do: one system call, or a few that belong together.
//!
//! Everything is in the operation (names, numbers, a seed for bytes): doing it again is doing the same.

use rustix::fs::IFlags;
use std::fmt;

/// An actor: whose rights it has.
#[derive(Debug)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Further groups.
    pub groups: &'static [u32],
}

/// The actors of a duel. Two users share a further group, two share their first one.
pub const USERS: [User; 4] = [
    User {
        uid: 0,
        gid: 0,
        groups: &[],
    },
    User {
        uid: 1000,
        gid: 1000,
        groups: &[3000],
    },
    User {
        uid: 1001,
        gid: 1001,
        groups: &[1001, 3000],
    },
    User {
        uid: 1002,
        gid: 1000,
        groups: &[],
    },
];

/// How many files an actor has open at once.
pub(super) const SLOTS: usize = 5;

/// One operation of one actor.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Index in [`USERS`].
    pub actor: usize,
    /// What it does.
    pub action: Action,
    /// Paths whose times and sizes are compared before and after.
    pub watched: Vec<String>,
}

/// A time to set.
#[derive(Clone, Copy, Debug)]
pub enum When {
    /// UTIME_NOW.
    Now,
    /// UTIME_OMIT.
    Omit,
    /// Seconds and nanoseconds.
    At(i64, i64),
}

/// The value of an attribute.
#[derive(Clone)]
pub struct Value(pub Vec<u8>);

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [first, .., last] if self.0.len() > 100 => {
                write!(f, "{} bytes {first}..{last}", self.0.len())
            }
            all => write!(f, "{all:?}"),
        }
    }
}

/// What an operation works on: a path, or an open file.
#[derive(Clone, Debug)]
pub enum Target {
    /// A path, whose last symbolic link is followed.
    Path(String),
    /// A path, whose last symbolic link is meant.
    Link(String),
    /// The actor's open file.
    Slot(usize),
}

/// What is done. Paths are absolute within the actor's root directory.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "fields are the arguments of the system calls")]
pub enum Action {
    /// open(2) with O_NONBLOCK; the file takes the place of what the slot held. With `at`, relative to an open directory.
    Open {
        slot: usize,
        at: Option<usize>,
        path: String,
        flags: u32,
        mode: u32,
    },
    /// close(2)
    Close { slot: usize },
    /// mkdirat(2)
    Mkdir {
        at: Option<usize>,
        path: String,
        mode: u32,
    },
    /// mknod(2)
    Mknod {
        path: String,
        mode: u32,
        device: (u32, u32),
    },
    /// symlink(2)
    Symlink { target: String, path: String },
    /// linkat(2); `follow` is AT_SYMLINK_FOLLOW
    Link {
        from: String,
        to: String,
        follow: bool,
    },
    /// linkat(2) of an open file by AT_EMPTY_PATH
    LinkSlot { slot: usize, to: String },
    /// unlinkat(2)
    Unlink { at: Option<usize>, path: String },
    /// rmdir(2)
    Rmdir { path: String },
    /// renameat2(2)
    Rename {
        from: String,
        to: String,
        flags: u32,
    },
    /// truncate(2), ftruncate(2)
    Truncate { target: Target, size: u64 },
    /// chmod(2), fchmod(2)
    Chmod { target: Target, mode: u32 },
    /// chown(2), lchown(2), fchown(2)
    Chown {
        target: Target,
        uid: Option<u32>,
        gid: Option<u32>,
    },
    /// utimensat(2), futimens(2)
    SetTimes {
        target: Target,
        accessed: When,
        modified: When,
    },
    /// setxattr(2); flags are XATTR_CREATE, XATTR_REPLACE
    SetXattr {
        target: Target,
        name: String,
        value: Value,
        flags: u32,
    },
    /// getxattr(2)
    GetXattr { target: Target, name: String },
    /// listxattr(2)
    ListXattr { target: Target },
    /// removexattr(2)
    RemoveXattr { target: Target, name: String },
    /// stat(2), lstat(2), fstat(2)
    Stat { target: Target },
    /// readlink(2)
    ReadLink { path: String },
    /// faccessat(2)
    Access { path: String, mode: u32 },
    /// All names of a directory
    List { path: String },
    /// `count` empty files with long names in a directory
    Populate { path: String, count: u32 },
    /// Takes them away, all but every third
    Depopulate { path: String, count: u32 },
    /// umask(2)
    Umask { mode: u32 },
    /// read(2)
    Read { slot: usize, len: usize },
    /// pread(2)
    ReadAt {
        slot: usize,
        offset: u64,
        len: usize,
    },
    /// write(2)
    Write { slot: usize, len: usize, seed: u8 },
    /// pwrite(2)
    WriteAt {
        slot: usize,
        offset: u64,
        len: usize,
        seed: u8,
    },
    /// mmap(2), shared, read
    MapRead {
        slot: usize,
        offset: u64,
        len: usize,
    },
    /// mmap(2), shared, written
    MapWrite {
        slot: usize,
        offset: u64,
        len: usize,
        seed: u8,
    },
    /// fallocate(2)
    Allocate {
        slot: usize,
        mode: u32,
        offset: u64,
        len: u64,
    },
    /// lseek(2) from the start or the end
    Seek {
        slot: usize,
        offset: i64,
        from_end: bool,
    },
    /// lseek(2) to data or to a hole
    SeekData {
        slot: usize,
        offset: u64,
        hole: bool,
    },
    /// fsync(2), fdatasync(2)
    Sync { slot: usize, data_only: bool },
    /// copy_file_range(2), until all is copied
    CopyRange {
        from: usize,
        to: usize,
        offsets: (u64, u64),
        len: usize,
    },
    /// FS_IOC_SETFLAGS: chattr
    SetFlags { slot: usize, flags: u32 },
    /// FS_IOC_GETFLAGS: lsattr
    GetFlags { slot: usize },
}

impl Action {
    /// The name of the variant.
    pub fn name(&self) -> String {
        let text = format!("{self:?}");
        text.split(' ').next().unwrap_or_default().to_owned()
    }

    /// Whether it makes a file immutable or append-only.
    pub(super) fn forbids_changes(&self) -> bool {
        let forbidding = IFlags::IMMUTABLE | IFlags::APPEND;
        matches!(self, Self::SetFlags { flags, .. } if flags & forbidding.bits() != 0)
    }

    /// Whether it leaves a whiteout where something was.
    pub(super) fn is_whiteout(&self) -> bool {
        matches!(self, Self::Rename { flags, .. } if flags & 4 != 0)
    }

    /// The paths that it names, and the directories they are in.
    pub fn paths(&self) -> Vec<String> {
        let target = |target: &Target| match target {
            Target::Path(path) | Target::Link(path) => vec![path.clone()],
            Target::Slot(_) => vec![],
        };
        let mut paths = match self {
            Self::Open { at: None, path, .. }
            | Self::Mkdir { at: None, path, .. }
            | Self::Unlink { at: None, path, .. }
            | Self::Mknod { path, .. }
            | Self::Symlink { path, .. }
            | Self::Rmdir { path, .. }
            | Self::List { path } => vec![path.clone()],
            Self::Link { from, to, .. } | Self::Rename { from, to, .. } => {
                vec![from.clone(), to.clone()]
            }
            Self::LinkSlot { to, .. } => vec![to.clone()],
            Self::Truncate { target: t, .. }
            | Self::Chmod { target: t, .. }
            | Self::Chown { target: t, .. }
            | Self::SetTimes { target: t, .. }
            | Self::SetXattr { target: t, .. }
            | Self::RemoveXattr { target: t, .. } => target(t),
            _ => vec![],
        };
        let parents: Vec<String> = paths
            .iter()
            .filter_map(|path| path.trim_end_matches('/').rsplit_once('/'))
            .map(|(parent, _)| format!("{parent}/"))
            .collect();
        paths.extend(parents);
        paths
    }

    /// The open file that it changes and whose times then are to be seen at once. FUSE does not ask for
    /// times after flags were set: they may be a second old.
    pub fn slot(&self) -> Option<usize> {
        let target = |target: &Target| match target {
            Target::Slot(slot) => Some(*slot),
            Target::Path(_) | Target::Link(_) => None,
        };
        match self {
            Self::Truncate { target: t, .. }
            | Self::Chmod { target: t, .. }
            | Self::Chown { target: t, .. }
            | Self::SetTimes { target: t, .. }
            | Self::SetXattr { target: t, .. }
            | Self::RemoveXattr { target: t, .. } => target(t),
            Self::Read { slot, .. }
            | Self::ReadAt { slot, .. }
            | Self::Write { slot, .. }
            | Self::WriteAt { slot, .. }
            | Self::MapWrite { slot, .. }
            | Self::Allocate { slot, .. }
            | Self::CopyRange { to: slot, .. }
            | Self::LinkSlot { slot, .. } => Some(*slot),
            _ => None,
        }
    }
}
