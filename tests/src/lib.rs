//! The harness of the tests that cross crates.

pub mod check;
pub mod concurrent;
pub mod damage;
pub mod defrag;
pub mod differential;
pub mod e2fsprogs;
pub mod faults;
pub mod guest;
pub mod layouts;
pub mod operations;
pub mod populated;
pub mod power_cut;
pub mod tree;
pub mod variables;
pub mod workload;
