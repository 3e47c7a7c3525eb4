//! Snapshots of an image by the clock: `--snapshot-every` and `--snapshot-keep`.
//!
//! Those that it takes are named `auto-` and the time; the rule of what to keep is about them alone.

use crate::args::Args;
use crate::config::ConfigError;
use crate::volume::Volume;
use kfsctl::keep::Keep;
use kfsctl::protocol::{Request, RequestError};
use kfsctl::snapshot::SnapshotInfo;
use kfsctl::unwatched;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// What the names of scheduled snapshots begin with.
const PREFIX: &str = "auto-";

/// When to take snapshots, and which to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// Time between two.
    pub every: Duration,
    /// All, where nothing is said.
    pub keep: Option<Keep>,
}

impl Schedule {
    /// What the command line says, if it does.
    pub(crate) fn from_args(args: &Args, read_only: bool) -> Result<Option<Self>, ConfigError> {
        let needs = |option: &str, needs| {
            let option = option.into();
            Err(ConfigError::Needs { option, needs })
        };
        let Some(every) = args.snapshot_every else {
            if args.snapshot_keep.is_some() {
                return needs("--snapshot-keep", "--snapshot-every");
            }
            return Ok(None);
        };
        if args.image.is_none() || read_only {
            return needs("--snapshot-every", "--image that takes changes");
        }
        Ok(Some(Self {
            every,
            keep: args.snapshot_keep.clone(),
        }))
    }
}

/// The thread that takes them; it ends when this is dropped.
pub(crate) struct Scheduler {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Scheduler {
    pub(crate) fn start(schedule: Schedule, volume: Arc<dyn Volume>) -> io::Result<Self> {
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new()
            .name("snapshots".into())
            .spawn(move || {
                while stopped.recv_timeout(schedule.every) == Err(RecvTimeoutError::Timeout) {
                    if let Err(error) = once(&schedule, &*volume) {
                        log::warn!("no snapshot was taken: {error}");
                    }
                }
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            log::error!("the thread that takes snapshots has failed");
        }
    }
}

fn once(schedule: &Schedule, volume: &dyn Volume) -> Result<(), RequestError> {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%d-%H%M%S");
    let control = |request| volume.control(&request, &mut unwatched);
    control(Request::SnapshotCreate {
        name: Some(format!("{PREFIX}{now}")),
        comment: String::new(),
    })?;
    let Some(keep) = &schedule.keep else {
        return Ok(());
    };
    let all = control(Request::SnapshotList {})?;
    let all: Vec<SnapshotInfo> = serde_json::from_value(all).unwrap_or_default();
    let scheduled = all.into_iter().filter(|info| info.name.starts_with(PREFIX));
    let names = keep.to_delete(&scheduled.collect::<Vec<_>>());
    if !names.is_empty() {
        control(Request::SnapshotDelete { names })?;
    }
    Ok(())
}
