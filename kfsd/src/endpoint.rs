//! Endpoints: the sockets and mount points at which the volume is served, in three steps.
//!
//! [`Reserved`] holds what has a path and needs no volume yet, [`Opened`] is a transport with its
//! session, [`Running`] a thread that serves it.

use crate::config::{Config, Endpoint, Source};
use crate::fuse::Session;
use crate::metrics::User;
use crate::shutdown::Event;
use crate::sys;
use crate::transport::{
    DeviceOptions, FuseMount, MountStopper, Socket, VhostUserServer, VhostUserStopper,
};
use crate::volume::{Volume, VolumeError};
use kfsctl::status::TransportKind;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

/// An endpoint before there is a volume.
pub(crate) enum Reserved {
    /// A socket; a monitor may connect already, and waits.
    Socket { path: PathBuf, socket: Socket },
    /// A directory; mounting takes a session that answers.
    Mount { path: PathBuf },
}

impl Reserved {
    pub(crate) fn new(config: &Config, endpoint: &Endpoint) -> Result<Self, VolumeError> {
        match endpoint {
            Endpoint::Mount(path) => Ok(Self::Mount { path: path.clone() }),
            Endpoint::Socket(path) => {
                let socket = Socket::bind(path)?;
                if let Some(group) = config.socket_group {
                    socket.set_group(group)?;
                }
                Ok(Self::Socket {
                    path: path.clone(),
                    socket,
                })
            }
            Endpoint::Fd(number) => {
                let socket = Socket::from_fd(sys::inherited_fd(*number)?)?;
                Ok(Self::Socket {
                    path: format!("fd {number}").into(),
                    socket,
                })
            }
        }
    }

    pub(crate) fn open(
        self,
        config: &Config,
        volume: &Arc<dyn Volume>,
    ) -> Result<Opened, VolumeError> {
        let file_system = volume.new_session()?;
        match self {
            Self::Mount { path } => {
                let source = match &config.source {
                    Source::Image(path) | Source::SharedDir(path) => path.to_string_lossy(),
                };
                let threads = std::thread::available_parallelism().map_or(2, |count| count.get());
                let options = &config.mount_options;
                let mount = FuseMount::new(file_system, &source, &path, options, threads)?;
                log::info!("mounted on {}", path.display());
                Ok(Opened::Mount { path, mount })
            }
            Self::Socket { path, socket } => {
                let options = DeviceOptions {
                    tag: config.tag.clone(),
                    request_queues: config.request_queues,
                    once: !config.keep_listening,
                };
                let server = VhostUserServer::new(file_system, socket, options)?;
                log::info!("waiting for a virtual machine at {}", path.display());
                Ok(Opened::Socket { path, server })
            }
        }
    }
}

/// An endpoint that is open, before its thread runs.
pub(crate) enum Opened {
    Mount {
        path: PathBuf,
        mount: FuseMount,
    },
    Socket {
        path: PathBuf,
        server: VhostUserServer,
    },
}

/// An endpoint that is served.
pub(crate) struct Running {
    stopper: Stopper,
    thread: JoinHandle<()>,
}

enum Stopper {
    Mount(MountStopper),
    Socket(VhostUserStopper),
}

impl Opened {
    fn session(&self) -> &Arc<Session> {
        match self {
            Self::Mount { mount, .. } => mount.session(),
            Self::Socket { server, .. } => server.session(),
        }
    }

    /// Closes it without having served anybody.
    pub(crate) fn close(self) {
        match self {
            Self::Mount { path, mount } => {
                // It unmounts, answering what that takes.
                mount.stopper().stop();
                if let Err(error) = mount.run() {
                    log::error!("unmounting {} failed: {error}", path.display());
                }
            }
            Self::Socket { .. } => {}
        }
    }

    /// What the status says of it.
    pub(crate) fn describe(&self, config: &Config) -> User {
        let (transport, endpoint) = match self {
            Self::Mount { path, .. } => (TransportKind::DevFuse, path.clone()),
            Self::Socket { path, .. } => (TransportKind::VhostUser, path.clone()),
        };
        let tag = config
            .tag
            .clone()
            .filter(|_| transport == TransportKind::VhostUser);
        User {
            transport,
            endpoint,
            tag,
            session: Arc::clone(self.session()),
        }
    }

    /// Begins to serve it; the end is told to `events` under `index`.
    pub(crate) fn start(self, index: usize, events: Sender<Event>) -> Result<Running, VolumeError> {
        let (stopper, path, serve): (_, _, Box<dyn FnOnce() -> Result<(), VolumeError> + Send>) =
            match self {
                Self::Mount { path, mount } => {
                    let stopper = Stopper::Mount(mount.stopper());
                    (stopper, path, Box::new(move || Ok(mount.run()?)))
                }
                Self::Socket { path, server } => {
                    let stopper = Stopper::Socket(server.stopper());
                    (stopper, path, Box::new(move || Ok(server.run()?)))
                }
            };
        let thread = std::thread::Builder::new()
            .name("endpoint".into())
            .spawn(move || {
                let failed = |error| format!("serving {} failed: {error}", path.display());
                let problem = serve().err().map(failed);
                // Main may have stopped to listen: it is ending.
                let _ = events.send(Event::Gone(index, problem));
            })?;
        Ok(Running { stopper, thread })
    }
}

impl Running {
    /// Sends its user away and waits until that is done.
    pub(crate) fn stop(self) {
        match &self.stopper {
            Stopper::Mount(stopper) => stopper.stop(),
            Stopper::Socket(stopper) => stopper.stop(),
        }
        if self.thread.join().is_err() {
            log::error!("the thread of a user has failed");
        }
    }
}
