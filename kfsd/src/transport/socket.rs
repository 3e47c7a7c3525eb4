//! The socket that a monitor connects to: made by us at a path, or given to us.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::socket_file::SocketFile;
use thiserror::Error;

/// Why there is no socket to listen on.
#[derive(Debug, Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("{}: another process listens on this socket", .0.display())]
    InUse(PathBuf),
    /// Something else is there, and we do not remove it.
    #[error("{}: exists and is not a socket", .0.display())]
    NotSocket(PathBuf),
    /// Anything else.
    #[error("the socket {}: {source}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The descriptor we were given is of no use.
    #[error("file descriptor for the socket: {0}")]
    Descriptor(io::Error),
}

/// A socket that listens. Its file is removed with it.
#[derive(Debug)]
pub struct Socket {
    listener: UnixListener,
    /// The file, where we made it.
    file: Option<SocketFile>,
}

impl Socket {
    /// Listens at `path`. A socket file that nobody listens on any more is replaced.
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => SocketError::InUse(path.into()),
            io::ErrorKind::AlreadyExists => SocketError::NotSocket(path.into()),
            _ => SocketError::Io {
                path: path.into(),
                source,
            },
        };
        let (listener, file) = SocketFile::listen(path).map_err(failed)?;
        Ok(Self {
            listener,
            file: Some(file),
        })
    }

    /// Lets a group connect.
    pub fn set_group(&self, group: u32) -> Result<(), SocketError> {
        let Some(path) = self.file.as_ref().map(SocketFile::path) else {
            return Ok(());
        };
        let failed = |source| SocketError::Io {
            path: path.into(),
            source,
        };
        std::os::unix::fs::lchown(path, None, Some(group)).map_err(failed)?;
        fs::set_permissions(path, fs::Permissions::from_mode(0o660)).map_err(failed)
    }

    /// Uses a socket that somebody else made to listen, as libvirt and systemd do.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        let listening = rustix::net::sockopt::socket_acceptconn(&fd);
        match listening.map_err(io::Error::from) {
            Ok(true) => Ok(Self {
                listener: fd.into(),
                file: None,
            }),
            Ok(false) => Err(SocketError::Descriptor(io::ErrorKind::NotConnected.into())),
            Err(error) => Err(SocketError::Descriptor(error)),
        }
    }

    /// The socket as the vhost library wants it.
    pub(crate) fn listener(&self) -> io::Result<vhost::vhost_user::Listener> {
        Ok(self.listener.try_clone()?.into())
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.file {
            Some(file) => file.fmt(f),
            None => f.write_str("socket by descriptor"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn stale_sockets_are_replaced_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves it");
        let socket = Socket::bind(&path).unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(matches!(error, SocketError::InUse(_)), "{error}");
        UnixStream::connect(&path).unwrap();
        socket
            .set_group(rustix::process::getegid().as_raw())
            .unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        drop(socket);
        assert!(!path.exists());

        fs::write(&path, "precious").unwrap();
        let error = Socket::bind(&path).unwrap_err();
        assert!(error.to_string().contains("is not a socket"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
        let error = Socket::bind(&dir.path().join("no/sock")).unwrap_err();
        assert!(error.to_string().contains("no/sock"), "{error}");
        let error = Socket::bind(Path::new(&"x".repeat(200))).unwrap_err();
        assert!(error.to_string().contains("SUN_LEN"), "{error}");
    }

    #[test]
    fn another_ones_file_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sock");
        let socket = Socket::bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "new").unwrap();
        drop(socket);
        assert!(path.exists());
    }

    #[test]
    fn descriptors_must_listen() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("sock")).unwrap();
        let socket = Socket::from_fd(listener.into()).unwrap();
        assert_eq!(socket.to_string(), "socket by descriptor");
        let (stream, _other) = UnixStream::pair().unwrap();
        Socket::from_fd(stream.into()).unwrap_err();
        Socket::from_fd(fs::File::open("/dev/null").unwrap().into()).unwrap_err();
    }
}
