//! The parts of the kfsd daemon: it serves an ext4-compatible image or a host directory to guests
//! over virtio-fs and to the host over /dev/fuse.
//!
//! A request flows one way: `transport` -> `fuse` -> an implementation of
//! [`fuse::FileSystem`].
#![deny(unsafe_code)]

pub mod fuse;
pub mod transport;
