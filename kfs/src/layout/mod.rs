//! What is on disk, to the bit: one struct per structure, and pure conversions. No I/O, no locks.
//!
//! ```text
//! | boot | group 0                                              | group 1 ...
//! | 1 KiB| superblock | descriptors | bitmaps | inode table |data| (backup) | ...
//! ```
//!
//! Structs are named `Raw*`, their fields as in the kernel; all have alignment 1 and are used in
//! place on the bytes of a block (`ref_from_prefix`, `mut_from_prefix`). `Geometry` is the one
//! place where numbers of the superblock are checked. Checksums are computed over whole slices by
//! the `verify_checksum` and `update_checksum` beside each struct.

pub mod acl;
pub mod dirent;
pub mod extent;
pub mod features;
pub mod geometry;
pub mod group;
pub mod htree;
pub mod inode;
pub mod inode_flags;
pub mod journal;
pub mod orphan;
mod size;
pub mod superblock;
pub mod xattr;

pub use dirent::{FileType, RawDirTail, RawDirent};
pub use extent::{RawExtentHeader, RawExtentIndex, RawExtentLeaf, RawExtentTail};
pub use features::{Access, Compat, Incompat, RoCompat};
pub use geometry::{Geometry, SizeFacts};
pub use group::{GroupFlags, RawGroupDesc};
pub use inode::{InodeBytes, InodeFlags, RawInode};
pub use superblock::RawSuperblock;

#[cfg(test)]
mod image_tests;
