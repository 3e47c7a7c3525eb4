//! The kfsctl command: asks a kfsd and shows the answer.
#![forbid(unsafe_code)]

mod args;
mod check;
mod commands;
mod daemon;
mod image;
mod metrics;
mod render;
mod resize;
mod shrink;
mod target;
mod top;
mod volume;

use args::{Cli, Command};
use clap::Parser;
use image::ImageStatus;
use kfsctl::{Client, ClientError, RequestError, Status};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let cli = Cli::parse();
    let status_of_failure = match cli.command {
        Command::Check { .. } => ExitCode::from(check::EXIT_OPERATIONAL),
        _ => ExitCode::FAILURE,
    };
    match run(&cli) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("kfsctl: {error:#}");
            if let Some(hint) = hint(&error) {
                eprintln!("kfsctl: {hint}");
            }
            status_of_failure
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        Command::Status { json } => show(&status(cli)?, *json)?,
        Command::Check {
            snapshot: Some(name),
            json,
        } => return check::run_snapshot(&cli.target, name, *json),
        Command::Check { json, .. } => return check::run(&cli.target, *json),
        Command::Freeze { timeout, json } => daemon::freeze(&cli.target, *timeout, *json)?,
        Command::Resize { size, json } => resize::run(&cli.target, *size, *json)?,
        Command::Thaw => daemon::thaw(&cli.target)?,
        Command::Set(command) => daemon::set(&cli.target, command)?,
        Command::Metrics => print(&metrics::text(&status(cli)?))?,
        Command::Top {
            interval,
            once,
            json,
        } => top::run(&cli.target, *interval, *once, *json)?,
        Command::Defrag(args) => return commands::defrag::run(&cli.target, args),
        Command::Fragmap(args) => return commands::fragmap::run(&cli.target, args),
        command => volume::run(&cli.target, command)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What to do about an error, if somebody has said so.
fn hint(error: &anyhow::Error) -> Option<&str> {
    let refused = match error.downcast_ref() {
        Some(ClientError::Refused(refused)) => Some(refused),
        _ => error.downcast_ref::<RequestError>(),
    };
    refused
        .map(|refused| refused.hint.as_str())
        .filter(|hint| !hint.is_empty())
}

fn status(cli: &Cli) -> anyhow::Result<Status> {
    let target = &cli.target;
    let mut client = match (&target.socket, &target.image) {
        (Some(path), _) => Client::connect(path)?,
        (None, Some(path)) => match image::status(path)? {
            ImageStatus::Idle(status) => return Ok(*status),
            ImageStatus::ServedBy(socket) => Client::connect(&socket)?,
        },
        (None, None) => Client::find()?,
    };
    Ok(client.status()?)
}

fn show(status: &Status, json: bool) -> anyhow::Result<()> {
    let text = if json {
        format!("{}\n", serde_json::to_string(status)?)
    } else {
        render::status(status)
    };
    print(&text)
}

fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        // `kfsctl status | head -1` is no failure.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}
