//! The command line.

use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;

/// Looks at and steers a running kfsd, or looks at an image that nobody serves.
#[derive(Debug, Parser)]
#[command(name = "kfsctl", version)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Whom to ask; without an option, the only running kfsd.
#[derive(Debug, Args)]
#[group(multiple = false)]
pub(crate) struct Target {
    /// Control socket of the kfsd to ask
    #[arg(long, value_name = "PATH", global = true)]
    pub(crate) socket: Option<PathBuf>,

    /// Image to look at; if a kfsd serves it, that one is asked
    #[arg(long, value_name = "IMAGE", global = true)]
    pub(crate) image: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show what is served to whom, and how it fares
    Status {
        /// Print the status as one JSON object
        #[arg(long)]
        json: bool,
    },
    /// Check an image that nobody uses, and change nothing
    ///
    /// Exit status: 0 nothing is wrong, 4 the image is damaged, 8 it could not be checked. An
    /// image whose journal must be replayed is checked as it will be after that.
    Check {
        /// Print the report as one JSON object
        #[arg(long)]
        json: bool,
    },
}
