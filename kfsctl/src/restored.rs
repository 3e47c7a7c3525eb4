//! Why a path of a snapshot was not restored, in words that name what is missing or in the way.

use crate::execute::chain;
use crate::protocol::{ErrorCode, RequestError};
use kfs::{Error, Filesystem};

/// What was to be restored.
pub(crate) struct Wanted<'w> {
    /// Name of the snapshot.
    pub(crate) snapshot: &'w str,
    /// The snapshot.
    pub(crate) view: &'w Filesystem,
    /// The volume.
    pub(crate) fs: &'w Filesystem,
    /// Path in the snapshot.
    pub(crate) path: &'w str,
    /// Path in the volume.
    pub(crate) target: &'w str,
}

impl Wanted<'_> {
    /// The error in other words, if there are better ones.
    pub(crate) fn explain(&self, error: &Error) -> RequestError {
        let Self {
            snapshot,
            path,
            target,
            ..
        } = self;
        let (code, text, hint) = match error {
            Error::Interrupted => (
                ErrorCode::Cancelled,
                format!("stopped: a part of {target} is restored, file by file"),
                "the same command goes on",
            ),
            Error::NotFound | Error::NotADirectory if self.is_missing() => (
                ErrorCode::InvalidArgument,
                format!("the snapshot '{snapshot}' has no {path}"),
                "a path begins at the root of the volume",
            ),
            Error::NotFound | Error::NotADirectory => match self.first_missing_directory() {
                Some(directory) => (
                    ErrorCode::Failed,
                    format!("cannot restore {path} to {target}: there is no directory {directory}"),
                    "make it first, restore it, too, or restore to another path with --to",
                ),
                None => (ErrorCode::Failed, self.chain(error), ""),
            },
            Error::Exists => (
                ErrorCode::Failed,
                format!(
                    "cannot restore {path} to {target}: something of another kind is in the way"
                ),
                "move that away, or restore to another path with --to",
            ),
            error => (ErrorCode::Failed, self.chain(error), ""),
        };
        RequestError::new(code, text, hint)
    }

    fn chain(&self, error: &Error) -> String {
        format!(
            "restoring {} to {}: {}",
            self.path,
            self.target,
            chain(error)
        )
    }

    fn is_missing(&self) -> bool {
        kfs::resolve(self.view, self.path.as_bytes()).is_err()
    }

    /// Of the directories that lead to the target, the first that is not there or is none.
    fn first_missing_directory(&self) -> Option<String> {
        let names: Vec<&str> = self.target.split('/').filter(|n| !n.is_empty()).collect();
        let parents = (1..names.len()).map(|count| format!("/{}", names[..count].join("/")));
        let is_directory = |path: &String| {
            kfs::resolve(self.fs, path.as_bytes()).is_ok_and(|inode| inode.is_directory())
        };
        parents.into_iter().find(|path| !is_directory(path))
    }
}
