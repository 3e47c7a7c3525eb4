//! Fuzzing kfs: what comes from disks, guests and sockets must never make it panic, hang or take
//! memory without bound.
//!
//! ```text
//!  input.rs    the bytes of an execution, taken off piece by piece
//!  base/       images to damage, with a map of their structures
//!  walk.rs     reads everything in a volume        changes.rs  changes it as an input says
//!  guest.rs    makes FUSE requests              served.rs   what they are answered from
//!  targets/    one function a target, from bytes to nothing
//!  limits.rs   memory and time that an execution may take
//!  mutate.rs   inputs without libFuzzer: mutations of kept ones, from a seed
//! ```
//!
//! A target is a plain function, so libFuzzer (`fuzz_targets/`), `cargo test` and the program `drive`
//! run the same. `md-docs/testing.md` says how.

pub mod base;
mod changes;
mod guest;
mod input;
pub mod limits;
pub mod mutate;
mod served;
pub mod targets;
mod walk;

pub use input::Input;
