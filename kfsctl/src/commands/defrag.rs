//! `kfsctl defrag`: looks at the files, and has those moved that gain the most, second by second.

use crate::args::Target;
use crate::bar::Bar;
use crate::target::Executor;
use anyhow::Context;
use clap::Args;
use indicatif::HumanCount;
use kfs_disk::{Bytes, Count};
use kfsctl::Request;
use kfsctl::defrag::{
    DefragFile, DefragInfo, LayoutInfo, SkippedFiles, SurveyFile, SurveyInfo, SurveyLevel,
};
use serde_json::{Value, json};
use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt::Write;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::{Duration, Instant};

/// Bytes a second that a volume in use is burdened with, unless told otherwise.
const RATE_IN_USE: u64 = 64 << 20;

/// Bytes that one request is to move.
const REQUEST_BYTES: u64 = 128 << 20;

/// Files that one request names.
const REQUEST_FILES: usize = 64;

/// Files that a dry run lists.
const LISTED: usize = 20;

/// What `kfsctl defrag` is told.
#[derive(Debug, Args)]
pub(crate) struct DefragArgs {
    /// Files and directories in the volume, from its root; all of it where none is given
    #[arg(value_name = "PATH")]
    paths: Vec<String>,

    /// Move blocks that snapshots see, too; the snapshots keep the old ones, so that space is used up
    #[arg(long)]
    all: bool,

    /// Bytes to move in a second at the most, such as 20M, or "unlimited" [default: 64M for a volume in
    /// use, unlimited for an image that nobody uses]
    #[arg(long, value_name = "BYTES")]
    rate: Option<Rate>,

    /// Only tell what would be done
    #[arg(long)]
    dry_run: bool,
}

/// Bytes a second; `None` for as many as there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rate(Option<u64>);

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unlimited" {
            return Ok(Self(None));
        }
        let wrong = || format!("'{text}' is no rate: write bytes such as 20M, or unlimited");
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" => 0,
            "K" => 10,
            "M" => 20,
            "G" => 30,
            _ => return Err(wrong()),
        };
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let bytes = number.checked_mul(1 << shift).ok_or_else(wrong)?;
        if bytes < 1 << 16 {
            return Err("a rate is 64K at least".into());
        }
        Ok(Self(Some(bytes)))
    }
}

/// What was found and done.
#[derive(Default)]
struct Work {
    files: u64,
    before: LayoutInfo,
    after: LayoutInfo,
    kept_bytes: u64,
    skipped: SkippedFiles,
    candidates: Vec<SurveyFile>,
    moved_files: u64,
    moved_bytes: u64,
    no_room: u64,
    changed: u64,
}

/// Defragments, and tells what came of it.
pub(crate) fn run(target: &Target, args: &DefragArgs, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut executor = Executor::find(target, args.dry_run)?;
    let mut bar = Bar::of_steps(as_json)?;
    let worked = work(&mut executor, args, &mut bar);
    bar.end();
    let finished = executor.finish();
    let work = worked?;
    finished?;
    let text = if as_json {
        format!("{}\n", to_json(&work, args.dry_run))
    } else if args.dry_run {
        plan(&work)
    } else {
        report(&work)
    };
    crate::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn work(executor: &mut Executor, args: &DefragArgs, bar: &mut Bar) -> anyhow::Result<Work> {
    let mut work = Work::default();
    let whole = [None];
    let paths = args.paths.iter().map(|path| Some(path.as_str()));
    let paths: Vec<Option<&str>> = if args.paths.is_empty() {
        whole.to_vec()
    } else {
        paths.collect()
    };
    survey(executor, &paths, args.all, bar, &mut work)?;
    work.after = work.before;
    // The largest gain for each byte comes first.
    work.candidates.sort_by(|a, b| {
        let product =
            |a: &LayoutInfo, b: &LayoutInfo| u128::from(a.gain) * u128::from(b.movable_bytes);
        product(&b.layout, &a.layout)
            .cmp(&product(&a.layout, &b.layout))
            .then(a.inode.cmp(&b.inode))
    });
    if !args.dry_run {
        let rate = match args.rate {
            Some(Rate(rate)) => rate,
            None => matches!(executor, Executor::Daemon(_)).then_some(RATE_IN_USE),
        };
        move_all(executor, args.all, rate, bar, &mut work)?;
    }
    Ok(work)
}

fn answer<T: serde::de::DeserializeOwned>(value: Value) -> anyhow::Result<T> {
    serde_json::from_value(value).context("the answer cannot be read")
}

/// Looks at all files.
fn survey(
    executor: &mut Executor,
    paths: &[Option<&str>],
    all: bool,
    bar: &mut Bar,
    work: &mut Work,
) -> anyhow::Result<()> {
    let mut seen = HashSet::new();
    for path in paths {
        let mut cursor: Option<Vec<SurveyLevel>> = None;
        loop {
            let value = executor.request(&Request::DefragSurvey {
                path: path.map(str::to_owned),
                cursor: cursor.take(),
                all,
            })?;
            let part: SurveyInfo = answer(value)?;
            work.files += part.files;
            work.before += part.layout;
            work.kept_bytes += part.kept_bytes;
            work.skipped += part.skipped;
            for file in part.candidates {
                if !seen.insert((file.inode, file.generation)) {
                    continue;
                }
                if file.has_links {
                    work.files += 1;
                    work.before += file.layout;
                }
                if file.layout.gain > 0 {
                    work.candidates.push(file);
                }
            }
            bar.step("looking at files", work.files, 0)?;
            cursor = part.next;
            if cursor.is_none() {
                break;
            }
        }
    }
    Ok(())
}

/// Has the candidates moved, in their order.
fn move_all(
    executor: &mut Executor,
    all: bool,
    rate: Option<u64>,
    bar: &mut Bar,
    work: &mut Work,
) -> anyhow::Result<()> {
    let total = work.candidates.iter().map(|file| file.layout.movable_bytes);
    let total = total.sum();
    let known: HashMap<u32, LayoutInfo> = work
        .candidates
        .iter()
        .map(|file| (file.inode, file.layout))
        .collect();
    let mut waiting: VecDeque<DefragFile> = work
        .candidates
        .iter()
        .map(|file| DefragFile {
            inode: file.inode,
            generation: file.generation,
            from: 0,
        })
        .collect();
    let mut moved = HashSet::new();
    let began = Instant::now();
    while !waiting.is_empty() {
        let files: Vec<DefragFile> = waiting.iter().take(REQUEST_FILES).copied().collect();
        let value = executor.request(&Request::Defrag {
            files,
            all,
            bytes: Some(rate.map_or(REQUEST_BYTES, |rate| rate.min(REQUEST_BYTES))),
        })?;
        let info: DefragInfo = answer(value)?;
        anyhow::ensure!(!info.files.is_empty(), "kfsd does not get on");
        for done in &info.files {
            let Some(file) = waiting.pop_front() else {
                break;
            };
            anyhow::ensure!(file.inode == done.inode, "the answer is about another file");
            work.moved_bytes += done.moved_bytes;
            work.no_room += done.no_room;
            work.changed += done.changed;
            if done.moved_bytes > 0 {
                moved.insert(done.inode);
            }
            match done.next {
                Some(from) if from > file.from => {
                    waiting.push_front(DefragFile { from, ..file });
                }
                _ => {
                    let before = known.get(&done.inode).copied().unwrap_or_default();
                    replace(&mut work.after, before, done.layout);
                }
            }
        }
        bar.step("moving", work.moved_bytes, total)
            .with_context(|| {
                let moved = Bytes(work.moved_bytes);
                format!("{moved} were moved, and the same command goes on")
            })?;
        if let Some(rate) = rate {
            hold_back(work.moved_bytes, rate, began.elapsed());
        }
    }
    work.moved_files = moved.len() as u64;
    Ok(())
}

/// Waits until no more was moved than the rate allows.
#[expect(clippy::cast_precision_loss, reason = "a time to wait")]
fn hold_back(moved: u64, rate: u64, elapsed: Duration) {
    let due = Duration::try_from_secs_f64(moved as f64 / rate as f64).unwrap_or_default();
    std::thread::sleep(due.saturating_sub(elapsed));
}

/// Puts one file's figures in the place of its old ones.
fn replace(sum: &mut LayoutInfo, old: LayoutInfo, new: LayoutInfo) {
    let put = |sum: &mut u64, old: u64, new: u64| *sum = sum.saturating_sub(old) + new;
    put(&mut sum.extents, old.extents, new.extents);
    put(&mut sum.fragments, old.fragments, new.fragments);
    put(&mut sum.bytes, old.bytes, new.bytes);
    put(&mut sum.aligned_bytes, old.aligned_bytes, new.aligned_bytes);
    put(&mut sum.movable_bytes, old.movable_bytes, new.movable_bytes);
    put(&mut sum.gain, old.gain, new.gain);
}

fn to_json(work: &Work, is_dry: bool) -> Value {
    let mut object = json!({
        "dry_run": is_dry,
        "files": work.files,
        "before": work.before,
        "kept_bytes": work.kept_bytes,
        "skipped": work.skipped,
    });
    if is_dry {
        object["candidates"] = json!(work.candidates);
    } else {
        object["after"] = json!(work.after);
        object["moved_files"] = json!(work.moved_files);
        object["moved_bytes"] = json!(work.moved_bytes);
        object["no_room"] = json!(work.no_room);
        object["changed"] = json!(work.changed);
    }
    object
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
pub(super) fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".into();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

/// What is left alone, and why.
fn left_alone(work: &Work) -> String {
    let mut text = String::new();
    if work.kept_bytes > 0 {
        let kept = Bytes(work.kept_bytes);
        let _ = writeln!(
            text,
            "{kept} could lie better and stay, for snapshots see them (--all moves them, and takes \
             as much space)"
        );
    }
    let skipped = work.skipped;
    for (count, why) in [
        (skipped.block_mapped, "with block maps of ext2 or ext3"),
        (skipped.immutable, "immutable"),
        (skipped.damaged, "damaged: a check is due"),
        (skipped.too_deep, "below paths that are too long"),
    ] {
        if count > 0 {
            let _ = writeln!(text, "left out: {} {why}", Count(count, "file"));
        }
    }
    text
}

fn plan(work: &Work) -> String {
    let layout = work.before;
    let mut text = format!(
        "{}, {}: {}, {}, {} in aligned 2 MiB\n{} could lie better; {} would be moved\n",
        Count(work.files, "file"),
        Bytes(layout.bytes),
        Count(layout.fragments, "fragment"),
        Count(layout.extents, "extent"),
        percent(layout.aligned_bytes, layout.bytes),
        Count(work.candidates.len() as u64, "file"),
        Bytes(
            work.candidates
                .iter()
                .map(|file| file.layout.movable_bytes)
                .sum()
        ),
    );
    if !work.candidates.is_empty() {
        let _ = writeln!(text, "{:>10} {:>12}  PATH", "FRAGMENTS", "TO MOVE");
    }
    for file in work.candidates.iter().take(LISTED) {
        let _ = writeln!(
            text,
            "{:>10} {:>12}  {}",
            HumanCount(file.layout.fragments).to_string(),
            Bytes(file.layout.movable_bytes).to_string(),
            file.path.escape_debug()
        );
    }
    let more = work.candidates.len().saturating_sub(LISTED);
    if more > 0 {
        let _ = writeln!(text, "and {more} more");
    }
    text + &left_alone(work)
}

fn report(work: &Work) -> String {
    let (before, after) = (work.before, work.after);
    let mut text = format!("{:<24} {:>14} {:>14}\n", "", "BEFORE", "AFTER");
    for (what, before, after) in [
        (
            "fragments",
            HumanCount(before.fragments).to_string(),
            HumanCount(after.fragments).to_string(),
        ),
        (
            "extents",
            HumanCount(before.extents).to_string(),
            HumanCount(after.extents).to_string(),
        ),
        (
            "data in aligned 2 MiB",
            percent(before.aligned_bytes, before.bytes),
            percent(after.aligned_bytes, after.bytes),
        ),
    ] {
        let _ = writeln!(text, "{what:<24} {before:>14} {after:>14}");
    }
    let _ = writeln!(
        text,
        "moved {} of {}; looked at {} with {}",
        Bytes(work.moved_bytes),
        Count(work.moved_files, "file"),
        Count(work.files, "file"),
        Bytes(before.bytes),
    );
    for (count, why) in [
        (work.no_room, "no better place is free"),
        (work.changed, "changed meanwhile"),
    ] {
        if count > 0 {
            let _ = writeln!(text, "left in place: {}, {why}", Count(count, "part"));
        }
    }
    text + &left_alone(work)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        assert_eq!("20M".parse(), Ok(Rate(Some(20 << 20))));
        assert_eq!("1g".parse(), Ok(Rate(Some(1 << 30))));
        assert_eq!("65536".parse(), Ok(Rate(Some(65_536))));
        assert_eq!("unlimited".parse(), Ok(Rate(None)));
        for wrong in ["", "M", "20X", "0", "1K", "-5M", "99999999999G", "5MM"] {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
    }
}
