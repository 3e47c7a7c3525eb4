//! An ext4-compatible file system in user space.
#![forbid(unsafe_code)]

pub mod allocator;
pub mod checksum;
mod corrupt;
pub mod dir;
mod error;
pub mod extent;
mod ids;
pub mod layout;
pub mod storage;
mod time;
pub mod xattr;

pub use corrupt::Corrupt;
pub use error::{Error, IoOp, ReadOnlyReason, Result};
pub use ids::{BlockNr, GroupNr, InodeNr, LogicalBlock, Run, Tid};
pub use layout::{Access, FileType, Geometry, InodeFlags};
pub use time::{Clock, FixedClock, SystemClock, Timestamp};
