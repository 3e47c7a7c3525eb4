//! The status as people read it.

use indicatif::{HumanCount, HumanDuration};
use kfs_disk::{Bytes, Count};
use kfsctl::Status;
use kfsctl::status::{
    Cache, Features, Journal, OperationStatus, SessionStatus, Source, TransportKind, VolumeState,
    VolumeStatus,
};
use std::fmt::{Display, Write};
use std::path::Path;
use std::time::Duration;

/// Operations that are listed one by one.
const MAX_OPERATIONS: usize = 12;

/// The whole status, ending in a newline.
pub(crate) fn status(status: &Status) -> String {
    let mut page = Page::default();
    volume(&mut page, &status.volume);
    if let Some(daemon) = &status.daemon {
        let uptime = Duration::try_from_secs_f64(daemon.uptime_seconds).unwrap_or_default();
        let text = format!(
            "kfsd {}, pid {}, up {}",
            daemon.version,
            daemon.pid,
            HumanDuration(uptime)
        );
        page.line("daemon", text);
        sessions(&mut page, &status.sessions);
        operations(&mut page, &status.operations);
    } else {
        page.line("daemon", "none: the image is not in use");
    }
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

impl Page {
    fn line(&mut self, label: &str, value: impl Display) {
        writeln!(self.text, "{label:<11} {value}").expect("a String takes all that is written");
    }
}

fn volume(page: &mut Page, volume: &VolumeStatus) {
    let (label, path) = match &volume.source {
        Source::Image { path } => ("image", path),
        Source::SharedDir { path } => ("shared dir", path),
    };
    let mut text = printable(path);
    if volume.read_only {
        text.push_str(" (read-only");
        if let Some(reason) = &volume.read_only_reason {
            text.push_str(&format!(": {}", safe(reason)));
        }
        text.push(')');
    }
    page.line(label, text);
    if let Some(name) = &volume.snapshot {
        let text = format!("'{}' is served, in place of the volume", safe(name));
        page.line("snapshot", text);
    }
    if let Some(state) = volume.state {
        let text = match state {
            VolumeState::Clean => "clean",
            VolumeState::InUse => "in use",
            VolumeState::NeedsRecovery => "its journal is to be replayed",
            VolumeState::NotClean => "not closed in order; e2fsck is due",
            VolumeState::HasErrors => "has errors; e2fsck is due",
            VolumeState::Unknown => "unknown",
        };
        match volume.errors_found {
            Some(count) if count > 0 => page.line("state", format!("{text} ({count} found)")),
            _ => page.line("state", text),
        }
    }
    if let Some(name) = volume.label.as_deref().filter(|name| !name.is_empty()) {
        page.line("label", safe(name));
    }
    if let Some(uuid) = &volume.uuid {
        page.line("uuid", safe(uuid));
    }
    room(page, volume);
    if let Some(count) = volume.inodes_in_memory {
        page.line("in memory", Count(count, "inode"));
    }
    if let Some(features) = &volume.features {
        page.line("features", feature_names(features));
    }
    if let Some(journal) = &volume.journal {
        page.line("journal", journal_text(journal));
    }
    if let Some(seconds) = volume.frozen_for_seconds {
        let seconds = Count(seconds.round() as u64, "second");
        page.line("frozen", format!("for {seconds} more"));
    }
    if let Some(snapshots) = volume.snapshots.filter(|all| all.count > 0) {
        let bytes = Bytes(snapshots.pinned_bytes);
        page.line(
            "snapshots",
            match snapshots.count {
                1 => format!("1, which keeps {bytes}"),
                count => format!("{count}, which keep {bytes}"),
            },
        );
    }
    for cache in &volume.caches {
        page.line("cache", cache_text(cache));
    }
    if let Some(device) = &volume.device {
        let text = format!(
            "{} ({}), {} ({}), {}, {}, {}, {}",
            Count(device.reads, "read"),
            Bytes(device.read_bytes),
            Count(device.writes, "write"),
            Bytes(device.written_bytes),
            Count(device.flushes, "flush"),
            Count(device.discards, "discard"),
            Count(device.zeroings, "zeroing"),
            Count(device.errors, "error"),
        );
        page.line("device", text);
    }
}

fn journal_text(journal: &Journal) -> String {
    let mut text = Bytes(journal.size_bytes).to_string();
    if let Some(used) = journal.used_bytes {
        text.push_str(&format!(", {} used", percent(used, journal.size_bytes)));
    }
    if let Some(tid) = journal.committed_tid {
        text.push_str(&format!(", transaction {tid} committed"));
    }
    if let Some(tid) = journal.running_tid {
        text.push_str(&format!(", {tid} running"));
    }
    if let Some(blocks) = journal.running_blocks {
        text.push_str(&format!(" with {}", Count(blocks, "block")));
    }
    if let Some(blocks) = journal.checkpoint_blocks {
        text.push_str(&format!(", {} to checkpoint", Count(blocks, "block")));
    }
    if let Some(commits) = journal.commits {
        text.push_str(&format!(", {}", Count(commits, "commit")));
    }
    if journal.needs_recovery {
        text.push_str(", to be replayed");
    }
    text
}

fn room(page: &mut Page, volume: &VolumeStatus) {
    if let Some(space) = &volume.space {
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(space.block_size_bytes));
        let used = space.total_blocks.saturating_sub(space.free_blocks);
        let text = format!(
            "{} of {} used ({}), {} available; blocks of {}",
            bytes(used),
            bytes(space.total_blocks),
            percent(used, space.total_blocks),
            bytes(space.available_blocks),
            Bytes(space.block_size_bytes),
        );
        page.line("space", text);
    }
    if let Some(inodes) = &volume.inodes {
        let used = inodes.total.saturating_sub(inodes.free);
        let text = format!(
            "{} of {} used ({})",
            HumanCount(used),
            HumanCount(inodes.total),
            percent(used, inodes.total)
        );
        page.line("inodes", text);
    }
}

fn feature_names(features: &Features) -> String {
    let names: Vec<_> = [&features.compat, &features.incompat, &features.ro_compat]
        .into_iter()
        .flatten()
        .map(|name| safe(name))
        .collect();
    names.join(" ")
}

fn cache_text(cache: &Cache) -> String {
    let mut text = format!("{}: {}", safe(&cache.name), HumanCount(cache.entries));
    if cache.capacity != 0 {
        text.push_str(&format!(" of {}", HumanCount(cache.capacity)));
    }
    if let Some(ratio) = cache.hit_ratio() {
        text.push_str(&format!(", {:.1} % hits", ratio * 100.0));
    }
    text
}

fn sessions(page: &mut Page, sessions: &[SessionStatus]) {
    if sessions.is_empty() {
        page.line("session", "none");
    }
    for session in sessions {
        let kind = match session.transport {
            TransportKind::VhostUser => "vhost-user",
            TransportKind::DevFuse => "mount",
        };
        let mut text = format!("{kind} {}", printable(&session.endpoint));
        if let Some(tag) = &session.tag {
            text.push_str(&format!(", tag {}", safe(tag)));
        }
        text.push_str(if session.connected {
            ", connected"
        } else {
            ", nobody connected"
        });
        if let Some((major, minor)) = session.fuse_version {
            text.push_str(&format!(", FUSE {major}.{minor}"));
        }
        if let Some(handles) = session.open_handles {
            text.push_str(&format!(", {} open", HumanCount(handles)));
        }
        if let Some(inodes) = session.known_inodes {
            text.push_str(&format!(", {} known", Count(inodes, "inode")));
        }
        text.push_str(&format!(", {}", Count(session.requests, "request")));
        page.line("session", text);
    }
}

fn operations(page: &mut Page, operations: &[OperationStatus]) {
    for operation in operations.iter().take(MAX_OPERATIONS) {
        let mut text = format!(
            "{:<16} {:>14}",
            safe(&operation.name),
            HumanCount(operation.count).to_string()
        );
        text.push_str(&format!(" {:>10.1}/s", operation.per_second));
        if operation.errors != 0 {
            text.push_str(&format!("  {} failed", HumanCount(operation.errors)));
        }
        page.line("operation", text);
    }
    if let Some(more) = operations
        .get(MAX_OPERATIONS..)
        .filter(|more| !more.is_empty())
    {
        let count = more
            .iter()
            .map(|operation| operation.count)
            .fold(0, u64::saturating_add);
        page.line(
            "operation",
            format!(
                "and {} more {:>16}",
                more.len(),
                HumanCount(count).to_string()
            ),
        );
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        "0 %".into()
    } else {
        format!("{:.0} %", part as f64 * 100.0 / whole as f64)
    }
}

fn printable(path: &Path) -> String {
    safe(&path.display().to_string())
}

/// Labels and paths are other people's text: control characters must not reach the terminal.
fn safe(text: &str) -> String {
    text.chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfsctl::status::{DaemonStatus, Inodes, Snapshots, Space};

    #[test]
    fn a_full_status_reads_well() {
        let text = status(&Status {
            daemon: Some(DaemonStatus {
                version: "0.1.0".into(),
                pid: 7,
                uptime_seconds: 61.0,
            }),
            volume: VolumeStatus {
                source: Source::Image {
                    path: "disk.img".into(),
                },
                label: Some("evil\x1b[2J".into()),
                space: Some(Space {
                    block_size_bytes: 4096,
                    total_blocks: 1000,
                    free_blocks: 750,
                    available_blocks: 700,
                }),
                inodes: Some(Inodes { total: 0, free: 0 }),
                journal: Some(Journal {
                    size_bytes: 1 << 20,
                    ..Journal::default()
                }),
                ..VolumeStatus::default()
            },
            sessions: vec![SessionStatus {
                endpoint: "/run/a.sock".into(),
                fuse_version: Some((7, 41)),
                connected: true,
                ..SessionStatus::default()
            }],
            operations: vec![OperationStatus {
                name: "read".into(),
                count: 12345,
                per_second: 3.25,
                ..OperationStatus::default()
            }],
        });
        for part in [
            "disk.img",
            "25 %",
            "up 61 seconds",
            "FUSE 7.41",
            "12,345",
            "0 %",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains('\x1b'));
    }

    #[test]
    fn one_is_no_plural_and_a_served_snapshot_is_named() {
        let mut full = Status {
            volume: VolumeStatus {
                snapshot: Some("monday\n".into()),
                inodes_in_memory: Some(1),
                snapshots: Some(Snapshots {
                    count: 1,
                    pinned_bytes: 0,
                }),
                frozen_for_seconds: Some(1.2),
                ..VolumeStatus::default()
            },
            ..Status::default()
        };
        let text = status(&full);
        for part in [
            "snapshot    'monday\\n' is served",
            "in memory   1 inode\n",
            "1, which keeps 0 B",
            "for 1 second more",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        full.volume.frozen_for_seconds = Some(f64::NAN);
        assert!(status(&full).contains("for 0 seconds more"));
    }

    #[test]
    fn nonsense_numbers_do_not_panic() {
        let text = status(&Status {
            daemon: Some(DaemonStatus {
                uptime_seconds: f64::NAN,
                ..DaemonStatus::default()
            }),
            volume: VolumeStatus {
                space: Some(Space {
                    block_size_bytes: u64::MAX,
                    total_blocks: 1,
                    free_blocks: u64::MAX,
                    available_blocks: u64::MAX,
                }),
                ..VolumeStatus::default()
            },
            ..Status::default()
        });
        assert!(text.contains("space"));
    }
}
