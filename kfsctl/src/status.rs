//! The answer to `status`: what is served, to whom, and how it fares.
//!
//! Sizes are in bytes where the name says so, else in blocks of `block_size_bytes`. Parts that do
//! not apply (a host directory has no journal) are absent. Counters count from the daemon's start.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything `kfsctl status` shows.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Status {
    /// The daemon; absent when an idle image was read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daemon: Option<DaemonStatus>,
    /// What is served.
    pub volume: VolumeStatus,
    /// To whom: one entry per socket, mount point or guest.
    pub sessions: Vec<SessionStatus>,
    /// Operations that came in, most frequent first; those that never came are left out.
    pub operations: Vec<OperationStatus>,
}

/// The serving process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DaemonStatus {
    /// Version of kfsd.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Time since its start.
    pub uptime_seconds: f64,
}

/// The tree that is served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct VolumeStatus {
    /// Where it lies.
    pub source: Source,
    /// Name of the snapshot that is served in place of the volume.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// Whether changes are refused.
    pub read_only: bool,
    /// Why, when they are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub read_only_reason: Option<String>,
    /// Whether the image is whole; for an image that is served, as it would be after a crash.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<VolumeState>,
    /// Errors on record in the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors_found: Option<u64>,
    /// Label of the file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// UUID of the file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Room for data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub space: Option<Space>,
    /// Room for files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes: Option<Inodes>,
    /// Feature names, as mke2fs writes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub features: Option<Features>,
    /// The journal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub journal: Option<Journal>,
    /// Inodes that the daemon holds in memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inodes_in_memory: Option<u64>,
    /// Caches of the daemon.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<Cache>,
    /// What the daemon did to the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<Device>,
    /// Snapshots; absent for an idle image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshots: Option<Snapshots>,
    /// How long a freeze will last, if the volume is frozen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub frozen_for_seconds: Option<f64>,
}

/// Snapshots of the volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Snapshots {
    /// How many there are.
    pub count: u64,
    /// Free space that only they keep.
    pub pinned_bytes: u64,
}

/// What an image needs before it can be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VolumeState {
    /// Nothing.
    Clean,
    /// Nothing, by the kfsd that serves it for changes. A copy would have to be recovered.
    InUse,
    /// Its journal is to be replayed, which whoever mounts it does.
    NeedsRecovery,
    /// A check: it was not closed, and has no journal to replay.
    NotClean,
    /// A check: an error was found while it was in use.
    HasErrors,
    /// A state of a newer daemon.
    #[serde(other)]
    Unknown,
}

/// Where a volume lies.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Source {
    /// An ext4 image: a file or a block device.
    Image {
        /// Its path.
        path: PathBuf,
    },
    /// A directory of the host.
    SharedDir {
        /// Its path.
        path: PathBuf,
    },
}

impl Default for Source {
    fn default() -> Self {
        Self::Image {
            path: PathBuf::new(),
        }
    }
}

impl Source {
    /// The path, of whatever kind.
    pub fn path(&self) -> &std::path::Path {
        match self {
            Self::Image { path } | Self::SharedDir { path } => path,
        }
    }
}

/// Room for data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Space {
    /// Bytes in a block.
    pub block_size_bytes: u64,
    /// Blocks for data.
    pub total_blocks: u64,
    /// Blocks nobody uses.
    pub free_blocks: u64,
    /// Free blocks that are not reserved for root.
    pub available_blocks: u64,
}

/// Room for files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Inodes {
    /// Inodes there are.
    pub total: u64,
    /// Inodes nobody uses.
    pub free: u64,
}

/// Features of the image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Features {
    /// Those an implementation may ignore.
    pub compat: Vec<String>,
    /// Those it must know.
    pub incompat: Vec<String>,
    /// Those it must know to write.
    pub ro_compat: Vec<String>,
}

/// State of the journal. What only a daemon knows is absent for an idle image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Journal {
    /// Size of the log.
    pub size_bytes: u64,
    /// Part of it that recovery would need.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<u64>,
    /// Transaction that takes changes, if one is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_tid: Option<u32>,
    /// Newest transaction that a crash cannot undo.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub committed_tid: Option<u32>,
    /// Blocks that the running transaction has changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running_blocks: Option<u64>,
    /// Blocks that are committed and not yet written to their places: what a checkpoint would do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint_blocks: Option<u64>,
    /// Commits since the volume was opened.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub commits: Option<u64>,
    /// Whether recovery is needed before the image is consistent.
    pub needs_recovery: bool,
}

/// One cache.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cache {
    /// What it holds.
    pub name: String,
    /// Found in it.
    pub hits: u64,
    /// Not found in it.
    pub misses: u64,
    /// What it holds at the moment.
    pub entries: u64,
    /// What it may hold; 0 where there is no bound.
    pub capacity: u64,
}

impl Cache {
    /// Part of the look-ups that hit, if there were any.
    #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn hit_ratio(&self) -> Option<f64> {
        let total = self
            .hits
            .checked_add(self.misses)
            .filter(|&total| total != 0)?;
        Some(self.hits as f64 / total as f64)
    }
}

/// Device counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Device {
    /// Read calls.
    pub reads: u64,
    /// Bytes they moved.
    pub read_bytes: u64,
    /// Write calls.
    pub writes: u64,
    /// Bytes they moved.
    pub written_bytes: u64,
    /// Barriers.
    pub flushes: u64,
    /// Ranges given back.
    pub discards: u64,
    /// Ranges made zeros.
    pub zeroings: u64,
    /// Calls that failed.
    pub errors: u64,
}

/// How a session reaches kfsd.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TransportKind {
    /// A virtual machine, over a vhost-user socket.
    #[default]
    VhostUser,
    /// This host's kernel, over /dev/fuse.
    DevFuse,
}

/// One user of the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SessionStatus {
    /// How it comes in.
    pub transport: TransportKind,
    /// Socket or mount point.
    pub endpoint: PathBuf,
    /// Tag the guest mounts by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Whether somebody is there.
    pub connected: bool,
    /// FUSE version of the kernel at the other end, once it has said INIT.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fuse_version: Option<(u32, u32)>,
    /// Files and directories it holds open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_handles: Option<u64>,
    /// Inodes its kernel remembers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub known_inodes: Option<u64>,
    /// Requests it sent.
    pub requests: u64,
    /// Bytes that it has read.
    pub read_bytes: u64,
    /// Bytes that it has written.
    pub written_bytes: u64,
}

/// One kind of operation.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OperationStatus {
    /// Its FUSE name, in lower case.
    pub name: String,
    /// How many came.
    pub count: u64,
    /// How many were answered with an error other than "no such file".
    pub errors: u64,
    /// How many came each second, over the last few.
    pub per_second: f64,
    /// Time from taking the request up to its answer, in all.
    pub seconds: f64,
    /// How many took at most as long as [`LATENCY_BOUNDS`] say, one of each, and at last those that
    /// took longer. Not cumulative.
    pub latencies: Vec<u64>,
}

/// Upper bounds of the classes of latencies, in seconds.
pub const LATENCY_BOUNDS: [f64; 10] = [
    0.000_004, 0.000_016, 0.000_064, 0.000_256, 0.001_024, 0.004_096, 0.016_384, 0.065_536,
    0.262_144, 1.048_576,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_of_an_older_and_a_newer_daemon_is_read() {
        let empty: Status = serde_json::from_str("{}").unwrap();
        assert_eq!(empty, Status::default());
        let newer: Status = serde_json::from_str(
            r#"{"volume":{"source":{"kind":"shared-dir","path":"/srv"},"moon":"full"},"x":1}"#,
        )
        .unwrap();
        assert_eq!(newer.volume.source.path(), std::path::Path::new("/srv"));
    }

    #[test]
    fn hit_ratio_needs_look_ups() {
        let mut cache = Cache::default();
        assert_eq!(cache.hit_ratio(), None);
        cache.hits = 3;
        cache.misses = 1;
        assert_eq!(cache.hit_ratio(), Some(0.75));
    }
}
