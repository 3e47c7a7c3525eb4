//! Standing still: no handle is open and none can be started.
//!
//! For a moment (`quiesce` in `commit.rs`), or from [`Journal::freeze`] to [`Journal::thaw`]. Several may
//! want it at a time: the volume moves on when the last one lets it. While it is frozen no lock is held,
//! so that a sync finds that there is nothing to do, and whoever only reads does not notice.

use super::Journal;
use crate::error::Result;

impl Journal {
    /// No handle can be started from here on; waits until those that are open stop.
    pub(super) fn enter_quiet(&self) {
        let mut state = self.state.lock();
        state.quiet += 1;
        while state.running.updates > 0 && !self.is_aborted() {
            self.changed.wait(&mut state);
        }
    }

    /// Lets handles be started again, unless somebody else wants the volume to stand still.
    pub(super) fn leave_quiet(&self) {
        self.state.lock().quiet -= 1;
        self.changed.notify_all();
    }

    /// Makes the volume stand still until [`Journal::thaw`]: everything is committed and in its place,
    /// the log is marked empty, and handles that are started wait.
    ///
    /// # Errors
    /// What the device reports; the journal is aborted then.
    pub fn freeze(&self) -> Result<()> {
        // Most of what has to be written, while others still work.
        self.commit_all()?;
        self.checkpoint()?;
        let mut log = self.log.lock();
        self.enter_quiet();
        let frozen = self.finish_quiet(&mut log, || self.mark_empty());
        frozen.inspect_err(|error| {
            self.leave_quiet();
            self.abort(error);
        })
    }

    /// Ends [`Journal::freeze`].
    ///
    /// # Errors
    /// What the device reports; the journal is aborted then.
    pub fn thaw(&self) -> Result<()> {
        let marked = self.mark_in_use();
        let marked = marked.inspect_err(|error| self.abort(error));
        self.leave_quiet();
        marked
    }
}
