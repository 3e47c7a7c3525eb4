//! Commit: the running transaction becomes durable.
//!
//! One thread commits at a time. Others that want the same transaction, or a later one that began
//! while the log was being written, wait for the lock and find their work done or done for many at
//! once: that is all there is to group commit.

use super::Journal;
use super::log::Log;
use super::transaction::{Frozen, Running};
use crate::error::{Error, ReadOnlyReason, Result};
use crate::ids::Tid;
use std::sync::atomic::Ordering;

/// Who has committed a transaction that somebody wants to be durable.
enum Commit {
    /// The caller.
    Done,
    /// Another thread, before the caller's turn came.
    Found,
}

impl Journal {
    /// Makes all handles of `tid` durable, and of all transactions before it.
    ///
    /// # Errors
    /// What the device reports (the journal is aborted then), or `ReadOnly` after an abort.
    pub fn commit(&self, tid: Tid) -> Result<()> {
        self.commit_unless_done(tid).map(drop)
    }

    /// As [`Journal::commit`], and makes all completed data writes durable, too, as fsync(2) must.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub fn commit_with_data(&self, tid: Tid) -> Result<()> {
        match self.commit_unless_done(tid)? {
            Commit::Done => Ok(()),
            // The flushes of somebody else's commit may have come before the caller's data: an
            // overwrite in place joins no transaction.
            Commit::Found => self.flush().inspect_err(|error| self.abort(error)),
        }
    }

    fn commit_unless_done(&self, tid: Tid) -> Result<Commit> {
        let mut log = self.log.lock();
        {
            let state = self.state.lock();
            if !tid.is_after(state.committed) {
                return Ok(Commit::Found);
            }
            if self.is_aborted() {
                return Err(Error::ReadOnly {
                    reason: ReadOnlyReason::Error,
                });
            }
            debug_assert!(
                !tid.is_after(state.running.tid),
                "nobody knows a later transaction"
            );
        }
        self.commit_running(&mut log)
            .inspect_err(|error| self.abort(error))?;
        Ok(Commit::Done)
    }

    /// Commits the running transaction, whatever it is; makes all completed data writes durable.
    ///
    /// # Errors
    /// As [`Journal::commit`].
    pub fn commit_all(&self) -> Result<()> {
        let tid = {
            let state = self.state.lock();
            (!state.running.is_empty() || state.running.updates > 0).then_some(state.running.tid)
        };
        match tid {
            Some(tid) => self.commit(tid),
            // A commit in flight may hold what the caller has done just before.
            None => {
                drop(self.log.lock());
                if self.is_aborted() {
                    return Err(Error::ReadOnly {
                        reason: ReadOnlyReason::Error,
                    });
                }
                self.flush().inspect_err(|error| self.abort(error))
            }
        }
    }

    /// Runs `work` while the volume stands still: no handle is open, everything is committed and in its
    /// place. Handles that are started meanwhile wait.
    ///
    /// # Errors
    /// What `work` or the device reports; the journal is aborted then, as nobody knows what `work` has
    /// left.
    pub fn quiesce<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        // Most of what has to be written, while others still work.
        self.commit_all()?;
        self.checkpoint()?;
        let mut log = self.log.lock();
        self.enter_quiet();
        let result = self.finish_quiet(&mut log, work);
        self.leave_quiet();
        result.inspect_err(|error| self.abort(error))
    }

    pub(super) fn finish_quiet<R>(
        &self,
        log: &mut Option<Log>,
        work: impl FnOnce() -> Result<R>,
    ) -> Result<R> {
        if self.is_aborted() {
            return Err(Error::ReadOnly {
                reason: ReadOnlyReason::Error,
            });
        }
        self.commit_running(log)?;
        self.checkpoint()?;
        work()
    }

    fn commit_running(&self, log: &mut Option<Log>) -> Result<()> {
        let Some(frozen) = self.freeze_running()? else {
            // Nothing for the log; data written before still has to be durable.
            return self.flush();
        };
        let tid = frozen.tid;
        if let Some(log) = log {
            self.commit_to_log(log, frozen)?;
        } else {
            self.commit_in_place(&frozen)?;
        }
        for observer in self.observers.read().iter() {
            observer.committed(tid);
        }
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.state.lock().committed = tid;
        self.changed.notify_all();
        Ok(())
    }

    /// Waits until no handle is open, takes the running transaction and lets the next one run.
    /// A transaction that changed nothing goes on running: ids in the log have no gaps.
    fn freeze_running(&self) -> Result<Option<Frozen>> {
        let mut state = self.state.lock();
        state.draining = true;
        while state.running.updates > 0 && !self.is_aborted() {
            self.changed.wait(&mut state);
        }
        if self.is_aborted() {
            state.draining = false;
            self.changed.notify_all();
            return Err(Error::ReadOnly {
                reason: ReadOnlyReason::Error,
            });
        }
        if state.running.is_empty() {
            state.draining = false;
            self.changed.notify_all();
            return Ok(None);
        }
        let next = Running::new(state.running.tid.next(), state.running.serial + 1);
        let running = std::mem::replace(&mut state.running, next);
        let frozen = running.freeze();
        state.draining = false;
        self.changed.notify_all();
        Ok(Some(frozen))
    }

    fn commit_to_log(&self, log: &mut Log, frozen: Frozen) -> Result<()> {
        let needed = log.blocks_needed(&frozen);
        self.make_room(log, needed)?;
        let start = log.head();
        log.write_blocks(&*self.device, &frozen)?;
        if let Some(sink) = self.pre_images.read().as_ref() {
            sink.write_out(frozen.tid)?;
        }
        // File data, the log's blocks and pre-images become durable before the commit block can.
        self.flush()?;
        log.write_commit(&*self.device, frozen.tid)?;
        self.flush()?;
        self.log_blocks_written
            .fetch_add(needed.into(), Ordering::Relaxed);
        self.blocks_revoked
            .fetch_add(frozen.revoked.len() as u64, Ordering::Relaxed);
        self.checkpoint.committed(frozen, start, needed, log.head());
        Ok(())
    }

    fn commit_in_place(&self, frozen: &Frozen) -> Result<()> {
        if let Some(sink) = self.pre_images.read().as_ref() {
            sink.write_out(frozen.tid)?;
        }
        self.flush()?;
        self.write_home(&frozen.blocks)?;
        self.flush()
    }

    /// Checkpoints until `needed` blocks of the log are free.
    fn make_room(&self, log: &Log, needed: u32) -> Result<()> {
        let (_, used) = self.checkpoint.log_usage();
        if log.len() - used >= needed {
            return Ok(());
        }
        self.checkpoint()?;
        let (_, used) = self.checkpoint.log_usage();
        // Handles are bounded by a quarter of the log, so only a tiny one is ever too small.
        if log.len() - used >= needed {
            Ok(())
        } else {
            Err(Error::NoSpace)
        }
    }
}
