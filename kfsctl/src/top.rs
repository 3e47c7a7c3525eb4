//! `kfsctl top`: what a kfsd does, looked at again and again.
//!
//! On a terminal it is a screen of its own, which is put back whatever the end is; elsewhere, and with
//! `--once`, tables one after the other.

use crate::args::Target;
use crate::daemon::connect;
use kfs_disk::{Bytes, Count};
use kfsctl::status::{Cache, LATENCY_BOUNDS, OperationStatus, SessionStatus, Status};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::time::{Duration, Instant};

/// Operations that a table shows.
const OPERATIONS_SHOWN: usize = 20;
/// The byte that Ctrl-C is on a terminal that makes no signal of it.
const CTRL_C: u8 = 3;

/// Looks until it is told to end.
pub(crate) fn run(target: &Target, interval: u64, once: bool, as_json: bool) -> anyhow::Result<()> {
    let mut client = connect(
        target,
        "there is nothing to watch; `status` shows what is on it",
    )?;
    let interval = Duration::from_secs(interval);
    let has_screen = !once && !as_json && stdin().is_terminal() && stdout().is_terminal();
    let screen = has_screen.then(Screen::open).transpose()?;
    let mut before = (Instant::now(), client.status()?);
    loop {
        let is_ended = match &screen {
            Some(screen) => screen.wait(interval)?,
            None => {
                std::thread::sleep(interval);
                false
            }
        };
        if is_ended {
            return Ok(());
        }
        let now = (Instant::now(), client.status()?);
        let rates = Rates::between(&before.1, &now.1, now.0 - before.0);
        match &screen {
            Some(screen) => screen.show(&rates.table())?,
            None if as_json => crate::print(&format!("{}\n", rates.to_json()))?,
            None => crate::print(&rates.table())?,
        }
        if once {
            return Ok(());
        }
        before = now;
    }
}

/// A terminal without echo and line mode, with the screen to itself, until it is dropped.
struct Screen {
    before: Termios,
}

impl Screen {
    fn open() -> anyhow::Result<Self> {
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        // Ctrl-C comes as a byte, so that the terminal is put back after it.
        raw.local_modes &= !(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG);
        tcsetattr(stdin(), OptionalActions::Now, &raw)?;
        let screen = Self { before };
        let mut out = stdout();
        // The other screen, without a cursor.
        out.write_all(b"\x1b[?1049h\x1b[?25l\x1b[2J\x1b[H...")?;
        out.flush()?;
        Ok(screen)
    }

    /// Waits, and tells whether somebody wants the end.
    fn wait(&self, interval: Duration) -> anyhow::Result<bool> {
        let end = Instant::now() + interval;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left)?;
            let input = stdin();
            let mut fds = [PollFd::new(&input, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(false),
                Ok(_) => {}
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            let mut keys = [0; 16];
            let count = stdin().lock().read(&mut keys)?;
            let wants_end = |key: &u8| matches!(*key, b'q' | b'Q' | CTRL_C);
            if count == 0 || keys[..count].iter().any(wants_end) {
                return Ok(true);
            }
        }
    }

    /// Shows as many lines as there is room for.
    fn show(&self, text: &str) -> anyhow::Result<()> {
        let size = tcgetwinsize(stdout())?;
        // A terminal that does not know its size says 0.
        let or = |size: u16, usual| if size == 0 { usual } else { usize::from(size) };
        let (rows, columns) = (or(size.ws_row, 24), or(size.ws_col, 80));
        let mut page = String::from("\x1b[H");
        for line in text.lines().take(rows.saturating_sub(1)) {
            page.extend(line.chars().take(columns));
            page.push_str("\x1b[K\r\n");
        }
        page.push_str("\x1b[J");
        let mut out = stdout();
        out.write_all(page.as_bytes())?;
        Ok(out.flush()?)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let mut out = stdout();
        let _ = out.write_all(b"\x1b[?25h\x1b[?1049l");
        let _ = out.flush();
        let _ = tcsetattr(stdin(), OptionalActions::Now, &self.before);
    }
}

/// What happened between two looks, each second.
struct Rates<'s> {
    status: &'s Status,
    requests: f64,
    sessions: Vec<SessionRates<'s>>,
    operations: Vec<OperationRates<'s>>,
    device: [f64; 3],
    commits: f64,
    cache_hits: Option<f64>,
}

struct SessionRates<'s> {
    session: &'s SessionStatus,
    requests: f64,
    read_bytes: f64,
    written_bytes: f64,
}

struct OperationRates<'s> {
    name: &'s str,
    count: f64,
    errors: f64,
    mean: Option<f64>,
    median: Option<f64>,
    slowest: Option<f64>,
}

#[expect(clippy::cast_precision_loss, reason = "rates for people")]
fn rate(before: u64, now: u64, seconds: f64) -> f64 {
    // A counter that is lower than before is that of another daemon.
    now.saturating_sub(before) as f64 / seconds
}

impl<'s> Rates<'s> {
    fn between(before: &Status, now: &'s Status, time: Duration) -> Self {
        let seconds = time.as_secs_f64().max(0.001);
        let sessions = now.sessions.iter().map(|session| {
            let old = before
                .sessions
                .iter()
                .find(|old| old.endpoint == session.endpoint);
            let old = old.cloned().unwrap_or_default();
            SessionRates {
                session,
                requests: rate(old.requests, session.requests, seconds),
                read_bytes: rate(old.read_bytes, session.read_bytes, seconds),
                written_bytes: rate(old.written_bytes, session.written_bytes, seconds),
            }
        });
        let sessions: Vec<_> = sessions.collect();
        let operations = now.operations.iter().map(|operation| {
            let old = before
                .operations
                .iter()
                .find(|old| old.name == operation.name);
            OperationRates::between(&old.cloned().unwrap_or_default(), operation, seconds)
        });
        let mut operations: Vec<_> = operations.filter(|rates| rates.count > 0.0).collect();
        operations.sort_by(|a, b| b.count.total_cmp(&a.count).then(a.name.cmp(b.name)));
        let device = |status: &Status| status.volume.device.unwrap_or_default();
        let (old, new) = (device(before), device(now));
        let commits = |status: &Status| status.volume.journal.and_then(|j| j.commits);
        let (commits_before, commits_now) = (commits(before), commits(now));
        Self {
            status: now,
            requests: sessions.iter().map(|session| session.requests).sum(),
            sessions,
            operations,
            device: [
                rate(old.read_bytes, new.read_bytes, seconds),
                rate(old.written_bytes, new.written_bytes, seconds),
                rate(old.flushes, new.flushes, seconds),
            ],
            commits: rate(
                commits_before.unwrap_or(0),
                commits_now.unwrap_or(0),
                seconds,
            ),
            cache_hits: cache_hits(&before.volume.caches, &now.volume.caches),
        }
    }

    fn to_json(&self) -> Value {
        json!({
            "requests_per_second": self.requests,
            "commits_per_second": self.commits,
            "cache_hit_ratio": self.cache_hits,
            "device": {
                "read_bytes_per_second": self.device[0],
                "written_bytes_per_second": self.device[1],
                "flushes_per_second": self.device[2],
            },
            "sessions": self.sessions.iter().map(|rates| json!({
                "endpoint": rates.session.endpoint,
                "connected": rates.session.connected,
                "requests_per_second": rates.requests,
                "read_bytes_per_second": rates.read_bytes,
                "written_bytes_per_second": rates.written_bytes,
            })).collect::<Vec<_>>(),
            "operations": self.operations.iter().map(|rates| json!({
                "name": rates.name,
                "per_second": rates.count,
                "errors_per_second": rates.errors,
                "mean_seconds": rates.mean,
                "median_seconds": rates.median,
                "p99_seconds": rates.slowest,
            })).collect::<Vec<_>>(),
        })
    }

    fn table(&self) -> String {
        let mut text = String::new();
        self.summary(&mut text);
        let line = |text: &mut String, line: std::fmt::Arguments<'_>| {
            text.write_fmt(line).expect("a String takes all");
            text.push('\n');
        };
        line(
            &mut text,
            format_args!(
                "\n{:<40} {:>10} {:>12} {:>12}",
                "CLIENT", "REQUESTS/s", "READ/s", "WRITTEN/s"
            ),
        );
        for rates in &self.sessions {
            let name = rates.session.endpoint.display().to_string();
            let name = match rates.session.connected {
                true => safe(&name),
                false => format!("{} (gone)", safe(&name)),
            };
            let (read, written) = (bytes(rates.read_bytes), bytes(rates.written_bytes));
            line(
                &mut text,
                format_args!(
                    "{name:<40} {:>10.0} {read:>12} {written:>12}",
                    rates.requests
                ),
            );
        }
        line(
            &mut text,
            format_args!(
                "\n{:<16} {:>10} {:>10} {:>10} {:>10} {:>10}",
                "OPERATION", "PER SECOND", "FAILED/s", "MEAN", "MEDIAN <=", "99 % <="
            ),
        );
        for rates in self.operations.iter().take(OPERATIONS_SHOWN) {
            let [mean, median, slowest] = [rates.mean, rates.median, rates.slowest]
                .map(|time| time.map_or("-".into(), short));
            line(
                &mut text,
                format_args!(
                    "{:<16} {:>10.1} {:>10.1} {mean:>10} {median:>10} {slowest:>10}",
                    safe(rates.name),
                    rates.count,
                    rates.errors,
                ),
            );
        }
        text
    }

    fn summary(&self, text: &mut String) {
        let volume = &self.status.volume;
        let mut lines = vec![format!(
            "{}  {:.0} requests/s",
            safe(&volume.source.path().display().to_string()),
            self.requests
        )];
        if let Some(name) = &volume.snapshot {
            lines.push(format!("snapshot '{}' is served", safe(name)));
        }
        if let Some(space) = &volume.space {
            let size = |blocks: u64| Bytes(blocks.saturating_mul(space.block_size_bytes));
            let mut line = format!(
                "space    {} free of {}",
                size(space.free_blocks),
                size(space.total_blocks)
            );
            if let Some(snapshots) = volume.snapshots.filter(|all| all.count > 0) {
                line.push_str(&format!(
                    ", {} kept by {}",
                    Bytes(snapshots.pinned_bytes),
                    Count(snapshots.count, "snapshot")
                ));
            }
            lines.push(line);
        }
        if volume.device.is_some() {
            let [read, written, flushes] = self.device;
            let mut line = format!(
                "device   {}/s read, {}/s written, {flushes:.0} flushes/s, {:.1} commits/s",
                bytes(read),
                bytes(written),
                self.commits
            );
            if let Some(hits) = self.cache_hits {
                line.push_str(&format!(", {:.1} % cache hits", hits * 100.0));
            }
            lines.push(line);
        }
        if let Some(left) = volume.frozen_for_seconds {
            let left = Count(left.round() as u64, "second");
            lines.push(format!("frozen for {left} more"));
        }
        text.push_str(&lines.join("\n"));
        text.push('\n');
    }
}

impl<'s> OperationRates<'s> {
    #[expect(clippy::cast_precision_loss, reason = "rates for people")]
    fn between(before: &OperationStatus, now: &'s OperationStatus, seconds: f64) -> Self {
        let old = before.latencies.iter().chain(std::iter::repeat(&0));
        let classes: Vec<u64> = now
            .latencies
            .iter()
            .zip(old)
            .map(|(now, before)| now.saturating_sub(*before))
            .collect();
        let answered: u64 = classes.iter().sum();
        let time = (now.seconds - before.seconds).max(0.0);
        Self {
            name: &now.name,
            count: rate(before.count, now.count, seconds),
            errors: rate(before.errors, now.errors, seconds),
            mean: (answered > 0).then(|| time / answered as f64),
            median: bound(&classes, answered.div_ceil(2)),
            slowest: bound(&classes, answered - answered / 100),
        }
    }
}

/// The end of the class that the `rank`-th fastest is in; nothing for the class without an end.
fn bound(classes: &[u64], rank: u64) -> Option<f64> {
    let mut sum = 0;
    let class = classes.iter().position(|count| {
        sum += count;
        sum >= rank && rank > 0
    })?;
    LATENCY_BOUNDS.get(class).copied()
}

/// Part of the look-ups that hit between two looks.
fn cache_hits(before: &[Cache], now: &[Cache]) -> Option<f64> {
    let sum = |caches: &[Cache]| {
        let sums = caches.iter().map(|cache| (cache.hits, cache.misses));
        sums.fold((0u64, 0u64), |a, b| (a.0 + b.0, a.1 + b.1))
    };
    let (before, now) = (sum(before), sum(now));
    Cache {
        hits: now.0.saturating_sub(before.0),
        misses: now.1.saturating_sub(before.1),
        ..Cache::default()
    }
    .hit_ratio()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a rate for people"
)]
fn bytes(rate: f64) -> String {
    Bytes(rate as u64).to_string()
}

fn short(seconds: f64) -> String {
    match seconds {
        s if s < 0.001 => format!("{:.0} us", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.1} s"),
    }
}

/// Paths are other people's text: control characters must not reach the terminal.
fn safe(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(requests: u64, latencies: &[u64], seconds: f64) -> Status {
        Status {
            sessions: vec![SessionStatus {
                endpoint: "/run/\x1b.sock".into(),
                requests,
                read_bytes: requests * 4096,
                ..SessionStatus::default()
            }],
            operations: vec![OperationStatus {
                name: "read".into(),
                count: requests,
                seconds,
                latencies: latencies.to_vec(),
                ..OperationStatus::default()
            }],
            ..Status::default()
        }
    }

    #[test]
    fn rates_are_those_between_two_looks() {
        let before = status(100, &[100], 1.0);
        let now = status(300, &[100, 198, 0, 2], 1.02);
        let rates = Rates::between(&before, &now, Duration::from_secs(2));
        assert_eq!(rates.requests, 100.0);
        assert_eq!(rates.sessions[0].read_bytes, 409_600.0);
        let read = &rates.operations[0];
        assert_eq!(read.count, 100.0);
        assert!((read.mean.unwrap() - 0.0001).abs() < 1e-9);
        assert_eq!(read.median, Some(LATENCY_BOUNDS[1]));
        assert_eq!(read.slowest, Some(LATENCY_BOUNDS[1]));
        assert!(rates.table().contains("read"));
        assert!(!rates.table().contains('\x1b'));
    }

    #[test]
    fn what_did_not_happen_is_not_shown() {
        let same = status(100, &[100], 1.0);
        let rates = Rates::between(&same, &same, Duration::ZERO);
        assert!(rates.operations.is_empty());
        assert_eq!(rates.to_json()["operations"], json!([]));
        // Another daemon with lower counters.
        let other = status(5, &[], 0.0);
        let rates = Rates::between(&same, &other, Duration::from_secs(1));
        assert_eq!(rates.requests, 0.0);
    }

    #[test]
    fn the_class_without_an_end_has_no_bound() {
        assert_eq!(bound(&[0; 11], 0), None);
        let mut slow = [0; 11];
        slow[10] = 1;
        assert_eq!(bound(&slow, 1), None);
    }
}
