//! [`Volume`]: the tree that all sessions share, whatever it lies on.
//!
//! An image and a host directory are volumes. The daemon opens one, asks it for a [`FileSystem`]
//! for each session, and shuts it down when the last session is gone.

use crate::fuse::FileSystem;
use kfsctl::Watch;
use kfsctl::protocol::{ErrorCode, Request, RequestError};
use kfsctl::status::VolumeStatus;
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

fn no_image() -> RequestError {
    RequestError::new(
        ErrorCode::NotSupported,
        "a directory of the host is served, not an image",
        "the host's own file system may have what you look for",
    )
}

/// A tree that is served.
pub trait Volume: Send + Sync {
    /// A view of the volume for one session: with lookup counts and handles of its own.
    fn new_session(&self) -> Result<Arc<dyn FileSystem>, VolumeError>;

    /// What `kfsctl status` shows of it. Must not wait for requests in progress.
    fn status(&self) -> VolumeStatus;

    /// Carries out a request that is about the volume alone, and tells how far it is.
    fn control(&self, request: &Request, watch: &mut Watch<'_>) -> Result<Value, RequestError> {
        let _ = (request, watch);
        Err(no_image())
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
        let _ = (snapshot, suspend, watch);
        Err(RestoreError::Refused(no_image()))
    }

    /// Makes everything durable.
    fn sync(&self) -> Result<(), VolumeError>;

    /// The end is near: whatever keeps requests waiting on purpose (a freeze) stops to.
    fn release_waiting(&self) {}

    /// Makes everything durable and leaves the volume clean. No session is used afterwards; a
    /// second call does nothing.
    fn shutdown(&self) -> Result<(), VolumeError>;
}
