//! A new image that starts as a snapshot and shares its blocks with this one's, where the host can do that.
//!
//! The host copies the whole image by reference. That is the state after a power cut at this moment, so the copy is
//! opened, recovered, set back to the snapshot, and loses all its snapshots: what has to be written are the metadata
//! blocks that have changed since. What it does not use is punched out, so that it holds only what it shows.

use super::{ExportError, Watch};
use crate::error::{Error, Result};
use crate::fs::{Filesystem, MountOptions};
use kfs_disk::{BlockDevice, FileDevice};
use std::path::Path;
use std::sync::Arc;

impl Filesystem {
    /// Makes a new image of a snapshot that shares its blocks with this volume's. False, and no image, where
    /// the host cannot share blocks. `watch` is told how far the last and longest part is.
    ///
    /// # Errors
    /// `Volume(NotFound)`; `Target` when the file exists or cannot be made; what opening and changing the new
    /// volume reports. There is no image then.
    pub fn clone_snapshot(
        &self,
        name: &str,
        path: &Path,
        watch: &mut Watch<'_>,
    ) -> std::result::Result<bool, ExportError> {
        self.volume.snapshots.find(name)?;
        let Some(file) = self.volume.device().backing_file() else {
            return Ok(false);
        };
        if !kfs_disk::reflink(file, path).map_err(ExportError::Target)? {
            return Ok(false);
        }
        let finished = FileDevice::open(path)
            .map_err(ExportError::Open)
            .and_then(|device| Ok(become_snapshot(&Arc::new(device), name, watch)?));
        if finished.is_err() {
            // It has the snapshots of another image, which is not what was asked for.
            let _ = std::fs::remove_file(path);
        }
        match finished {
            Ok(()) => Ok(true),
            // In the way of a restore, but not of a copy.
            Err(ExportError::Volume(
                Error::OtherSize | Error::NoSpace | Error::SnapshotStoreFull,
            )) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Sets the volume on a device back to a snapshot, for good.
fn become_snapshot(device: &Arc<FileDevice>, name: &str, watch: &mut Watch<'_>) -> Result<()> {
    let open = || {
        let options = MountOptions {
            commit_interval: None,
            ..MountOptions::default()
        };
        Filesystem::open(Arc::clone(device) as Arc<dyn BlockDevice>, options)
    };
    let fs = open()?;
    let known = fs.snapshots();
    let mut names = (1u32..).map(|number| format!("before-clone-{number}"));
    let undo = names
        .find(|name| known.iter().all(|snapshot| snapshot.name != *name))
        .ok_or(Error::Exists)?;
    fs.begin_restore(name, &undo)?;
    fs.close()?;
    let fs = open()?;
    for snapshot in fs.snapshots() {
        fs.delete_snapshot(&snapshot.name)?;
    }
    fs.sync()?;
    fs.trim(watch)?;
    fs.close()
}
