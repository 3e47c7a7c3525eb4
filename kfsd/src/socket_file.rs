//! The file of a Unix socket, from its making to its removal.
//!
//! It is removed through a descriptor of its directory: once the process has another root, the
//! path leads nowhere.

use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};

/// A socket file that we made; it is removed with this.
#[derive(Debug)]
pub(crate) struct SocketFile {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    identity: (u64, u64),
}

impl SocketFile {
    /// Listens at `path`. A socket that nobody listens on any more is replaced; anything else that
    /// is there stays, and the error is AddrInUse (somebody listens) or AlreadyExists (no socket).
    pub(crate) fn listen(path: &Path) -> io::Result<(UnixListener, Self)> {
        let name = path
            .file_name()
            .ok_or(io::ErrorKind::InvalidInput)?
            .to_owned();
        let parent = path
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty());
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent.unwrap_or(Path::new(".")), flags, Mode::empty())?;
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)?
            }
            result => result?,
        };
        let stat = rustix::fs::statat(&directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let file = Self {
            path: path.to_owned(),
            directory,
            name,
            identity: identity(&stat),
        };
        Ok((listener, file))
    }

    /// Where it was made.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    if !path.symlink_metadata()?.file_type().is_socket() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // A datagram socket cannot connect to a stream socket, but is told whether one is there. A
    // connection would be taken for that of a machine, and its end for the machine's.
    let probed = UnixDatagram::unbound()?.connect(path);
    match probed {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            log::info!("{}: replacing a stale socket", path.display());
            std::fs::remove_file(path)
        }
        Err(error) if error.raw_os_error() != Some(Errno::PROTOTYPE.raw_os_error()) => Err(error),
        _ => Err(io::ErrorKind::AddrInUse.into()),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have put another file there meanwhile: that one stays.
        let found = rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW);
        if found.is_ok_and(|stat| identity(&stat) == self.identity)
            && let Err(errno) = rustix::fs::unlinkat(&self.directory, &self.name, AtFlags::empty())
        {
            log::debug!("the socket {self} stays behind: {errno}");
        }
    }
}

impl fmt::Display for SocketFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}
