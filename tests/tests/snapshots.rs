//! Goal: a snapshot shows the volume as it was when it was taken, to the end, whatever is done to the
//! volume and to other snapshots; and what is left is always an ordinary file system.
//!
//! Method: random operations on a volume, among them taking and deleting snapshots and closing and
//! opening the volume. A picture of the tree is taken with each snapshot and compared with what the
//! snapshot shows. Now and then e2fsck looks at a copy whose feature was cleared.
//!
//! `KFS_SEED=N` replays one run, `KFS_SNAPSHOT_SEEDS=N` makes that many from `KFS_FIRST_SEED` on,
//! `KFS_SNAPSHOT_STEPS=N` steps in each; `KFS_CRASH_SEEDS=N` workloads have the power cut.

use kfs::layout::RoCompat;
use kfs::{Error, Filesystem};
use kfs_disk::testing::{CrashDevice, SplitMix64};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::e2fsprogs;
use kfs_tests::power_cut::{Effort, Picture, Reached, cut_everywhere, formatted, open};
use kfs_tests::tree::{difference, picture};
use kfs_tests::variables::{number, seeds};
use kfs_tests::workload::Workload;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

const SNAPSHOTS_MAX: usize = 6;
const EFFORT: Effort = Effort {
    points_step: 1,
    images_a_point: 7,
    // It does not open images with snapshots: kfs's own check sees them all.
    e2fsck_every: 0,
};

fn options(seed: u64) -> mkfs::Options {
    let block_size = if seed.is_multiple_of(2) { 1024 } else { 4096 };
    mkfs::Options {
        block_size: Some(block_size),
        blocks_per_group: Some(2048),
        ..mkfs::Options::default()
    }
}

/// Every third run is on a volume that runs full.
fn image_bytes(seed: u64) -> u64 {
    if seed.is_multiple_of(3) {
        10 << 20
    } else {
        24 << 20
    }
}

/// What a run did, for the figures and to see that it did something.
#[derive(Debug, Default)]
struct Done {
    operations: u64,
    created: u64,
    deleted: u64,
    compared: u64,
    reopened: u64,
    judged: u64,
    full: u64,
}

/// A volume, and what its snapshots must show.
struct Model {
    device: Arc<MemoryDevice>,
    fs: Option<Arc<Filesystem>>,
    workload: Option<Workload>,
    snapshots: Vec<(String, Picture)>,
    random: SplitMix64,
    seed: u64,
    done: Done,
}

impl Model {
    fn new(seed: u64) -> Self {
        let device = Arc::new(formatted(image_bytes(seed), &options(seed)));
        let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
        Self {
            device,
            workload: Some(Workload::new(Arc::clone(&fs), seed)),
            fs: Some(fs),
            snapshots: Vec::new(),
            random: SplitMix64::new(seed),
            seed,
            done: Done::default(),
        }
    }

    fn fs(&self) -> &Arc<Filesystem> {
        self.fs.as_ref().expect("open between steps")
    }

    fn step(&mut self) {
        match self.random.below(40) {
            0 => self.create(),
            1 => self.delete(),
            2 => self.compare_one(),
            3 if self.random.below(4) == 0 => self.reopen(),
            4 if self.random.below(8) == 0 => self.judge(),
            _ => self.operate(),
        }
    }

    fn operate(&mut self) {
        let overwrites = self.random.below(3) == 0;
        let workload = self.workload.as_mut().expect("there between steps");
        let done = if overwrites {
            workload.overwrite()
        } else {
            workload.operate().map(|(what, _)| what)
        };
        match done {
            Ok(_) => self.done.operations += 1,
            Err(Error::NoSpace | Error::SnapshotStoreFull) => {
                self.done.full += 1;
                self.delete();
            }
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }

    fn create(&mut self) {
        if self.snapshots.len() == SNAPSHOTS_MAX {
            return self.delete();
        }
        let name = format!("s{}", self.done.created);
        match self.fs().create_snapshot(&name, "a comment") {
            Ok(_) => {
                let shown = picture(self.fs()).expect("walks");
                self.snapshots.push((name, shown));
                self.done.created += 1;
            }
            Err(Error::NoSpace | Error::SnapshotStoreFull) => self.done.full += 1,
            Err(error) => panic!("seed {}: {error}", self.seed),
        }
    }

    fn delete(&mut self) {
        if self.snapshots.is_empty() {
            return;
        }
        let at = self.random.below(self.snapshots.len() as u64) as usize;
        let (name, _) = self.snapshots.remove(at);
        let deleted = self.fs().delete_snapshot(&name);
        deleted.unwrap_or_else(|error| panic!("seed {}: {name}: {error}", self.seed));
        self.done.deleted += 1;
    }

    fn compare_one(&mut self) {
        if !self.snapshots.is_empty() {
            let at = self.random.below(self.snapshots.len() as u64) as usize;
            self.compare(at);
        }
    }

    fn compare(&mut self, at: usize) {
        let (name, expected) = &self.snapshots[at];
        let view = self.fs().open_snapshot(name).expect("opens");
        let shown =
            picture(&view).unwrap_or_else(|error| panic!("seed {}: {name}: {error}", self.seed));
        assert!(
            shown == *expected,
            "seed {}, {name}: {}",
            self.seed,
            difference(expected, &shown)
        );
        self.done.compared += 1;
    }

    fn compare_all(&mut self) {
        for at in 0..self.snapshots.len() {
            self.compare(at);
        }
        let listed: Vec<String> = self.fs().snapshots().into_iter().map(|s| s.name).collect();
        let expected: Vec<&String> = self.snapshots.iter().map(|(name, _)| name).collect();
        assert_eq!(
            listed.iter().collect::<Vec<_>>(),
            expected,
            "seed {}",
            self.seed
        );
    }

    fn reopen(&mut self) {
        let workload = self.workload.take().expect("there between steps");
        let before = picture(self.fs()).expect("walks");
        let fs = self.fs.take().expect("open");
        fs.close().expect("closes");
        let counts = |fs: &Filesystem| {
            (
                fs.space().blocks_free,
                fs.volume().allocator.pinned_blocks(),
            )
        };
        let at_close = counts(&fs);
        drop(fs);
        let fs = open(Arc::clone(&self.device) as Arc<dyn BlockDevice>).expect("opens again");
        assert_eq!(picture(&fs).expect("walks"), before, "seed {}", self.seed);
        assert_eq!(counts(&fs), at_close, "seed {}: free and pinned", self.seed);
        self.workload = Some(workload.reopened(Arc::clone(&fs)));
        self.fs = Some(fs);
        self.done.reopened += 1;
        self.compare_all();
    }

    /// e2fsck on a copy of what is on the device after a close, without the feature.
    fn judge(&mut self) {
        self.reopen();
        self.fs().sync().expect("syncs");
        let image = tempfile::NamedTempFile::new().expect("makes a file");
        let copy = Arc::new(self.device.snapshot());
        // The copy's journal is replayed first, by kfs.
        let fs = open(Arc::clone(&copy) as Arc<dyn BlockDevice>).expect("opens the copy");
        fs.close().expect("closes");
        clear_feature(&copy);
        std::fs::write(image.path(), copy.to_vec()).expect("writes");
        // Where the store was full, deleted files are orphans that wait for room, which whoever opens the volume
        // without snapshots finishes.
        let judged = match has_orphans(&copy) {
            true => e2fsprogs::recover_and_check(image.path()),
            false => e2fsprogs::check(image.path()),
        };
        judged.unwrap_or_else(|said| panic!("seed {}: {said}", self.seed));
        self.done.judged += 1;
    }
}

fn has_orphans(device: &MemoryDevice) -> bool {
    let raw = kfs::read_superblock(device).expect("a superblock");
    raw.s_last_orphan.get() != 0 || raw.ro_compat().contains(RoCompat::ORPHAN_PRESENT)
}

fn clear_feature(device: &MemoryDevice) {
    let mut bytes = [0; 1024];
    device.read_at(1024, &mut bytes).expect("reads");
    let raw = kfs::layout::RawSuperblock::mut_from_bytes(&mut bytes).expect("a superblock");
    let features = raw.ro_compat() - RoCompat::HAS_SNAPSHOT;
    raw.s_feature_ro_compat.set(features.bits());
    raw.seal();
    device.write_at(1024, raw.as_bytes()).expect("writes");
}

fn run(seed: u64, steps: u64) -> Done {
    let mut model = Model::new(seed);
    for _ in 0..steps {
        model.step();
    }
    model.compare_all();
    model.judge();
    while !model.snapshots.is_empty() {
        model.delete();
    }
    let features = model.fs().volume().superblock().ro_compat();
    assert!(!features.contains(RoCompat::HAS_SNAPSHOT), "seed {seed}");
    assert_eq!(
        model.fs().volume().allocator.pinned_blocks(),
        0,
        "seed {seed}"
    );
    model.judge();
    model.done
}

/// A snapshot, and at which positions of the device's log it came and went.
struct Life {
    name: String,
    shown: Picture,
    create: (usize, usize),
    delete: Option<(usize, usize)>,
}

impl Life {
    /// Whether it is there after a power cut at `position`: `None` where both may be.
    fn is_there(&self, position: usize) -> Option<bool> {
        if position < self.create.0 {
            return Some(false);
        }
        match self.delete {
            Some((_, end)) if end <= position => Some(false),
            Some((begin, _)) if begin < position => None,
            _ => (self.create.1 <= position).then_some(true),
        }
    }
}

/// Random operations with snapshots on a device that logs its writes; then the power is cut everywhere.
fn crash_run(seed: u64) -> Reached {
    let base = formatted(16 << 20, &options(seed));
    let device = Arc::new(CrashDevice::new(base));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let mut workload = Workload::new(Arc::clone(&fs), seed);
    let mut random = SplitMix64::new(seed);
    let mut lives: Vec<Life> = Vec::new();
    for step in 0..60 {
        let begin = device.position();
        match random.below(10) {
            0 => {
                let name = format!("s{step}");
                fs.create_snapshot(&name, "").expect("there is room");
                lives.push(Life {
                    name,
                    shown: picture(&fs).expect("walks"),
                    create: (begin, device.position()),
                    delete: None,
                });
            }
            1 => {
                let living = lives.iter_mut().filter(|life| life.delete.is_none());
                let mut living: Vec<&mut Life> = living.collect();
                if !living.is_empty() {
                    let at = random.below(living.len() as u64) as usize;
                    fs.delete_snapshot(&living[at].name).expect("deletes");
                    living[at].delete = Some((begin, device.position()));
                }
            }
            2..=4 => drop(workload.overwrite().expect("there is room")),
            _ => drop(workload.operate().expect("there is room")),
        }
    }
    drop(workload);
    fs.close().expect("closes");
    let name = format!("snapshots, seed {seed}");
    cut_everywhere(&device, &name, EFFORT, |fs, position, context| {
        assert_lives(fs, &lives, position, context);
    })
}

fn assert_lives(fs: &Arc<Filesystem>, lives: &[Life], position: usize, context: &str) {
    let there: Vec<String> = fs.snapshots().into_iter().map(|s| s.name).collect();
    for life in lives {
        let is_there = there.contains(&life.name);
        if let Some(expected) = life.is_there(position) {
            assert_eq!(is_there, expected, "{context}: {}", life.name);
        }
        if is_there {
            let view = fs.open_snapshot(&life.name).expect("opens");
            let shown =
                picture(&view).unwrap_or_else(|error| panic!("{context}: {}: {error}", life.name));
            let difference = || difference(&life.shown, &shown);
            assert!(
                shown == life.shown,
                "{context}: {}: {}",
                life.name,
                difference()
            );
        }
    }
    opened_again(fs, lives, &there, context);
    if position.is_multiple_of(3) {
        for name in &there {
            fs.delete_snapshot(name).expect("deletes");
        }
        assert_eq!(fs.volume().allocator.pinned_blocks(), 0, "{context}");
    }
}

/// The volume is set back to a snapshot, and the power is cut at every write of that.
fn restore_run(seed: u64) -> Reached {
    let base = formatted(16 << 20, &options(seed));
    let device = Arc::new(CrashDevice::new(base));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let mut workload = Workload::new(Arc::clone(&fs), seed);
    let mut shown: Vec<(String, Picture)> = Vec::new();
    for step in 0..90 {
        if step % 20 == 10 {
            let name = format!("s{step}");
            fs.create_snapshot(&name, "").expect("there is room");
            shown.push((name, picture(&fs).expect("walks")));
        }
        if step % 3 == 0 {
            workload.overwrite().expect("there is room");
        } else {
            workload.operate().expect("there is room");
        }
    }
    drop(workload);
    // Deleted ones leave records that belong to others.
    let (gone, _) = shown.remove(1);
    fs.delete_snapshot(&gone).expect("deletes");
    fs.close().expect("closes");
    drop(fs);
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let before = picture(&fs).expect("walks");
    device.restart_log();
    let at = SplitMix64::new(seed).below(shown.len() as u64) as usize;
    let (name, wanted) = shown[at].clone();
    fs.begin_restore(&name, "undo").expect("there is room");
    fs.close().expect("closes");
    drop(fs);
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("restores");
    let got = picture(&fs).expect("walks");
    assert!(got == wanted, "seed {seed}: {}", difference(&wanted, &got));
    let restored_at = device.position();
    // The volume goes on from there.
    let root = fs.root().expect("root");
    let node = kfs::NewNode {
        mode: 0o040_755,
        ..kfs::NewNode::default()
    };
    fs.create(&root, b"after", &node).expect("there is room");
    let mut workload = Workload::within(Arc::clone(&fs), "after/", seed + 1000);
    for _ in 0..10 {
        workload.operate().expect("there is room");
    }
    drop(workload);
    fs.close().expect("closes");
    drop(fs);
    shown.push(("undo".into(), before.clone()));
    assert_all_shown(&device, &shown, seed);
    let context = format!("restore, seed {seed}");
    let reached = cut_everywhere(&device, &context, EFFORT, |fs, position, context| {
        let is_undoable = fs
            .snapshots()
            .iter()
            .any(|snapshot| snapshot.name == "undo");
        for (name, wanted) in &shown {
            if name != "undo" || is_undoable {
                let view = fs.open_snapshot(name).expect("opens");
                let got = picture(&view).expect("walks");
                assert!(
                    got == *wanted,
                    "{context}: {name}: {}",
                    difference(wanted, &got)
                );
            }
        }
        let got = picture(fs).expect("walks");
        let is_whole = got == before || got == wanted || position > restored_at;
        assert!(is_whole, "{context}: {}", difference(&wanted, &got));
    });
    undo(&device, &before, seed);
    reached
}

fn assert_all_shown(device: &Arc<CrashDevice>, shown: &[(String, Picture)], seed: u64) {
    let fs = open(Arc::clone(device) as Arc<dyn BlockDevice>).expect("opens");
    for (name, wanted) in shown {
        let view = fs.open_snapshot(name).expect("opens");
        let got = picture(&view).expect("walks");
        assert!(
            got == *wanted,
            "seed {seed}, {name}: {}",
            difference(wanted, &got)
        );
    }
    fs.close().expect("closes");
}

/// Back to the state before the restore, and all snapshots away: an ordinary volume is left.
fn undo(device: &Arc<CrashDevice>, before: &Picture, seed: u64) {
    let copy = Arc::new(device.snapshot());
    let fs = open(Arc::clone(&copy) as Arc<dyn BlockDevice>).expect("opens");
    fs.begin_restore("undo", "again").expect("there is room");
    drop(fs);
    let fs = open(Arc::clone(&copy) as Arc<dyn BlockDevice>).expect("restores");
    let got = picture(&fs).expect("walks");
    assert!(got == *before, "seed {seed}: {}", difference(before, &got));
    for snapshot in fs.snapshots() {
        fs.delete_snapshot(&snapshot.name).expect("deletes");
    }
    fs.close().expect("closes");
    drop(fs);
    kfs_tests::check::assert_clean(Arc::clone(&copy) as Arc<dyn BlockDevice>, "after undoing");
    let image = tempfile::NamedTempFile::new().expect("makes a file");
    copy.write_to(image.path()).expect("writes");
    e2fsprogs::check(image.path()).unwrap_or_else(|said| panic!("seed {seed}: {said}"));
}

#[test]
fn the_volume_is_set_back() {
    let seeds = seeds("KFS_CRASH_SEEDS", 3);
    let mut reached = Reached::default();
    for seed in &seeds {
        reached += restore_run(*seed);
    }
    println!("{} restores: {reached:?}", seeds.len());
    assert!(reached.images > seeds.len() * 50, "{reached:?}");
}

/// Goes on with a copy after the recovery, closes and opens it: what the crash has torn must not count later.
fn opened_again(fs: &Arc<Filesystem>, lives: &[Life], there: &[String], context: &str) {
    let from = fs.volume().device();
    let mut bytes = vec![0; from.size_bytes() as usize];
    from.read_at(0, &mut bytes).expect("reads");
    let copy = Arc::new(MemoryDevice::new(from.size_bytes()));
    copy.write_at(0, &bytes).expect("writes");
    for round in 0..2 {
        let fs = open(Arc::clone(&copy) as Arc<dyn BlockDevice>).expect("opens");
        for life in lives.iter().filter(|life| there.contains(&life.name)) {
            let view = fs
                .open_snapshot(&life.name)
                .unwrap_or_else(|error| panic!("{context}: round {round}: {}: {error}", life.name));
            let shown = picture(&view).unwrap_or_else(|error| {
                panic!("{context}: round {round}: {}: {error:?}", life.name)
            });
            assert!(
                shown == life.shown,
                "{context}: round {round}: {}: {}",
                life.name,
                difference(&life.shown, &shown)
            );
        }
        match fs.create_snapshot(&format!("again-{round}"), "") {
            Ok(_) | Err(Error::SnapshotStoreFull | Error::NoSpace) => {}
            Err(error) => panic!("{context}: {error}"),
        }
        let root = fs.root().expect("root");
        let node = kfs::NewNode {
            mode: 0o040_755,
            ..kfs::NewNode::default()
        };
        fs.create(&root, format!("again-{round}").as_bytes(), &node)
            .expect("creates");
        fs.close().expect("closes");
    }
}

#[test]
fn the_power_goes() {
    let seeds = seeds("KFS_CRASH_SEEDS", 2);
    let mut reached = Reached::default();
    for seed in &seeds {
        reached += crash_run(*seed);
    }
    println!("{} workloads with snapshots: {reached:?}", seeds.len());
    assert!(
        reached.images > seeds.len() * 300 && reached.transactions > 0,
        "{reached:?}"
    );
}

#[test]
fn snapshots_show_what_was() {
    let steps = number("KFS_SNAPSHOT_STEPS").unwrap_or(1500);
    let seeds = seeds("KFS_SNAPSHOT_SEEDS", 4);
    for seed in seeds {
        let done = run(seed, steps);
        println!("seed {seed}: {done:?}");
        assert!(
            done.created > 3 && done.deleted > 3 && done.compared > 10,
            "{done:?}"
        );
    }
}
