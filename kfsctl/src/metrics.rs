//! `kfsctl metrics`: the status in the text format of Prometheus.
//!
//! Names follow its conventions: `kfs_` first, the unit last, `_total` for counters.

use kfsctl::Status;
use kfsctl::status::{LATENCY_BOUNDS, OperationStatus, SessionStatus, TransportKind, VolumeStatus};
use std::fmt::{Display, Write};

/// All figures of a status.
pub(crate) fn text(status: &Status) -> String {
    let mut page = Page::default();
    if let Some(daemon) = &status.daemon {
        let labels = [("version", daemon.version.as_str())];
        page.one("info", "gauge", "The kfsd that answers.", &labels, 1);
        let help = "Time since the daemon was started.";
        page.one("uptime_seconds", "gauge", help, &[], daemon.uptime_seconds);
    }
    volume(&mut page, &status.volume);
    sessions(&mut page, &status.sessions);
    operations(&mut page, &status.operations);
    page.text
}

#[derive(Default)]
struct Page {
    text: String,
}

type Labels<'a> = [(&'a str, &'a str)];

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let text = format!("# HELP kfs_{name} {help}\n# TYPE kfs_{name} {kind}\n");
        self.text.push_str(&text);
    }

    fn sample(&mut self, name: &str, labels: &Labels<'_>, value: impl Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(label, value)| format!("{label}=\"{}\"", escaped(value)))
            .collect();
        let labels = match labels.is_empty() {
            true => String::new(),
            false => format!("{{{}}}", labels.join(",")),
        };
        writeln!(self.text, "kfs_{name}{labels} {value}").expect("a String takes all");
    }

    fn one(
        &mut self,
        name: &str,
        kind: &str,
        help: &str,
        labels: &Labels<'_>,
        value: impl Display,
    ) {
        self.head(name, kind, help);
        self.sample(name, labels, value);
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.one(name, "gauge", help, &[], value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.one(name, "counter", help, &[], value);
    }
}

/// A label's value as the format wants it. Other control characters are no use to anybody.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for c in text.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            c if c.is_control() => escaped.extend(c.escape_default()),
            c => escaped.push(c),
        }
    }
    escaped
}

fn volume(page: &mut Page, volume: &VolumeStatus) {
    let read_only = u8::from(volume.read_only);
    page.gauge(
        "volume_read_only",
        "Whether changes are refused.",
        read_only,
    );
    if let Some(space) = &volume.space {
        let bytes = |blocks: u64| blocks.saturating_mul(space.block_size_bytes);
        let used = space.total_blocks.saturating_sub(space.free_blocks);
        page.gauge(
            "volume_size_bytes",
            "Room for data.",
            bytes(space.total_blocks),
        );
        page.gauge("volume_used_bytes", "Room in use.", bytes(used));
        page.gauge(
            "volume_free_bytes",
            "Room that is free.",
            bytes(space.free_blocks),
        );
        let help = "Free room that is not reserved for root.";
        page.gauge(
            "volume_available_bytes",
            help,
            bytes(space.available_blocks),
        );
    }
    if let Some(inodes) = &volume.inodes {
        page.gauge("volume_inodes", "Inodes there are.", inodes.total);
        page.gauge("volume_inodes_free", "Inodes nobody uses.", inodes.free);
    }
    if let Some(count) = volume.inodes_in_memory {
        page.gauge("inodes_in_memory", "Inodes that the daemon holds.", count);
    }
    if let Some(count) = volume.errors_found {
        page.counter(
            "volume_errors_total",
            "Errors on record in the image.",
            count,
        );
    }
    if let Some(snapshots) = &volume.snapshots {
        page.gauge("snapshots", "Snapshots of the volume.", snapshots.count);
        let help = "Free room that only snapshots keep.";
        page.gauge("snapshots_pinned_bytes", help, snapshots.pinned_bytes);
    }
    let frozen = u8::from(volume.frozen_for_seconds.is_some());
    page.gauge("volume_frozen", "Whether the volume is frozen.", frozen);
    journal(page, volume);
    caches(page, volume);
    device(page, volume);
}

fn journal(page: &mut Page, volume: &VolumeStatus) {
    let Some(journal) = &volume.journal else {
        return;
    };
    page.gauge("journal_size_bytes", "Size of the log.", journal.size_bytes);
    if let Some(used) = journal.used_bytes {
        page.gauge(
            "journal_used_bytes",
            "Part of it that recovery would need.",
            used,
        );
    }
    if let Some(blocks) = journal.running_blocks {
        let help = "Blocks that the running transaction has changed.";
        page.gauge("journal_running_blocks", help, blocks);
    }
    if let Some(blocks) = journal.checkpoint_blocks {
        let help = "Blocks that are committed and not in their places.";
        page.gauge("journal_checkpoint_blocks", help, blocks);
    }
    if let Some(commits) = journal.commits {
        page.counter("journal_commits_total", "Commits.", commits);
    }
}

fn caches(page: &mut Page, volume: &VolumeStatus) {
    if volume.caches.is_empty() {
        return;
    }
    let kinds = ["cache_hits_total", "cache_misses_total", "cache_entries"];
    let helps = [
        "Found in a cache.",
        "Not found in a cache.",
        "What a cache holds.",
    ];
    for (index, (name, help)) in kinds.into_iter().zip(helps).enumerate() {
        page.head(name, if index < 2 { "counter" } else { "gauge" }, help);
        for cache in &volume.caches {
            let value = [cache.hits, cache.misses, cache.entries][index];
            page.sample(name, &[("cache", &cache.name)], value);
        }
    }
}

fn device(page: &mut Page, volume: &VolumeStatus) {
    let Some(device) = &volume.device else { return };
    for (name, help, value) in [
        ("device_reads_total", "Read calls.", device.reads),
        (
            "device_read_bytes_total",
            "Bytes they moved.",
            device.read_bytes,
        ),
        ("device_writes_total", "Write calls.", device.writes),
        (
            "device_written_bytes_total",
            "Bytes they moved.",
            device.written_bytes,
        ),
        ("device_flushes_total", "Barriers.", device.flushes),
        (
            "device_discards_total",
            "Ranges given back.",
            device.discards,
        ),
        (
            "device_zeroings_total",
            "Ranges made zeros.",
            device.zeroings,
        ),
        ("device_errors_total", "Calls that failed.", device.errors),
    ] {
        page.counter(name, help, value);
    }
}

fn sessions(page: &mut Page, sessions: &[SessionStatus]) {
    if sessions.is_empty() {
        return;
    }
    type Figure = fn(&SessionStatus) -> Option<u64>;
    let figures: [(&str, &str, &str, Figure); 6] = [
        (
            "session_connected",
            "gauge",
            "Whether somebody is there.",
            |s| Some(s.connected.into()),
        ),
        ("session_requests_total", "counter", "Requests.", |s| {
            Some(s.requests)
        }),
        ("session_read_bytes_total", "counter", "Bytes read.", |s| {
            Some(s.read_bytes)
        }),
        (
            "session_written_bytes_total",
            "counter",
            "Bytes written.",
            |s| Some(s.written_bytes),
        ),
        (
            "session_open_handles",
            "gauge",
            "Open files and directories.",
            |s| s.open_handles,
        ),
        (
            "session_known_inodes",
            "gauge",
            "Inodes its kernel remembers.",
            |s| s.known_inodes,
        ),
    ];
    for (name, kind, help, figure) in figures {
        page.head(name, kind, help);
        for session in sessions {
            let transport = match session.transport {
                TransportKind::VhostUser => "vhost-user",
                TransportKind::DevFuse => "dev-fuse",
            };
            let endpoint = session.endpoint.display().to_string();
            let labels = [("transport", transport), ("endpoint", &endpoint)];
            if let Some(value) = figure(session) {
                page.sample(name, &labels, value);
            }
        }
    }
}

fn operations(page: &mut Page, operations: &[OperationStatus]) {
    if operations.is_empty() {
        return;
    }
    let name = "request_duration_seconds";
    page.head(
        name,
        "histogram",
        "Time from taking a request up to its answer.",
    );
    for operation in operations {
        histogram(page, name, operation);
    }
    let name = "request_errors_total";
    page.head(name, "counter", "Requests answered with an error.");
    for operation in operations {
        page.sample(name, &[("operation", &operation.name)], operation.errors);
    }
    let name = "requests_total";
    page.head(name, "counter", "Requests that came in.");
    for operation in operations {
        page.sample(name, &[("operation", &operation.name)], operation.count);
    }
}

fn histogram(page: &mut Page, name: &str, operation: &OperationStatus) {
    // Those without an answer, and those under way, are in no class.
    let answered: u64 = operation.latencies.iter().sum();
    let mut sum = 0;
    for (bound, count) in LATENCY_BOUNDS.iter().zip(&operation.latencies) {
        sum += count;
        let bound = bound.to_string();
        let labels = [("operation", operation.name.as_str()), ("le", &bound)];
        page.sample(&format!("{name}_bucket"), &labels, sum);
    }
    let labels = [("operation", operation.name.as_str()), ("le", "+Inf")];
    page.sample(&format!("{name}_bucket"), &labels, answered);
    let labels = &labels[..1];
    page.sample(&format!("{name}_sum"), labels, operation.seconds);
    page.sample(&format!("{name}_count"), labels, answered);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn full() -> Status {
        serde_json::from_str(
            r#"{"daemon":{"version":"1","pid":7,"uptime_seconds":2.5},
            "volume":{"space":{"block_size_bytes":4096,"total_blocks":10,"free_blocks":4},
                "caches":[{"name":"metadata blocks","hits":3,"misses":1}],
                "snapshots":{"count":2,"pinned_bytes":8192},"journal":{"commits":5},"device":{}},
            "sessions":[{"endpoint":"/a\"b\nc","requests":9,"read_bytes":4096}],
            "operations":[{"name":"read","count":9,"seconds":0.5,"latencies":[1,2,0,0,0,0,0,0,0,0,6]}]}"#,
        )
        .unwrap()
    }

    #[test]
    fn every_sample_has_its_type_and_a_number() {
        let text = text(&full());
        let mut types = HashSet::new();
        for line in text.lines() {
            if let Some(head) = line.strip_prefix("# TYPE ") {
                assert!(
                    types.insert(head.split(' ').next().unwrap()),
                    "twice: {line}"
                );
                continue;
            }
            if line.starts_with('#') {
                continue;
            }
            let (name, value) = line.rsplit_once(' ').unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
            let name = name.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| name.strip_suffix(end))
                .filter(|base| types.contains(base));
            assert!(types.contains(base.unwrap_or(name)), "{line}");
        }
        for line in [
            "kfs_volume_used_bytes 24576",
            "kfs_snapshots 2",
            "kfs_snapshots_pinned_bytes 8192",
            "kfs_journal_commits_total 5",
            "kfs_cache_hits_total{cache=\"metadata blocks\"} 3",
            "kfs_request_duration_seconds_bucket{operation=\"read\",le=\"0.000016\"} 3",
            "kfs_request_duration_seconds_bucket{operation=\"read\",le=\"+Inf\"} 9",
            "kfs_request_duration_seconds_sum{operation=\"read\"} 0.5",
            "kfs_session_requests_total{transport=\"vhost-user\",endpoint=\"/a\\\"b\\nc\"} 9",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
    }
}
