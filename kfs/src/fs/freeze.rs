//! Freeze: the volume stands still, so that its device can be copied.
//!
//! ```text
//!   data writes end | handles end | commit | checkpoint | log empty | superblock of a closed volume
//!   ... changes wait, reads go on ...
//!   superblock of a volume in use | log in use | what has waited goes on
//! ```
//!
//! Clients wait at a gate, before they take locks that readers want ([`Filesystem::begin_change`]); what
//! passes it by waits for a handle.
//!
//! A thread of its own holds the volume, for a bounded time: it ends on [`Filesystem::thaw`], when the
//! time is over, and when the volume is closed, whatever became of who asked for it.

use super::Filesystem;
use super::shutdown::mark_clean;
use super::superblock::{read_superblock, write_superblock};
use crate::error::{Error, IoOp, ReadOnlyReason, Result};
use crate::layout::superblock::STATE_VALID;
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Whether the volume is frozen, and who waits for a change of that.
#[derive(Default)]
pub(super) struct Freezer {
    state: Mutex<State>,
    changed: Condvar,
    /// Held shared by those who change files, from before they take a lock that readers want.
    gate: RwLock<()>,
}

#[derive(Default)]
struct State {
    phase: Phase,
    /// The volume is being closed: no freeze begins.
    is_closed: bool,
    /// What kept the last freeze from being one.
    failure: Option<Error>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Thawed,
    /// On the way to stand still.
    Freezing,
    Frozen {
        until: Instant,
    },
    /// Somebody has asked for the end.
    Thawing,
}

impl Filesystem {
    /// Makes the volume stand still for at most `limit`: all changes are on the device, which shows a
    /// volume that was closed, and new ones wait.
    ///
    /// # Errors
    /// `Busy` while it is frozen, `ReadOnly`, what the device reports.
    pub fn freeze(self: &Arc<Self>, limit: Duration) -> Result<()> {
        if let Some(reason) = self.volume.read_only() {
            return Err(Error::ReadOnly { reason });
        }
        let freezer = &self.freezer;
        let mut state = freezer.state.lock();
        if state.is_closed {
            let reason = ReadOnlyReason::Closed;
            return Err(Error::ReadOnly { reason });
        }
        if state.phase != Phase::Thawed {
            return Err(Error::Busy);
        }
        state.phase = Phase::Freezing;
        let fs = Arc::clone(self);
        let thread = std::thread::Builder::new().name("kfs-freeze".into());
        if let Err(source) = thread.spawn(move || fs.stand_still(limit)) {
            state.phase = Phase::Thawed;
            let op = IoOp::Flush;
            return Err(Error::Device { op, source });
        }
        while state.phase == Phase::Freezing {
            freezer.changed.wait(&mut state);
        }
        state.failure.take().map_or(Ok(()), Err)
    }

    /// Ends [`Filesystem::freeze`]. Returns whether the volume was frozen until now.
    pub fn thaw(&self) -> bool {
        let mut state = self.freezer.state.lock();
        while state.phase == Phase::Freezing {
            self.freezer.changed.wait(&mut state);
        }
        let was_frozen = matches!(state.phase, Phase::Frozen { .. });
        if was_frozen {
            state.phase = Phase::Thawing;
            self.freezer.changed.notify_all();
        }
        while state.phase != Phase::Thawed {
            self.freezer.changed.wait(&mut state);
        }
        was_frozen
    }

    /// Ends a freeze, and lets none begin: what waits for it has to end before the volume can be closed.
    pub fn end_freezes(&self) {
        self.freezer.state.lock().is_closed = true;
        self.thaw();
    }

    /// To be held by a client that changes files, before it takes any lock and once only: a freeze waits
    /// for it, and it waits for the thaw without being in the way of those who read.
    pub fn begin_change(&self) -> RwLockReadGuard<'_, ()> {
        self.freezer.gate.read()
    }

    /// How long the volume will stay frozen, `None` when it is not.
    #[must_use]
    pub fn frozen_for(&self) -> Option<Duration> {
        match self.freezer.state.lock().phase {
            Phase::Frozen { until } => Some(until.saturating_duration_since(Instant::now())),
            _ => None,
        }
    }

    /// The thread that holds the volume.
    fn stand_still(&self, limit: Duration) {
        let freezer = &self.freezer;
        let gate = freezer.gate.write();
        let still = self.volume.stop_data_writes();
        let frozen = self.volume.journal.freeze();
        let is_frozen = frozen.is_ok();
        let shown = frozen.and_then(|()| self.show_closed());
        let mut state = freezer.state.lock();
        if let Err(error) = shown {
            state.failure = Some(error);
        } else {
            let until = Instant::now() + limit;
            state.phase = Phase::Frozen { until };
            freezer.changed.notify_all();
            while matches!(state.phase, Phase::Frozen { .. }) {
                if freezer.changed.wait_until(&mut state, until).timed_out() {
                    log::warn!("nobody has thawed the volume in time: it goes on by itself");
                    state.phase = Phase::Thawing;
                }
            }
        }
        drop(state);
        if is_frozen {
            // A failure has aborted the journal, which logs it.
            let _ = self.show_in_use().and_then(|()| self.volume.journal.thaw());
        }
        drop(still);
        drop(gate);
        freezer.state.lock().phase = Phase::Thawed;
        freezer.changed.notify_all();
    }

    /// The superblock on the device becomes that of a closed volume.
    fn show_closed(&self) -> Result<()> {
        let device = &**self.volume.device();
        let mut superblock = read_superblock(device)?;
        self.settle_superblock(&mut superblock);
        mark_clean(&mut superblock, self.was_clean);
        write_superblock(device, &mut superblock)
    }

    /// And again that of one in use. What is in memory was never changed.
    fn show_in_use(&self) -> Result<()> {
        let device = &**self.volume.device();
        let in_memory = self.volume.superblock();
        let shown = read_superblock(device).and_then(|mut superblock| {
            superblock.s_feature_incompat = in_memory.s_feature_incompat;
            superblock.s_feature_ro_compat = in_memory.s_feature_ro_compat;
            if in_memory.s_state.get() & STATE_VALID == 0 {
                let state = superblock.s_state.get() & !STATE_VALID;
                superblock.s_state.set(state);
            }
            write_superblock(device, &mut superblock)
        });
        shown.inspect_err(|error| {
            self.volume.journal.abort(error);
            // The handles that wait are to hear of it.
            let _ = self.volume.journal.thaw();
        })
    }
}
