//! `kfsctl check`: a check of an image that nobody uses.

use crate::args::Target;
use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use kfs::check::{CheckOptions, CheckReport, Finding, Phase, Progress, Severity, Verdict, check};
use kfs_disk::FileDevice;
use serde_json::{Value, json};
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

/// Exit status of fsck(8): errors are left.
const EXIT_DAMAGED: u8 = 4;
/// Exit status of fsck(8): the check could not be done.
pub(crate) const EXIT_OPERATIONAL: u8 = 8;

/// Checks the image and prints what was found.
pub(crate) fn run(target: &Target, as_json: bool) -> anyhow::Result<ExitCode> {
    let Some(path) = &target.image else {
        anyhow::bail!(
            "a volume that a kfsd serves cannot be checked: stop the kfsd and give --image IMAGE"
        );
    };
    let device = FileDevice::open_read_only(path)?;
    let bar = bar();
    let mut show = |progress: Progress| show_progress(&bar, progress);
    let checked = check(Arc::new(device), &CheckOptions::default(), &mut show);
    bar.finish_and_clear();
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

/// A bar on a terminal, nothing elsewhere.
fn bar() -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:12} {wide_bar} {percent:>3} %  {eta:>4}");
    ProgressBar::new(0).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn show_progress(bar: &ProgressBar, progress: Progress) {
    let name = match progress.phase {
        Phase::Inodes => "inodes",
        Phase::Directories => "directories",
        Phase::Bitmaps => "bitmaps",
    };
    if bar.message() != name {
        bar.set_message(name);
        bar.reset_eta();
    }
    bar.set_length(progress.total);
    bar.set_position(progress.done);
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Clean => "clean",
        Verdict::NeedsRecovery => "needs-recovery",
        Verdict::Broken => "damaged",
    }
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
            "{}/{} inodes, {}/{} blocks of {}; {} files, {} directories, {} symbolic links, {} others; {} in more than one piece",
            totals.inodes_used,
            totals.inodes,
            totals.blocks_used,
            totals.blocks,
            totals.block_size,
            totals.files,
            totals.directories,
            totals.symlinks,
            totals.special,
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
        Verdict::Broken if report.errors == 1 => "damaged: 1 error".to_string(),
        Verdict::Broken => format!("damaged: {} errors", report.errors),
        Verdict::NeedsRecovery => {
            let mut due = Vec::new();
            if let Some(replay) = report.recovery.journal {
                due.push(format!(
                    "its journal ({} transactions) is replayed",
                    replay.transactions
                ));
            }
            if report.recovery.orphans > 0 {
                due.push(format!("{} orphans are finished", report.recovery.orphans));
            }
            let due = due.join(" and ");
            format!("no errors; needs recovery: {due} when it is opened next")
        }
    }
}

fn to_json(path: &Path, report: &CheckReport) -> Value {
    let totals = &report.totals;
    json!({
        "image": path,
        "verdict": verdict_name(report.verdict()),
        "is_complete": report.is_complete,
        "errors": report.errors,
        "warnings": report.warnings,
        "findings": report.findings.iter().map(finding_to_json).collect::<Vec<_>>(),
        "recovery": {
            "journal": report.recovery.journal.map(|replay| json!({
                "transactions": replay.transactions,
                "blocks": replay.blocks,
            })),
            "orphans": report.recovery.orphans,
        },
        "totals": {
            "block_size_bytes": totals.block_size,
            "inodes": totals.inodes,
            "inodes_used": totals.inodes_used,
            "blocks": totals.blocks,
            "blocks_used": totals.blocks_used,
            "files": totals.files,
            "directories": totals.directories,
            "symlinks": totals.symlinks,
            "special": totals.special,
            "fragmented": totals.fragmented,
        },
    })
}

fn finding_to_json(finding: &Finding) -> Value {
    json!({
        "kind": finding.kind.as_str(),
        "severity": match finding.severity {
            Severity::Warning => "warning",
            Severity::Error => "error",
        },
        "inode": finding.inode.map(|nr| nr.0),
        "group": finding.group.map(|nr| nr.0),
        "block": finding.block.map(|nr| nr.0),
        "text": finding.text,
    })
}
