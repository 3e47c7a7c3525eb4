//! What is said about where things are on the volume.

use crate::defrag::LayoutInfo;
use serde::{Deserialize, Serialize};

/// Blocks by what they are. What is 0 is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cell {
    /// Of files and directories.
    #[serde(skip_serializing_if = "is_zero")]
    pub used: u64,
    /// Free.
    #[serde(skip_serializing_if = "is_zero")]
    pub free: u64,
    /// Kept by a single snapshot.
    #[serde(skip_serializing_if = "is_zero")]
    pub pinned_alone: u64,
    /// Kept by several snapshots.
    #[serde(skip_serializing_if = "is_zero")]
    pub pinned_shared: u64,
    /// Fixed metadata.
    #[serde(skip_serializing_if = "is_zero")]
    pub metadata: u64,
    /// The journal.
    #[serde(skip_serializing_if = "is_zero")]
    pub journal: u64,
    /// The snapshot store.
    #[serde(skip_serializing_if = "is_zero")]
    pub store: u64,
    /// The snapshot that alone keeps the most of `pinned_alone`: its place in `snapshots`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pinned_by: Option<usize>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Cell {
    /// The sum of two; who pins is not in it.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            used: self.used.saturating_add(other.used),
            free: self.free.saturating_add(other.free),
            pinned_alone: self.pinned_alone.saturating_add(other.pinned_alone),
            pinned_shared: self.pinned_shared.saturating_add(other.pinned_shared),
            metadata: self.metadata.saturating_add(other.metadata),
            journal: self.journal.saturating_add(other.journal),
            store: self.store.saturating_add(other.store),
            pinned_by: None,
        }
    }
}

/// A map of the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeMapInfo {
    /// Bytes in a block.
    pub block_size_bytes: u64,
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks in each cell; the last may have fewer.
    pub cell_blocks: u64,
    /// The cells, from the first block on.
    pub cells: Vec<Cell>,
    /// Runs of free blocks.
    pub free_runs: u64,
    /// Blocks in the longest.
    pub free_run_max_blocks: u64,
    /// Names of the snapshots, oldest first.
    pub snapshots: Vec<String>,
}

/// An extent of a file, in blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ExtentInfo {
    /// First block within the file.
    pub logical: u64,
    /// First block on the volume.
    pub physical: u64,
    /// Blocks.
    pub blocks: u64,
    /// Allocated, but reads as zeros.
    pub unwritten: bool,
    /// Blocks of it that a snapshot sees.
    pub kept_blocks: u64,
}

/// Where a file lies, or part of that.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FileMapInfo {
    /// Its inode.
    pub inode: u32,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes in a block.
    pub block_size_bytes: u64,
    /// Blocks of the volume.
    pub volume_blocks: u64,
    /// How all of it lies; absent for what is not a file with extents.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layout: Option<LayoutInfo>,
    /// Its extents.
    pub extents: Vec<ExtentInfo>,
    /// The block of the file to go on with; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<u32>,
}
