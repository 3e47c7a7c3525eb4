//! Commands that a daemon, or kfsctl itself on an idle image, carries out on a volume.

use crate::args::{Command, SnapshotCommand, Target};
use crate::target::Executor;
use anyhow::Context;
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use kfsctl::Request;
use kfsctl::snapshot::{DiffEntry, RestoreInfo, SnapshotInfo, VersionInfo};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

/// Runs a command and prints its result.
pub(crate) fn run(target: &Target, command: &Command) -> anyhow::Result<()> {
    let mut executor = Executor::find(target, only_reads(command))?;
    let spinner = spinner();
    let result = carry_out(&mut executor, command);
    spinner.finish_and_clear();
    let finished = executor.finish();
    let text = result?;
    finished?;
    crate::print(&text)
}

fn only_reads(command: &Command) -> bool {
    matches!(
        command,
        Command::Log { .. }
            | Command::Snapshot(
                SnapshotCommand::List { .. }
                    | SnapshotCommand::Show { .. }
                    | SnapshotCommand::Diff { .. }
                    | SnapshotCommand::Export { .. }
                    | SnapshotCommand::Clone { .. }
            )
    )
}

/// Shows on a terminal that something is going on, when it takes longer than a second.
fn spinner() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {elapsed}");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
    bar.enable_steady_tick(Duration::from_secs(1));
    bar
}

fn carry_out(executor: &mut Executor, command: &Command) -> anyhow::Result<String> {
    match command {
        Command::Snapshot(command) => snapshot(executor, command),
        Command::Restore {
            snapshot,
            path: None,
            force,
            json,
            ..
        } => {
            let value = executor.restore_volume(snapshot, *force)?;
            show(&value, *json, |set_back: SetBack| {
                format!(
                    "the volume is as it was at '{snapshot}'; what it was before is '{}'\n",
                    set_back.undo
                )
            })
        }
        Command::Restore {
            snapshot,
            path: Some(path),
            to,
            json,
            ..
        } => {
            let value = executor.request(&Request::Restore {
                snapshot: snapshot.clone(),
                path: Some(path.clone()),
                to: to.clone(),
                force: false,
            })?;
            show(&value, *json, |restored: RestoreInfo| {
                format!(
                    "restored {path} from '{snapshot}': {} inodes, {} of them made, {} copied\n",
                    restored.inodes,
                    restored.made,
                    HumanBytes(restored.bytes)
                )
            })
        }
        Command::Log { file, json } => {
            let path = file.clone();
            let value = executor.request(&Request::FileLog { path })?;
            show(&value, *json, |found: Vec<VersionInfo>| versions(&found))
        }
        Command::Trim { json } => {
            let value = executor.request(&Request::Trim {})?;
            show(&value, *json, |bytes: Bytes| {
                format!("{} are free and given back\n", HumanBytes(bytes.bytes))
            })
        }
        Command::Sync => executor.request(&Request::Sync {}).map(|_| String::new()),
        Command::DropCaches => executor
            .request(&Request::DropCaches {})
            .map(|_| String::new()),
        _ => unreachable!("run elsewhere"),
    }
}

#[derive(serde::Deserialize)]
struct Bytes {
    bytes: u64,
}

#[derive(serde::Deserialize)]
struct Cloned {
    shared: bool,
    bytes: u64,
}

#[derive(serde::Deserialize)]
struct SetBack {
    undo: String,
}

#[derive(serde::Deserialize)]
struct Deleted {
    deleted: Vec<String>,
}

#[derive(serde::Deserialize)]
struct Diff {
    changes: Vec<DiffEntry>,
    total: usize,
}

fn snapshot(executor: &mut Executor, command: &SnapshotCommand) -> anyhow::Result<String> {
    match command {
        SnapshotCommand::Create {
            name,
            comment,
            json,
        } => {
            let value = executor.request(&Request::SnapshotCreate {
                name: name.clone(),
                comment: comment.clone(),
            })?;
            show(&value, *json, |taken: SnapshotInfo| {
                format!("{}\n", taken.name)
            })
        }
        SnapshotCommand::List { json } => {
            let value = executor.request(&Request::SnapshotList {})?;
            show(&value, *json, |all: Vec<SnapshotInfo>| table(&all))
        }
        SnapshotCommand::Show { name, json } => {
            let found = find(executor, name)?;
            show(&json!(found), *json, |snapshot| details(&snapshot))
        }
        SnapshotCommand::Delete { names, keep, json } => {
            let names = match keep {
                Some(keep) => keep.to_delete(&all(executor)?),
                None => names.clone(),
            };
            let value = executor.request(&Request::SnapshotDelete { names })?;
            show(&value, *json, |result: Deleted| {
                let lines = result
                    .deleted
                    .iter()
                    .map(|name| format!("deleted {name}\n"));
                lines.collect()
            })
        }
        SnapshotCommand::Diff { from, to, json } => {
            let value = executor.request(&Request::SnapshotDiff {
                from: from.clone(),
                to: to.clone(),
            })?;
            show(&value, *json, |diff: Diff| changes(&diff))
        }
        SnapshotCommand::Export {
            name,
            new_image: image,
            json,
        } => {
            // The daemon has another working directory.
            let path = std::path::absolute(image).context("the new image")?;
            let value = executor.request(&Request::SnapshotExport {
                name: name.clone(),
                path,
            })?;
            show(&value, *json, |bytes: Bytes| exported(image, bytes.bytes))
        }
        SnapshotCommand::Clone {
            name,
            new_image: image,
            json,
        } => {
            let path = std::path::absolute(image).context("the new image")?;
            let value = executor.request(&Request::SnapshotClone {
                name: name.clone(),
                path,
            })?;
            show(&value, *json, |cloned: Cloned| {
                if cloned.shared {
                    format!("{}: shares its blocks with the volume\n", image.display())
                } else {
                    exported(image, cloned.bytes)
                }
            })
        }
    }
}

/// The versions of a file, a line each.
fn versions(versions: &[VersionInfo]) -> String {
    let mut text = format!(
        "{:<20}  {:>12}  {:>10}  FOUND IN\n",
        "MODIFIED", "SIZE", "INODE"
    );
    for version in versions {
        let first = version.snapshots.first().into_iter();
        let last = version
            .snapshots
            .last()
            .filter(|_| version.snapshots.len() > 1);
        let names: Vec<&str> = first.chain(last).map(String::as_str).collect();
        let mut places = vec![names.join(" .. ")];
        if version.snapshots.len() > 2 {
            places[0] += &format!(" ({} snapshots)", version.snapshots.len());
        }
        if version.current {
            places.push("the volume".into());
        }
        places.retain(|place| !place.is_empty());
        let places = places.join(", ");
        let _ = if version.exists {
            let seconds = version.modified.split('.').next().unwrap_or("");
            let seconds = seconds.trim_end_matches('Z');
            let size = HumanBytes(version.size_bytes).to_string();
            writeln!(
                text,
                "{seconds}Z  {size:>12}  {:>10}  {places}",
                version.inode
            )
        } else {
            writeln!(
                text,
                "{:<20}  {:>12}  {:>10}  {places}",
                "not there", "", ""
            )
        };
    }
    text
}

fn all(executor: &mut Executor) -> anyhow::Result<Vec<SnapshotInfo>> {
    let value = executor.request(&Request::SnapshotList {})?;
    serde_json::from_value(value).context("the answer cannot be read")
}

fn find(executor: &mut Executor, name: &str) -> anyhow::Result<SnapshotInfo> {
    let found = all(executor)?.into_iter().find(|info| info.name == name);
    found.with_context(|| format!("there is no snapshot '{name}'"))
}

/// The result as JSON, or as people read it.
fn show<T: DeserializeOwned>(
    value: &Value,
    as_json: bool,
    render: impl FnOnce(T) -> String,
) -> anyhow::Result<String> {
    if as_json {
        return Ok(format!("{value}\n"));
    }
    let result = serde_json::from_value(value.clone()).context("the answer cannot be read")?;
    Ok(render(result))
}

fn table(snapshots: &[SnapshotInfo]) -> String {
    let mut text = String::new();
    if snapshots.is_empty() {
        return "there are no snapshots\n".into();
    }
    let width = snapshots.iter().map(|s| s.name.chars().count()).max();
    let width = width.unwrap_or(0).max(4);
    let _ = writeln!(
        text,
        "{:<20}  {:<width$}  {:>12}  {:>12}  {:>12}  COMMENT",
        "TIME", "NAME", "FREED BY DEL", "SHARED", "METADATA"
    );
    for snapshot in snapshots {
        let _ = writeln!(
            text,
            "{:<20}  {:<width$}  {:>12}  {:>12}  {:>12}  {}",
            snapshot.time,
            snapshot.name,
            HumanBytes(snapshot.unique_bytes).to_string(),
            HumanBytes(snapshot.shared_bytes).to_string(),
            HumanBytes(snapshot.metadata_bytes).to_string(),
            first_line(&snapshot.comment)
        );
    }
    text
}

fn first_line(text: &str) -> String {
    let line = text.lines().next().unwrap_or("");
    line.chars().filter(|c| !c.is_control()).collect()
}

fn details(snapshot: &SnapshotInfo) -> String {
    format!(
        "name        {}\ntaken       {}\nid          {}\nonly here   {} of files (freed by deleting it)\nshared      {} of files, with other snapshots\nmetadata    {}\ncomment     {}\n",
        snapshot.name,
        snapshot.time,
        snapshot.id,
        HumanBytes(snapshot.unique_bytes),
        HumanBytes(snapshot.shared_bytes),
        HumanBytes(snapshot.metadata_bytes),
        first_line(&snapshot.comment)
    )
}

fn changes(diff: &Diff) -> String {
    let mut text = String::new();
    for change in &diff.changes {
        let sign = match change.kind.as_str() {
            "added" => '+',
            "removed" => '-',
            "renamed" => 'R',
            _ => 'M',
        };
        let path = change.path.escape_debug();
        let _ = match &change.from {
            Some(from) => writeln!(text, "{sign} {} -> {path}", from.escape_debug()),
            None => writeln!(text, "{sign} {path}"),
        };
    }
    let left = diff.total - diff.changes.len().min(diff.total);
    if left > 0 {
        let _ = writeln!(text, "and {left} more");
    }
    text
}

fn exported(image: &Path, bytes: u64) -> String {
    format!("{}: {} copied\n", image.display(), HumanBytes(bytes))
}
