//! Mounts and unmounts: with mount(2) where we may, through fusermount3 where we may not.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::{Errno, FdFlags};
use rustix::mount::UnmountFlags;
use thiserror::Error;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::mount_options::MountOptions;

const DEVICE: &str = "/dev/fuse";
const FUSERMOUNT: &str = "fusermount3";

/// Why a file system could not be mounted.
#[derive(Debug, Error)]
pub enum MountError {
    /// The mount point cannot be used.
    #[error("mount point {}: {source}", path.display())]
    MountPoint {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The device cannot be opened.
    #[error("{DEVICE}: {0} (is the fuse module loaded, and may you use it?)")]
    Device(#[source] io::Error),
    /// mount(2) failed.
    #[error("mount on {}: {source}", path.display())]
    Mount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// fusermount3 could not be run.
    #[error("{FUSERMOUNT}: {0} (install fuse3, or mount as root)")]
    Fusermount(#[source] io::Error),
    /// fusermount3 ran and refused.
    #[error("{FUSERMOUNT} refused to mount on {}: {reason}", path.display())]
    Refused {
        /// The mount point.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
    /// The kernel and we did not agree.
    #[error("the kernel did not begin a session: {0}")]
    Session(#[source] io::Error),
}

/// A mount point in use.
#[derive(Debug)]
pub(crate) struct MountPoint {
    path: PathBuf,
    is_root: bool,
}

impl MountPoint {
    /// Mounts and returns the connection.
    pub(crate) fn mount(
        source: &str,
        path: &Path,
        options: &MountOptions,
    ) -> Result<(Self, OwnedFd), MountError> {
        let unusable = |source| MountError::MountPoint {
            path: path.into(),
            source,
        };
        let path = path.canonicalize().map_err(unusable)?;
        let metadata = path.metadata().map_err(unusable)?;
        if !metadata.is_dir() {
            return Err(unusable(io::ErrorKind::NotADirectory.into()));
        }
        let source = options.source().unwrap_or(source);
        let is_root = rustix::process::geteuid().is_root();
        let device = if is_root {
            mount_as_root(source, &path, metadata.mode(), options)?
        } else {
            mount_by_helper(source, &path, options)?
        };
        Ok((Self { path, is_root }, device))
    }

    /// Unmounts, at once or, where the tree is still in use, out of sight at once.
    pub(crate) fn unmount(&self) {
        let result = if self.is_root {
            self.unmount_as_root()
        } else {
            self.unmount_by_helper()
        };
        if let Err(error) = result {
            log::warn!("unmount of {}: {error}", self.path.display());
        }
    }

    fn unmount_as_root(&self) -> io::Result<()> {
        match rustix::mount::unmount(&self.path, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) => {
                log::warn!("{} is in use, detaching it", self.path.display());
                let flags = UnmountFlags::NOFOLLOW | UnmountFlags::DETACH;
                Ok(rustix::mount::unmount(&self.path, flags)?)
            }
            // Somebody else was faster.
            Err(Errno::INVAL) => Ok(()),
            result => Ok(result?),
        }
    }

    fn unmount_by_helper(&self) -> io::Result<()> {
        let run = |arguments: &[&str]| {
            Command::new(FUSERMOUNT)
                .args(arguments)
                .arg("--")
                .arg(&self.path)
                .stderr(Stdio::null())
                .status()
        };
        if !run(&["-u", "-q"])?.success() && !run(&["-u", "-q", "-z"])?.success() {
            return Err(io::Error::other("fusermount3 failed"));
        }
        Ok(())
    }
}

fn mount_as_root(
    source: &str,
    path: &Path,
    mode: u32,
    options: &MountOptions,
) -> Result<OwnedFd, MountError> {
    let device = open_device().map_err(MountError::Device)?;
    let data = format!(
        "fd={},rootmode={:o},user_id=0,group_id=0{}",
        device.as_raw_fd(),
        mode & 0o170_000,
        options.fuse_options(true),
    );
    let data = CString::new(data).expect("the options have no NUL: they are numbers and words");
    let result = rustix::mount::mount(
        source,
        path,
        options.file_system_type(),
        options.flags(),
        data.as_c_str(),
    );
    result.map_err(|errno| MountError::Mount {
        path: path.into(),
        source: errno.into(),
    })?;
    Ok(device)
}

/// Opens the device anew, for a mount or for another reader of one.
pub(crate) fn open_device() -> io::Result<OwnedFd> {
    let file = File::options().read(true).write(true).open(DEVICE)?;
    Ok(file.into())
}

/// fusermount3 mounts and sends the connection over a socket that it inherits.
fn mount_by_helper(
    source: &str,
    path: &Path,
    options: &MountOptions,
) -> Result<OwnedFd, MountError> {
    let (ours, theirs) = UnixStream::pair().map_err(MountError::Fusermount)?;
    rustix::io::fcntl_setfd(&theirs, FdFlags::empty())
        .map_err(|errno| MountError::Fusermount(errno.into()))?;
    let child = Command::new(FUSERMOUNT)
        .arg("-o")
        .arg(options.fusermount_options(source))
        .arg("--")
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(MountError::Fusermount)?;
    drop(theirs);
    let received = ours.recv_with_fd(&mut [0; 1]);
    let output = child.wait_with_output().map_err(MountError::Fusermount)?;
    match received {
        Ok((_, Some(device))) if output.status.success() => {
            let device = OwnedFd::from(device);
            rustix::io::fcntl_setfd(device.as_fd(), FdFlags::CLOEXEC)
                .map_err(|errno| MountError::Device(errno.into()))?;
            Ok(device)
        }
        _ => {
            let reason = String::from_utf8_lossy(&output.stderr);
            let reason = reason.trim().trim_start_matches("fusermount3: ").into();
            Err(MountError::Refused {
                path: path.into(),
                reason,
            })
        }
    }
}
