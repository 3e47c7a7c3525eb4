//! Whom a request goes to: the kfsd that serves the volume, or the volume itself on an idle image.

use crate::args::Target;
use crate::image::socket_of;
use anyhow::Context;
use kfs::{Filesystem, MountOptions};
use kfs_disk::{BlockDevice, FileDevice, Holder, OpenError};
use kfsctl::execute::{begin_restore, execute};
use kfsctl::progress::stage;
use kfsctl::{Client, Request, Watch, unwatched};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Where requests are carried out.
pub(crate) enum Executor {
    /// By a daemon.
    Daemon(Box<Client>),
    /// Here, on an image that nobody serves.
    Image {
        /// The volume on it.
        fs: Arc<Filesystem>,
        /// The same device, to open it again.
        device: Arc<FileDevice>,
    },
}

impl Executor {
    /// Finds the one that the command line means. An idle image is opened, for changes unless it is
    /// only to be `read`.
    pub(crate) fn find(target: &Target, reads: bool) -> anyhow::Result<Self> {
        let client = match (&target.socket, &target.image) {
            (Some(path), _) => Client::connect(path)?,
            (None, Some(path)) => return Self::of_image(path, reads),
            (None, None) => Client::find()?,
        };
        Ok(Self::daemon(client))
    }

    fn daemon(mut client: Client) -> Self {
        client.be_patient();
        Self::Daemon(Box::new(client))
    }

    fn of_image(path: &Path, reads: bool) -> anyhow::Result<Self> {
        let device = match FileDevice::open(path) {
            Ok(device) => device,
            Err(error) => {
                if let OpenError::InUse {
                    holder: Holder::Process { pid, .. },
                    ..
                } = &error
                    && let Some(socket) = socket_of(*pid)
                {
                    return Ok(Self::daemon(Client::connect(&socket)?));
                }
                return Err(error.into());
            }
        };
        let device = Arc::new(device);
        let mut tell = kfs::unwatched;
        let fs = open(&device, reads, &mut tell)
            .with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self::Image { fs, device })
    }

    /// Carries a request out.
    pub(crate) fn request(&mut self, request: &Request) -> anyhow::Result<Value> {
        self.request_watched(request, &mut unwatched)
    }

    /// Carries a request out, tells how far it is, and ends it where `watch` says so.
    pub(crate) fn request_watched(
        &mut self,
        request: &Request,
        watch: &mut Watch<'_>,
    ) -> anyhow::Result<Value> {
        match self {
            Self::Daemon(client) => Ok(client.request_watched(request, watch)?),
            Self::Image { fs, .. } => Ok(execute(fs, request, watch)?),
        }
    }

    /// Sets the volume back to a snapshot; the answer is as a daemon's.
    /// It goes on to its end, whatever `watch` says.
    pub(crate) fn restore_volume(
        &mut self,
        snapshot: &str,
        force: bool,
        watch: &mut Watch<'_>,
    ) -> anyhow::Result<Value> {
        match self {
            Self::Daemon(client) => {
                let request = Request::Restore {
                    snapshot: snapshot.into(),
                    path: None,
                    to: None,
                    force,
                };
                Ok(client.request_watched(&request, watch)?)
            }
            Self::Image { fs, device } => {
                let undo = begin_restore(fs, snapshot)?;
                fs.close()?;
                let mut tell = stage(watch, "setting back");
                *fs = open(device, false, &mut tell).context("setting the volume back")?;
                Ok(json!({ "undo": undo }))
            }
        }
    }

    /// Name of the snapshot that is served in place of the volume.
    pub(crate) fn served_snapshot(&mut self) -> anyhow::Result<Option<String>> {
        Ok(match self {
            Self::Daemon(client) => client.status()?.volume.snapshot,
            Self::Image { .. } => None,
        })
    }

    /// Ends the work: an image that was opened is closed.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        if let Self::Image { fs, .. } = self {
            fs.close().context("closing the image")?;
        }
        Ok(())
    }
}

fn open(
    device: &Arc<FileDevice>,
    reads: bool,
    watch: &mut kfs::Watch<'_>,
) -> kfs::Result<Arc<Filesystem>> {
    let options = MountOptions {
        // An image that was not closed is to be recovered, by whoever changes it.
        read_only: reads,
        commit_interval: None,
        ..MountOptions::default()
    };
    let device = Arc::clone(device) as Arc<dyn BlockDevice>;
    Filesystem::open_watched(device, options, watch)
}
