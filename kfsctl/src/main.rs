//! The kfsctl command: asks a kfsd and shows the answer.
#![forbid(unsafe_code)]

mod args;
mod bar;
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
use kfsctl::{Client, ClientError, ErrorCode, RequestError, Status};
use serde_json::json;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let cli = Cli::try_parse().unwrap_or_else(|error| refuse(&error));
    match run(&cli) {
        Ok(status) => status,
        Err(error) => {
            let hint = hint(&error);
            if cli.json {
                let code = refused(&error).map_or(ErrorCode::Failed, |refused| refused.code);
                print_error(code, &format!("{error:#}"), hint);
            }
            eprintln!("kfsctl: {error:#}");
            if let Some(hint) = hint {
                eprintln!("kfsctl: {hint}");
            }
            match cli.command {
                _ if bar::is_interrupted(&error) => ExitCode::from(bar::EXIT_INTERRUPTED),
                Command::Check { .. } => ExitCode::from(check::EXIT_OPERATIONAL),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// Ends with what is wrong with the command line, or with the help that was asked for.
fn refuse(error: &clap::Error) -> ! {
    if error.use_stderr() && std::env::args_os().any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let first = text.lines().next().unwrap_or_default();
        let message = first.strip_prefix("error: ").unwrap_or(first);
        print_error(ErrorCode::InvalidArgument, message, Some("see --help"));
    }
    error.exit()
}

/// Prints an error as JSON, in the form of the control protocol.
fn print_error(code: ErrorCode, message: &str, hint: Option<&str>) {
    let error = RequestError::new(code, message, hint.unwrap_or_default());
    // What cannot be printed is on the other stream, too.
    let _ = print(&format!("{}\n", json!({ "error": error })));
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    let (target, as_json) = (&cli.target, cli.json);
    match &cli.command {
        Command::Status => show(&status(cli)?, as_json)?,
        Command::Check { snapshot } => return check::run(target, snapshot.as_deref(), as_json),
        Command::Freeze { timeout } => daemon::freeze(target, *timeout, as_json)?,
        Command::Resize { size } => resize::run(target, *size, as_json)?,
        Command::Thaw => daemon::thaw(target, as_json)?,
        Command::Set(command) => daemon::set(target, command, as_json)?,
        // The figures are the same.
        Command::Metrics if as_json => show(&status(cli)?, true)?,
        Command::Metrics => print(&metrics::text(&status(cli)?))?,
        Command::Top { interval, once } => top::run(target, *interval, *once, as_json)?,
        Command::Defrag(args) => return commands::defrag::run(target, args, as_json),
        Command::Fragmap(args) => return commands::fragmap::run(target, args, as_json),
        command => volume::run(target, command, as_json)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// What a daemon or a volume said, if the error is theirs.
fn refused(error: &anyhow::Error) -> Option<&RequestError> {
    match error.downcast_ref() {
        Some(ClientError::Refused(refused)) => Some(refused),
        _ => error.downcast_ref::<RequestError>(),
    }
}

/// What to do about an error, if somebody has said so.
fn hint(error: &anyhow::Error) -> Option<&str> {
    refused(error)
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
