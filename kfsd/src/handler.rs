//! `ControlHandler`: what kfsctl asks for, carried out by the part of the daemon that it concerns.

use crate::control::Handler;
use crate::metrics::Metrics;
use crate::volume::{RestoreError, Volume};
use kfsctl::Watch;
use kfsctl::protocol::{ErrorCode, Request, RequestError};
use kfsctl::status::{DaemonStatus, TransportKind};
use serde_json::{Value, json};
use std::sync::Arc;

/// Answers the requests that the control server receives.
pub(crate) struct ControlHandler {
    volume: Arc<dyn Volume>,
    metrics: Metrics,
}

impl ControlHandler {
    pub(crate) fn new(volume: Arc<dyn Volume>, metrics: Metrics) -> Self {
        Self { volume, metrics }
    }

    fn status(&self) -> Result<Value, RequestError> {
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

    /// Sets the volume back to a snapshot under its users, all of whom wait meanwhile.
    fn restore(
        &self,
        snapshot: &str,
        force: bool,
        watch: &mut Watch<'_>,
    ) -> Result<Value, RequestError> {
        self.volume.check_restore(snapshot)?;
        self.refuse_attached(force)?;
        let mut suspended = Vec::new();
        let mut suspend = || {
            let users = self.metrics.users().iter();
            suspended.extend(users.map(|user| user.session.suspend()));
            // Somebody may have come meanwhile.
            self.refuse_attached(force)
        };
        match self.volume.restore(snapshot, &mut suspend, watch) {
            Ok(undo) => {
                for session in suspended {
                    match self.volume.new_session() {
                        Ok(file_system) => session.replace(file_system),
                        Err(error) => {
                            log::error!("a user cannot be served any more: {error}");
                            session.fail();
                        }
                    }
                }
                Ok(json!({ "undo": undo }))
            }
            Err(RestoreError::Refused(error)) => Err(error),
            Err(RestoreError::Lost(error)) => {
                suspended.into_iter().for_each(|session| session.fail());
                Err(error)
            }
        }
    }

    fn refuse_attached(&self, force: bool) -> Result<(), RequestError> {
        let attached = self.attached();
        if force || attached.is_empty() {
            return Ok(());
        }
        Err(RequestError::new(
            ErrorCode::Busy,
            format!("the volume is in use: {}", attached.join(", ")),
            "unmount it there, or give --force: what they have open will fail with ESTALE",
        ))
    }

    /// Who uses the volume now, for people.
    fn attached(&self) -> Vec<String> {
        let sessions = self.metrics.sessions();
        let connected = sessions.iter().filter(|session| session.connected);
        let describe = connected.map(|session| {
            let place = session.endpoint.display();
            match session.transport {
                TransportKind::DevFuse => format!("the mount at {place}"),
                TransportKind::VhostUser => format!("the guest at {place}"),
            }
        });
        describe.collect()
    }
}

fn set_log_level(level: &str) -> Result<Value, RequestError> {
    let level = level.parse().map_err(|_| {
        let text = format!("there is no log level {level:?}");
        let hint = "levels are off, error, warn, info, debug, trace";
        RequestError::new(ErrorCode::InvalidArgument, text, hint)
    })?;
    crate::logging::set_level(level);
    Ok(json!({}))
}

impl Handler for ControlHandler {
    fn handle(&self, request: Request, watch: &mut Watch<'_>) -> Result<Value, RequestError> {
        match request {
            Request::Status {} => self.status(),
            Request::Restore {
                snapshot,
                path: None,
                force,
                ..
            } => self.restore(&snapshot, force, watch),
            Request::SetLogLevel { level } => set_log_level(&level),
            request => self.volume.control(&request, watch),
        }
    }

    fn tick(&self) {
        self.metrics.sample();
    }
}
