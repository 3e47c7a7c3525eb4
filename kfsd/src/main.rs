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

fn main() -> ExitCode {
    let args = Args::parse();
    if args.print_capabilities {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    if let Err(error) = kfsd::logging::start(config::log_level(&args), args.syslog) {
        return failure(&*error);
    }
    let result = match Config::try_from(args) {
        Ok(config) => kfsd::daemon::run(&config),
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => failure(&*error),
    }
}

/// Says what went wrong and why, and why that. An error often names its cause itself; that is not
/// said twice.
fn failure(error: &(dyn std::error::Error + 'static)) -> ExitCode {
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
    ExitCode::FAILURE
}
