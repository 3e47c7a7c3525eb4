//! Block devices behind one trait.
#![forbid(unsafe_code)]

mod device;

pub use device::BlockDevice;
