//! Who is served and how much: the sessions of the daemon and what they have asked for.
//!
//! The sessions count for themselves; here the counts are added up when somebody asks, and a
//! sample is kept of each of the last seconds, to say how fast they grow.

use crate::fuse::Session;
use crate::fuse::abi::Opcode;
use kfsctl::status::{OperationStatus, SessionStatus, TransportKind};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Seconds over which rates are taken.
const WINDOW: usize = 10;
/// Least time between two samples.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

type Counts = [u64; Opcode::ALL.len()];

/// One user of the volume.
#[derive(Clone, Debug)]
pub struct User {
    /// How it comes in.
    pub transport: TransportKind,
    /// Socket or mount point.
    pub endpoint: PathBuf,
    /// Tag the guest mounts by.
    pub tag: Option<String>,
    /// Its session.
    pub session: Arc<Session>,
}

/// All users, and samples of what they did.
#[derive(Debug)]
pub struct Metrics {
    users: Vec<User>,
    begin: Instant,
    samples: Mutex<VecDeque<(Instant, Counts)>>,
}

impl Metrics {
    /// Metrics of these users, from now on.
    pub fn new(users: Vec<User>) -> Self {
        let begin = Instant::now();
        let samples = Mutex::new(VecDeque::from([(begin, [0; Opcode::ALL.len()])]));
        Self {
            users,
            begin,
            samples,
        }
    }

    /// All users, attached or not.
    pub fn users(&self) -> &[User] {
        &self.users
    }

    /// Time since the beginning.
    pub fn uptime(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Keeps a sample, if the last one is old enough. To be called about every second.
    pub fn sample(&self) {
        let mut samples = self.samples.lock();
        let now = Instant::now();
        if samples
            .back()
            .is_some_and(|(then, _)| now - *then < SAMPLE_INTERVAL)
        {
            return;
        }
        if samples.len() > WINDOW {
            samples.pop_front();
        }
        samples.push_back((now, self.counts()));
    }

    fn counts(&self) -> Counts {
        let mut counts = [0; Opcode::ALL.len()];
        for user in &self.users {
            for (sum, (_, count)) in counts.iter_mut().zip(user.session.operations()) {
                *sum += count;
            }
        }
        counts
    }

    /// What each user does.
    pub fn sessions(&self) -> Vec<SessionStatus> {
        let status = |user: &User| {
            let usage = user.session.usage();
            let (read_bytes, written_bytes) = user.session.bytes_moved();
            SessionStatus {
                transport: user.transport,
                endpoint: user.endpoint.clone(),
                tag: user.tag.clone(),
                connected: user.session.agreed().is_some(),
                fuse_version: user.session.version(),
                open_handles: usage.map(|usage| usage.handles),
                known_inodes: usage.map(|usage| usage.nodes),
                requests: user.session.operations().map(|(_, count)| count).sum(),
                read_bytes,
                written_bytes,
            }
        };
        self.users.iter().map(status).collect()
    }

    /// Time that an operation took, in all.
    fn time(&self, opcode: Opcode) -> Duration {
        let times = self.users.iter().map(|user| user.session.time(opcode));
        times.sum()
    }

    fn latencies(&self, opcode: Opcode) -> Vec<u64> {
        let mut sums = vec![0; crate::fuse::LATENCY_CLASSES];
        for user in &self.users {
            for (sum, count) in sums.iter_mut().zip(user.session.latencies(opcode)) {
                *sum += count;
            }
        }
        sums
    }

    /// What was asked for, most frequent first.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub fn operations(&self) -> Vec<OperationStatus> {
        let now = Instant::now();
        let counts = self.counts();
        let (then, before) = *self
            .samples
            .lock()
            .front()
            .expect("there always is a sample");
        let seconds = (now - then).as_secs_f64().max(f64::EPSILON);
        let mut operations: Vec<_> = Opcode::ALL
            .iter()
            .enumerate()
            .filter(|&(index, _)| counts[index] != 0)
            .map(|(index, opcode)| OperationStatus {
                name: opcode.name().to_ascii_lowercase(),
                count: counts[index],
                errors: self
                    .users
                    .iter()
                    .map(|user| user.session.errors(*opcode))
                    .sum(),
                per_second: counts[index].saturating_sub(before[index]) as f64 / seconds,
                seconds: self.time(*opcode).as_secs_f64(),
                latencies: self.latencies(*opcode),
            })
            .collect();
        operations.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| a.name.cmp(&b.name)));
        operations
    }
}
