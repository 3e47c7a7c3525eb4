//! `kfsctl check`: of an image that nobody uses, by kfsctl itself; of what a kfsd serves, by that one.

use crate::args::Target;
use crate::bar::Bar;
use crate::target::Executor;
use anyhow::Context;
use kfs::check::{self, CheckOptions, CheckReport, Severity, Verdict, check};
use kfs_disk::{Bytes, Count, FileDevice, OpenError};
use kfsctl::Request;
use kfsctl::report::{progress, to_json};
use serde_json::Value;
use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Exit status of fsck(8): errors are left.
const EXIT_DAMAGED: u8 = 4;
/// Exit status of fsck(8): the check could not be done.
pub(crate) const EXIT_OPERATIONAL: u8 = 8;

/// Checks a snapshot or the volume as it is, and prints what was found.
pub(crate) fn run(
    target: &Target,
    snapshot: Option<&str>,
    as_json: bool,
) -> anyhow::Result<ExitCode> {
    if snapshot.is_none()
        && target.socket.is_none()
        && let Some(path) = &target.image
    {
        match FileDevice::open_read_only(path) {
            Ok(device) => return run_idle(path, device, as_json),
            // A kfsd has it: that one is asked.
            Err(OpenError::InUse { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    run_served(target, snapshot, as_json)
}

/// Checks an image that nobody uses.
fn run_idle(path: &Path, device: FileDevice, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut bar = Bar::new(as_json);
    let mut show = |at: check::Progress| bar.tell(&progress(at));
    let checked = check(Arc::new(device), &CheckOptions::default(), &mut show);
    bar.end();
    let report = checked.with_context(|| path.display().to_string())?;
    let text = if as_json {
        format!("{}\n", to_json(path, &report))
    } else {
        to_text(path, &report)
    };
    crate::print(&text)?;
    Ok(match report.verdict() {
        Verdict::Clean | Verdict::NeedsRecovery => ExitCode::SUCCESS,
        Verdict::Broken => ExitCode::from(EXIT_DAMAGED),
    })
}

/// Has a volume or a snapshot of it checked by whoever has it open.
fn run_served(target: &Target, snapshot: Option<&str>, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut executor = Executor::find(target, true)?;
    let mut bar = Bar::new(as_json);
    bar.catch_signals()?;
    let request = Request::Check {
        snapshot: snapshot.map(str::to_owned),
    };
    let value = executor.request_watched(&request, &mut |progress| bar.tell(progress));
    bar.end();
    executor.finish()?;
    let value = value?;
    let text = if as_json {
        format!("{value}\n")
    } else {
        served_to_text(snapshot, &value)
    };
    crate::print(&text)?;
    Ok(match value["verdict"].as_str() {
        Some("damaged") | None => ExitCode::from(EXIT_DAMAGED),
        Some(_) => ExitCode::SUCCESS,
    })
}

fn served_to_text(snapshot: Option<&str>, value: &Value) -> String {
    let mut text = String::new();
    let findings = value["findings"].as_array();
    for finding in findings.into_iter().flatten() {
        let severity = match finding["severity"].as_str() {
            Some("warning") => "warning: ",
            _ => "",
        };
        let said = finding["text"].as_str().unwrap_or_default();
        let _ = writeln!(text, "{severity}{}", said.escape_debug());
    }
    let number = |part: &Value| part.as_u64().unwrap_or(0);
    let totals = &value["totals"];
    let _ = writeln!(
        text,
        "{}/{} inodes, {}/{} blocks of {}",
        number(&totals["inodes_used"]),
        number(&totals["inodes"]),
        number(&totals["blocks_used"]),
        number(&totals["blocks"]),
        Bytes(number(&totals["block_size_bytes"])),
    );
    let verdict = match (value["verdict"].as_str(), number(&value["errors"])) {
        (Some("clean"), _) => "clean".to_owned(),
        (Some("needs-recovery"), _) if snapshot.is_none() => {
            "no errors; some deleted files are in use still".into()
        }
        (Some("needs-recovery"), _) => "no errors; orphans are finished when it is restored".into(),
        (_, errors) => format!("damaged: {}", Count(errors, "error")),
    };
    let _ = match snapshot {
        Some(name) => writeln!(text, "snapshot '{}': {verdict}", name.escape_debug()),
        None => writeln!(text, "the volume: {verdict}"),
    };
    text
}

fn to_text(path: &Path, report: &CheckReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let severity = match finding.severity {
            Severity::Warning => "warning: ",
            Severity::Error => "",
        };
        let _ = writeln!(text, "{severity}{finding}");
    }
    if report.omitted() > 0 {
        let _ = writeln!(text, "and {} more", report.omitted());
    }
    let totals = &report.totals;
    if report.is_complete {
        let _ = writeln!(
            text,
            "{}/{} inodes, {}/{} blocks of {}; {}, {}, {}, {}; {} in more than one piece",
            totals.inodes_used,
            totals.inodes,
            totals.blocks_used,
            totals.blocks,
            Bytes(totals.block_size.into()),
            Count(totals.files, "file"),
            Count(totals.directories, "directory"),
            Count(totals.symlinks, "symbolic link"),
            Count(totals.special, "other"),
            totals.fragmented,
        );
    }
    let _ = writeln!(text, "{}: {}", path.display(), outcome(report));
    text
}

fn outcome(report: &CheckReport) -> String {
    match report.verdict() {
        Verdict::Clean => "clean".to_string(),
        Verdict::Broken if !report.is_complete => {
            "damaged; the rest could not be checked".to_string()
        }
        Verdict::Broken => format!("damaged: {}", Count(report.errors, "error")),
        Verdict::NeedsRecovery => {
            let mut due = Vec::new();
            if let Some(replay) = report.recovery.journal {
                let transactions = Count(replay.transactions.into(), "transaction");
                due.push(format!("its journal ({transactions}) is replayed"));
            }
            if report.recovery.orphans > 0 {
                let verb = if report.recovery.orphans == 1 {
                    "is"
                } else {
                    "are"
                };
                let orphans = Count(report.recovery.orphans, "orphan");
                due.push(format!("{orphans} {verb} finished"));
            }
            let due = due.join(" and ");
            format!("no errors; needs recovery: {due} when it is opened next")
        }
    }
}
