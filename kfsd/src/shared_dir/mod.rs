//! A host directory as a volume.
//!
//! ```text
//! session.rs   the FUSE operations of one session, each a system call or two:
//!                names.rs (make, remove, rename)  data.rs (open, read, write)  xattr.rs
//! node.rs      what a node id stands for: an O_PATH descriptor and its lookup count
//! handle.rs    what a file handle stands for: an open descriptor
//! attributes.rs, credentials.rs   the host's attributes on the wire; acting for a guest's user
//! ```
//!
//! Invariants: no path of more than one component is ever given to the host, and none is followed
//! through a symbolic link, so nothing outside the directory can be named. A node's descriptor is
//! opened for I/O through /proc/self/fd only, and only when it is a file or a directory: opening
//! a device node or a fifo of the host is never done for a guest.
//!
//! `md-docs/design/shared-dir.md` says why this is not the passthrough of fuse-backend-rs.

mod attributes;
mod credentials;
mod data;
mod handle;
mod names;
mod node;
mod session;
mod xattr;

use crate::config::{CachePolicy, SharedDirOptions};
use crate::fuse::FileSystem;
use crate::volume::{Volume, VolumeError};
use kfsctl::status::{Inodes, Source, Space, VolumeStatus};
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use session::Session;

/// Why a directory cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("cannot serve {}: {what} failed", .path.display())]
pub struct OpenError {
    path: PathBuf,
    what: &'static str,
    #[source]
    source: Errno,
}

/// What all sessions of a directory agree on.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) options: SharedDirOptions,
    pub(crate) read_only: bool,
    pub(crate) cache: CachePolicy,
    pub(crate) writeback: bool,
    pub(crate) readdirplus: bool,
    /// How long names and attributes hold.
    pub(crate) timeout: Duration,
}

/// A host directory that is served.
#[derive(Debug)]
pub struct SharedDir {
    path: PathBuf,
    host: Arc<HostFds>,
    rules: Arc<Rules>,
}

/// Where the host's files are reached from.
#[derive(Debug)]
pub(crate) struct HostFds {
    pub(crate) root: OwnedFd,
    pub(crate) proc_self_fd: OwnedFd,
    /// Whether the working directory is /proc/self/fd, because /proc itself cannot be reached.
    works_in_proc: bool,
}

impl HostFds {
    /// A path that leads to what a descriptor stands for.
    fn name_of(&self, fd: &OwnedFd) -> String {
        let prefix = if self.works_in_proc {
            ""
        } else {
            "/proc/self/fd/"
        };
        format!("{prefix}{}", fd.as_raw_fd())
    }
}

/// How a directory is served.
#[derive(Clone, Debug)]
pub struct SharedDirConfig {
    /// The directory.
    pub path: PathBuf,
    /// Refuse changes.
    pub read_only: bool,
    /// Caching.
    pub cache: CachePolicy,
    /// Delayed writes.
    pub writeback: bool,
    /// READDIRPLUS.
    pub readdirplus: bool,
    /// How long names and attributes hold; the cache policy says so where it is not given.
    pub timeout: Option<Duration>,
    /// The rest.
    pub options: SharedDirOptions,
}

impl SharedDir {
    /// Opens the directory. Afterwards the process may lock itself into it. The umask of the
    /// process is cleared: modes of new files are the guest's to choose.
    pub fn open(config: &SharedDirConfig) -> Result<Self, OpenError> {
        let failed = |what| {
            let path = config.path.clone();
            move |source| OpenError { path, what, source }
        };
        let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(&config.path, directory, Mode::empty())
            .map_err(failed("opening the directory"))?;
        let proc_self_fd = rustix::fs::open("/proc/self/fd", directory, Mode::empty())
            .map_err(failed("opening /proc/self/fd"))?;
        rustix::process::umask(Mode::empty());
        if !rustix::process::geteuid().is_root() {
            log::info!("not running as root: all new files will belong to the user of the daemon");
        }
        let timeout = config.timeout.unwrap_or(match config.cache {
            CachePolicy::Auto => Duration::from_secs(1),
            CachePolicy::Never => Duration::ZERO,
            CachePolicy::Always | CachePolicy::Metadata => Duration::from_secs(86400),
        });
        Ok(Self {
            path: config.path.clone(),
            host: Arc::new(HostFds {
                root,
                proc_self_fd,
                works_in_proc: false,
            }),
            rules: Arc::new(Rules {
                options: config.options.clone(),
                read_only: config.read_only,
                cache: config.cache,
                writeback: config.writeback,
                readdirplus: config.readdirplus,
                timeout,
            }),
        })
    }

    /// Goes on from the root that the process has got itself, with /proc/self/fd as the working
    /// directory: the rest of /proc is not needed any more. No session may have begun.
    pub(crate) fn move_to_new_root(&mut self, root: OwnedFd) -> Result<(), Errno> {
        let proc_self_fd = rustix::io::fcntl_dupfd_cloexec(&self.host.proc_self_fd, 3)?;
        rustix::process::fchdir(&proc_self_fd)?;
        self.host = Arc::new(HostFds {
            root,
            proc_self_fd,
            works_in_proc: true,
        });
        Ok(())
    }

    /// The directory, as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Volume for SharedDir {
    fn new_session(&self) -> Result<Arc<dyn FileSystem>, VolumeError> {
        Ok(Arc::new(Session::new(
            Arc::clone(&self.host),
            Arc::clone(&self.rules),
        )?))
    }

    fn status(&self) -> VolumeStatus {
        let numbers = rustix::fs::fstatvfs(&self.host.root).ok();
        VolumeStatus {
            source: Source::SharedDir {
                path: self.path.clone(),
            },
            read_only: self.rules.read_only,
            read_only_reason: self.rules.read_only.then(|| "opened read-only".into()),
            space: numbers.as_ref().map(|numbers| Space {
                block_size_bytes: numbers.f_frsize,
                total_blocks: numbers.f_blocks,
                free_blocks: numbers.f_bfree,
                available_blocks: numbers.f_bavail,
            }),
            inodes: numbers.as_ref().map(|numbers| Inodes {
                total: numbers.f_files,
                free: numbers.f_ffree,
            }),
            ..VolumeStatus::default()
        }
    }

    fn sync(&self) -> Result<(), VolumeError> {
        let directory = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&self.host.root, c".", directory, Mode::empty())?;
        Ok(rustix::fs::syncfs(root)?)
    }

    fn shutdown(&self) -> Result<(), VolumeError> {
        if self.rules.read_only {
            Ok(())
        } else {
            self.sync()
        }
    }
}

#[cfg(test)]
mod tests;
