//! Reports of checks as JSON, and the check of a snapshot or of a volume in use.

use crate::execute::{create, failed, free_name, unknown};
use crate::progress::{Progress, Watch};
use crate::protocol::RequestError;
use kfs::check::{self, CheckOptions, CheckReport, Finding, Phase, Severity, Verdict, check};
use kfs::snapshot::SnapshotDevice;
use kfs::{Error, Filesystem, SnapshotRecord};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

/// Checks the volume as a snapshot sees it. While that lasts the snapshot cannot be deleted.
pub(crate) fn check_snapshot(
    fs: &Filesystem,
    name: &str,
    watch: &mut Watch<'_>,
) -> Result<Value, RequestError> {
    let device =
        SnapshotDevice::open(&fs.volume().snapshots, name).map_err(|error| match error {
            Error::NotFound => unknown(name),
            error => failed(error),
        })?;
    let options = CheckOptions {
        is_snapshot: true,
        ..CheckOptions::default()
    };
    let mut tell = |at: check::Progress| watch(&progress(at));
    let report = check(Arc::new(device), &options, &mut tell).map_err(failed)?;
    let mut value = to_json(Path::new(""), &report);
    if let Some(object) = value.as_object_mut() {
        object.remove("image");
        object.insert("snapshot".into(), name.into());
    }
    Ok(value)
}

/// Checks a volume that is in use, as a snapshot of it that is taken for that and then deleted by `delete`.
///
/// # Errors
/// What taking it and checking report.
pub fn check_volume(
    fs: &Arc<Filesystem>,
    watch: &mut Watch<'_>,
    delete: impl FnOnce(&SnapshotRecord) -> Result<(), RequestError>,
) -> Result<Value, RequestError> {
    let name = format!("check-{}", free_name(fs));
    create(fs, Some(&name), "of a check; it is deleted when that ends")?;
    let checked = check_snapshot(fs, &name, watch);
    let taken = fs.snapshots().into_iter().find(|one| one.name == name);
    // What was found is worth more than that it is gone.
    if let Some(Err(error)) = taken.as_ref().map(delete) {
        log::warn!("{}; it may be deleted by hand", error.message);
    }
    let mut value = checked?;
    if let Some(object) = value.as_object_mut() {
        object.remove("snapshot");
    }
    Ok(value)
}

/// How far a check is.
#[must_use]
pub fn progress(at: check::Progress) -> Progress {
    let stage = match at.phase {
        Phase::Inodes => "inodes",
        Phase::Directories => "directories",
        Phase::Bitmaps => "bitmaps",
    };
    Progress {
        stage: stage.into(),
        done: at.done,
        total: at.total,
    }
}

fn verdict_name(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Clean => "clean",
        Verdict::NeedsRecovery => "needs-recovery",
        Verdict::Broken => "damaged",
    }
}

/// A report as `kfsctl check --json` prints it.
#[must_use]
pub fn to_json(path: &Path, report: &CheckReport) -> Value {
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
