//! The harness of the tests that cross crates.

pub mod e2fsprogs;
pub mod guest;
pub mod tree;
pub mod workload;
