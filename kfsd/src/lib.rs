//! The parts of the kfsd daemon: it serves an ext4-compatible image or a host directory to guests
//! over virtio-fs and to the host over /dev/fuse.
//!
//! A request flows one way: `transport` -> `fuse` -> an implementation of
//! [`fuse::FileSystem`].
#![deny(unsafe_code)]

pub mod args;
pub mod config;
pub mod control;
pub mod daemon;
mod endpoint;
pub mod fuse;
mod handler;
pub mod image;
mod legacy_options;
pub mod logging;
pub mod metrics;
pub mod sandbox;
pub mod schedule;
pub mod shared_dir;
pub mod shutdown;
mod socket_file;
mod sys;
pub mod transport;
pub mod volume;
