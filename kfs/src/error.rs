//! What can go wrong, by whose doing: the caller's, the disk's content's, or the device's.
//!
//! `Display` states an error's own fields and never its source: the top of the program prints the
//! chain. Only `errno.rs` knows errno.

use crate::corrupt::Corrupt;
use crate::ids::BlockNr;
use std::io;

/// Result of almost everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No such file, directory entry or attribute set.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("already exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotADirectory,
    /// A directory was given where none is allowed.
    #[error("is a directory")]
    IsADirectory,
    /// The directory has entries other than `.` and `..`.
    #[error("directory not empty")]
    NotEmpty,
    /// A name is longer than 255 bytes, or a symbolic link's target longer than a block.
    #[error("name too long")]
    NameTooLong,
    /// An argument makes no sense for the operation.
    #[error("invalid argument")]
    Invalid,
    /// The operation is not allowed on this inode (immutable, append-only, wrong owner).
    #[error("operation not permitted")]
    NotPermitted,
    /// The caller's permissions do not allow it.
    #[error("permission denied")]
    AccessDenied,
    /// The inode has as many links as its count can hold.
    #[error("too many links")]
    TooManyLinks,
    /// A file would grow beyond what ext4 can hold.
    #[error("file too large")]
    FileTooLarge,
    /// No free block or inode is left.
    #[error("no space left on the volume")]
    NoSpace,
    /// The snapshot store has no room for what a change would overwrite, and no free block is left for
    /// it: snapshots have to be deleted.
    #[error("no space left on the volume for what its snapshots keep: delete some")]
    SnapshotStoreFull,
    /// An extended attribute does not exist.
    #[error("no such attribute")]
    NoAttribute,
    /// A buffer given by the caller is too small for the answer.
    #[error("result does not fit the buffer")]
    OutOfRange,
    /// The operation is not supported on this kind of inode.
    #[error("operation not supported")]
    NotSupported,
    /// Rename would make a directory its own descendant.
    #[error("cannot move a directory into itself")]
    IntoItself,
    /// No data or hole beyond the offset (SEEK_DATA, SEEK_HOLE).
    #[error("no data beyond the offset")]
    NoData,
    /// The inode number is free or belongs to another generation of the file.
    #[error("stale file handle")]
    Stale,
    /// The object is in use.
    #[error("busy")]
    Busy,
    /// The root directory has an entry of its own where the snapshot store is to be.
    #[error("the root directory has an entry .kfs")]
    StorePlaceTaken,
    /// Who asked for it wants it no more.
    #[error("stopped")]
    Interrupted,
    /// The volume does not take changes.
    #[error("the volume is read-only: {reason}")]
    ReadOnly {
        /// Why.
        reason: ReadOnlyReason,
    },
    /// The image uses features kfs does not know; they are named.
    #[error("the image uses features that kfs does not support: {names}")]
    Unsupported {
        /// Names of the features as mke2fs writes them, separated by commas.
        names: String,
    },
    /// The journal has to be replayed, and the device takes no writes.
    #[error("the image was not closed and its journal must be replayed: open it writable once")]
    NeedsRecovery,
    /// The volume cannot have the size that is wanted.
    #[error("the volume cannot be resized: {why}")]
    Resize {
        /// Why.
        why: &'static str,
    },
    /// The volume cannot be as small as is wanted.
    #[error("what is on the volume needs {minimum_bytes} bytes: it cannot be smaller than that")]
    TooSmall {
        /// The smallest size, about.
        minimum_bytes: u64,
    },
    /// The volume cannot be made smaller.
    #[error("the volume cannot be made smaller: {why}")]
    Shrink {
        /// Why, and what to do about it.
        why: String,
    },
    /// The volume had another size when the snapshot was taken.
    #[error(
        "the volume had another size when the snapshot was taken: restore files of it, or export it"
    )]
    OtherSize,
    /// What is on disk contradicts the format.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The device failed.
    #[error("{op} of block {block} failed")]
    Io {
        /// What was tried.
        op: IoOp,
        /// First block of the range.
        block: BlockNr,
        /// What the device said.
        #[source]
        source: io::Error,
    },
    /// The device failed to make its writes durable, or failed outside any block.
    #[error("{op} of the device failed")]
    Device {
        /// What was tried.
        op: IoOp,
        /// What the device said.
        #[source]
        source: io::Error,
    },
}

/// The device operation that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoOp {
    /// Reading bytes.
    Read,
    /// Writing bytes.
    Write,
    /// Making earlier writes durable.
    Flush,
    /// Giving a range back to the host.
    Discard,
}

impl std::fmt::Display for IoOp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Read => "reading",
            Self::Write => "writing",
            Self::Flush => "flushing",
            Self::Discard => "discarding",
        })
    }
}

/// Why a volume is read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadOnlyReason {
    /// It was opened so.
    Requested,
    /// It has a feature that kfs can only read.
    Feature,
    /// An error made further changes unsafe; the image wants e2fsck.
    Error,
    /// It was closed.
    Closed,
}

impl std::fmt::Display for ReadOnlyReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Requested => "opened read-only",
            Self::Feature => "it has features that kfs can only read",
            Self::Error => "an earlier error made changes unsafe",
            Self::Closed => "it has been closed",
        })
    }
}
