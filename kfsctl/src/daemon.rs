//! Commands that only a running kfsd can carry out.

use crate::args::{SetCommand, Target};
use crate::image::{ImageStatus, status};
use kfs_disk::Count;
use kfsctl::duration::parse_duration;
use kfsctl::freeze::SECONDS_MAX;
use kfsctl::{Client, Request};
use serde_json::Value;

/// Connects to the kfsd that the command line means. `idle` is what there is to say of an image that nobody
/// serves.
pub(crate) fn connect(target: &Target, idle: &str) -> anyhow::Result<Client> {
    Ok(match (&target.socket, &target.image) {
        (Some(path), _) => Client::connect(path)?,
        (None, Some(path)) => match status(path)? {
            ImageStatus::ServedBy(socket) => Client::connect(&socket)?,
            ImageStatus::Idle(_) => {
                anyhow::bail!("no kfsd serves {}: {idle}", path.display())
            }
        },
        (None, None) => Client::find()?,
    })
}

fn ask(target: &Target, idle: &str, request: &Request) -> anyhow::Result<Value> {
    let mut client = connect(target, idle)?;
    client.be_patient();
    Ok(client.request(request)?)
}

/// Freezes the volume.
pub(crate) fn freeze(target: &Target, seconds: u64, as_json: bool) -> anyhow::Result<()> {
    let request = Request::Freeze {
        timeout_seconds: seconds,
    };
    let idle = "nothing changes it, and it can be copied as it is";
    let value = ask(target, idle, &request)?;
    if as_json {
        return crate::print(&format!("{value}\n"));
    }
    crate::print(&format!(
        "frozen; goes on with `kfsctl thaw`, or in {}\n",
        Count(seconds, "second")
    ))
}

/// Ends a freeze.
pub(crate) fn thaw(target: &Target, as_json: bool) -> anyhow::Result<()> {
    let idle = "there is nothing to thaw";
    silent(&ask(target, idle, &Request::Thaw {})?, as_json)
}

/// Changes a setting.
pub(crate) fn set(target: &Target, command: &SetCommand, as_json: bool) -> anyhow::Result<()> {
    let SetCommand::LogLevel { level } = command;
    let level = level.clone();
    let idle = "there is nobody whose log it could be";
    let value = ask(target, idle, &Request::SetLogLevel { level })?;
    silent(&value, as_json)
}

/// A success that needs no words.
fn silent(value: &Value, as_json: bool) -> anyhow::Result<()> {
    match as_json {
        true => crate::print(&format!("{value}\n")),
        false => Ok(()),
    }
}

/// The time that a freeze may last.
pub(crate) fn parse_seconds(text: &str) -> Result<u64, String> {
    match parse_duration(text)?.as_secs() {
        seconds if seconds <= SECONDS_MAX => Ok(seconds),
        _ => Err(format!("'{text}' is too long: a day (24h) is the most")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freeze_lasts_a_second_to_a_day() {
        assert_eq!(parse_seconds("90s"), Ok(90));
        assert_eq!(parse_seconds("24h"), Ok(SECONDS_MAX));
        for text in ["0s", "25h", "30", "soon"] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
