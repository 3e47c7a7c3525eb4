//! The FUSE wire layer: bytes of a request in, calls of a [`FileSystem`], bytes of a reply out.
//!
//! It knows no transport: `transport/` brings the bytes from a virtqueue or from /dev/fuse. No
//! allocation is made for a request, and data is never copied here.

pub mod abi;
pub mod buffers;
mod dispatch;
pub mod file_system;
pub mod flags;
mod latency;
mod reply;
mod request;
mod session;
mod sinks;

pub use buffers::{DataSink, DataSource, Segment};
pub use file_system::{
    Context, CopyRange, Creation, Entry, FileSystem, InitReply, InitRequest, Opened, Result,
    SecurityContext, SetAttr, SetLock, Usage,
};
pub use latency::LATENCY_CLASSES;
pub use request::Scratch;
pub use session::{MAX_DATA, Session};
pub use sinks::{DirSink, XattrSink};

#[cfg(test)]
#[expect(unsafe_code, reason = "makes segments over its own buffers")]
mod tests;
#[cfg(test)]
pub(crate) mod tiny;
