//! How a volume is opened.

use super::ErrorsPolicy;
use crate::time::{Clock, SystemClock};
use std::sync::Arc;
use std::time::Duration;

/// Options of [`Filesystem::open`](super::Filesystem::open).
#[derive(Clone)]
pub struct MountOptions {
    /// Take no changes. The journal of an image that was not closed is replayed all the same, as
    /// Linux does, unless the device is read-only.
    pub read_only: bool,
    /// For time stamps.
    pub clock: Arc<dyn Clock>,
    /// Where generations of new inodes start; taken from the clock when `None`.
    pub generation_seed: Option<u32>,
    /// How long a change may wait for its commit. `None` starts no thread: commits happen on request
    /// only, which makes tests deterministic.
    pub commit_interval: Option<Duration>,
    /// What to do when damage is found.
    pub errors: ErrorsPolicy,
    /// The device shows a snapshot.
    pub is_snapshot: bool,
    /// Clean metadata blocks to keep in memory, in bytes.
    pub cache_bytes: u64,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            read_only: false,
            clock: Arc::new(SystemClock),
            generation_seed: None,
            commit_interval: Some(Duration::from_secs(5)),
            errors: ErrorsPolicy::Default,
            is_snapshot: false,
            cache_bytes: 256 << 20,
        }
    }
}
