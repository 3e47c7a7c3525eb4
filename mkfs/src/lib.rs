//! Makes ext4-compatible file systems.
