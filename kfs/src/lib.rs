//! An ext4-compatible file system in user space.
#![forbid(unsafe_code)]

mod corrupt;
mod error;
mod ids;

pub use corrupt::Corrupt;
pub use error::{Error, IoOp, ReadOnlyReason, Result};
pub use ids::{BlockNr, GroupNr, InodeNr, LogicalBlock, Run, Tid};
