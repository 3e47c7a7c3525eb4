//! The journal: makes changes of many metadata blocks atomic (JBD2 on-disk format).
//!
//! ```text
//!  start -> Handle -> get_write_access ... stop        many at a time, into the running transaction
//!  commit:     drain handles, freeze blocks, next transaction runs
//!              log <- descriptors, blocks, revokes | flush | commit block | flush
//!  checkpoint: home <- blocks of committed transactions | flush | tail of the log moves
//! ```
//!
//! File data is written before the handle that makes it reachable stops, and the first flush of a
//! commit makes it durable before the commit block: ordered mode without a data list.
//!
//! A volume without a journal uses the same transactions; its commit writes blocks to their places
//! directly, which is as safe as ext2 is.

mod checkpoint;
mod commit;
mod freeze;
mod handle;
mod log;
mod recovery;
mod transaction;

#[cfg(all(test, debug_assertions))]
mod schedules;
#[cfg(test)]
mod tests;

use super::buffer::Buffer;
use super::cache::BufferCache;
use super::observer::{CommitObserver, PreImageSink, StorePurpose};
use crate::error::{Error, ReadOnlyReason, Result};
use crate::ids::{BlockNr, Tid};
use crate::sync::{Condvar, Held, Mutex, Rank, may_wait_for_handles};
use checkpoint::Checkpoint;
pub use handle::Handle;
use kfs_disk::BlockDevice;
use log::{Log, LogSuperblock};
pub use log::{LogArea, LogOptions};
use parking_lot::RwLock;
pub use recovery::{Recovered, attach, inspect, recover, reset_log};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use transaction::Running;

/// Log blocks that one transaction may take at the most where there is no log.
const TRANSACTION_BLOCKS_WITHOUT_LOG: u32 = 8192;

/// How often a usual transaction fits into a large one, which leaves a quarter of the log for what goes with
/// it.
const LARGE_SHARE: u32 = 3;

/// The journal of a mounted volume.
pub struct Journal {
    device: Arc<dyn BlockDevice>,
    cache: Arc<BufferCache>,
    state: Mutex<State>,
    /// Signalled when handles stop, when a drain ends, when a commit ends, on abort.
    changed: Condvar,
    /// Held by the one thread that commits. `None` on a volume without a journal.
    log: Mutex<Option<Log>>,
    superblock: Mutex<Option<LogSuperblock>>,
    checkpoint: Checkpoint,
    observers: RwLock<Vec<Arc<dyn CommitObserver>>>,
    pre_images: RwLock<Option<Arc<dyn PreImageSink>>>,
    aborted: AtomicBool,
    /// Log blocks that a transaction may take, revokes included.
    transaction_blocks_max: u32,
    /// Freed metadata blocks that one log block names.
    revokes_per_block: usize,
    commits: AtomicU64,
    log_blocks_written: AtomicU64,
    blocks_revoked: AtomicU64,
}

struct State {
    running: Running,
    /// A commit drains the running transaction: no new handles.
    draining: bool,
    /// How many want the volume to stand still: no new handles while there are any.
    quiet: u32,
    /// The volume is being closed: no new handles ever.
    closed: bool,
    /// The newest durable transaction.
    committed: Tid,
}

/// Figures about the journal for status displays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournalStatistics {
    /// Size of the log in blocks, 0 for none.
    pub log_blocks: u32,
    /// Blocks of the log in use.
    pub log_blocks_used: u32,
    /// The running transaction.
    pub running: Tid,
    /// The newest durable transaction.
    pub committed: Tid,
    /// Blocks changed by the running transaction.
    pub running_blocks: u32,
    /// Blocks committed and not yet written to their places.
    pub checkpoint_blocks: u32,
    /// Commits since the volume was opened.
    pub commits: u64,
    /// Blocks written to the log since then.
    pub log_blocks_written: u64,
    /// Freed metadata blocks that commits revoked since then.
    pub blocks_revoked: u64,
    /// Whether the journal was aborted.
    pub aborted: bool,
}

impl Journal {
    /// A journal on `log`, which [`recover`] has left empty; without a log, changes are written to
    /// their places at commit.
    #[must_use]
    pub fn open(
        device: Arc<dyn BlockDevice>,
        cache: Arc<BufferCache>,
        log: Option<LogOptions>,
    ) -> Self {
        let superblock = log.as_ref().map(LogSuperblock::new);
        let log = log.map(|options| Log::new(options, cache.block_size()));
        let first = log.as_ref().map_or(Tid(1), Log::next_tid);
        let blocks_max = log
            .as_ref()
            .map_or(TRANSACTION_BLOCKS_WITHOUT_LOG, |log| (log.len() / 4).max(1));
        let revokes_per_block = log.as_ref().map_or(usize::MAX, Log::revokes_per_block);
        let state = State {
            running: Running::new(first, 1),
            draining: false,
            quiet: 0,
            closed: false,
            committed: Tid(first.0.wrapping_sub(1)),
        };
        Self {
            device,
            cache,
            state: Mutex::new(Rank::Journal, state),
            changed: Condvar::new(),
            log: Mutex::new(Rank::Commit, log),
            superblock: Mutex::new(Rank::LogSuperblock, superblock),
            checkpoint: Checkpoint::default(),
            observers: RwLock::new(Vec::new()),
            pre_images: RwLock::new(None),
            aborted: AtomicBool::new(false),
            transaction_blocks_max: blocks_max,
            revokes_per_block,
            commits: AtomicU64::new(0),
            log_blocks_written: AtomicU64::new(0),
            blocks_revoked: AtomicU64::new(0),
        }
    }

    /// Adds somebody who is told of commits.
    pub fn add_observer(&self, observer: Arc<dyn CommitObserver>) {
        self.observers.write().push(observer);
    }

    /// Sets who keeps the old content of blocks, or nobody.
    pub fn set_pre_image_sink(&self, sink: Option<Arc<dyn PreImageSink>>) {
        *self.pre_images.write() = sink;
    }

    /// Most credits that one handle may ask for, in blocks.
    #[must_use]
    pub fn credits_max(&self) -> u32 {
        self.transaction_blocks_max
    }

    /// Opens a handle that may change up to `credits` blocks. Waits while a commit drains, and
    /// commits first when the running transaction is full.
    ///
    /// # Errors
    /// `ReadOnly` after an abort or [`Journal::close`]; `NoSpace` for more credits than a log of this
    /// size gives to a transaction; `SnapshotStoreFull` when the store has to grow first; what a commit
    /// reports when one was needed to make room.
    pub fn start(&self, credits: u32) -> Result<Handle<'_>> {
        self.start_for(credits, StorePurpose::Operation)
    }

    /// As [`Journal::start`], saying what room in the snapshot store is for.
    ///
    /// # Errors
    /// As [`Journal::start`].
    pub fn start_for(&self, credits: u32, purpose: StorePurpose) -> Result<Handle<'_>> {
        self.start_within(credits, purpose, self.transaction_blocks_max)
    }

    /// Most credits of [`Journal::start_large`], in blocks: what the log can hold at all.
    #[must_use]
    pub fn large_credits_max(&self) -> u32 {
        self.transaction_blocks_max.saturating_mul(LARGE_SHARE)
    }

    /// As [`Journal::start`], for the rare operation that is larger than one may usually be: it gets a
    /// transaction that nobody has used yet.
    ///
    /// # Errors
    /// As [`Journal::start`].
    pub fn start_large(&self, credits: u32) -> Result<Handle<'_>> {
        self.start_within(credits, StorePurpose::Operation, self.large_credits_max())
    }

    fn start_within(
        &self,
        credits: u32,
        purpose: StorePurpose,
        credits_max: u32,
    ) -> Result<Handle<'_>> {
        if credits > credits_max {
            ::log::warn!(
                "an operation needs {credits} blocks of the journal, which gives {credits_max} to one: make a larger journal"
            );
            return Err(Error::NoSpace);
        }
        may_wait_for_handles();
        loop {
            let mut state = self.state.lock();
            while (state.draining || state.quiet > 0) && !self.is_aborted() {
                self.changed.wait(&mut state);
            }
            if self.is_aborted() {
                return Err(Error::ReadOnly {
                    reason: ReadOnlyReason::Error,
                });
            }
            if state.closed {
                return Err(Error::ReadOnly {
                    reason: ReadOnlyReason::Closed,
                });
            }
            let running = &mut state.running;
            let revokes = running.revoked.len().div_ceil(self.revokes_per_block);
            let used = u32::try_from(running.buffers.len() + revokes).unwrap_or(u32::MAX);
            let wanted = used
                .saturating_add(running.reserved)
                .saturating_add(credits);
            if wanted <= self.transaction_blocks_max || (used == 0 && running.reserved == 0) {
                if let Some(sink) = self.pre_images.read().as_ref()
                    && !sink.reserve(credits, purpose)
                {
                    return Err(Error::SnapshotStoreFull);
                }
                running.updates += 1;
                running.reserved += credits;
                running.started.get_or_insert_with(Instant::now);
                return Ok(Handle {
                    journal: self,
                    tid: running.tid,
                    serial: running.serial,
                    credits,
                    modified: false,
                    _held: Held::handle(),
                });
            }
            let full = running.tid;
            drop(state);
            self.commit(full)?;
        }
    }

    /// The transaction that changes made now would belong to.
    #[must_use]
    pub fn running_tid(&self) -> Tid {
        self.state.lock().running.tid
    }

    /// Whether `tid` is durable.
    #[must_use]
    pub fn is_committed(&self, tid: Tid) -> bool {
        !tid.is_after(self.state.lock().committed)
    }

    /// How long the running transaction has had changes, `None` when it has none.
    #[must_use]
    pub fn running_age(&self) -> Option<Duration> {
        let state = self.state.lock();
        (!state.running.is_empty())
            .then(|| state.running.started.map(|s| s.elapsed()))
            .flatten()
    }

    /// Gives no more handles. Those that are open go on; a commit waits for them.
    pub fn close(&self) {
        self.state.lock().closed = true;
    }

    /// Whether the journal has stopped for good.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    /// Stops for good: nothing that has not committed will, no handle can be started.
    pub fn abort(&self, reason: &Error) {
        // Under the lock, so that nobody goes to sleep between looking at the flag and waiting.
        let state = self.state.lock();
        if !self.aborted.swap(true, Ordering::AcqRel) {
            ::log::error!(
                "journal aborted in transaction {}: {}; the volume is read-only from now on",
                state.running.tid,
                chain(reason)
            );
        }
        self.changed.notify_all();
    }

    /// Figures for status displays.
    #[must_use]
    pub fn statistics(&self) -> JournalStatistics {
        let checkpoint_blocks = self.checkpoint.blocks_count();
        let (log_blocks, log_blocks_used) = self.checkpoint.log_usage();
        let state = self.state.lock();
        JournalStatistics {
            log_blocks,
            log_blocks_used,
            running: state.running.tid,
            committed: state.committed,
            running_blocks: u32::try_from(state.running.buffers.len()).unwrap_or(u32::MAX),
            checkpoint_blocks,
            commits: self.commits.load(Ordering::Relaxed),
            log_blocks_written: self.log_blocks_written.load(Ordering::Relaxed),
            blocks_revoked: self.blocks_revoked.load(Ordering::Relaxed),
            aborted: self.is_aborted(),
        }
    }

    /// Adds a buffer to the handle's transaction.
    fn join(&self, handle: &mut Handle<'_>, buffer: &Arc<Buffer>, create: bool) {
        let mut state = self.state.lock();
        let running = &mut state.running;
        debug_assert_eq!(
            running.serial, handle.serial,
            "an open handle keeps its transaction"
        );
        if create {
            running.revoked.remove(&buffer.nr());
        }
        if buffer.transaction() == running.serial {
            return;
        }
        if let Some(sink) = self.pre_images.read().as_ref() {
            sink.join(running.tid, buffer, create);
        }
        buffer.set_transaction(running.serial);
        running.buffers.push(Arc::clone(buffer));
        debug_assert!(
            handle.credits > 0,
            "the handle was started with too few credits"
        );
        if handle.credits > 0 {
            handle.credits -= 1;
            running.reserved -= 1;
        }
    }

    fn revoke(&self, handle: &Handle<'_>, block: BlockNr) {
        let mut state = self.state.lock();
        state.running.revoked.insert(block);
        if let Some(buffer) = self.cache.peek(block)
            && buffer.transaction() == handle.serial
        {
            // A buffer that is not marked is left out when the transaction freezes.
            buffer.set_transaction(0);
        }
    }

    fn stop(&self, handle: &Handle<'_>) {
        let mut state = self.state.lock();
        state.running.updates -= 1;
        state.running.reserved -= handle.credits;
        if let Some(sink) = self.pre_images.read().as_ref() {
            sink.release(handle.credits);
        }
        if state.running.updates == 0 && (state.draining || state.quiet > 0) {
            self.changed.notify_all();
        }
    }
}

/// An error with all its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        line = format!("{line}: {cause}");
        source = cause.source();
    }
    line
}
