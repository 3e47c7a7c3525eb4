//! `ConfigError`: why the daemon does not start with these options.

use super::{MAX_SOCKET_PATH, MAX_TAG};
use crate::transport::OptionError;
use std::path::PathBuf;

/// Why the options make no sense.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Neither source was given.
    #[error("nothing to serve: give --image IMAGE or --shared-dir DIR")]
    NoSource,
    /// Both sources were given.
    #[error("--image and --shared-dir exclude each other: a daemon serves one volume")]
    TwoSources,
    /// No user was given.
    #[error("nobody to serve: give --socket-path PATH, --fd FD or --mount DIR")]
    NoEndpoint,
    /// Nothing is at a path.
    #[error("{option} {}: there is no such {what}; {advice}", .path.display())]
    Missing {
        /// The option that names it.
        option: &'static str,
        /// The path.
        path: PathBuf,
        /// What should be there, as a noun.
        what: &'static str,
        /// What to do about it.
        advice: &'static str,
    },
    /// A path cannot be looked at.
    #[error("{option} {}", .path.display())]
    Path {
        /// The option that names it.
        option: &'static str,
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A directory where an image is needed.
    #[error("{} is a directory, not an image; to serve a directory use --shared-dir", .path.display())]
    ImageIsDirectory {
        /// The path.
        path: PathBuf,
    },
    /// Neither a file nor a block device.
    #[error("{} is neither a file nor a block device", .path.display())]
    ImageIsSpecial {
        /// The path.
        path: PathBuf,
    },
    /// A file where a directory is needed.
    #[error("{option}: {} is not a directory", .path.display())]
    NotDirectory {
        /// The option that names it.
        option: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// An image where a directory is needed.
    #[error("{} is not a directory; to serve an image use --image", .path.display())]
    SharedDirIsFile {
        /// The path.
        path: PathBuf,
    },
    /// The path of a socket does not fit the system's address structure.
    #[error("the socket path {} is longer than {MAX_SOCKET_PATH} bytes", .path.display())]
    SocketPathTooLong {
        /// The path.
        path: PathBuf,
    },
    /// The same endpoint twice.
    #[error("{} is given twice", .path.display())]
    Duplicate {
        /// The path.
        path: PathBuf,
    },
    /// Not an open descriptor, or one of the standard ones.
    #[error("--fd {fd}: there is no such inherited socket")]
    BadFd {
        /// The number.
        fd: i32,
    },
    /// The tag is empty or too long.
    #[error("the tag must have 1 to {MAX_TAG} bytes and no NUL, this one has {len}")]
    Tag {
        /// Its length.
        len: usize,
    },
    /// An option makes sense for a host directory only.
    #[error("{option} works with --shared-dir only")]
    SharedDirOnly {
        /// The option.
        option: &'static str,
    },
    /// An option without the one it belongs to.
    #[error("{option} makes no sense without {needs}")]
    Needs {
        /// The option.
        option: String,
        /// What it belongs to.
        needs: &'static str,
    },
    /// Two options that do not go together.
    #[error("{option} does not go together with {other}")]
    Conflict {
        /// The one.
        option: &'static str,
        /// The other.
        other: &'static str,
    },
    /// An option of virtiofsd that is not served.
    #[error("{option} is not supported by kfsd{hint}")]
    Unsupported {
        /// The option.
        option: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// A value that means nothing.
    #[error("{option}: {value:?} is not {expected}")]
    Value {
        /// The option.
        option: String,
        /// Its value.
        value: String,
        /// What it should be.
        expected: &'static str,
    },
    /// A mount option that is unknown or wrong.
    #[error(transparent)]
    MountOption(#[from] OptionError),
    /// There is no such group.
    #[error("--socket-group: there is no group {name:?}")]
    NoGroup {
        /// The name.
        name: String,
    },
}

impl ConfigError {
    /// Whether the command line is wrong whatever is there on this host.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Missing { .. }
            | Self::Path { .. }
            | Self::ImageIsDirectory { .. }
            | Self::ImageIsSpecial { .. }
            | Self::NotDirectory { .. }
            | Self::SharedDirIsFile { .. }
            | Self::BadFd { .. }
            | Self::NoGroup { .. } => false,
            Self::NoSource
            | Self::TwoSources
            | Self::NoEndpoint
            | Self::SocketPathTooLong { .. }
            | Self::Duplicate { .. }
            | Self::Tag { .. }
            | Self::SharedDirOnly { .. }
            | Self::Needs { .. }
            | Self::Conflict { .. }
            | Self::Unsupported { .. }
            | Self::Value { .. }
            | Self::MountOption(_) => true,
        }
    }
}
