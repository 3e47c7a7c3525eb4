//! Goal: what many threads do on one volume could have been done one call after the other.
//!
//! Method: threads make random calls on a few shared directories, or on a shared file; every call is
//! recorded with its answer and with when it began and ended. At the end the volume is closed, judged,
//! and opened again; what is found then is part of the history. Then an order of the calls is looked
//! for that respects time and in which a simple model answers the same.
//!
//! Most histories come from a deterministic scheduler (`kfs::sync::schedule`), whose seed replays them;
//! the others from threads that run freely.
//!
//! `KFS_CONCURRENT_SEEDS=N` makes that many histories of each kind, `KFS_CONCURRENT_FIRST=N` starts at
//! that seed.

#[cfg(not(debug_assertions))]
compile_error!("threads can be scheduled in debug builds only");

use kfs::sync::schedule::{self, Task};
use kfs::{Filesystem, Inode, NewNode, SetAttr, SliceSource, WriteOptions};
use kfs_disk::testing::SplitMix64;
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::concurrent::linear::{Clock, Timed};
use kfs_tests::concurrent::tree::{self, Handles, History};
use kfs_tests::concurrent::{file, linear};
use kfs_tests::power_cut::{formatted, open};
use kfs_tests::variables::number;
use kfs_tests::{check, e2fsprogs};
use std::ops::Range;
use std::sync::{Arc, Barrier, Mutex};

const IMAGE_BYTES: u64 = 4 << 20;
const THREADS: u64 = 4;
const CALLS: u64 = 7;
/// Every so many volumes e2fsck is asked, too.
const E2FSCK_EVERY: u64 = 50;

fn seeds(otherwise: u64) -> Range<u64> {
    let first = number("KFS_CONCURRENT_FIRST").unwrap_or(1);
    first..first + number("KFS_CONCURRENT_SEEDS").unwrap_or(otherwise)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Threads {
    Scheduled,
    Free,
}

/// Says which seed it was when a thread panics.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {}", self.0);
        }
    }
}

/// Runs `act` for each thread with its random numbers, and returns what all have recorded.
fn record<C: Send>(
    seed: u64,
    threads: Threads,
    act: impl Fn(&mut SplitMix64, u64) -> Timed<C> + Sync,
) -> Vec<Timed<C>> {
    let recorded = Mutex::new(Vec::new());
    let _seed = Seed(seed);
    let barrier = Barrier::new(THREADS as usize);
    let work = |thread: u64| {
        let mut random = SplitMix64::new(seed * THREADS + thread);
        if threads == Threads::Free {
            barrier.wait();
        }
        for number in 0..CALLS {
            let timed = act(&mut random, thread * CALLS + number);
            recorded.lock().expect("nobody panics with it").push(timed);
        }
    };
    if threads == Threads::Scheduled {
        let work = &work;
        let task = |thread| Box::new(move || work(thread)) as Task<'_>;
        schedule::run(seed, (0..THREADS).map(task).collect());
    } else {
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let work = &work;
                scope.spawn(move || work(thread));
            }
        });
    }
    recorded.into_inner().expect("nobody panics with it")
}

fn volume(block_size: u32) -> MemoryDevice {
    let options = mkfs::Options {
        block_size: Some(block_size),
        ..mkfs::Options::default()
    };
    formatted(IMAGE_BYTES, &options)
}

/// Closes the volume, lets it be judged, and opens it again.
fn judge_and_reopen(
    fs: &Filesystem,
    device: &Arc<MemoryDevice>,
    context: &str,
    seed: u64,
) -> Arc<Filesystem> {
    fs.close()
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    check::assert_clean(Arc::clone(device) as Arc<dyn BlockDevice>, context);
    if seed.is_multiple_of(E2FSCK_EVERY) {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("image");
        device.write_to(&path).expect("writes the image");
        e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{context}: {found}"));
    }
    open(Arc::clone(device) as Arc<dyn BlockDevice>)
        .unwrap_or_else(|error| panic!("{context}: {error}"))
}

fn tree_history(base: &MemoryDevice, seed: u64, threads: Threads) -> History {
    let context = format!("seed {seed}");
    let device = Arc::new(base.snapshot());
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let handles = Handles::prepare(Arc::clone(&fs)).expect("makes the tree");
    let clock = Clock::default();
    let calls = record(seed, threads, |random, _| {
        let op = tree::random_op(random);
        clock.time(|| {
            schedule::preempt();
            let recorded = handles.call(op);
            schedule::preempt();
            recorded
        })
    });
    let mut history = History::new(&handles, calls);
    handles.release().expect("deletes what has no names");
    let fs = judge_and_reopen(&fs, &device, &context, seed);
    history.add_end(&fs, &clock).expect("walks");
    history
}

fn trees(seeds: Range<u64>, threads: Threads) {
    let base = volume(1024);
    let mut calls = 0;
    for seed in seeds.clone() {
        let history = tree_history(&base, seed, threads);
        calls += history.calls().len();
        if let Err(text) = history.check() {
            panic!("seed {seed}: nothing explains\n{text}");
        }
    }
    println!("{} histories of directories, {calls} calls", seeds.count());
}

#[test]
fn directories_of_scheduled_threads() {
    trees(seeds(300), Threads::Scheduled);
}

#[test]
fn directories_of_free_threads() {
    trees(seeds(150), Threads::Free);
}

/// The check can fail: answers that were not given are not explained.
#[test]
fn false_histories_are_not_explained() {
    let base = volume(1024);
    let mut refused = 0;
    for seed in 1..=20 {
        let length = THREADS * CALLS;
        for index in (0..length).step_by(5) {
            let history = tree_history(&base, seed, Threads::Scheduled);
            refused += u64::from(history.falsified(index as usize).check().is_err());
        }
    }
    assert!(refused > 80, "{refused} of 120");
}

fn file_history(base: &MemoryDevice, seed: u64, threads: Threads) -> Vec<Timed<file::Recorded>> {
    let context = format!("seed {seed}");
    let device = Arc::new(base.snapshot());
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let node = NewNode {
        mode: 0o100_644,
        ..NewNode::default()
    };
    let root = fs.root().expect("root");
    let shared = fs.create(&root, b"shared", &node).expect("creates");
    let clock = linear::Clock::default();
    let mut history = record(seed, threads, |random, number| {
        let op = file::random_op(random, number as u16 + 1);
        clock.time(|| {
            schedule::preempt();
            let recorded = file::call(&fs, &shared, op);
            schedule::preempt();
            recorded
        })
    });
    drop(shared);
    let fs = judge_and_reopen(&fs, &device, &context, seed);
    let root = fs.root().expect("root");
    let shared = fs.lookup(&root, b"shared").expect("is there");
    for recorded in file::read_all(&fs, &shared) {
        history.push(clock.time(|| recorded));
    }
    history
}

fn files(seeds: Range<u64>, threads: Threads) {
    let bases = [1024, 4096].map(volume);
    let mut calls = 0;
    for seed in seeds.clone() {
        let history = file_history(&bases[seed as usize / 2 % 2], seed, threads);
        calls += history.len();
        if let Err(text) = file::check(&history) {
            panic!("seed {seed}: nothing explains\n{text}");
        }
    }
    println!("{} histories of a file, {calls} calls", seeds.count());
}

#[test]
fn a_file_of_scheduled_threads() {
    files(seeds(300), Threads::Scheduled);
}

#[test]
fn a_file_of_free_threads() {
    files(seeds(150), Threads::Free);
}

/// The check can fail: stamps that were not found are not explained.
#[test]
fn false_reads_are_not_explained() {
    let base = volume(1024);
    for seed in 1..=20 {
        let history = file_history(&base, seed, Threads::Scheduled);
        for index in 0..history.len() {
            if let Some(falsified) = history[index].call.falsified() {
                let mut history = history.clone();
                history[index].call = falsified;
                assert!(file::check(&history).is_err(), "seed {seed}, call {index}");
            }
        }
    }
}

/// Runs the two on a file with one name, `f`, and 40 blocks, and judges what is left.
fn race(
    base: &MemoryDevice,
    seed: u64,
    first: impl Fn(&Filesystem, &Arc<Inode>) + Send,
    second: impl Fn(&Filesystem, &Arc<Inode>) + Send,
) {
    let device = Arc::new(base.snapshot());
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let root = fs.root().expect("root");
    let file = fs.lookup(&root, b"f").expect("is there");
    fs.acquire(&file, 1);
    let _seed = Seed(seed);
    let (one, other) = (&fs, &file);
    schedule::run(
        seed,
        vec![
            Box::new(move || first(one, other)),
            Box::new(move || second(one, other)),
        ],
    );
    drop(file);
    judge_and_reopen(&fs, &device, &format!("seed {seed}"), seed);
}

fn with_fragments() -> MemoryDevice {
    let device = Arc::new(volume(1024));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let node = NewNode {
        mode: 0o100_644,
        ..NewNode::default()
    };
    let root = fs.root().expect("root");
    let file = fs.create(&root, b"f", &node).expect("creates");
    for block in 0..20 {
        let options = WriteOptions::default();
        let mut source = SliceSource::new(&[1; 1024]);
        fs.write(&file, block * 2048, 1024, &mut source, options)
            .expect("writes");
    }
    drop(file);
    fs.close().expect("closes");
    device.snapshot()
}

/// Found by such histories: a file that lost its last name while it got another one, or while it was
/// truncated, was noted as an orphan when it was none, or was not when it was one.
#[test]
fn the_last_name_goes_while_the_file_changes() {
    let base = with_fragments();
    let unlink = |fs: &Filesystem, _: &Arc<Inode>| {
        fs.unlink(&fs.root().expect("root"), b"f").expect("unlinks");
    };
    for seed in seeds(300) {
        race(&base, seed, unlink, |fs, file| {
            let directory = fs.lookup(&fs.root().expect("root"), b"lost+found");
            fs.link(file, &directory.expect("is there"), b"g")
                .expect("an open file can be linked");
        });
        race(&base, seed, unlink, |fs, file| {
            let size = SetAttr {
                size_bytes: Some(0),
                ..SetAttr::default()
            };
            fs.set_attr(file, &size).expect("truncates");
        });
    }
}
