//! Block devices behind one trait.
//!
//! ```text
//!                 kfs, mkfs
//!                     |  BlockDevice
//!    +----------------+------------------+
//!    | StatsDevice  ReadOnlyDevice  RangeDevice      wrappers, stacked as needed
//!    | FaultDevice  TraceDevice                      wrappers for tests (feature `testing`)
//!    +----------------+------------------+
//!                     |
//!    FileDevice   MemoryDevice   CrashDevice         where the bytes are
//! ```
#![forbid(unsafe_code)]

mod bounds;
mod device;
mod file;
mod holder;
mod memory;
mod open_error;
mod range;
mod read_only;
mod reflink;
mod stats;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
mod words;

pub use device::BlockDevice;
pub use file::{DeviceTooShort, FileDevice};
pub use memory::MemoryDevice;
pub use open_error::{Holder, OpenError};
pub use range::RangeDevice;
pub use read_only::ReadOnlyDevice;
pub use reflink::reflink;
pub use stats::{DeviceStats, StatsDevice};
pub use words::{Bytes, Count};
