//! The daemon from its configuration to its end.
//!
//! Order matters: everything that has a path is opened first, then the process locks itself in,
//! then threads are started, which inherit the lock; at the end the users are sent away before the volume is closed.

use crate::config::{Config, ControlSocket, Endpoint, Source};
use crate::control::{ControlListener, ControlServer};
use crate::endpoint::{Opened, Reserved, Running};
use crate::handler::ControlHandler;
use crate::image::{Image, ImageConfig};
use crate::metrics::Metrics;
use crate::sandbox;
use crate::schedule::Scheduler;
use crate::shared_dir::{SharedDir, SharedDirConfig};
use crate::shutdown::Events;
use crate::volume::{Volume, VolumeError};
use rustix::process::{Resource, Rlimit};
use std::sync::Arc;

/// Open files wanted where nothing else is said.
const OPEN_FILES: u64 = 1_000_000;

/// Serves until the end. Returns whether all went well.
pub fn run(config: &Config) -> Result<bool, VolumeError> {
    for remark in &config.remarks {
        log::warn!("{remark}");
    }
    raise_open_files(config.open_files);
    // Signals wait from here on, so that what was begun is always ended.
    let mut events = Events::new()?;
    let control = control_listener(&config.control)?;
    let endpoints = config
        .endpoints
        .iter()
        .map(|endpoint| Reserved::new(config, endpoint))
        .collect::<Result<Vec<_>, _>>()?;
    let volume = open_volume(config)?;
    events.listen()?;
    let result = serve(config, &volume, control, endpoints, &events);
    let closed = volume.shutdown();
    let is_well = result?;
    closed?;
    log::info!("the volume is closed");
    Ok(is_well)
}

fn serve(
    config: &Config,
    volume: &Arc<dyn Volume>,
    control: Option<ControlListener>,
    endpoints: Vec<Reserved>,
    events: &Events,
) -> Result<bool, VolumeError> {
    let mut users = Vec::new();
    for endpoint in endpoints {
        match endpoint.open(config, volume) {
            Ok(user) => users.push(user),
            Err(error) => {
                users.into_iter().for_each(Opened::close);
                return Err(error);
            }
        }
    }
    let metrics = Metrics::new(users.iter().map(|user| user.describe(config)).collect());
    let handler = ControlHandler::new(Arc::clone(volume), metrics);
    let _server = control.and_then(|listener| answer(listener, handler));
    let mut running: Vec<Running> = Vec::new();
    let mut is_well = true;
    let scheduler = config
        .schedule
        .clone()
        .map(|schedule| Scheduler::start(schedule, Arc::clone(volume)))
        .transpose()?;
    for (index, user) in users.into_iter().enumerate() {
        match user.start(index, events.sender()) {
            Ok(user) => running.push(user),
            Err(error) => {
                log::error!("no thread for a user: {error}");
                is_well = false;
            }
        }
    }
    is_well &= events.wait(running.len());
    volume.release_waiting();
    drop(scheduler);
    for user in running {
        user.stop();
    }
    Ok(is_well)
}

fn answer(listener: ControlListener, handler: ControlHandler) -> Option<ControlServer> {
    let path = listener.path().to_owned();
    match listener.serve(Arc::new(handler)) {
        Ok(server) => {
            log::info!("control socket {}", path.display());
            Some(server)
        }
        Err(error) => {
            log::error!("no thread for the control socket: {error}");
            None
        }
    }
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
            errors: config.errors,
            snapshot: config.snapshot.clone(),
            snapshot_dir: config.snapshot_dir,
            // The owners of files are in the image, so serving it takes no privileges; mounting
            // and unmounting does.
            drop_capabilities: !config
                .endpoints
                .iter()
                .any(|endpoint| matches!(endpoint, Endpoint::Mount(_))),
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
