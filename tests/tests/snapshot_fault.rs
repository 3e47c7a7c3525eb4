//! Goal: when the device fails under a volume with snapshots, the caller is told, and no snapshot loses
//! what it shows.
//!
//! Method: random operations, among them taking and deleting snapshots, on a device whose n-th write,
//! flush or read fails, for every n, once and from then on. A twin on a sound device does the same, and
//! gives the pictures to compare with. Then the device works again: the volume recovers, kfs's own check
//! finds nothing, and every snapshot whose taking was acknowledged, and whose deletion was not asked for,
//! shows the picture taken of it.
//!
//! `KFS_SEED=N` does one seed.

use kfs::{Error, Filesystem, Result};
use kfs_disk::testing::{Fault, FaultDevice, OpKinds, SplitMix64};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::faults::{assert_sound, fail_each};
use kfs_tests::power_cut::{Picture, formatted, open};
use kfs_tests::tree::picture;
use kfs_tests::variables::number;
use kfs_tests::workload::Workload;
use std::collections::BTreeMap;
use std::sync::Arc;

const STEPS: u32 = 60;

/// What is known of a snapshot.
struct Life {
    shown: Picture,
    /// `None` when the device failed while it was taken or deleted: then it may be there or not.
    is_there: Option<bool>,
}

type Lives = BTreeMap<String, Life>;

/// A volume with a workload on it.
struct Actor {
    fs: Arc<Filesystem>,
    workload: Workload,
    random: SplitMix64,
    /// Snapshots taken and not deleted, or being deleted.
    names: Vec<String>,
}

/// What a step was about.
enum Step {
    Create(String),
    Delete(String),
    Other,
}

impl Actor {
    fn new(device: Arc<dyn BlockDevice>, seed: u64) -> Self {
        let fs = open(device).expect("opens before anything fails");
        Self {
            workload: Workload::new(Arc::clone(&fs), seed),
            fs,
            random: SplitMix64::new(seed),
            names: Vec::new(),
        }
    }

    fn step(&mut self, number: u32) -> (Step, Result<()>) {
        if self.random.below(3) == 0 {
            // What follows reads again.
            self.fs.drop_caches();
        }
        match self.random.below(8) {
            0 | 1 => {
                let name = format!("s{number}");
                let done = self.fs.create_snapshot(&name, "").map(drop);
                self.names.push(name.clone());
                (Step::Create(name), done)
            }
            2 if !self.names.is_empty() => {
                let at = self.random.below(self.names.len() as u64) as usize;
                let name = self.names.remove(at);
                let done = self.fs.delete_snapshot(&name).map(drop);
                (Step::Delete(name), done)
            }
            3 | 4 => (Step::Other, self.workload.overwrite().map(drop)),
            _ => (Step::Other, self.workload.operate().map(drop)),
        }
    }
}

/// What a run with a failing device left.
struct Run {
    image: MemoryDevice,
    lives: Lives,
    has_failed: bool,
    /// The journal was aborted.
    was_aborted: bool,
}

fn run(base: &MemoryDevice, seed: u64, fault: Fault, context: &str) -> Run {
    let memory = Arc::new(base.snapshot());
    let device = Arc::new(FaultDevice::new(Arc::clone(&memory)));
    let mut actor = Actor::new(Arc::clone(&device) as Arc<dyn BlockDevice>, seed);
    let mut twin = Actor::new(Arc::new(base.snapshot()), seed);
    device.inject(fault);
    let mut lives = Lives::new();
    let mut has_failed = false;
    for number in 0..STEPS {
        let was_aborted = actor.fs.status().journal.aborted;
        let (step, done) = actor.step(number);
        twin.step(number).1.expect("a sound device has room");
        match &done {
            Ok(()) => assert!(!was_aborted, "{context}: done by an aborted journal"),
            Err(Error::Io { .. } | Error::Device { .. } | Error::ReadOnly { .. }) => {
                has_failed = true;
            }
            Err(error) => panic!("{context}: not the device's failure: {error:?}"),
        }
        let acknowledged = |is_there| done.is_ok().then_some(is_there);
        match step {
            Step::Create(name) => {
                let shown = picture(&twin.fs).expect("a sound device");
                let is_there = acknowledged(true);
                lives.insert(name, Life { shown, is_there });
            }
            Step::Delete(name) => {
                let life = lives.get_mut(&name).expect("it was taken");
                life.is_there = acknowledged(false);
            }
            Step::Other => {}
        }
        if has_failed {
            break;
        }
    }
    let Actor { fs, workload, .. } = actor;
    drop(workload);
    has_failed |= fs.close().is_err();
    let was_aborted = fs.status().journal.aborted;
    drop(fs);
    Run {
        image: memory.snapshot(),
        lives,
        has_failed,
        was_aborted,
    }
}

/// Compares what is there with what must be.
fn assert_lives(fs: &Arc<Filesystem>, lives: &Lives, context: &str) {
    let there: Vec<String> = fs.snapshots().into_iter().map(|s| s.name).collect();
    for (name, life) in lives {
        let is_there = there.contains(name);
        if let Some(expected) = life.is_there {
            assert_eq!(is_there, expected, "{context}: whether {name} is there");
        }
        if is_there {
            let view = fs.open_snapshot(name);
            let view = view.unwrap_or_else(|error| panic!("{context}: {name}: {error:?}"));
            let shown =
                picture(&view).unwrap_or_else(|error| panic!("{context}: {name}: {error:?}"));
            assert!(
                shown == life.shown,
                "{context}: {name} shows something else"
            );
        }
    }
    fs.snapshot_usage()
        .unwrap_or_else(|error| panic!("{context}: usage: {error:?}"));
}

fn judge(run: &Run, deletes: bool, context: &str) {
    let device = Arc::new(run.image.snapshot());
    let reopen = || {
        open(Arc::clone(&device) as Arc<dyn BlockDevice>)
            .unwrap_or_else(|error| panic!("{context}: does not recover: {error:?}"))
    };
    let close = |fs: Arc<Filesystem>| {
        fs.close()
            .unwrap_or_else(|error| panic!("{context}: {error:?}"));
    };
    let fs = reopen();
    assert_lives(&fs, &run.lives, context);
    // It goes on, and the snapshots do not mind.
    let mut workload = Workload::within(Arc::clone(&fs), "after/", 3);
    let node = kfs::NewNode {
        mode: 0o040_755,
        ..kfs::NewNode::default()
    };
    let root = fs.root().expect("a root");
    let made = fs.create(&root, b"after", &node);
    made.unwrap_or_else(|error| panic!("{context}: {error:?}"));
    for _ in 0..10 {
        let done = workload.operate();
        done.unwrap_or_else(|error| panic!("{context}: {error:?}"));
    }
    drop(workload);
    drop(root);
    assert_lives(&fs, &run.lives, context);
    close(fs);
    assert_sound(
        Arc::clone(&device) as Arc<dyn BlockDevice>,
        run.was_aborted,
        context,
    );
    let fs = reopen();
    assert_lives(&fs, &run.lives, context);
    if deletes {
        for record in fs.snapshots() {
            let deleted = fs.delete_snapshot(&record.name);
            deleted.unwrap_or_else(|error| panic!("{context}: {error:?}"));
        }
        assert_eq!(fs.volume().allocator.pinned_blocks(), 0, "{context}");
    }
    close(fs);
    assert_sound(
        Arc::clone(&device) as Arc<dyn BlockDevice>,
        run.was_aborted,
        context,
    );
}

fn each_fails(kinds: OpKinds, name: &str, least: usize) {
    let mut failures = 0;
    for seed in number("KFS_SEED").map_or(vec![1, 2], |seed| vec![seed]) {
        let options = mkfs::Options {
            block_size: Some(if seed.is_multiple_of(2) { 1024 } else { 4096 }),
            blocks_per_group: Some(2048),
            ..mkfs::Options::default()
        };
        let base = formatted(16 << 20, &options);
        let mut runs = 0;
        failures += fail_each(kinds, &format!("seed {seed}, {name}"), |fault, context| {
            let run = run(&base, seed, fault, context);
            judge(&run, runs / 2 % 3 == 0, context);
            runs += 1;
            run.has_failed
        });
    }
    assert!(failures >= least, "only {failures} runs met a failure");
}

#[test]
fn each_write_fails() {
    each_fails(OpKinds::CHANGES, "write", 400);
}

#[test]
fn each_flush_fails() {
    each_fails(OpKinds::FLUSHES, "flush", 200);
}

#[test]
fn each_read_fails() {
    each_fails(OpKinds::READS, "read", 100);
}
