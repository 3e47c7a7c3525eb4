//! Commands that a daemon, or kfsctl itself on an idle image, carries out on a volume.

use crate::args::{Command, SnapshotCommand, Target};
use crate::bar::Bar;
use crate::target::Executor;
use anyhow::Context;
use kfs_disk::{Bytes, Count};
use kfsctl::execute::unknown;
use kfsctl::snapshot::{DiffEntry, RestoreInfo, SnapshotInfo, VersionInfo};
use kfsctl::{Progress, Request};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::Path;

/// Who carries requests out, and what is shown meanwhile.
struct Work {
    executor: Executor,
    bar: Bar,
    as_json: bool,
}

impl Work {
    fn request(&mut self, request: &Request) -> anyhow::Result<Value> {
        let bar = &mut self.bar;
        self.executor
            .request_watched(request, &mut |progress| bar.tell(progress))
    }

    /// The result as JSON, or as people read it.
    fn show<T: DeserializeOwned>(
        &self,
        value: &Value,
        render: impl FnOnce(T) -> String,
    ) -> anyhow::Result<String> {
        if self.as_json {
            return Ok(format!("{value}\n"));
        }
        let result = serde_json::from_value(value.clone()).context("the answer cannot be read")?;
        Ok(render(result))
    }
}

/// Runs a command and prints its result.
pub(crate) fn run(target: &Target, command: &Command, as_json: bool) -> anyhow::Result<()> {
    let mut work = Work {
        executor: Executor::find(target, only_reads(command))?,
        bar: Bar::new(as_json),
        as_json,
    };
    if ends_in_order(command) {
        work.bar.catch_signals()?;
    }
    let result = carry_out(&mut work, command);
    work.bar.end();
    let finished = work.executor.finish();
    let text = result?;
    finished?;
    crate::print(&text)
}

/// Whether the command is told when somebody wants it to end, in place of being ended anywhere.
fn ends_in_order(command: &Command) -> bool {
    matches!(
        command,
        Command::Restore { .. }
            | Command::Trim
            | Command::Snapshot(
                SnapshotCommand::Delete { .. }
                    | SnapshotCommand::Export { .. }
                    | SnapshotCommand::Clone { .. }
            )
    )
}

fn only_reads(command: &Command) -> bool {
    matches!(
        command,
        Command::Log { .. }
            | Command::Snapshot(
                SnapshotCommand::List
                    | SnapshotCommand::Show { .. }
                    | SnapshotCommand::Diff { .. }
                    | SnapshotCommand::Export { .. }
                    | SnapshotCommand::Clone { .. }
            )
    )
}

fn carry_out(work: &mut Work, command: &Command) -> anyhow::Result<String> {
    match command {
        Command::Snapshot(command) => snapshot(work, command),
        Command::Restore {
            snapshot,
            path: None,
            force,
            ..
        } => {
            let bar = &mut work.bar;
            let mut watch = |progress: &Progress| bar.tell(progress);
            let value = work.executor.restore_volume(snapshot, *force, &mut watch)?;
            work.show(&value, |set_back: SetBack| {
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
            ..
        } => {
            let value = work.request(&Request::Restore {
                snapshot: snapshot.clone(),
                path: Some(path.clone()),
                to: to.clone(),
                force: false,
            })?;
            work.show(&value, |restored: RestoreInfo| {
                format!(
                    "restored {path} from '{snapshot}': {}, {} of them made, {} copied\n",
                    Count(restored.inodes, "inode"),
                    restored.made,
                    Bytes(restored.bytes)
                )
            })
        }
        Command::Log { file } => {
            let path = file.clone();
            let value = work.request(&Request::FileLog { path })?;
            work.show(&value, |found: Vec<VersionInfo>| versions(&found))
        }
        Command::Trim => {
            let value = work.request(&Request::Trim {})?;
            work.show(&value, |amount: Amount| {
                format!("{} are free and given back\n", Bytes(amount.bytes))
            })
        }
        Command::Sync => silent(work, &Request::Sync {}),
        Command::DropCaches => silent(work, &Request::DropCaches {}),
        _ => unreachable!("run elsewhere"),
    }
}

/// A request whose success needs no words.
fn silent(work: &mut Work, request: &Request) -> anyhow::Result<String> {
    let value = work.request(request)?;
    Ok(match work.as_json {
        true => format!("{value}\n"),
        false => String::new(),
    })
}

#[derive(serde::Deserialize)]
struct Amount {
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

fn snapshot(work: &mut Work, command: &SnapshotCommand) -> anyhow::Result<String> {
    match command {
        SnapshotCommand::Create { name, comment } => {
            let value = work.request(&Request::SnapshotCreate {
                name: name.clone(),
                comment: comment.clone(),
            })?;
            work.show(&value, |taken: SnapshotInfo| format!("{}\n", taken.name))
        }
        SnapshotCommand::List => {
            let value = work.request(&Request::SnapshotList {})?;
            let served = match work.as_json {
                true => None,
                false => work.executor.served_snapshot()?,
            };
            work.show(&value, |all: Vec<SnapshotInfo>| {
                let served =
                    served.map(|name| format!("kfsd serves '{name}', in place of the volume\n"));
                table(&all) + &served.unwrap_or_default()
            })
        }
        SnapshotCommand::Show { name } => {
            let found = find(work, name)?;
            work.show(&json!(found), |snapshot| details(&snapshot))
        }
        SnapshotCommand::Delete { names, keep } => {
            let names = match keep {
                Some(keep) => keep.to_delete(&all(work)?),
                None => names.clone(),
            };
            let value = work.request(&Request::SnapshotDelete { names })?;
            work.show(&value, |result: Deleted| {
                let lines = result
                    .deleted
                    .iter()
                    .map(|name| format!("deleted {name}\n"));
                lines.collect()
            })
        }
        SnapshotCommand::Diff { from, to } => {
            let value = work.request(&Request::SnapshotDiff {
                from: from.clone(),
                to: to.clone(),
            })?;
            work.show(&value, |diff: Diff| changes(&diff))
        }
        SnapshotCommand::Export {
            name,
            new_image: image,
        } => {
            // The daemon has another working directory.
            let path = std::path::absolute(image).context("the new image")?;
            let value = work.request(&Request::SnapshotExport {
                name: name.clone(),
                path,
            })?;
            work.show(&value, |amount: Amount| exported(image, amount.bytes))
        }
        SnapshotCommand::Clone {
            name,
            new_image: image,
        } => {
            let path = std::path::absolute(image).context("the new image")?;
            let value = work.request(&Request::SnapshotClone {
                name: name.clone(),
                path,
            })?;
            work.show(&value, |cloned: Cloned| {
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
    let digits = digits_to_tell_apart(versions);
    let width = "2026-11-21T19:27:40.Z".len() + digits;
    let mut text = format!(
        "{:<width$}  {:>12}  {:>10}  FOUND IN\n",
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
            let count = Count(version.snapshots.len() as u64, "snapshot");
            places[0] += &format!(" ({count})");
        }
        if version.current {
            places.push("the volume".into());
        }
        places.retain(|place| !place.is_empty());
        let places = places.join(", ");
        let _ = if version.exists {
            let modified = moment(&version.modified, digits);
            let size = Bytes(version.size_bytes).to_string();
            writeln!(
                text,
                "{modified}  {size:>12}  {:>10}  {places}",
                version.inode
            )
        } else {
            writeln!(
                text,
                "{:<width$}  {:>12}  {:>10}  {places}",
                "not there", "", ""
            )
        };
    }
    text
}

/// A time in RFC 3339 with so many digits of its fraction.
fn moment(time: &str, digits: usize) -> String {
    let time = time.trim_end_matches('Z');
    let (seconds, fraction) = time.split_once('.').unwrap_or((time, ""));
    let fraction: String = fraction
        .chars()
        .chain(std::iter::repeat('0'))
        .take(digits)
        .collect();
    format!("{seconds}.{fraction}Z")
}

/// Milliseconds, or all that is known where two versions look the same else.
fn digits_to_tell_apart(versions: &[VersionInfo]) -> usize {
    let times = versions.iter().filter(|version| version.exists);
    let times: Vec<&str> = times.map(|version| version.modified.as_str()).collect();
    let looks_same = |pair: &[&str]| pair[0] != pair[1] && moment(pair[0], 3) == moment(pair[1], 3);
    match times.windows(2).any(looks_same) {
        true => 9,
        false => 3,
    }
}

fn all(work: &mut Work) -> anyhow::Result<Vec<SnapshotInfo>> {
    let value = work.request(&Request::SnapshotList {})?;
    serde_json::from_value(value).context("the answer cannot be read")
}

fn find(work: &mut Work, name: &str) -> anyhow::Result<SnapshotInfo> {
    let found = all(work)?.into_iter().find(|info| info.name == name);
    Ok(found.ok_or_else(|| unknown(name))?)
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
            Bytes(snapshot.unique_bytes).to_string(),
            Bytes(snapshot.shared_bytes).to_string(),
            Bytes(snapshot.metadata_bytes).to_string(),
            first_line(&snapshot.comment)
        );
    }
    text
}

/// A comment in a table, which has a line for each snapshot; `...` where it goes on.
fn first_line(comment: &str) -> String {
    let mut lines = comment.lines();
    let first = printable(lines.next().unwrap_or(""));
    match lines.any(|line| !line.trim().is_empty()) {
        true => format!("{first} ..."),
        false => first,
    }
}

/// All of a comment, below each other.
fn all_lines(comment: &str) -> String {
    let lines = comment
        .lines()
        .map(|line| format!("            {}", printable(line)));
    let lines: Vec<String> = lines.map(|line| line.trim_end().to_owned()).collect();
    lines.join("\n").trim_start().to_owned()
}

/// Other people's text: control characters must not reach the terminal.
fn printable(line: &str) -> String {
    let shown = line.chars().map(|c| match c {
        '\t' => " ".into(),
        c if c.is_control() => c.escape_default().to_string(),
        c => c.into(),
    });
    shown.collect()
}

fn details(snapshot: &SnapshotInfo) -> String {
    format!(
        "name        {}\ntaken       {}\nid          {}\nonly here   {} of files (freed by deleting it)\nshared      {} of files, with other snapshots\nmetadata    {}\ncomment     {}\n",
        snapshot.name,
        snapshot.time,
        snapshot.id,
        Bytes(snapshot.unique_bytes),
        Bytes(snapshot.shared_bytes),
        Bytes(snapshot.metadata_bytes),
        all_lines(&snapshot.comment)
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
    format!("{}: {} copied\n", image.display(), Bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(modified: &str, snapshot: &str) -> VersionInfo {
        VersionInfo {
            snapshots: vec![snapshot.into()],
            exists: true,
            modified: modified.into(),
            ..VersionInfo::default()
        }
    }

    #[test]
    fn versions_of_one_second_are_told_apart() {
        let mut all = vec![
            version("2026-11-21T19:27:40Z", "a"),
            version("2026-11-21T19:27:40.25Z", "b"),
            VersionInfo::default(),
        ];
        let text = versions(&all);
        for part in ["40.000Z ", "40.250Z ", "\nnot there  "] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        all.push(version("2026-11-21T19:27:40.2500001Z", "c"));
        all.remove(2);
        let text = versions(&all);
        assert!(text.contains("40.250000100Z "), "{text}");
    }

    #[test]
    fn a_comment_leaves_the_table_a_table() {
        let snapshot = SnapshotInfo {
            name: "a".into(),
            comment: "one\ttwo\u{1b}[2J\nthree\n".into(),
            ..SnapshotInfo::default()
        };
        let text = table(std::slice::from_ref(&snapshot));
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.ends_with("  one two\\u{1b}[2J ...\n"), "{text}");
        let text = details(&snapshot);
        assert!(text.ends_with("[2J\n            three\n"), "{text}");
        assert_eq!(first_line("one\n"), "one");
    }
}
