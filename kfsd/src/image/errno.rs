//! Errors of the file system as errno: the only place where they meet.

use kfs::{Error, Filesystem};
use rustix::io::Errno;

/// The errno that says it best. What the caller did not do wrong is logged here, once, and damage is
/// noted by the file system.
pub(super) fn errno(filesystem: &Filesystem) -> impl Fn(Error) -> Errno + '_ {
    |error| {
        filesystem.note(&error);
        translate(&error)
    }
}

fn translate(error: &Error) -> Errno {
    match error {
        Error::NotFound => Errno::NOENT,
        Error::Exists => Errno::EXIST,
        Error::NotADirectory => Errno::NOTDIR,
        Error::IsADirectory => Errno::ISDIR,
        Error::NotEmpty => Errno::NOTEMPTY,
        Error::NameTooLong => Errno::NAMETOOLONG,
        Error::NotPermitted => Errno::PERM,
        Error::AccessDenied => Errno::ACCESS,
        Error::TooManyLinks => Errno::MLINK,
        Error::FileTooLarge => Errno::FBIG,
        Error::NoSpace | Error::SnapshotStoreFull => Errno::NOSPC,
        Error::NoAttribute => Errno::NODATA,
        Error::OutOfRange => Errno::RANGE,
        Error::NotSupported | Error::Unsupported { .. } => Errno::OPNOTSUPP,
        Error::NoData => Errno::NXIO,
        Error::Stale => Errno::STALE,
        Error::Busy => Errno::BUSY,
        Error::Interrupted => Errno::INTR,
        Error::ReadOnly { .. } | Error::NeedsRecovery => Errno::ROFS,
        Error::Invalid | Error::IntoItself => Errno::INVAL,
        Error::Corrupt(_) => Errno::UCLEAN,
        Error::Io { source, .. } | Error::Device { source, .. } => {
            log::error!("{error}: {source}");
            source
                .raw_os_error()
                .map_or(Errno::IO, Errno::from_raw_os_error)
        }
        _ => {
            log::error!("{error}");
            Errno::IO
        }
    }
}
