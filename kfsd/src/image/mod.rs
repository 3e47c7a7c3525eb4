//! An ext4 image as a volume.
//!
//! ```text
//! session.rs   the FUSE operations of one session: decode, call `kfs`, encode
//! tree.rs      the volume or one of its snapshots       snapshot_dir.rs  the directory of all snapshots
//! nodes.rs     which inodes the session's kernel knows, and how often it has looked them up
//! convert.rs   attributes, times and devices on the wire     ioctl.rs  flags of inodes
//! data.rs      guest memory as the buffers of a read or write
//! entry.rs     entries with their attributes             open.rs   opening files, handles
//! served.rs    a snapshot served in place of the volume
//! errno.rs     errors as errno
//! ```
//!
//! A node id is an inode number with its generation: it means the same in every session and after
//! a restart of the daemon. When the volume is set back to a snapshot a random number is added to all
//! generations from then on: what a kernel still has open or cached fails with ESTALE, rather than show a file that
//! is another one by now.

mod convert;
mod data;
mod entry;
mod errno;
mod ioctl;
mod nodes;
mod open;
mod served;
mod session;
mod snapshot_dir;
mod tree;

use crate::config::{CachePolicy, SnapshotDir};
use crate::fuse::FileSystem;
use crate::sandbox::{self, SandboxError};
use crate::volume::{RestoreError, Volume, VolumeError};
use kfs::{ErrorsPolicy, Filesystem, MountOptions, ReadOnlyReason, SnapshotRecord};
use kfs_disk::{BlockDevice, FileDevice, StatsDevice};
use kfsctl::execute;
use kfsctl::progress::{Watch, stage};
use kfsctl::protocol::{ErrorCode, Request, RequestError};
use kfsctl::report;
use kfsctl::status;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;
use served::ServedSnapshot;
use snapshot_dir::SnapshotTrees;
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

pub use session::Session;

/// Why an image cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file or device does not open.
    #[error(transparent)]
    Device(#[from] kfs_disk::OpenError),
    /// The privileges of the process cannot be given up.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    /// It opens, but there is no file system that kfs can serve.
    #[error("cannot serve {}", .path.display())]
    Filesystem {
        /// The image.
        path: PathBuf,
        /// Why.
        #[source]
        source: kfs::Error,
    },
    /// There is no such snapshot.
    #[error("{} has no snapshot '{name}'; `kfsctl --image {} snapshot list` shows all", .path.display(), .path.display())]
    NoSnapshot {
        /// The image.
        path: PathBuf,
        /// The name.
        name: String,
    },
    /// The snapshot cannot be looked into.
    #[error("cannot serve the snapshot '{name}' of {}", .path.display())]
    Snapshot {
        /// The image.
        path: PathBuf,
        /// Name of the snapshot.
        name: String,
        /// Why.
        #[source]
        source: kfs::Error,
    },
}

/// How an image is served.
#[derive(Clone, Debug)]
pub struct ImageConfig {
    /// The file or block device.
    pub path: PathBuf,
    /// Refuse changes.
    pub read_only: bool,
    /// Caching by the kernels of guests and mounts.
    pub cache: CachePolicy,
    /// Delayed writes by them.
    pub writeback: bool,
    /// READDIRPLUS.
    pub readdirplus: bool,
    /// How long names and attributes hold; the cache policy says so where it is not given.
    pub timeout: Option<Duration>,
    /// What to do when damage is found.
    pub errors: ErrorsPolicy,
    /// The snapshot to serve in place of the volume.
    pub snapshot: Option<String>,
    /// Whether snapshots are found in a directory of the root.
    pub snapshot_dir: SnapshotDir,
    /// Give up all capabilities of the process once the image is open.
    pub drop_capabilities: bool,
}

/// What all sessions of an image agree on.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) cache: CachePolicy,
    pub(crate) writeback: bool,
    pub(crate) readdirplus: bool,
    /// How long names and attributes hold.
    pub(crate) timeout: Duration,
}

/// How long a deletion waits for those who look into the snapshot.
const DELETE_PATIENCE: Duration = Duration::from_secs(5);
const DELETE_RETRY: Duration = Duration::from_millis(20);
/// How long a restore waits for other requests of kfsctl to end.
const RESTORE_PATIENCE: Duration = Duration::from_secs(5);

/// The open file system.
struct Opened {
    filesystem: Arc<Filesystem>,
    /// What is added to generations to make node ids: another number after each time that the volume is set
    /// back.
    salt: u32,
    /// The snapshots that are looked into.
    trees: Option<Arc<SnapshotTrees>>,
    /// Sessions that may look into them.
    sessions: Vec<Weak<Session>>,
}

impl Opened {
    fn new(filesystem: Arc<Filesystem>, salt: u32, snapshot_dir: SnapshotDir) -> Self {
        let trees = |is_visible| {
            let trees = SnapshotTrees::new(Arc::clone(&filesystem), is_visible);
            Some(Arc::new(trees))
        };
        let trees = match snapshot_dir {
            SnapshotDir::None => None,
            SnapshotDir::Hidden => trees(false),
            SnapshotDir::Visible => trees(true),
        };
        Self {
            filesystem,
            salt,
            trees,
            sessions: Vec::new(),
        }
    }
}

/// Whether there is a volume to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    Open,
    /// It could not be opened after it was set back.
    Lost,
    /// The daemon ends.
    Ended,
}

/// A number that nobody can guess, not even the one who makes generations.
fn random() -> u32 {
    let state = std::hash::RandomState::new();
    std::hash::BuildHasher::build_hasher(&state).finish() as u32
}

/// An image that is served.
pub struct Image {
    path: PathBuf,
    /// Held only to look, and to exchange it.
    opened: RwLock<Opened>,
    /// Held shared by requests of kfsctl, exclusively by those that open the file system anew.
    requests: RwLock<()>,
    /// Held while the file system is opened anew, and at the end.
    service: Mutex<Service>,
    options: MountOptions,
    snapshot_dir: SnapshotDir,
    /// A snapshot that is served in place of the volume.
    served: Option<ServedSnapshot>,
    device: Arc<StatsDevice<Box<dyn BlockDevice>>>,
    rules: Arc<Rules>,
}

impl Image {
    /// Opens the image and the file system on it, replaying its journal if need be.
    pub fn open(config: &ImageConfig) -> Result<Self, OpenError> {
        let file = if config.read_only {
            FileDevice::open_read_only(&config.path)?
        } else {
            FileDevice::open(&config.path)?
        };
        // Before the file system starts threads, which would keep theirs.
        if config.drop_capabilities {
            sandbox::drop_all_capabilities()?;
        }
        let options = MountOptions {
            read_only: config.read_only,
            errors: config.errors,
            ..MountOptions::default()
        };
        Self::on_device(Box::new(file), options, config)
    }

    /// Opens the file system on a device, which is shown under the path of the configuration.
    pub fn on_device(
        device: Box<dyn BlockDevice>,
        options: MountOptions,
        config: &ImageConfig,
    ) -> Result<Self, OpenError> {
        let device = Arc::new(StatsDevice::new(device));
        let shared: Arc<dyn BlockDevice> = Arc::clone(&device) as Arc<dyn BlockDevice>;
        let cannot_serve = |source| OpenError::Filesystem {
            path: config.path.clone(),
            source,
        };
        let whole = Filesystem::open(shared, options.clone()).map_err(cannot_serve)?;
        let (filesystem, served) = match &config.snapshot {
            Some(name) => {
                let (view, served) = ServedSnapshot::open(whole, name, &config.path)?;
                (view, Some(served))
            }
            None => (whole, None),
        };
        if filesystem.volume().read_only() == Some(ReadOnlyReason::Feature) {
            log::warn!(
                "{} has features that kfs can only read: serving it read-only",
                config.path.display()
            );
        }
        let timeout = config.timeout.unwrap_or(match config.cache {
            CachePolicy::Auto => Duration::from_secs(1),
            CachePolicy::Never => Duration::ZERO,
            CachePolicy::Always | CachePolicy::Metadata => Duration::from_secs(86400),
        });
        let rules = Rules {
            cache: config.cache,
            writeback: config.writeback,
            readdirplus: config.readdirplus,
            timeout,
        };
        Ok(Self {
            path: config.path.clone(),
            opened: RwLock::new(Opened::new(filesystem, 0, config.snapshot_dir)),
            snapshot_dir: config.snapshot_dir,
            served,
            requests: RwLock::new(()),
            service: Mutex::new(Service::Open),
            options,
            device,
            rules: Arc::new(rules),
        })
    }

    fn filesystem(&self) -> Arc<Filesystem> {
        Arc::clone(&self.opened.read().filesystem)
    }

    fn check_service(&self) -> Result<(), RequestError> {
        refuse_service(*self.service.lock())
    }

    /// Sets the volume back and opens it again.
    fn set_back(
        &self,
        filesystem: &Arc<Filesystem>,
        snapshot: &str,
        watch: &mut Watch<'_>,
    ) -> Result<(String, Arc<Filesystem>), RestoreError> {
        let lost = |error: kfs::Error| {
            let text = format!("the volume cannot be opened: {error}");
            let hint = "stop kfsd and look at the image with `kfsctl check` and e2fsck";
            RestoreError::Lost(RequestError::new(ErrorCode::Failed, text, hint))
        };
        let _ = stage(watch, "preparing")(0, 0);
        let undo = execute::begin_restore(filesystem, snapshot).map_err(|error| {
            if filesystem.volume().read_only().is_none() {
                return RestoreError::Refused(error);
            }
            let hint = "the next start of kfsd finishes it, or leaves the volume as it is";
            let text = format!("{error}, half-way");
            RestoreError::Lost(RequestError::new(error.code, text, hint))
        })?;
        filesystem.close().map_err(lost)?;
        let device = Arc::clone(&self.device) as Arc<dyn BlockDevice>;
        let mut tell = stage(watch, "setting back");
        let opened = Filesystem::open_watched(device, self.options.clone(), &mut tell);
        let opened = opened.map_err(lost)?;
        Ok((undo, opened))
    }

    /// Deletes snapshots, one by one, though somebody looks into them.
    fn delete_snapshots(
        &self,
        filesystem: &Arc<Filesystem>,
        names: &[String],
        watch: &mut Watch<'_>,
    ) -> Result<Value, RequestError> {
        execute::delete_each(filesystem, names, watch, &mut |record, watch| {
            self.delete_snapshot(filesystem, record, watch)
        })
    }

    /// Deletes one. Who looks into it with an operation in progress has it open until that ends.
    fn delete_snapshot(
        &self,
        filesystem: &Arc<Filesystem>,
        record: &SnapshotRecord,
        watch: &mut kfs::Watch<'_>,
    ) -> Result<(), RequestError> {
        let trees = self.opened.read().trees.clone();
        let _closed = trees.as_ref().map(|trees| trees.close_for_good(record.id));
        let begin = Instant::now();
        loop {
            self.revoke_snapshot(record.id);
            match execute::delete_one(filesystem, &record.name, watch) {
                Err(error)
                    if error.code == ErrorCode::Busy && begin.elapsed() < DELETE_PATIENCE =>
                {
                    std::thread::sleep(DELETE_RETRY);
                }
                result => return result,
            }
        }
    }

    /// Takes a snapshot from the sessions that look into it.
    fn revoke_snapshot(&self, id: u32) {
        let sessions = self.opened.read().sessions.clone();
        for session in sessions.iter().filter_map(Weak::upgrade) {
            session.revoke(&[id]);
        }
    }

    /// The image, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn refuse_service(service: Service) -> Result<(), RequestError> {
    let (code, text, hint) = match service {
        Service::Open => return Ok(()),
        Service::Lost => (
            ErrorCode::Failed,
            "there is no volume any more: it could not be opened after it was set back",
            "stop kfsd and look at the image with `kfsctl check` and e2fsck",
        ),
        Service::Ended => (ErrorCode::ShuttingDown, "kfsd is ending", ""),
    };
    Err(RequestError::new(code, text, hint))
}

/// Whether a request would wait for the end of a freeze.
fn changes(request: &Request) -> bool {
    matches!(
        request,
        Request::SnapshotCreate { .. }
            | Request::SnapshotDelete { .. }
            | Request::Restore { .. }
            | Request::Defrag { .. }
            | Request::Trim {}
            | Request::Resize { .. }
            | Request::Check { snapshot: None }
    )
}

fn refuse_frozen(filesystem: &Filesystem) -> Result<(), RequestError> {
    if filesystem.frozen_for().is_none() {
        return Ok(());
    }
    let (text, hint) = ("the volume is frozen", "`kfsctl thaw` ends that");
    Err(RequestError::new(ErrorCode::Busy, text, hint))
}

/// What can be seen to be wrong before anybody has to wait.
fn refuse_restore(
    service: Service,
    filesystem: &Filesystem,
    snapshot: &str,
) -> Result<(), RequestError> {
    refuse_service(service)?;
    if let Some(reason) = filesystem.volume().read_only() {
        let text = format!("the volume is read-only: {reason}");
        return Err(RequestError::new(ErrorCode::Failed, text, ""));
    }
    if filesystem
        .snapshots()
        .iter()
        .any(|record| record.name == snapshot)
    {
        return Ok(());
    }
    Err(RequestError::new(
        ErrorCode::InvalidArgument,
        format!("there is no snapshot '{snapshot}'"),
        "`kfsctl snapshot list` shows all",
    ))
}

impl Volume for Image {
    fn new_session(&self) -> Result<Arc<dyn FileSystem>, VolumeError> {
        let mut opened = self.opened.write();
        let session = Arc::new(Session::new(
            Arc::clone(&opened.filesystem),
            opened.salt,
            Arc::clone(&self.rules),
            opened.trees.clone(),
        )?);
        opened.sessions.retain(|known| known.strong_count() > 0);
        opened.sessions.push(Arc::downgrade(&session));
        Ok(session)
    }

    fn status(&self) -> status::VolumeStatus {
        let status = self.filesystem().status();
        let mut status = convert::volume_status(&self.path, &status, self.device.stats());
        if let Some(served) = &self.served {
            served.describe(&mut status);
        }
        status
    }

    fn check_restore(&self, snapshot: &str) -> Result<(), RequestError> {
        if let Some(served) = &self.served {
            return Err(served.takes_no_changes(&self.path));
        }
        refuse_restore(Service::Open, &self.filesystem(), snapshot)
    }

    fn control(&self, request: &Request, watch: &mut Watch<'_>) -> Result<Value, RequestError> {
        let _request = self.requests.read();
        self.check_service()?;
        let filesystem = match &self.served {
            Some(served) if served::is_about_snapshots(request) => Arc::clone(&served.whole),
            Some(served) if changes(request) || matches!(request, Request::Freeze { .. }) => {
                return Err(served.takes_no_changes(&self.path));
            }
            _ => self.filesystem(),
        };
        if changes(request) {
            refuse_frozen(&filesystem)?;
        }
        match request {
            Request::SnapshotDelete { names } => self.delete_snapshots(&filesystem, names, watch),
            Request::Check { snapshot: None } => {
                report::check_volume(&filesystem, watch, |taken| {
                    self.delete_snapshot(&filesystem, taken, &mut kfs::unwatched)
                })
            }
            request => execute::execute(&filesystem, request, watch),
        }
    }

    fn restore(
        &self,
        snapshot: &str,
        suspend: &mut dyn FnMut() -> Result<(), RequestError>,
        watch: &mut Watch<'_>,
    ) -> Result<String, RestoreError> {
        let Some(_alone) = self.requests.try_write_for(RESTORE_PATIENCE) else {
            let text = "the volume is busy with another request";
            let refused = RequestError::new(ErrorCode::Busy, text, "wait until it has ended");
            return Err(RestoreError::Refused(refused));
        };
        let mut service = self.service.lock();
        let filesystem = self.filesystem();
        refuse_restore(*service, &filesystem, snapshot).map_err(RestoreError::Refused)?;
        // No freeze can begin now, which sessions and the restore would wait for.
        refuse_frozen(&filesystem).map_err(RestoreError::Refused)?;
        suspend().map_err(RestoreError::Refused)?;
        let set_back = self.set_back(&filesystem, snapshot, watch);
        let (undo, opened) = set_back.inspect_err(|error| {
            if let RestoreError::Lost(error) = error {
                log::error!("{error}; nothing is served until a restart");
                *service = Service::Lost;
            }
        })?;
        *self.opened.write() = Opened::new(opened, random(), self.snapshot_dir);
        log::info!("the volume is as it was at '{snapshot}'; what it was before is '{undo}'");
        Ok(undo)
    }

    fn sync(&self) -> Result<(), VolumeError> {
        Ok(self.filesystem().sync()?)
    }

    fn release_waiting(&self) {
        self.filesystem().end_freezes();
    }

    fn shutdown(&self) -> Result<(), VolumeError> {
        // A restore in progress comes to its end first.
        *self.service.lock() = Service::Ended;
        let filesystem = self.filesystem();
        let before = filesystem.volume().read_only();
        filesystem.close()?;
        let after = filesystem.volume().read_only();
        if [before, after].contains(&Some(ReadOnlyReason::Error)) {
            return Err("errors have ended changes to the volume: run e2fsck on the image".into());
        }
        Ok(())
    }
}
