//! An ext4-compatible file system in user space.
#![forbid(unsafe_code)]
