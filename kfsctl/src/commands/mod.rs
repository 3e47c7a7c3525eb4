//! Commands that take several requests, or show their answers at length.

pub(crate) mod defrag;
pub(crate) mod fragmap;
mod picture;
mod volume_map;
