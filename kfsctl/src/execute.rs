//! Requests carried out on an open volume: by kfsd on the one it serves, by kfsctl on an idle image.

use crate::execute_layout as layout;
use crate::progress::{Watch, stage};
use crate::protocol::{ErrorCode, Request, RequestError};
use crate::report;
use crate::restored::Wanted;
use crate::snapshot::{DiffEntry, RestoreInfo, SnapshotInfo, VersionInfo};
use kfs::{ChangeKind, Error, ExportError, FileVersion, Filesystem, SnapshotRecord, SnapshotUsage};
use kfs_disk::Count;
use serde_json::{Value, json};
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

/// Bytes of paths that one answer lists: an answer is one line of bounded length.
const DIFF_BYTES_MAX: usize = 256 << 10;

/// Steps of one deletion among others.
const DELETION_STEPS: u64 = 1000;

/// Carries out whatever is about the volume alone. `watch` is told how far it is.
///
/// # Errors
/// What went wrong, for people and programs; `NotSupported` for requests to a daemon; `Cancelled`.
pub fn execute(
    fs: &Arc<Filesystem>,
    request: &Request,
    watch: &mut Watch<'_>,
) -> Result<Value, RequestError> {
    match request {
        Request::SnapshotCreate { name, comment } => create(fs, name.as_deref(), comment),
        Request::SnapshotList {} => Ok(json!(list(fs)?)),
        Request::SnapshotDelete { names } => delete(fs, names, watch),
        Request::SnapshotDiff { from, to } => diff(fs, from, to.as_deref()),
        Request::SnapshotExport { name, path } => export(fs, name, path, watch),
        Request::SnapshotClone { name, path } => clone(fs, name, path, watch),
        Request::FileLog { path } => log(fs, path),
        Request::Restore {
            snapshot,
            path: Some(path),
            to,
            ..
        } => restore(fs, snapshot, path, to.as_deref(), watch),
        Request::DefragSurvey { path, cursor, all } => {
            layout::survey(fs, path.as_deref(), cursor.as_deref(), *all)
        }
        Request::Defrag { files, all, bytes } => layout::defrag(fs, files, *all, *bytes),
        Request::Fragmap { path, cells, from } => {
            layout::fragmap(fs, path.as_deref(), *cells, *from)
        }
        Request::Sync {} => {
            fs.sync().map_err(failed)?;
            Ok(json!({}))
        }
        Request::Trim {} => {
            let bytes = fs.trim(&mut stage(watch, "trimming")).map_err(failed)?;
            Ok(json!({ "bytes": bytes }))
        }
        Request::DropCaches {} => {
            fs.drop_caches();
            Ok(json!({}))
        }
        Request::Freeze { timeout_seconds } => crate::freeze::freeze(fs, *timeout_seconds),
        Request::Thaw {} => crate::freeze::thaw(fs),
        Request::Resize {
            size_bytes,
            is_added,
            cursor,
        } => crate::growth::grow(fs, *size_bytes, *is_added, *cursor),
        Request::Check { snapshot: None } => report::check_volume(fs, watch, |taken| {
            delete_one(fs, &taken.name, &mut kfs::unwatched)
        }),
        Request::Check {
            snapshot: Some(snapshot),
        } => report::check_snapshot(fs, snapshot, watch),
        Request::Status {} | Request::SetLogLevel { .. } | Request::Restore { path: None, .. } => {
            Err(RequestError::new(
                ErrorCode::NotSupported,
                "the volume alone cannot answer that",
                "",
            ))
        }
    }
}

pub(crate) fn create(
    fs: &Arc<Filesystem>,
    name: Option<&str>,
    comment: &str,
) -> Result<Value, RequestError> {
    let name = match name {
        Some(name) => name.to_owned(),
        None => free_name(fs),
    };
    let record = fs.create_snapshot(&name, comment).map_err(|error| {
        let (code, hint) = match &error {
            Error::Exists => (ErrorCode::InvalidArgument, "choose another name"),
            Error::Invalid => (
                ErrorCode::InvalidArgument,
                "a name is not empty, not . or .., and has no slashes and no control characters",
            ),
            Error::StorePlaceTaken => (
                ErrorCode::Failed,
                "snapshots need that name for themselves: rename it",
            ),
            Error::NameTooLong => (
                ErrorCode::InvalidArgument,
                "a name has at most 255 bytes, a comment 1024",
            ),
            _ => (ErrorCode::Failed, ""),
        };
        RequestError::new(code, format!("snapshot '{name}': {}", chain(&error)), hint)
    })?;
    Ok(json!(info(&record, SnapshotUsage::default())))
}

/// A name made of the time, that no snapshot has.
pub(crate) fn free_name(fs: &Arc<Filesystem>) -> String {
    let now = jiff::Timestamp::now()
        .strftime("%Y-%m-%d-%H%M%S")
        .to_string();
    let taken = fs.snapshots();
    let is_free = |name: &String| taken.iter().all(|snapshot| snapshot.name != *name);
    let numbered = (2..).map(|number: u32| format!("{now}-{number}"));
    let mut names = std::iter::once(now.clone()).chain(numbered);
    names.find(is_free).unwrap_or(now)
}

/// All snapshots, oldest first.
///
/// # Errors
/// `Failed` when the volume cannot be read.
pub fn list(fs: &Arc<Filesystem>) -> Result<Vec<SnapshotInfo>, RequestError> {
    let usage = fs.snapshot_usage().map_err(failed)?;
    let records = fs.snapshots();
    let both = records.iter().zip(usage);
    Ok(both.map(|(record, usage)| info(record, usage)).collect())
}

fn info(record: &SnapshotRecord, usage: SnapshotUsage) -> SnapshotInfo {
    let time = jiff::Timestamp::from_second(record.time.seconds).unwrap_or_default();
    SnapshotInfo {
        id: record.id,
        name: record.name.clone(),
        comment: record.comment.clone(),
        time_seconds: record.time.seconds,
        time: time.to_string(),
        unique_bytes: usage.unique_bytes,
        shared_bytes: usage.shared_bytes,
        metadata_bytes: usage.metadata_bytes,
    }
}

fn delete(
    fs: &Arc<Filesystem>,
    names: &[String],
    watch: &mut Watch<'_>,
) -> Result<Value, RequestError> {
    delete_each(fs, names, watch, &mut |record, watch| {
        delete_one(fs, &record.name, watch)
    })
}

/// Deletes snapshots by `delete`, one after the other; all or none, as far as can be seen. `watch` may end that
/// between two.
///
/// # Errors
/// As `delete`; `InvalidArgument` for unknown names; `Cancelled`.
pub fn delete_each(
    fs: &Arc<Filesystem>,
    names: &[String],
    watch: &mut Watch<'_>,
    delete: &mut dyn FnMut(&SnapshotRecord, &mut kfs::Watch<'_>) -> Result<(), RequestError>,
) -> Result<Value, RequestError> {
    let known = fs.snapshots();
    let is_known = |name: &&String| known.iter().any(|snapshot| snapshot.name == **name);
    if let Some(name) = names.iter().find(|name| !is_known(name)) {
        return Err(unknown(name));
    }
    let due = known
        .iter()
        .filter(|snapshot| names.contains(&snapshot.name));
    let count = due.clone().count() as u64;
    let total = count * DELETION_STEPS;
    let mut tell = stage(watch, "deleting");
    for (snapshot, before) in due.zip((0..).step_by(DELETION_STEPS as usize)) {
        if tell(before, total).is_break() {
            let deleted = before / DELETION_STEPS;
            let text = format!("stopped: {deleted} of {} deleted", Count(count, "snapshot"));
            return Err(RequestError::new(ErrorCode::Cancelled, text, ""));
        }
        delete(snapshot, &mut |done, of| {
            tell(before + done * DELETION_STEPS / of.max(1), total)
        })?;
    }
    Ok(json!({ "deleted": names }))
}

/// Deletes a snapshot.
///
/// # Errors
/// `Busy` while somebody looks into it; `Failed`.
pub fn delete_one(
    fs: &Arc<Filesystem>,
    name: &str,
    watch: &mut kfs::Watch<'_>,
) -> Result<(), RequestError> {
    fs.delete_snapshot_watched(name, watch).map_err(|error| {
        let (code, hint) = match error {
            Error::Busy => (
                ErrorCode::Busy,
                "somebody looks into it: try again when they have ended",
            ),
            _ => (ErrorCode::Failed, ""),
        };
        let text = format!("snapshot '{name}': {}", chain(&error));
        RequestError::new(code, text, hint)
    })?;
    Ok(())
}

fn open(fs: &Arc<Filesystem>, name: &str) -> Result<Arc<Filesystem>, RequestError> {
    fs.open_snapshot(name).map_err(|error| match error {
        Error::NotFound => unknown(name),
        error => failed(error),
    })
}

fn diff(fs: &Arc<Filesystem>, from: &str, to: Option<&str>) -> Result<Value, RequestError> {
    let earlier = open(fs, from)?;
    let later = to.map_or_else(|| Ok(Arc::clone(fs)), |name| open(fs, name))?;
    let changes = later.changes_since(&earlier).map_err(failed)?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut bytes = 0;
    let entries: Vec<DiffEntry> = changes
        .iter()
        .take_while(|change| {
            bytes += change.path.len() + 64;
            bytes <= DIFF_BYTES_MAX
        })
        .map(|change| {
            let (kind, from) = match &change.kind {
                ChangeKind::Added => ("added", None),
                ChangeKind::Removed => ("removed", None),
                ChangeKind::Changed => ("changed", None),
                ChangeKind::Renamed { from } => ("renamed", Some(text(from))),
            };
            DiffEntry {
                kind: kind.into(),
                path: text(&change.path),
                from,
            }
        })
        .collect();
    Ok(json!({ "changes": entries, "total": changes.len() }))
}

fn export(
    fs: &Arc<Filesystem>,
    name: &str,
    path: &Path,
    watch: &mut Watch<'_>,
) -> Result<Value, RequestError> {
    let snapshot = open(fs, name)?;
    let copied = snapshot.export(path, &mut stage(watch, "copying"));
    let bytes = copied.map_err(|error| not_made(path, &error))?;
    Ok(json!({ "bytes": bytes }))
}

/// A new image was not made, or removed again.
fn not_made(path: &Path, error: &ExportError) -> RequestError {
    if let ExportError::Volume(Error::Interrupted) = error {
        let text = format!("stopped: {} is removed again", path.display());
        return RequestError::new(ErrorCode::Cancelled, text, "");
    }
    let (text, hint) = match error {
        ExportError::Target(source) if source.kind() == ErrorKind::AlreadyExists => (
            format!("{} exists already", path.display()),
            "remove it or choose another name",
        ),
        ExportError::Target(source) if source.kind() == ErrorKind::NotFound => {
            let directory = path.parent().unwrap_or(Path::new("/"));
            let directory = directory.display();
            let text = format!("{}: there is no directory {directory}", path.display());
            (text, "make it first")
        }
        error => (format!("{}: {}", path.display(), chain(error)), ""),
    };
    RequestError::new(ErrorCode::Failed, text, hint)
}

/// A clone that shares blocks, or a copy where the host cannot do that.
fn clone(
    fs: &Arc<Filesystem>,
    name: &str,
    path: &Path,
    watch: &mut Watch<'_>,
) -> Result<Value, RequestError> {
    let cloned = fs.clone_snapshot(name, path, &mut stage(watch, "trimming"));
    match cloned {
        Ok(true) => Ok(json!({ "shared": true, "bytes": 0 })),
        Ok(false) => {
            let copied = export(fs, name, path, watch)?;
            Ok(json!({ "shared": false, "bytes": copied["bytes"] }))
        }
        Err(ExportError::Volume(Error::NotFound)) => Err(unknown(name)),
        Err(error) => Err(not_made(path, &error)),
    }
}

fn log(fs: &Arc<Filesystem>, path: &str) -> Result<Value, RequestError> {
    let versions = fs.versions(path.as_bytes()).map_err(|error| match error {
        Error::NotFound => RequestError::new(
            ErrorCode::InvalidArgument,
            format!("no snapshot has {path}, nor has the volume"),
            "a path begins at the root of the volume",
        ),
        error => failed(error),
    })?;
    let info = |version: FileVersion| {
        let attr = version.attr.as_ref();
        let modified = attr.map(|attr| {
            let time = i32::try_from(attr.mtime.nanoseconds).unwrap_or(0);
            jiff::Timestamp::new(attr.mtime.seconds, time).unwrap_or_default()
        });
        VersionInfo {
            snapshots: version.snapshots,
            current: version.is_current,
            exists: attr.is_some(),
            size_bytes: attr.map_or(0, |attr| attr.size_bytes),
            modified: modified.map_or_else(String::new, |time| time.to_string()),
            inode: attr.map_or(0, |attr| attr.inode.0),
        }
    };
    let versions: Vec<VersionInfo> = versions.into_iter().map(info).collect();
    Ok(json!(versions))
}

fn restore(
    fs: &Arc<Filesystem>,
    snapshot: &str,
    path: &str,
    to: Option<&str>,
    watch: &mut Watch<'_>,
) -> Result<Value, RequestError> {
    let view = open(fs, snapshot)?;
    let target = to.unwrap_or(path);
    let mut tell = stage(watch, "restoring");
    let restored = fs
        .restore_path(&view, path.as_bytes(), target.as_bytes(), &mut tell)
        .map_err(|error| {
            let wanted = Wanted {
                snapshot,
                view: &view,
                fs,
                path,
                target,
            };
            wanted.explain(&error)
        })?;
    fs.sync().map_err(failed)?;
    Ok(json!(RestoreInfo {
        inodes: restored.inodes,
        made: restored.made,
        bytes: restored.bytes,
    }))
}

/// Begins to set the whole volume back, and returns the name of the snapshot that keeps the state before. The
/// volume is to be closed then, and opened again.
///
/// # Errors
/// Nothing has changed.
pub fn begin_restore(fs: &Arc<Filesystem>, snapshot: &str) -> Result<String, RequestError> {
    let known = fs.snapshots();
    let is_known = |name: &str| known.iter().any(|snapshot| snapshot.name == name);
    if !is_known(snapshot) {
        return Err(unknown(snapshot));
    }
    let mut names = (1u32..).map(|number| format!("before-restore-{number}"));
    let undo = names
        .find(|name| !is_known(name))
        .expect("there are more numbers than snapshots");
    fs.begin_restore(snapshot, &undo).map_err(|error| {
        let text = format!("setting the volume back to '{snapshot}': {}", chain(&error));
        RequestError::new(ErrorCode::Failed, text, "")
    })?;
    Ok(undo)
}

/// There is no such snapshot.
#[must_use]
pub fn unknown(name: &str) -> RequestError {
    RequestError::new(
        ErrorCode::InvalidArgument,
        format!("there is no snapshot '{name}'"),
        "`kfsctl snapshot list` shows all",
    )
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(crate) fn failed(error: Error) -> RequestError {
    let code = match error {
        Error::Interrupted => ErrorCode::Cancelled,
        _ => ErrorCode::Failed,
    };
    RequestError::new(code, chain(&error), "")
}

/// An error with all its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
