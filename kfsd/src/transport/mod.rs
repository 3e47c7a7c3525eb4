//! How requests reach the wire layer: virtqueues of a guest, or /dev/fuse of the host.
//!
//! Each transport brings a [`Session`](crate::fuse::Session) its requests on several threads, and
//! ends it when the other side is gone. None of them knows what is served.

pub mod dev_fuse;
mod dev_fuse_mount;
mod guest_buffers;
mod mount_options;
mod offload;
mod socket;
pub mod vhost_user;
mod worker;

pub use dev_fuse::{FuseMount, MountStopper, default_thread_count};
pub use dev_fuse_mount::MountError;
pub use guest_buffers::Memory;
pub use mount_options::{MountOptions, OptionError};
pub use offload::Offload;
pub use socket::{Socket, SocketError};
pub use vhost_user::{DeviceError, DeviceOptions, VhostUserServer, VhostUserStopper};
pub use worker::QueueWorker;
