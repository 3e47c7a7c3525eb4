//! Goal: when the device fails while a volume is set back to a snapshot, the volume is as before or as the
//! snapshot, and no snapshot loses what it shows.
//!
//! Method: a volume with snapshots and changes after each is set back on a device whose n-th write, flush or
//! read fails, for every n, once and from then on. Then the device works again: the volume opens, shows
//! one of the two pictures (that of the snapshot if the restore was acknowledged), all snapshots show theirs,
//! and kfs's own check finds nothing. It is set forward again, and back.
//!
//! `KFS_SEED=N` does one seed.

use kfs::{Filesystem, NewNode, Result};
use kfs_disk::testing::{Fault, FaultDevice, FaultTrigger, OpKinds};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::check;
use kfs_tests::faults::{assert_sound, fail_each};
use kfs_tests::power_cut::{Picture, formatted, open};
use kfs_tests::tree::{difference, picture};
use kfs_tests::variables::number;
use kfs_tests::workload::Workload;
use std::sync::Arc;

/// Operations between snapshots.
const STEPS: u32 = 25;
const UNDO: &str = "undo";

/// A volume to be set back, and what it and its snapshots show.
struct Base {
    image: MemoryDevice,
    shown: Vec<(String, Picture)>,
    present: Picture,
}

impl Base {
    fn new(seed: u64) -> Self {
        let options = mkfs::Options {
            block_size: Some(if seed.is_multiple_of(2) { 1024 } else { 4096 }),
            blocks_per_group: Some(2048),
            ..mkfs::Options::default()
        };
        let device = Arc::new(formatted(16 << 20, &options));
        let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
        let mut workload = Workload::new(Arc::clone(&fs), seed);
        let mut shown = Vec::new();
        for name in ["one", "two", "three"] {
            for _ in 0..STEPS {
                workload.operate().expect("there is room");
            }
            fs.create_snapshot(name, "").expect("there is room");
            shown.push((name.to_owned(), picture(&fs).expect("reads")));
        }
        for _ in 0..STEPS {
            workload.operate().expect("there is room");
        }
        let present = picture(&fs).expect("reads");
        drop(workload);
        fs.close().expect("closes");
        drop(fs);
        Self {
            image: device.snapshot(),
            shown,
            present,
        }
    }

    /// The picture that the volume is set back to.
    fn target(&self) -> &(String, Picture) {
        &self.shown[1]
    }

    fn assert_snapshots(&self, fs: &Arc<Filesystem>, context: &str) {
        let there: Vec<String> = fs.snapshots().into_iter().map(|s| s.name).collect();
        let undo = (UNDO.to_owned(), self.present.clone());
        let has_undo = there.contains(&undo.0).then_some(&undo);
        for (name, expected) in self.shown.iter().chain(has_undo) {
            let view = fs.open_snapshot(name);
            let view = view.unwrap_or_else(|error| panic!("{context}: {name}: {error:?}"));
            let now = picture(&view).unwrap_or_else(|error| panic!("{context}: {error:?}"));
            let differ = difference(expected, &now);
            assert!(*expected == now, "{context}, {name}: {differ}");
        }
    }

    fn assert_shows(&self, fs: &Filesystem, expected: &Picture, context: &str) {
        let now = picture(fs).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        let differ = difference(expected, &now);
        assert!(*expected == now, "{context}: {differ}");
    }
}

/// Opens the volume, sets it back and closes it.
fn set_back(device: &Arc<dyn BlockDevice>, name: &str, undo: &str) -> Result<()> {
    let fs = open(Arc::clone(device))?;
    let begun = fs.begin_restore(name, undo);
    let closed = fs.close();
    drop(fs);
    begun?;
    closed?;
    let fs = open(Arc::clone(device))?;
    fs.close()
}

/// Sets the volume back with a fault and looks at what is left. Returns whether the fault was met.
fn fails(base: &Base, fault: Fault, context: &str) -> bool {
    let memory = Arc::new(base.image.snapshot());
    let device = Arc::new(FaultDevice::new(Arc::clone(&memory)));
    device.inject(fault);
    let (target, shown) = base.target();
    let faulty = Arc::clone(&device) as Arc<dyn BlockDevice>;
    let done = set_back(&faulty, target, UNDO);
    let was_met = device.struck() > 0;
    drop((faulty, device));
    assert!(was_met || done.is_ok(), "{context}: {done:?}");
    let sound = || Arc::clone(&memory) as Arc<dyn BlockDevice>;
    let fs = open(sound()).unwrap_or_else(|error| panic!("{context}: does not open: {error:?}"));
    let now = picture(&fs).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    if done.is_ok() || now != base.present {
        base.assert_shows(&fs, shown, context);
    }
    base.assert_snapshots(&fs, context);
    fs.close()
        .unwrap_or_else(|error| panic!("{context}: {error:?}"));
    drop(fs);
    // Errors of the device are on record where the journal was aborted.
    let was_aborted = done.is_err();
    assert_sound(sound(), was_aborted, context);
    once_more(base, &sound(), context);
    assert_sound(sound(), was_aborted, context);
    was_met
}

/// Back to another snapshot: what was interrupted is in nobody's way.
fn once_more(base: &Base, device: &Arc<dyn BlockDevice>, context: &str) {
    let (name, shown) = &base.shown[0];
    set_back(device, name, "again").unwrap_or_else(|error| panic!("{context}: {error:?}"));
    let fs = open(Arc::clone(device)).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    base.assert_shows(&fs, shown, context);
    base.assert_snapshots(&fs, context);
    for record in fs.snapshots() {
        let deleted = fs.delete_snapshot(&record.name);
        deleted.unwrap_or_else(|error| panic!("{context}: {error:?}"));
    }
    assert_eq!(fs.volume().allocator.pinned_blocks(), 0, "{context}");
    fs.close()
        .unwrap_or_else(|error| panic!("{context}: {error:?}"));
}

fn each_fails(kinds: OpKinds, name: &str, least: usize) {
    let mut failures = 0;
    for seed in number("KFS_SEED").map_or(vec![1, 2], |seed| vec![seed]) {
        let base = Base::new(seed);
        let what = format!("seed {seed}, {name}");
        failures += fail_each(kinds, &what, |fault, context| fails(&base, fault, context));
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

/// The fault is what makes the difference.
#[test]
fn a_sound_device_sets_it_back() {
    let base = Base::new(3);
    let memory = Arc::new(base.image.snapshot());
    let device = Arc::clone(&memory) as Arc<dyn BlockDevice>;
    let (target, shown) = base.target();
    set_back(&device, target, UNDO).expect("sets it back");
    let fs = open(Arc::clone(&device)).expect("opens");
    base.assert_shows(&fs, shown, "set back");
    assert_ne!(*shown, base.present, "there is a difference");
    fs.close().expect("closes");
    drop(fs);
    check::assert_clean(device, "set back");
}

/// Interrupted again and again, each time after a little more, it comes to its end: what the attempts before
/// have kept in the store is enough.
#[test]
fn it_is_interrupted_again_and_again() {
    let options = mkfs::Options {
        block_size: Some(1024),
        journal_bytes: Some(1 << 20),
        ..mkfs::Options::default()
    };
    let memory = Arc::new(formatted(128 << 20, &options));
    let sound = || Arc::clone(&memory) as Arc<dyn BlockDevice>;
    let fs = open(sound()).expect("opens");
    many_files(&fs, "before");
    fs.create_snapshot("one", "").expect("there is room");
    let then = picture(&fs).expect("reads");
    many_files(&fs, "after");
    fs.begin_restore("one", UNDO).expect("there is room");
    fs.close().expect("closes");
    drop(fs);
    let mut attempts = 0;
    loop {
        let device = Arc::new(FaultDevice::new(Arc::clone(&memory)));
        // Each begins anew, so one has to come through as a whole.
        let trigger = FaultTrigger::From(attempts);
        device.inject(Fault::new(OpKinds::CHANGES, trigger));
        let opened = open(Arc::clone(&device) as Arc<dyn BlockDevice>);
        let Err(error) = opened else {
            break;
        };
        assert!(device.struck() > 0, "attempt {attempts}: {error:?}");
        attempts += 1;
        assert!(attempts < 1_000, "it gets nowhere");
    }
    println!("interrupted {attempts} times");
    assert!(attempts >= 20, "interrupted only {attempts} times");
    let fs = open(sound()).expect("opens");
    let now = picture(&fs).expect("reads");
    assert!(then == now, "{}", difference(&then, &now));
    fs.close().expect("closes");
}

/// Files in directories, so that much metadata changes.
fn many_files(fs: &Arc<Filesystem>, name: &str) {
    let root = fs.root().expect("there is one");
    let node = |mode| NewNode {
        mode,
        ..NewNode::default()
    };
    for number in 0..100 {
        let dir = fs.create(
            &root,
            format!("{name}-{number}").as_bytes(),
            &node(0o040_755),
        );
        let dir = dir.expect("there is room");
        for file in 0..100 {
            let made = fs.create(&dir, file.to_string().as_bytes(), &node(0o100_644));
            made.expect("there is room");
        }
    }
}
