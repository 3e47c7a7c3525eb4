//! Goal: whenever the power goes, recovery gives the volume as it was after some whole number of
//! operations, at least as many as had been made durable; and e2fsck finds nothing to complain of.
//!
//! Method: a workload on a device that logs writes and flushes. After every operation a picture of
//! the tree is taken. Then the power is cut after every single write, with no, all, some, torn and
//! reordered unflushed writes; each image is recovered by kfs and its picture looked for among those
//! that may be. Every so many images e2fsck judges the result of kfs's recovery, and on another copy
//! recovers itself.
//!
//! `KFS_SEED=N` replays one random workload, `KFS_CRASH_SEEDS=N` runs that many
//! from `KFS_CRASH_FIRST` on; `KFS_CRASH_PAIRS=N`
//! takes every N-th pair of operations (1: all), `KFS_CRASH_TRIPLES=N` so many random triples.

use kfs::layout::Compat;
use kfs::{Filesystem, Inode, NewNode, SliceSink, SliceSource, WriteOptions};
use kfs_disk::testing::{CrashDevice, SplitMix64};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::e2fsprogs;
use kfs_tests::operations::{self, Operation};
use kfs_tests::power_cut::{
    Effort, History, Reached, assert_histories, cut_everywhere, formatted, open,
};
use kfs_tests::tree::{picture, picture_of};
use kfs_tests::variables::number;
use kfs_tests::workload::Workload;
use std::ops::Range;
use std::sync::{Arc, Barrier};

const IMAGE_BYTES: u64 = 8 << 20;
const EFFORT: Effort = Effort {
    points_step: 1,
    images_a_point: 4,
    e2fsck_every: 60,
};

fn options(block_size: u32) -> mkfs::Options {
    mkfs::Options {
        block_size: Some(block_size),
        // Several groups: without a second superblock to compare with, `e2fsck -p` of 1.47.0 releases
        // orphans and leaves their file as it was.
        blocks_per_group: Some(if block_size == 1024 { 2048 } else { 1024 }),
        ..mkfs::Options::default()
    }
}

fn block_size_for(seed: u64) -> u32 {
    if seed.is_multiple_of(2) { 1024 } else { 4096 }
}

fn start(base: MemoryDevice) -> (Arc<CrashDevice>, Arc<Filesystem>) {
    let device = Arc::new(CrashDevice::new(base));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    (device, fs)
}

fn random_workload(seed: u64, operations: usize) -> Reached {
    let block_size = block_size_for(seed);
    let (device, fs) = start(formatted(IMAGE_BYTES, &options(block_size)));
    let mut history = History::begin(&fs, "").expect("walks");
    let mut workload = Workload::new(Arc::clone(&fs), seed);
    for _ in 0..operations {
        let began = device.position();
        let (what, is_sync) = workload.operate().expect("memory does not fail");
        let noted = history.note(&fs, &device, (what, began, is_sync));
        noted.expect("walks");
    }
    drop(workload);
    fs.close().expect("closes");
    history.end(&device);
    let name = format!("seed {seed}, blocks of {block_size}");
    assert_histories(&device, &[history], &name, EFFORT)
}

#[test]
fn random_workloads() {
    let seeds: Vec<u64> = match (number("KFS_SEED"), number("KFS_CRASH_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, count) => {
            let first = number("KFS_CRASH_FIRST").unwrap_or(1);
            (first..first + count.unwrap_or(4)).collect()
        }
    };
    let mut reached = Reached::default();
    for seed in &seeds {
        reached += random_workload(*seed, 60);
    }
    println!("{} random workloads: {reached:?}", seeds.len());
    assert!(reached.images >= seeds.len() * 100, "{reached:?}");
    assert!(
        reached.transactions > 0 && reached.judged > 0,
        "{reached:?}"
    );
    assert!(reached.orphans > 0, "{reached:?}");
}

/// A volume with the tree that operations work on.
fn prepared(block_size: u32) -> MemoryDevice {
    let device = Arc::new(formatted(IMAGE_BYTES, &options(block_size)));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    operations::prepare(&fs).expect("makes the tree");
    fs.close().expect("closes");
    device.snapshot()
}

/// Does the operations one after the other and cuts the power everywhere.
fn sequence(base: &MemoryDevice, sequence: &[&Operation]) -> Reached {
    let names: Vec<&str> = sequence.iter().map(|operation| operation.name).collect();
    let name = names.join(", ");
    let (device, fs) = start(base.snapshot());
    // What is durable for the whole tree, and what is for one file that is synced alone.
    let mut histories = ["", "/a"].map(|path| History::begin(&fs, path).expect("walks"));
    for operation in sequence {
        let began = device.position();
        let synced = operation
            .run(&fs)
            .unwrap_or_else(|error| panic!("{name}: {}: {error}", operation.name));
        for (history, path) in histories.iter_mut().zip(["", "/a"]) {
            let is_sync = synced.is_some_and(|synced| path.starts_with(synced));
            let noted = history.note(&fs, &device, (operation.name.into(), began, is_sync));
            noted.expect("walks");
        }
    }
    fs.close().expect("closes");
    for history in &mut histories {
        history.end(&device);
    }
    let effort = Effort {
        e2fsck_every: 400,
        ..EFFORT
    };
    assert_histories(&device, &histories, &name, effort)
}

#[test]
fn sequences_of_operations() {
    let all = operations::all();
    let pairs_step = number("KFS_CRASH_PAIRS").unwrap_or(9) as usize;
    let triples = number("KFS_CRASH_TRIPLES").unwrap_or(20);
    let mut reached = Reached::default();
    let mut sequences = 0;
    for block_size in [1024, 4096] {
        let base = prepared(block_size);
        let mut try_all = |operations: &[&Operation]| {
            reached += sequence(&base, operations);
            sequences += 1;
        };
        for operation in &all {
            try_all(&[operation]);
        }
        let pairs = all.iter().flat_map(|a| all.iter().map(move |b| [a, b]));
        // Another ninth for each block size.
        for pair in pairs
            .skip(block_size as usize % pairs_step)
            .step_by(pairs_step)
        {
            try_all(&pair);
        }
        let mut random = SplitMix64::new(u64::from(block_size));
        for _ in 0..triples {
            let mut any = || &all[(random.next_u64() % all.len() as u64) as usize];
            try_all(&[any(), any(), any()]);
        }
    }
    println!("{sequences} sequences of operations: {reached:?}");
    assert!(
        reached.transactions > 0 && reached.orphans > 0,
        "{reached:?}"
    );
}

/// Several threads, each in a directory of its own: what each sees again is a state of its own.
#[test]
fn threads_that_commit_for_each_other() {
    const THREADS: usize = 3;
    let seeds = number("KFS_CRASH_SEEDS").unwrap_or(4).div_ceil(4);
    let mut reached = Reached::default();
    for seed in 1..=seeds {
        let (device, fs) = start(formatted(2 * IMAGE_BYTES, &options(block_size_for(seed))));
        let homes: Vec<String> = (0..THREADS).map(|thread| format!("t{thread}")).collect();
        let root = fs.root().expect("root");
        for home in &homes {
            let node = NewNode {
                mode: 0o040_755,
                ..NewNode::default()
            };
            fs.create(&root, home.as_bytes(), &node).expect("creates");
        }
        fs.sync().expect("syncs");
        device.restart_log();
        let barrier = Barrier::new(THREADS);
        let mut histories: Vec<History> = std::thread::scope(|scope| {
            let threads: Vec<_> = homes
                .iter()
                .zip(0..)
                .map(|(home, thread)| {
                    let (device, fs, barrier) = (&device, &fs, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        one_of_many(fs, device, home, seed * 10 + thread)
                    })
                })
                .collect();
            let join = |thread: std::thread::ScopedJoinHandle<'_, History>| thread.join();
            threads.into_iter().map(join).map(Result::unwrap).collect()
        });
        fs.close().expect("closes");
        for history in &mut histories {
            history.end(&device);
        }
        reached += assert_histories(
            &device,
            &histories,
            &format!("threads, seed {seed}"),
            EFFORT,
        );
    }
    println!("{seeds} workloads of {THREADS} threads: {reached:?}");
    assert!(reached.transactions > 0, "{reached:?}");
}

fn one_of_many(fs: &Arc<Filesystem>, device: &CrashDevice, home: &str, seed: u64) -> History {
    let mut history = History::begin(fs, &format!("/{home}")).expect("walks");
    let block_size = fs.space().block_size.into();
    let workload = Workload::within(Arc::clone(fs), &format!("{home}/"), seed);
    let mut workload = workload.appending_within(block_size);
    for _ in 0..40 {
        let began = device.position();
        let (what, is_sync) = workload.operate().expect("memory does not fail");
        let noted = history.note(fs, device, (what, began, is_sync));
        noted.expect("walks");
    }
    history
}

const SECTOR: usize = 512;
const SECTORS: usize = 64;

/// A write that fills sectors with its number.
struct Overwrite {
    number: u8,
    sectors: Range<usize>,
    /// Position of the device's log when it began.
    began: usize,
}

/// What was written to a file of [`SECTORS`], and when that was durable.
struct Overwrites {
    writes: Vec<Overwrite>,
    /// Position of the log after a sync, and the number of the last write before.
    syncs: Vec<(usize, u8)>,
}

impl Overwrites {
    /// Writes at random and syncs now and then.
    fn record(fs: &Filesystem, device: &CrashDevice, file: &Arc<Inode>, seed: u64) -> Self {
        let mut random = SplitMix64::new(seed);
        let mut below = |bound: usize| (random.next_u64() % bound as u64) as usize;
        let mut overwrites = Self {
            writes: Vec::new(),
            syncs: Vec::new(),
        };
        for number in 1..60 {
            let sectors = match number {
                1 => 0..SECTORS,
                _ => {
                    let first = below(SECTORS);
                    first..first + 1 + below(SECTORS - first)
                }
            };
            let began = device.position();
            write(
                fs,
                file,
                sectors.start * SECTOR,
                &vec![number; sectors.len() * SECTOR],
            );
            overwrites.writes.push(Overwrite {
                number,
                sectors,
                began,
            });
            if number == 1 || below(5) == 0 {
                fs.fsync(file, number % 2 == 0).expect("syncs");
                overwrites.syncs.push((device.position(), number));
            }
        }
        overwrites
    }

    /// A sector holds what it held at the last sync, or what was written since.
    fn assert_possible(&self, content: &[u8], position: usize, context: &str) {
        let synced = self.syncs.iter().rfind(|(at, _)| *at <= position);
        let synced = synced.map_or(0, |(_, number)| *number);
        for (index, sector) in content.chunks(SECTOR).enumerate() {
            let value = sector[0];
            let is_whole = sector.iter().all(|byte| *byte == value);
            assert!(is_whole, "{context}: sector {index} is torn");
            let mut writes = self
                .writes
                .iter()
                .filter(|write| write.sectors.contains(&index));
            let before = writes.clone().rfind(|write| write.number <= synced);
            let is_since = |write: &Overwrite| write.number > synced && write.began <= position;
            let is_possible = before.is_some_and(|write| write.number == value)
                || writes.any(|write| write.number == value && is_since(write));
            assert!(is_possible, "{context}: sector {index} is {value}");
        }
    }
}

fn write(fs: &Filesystem, file: &Arc<Inode>, offset: usize, content: &[u8]) {
    let mut source = SliceSource::new(content);
    let options = WriteOptions::default();
    let written = fs.write(file, offset as u64, content.len(), &mut source, options);
    assert_eq!(written.expect("writes"), content.len());
}

/// Overwriting in place is not atomic, but each sector is.
#[test]
fn overwriting_in_place() {
    let seeds = number("KFS_CRASH_SEEDS").unwrap_or(4);
    let mut reached = Reached::default();
    for seed in 1..=seeds {
        let (device, fs) = start(formatted(IMAGE_BYTES, &options(block_size_for(seed))));
        let node = NewNode {
            mode: 0o100_644,
            ..NewNode::default()
        };
        let file = fs.create(&fs.root().expect("root"), b"file", &node);
        let file = file.expect("creates");
        let overwrites = Overwrites::record(&fs, &device, &file, seed);
        drop(file);
        fs.close().expect("closes");
        let first_sync = overwrites.syncs[0].0;
        let judge = |fs: &Arc<Filesystem>, position: usize, context: &str| {
            if position < first_sync {
                return;
            }
            let root = fs.root().expect("root");
            let file = fs.lookup(&root, b"file").expect("was synced");
            let mut content = vec![0; SECTORS * SECTOR];
            let len = content.len();
            let read = fs.read(&file, 0, len, &mut SliceSink::new(&mut content));
            assert_eq!(read.expect("reads"), len, "{context}");
            overwrites.assert_possible(&content, position, context);
        };
        reached += cut_everywhere(&device, &format!("seed {seed}"), EFFORT, judge);
    }
    println!("{seeds} workloads that overwrite: {reached:?}");
}

/// A volume without a journal promises what ext2 does: after e2fsck it is whole, and what was synced
/// and not changed since is there.
#[test]
fn without_a_journal() {
    let mut format = options(4096);
    format.features.compat.remove(Compat::HAS_JOURNAL);
    let (device, fs) = start(formatted(IMAGE_BYTES, &format));
    operations::prepare(&fs).expect("makes the tree");
    fs.sync().expect("syncs");
    let synced_at = device.position();
    let want = picture_of(&fs, "/d").expect("walks");
    let mut workload = Workload::within(Arc::clone(&fs), "e/", 5);
    for _ in 0..60 {
        workload.operate().expect("memory does not fail");
    }
    drop(workload);
    fs.close().expect("closes");
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    let mut images = 0;
    for point in device.crash_points().skip(synced_at).step_by(3) {
        for image in point.images(2, 9) {
            image.device.write_to(&path).expect("writes the image");
            e2fsprogs::repair(&path).unwrap_or_else(|found| panic!("{image}: {found}"));
            let repaired = MemoryDevice::from_file(&path).expect("reads the image");
            let fs = open(Arc::new(repaired)).unwrap_or_else(|error| panic!("{image}: {error}"));
            let found = picture_of(&fs, "/d").expect("walks");
            assert_eq!(found, want, "{image}");
            // What is not repaired is opened, too, or refused: never a panic.
            if let Ok(fs) = open(Arc::new(image.device.snapshot())) {
                let _ = picture(&fs);
            }
            images += 1;
        }
    }
    println!("{images} crash images without a journal");
    assert!(images > 20, "{images}");
}

/// So many changes that the log goes round several times, that blocks of directories are revoked
/// and used again, and that checkpoints run in between.
#[test]
fn a_log_that_goes_round() {
    let (device, fs) = start(formatted(IMAGE_BYTES, &options(1024)));
    let mut history = History::begin(&fs, "").expect("walks");
    let mut workload = Workload::new(Arc::clone(&fs), 77);
    let journal = || fs.status().journal;
    let mut operations = 0;
    while journal().log_blocks_written < 2 * u64::from(journal().log_blocks) {
        let began = device.position();
        let (what, mut is_sync) = workload.operate().expect("memory does not fail");
        if operations % 3 == 0 {
            fs.sync().expect("syncs");
            is_sync = true;
        }
        let noted = history.note(&fs, &device, (what, began, is_sync));
        noted.expect("walks");
        operations += 1;
        if operations % 50 == 0 {
            fs.volume().journal.checkpoint().expect("checkpoints");
        }
    }
    let revoked = journal().blocks_revoked;
    assert!(revoked > 0, "no block was revoked");
    drop(workload);
    fs.close().expect("closes");
    history.end(&device);
    let effort = Effort {
        points_step: 7,
        images_a_point: 2,
        e2fsck_every: 100,
    };
    let reached = assert_histories(&device, &[history], "a log that goes round", effort);
    println!("{operations} operations, {revoked} blocks revoked: {reached:?}");
}
