//! Checkpoint: committed blocks go to their places, and the log's tail moves on.
//!
//! The newest committed content of each block waits in one map; what a later transaction commits
//! anew replaces it and need never be written. A checkpoint writes the map in block order, flushes,
//! and only then moves the tail in the log's superblock: until that is durable the log still holds
//! everything.
//!
//! A block freed by a transaction may be reused for file data as soon as that transaction is
//! committed, so `committed` takes it out of the map under the lock that batches are written under:
//! a checkpoint in flight never overwrites new data with an old metadata block.

use super::Journal;
use super::log::LogPosition;
use super::transaction::{Frozen, FrozenBlock};
use crate::error::{Error, IoOp, Result};
use crate::ids::{BlockNr, Tid};
use crate::sync::{Mutex, Rank};
use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;

/// Blocks written under one hold of the home lock: bounds how long a commit that frees metadata
/// waits for a checkpoint.
const BATCH_BLOCKS: usize = 256;

/// What has committed and not yet reached its place.
pub(super) struct Checkpoint {
    /// One checkpoint at a time.
    exclusive: Mutex<()>,
    /// Held while a batch is written home.
    home: Mutex<()>,
    pending: Mutex<Pending>,
}

#[derive(Default)]
struct Pending {
    blocks: BTreeMap<BlockNr, (Tid, FrozenBlock)>,
    /// Committed transactions that the log still holds, oldest first, with where each starts.
    transactions: VecDeque<(Tid, LogPosition)>,
    /// Where the transaction after the newest committed one starts.
    next: Option<(Tid, LogPosition)>,
    log_blocks: u32,
    log_blocks_used: u32,
}

impl Default for Checkpoint {
    fn default() -> Self {
        Self {
            exclusive: Mutex::new(Rank::Checkpoint, ()),
            home: Mutex::new(Rank::Home, ()),
            pending: Mutex::new(Rank::Pending, Pending::default()),
        }
    }
}

impl Checkpoint {
    /// The log is empty and its next transaction will be `tid` at `position`.
    pub(super) fn reset(&self, tid: Tid, position: LogPosition, log_blocks: u32) {
        let mut pending = self.pending.lock();
        *pending = Pending {
            next: Some((tid, position)),
            log_blocks,
            ..Pending::default()
        };
    }

    pub(super) fn blocks_count(&self) -> u32 {
        u32::try_from(self.pending.lock().blocks.len()).unwrap_or(u32::MAX)
    }

    /// Size of the log and blocks of it in use.
    pub(super) fn log_usage(&self) -> (u32, u32) {
        let pending = self.pending.lock();
        (pending.log_blocks, pending.log_blocks_used)
    }

    /// A transaction is durable in the log, at `start`, taking `len` blocks of it up to `next`.
    pub(super) fn committed(
        &self,
        frozen: Frozen,
        start: LogPosition,
        len: u32,
        next: LogPosition,
    ) {
        let _home = (!frozen.revoked.is_empty()).then(|| self.home.lock());
        let mut pending = self.pending.lock();
        for nr in &frozen.revoked {
            pending.blocks.remove(nr);
        }
        for block in frozen.blocks {
            pending
                .blocks
                .insert(block.buffer.nr(), (frozen.tid, block));
        }
        pending.transactions.push_back((frozen.tid, start));
        pending.next = Some((frozen.tid.next(), next));
        pending.log_blocks_used += len;
    }

    fn newest(&self) -> Option<Tid> {
        self.pending.lock().transactions.back().map(|(tid, _)| *tid)
    }

    /// Up to a batch of blocks from `cursor` on that transactions up to `target` committed.
    fn batch(&self, cursor: BlockNr, target: Tid) -> Vec<FrozenBlock> {
        let pending = self.pending.lock();
        pending
            .blocks
            .range(cursor..)
            .filter(|(_, (tid, _))| !tid.is_after(target))
            .take(BATCH_BLOCKS)
            .map(|(_, (_, block))| block.clone())
            .collect()
    }

    fn written(&self, batch: &[FrozenBlock], target: Tid) {
        let mut pending = self.pending.lock();
        for block in batch {
            let nr = block.buffer.nr();
            // A commit may have put newer content there meanwhile.
            if pending
                .blocks
                .get(&nr)
                .is_some_and(|(tid, _)| !tid.is_after(target))
            {
                pending.blocks.remove(&nr);
            }
        }
    }

    /// Where the log would start if all up to `target` were gone.
    fn tail_after(&self, target: Tid) -> Option<(Tid, LogPosition)> {
        let pending = self.pending.lock();
        let later = pending
            .transactions
            .iter()
            .find(|(tid, _)| tid.is_after(target))
            .copied();
        later.or(pending.next)
    }

    fn release(&self, target: Tid, tail: LogPosition) {
        let mut pending = self.pending.lock();
        while pending
            .transactions
            .front()
            .is_some_and(|(tid, _)| !tid.is_after(target))
        {
            pending.transactions.pop_front();
        }
        pending.log_blocks_used = match pending.next {
            Some((_, next)) if !pending.transactions.is_empty() => {
                tail.distance_to(next, pending.log_blocks)
            }
            _ => 0,
        };
    }
}

impl Journal {
    /// Writes everything committed to its place and gives the log's space back.
    ///
    /// # Errors
    /// When the device fails; the journal is aborted then.
    pub fn checkpoint(&self) -> Result<()> {
        self.checkpoint_committed()
            .inspect_err(|error| self.abort(error))
    }

    fn checkpoint_committed(&self) -> Result<()> {
        let _one = self.checkpoint.exclusive.lock();
        let Some(target) = self.checkpoint.newest() else {
            return Ok(());
        };
        let mut cursor = BlockNr(0);
        loop {
            let _home = self.checkpoint.home.lock();
            let batch = self.checkpoint.batch(cursor, target);
            let Some(last) = batch.last() else { break };
            cursor = last.buffer.nr().plus(1);
            self.write_home(&batch)?;
            self.checkpoint.written(&batch, target);
        }
        self.flush()?;
        if let Some((tid, tail)) = self.checkpoint.tail_after(target) {
            self.write_tail(tid, tail)?;
            self.checkpoint.release(target, tail);
        }
        Ok(())
    }

    /// Writes blocks, sorted by number, to their places: one call a contiguous run.
    pub(super) fn write_home(&self, blocks: &[FrozenBlock]) -> Result<()> {
        let block_size = self.cache.block_size() as u64;
        for run in blocks.chunk_by(|a, b| a.buffer.nr().plus(1) == b.buffer.nr()) {
            let slices: Vec<IoSlice<'_>> = run
                .iter()
                .map(|block| IoSlice::new(&block.content))
                .collect();
            let first = run[0].buffer.nr();
            self.device
                .write_vectored_at(first.0 * block_size, &slices)
                .map_err(|source| Error::Io {
                    op: IoOp::Write,
                    block: first,
                    source,
                })?;
        }
        Ok(())
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.device.flush().map_err(|source| Error::Device {
            op: IoOp::Flush,
            source,
        })
    }
}
