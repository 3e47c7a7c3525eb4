//! Figures for statfs(2) and status displays.

use super::Filesystem;
use crate::error::ReadOnlyReason;
use crate::layout::features;
use crate::storage::{CacheStatistics, JournalStatistics};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Space and inodes of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceStatus {
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks for files and their metadata: without the fixed metadata, as Linux counts.
    pub blocks: u64,
    /// Free blocks.
    pub blocks_free: u64,
    /// Free blocks that unprivileged users may take.
    pub blocks_available: u64,
    /// Inodes.
    pub inodes: u64,
    /// Free inodes.
    pub inodes_free: u64,
    /// First half of the volume's uuid, folded as Linux does for `f_fsid`.
    pub fsid: u64,
}

/// What opening the volume had to finish.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecoveryStatus {
    /// Transactions replayed from the journal.
    pub transactions: u32,
    /// Blocks that the replay wrote.
    pub blocks: u64,
    /// Inodes deleted or truncated that a crash had interrupted.
    pub orphans: u32,
}

/// State of the volume.
#[derive(Clone, Debug)]
pub struct Status {
    /// Space and inodes.
    pub space: SpaceStatus,
    /// The volume's uuid.
    pub uuid: [u8; 16],
    /// Name of the volume.
    pub label: Vec<u8>,
    /// Names of the features in use.
    pub features: Vec<String>,
    /// Why no changes are taken, `None` when they are.
    pub read_only: Option<ReadOnlyReason>,
    /// Damage found since the volume was opened.
    pub damage_found: u64,
    /// Errors on record in the superblock, older ones included.
    pub errors_recorded: u64,
    /// The journal.
    pub journal: JournalStatistics,
    /// What opening had to finish.
    pub recovery: RecoveryStatus,
    /// The buffer cache.
    pub cache: CacheStatistics,
    /// Inodes in memory.
    pub inodes_in_memory: u64,
    /// Snapshots.
    pub snapshots: u64,
    /// Free blocks that only snapshots keep.
    pub pinned_blocks: u64,
    /// How long the volume will stay frozen, `None` when it is not.
    pub frozen_for: Option<Duration>,
}

impl Filesystem {
    /// Space and inodes.
    #[must_use]
    pub fn space(&self) -> SpaceStatus {
        let geometry = &self.volume.geometry;
        let allocator = &self.volume.allocator;
        // Groups count clusters.
        let free = allocator.free_blocks() * u64::from(geometry.cluster_blocks);
        let (low, high) = geometry.uuid.split_at(8);
        let word = |half: &[u8]| {
            half.iter()
                .rev()
                .fold(0, |sum, byte| sum << 8 | u64::from(*byte))
        };
        SpaceStatus {
            block_size: geometry.block_size,
            blocks: geometry
                .blocks_count()
                .saturating_sub(self.overhead_blocks.load(Ordering::Relaxed)),
            blocks_free: free,
            blocks_available: free.saturating_sub(allocator.privileged_blocks()),
            inodes: u64::from(geometry.inodes_count()),
            inodes_free: allocator.free_inodes(),
            fsid: word(low) ^ word(high),
        }
    }

    /// State for displays.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            space: self.space(),
            uuid: self.volume.geometry.uuid,
            label: self.label.clone(),
            features: features::names(&self.volume.superblock()),
            read_only: self.volume.read_only(),
            damage_found: self.damage_count(),
            errors_recorded: self.volume.superblock().s_error_count.get().into(),
            journal: self.volume.journal.statistics(),
            recovery: self.recovery,
            cache: self.volume.cache.statistics(),
            inodes_in_memory: self.inodes.in_memory().len() as u64,
            snapshots: self.volume.snapshots.list().len() as u64,
            pinned_blocks: self.volume.allocator.pinned_blocks(),
            frozen_for: self.frozen_for(),
        }
    }
}
