//! What can keep a file system from being made.

use kfs_disk::Bytes;
use std::io;
use std::path::PathBuf;

/// Result of everything in this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Why no file system was made. Nothing of the device was changed, but for [`Error::Io`],
/// [`Error::Engine`] and [`Error::Source`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A size that is no number with a known suffix.
    #[error("'{text}' is not a size: write a number with K, M, G, T or P, as in 1000M")]
    Size {
        /// What was given.
        text: String,
    },
    /// A value that is not allowed.
    #[error("{what} {value} is not possible: {rule}")]
    Value {
        /// The thing with a value.
        what: &'static str,
        /// What was given.
        value: String,
        /// What would be allowed.
        rule: &'static str,
    },
    /// An `-O` name that mkfs does not write.
    #[error("no file system {with} the feature '{name}' can be made here")]
    Feature {
        /// "with" or "without".
        with: &'static str,
        /// The name.
        name: String,
    },
    /// A name after `-E` or `-J` that mkfs does not know.
    #[error("unknown option '{name}'")]
    ExtendedOption {
        /// The name.
        name: String,
    },
    /// The device has fewer blocks than asked for.
    #[error("the device has {}, the file system would need {}", Bytes(*.have), Bytes(*.need))]
    DeviceTooSmall {
        /// Size of the device, in bytes.
        have: u64,
        /// Size of the file system, in bytes.
        need: u64,
    },
    /// The size leaves no room for metadata.
    #[error(
        "{} is too small for a file system with blocks of {}",
        Bytes(*.size_bytes),
        Bytes((*.block_size).into())
    )]
    TooSmall {
        /// Size of the file system.
        size_bytes: u64,
        /// Size of a block.
        block_size: u32,
    },
    /// More blocks than the format can hold.
    #[error("{blocks} blocks are too many: {limit}")]
    TooManyBlocks {
        /// Blocks asked for.
        blocks: u64,
        /// What limits them.
        limit: &'static str,
    },
    /// More inodes than the groups can hold.
    #[error("{inodes} inodes are too many for the size; raise -i or lower -N")]
    TooManyInodes {
        /// Inodes asked for.
        inodes: u64,
    },
    /// The journal does not fit.
    #[error(
        "a journal of {} does not fit: it may have {} to {} here",
        Bytes(*.bytes),
        Bytes(*.min),
        Bytes(*.max)
    )]
    Journal {
        /// Bytes asked for.
        bytes: u64,
        /// Fewest.
        min: u64,
        /// Most.
        max: u64,
    },
    /// The plan made a superblock that kfs refuses: a combination of options that makes no sense.
    #[error("these options make no valid file system")]
    Invalid(#[source] kfs::Error),
    /// The device failed.
    #[error("{what} failed")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the device said.
        #[source]
        source: io::Error,
    },
    /// kfs failed to fill the new file system.
    #[error("filling the file system failed at {path}")]
    Engine {
        /// The file of the source directory.
        path: PathBuf,
        /// What kfs said.
        #[source]
        source: kfs::Error,
    },
    /// The source directory could not be read.
    #[error("cannot read {path}")]
    Source {
        /// The file of the source directory.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
}

impl Error {
    /// Whether what was asked for can never be, whatever it is to be made on.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::Size { .. }
            | Self::Value { .. }
            | Self::Feature { .. }
            | Self::ExtendedOption { .. }
            | Self::TooManyInodes { .. }
            | Self::Journal { .. }
            | Self::Invalid(_) => true,
            Self::DeviceTooSmall { .. }
            | Self::TooSmall { .. }
            | Self::TooManyBlocks { .. }
            | Self::Io { .. }
            | Self::Engine { .. }
            | Self::Source { .. } => false,
        }
    }

    /// [`Error::Value`] with anything that can be shown.
    pub(crate) fn value(
        what: &'static str,
        value: impl std::fmt::Display,
        rule: &'static str,
    ) -> Self {
        Self::Value {
            what,
            value: value.to_string(),
            rule,
        }
    }
}
