//! The command line.

use crate::commands::defrag::DefragArgs;
use crate::commands::fragmap::FragmapArgs;
use clap::{Args, Parser, Subcommand};
use kfs::snapshot::{NameError, check_comment, check_name};
use kfsctl::keep::Keep;
use std::path::PathBuf;

const EXIT_STATUS: &str = "Exit status: 0 if it worked, 1 if not, 2 for a wrong command line, 130 after Ctrl-C; \
                           `check` has its own.";

/// Looks at and steers a running kfsd, or looks at an image that nobody serves.
#[derive(Debug, Parser)]
#[command(name = "kfsctl", version, after_help = EXIT_STATUS)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) target: Target,
    /// Print results, and errors too, as JSON: one value a line
    #[arg(long, global = true)]
    pub(crate) json: bool,
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
    Status,
    /// Check a volume, in use or not
    ///
    /// Of a volume in use a snapshot is taken, checked and deleted again. In an image that nobody uses nothing
    /// is changed; one whose journal must be replayed is checked as it will be after that. Exit status: 0
    /// nothing is wrong, 4 the volume is damaged, 8 it could not be checked.
    Check {
        /// Check this snapshot in place of the volume as it is
        #[arg(long, value_name = "NAME")]
        snapshot: Option<String>,
    },
    /// Take, list, compare and delete snapshots
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Show the versions of a file that snapshots and the volume have
    Log {
        /// Path in the volume, from its root
        file: String,
    },
    /// Bring a file or directory of a snapshot back, or set the whole volume back to it
    ///
    /// Of a file only what differs is copied. Files in a directory that the snapshot does not have
    /// stay. Where no path is given the whole volume is set back; the state before is kept as a
    /// snapshot. While guests or mounts use the volume that takes --force: what they have open then
    /// fails with ESTALE.
    Restore {
        /// Name of the snapshot
        snapshot: String,
        /// Path in the volume, from its root
        #[arg(long)]
        path: Option<String>,
        /// Path in the volume to restore it to, in place of the same
        #[arg(long, requires = "path")]
        to: Option<String>,
        /// Set the whole volume back though guests or mounts use it
        #[arg(long, conflicts_with = "path")]
        force: bool,
    },
    /// Move files to where they lie in one piece, and mapped memory can show them in large pages
    ///
    /// The volume is used meanwhile. The largest gain comes first; to stop at any time does no harm.
    /// What snapshots see stays where it is, unless --all is given.
    Defrag(DefragArgs),
    /// Show what is where on the volume, or where a file lies
    Fragmap(FragmapArgs),
    /// Give free blocks of an image back to the host
    Trim,
    /// Make everything that a kfsd was given durable
    Sync,
    /// Let a kfsd forget metadata that it can read again
    DropCaches,
    /// Make a volume larger, in use or not, or an idle one smaller
    ///
    /// An image file is made longer or shorter; a block device has to be long enough already. Interrupted,
    /// the volume is whole and has some size in between, and the same command goes on. To make it smaller
    /// takes --image, with no kfsd that serves it: what lies behind the new end is moved first.
    Resize {
        /// The new size: a number with K, M, G or T; with + what is added; max for all of the device;
        /// min for as little as what is in use needs
        #[arg(value_name = "[+]SIZE|max|min")]
        size: crate::resize::Size,
    },
    /// Make a volume that a kfsd serves stand still, so that its image can be copied
    ///
    /// All changes are in the image, which is that of a closed volume; new ones wait for `thaw`, or
    /// until the time is over.
    Freeze {
        /// After how long it goes on by itself: 30s, 5min, 1h; a day at the most
        #[arg(long, value_name = "TIME", default_value = "60s", value_parser = crate::daemon::parse_seconds)]
        timeout: u64,
    },
    /// Let a frozen volume go on
    Thaw,
    /// Change a setting of a running kfsd
    #[command(subcommand)]
    Set(SetCommand),
    /// Print counters of a kfsd in the text format of Prometheus
    Metrics,
    /// Watch what a kfsd does
    Top {
        /// Seconds between two looks
        #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
        interval: u64,
        /// Look for one interval, print that, and end; as if there is no terminal
        #[arg(long)]
        once: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SetCommand {
    /// What it logs from now on
    LogLevel {
        /// The least important messages that are logged
        #[arg(value_parser = ["off", "error", "warn", "info", "debug", "trace"])]
        level: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Take a snapshot of a volume, which goes on being used
    Create {
        /// Its name; the time (UTC) where none is given
        #[arg(value_parser = parse_name)]
        name: Option<String>,
        /// What to remember of it
        #[arg(
            short = 'm',
            long = "message",
            value_name = "COMMENT",
            default_value = "",
            value_parser = parse_comment
        )]
        comment: String,
    },
    /// List all snapshots, oldest first, and what each holds
    List,
    /// Show one snapshot
    Show {
        /// Its name
        name: String,
    },
    /// Delete snapshots, and free what only they hold
    Delete {
        /// Their names
        #[arg(required_unless_present = "keep", conflicts_with = "keep")]
        names: Vec<String>,
        /// Delete all but the newest of each period: PERIOD=COUNT,... of last, minutely, hourly,
        /// daily, weekly, monthly
        #[arg(long, value_name = "RULES")]
        keep: Option<Keep>,
    },
    /// Tell which paths differ between a snapshot and a later one, or the volume as it is
    Diff {
        /// The earlier snapshot
        from: String,
        /// The later snapshot
        to: Option<String>,
    },
    /// Write a snapshot to a new image: an ordinary ext4 volume, sparse
    Export {
        /// Name of the snapshot
        name: String,
        /// The new file
        #[arg(value_name = "NEW_IMAGE")]
        new_image: PathBuf,
    },
    /// Make a new image of a snapshot that shares its blocks with this one, in no time
    ///
    /// Where the file system of the host cannot share blocks (xfs and btrfs can) it is a copy, as
    /// of `export`.
    Clone {
        /// Name of the snapshot
        name: String,
        /// The new file
        #[arg(value_name = "NEW_IMAGE")]
        new_image: PathBuf,
    },
}

/// A name for a new snapshot.
fn parse_name(name: &str) -> Result<String, NameError> {
    check_name(name).map(|()| name.into())
}

/// What is to be remembered of a new snapshot.
fn parse_comment(comment: &str) -> Result<String, NameError> {
    check_comment(comment).map(|()| comment.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfs::snapshot::{COMMENT_MAX, NAME_MAX};

    #[test]
    fn names_are_looked_at() {
        for name in ["a", "before upgrade", "2026-11-21", "...", "\u{e4}"] {
            assert_eq!(parse_name(name).as_deref(), Ok(name));
        }
        let long = "x".repeat(NAME_MAX + 1);
        for name in ["", ".", "..", "a/b", "a\nb", "\u{1b}[2J", &long] {
            assert!(parse_name(name).is_err(), "{name:?}");
        }
        assert!(parse_comment(&"x".repeat(COMMENT_MAX)).is_ok());
        assert!(parse_comment(&"x".repeat(COMMENT_MAX + 1)).is_err());
    }

    #[test]
    fn a_wrong_command_line_ends_with_2() {
        use clap::Parser;
        for line in [
            "snapshot create a/b",
            "freeze --timeout soon",
            "resize 5Q",
            "defrag --rate 1",
            "fragmap -o map.gif",
            "snapshot delete --keep x=1",
            "dance",
        ] {
            let words = ["kfsctl"].into_iter().chain(line.split(' '));
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
