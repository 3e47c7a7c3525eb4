//! `Committer`: the thread that commits what has waited long enough, and checkpoints ahead of need.

use crate::volume::Volume;
use parking_lot::{Condvar, Mutex};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Share of the log in use from which on the thread checkpoints: 1 of this many.
const CHECKPOINT_SHARE: u32 = 2;

/// The running thread. Stopped by [`Committer::stop`], or when dropped.
pub(super) struct Committer {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Committer {
    /// Starts a thread that lets no change wait longer than `interval` for its commit.
    pub(super) fn start(volume: Arc<Volume>, interval: Duration) -> std::io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("kfs-journal".into())
            .spawn(move || run(&volume, interval, &stopped))?;
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }

    /// Ends the thread and waits for it.
    pub(super) fn stop(&mut self) {
        *self.stop.0.lock() = true;
        self.stop.1.notify_all();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the journal thread has panicked");
        }
    }
}

impl Drop for Committer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(volume: &Volume, interval: Duration, stop: &(Mutex<bool>, Condvar)) {
    // Looking a few times an interval keeps the wait close to it.
    let period = (interval / 4).clamp(Duration::from_millis(10), Duration::from_secs(1));
    loop {
        let mut is_stopped = stop.0.lock();
        if !*is_stopped {
            stop.1.wait_for(&mut is_stopped, period);
        }
        if *is_stopped || volume.journal.is_aborted() {
            return;
        }
        drop(is_stopped);
        // A failure aborts the journal, which logs it.
        let _ = work(volume, interval);
    }
}

fn work(volume: &Volume, interval: Duration) -> crate::Result<()> {
    let journal = &volume.journal;
    if journal.running_age().is_some_and(|age| age >= interval) {
        journal.commit(journal.running_tid())?;
    }
    let statistics = journal.statistics();
    if statistics.log_blocks_used > statistics.log_blocks / CHECKPOINT_SHARE {
        journal.checkpoint()?;
    }
    Ok(())
}
