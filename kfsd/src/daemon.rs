//! The daemon from its configuration to its end.
//!
//! Order matters: everything that has a path is opened first, then the process locks itself in,
//! then threads are started; at the end the users are sent away before the volume is closed.

use crate::config::{Config, ControlSocket, Endpoint, Source};
use crate::control::{ControlListener, ControlServer, Handler};
use crate::fuse::Session;
use crate::image::{Image, ImageConfig};
use crate::metrics::{Metrics, User};
use crate::sandbox;
use crate::shared_dir::{SharedDir, SharedDirConfig};
use crate::shutdown::{Event, Events};
use crate::sys;
use crate::transport::{
    DeviceOptions, FuseMount, MountStopper, Socket, VhostUserServer, VhostUserStopper,
};
use crate::volume::{Volume, VolumeError};
use kfsctl::protocol::{ErrorCode, Request, RequestError};
use kfsctl::status::{DaemonStatus, TransportKind};
use rustix::process::{Resource, Rlimit};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::thread::JoinHandle;

/// Open files wanted where nothing else is said.
const OPEN_FILES: u64 = 1_000_000;

/// Serves until the end. Returns whether all went well.
pub fn run(config: &Config) -> Result<bool, VolumeError> {
    for remark in &config.remarks {
        log::warn!("{remark}");
    }
    raise_open_files(config.open_files);
    // Signals wait from here on, so that what was begun is always ended.
    let events = Events::new()?;
    let control = control_listener(&config.control)?;
    let sockets = open_sockets(config)?;
    let volume = open_volume(config)?;
    let result = serve(config, &volume, sockets, control, &events);
    let closed = volume.shutdown();
    let is_well = result?;
    closed?;
    log::info!("the volume is closed");
    Ok(is_well)
}

fn serve(
    config: &Config,
    volume: &Arc<dyn Volume>,
    sockets: Vec<(PathBuf, Socket)>,
    control: Option<ControlListener>,
    events: &Events,
) -> Result<bool, VolumeError> {
    let mut users = Vec::new();
    for (path, socket) in sockets {
        users.push(open_device(config, socket, path, volume)?);
    }
    for endpoint in &config.endpoints {
        if let Endpoint::Mount(path) = endpoint {
            users.push(open_mount(config, path, volume)?);
        }
    }
    let metrics = Metrics::new(users.iter().map(|user| user.describe(config)).collect());
    let status = StatusHandler {
        volume: Arc::clone(volume),
        metrics,
    };
    let _server = control
        .map(|listener| answer(listener, status))
        .transpose()?;
    let running: Vec<Running> = users
        .into_iter()
        .enumerate()
        .map(|(index, user)| user.start(index, events.sender()))
        .collect::<Result<_, _>>()?;
    let is_well = events.wait(running.len());
    for user in running {
        user.stop();
    }
    Ok(is_well)
}

fn answer(listener: ControlListener, handler: StatusHandler) -> Result<ControlServer, VolumeError> {
    let path = listener.path().to_owned();
    let server = listener.serve(Arc::new(handler))?;
    log::info!("control socket {}", path.display());
    Ok(server)
}

fn control_listener(place: &ControlSocket) -> Result<Option<ControlListener>, VolumeError> {
    match place {
        ControlSocket::None => Ok(None),
        ControlSocket::Path(path) => Ok(Some(ControlListener::new(path)?)),
        // Nobody asked for it, so a daemon without it is better than none.
        ControlSocket::Default => match ControlListener::in_default_place() {
            Ok(listener) => Ok(Some(listener)),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                log::warn!("{error}: {}", cause.unwrap_or_default());
                Ok(None)
            }
        },
    }
}

fn open_volume(config: &Config) -> Result<Arc<dyn Volume>, VolumeError> {
    match &config.source {
        Source::SharedDir(path) => {
            let mut directory = SharedDir::open(&SharedDirConfig {
                path: path.clone(),
                read_only: config.read_only,
                cache: config.cache,
                writeback: config.writeback,
                readdirplus: config.readdirplus,
                timeout: config.timeout,
                options: config.shared_dir.clone(),
            })?;
            sandbox::enter(&config.shared_dir, &mut directory)?;
            Ok(Arc::new(directory))
        }
        Source::Image(path) => Ok(Arc::new(Image::open(&ImageConfig {
            path: path.clone(),
            read_only: config.read_only,
            cache: config.cache,
            writeback: config.writeback,
            readdirplus: config.readdirplus,
            timeout: config.timeout,
        })?)),
    }
}

/// Lets the process have many open files: a host directory takes one for each file known.
fn raise_open_files(wanted: Option<u64>) {
    if wanted == Some(0) {
        return;
    }
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let target = wanted.unwrap_or(OPEN_FILES);
    // Beyond the hard limit only root may go, and only up to fs.nr_open.
    for maximum in [
        limit.maximum.map(|maximum| maximum.max(target)),
        limit.maximum,
    ] {
        let current = maximum.map_or(target, |maximum| maximum.min(target));
        if wanted.is_none() && limit.current.is_none_or(|limit| limit >= current) {
            return;
        }
        let new = Rlimit {
            current: Some(current),
            maximum,
        };
        if rustix::process::setrlimit(Resource::Nofile, new).is_ok() {
            return;
        }
    }
    log::warn!("the limit of open files cannot be set to {target}");
}

/// An endpoint that is open, before its thread runs.
enum Opened {
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
struct Running {
    stopper: Stopper,
    thread: JoinHandle<()>,
}

enum Stopper {
    Mount(MountStopper),
    Socket(VhostUserStopper),
}

/// Binds the sockets, whose paths are out of reach from within a sandbox.
fn open_sockets(config: &Config) -> Result<Vec<(PathBuf, Socket)>, VolumeError> {
    let mut sockets = Vec::new();
    for endpoint in &config.endpoints {
        match endpoint {
            Endpoint::Socket(path) => {
                let socket = Socket::bind(path)?;
                if let Some(group) = config.socket_group {
                    socket.set_group(group)?;
                }
                sockets.push((path.clone(), socket));
            }
            Endpoint::Fd(number) => {
                let socket = Socket::from_fd(sys::inherited_fd(*number)?)?;
                sockets.push((format!("fd {number}").into(), socket));
            }
            Endpoint::Mount(_) => {}
        }
    }
    Ok(sockets)
}

fn open_device(
    config: &Config,
    socket: Socket,
    path: PathBuf,
    volume: &Arc<dyn Volume>,
) -> Result<Opened, VolumeError> {
    let options = DeviceOptions {
        tag: config.tag.clone(),
        request_queues: config.request_queues,
        once: !config.keep_listening,
    };
    let server = VhostUserServer::new(volume.new_session()?, socket, options)?;
    log::info!("waiting for a virtual machine at {}", path.display());
    Ok(Opened::Socket { path, server })
}

fn open_mount(
    config: &Config,
    path: &Path,
    volume: &Arc<dyn Volume>,
) -> Result<Opened, VolumeError> {
    let source = match &config.source {
        Source::Image(path) | Source::SharedDir(path) => path.to_string_lossy(),
    };
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get());
    let mount = FuseMount::new(
        volume.new_session()?,
        &source,
        path,
        &config.mount_options,
        threads,
    )?;
    log::info!("mounted on {}", path.display());
    Ok(Opened::Mount {
        path: path.into(),
        mount,
    })
}

impl Opened {
    fn session(&self) -> &Arc<Session> {
        match self {
            Self::Mount { mount, .. } => mount.session(),
            Self::Socket { server, .. } => server.session(),
        }
    }

    fn describe(&self, config: &Config) -> User {
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

    fn start(self, index: usize, events: Sender<Event>) -> Result<Running, VolumeError> {
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
    fn stop(self) {
        match &self.stopper {
            Stopper::Mount(stopper) => stopper.stop(),
            Stopper::Socket(stopper) => stopper.stop(),
        }
        if self.thread.join().is_err() {
            log::error!("the thread of a user has failed");
        }
    }
}

struct StatusHandler {
    volume: Arc<dyn Volume>,
    metrics: Metrics,
}

impl Handler for StatusHandler {
    fn handle(&self, request: Request) -> Result<Value, RequestError> {
        match request {
            Request::Status {} => {
                let status = kfsctl::Status {
                    daemon: Some(DaemonStatus {
                        version: env!("CARGO_PKG_VERSION").into(),
                        pid: std::process::id(),
                        uptime_seconds: self.metrics.uptime().as_secs_f64(),
                    }),
                    volume: self.volume.status(),
                    sessions: self.metrics.sessions(),
                    operations: self.metrics.operations(),
                };
                serde_json::to_value(status)
                    .map_err(|error| RequestError::new(ErrorCode::Failed, error.to_string(), ""))
            }
            _ => Err(RequestError::new(
                ErrorCode::NotSupported,
                "this kfsd cannot do that",
                "",
            )),
        }
    }

    fn tick(&self) {
        self.metrics.sample();
    }
}
