//! Damage that is found while the volume is in use: noted for e2fsck, and answered as the volume's
//! owner wants, like Linux's `errors=`.

use super::Filesystem;
use crate::corrupt::Corrupt;
use crate::error::{Error, ReadOnlyReason};
use crate::layout::superblock::STATE_ERROR;
use crate::time::Timestamp;
use std::sync::atomic::{AtomicU64, Ordering};
use zerocopy::little_endian::U32;

/// Messages after which damage is only counted: a client may ask for the same damaged file for ever.
const MESSAGES_MAX: u64 = 20;

/// What to do when damage is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ErrorsPolicy {
    /// What the superblock says (`tune2fs -e`); its `panic` is taken as [`Self::RemountReadOnly`].
    #[default]
    Default,
    /// Fail what needs the damaged part, and go on.
    Continue,
    /// Take no more changes.
    RemountReadOnly,
}

/// `s_errors`: go on.
const ERRORS_CONTINUE: u16 = 1;

impl ErrorsPolicy {
    pub(super) fn settle(self, s_errors: u16) -> Self {
        match (self, s_errors) {
            (Self::Default, ERRORS_CONTINUE | 0) => Self::Continue,
            (Self::Default, _) => Self::RemountReadOnly,
            (wanted, _) => wanted,
        }
    }
}

/// Damage found since the volume was opened.
#[derive(Default)]
pub(super) struct Damage {
    count: AtomicU64,
}

impl Filesystem {
    /// To be told of every error that a client is answered with: damage among them is logged and
    /// noted in the superblock, and the volume goes on or becomes read-only.
    pub fn note(&self, error: &Error) {
        if matches!(error, Error::NoSpace | Error::SnapshotStoreFull) {
            return self.note_full();
        }
        let Error::Corrupt(corrupt) = error else {
            return;
        };
        let count = self.damage.count.fetch_add(1, Ordering::Relaxed) + 1;
        if count <= MESSAGES_MAX {
            log::error!("the image is damaged: {corrupt}; run e2fsck when it is not in use");
        }
        if count == MESSAGES_MAX {
            log::error!("further damage is only counted");
        }
        if self.volume.read_only().is_some() {
            return;
        }
        let now = self.volume.now();
        // Not being able to note it is no reason to fail more than is damaged.
        let noted = self.volume.transact(1, |handle| {
            self.volume
                .update_superblock(handle, |raw| raw.note_error(now, &name(corrupt)));
            Ok(())
        });
        if let Err(error) = noted {
            log::warn!("the damage is not noted in the superblock: {error}");
        }
        if self.errors_policy == ErrorsPolicy::RemountReadOnly {
            self.volume.set_read_only(ReadOnlyReason::Error);
            log::error!("the volume takes no more changes");
            if let Err(error) = self.volume.journal.commit_all() {
                log::error!("committing what was changed before: {error}");
            }
        }
    }

    /// How often damage was found since the volume was opened.
    pub(super) fn damage_count(&self) -> u64 {
        self.damage.count.load(Ordering::Relaxed)
    }
}

/// The check that failed, as the superblock's 32 bytes for a function's name hold it.
fn name(corrupt: &Corrupt) -> String {
    let text = format!("{corrupt:?}");
    let end = text.find([' ', '(', '{']).unwrap_or(text.len());
    text[..end].into()
}

impl crate::layout::RawSuperblock {
    /// Counts an error and notes when and by which check it was found. All of it lies in the first
    /// sector: see [`seal`](Self::seal).
    fn note_error(&mut self, now: Timestamp, check: &str) {
        let state = self.s_state.get() | STATE_ERROR;
        self.s_state.set(state);
        let time = U32::new(now.seconds.clamp(0, u32::MAX.into()) as u32);
        let mut name = [0; 32];
        let len = check.len().min(name.len() - 1);
        name[..len].copy_from_slice(&check.as_bytes()[..len]);
        if self.s_error_count.get() == 0 {
            self.s_first_error_time = time;
            self.s_first_error_func = name;
        }
        self.s_last_error_time = time;
        self.s_last_error_func = name;
        self.s_error_count
            .set(self.s_error_count.get().saturating_add(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_superblock_decides_by_default() {
        use ErrorsPolicy::{Continue, Default, RemountReadOnly};
        for (wanted, s_errors, settled) in [
            (Default, 1, Continue),
            (Default, 2, RemountReadOnly),
            (Default, 3, RemountReadOnly),
            (Continue, 2, Continue),
            (RemountReadOnly, 1, RemountReadOnly),
        ] {
            assert_eq!(wanted.settle(s_errors), settled, "{wanted:?} {s_errors}");
        }
    }
}
