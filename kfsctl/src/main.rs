//! The kfsctl command: asks a kfsd and shows the answer.
#![forbid(unsafe_code)]

mod args;
mod check;
mod image;
mod render;

use args::{Cli, Command};
use clap::Parser;
use image::ImageStatus;
use kfsctl::{Client, ClientError, Status};
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let cli = Cli::parse();
    let status_of_failure = match cli.command {
        Command::Status { .. } => ExitCode::FAILURE,
        Command::Check { .. } => ExitCode::from(check::EXIT_OPERATIONAL),
    };
    match run(&cli) {
        Ok(status) => status,
        Err(error) => {
            eprintln!("kfsctl: {error:#}");
            if let Some(ClientError::Refused(refused)) = error.downcast_ref()
                && !refused.hint.is_empty()
            {
                eprintln!("kfsctl: {}", refused.hint);
            }
            status_of_failure
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match cli.command {
        Command::Status { json } => {
            show(&status(cli)?, json)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Check { json } => check::run(&cli.target, json),
    }
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
