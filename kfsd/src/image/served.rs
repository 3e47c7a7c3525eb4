//! A snapshot that is served in place of the volume: `kfsd --snapshot`.
//!
//! What kfsctl asks about snapshots is answered of the whole volume, which is open for reading beside the
//! snapshot; all else is about the snapshot, which takes no changes.

use super::OpenError;
use kfs::{Error, Filesystem};
use kfsctl::protocol::{ErrorCode, Request, RequestError};
use kfsctl::status::{Snapshots, VolumeStatus};
use std::path::Path;
use std::sync::Arc;

/// The snapshot that is served.
pub(super) struct ServedSnapshot {
    name: String,
    /// The volume that has it.
    pub(super) whole: Arc<Filesystem>,
}

impl ServedSnapshot {
    /// Opens the snapshot of `whole`, the volume at `path`.
    pub(super) fn open(
        whole: Arc<Filesystem>,
        name: &str,
        path: &Path,
    ) -> Result<(Arc<Filesystem>, Self), OpenError> {
        let (path, name) = (path.to_owned(), name.to_owned());
        match whole.open_snapshot(&name) {
            Ok(view) => Ok((view, Self { name, whole })),
            Err(Error::NotFound) => Err(OpenError::NoSnapshot { path, name }),
            Err(source) => Err(OpenError::Snapshot { path, name, source }),
        }
    }

    /// Tells a status what is served.
    pub(super) fn describe(&self, status: &mut VolumeStatus) {
        let whole = self.whole.status();
        status.snapshot = Some(self.name.clone());
        status.read_only_reason = Some("a snapshot takes no changes".into());
        status.snapshots = Some(Snapshots {
            count: whole.snapshots,
            pinned_bytes: whole.pinned_blocks * u64::from(whole.space.block_size),
        });
    }

    pub(super) fn takes_no_changes(&self, path: &Path) -> RequestError {
        RequestError::new(
            ErrorCode::NotSupported,
            format!(
                "this kfsd serves the snapshot '{}', which takes no changes",
                self.name
            ),
            format!(
                "stop it, and give that command `--image {}`",
                path.display()
            ),
        )
    }
}

/// Whether a request is about snapshots, and reads only.
pub(super) fn is_about_snapshots(request: &Request) -> bool {
    matches!(
        request,
        Request::SnapshotList {}
            | Request::SnapshotDiff { .. }
            | Request::SnapshotExport { .. }
            | Request::SnapshotClone { .. }
            | Request::FileLog { .. }
            | Request::Check { snapshot: Some(_) }
    )
}
