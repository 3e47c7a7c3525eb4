//! Extended attributes: names with values, in the rest of an inode and in one block.
//!
//! ```text
//!  inode    | fixed 128 | extra fields | magic | entries -> 0   <- values |
//!  block    | header 32 (count of inodes, hash, checksum) | sorted entries -> 0   <- values |
//! ```
//!
//! [`XattrSet`] is what both hold, parsed and checked as a whole; it borrows their bytes and does no
//! I/O. It answers reads, and makes a [`Plan`] of a change: the new bytes of the inode's area and
//! what becomes of the block. [`XattrBlock`] is the block in the cache; [`BlockChange::apply`] brings
//! it to the planned content within a handle.
//!
//! The caller holds the inode's lock from the parsing to the end of the handle, gives the block that
//! a plan needs, frees the one that is handed back, and keeps `i_file_acl`, `i_blocks` and `ctime`.
//!
//! A block may be shared by inodes (Linux does this; kfs never shares one itself). It is never
//! changed then but for its count: the plan makes a new one. As the count only sinks here, a block
//! found unshared under its inode's lock stays so.
//!
//! Values of `system.posix_acl_*` enter and leave in the form of xattr calls (version 2).

mod block;
mod inline_area;
mod name;
mod plan;
mod region;
mod set;

#[cfg(test)]
mod image_tests;
#[cfg(test)]
mod tests;

pub use block::{Applied, BlockChange, CREDITS, XattrBlock};
pub use name::XattrName;
pub use plan::{Plan, SetMode};
pub(crate) use region::audit as audit_region;
pub use set::{XattrSet, XattrValue};
