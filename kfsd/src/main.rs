//! The kfsd command: options, logging, exit code. The rest is in `daemon.rs`.

use clap::Parser;
use kfsd::args::Args;
use kfsd::config::{self, Config};
use std::process::ExitCode;

/// What programs such as libvirt want to know before they start a daemon.
const CAPABILITIES: &str = r#"{
  "type": "fs",
  "features": ["separate-options"]
}"#;

/// Exit status for a wrong command line, as clap has it.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let args = Args::parse();
    if args.print_capabilities {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = kfsd::logging::start(config::log_level(&args), args.syslog) {
        return failure(&*error, 1);
    }
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => return failure(&error, if error.is_usage() { EXIT_USAGE } else { 1 }),
    };
    match kfsd::daemon::run(&config) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failure(&*error, 1),
    }
}

/// Says what went wrong and why, and why that. An error often names its cause itself; that is not
/// said twice.
fn failure(error: &(dyn std::error::Error + 'static), status: u8) -> ExitCode {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let text = cause.to_string();
        if !message.ends_with(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        source = cause.source();
    }
    eprintln!("kfsd: {message}");
    ExitCode::from(status)
}
