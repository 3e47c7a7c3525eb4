//! `Transaction`: the changes of many handles that become durable together.
//!
//! A transaction is running (handles join it), then committing (frozen: its blocks are written to
//! the log), then checkpointing (its blocks are written to their places). One transaction runs and
//! at most one commits at a time.

use crate::ids::{BlockNr, Tid};
use crate::storage::buffer::Buffer;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

/// The transaction that handles join.
pub(super) struct Running {
    pub(super) tid: Tid,
    /// Never reused, unlike `tid`: what buffers are marked with.
    pub(super) serial: u64,
    /// Open handles.
    pub(super) updates: u32,
    /// Credits of open handles not used yet, in blocks.
    pub(super) reserved: u32,
    /// Buffers changed, each once.
    pub(super) buffers: Vec<Arc<Buffer>>,
    /// Freed metadata blocks whose older log copies must not be replayed.
    pub(super) revoked: BTreeSet<BlockNr>,
    /// When the first handle joined.
    pub(super) started: Option<Instant>,
}

impl Running {
    pub(super) fn new(tid: Tid, serial: u64) -> Self {
        Self {
            tid,
            serial,
            updates: 0,
            reserved: 0,
            buffers: Vec::new(),
            revoked: BTreeSet::new(),
            started: None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.buffers.is_empty() && self.revoked.is_empty()
    }

    /// Takes the content of all buffers as it is now. No handle may be open.
    pub(super) fn freeze(self) -> Frozen {
        assert_eq!(
            self.updates, 0,
            "a transaction is frozen only when all handles have stopped"
        );
        let mut blocks: Vec<FrozenBlock> = self
            .buffers
            .into_iter()
            .filter(|buffer| buffer.transaction() == self.serial)
            .map(|buffer| FrozenBlock {
                content: buffer.freeze(),
                buffer,
            })
            .collect();
        for block in &blocks {
            block.buffer.set_transaction(0);
        }
        // In block order the log is written, and later checkpointed, sequentially.
        blocks.sort_unstable_by_key(|block| block.buffer.nr());
        // A block freed and made anew within the transaction has joined twice.
        blocks.dedup_by_key(|block| block.buffer.nr());
        Frozen {
            tid: self.tid,
            blocks,
            revoked: self.revoked,
        }
    }
}

/// A block as its transaction leaves it. Holding the buffer keeps it in the cache until the content
/// has reached its place.
#[derive(Clone)]
pub(super) struct FrozenBlock {
    pub(super) buffer: Arc<Buffer>,
    pub(super) content: Arc<[u8]>,
}

/// A transaction that takes no more changes.
pub(super) struct Frozen {
    pub(super) tid: Tid,
    /// Sorted by block number.
    pub(super) blocks: Vec<FrozenBlock>,
    pub(super) revoked: BTreeSet<BlockNr>,
}
