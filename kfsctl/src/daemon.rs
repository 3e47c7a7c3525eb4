//! Commands that only a running kfsd can carry out.

use crate::args::{SetCommand, Target};
use crate::image::{ImageStatus, status};
use kfsctl::{Client, Request};
use serde_json::Value;

/// Connects to the kfsd that the command line means.
pub(crate) fn connect(target: &Target) -> anyhow::Result<Client> {
    Ok(match (&target.socket, &target.image) {
        (Some(path), _) => Client::connect(path)?,
        (None, Some(path)) => match status(path)? {
            ImageStatus::ServedBy(socket) => Client::connect(&socket)?,
            ImageStatus::Idle(_) => {
                anyhow::bail!("no kfsd serves {}: nothing changes it", path.display())
            }
        },
        (None, None) => Client::find()?,
    })
}

fn ask(target: &Target, request: &Request) -> anyhow::Result<Value> {
    let mut client = connect(target)?;
    client.be_patient();
    Ok(client.request(request)?)
}

/// Freezes the volume.
pub(crate) fn freeze(target: &Target, seconds: u64, as_json: bool) -> anyhow::Result<()> {
    let request = Request::Freeze {
        timeout_seconds: seconds,
    };
    let value = ask(target, &request)?;
    if as_json {
        return crate::print(&format!("{value}\n"));
    }
    crate::print(&format!(
        "frozen; goes on with `kfsctl thaw`, or in {seconds} seconds\n"
    ))
}

/// Ends a freeze.
pub(crate) fn thaw(target: &Target, as_json: bool) -> anyhow::Result<()> {
    silent(&ask(target, &Request::Thaw {})?, as_json)
}

/// Changes a setting.
pub(crate) fn set(target: &Target, command: &SetCommand, as_json: bool) -> anyhow::Result<()> {
    let SetCommand::LogLevel { level } = command;
    let level = level.clone();
    silent(&ask(target, &Request::SetLogLevel { level })?, as_json)
}

/// A success that needs no words.
fn silent(value: &Value, as_json: bool) -> anyhow::Result<()> {
    match as_json {
        true => crate::print(&format!("{value}\n")),
        false => Ok(()),
    }
}

/// A time in whole seconds with a unit.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, String> {
    let duration: jiff::SignedDuration = text.parse().map_err(|error| format!("{error}"))?;
    let seconds = u64::try_from(duration.as_secs()).unwrap_or(0);
    if seconds == 0 {
        return Err("at least one second".into());
    }
    Ok(seconds)
}
