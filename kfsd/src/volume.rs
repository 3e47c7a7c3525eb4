//! [`Volume`]: the tree that all sessions share, whatever it lies on.
//!
//! An image and a host directory are volumes. The daemon opens one, asks it for a [`FileSystem`]
//! for each session, and shuts it down when the last session is gone.

use crate::fuse::FileSystem;
use kfsctl::Watch;
use kfsctl::protocol::{ErrorCode, Request, RequestError};
use kfsctl::status::{Source, VolumeStatus};
use serde_json::Value;
use std::sync::Arc;

/// Why a volume could not be opened, made durable or closed. The chain of sources says it all.
pub type VolumeError = Box<dyn std::error::Error + Send + Sync>;

/// Why a volume was not set back.
#[derive(Debug)]
pub enum RestoreError {
    /// Nothing has changed.
    Refused(RequestError),
    /// The volume does not open any more: no session can be served.
    Lost(RequestError),
}

/// What is about an image cannot be done with a directory of the host.
fn no_image(source: &Source, request: &Request) -> RequestError {
    let (lacks, hint) = match request {
        Request::SnapshotCreate { .. }
        | Request::SnapshotList {}
        | Request::SnapshotDelete { .. }
        | Request::SnapshotDiff { .. }
        | Request::SnapshotExport { .. }
        | Request::SnapshotClone { .. }
        | Request::FileLog { .. }
        | Request::Restore { .. } => (
            ", which has no snapshots",
            "the host's own file system may take some (btrfs, xfs, LVM); or serve an image: kfsd --image IMAGE",
        ),
        Request::Freeze { .. } | Request::Thaw {} => (
            ", not an image",
            "fsfreeze does that with a file system of the host",
        ),
        Request::Sync {} => (", not an image", "`sync` on the host does that"),
        _ => (
            ", not an image",
            "the host has tools for its own file system, such as fsck, fstrim, resize2fs and e4defrag",
        ),
    };
    let path = source.path().display();
    let text = format!("this kfsd serves the directory {path} of the host{lacks}");
    RequestError::new(ErrorCode::NotSupported, text, hint)
}

fn nothing_to_restore(source: &Source, snapshot: &str) -> RequestError {
    let request = Request::Restore {
        snapshot: snapshot.into(),
        path: None,
        to: None,
        force: false,
    };
    no_image(source, &request)
}

/// A tree that is served.
pub trait Volume: Send + Sync {
    /// A view of the volume for one session: with lookup counts and handles of its own.
    fn new_session(&self) -> Result<Arc<dyn FileSystem>, VolumeError>;

    /// What `kfsctl status` shows of it. Must not wait for requests in progress.
    fn status(&self) -> VolumeStatus;

    /// Carries out a request that is about the volume alone, and tells how far it is.
    fn control(&self, request: &Request, watch: &mut Watch<'_>) -> Result<Value, RequestError> {
        let _ = watch;
        Err(no_image(&self.status().source, request))
    }

    /// Whether the volume could be set back to a snapshot, as far as can be seen before anybody has to wait.
    fn check_restore(&self, snapshot: &str) -> Result<(), RequestError> {
        Err(nothing_to_restore(&self.status().source, snapshot))
    }

    /// Sets the volume back to a snapshot, and returns the name of the one that keeps the state before.
    ///
    /// `suspend` is called when all else is ready: from then on no session is used. Those that there were are
    /// to be exchanged for new ones if this succeeds, and not to be used any more if it fails with
    /// [`RestoreError::Lost`]. It goes on to its end, whatever `watch` says.
    fn restore(
        &self,
        snapshot: &str,
        suspend: &mut dyn FnMut() -> Result<(), RequestError>,
        watch: &mut Watch<'_>,
    ) -> Result<String, RestoreError> {
        let _ = (suspend, watch);
        self.check_restore(snapshot)
            .map_err(RestoreError::Refused)?;
        unreachable!("what can be set back sets itself back")
    }

    /// Makes everything durable.
    fn sync(&self) -> Result<(), VolumeError>;

    /// The end is near: whatever keeps requests waiting on purpose (a freeze) stops to.
    fn release_waiting(&self) {}

    /// Makes everything durable and leaves the volume clean. No session is used afterwards; a
    /// second call does nothing.
    fn shutdown(&self) -> Result<(), VolumeError>;
}
