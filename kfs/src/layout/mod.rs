//! What is on disk.
pub mod journal;
