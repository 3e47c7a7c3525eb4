//! Goal: a defragmentation loses nothing when the power goes, or the device fails, in the middle of it; and
//! who works on the same files meanwhile does not notice.
//!
//! Method: files are moved, one at a time, between other operations and snapshots; the power is cut at every
//! write. The n-th write, flush or read fails while files are moved, with snapshots that see them. Writers
//! change files while these are moved, and read back what they should hold.
//!
//! `KFS_CRASH_SEEDS=N` workloads have the power cut; `KFS_SEED=N` does one seed.

use kfs::{
    Defrag, DefragOptions, Error, Filesystem, Inode, LogicalBlock, NewNode, Result, SetAttr,
    SliceSink, SliceSource, SpaceChange, WriteOptions,
};
use kfs_disk::testing::{CrashDevice, Fault, FaultDevice, OpKinds, SplitMix64};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::check;
use kfs_tests::defrag::{defrag_all, make_fragmented, never, shape, survey};
use kfs_tests::e2fsprogs;
use kfs_tests::faults::{assert_sound, fail_each};
use kfs_tests::power_cut::{
    Effort, History, Picture, Reached, assert_histories, cut_everywhere, formatted, open,
};
use kfs_tests::tree::picture;
use kfs_tests::variables::seeds;
use kfs_tests::workload::Workload;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

const EFFORT: Effort = Effort {
    points_step: 1,
    images_a_point: 7,
    e2fsck_every: 0,
};

const NAMES: [&str; 6] = ["p", "q", "r", "s", "t", "u"];

/// A volume with files in many pieces, one of them with holes and unwritten blocks.
fn base(seed: u64, blocks: u64) -> MemoryDevice {
    let options = mkfs::Options {
        block_size: Some(if seed.is_multiple_of(2) { 1024 } else { 4096 }),
        blocks_per_group: Some(2048),
        ..mkfs::Options::default()
    };
    let device = Arc::new(formatted(16 << 20, &options));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let files = make_fragmented(&fs, &NAMES, blocks).expect("there is room");
    let size = u64::from(fs.space().block_size);
    let zero = SpaceChange::ZeroRange { keep_size: true };
    for (change, block) in [(SpaceChange::PunchHole, 3), (zero, 7)] {
        let options = WriteOptions::default();
        fs.change_space(&files[0], block * size, 2 * size, change, options)
            .expect("changes");
    }
    drop(files);
    fs.close().expect("closes");
    drop(fs);
    device.snapshot()
}

/// Moves one of the files that could lie better, and returns the bytes.
fn move_one(fs: &Arc<Filesystem>, random: &mut SplitMix64, moves_kept: bool) -> Result<u64> {
    let mut candidates = survey(fs, moves_kept)?.candidates;
    candidates.retain(|candidate| candidate.layout.gain > 0);
    if candidates.is_empty() {
        return Ok(0);
    }
    let at = random.below(candidates.len() as u64) as usize;
    let inode = fs.inode(candidates[at].inode, candidates[at].generation)?;
    let options = DefragOptions {
        moves_kept,
        bytes_max: u64::MAX,
        until: never(),
    };
    let progress = Defrag::new(fs, options).file(&inode, LogicalBlock(0))?;
    Ok(progress.moved_bytes)
}

/// Files are moved among operations that are atomic; then the power is cut everywhere.
fn crash_run(seed: u64) -> (Reached, u64) {
    let device = Arc::new(CrashDevice::new(base(seed, 40)));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let mut history = History::begin(&fs, "").expect("walks");
    let mut workload = Workload::new(Arc::clone(&fs), seed);
    let mut random = SplitMix64::new(seed);
    let mut moved = 0;
    for _ in 0..40 {
        let began = device.position();
        let (what, is_sync) = if random.below(3) == 0 {
            moved += move_one(&fs, &mut random, false).expect("there is room");
            ("move a file".to_string(), false)
        } else {
            workload.operate().expect("there is room")
        };
        history
            .note(&fs, &device, (what, began, is_sync))
            .expect("walks");
    }
    drop(workload);
    fs.close().expect("closes");
    history.end(&device);
    let effort = Effort {
        e2fsck_every: 100,
        ..EFFORT
    };
    let name = format!("defragmentation, seed {seed}");
    (assert_histories(&device, &[history], &name, effort), moved)
}

/// The same with snapshots that see what is moved; the live files never change.
fn snapshot_crash_run(seed: u64) -> (Reached, u64) {
    let device = Arc::new(CrashDevice::new(base(seed, 40)));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let shown = picture(&fs).expect("walks");
    let mut random = SplitMix64::new(seed);
    let mut taken: Vec<(String, usize)> = Vec::new();
    let mut moved = 0;
    for step in 0..24 {
        match random.below(6) {
            0 => {
                let name = format!("s{step}");
                fs.create_snapshot(&name, "").expect("there is room");
                taken.push((name, device.position()));
            }
            1 => fs.sync().expect("commits"),
            _ => {
                let moves_kept = random.below(3) > 0;
                moved += move_one(&fs, &mut random, moves_kept).expect("there is room");
            }
        }
    }
    fs.close().expect("closes");
    let name = format!("defragmentation with snapshots, seed {seed}");
    let reached = cut_everywhere(&device, &name, EFFORT, |fs, position, context| {
        assert_eq!(picture(fs).expect("walks"), shown, "{context}");
        for (name, _) in taken.iter().filter(|(_, at)| *at <= position) {
            let view = fs.open_snapshot(name);
            let view = view.unwrap_or_else(|error| panic!("{context}: {name}: {error}"));
            assert_eq!(picture(&view).expect("walks"), shown, "{context}: {name}");
        }
    });
    (reached, moved)
}

#[test]
fn the_power_goes() {
    let (mut reached, mut moved) = (Reached::default(), 0);
    for seed in seeds("KFS_CRASH_SEEDS", 3) {
        for (images, bytes) in [crash_run(seed), snapshot_crash_run(seed)] {
            reached += images;
            moved += bytes;
        }
    }
    println!("{reached:?}, {moved} bytes moved");
    assert!(reached.images > 1000 && reached.judged > 0, "{reached:?}");
    assert!(moved > 1 << 20, "{moved}");
}

/// What a run with a failing device left.
struct Run {
    image: MemoryDevice,
    shown: Picture,
    shapes: Vec<String>,
    /// Snapshots whose taking was acknowledged.
    taken: Vec<String>,
    has_failed: bool,
    was_aborted: bool,
}

fn shapes(fs: &Arc<Filesystem>) -> Vec<String> {
    let root = fs.root().expect("root");
    let shape_of = |name: &&str| {
        let inode = fs.lookup(&root, name.as_bytes()).expect("is there");
        shape(fs, &inode).expect("reads")
    };
    NAMES.iter().map(shape_of).collect()
}

fn fault_run(base: &MemoryDevice, seed: u64, fault: Fault, context: &str) -> Run {
    let memory = Arc::new(base.snapshot());
    let device = Arc::new(FaultDevice::new(Arc::clone(&memory)));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let (shown, shapes) = (picture(&fs).expect("walks"), shapes(&fs));
    let mut random = SplitMix64::new(seed);
    let mut taken = Vec::new();
    let mut has_failed = false;
    device.inject(fault);
    for step in 0..12 {
        let was_aborted = fs.status().journal.aborted;
        fs.drop_caches();
        let done = match step {
            2 | 7 => {
                let name = format!("s{step}");
                let done = fs.create_snapshot(&name, "").map(|_| 1);
                if done.is_ok() {
                    taken.push(name);
                }
                done
            }
            5 | 10 => fs.sync().map(|()| 1),
            _ => move_one(&fs, &mut random, true),
        };
        match done {
            Ok(moved) => assert!(
                moved == 0 || !was_aborted,
                "{context}: by an aborted journal"
            ),
            Err(Error::Io { .. } | Error::Device { .. } | Error::ReadOnly { .. }) => {
                has_failed = true;
                break;
            }
            Err(error) => panic!("{context}: not the device's failure: {error:?}"),
        }
    }
    has_failed |= fs.close().is_err();
    let was_aborted = fs.status().journal.aborted;
    drop(fs);
    Run {
        image: memory.snapshot(),
        shown,
        shapes,
        taken,
        has_failed,
        was_aborted,
    }
}

fn judge(run: &Run, context: &str) {
    let device = Arc::new(run.image.snapshot());
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>);
    let fs = fs.unwrap_or_else(|error| panic!("{context}: does not recover: {error:?}"));
    assert_eq!(picture(&fs).expect("walks"), run.shown, "{context}");
    assert_eq!(shapes(&fs), run.shapes, "{context}");
    for name in &run.taken {
        let view = fs.open_snapshot(name).expect("opens");
        assert_eq!(
            picture(&view).expect("walks"),
            run.shown,
            "{context}: {name}"
        );
    }
    // What was left is done.
    defrag_all(&fs, true).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    assert_eq!(picture(&fs).expect("walks"), run.shown, "{context}");
    for record in fs.snapshots() {
        fs.delete_snapshot(&record.name).expect("deletes");
    }
    fs.close().expect("closes");
    drop(fs);
    assert_sound(device, run.was_aborted, context);
}

fn each_fails(kinds: OpKinds, name: &str, least: usize) {
    let mut failures = 0;
    for seed in [1, 2] {
        let base = base(seed, 20);
        failures += fail_each(kinds, &format!("seed {seed}, {name}"), |fault, context| {
            let run = fault_run(&base, seed, fault, context);
            judge(&run, context);
            run.has_failed
        });
    }
    println!("{failures} runs met a failure");
    assert!(failures >= least, "only {failures} runs met a failure");
}

#[test]
fn each_write_fails() {
    each_fails(OpKinds::CHANGES, "write", 100);
}

#[test]
fn each_flush_fails() {
    each_fails(OpKinds::FLUSHES, "flush", 20);
}

#[test]
fn each_read_fails() {
    each_fails(OpKinds::READS, "read", 100);
}

/// A file, and what it should hold.
struct Checked {
    fs: Arc<Filesystem>,
    file: Arc<Inode>,
    content: Vec<u8>,
    random: SplitMix64,
}

impl Checked {
    fn new(fs: Arc<Filesystem>, number: u64) -> Self {
        let node = NewNode {
            mode: 0o100_644,
            ..NewNode::default()
        };
        let root = fs.root().expect("root");
        let name = format!("f{number}");
        let file = fs.create(&root, name.as_bytes(), &node).expect("creates");
        Self {
            fs,
            file,
            content: Vec::new(),
            random: SplitMix64::new(number),
        }
    }

    fn step(&mut self) -> Result<()> {
        const SIZE_MAX: u64 = 1 << 20;
        let offset = self.random.below(SIZE_MAX);
        let len = 1 + self.random.below(40_000) as usize;
        let options = WriteOptions::default();
        match self.random.below(8) {
            0 => {
                let change = SetAttr {
                    size_bytes: Some(offset),
                    ..SetAttr::default()
                };
                self.fs.set_attr(&self.file, &change)?;
                self.content.resize(offset as usize, 0);
            }
            1 | 2 => {
                let punch = SpaceChange::PunchHole;
                self.fs
                    .change_space(&self.file, offset, len as u64, punch, options)?;
                let end = (offset as usize + len).min(self.content.len());
                if let Some(part) = self.content.get_mut(offset as usize..end) {
                    part.fill(0);
                }
            }
            3 => self.compare()?,
            _ => {
                let bytes = vec![self.random.below(255) as u8 + 1; len];
                let source = &mut SliceSource::new(&bytes);
                self.fs.write(&self.file, offset, len, source, options)?;
                let end = offset as usize + len;
                self.content.resize(self.content.len().max(end), 0);
                self.content[offset as usize..end].copy_from_slice(&bytes);
            }
        }
        Ok(())
    }

    fn compare(&self) -> Result<()> {
        let mut read = vec![0; self.content.len() + 10];
        let len = read.len();
        let count = self
            .fs
            .read(&self.file, 0, len, &mut SliceSink::new(&mut read))?;
        assert_eq!(count, self.content.len());
        assert!(read[..count] == self.content, "somebody else's bytes");
        Ok(())
    }
}

/// Ends the threads whatever happens to the one that waits for them.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn writers_do_not_notice() {
    const WRITERS: u64 = 3;
    const MOVED_BYTES: u64 = 6 << 20;
    let options = mkfs::Options {
        block_size: Some(4096),
        blocks_per_group: Some(2048),
        ..mkfs::Options::default()
    };
    let device = Arc::new(formatted(64 << 20, &options));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let (stop, steps) = (AtomicBool::new(false), AtomicU64::new(0));
    let (mut moved, mut round) = (0, 0);
    std::thread::scope(|scope| {
        for seed in 0..WRITERS {
            let (fs, steps, stop) = (Arc::clone(&fs), &steps, &stop);
            scope.spawn(move || {
                let mut checked = Checked::new(fs, seed);
                while !stop.load(Ordering::Relaxed) {
                    checked.step().expect("there is room");
                    steps.fetch_add(1, Ordering::Relaxed);
                }
                checked.compare().expect("reads");
            });
        }
        let _stop = StopAtEnd(&stop);
        let end = Instant::now() + Duration::from_secs(60);
        while (moved < MOVED_BYTES || round < 20) && Instant::now() < end {
            round += 1;
            moved += defrag_all(&fs, round % 2 == 0).expect("moves").moved_bytes;
            match round % 5 {
                0 => drop(fs.create_snapshot("s", "").expect("there is room")),
                3 if round > 5 => drop(fs.delete_snapshot("s").expect("deletes")),
                _ => {}
            }
        }
    });
    let steps = steps.into_inner();
    println!("{moved} bytes were moved in {round} rounds, under {steps} operations");
    assert!(moved >= MOVED_BYTES && steps > 100, "{moved}, {steps}");
    for record in fs.snapshots() {
        fs.delete_snapshot(&record.name).expect("deletes");
    }
    fs.close().expect("closes");
    drop(fs);
    check::assert_clean(Arc::clone(&device) as Arc<dyn BlockDevice>, "after all");
    let image = tempfile::NamedTempFile::new().expect("makes a file");
    device.write_to(image.path()).expect("writes");
    e2fsprogs::check(image.path()).unwrap_or_else(|said| panic!("{said}"));
}
