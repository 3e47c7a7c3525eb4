//! An ext4-compatible file system in user space.
#![forbid(unsafe_code)]

pub mod allocator;
pub mod check;
pub mod checksum;
mod corrupt;
pub mod dir;
#[cfg(test)]
mod e2fsprogs;
mod error;
pub mod extent;
mod file;
mod fs;
mod ids;
mod inode;
pub mod layout;
mod ops;
pub mod snapshot;
pub mod storage;
pub mod sync;
mod time;
mod tools;
pub mod volume;
pub mod xattr;

pub use corrupt::Corrupt;
pub use dir::ListedEntry;
pub use error::{Error, IoOp, ReadOnlyReason, Result};
pub use file::{
    DataSink, DataSource, SeekTarget, SliceSink, SliceSource, SpaceChange, WriteOptions,
};
pub use fs::{
    ErrorsPolicy, Filesystem, GrowthProgress, MountOptions, RecoveryStatus, SpaceStatus, Status,
    read_superblock,
};
pub use ids::{BlockNr, GroupNr, InodeNr, LogicalBlock, Run, Tid};
pub use inode::{Attr, Inode, SetAttr, TimeChange};
pub use layout::{Access, FileType, Geometry, InodeFlags};
pub use ops::{NewNode, RenameMode};
pub use snapshot::{SnapshotRecord, SnapshotUsage};
pub use time::{Clock, FixedClock, SystemClock, Timestamp};
pub use tools::{
    Candidate, Change, ChangeKind, Defrag, DefragOptions, DefragProgress, ExportError, FileLayout,
    FileVersion, MapCell, MappedExtent, Restored, ShrinkPhase, ShrinkProgress, Shrunk, Skipped,
    Survey, TreeCursor, VolumeMap, Watch, minimum_size, resolve, shrink, shrunk_size, unwatched,
};
pub use xattr::{SetMode, XattrName};
