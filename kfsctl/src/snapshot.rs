//! The answers about snapshots.

use serde::{Deserialize, Serialize};

/// A snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotInfo {
    /// Grows with each snapshot, and is never used again.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// What its maker had to say.
    pub comment: String,
    /// When it was taken, in seconds since 1970.
    pub time_seconds: i64,
    /// The same as `2026-11-21T15:04:05Z`.
    pub time: String,
    /// Bytes that only it keeps: what deleting it frees.
    pub unique_bytes: u64,
    /// Bytes of files that are gone from the volume and that it keeps together with others.
    pub shared_bytes: u64,
    /// Bytes of old metadata that go with it.
    pub metadata_bytes: u64,
}

/// A path that differs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiffEntry {
    /// `added`, `removed`, `changed` or `renamed`.
    pub kind: String,
    /// The path; bytes that are not UTF-8 are replaced.
    pub path: String,
    /// Where it was before, if renamed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// A state of a file that successive snapshots have in common.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VersionInfo {
    /// Names of the snapshots, oldest first.
    pub snapshots: Vec<String>,
    /// The volume has it still.
    pub current: bool,
    /// There is something at the path; else the rest means nothing.
    pub exists: bool,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Last change of the content, as in RFC 3339.
    pub modified: String,
    /// Inode number.
    pub inode: u32,
}

/// What a restore did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RestoreInfo {
    /// Inodes looked at.
    pub inodes: u64,
    /// Those that were made.
    pub made: u64,
    /// Bytes copied.
    pub bytes: u64,
}
