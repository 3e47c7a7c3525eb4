//! The control protocol of kfsd and its client.
//!
//! kfsd listens on a Unix socket and speaks one JSON object a line: a greeting first, then one
//! answer a request. `md-docs/control-protocol.md` is the specification; [`protocol`] holds the
//! messages, [`line`] the framing with its limits, [`client`] the side that asks.
#![forbid(unsafe_code)]

pub mod client;
pub mod defrag;
#[cfg(feature = "volume")]
pub mod duration;
#[cfg(feature = "volume")]
pub mod execute;
#[cfg(feature = "volume")]
mod execute_layout;
pub mod fragmap;
#[cfg(feature = "volume")]
pub mod freeze;
#[cfg(feature = "volume")]
mod growth;
pub mod keep;
pub mod line;
pub mod progress;
pub mod protocol;
#[cfg(feature = "volume")]
pub mod report;
#[cfg(feature = "volume")]
mod restored;
pub mod snapshot;
pub mod status;

pub use client::{Client, ClientError};
pub use progress::{Progress, Watch, unwatched};
pub use protocol::{ErrorCode, Hello, PROTOCOL_VERSION, Reply, Request, RequestError};
pub use status::Status;
