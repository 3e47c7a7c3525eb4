//! Why an image file or a block device could not be opened, in words that say what to do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use crate::words::Bytes;
use thiserror::Error;

/// Failure of opening or creating a [`FileDevice`](crate::FileDevice).
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// Nothing is at the path.
    #[error("{}: no such file; check the path, or make an image with mkfs", .path.display())]
    NotFound {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The path names a directory.
    #[error("{} is a directory; give an image file or a block device", .path.display())]
    IsDirectory {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The path names neither a regular file nor a block device.
    #[error("{} is a {kind}; give an image file or a block device", .path.display())]
    NotADevice {
        /// The path that was asked for.
        path: PathBuf,
        /// What it is instead, as a noun.
        kind: &'static str,
    },
    /// The caller may not open it this way.
    #[error(
        "{}: no permission to open it for {}; {}",
        .path.display(),
        if *.write { "writing" } else { "reading" },
        permission_advice(*.write, *.is_block_device)
    )]
    PermissionDenied {
        /// The path that was asked for.
        path: PathBuf,
        /// Whether writing was asked for.
        write: bool,
        /// Whether it is a block device.
        is_block_device: bool,
    },
    /// A new image was to be created in a directory that does not exist.
    #[error("{}: there is no directory {}; make it first", .path.display(), .directory.display())]
    NoDirectory {
        /// The path that was asked for.
        path: PathBuf,
        /// What is missing.
        directory: PathBuf,
    },
    /// A new image was to be created where the caller may not.
    #[error(
        "{}: no permission to make a file in {}; choose another place, or run as its owner",
        .path.display(),
        .directory.display()
    )]
    CreationDenied {
        /// The path that was asked for.
        path: PathBuf,
        /// Where it was to be.
        directory: PathBuf,
    },
    /// The device or the file system that holds the image is read-only.
    #[error("{} is on a read-only medium; open it read-only", .path.display())]
    ReadOnlyMedium {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// Somebody else uses it in a way that excludes this opening.
    #[error("{} is in use by {holder}; {}", .path.display(), .holder.advice())]
    InUse {
        /// The path that was asked for.
        path: PathBuf,
        /// Who uses it.
        holder: Holder,
    },
    /// A new image was to be created where something exists.
    #[error("{} exists already; remove it or choose another name", .path.display())]
    AlreadyExists {
        /// The path that was asked for.
        path: PathBuf,
    },
    /// The file system that holds the image cannot hold a file of that size.
    #[error(
        "{}: a file of {} is too large for its file system; choose a smaller size",
        .path.display(),
        Bytes(*.size)
    )]
    TooLarge {
        /// The path that was asked for.
        path: PathBuf,
        /// The size asked for, in bytes.
        size: u64,
    },
    /// Anything else the operating system said.
    #[error("{}: cannot {action}", .path.display())]
    Io {
        /// The path that was asked for.
        path: PathBuf,
        /// What was being done, as a verb phrase.
        action: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
}

impl OpenError {
    pub(crate) fn io(path: &Path, action: &'static str, source: io::Error) -> Self {
        OpenError::Io {
            path: path.to_owned(),
            action,
            source,
        }
    }

    /// The path that was asked for.
    pub fn path(&self) -> &Path {
        match self {
            OpenError::NotFound { path }
            | OpenError::IsDirectory { path }
            | OpenError::NotADevice { path, .. }
            | OpenError::PermissionDenied { path, .. }
            | OpenError::NoDirectory { path, .. }
            | OpenError::CreationDenied { path, .. }
            | OpenError::ReadOnlyMedium { path }
            | OpenError::InUse { path, .. }
            | OpenError::AlreadyExists { path }
            | OpenError::TooLarge { path, .. }
            | OpenError::Io { path, .. } => path,
        }
    }
}

fn permission_advice(write: bool, is_block_device: bool) -> &'static str {
    match (is_block_device, write) {
        (true, _) => "run as root, or as a member of the device's group (disk, as a rule)",
        (false, true) => "run as its owner or change its mode, or open it read-only",
        (false, false) => "run as its owner or change its mode",
    }
}

/// Who keeps an image or a block device from being opened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holder {
    /// A process that has it locked.
    Process {
        /// Its process id.
        pid: u32,
        /// Its command name, as in `ps`.
        command: String,
    },
    /// The kernel has it mounted.
    Mount {
        /// Where.
        mount_point: PathBuf,
    },
    /// It is attached to a writable loop device, mounted or not.
    Loop {
        /// Such as `/dev/loop0`.
        device: PathBuf,
    },
    /// Somebody that cannot be seen from here (another container, another machine, the kernel).
    Unknown,
}

impl Holder {
    fn advice(&self) -> String {
        match self {
            Holder::Process { .. } => "stop that process first".to_owned(),
            Holder::Mount { mount_point } => {
                format!("unmount it first (umount {})", mount_point.display())
            }
            Holder::Loop { device } => {
                format!(
                    "unmount and detach it first (losetup -d {})",
                    device.display()
                )
            }
            Holder::Unknown => "stop what uses it first".to_owned(),
        }
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Process { pid, command } => write!(f, "{command} (pid {pid})"),
            Holder::Mount { mount_point } => write!(f, "a mount on {}", mount_point.display()),
            Holder::Loop { device } => write!(f, "loop device {}", device.display()),
            Holder::Unknown => f.write_str("another process"),
        }
    }
}
