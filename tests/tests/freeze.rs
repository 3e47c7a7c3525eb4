//! Goal: while a volume is frozen its device is that of a closed volume, which nobody changes; reads, syncs
//! and displays go on; and a freeze ends by itself, and when the volume is closed.
//!
//! Method: threads that write all the time, freezes in between; copies of the device are judged by e2fsck
//! as they are, and compared at the beginning and the end of a freeze.

use kfs::layout::Incompat;
use kfs::{Error, Filesystem, NewNode, ReadOnlyReason, SliceSource, WriteOptions, read_superblock};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::power_cut::{formatted, options};
use kfs_tests::{check, e2fsprogs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

fn volume() -> (Arc<MemoryDevice>, Arc<Filesystem>) {
    let device = Arc::new(formatted(32 << 20, &mkfs::Options::default()));
    let options = kfs::MountOptions {
        commit_interval: Some(Duration::from_millis(20)),
        ..options()
    };
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, options);
    (device, fs.expect("opens"))
}

/// Writes, overwrites and deletes a file; gives up when the volume is closed.
fn churn(fs: &Filesystem, name: &str) -> kfs::Result<()> {
    let root = fs.root()?;
    // As a server does for each request.
    let change = fs.begin_change();
    let node = NewNode {
        mode: 0o100_644,
        ..NewNode::default()
    };
    let inode = fs.create(&root, name.as_bytes(), &node)?;
    drop(change);
    for round in 0..3 {
        let _change = fs.begin_change();
        let data = vec![round; 20_000];
        let source = &mut SliceSource::new(&data);
        fs.write(&inode, 0, data.len(), source, WriteOptions::default())?;
    }
    let _change = fs.begin_change();
    fs.unlink(&root, name.as_bytes())
}

fn bytes(device: &MemoryDevice) -> Vec<u8> {
    let mut bytes = vec![0; device.size_bytes() as usize];
    device.read_at(0, &mut bytes).expect("memory");
    bytes
}

fn judge(device: &MemoryDevice, context: &str) {
    let superblock = read_superblock(device).expect("reads");
    assert!(
        !superblock.incompat().contains(Incompat::RECOVER),
        "{context}: wants recovery"
    );
    check::assert_clean(Arc::new(device.snapshot()), context);
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    device.write_to(&path).expect("writes the image");
    e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{context}: {found}"));
}

#[test]
fn a_copy_of_a_frozen_volume_is_that_of_a_closed_one() {
    let (device, fs) = volume();
    let (stop, done) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for writer in 0..3 {
            let (fs, stop, done) = (&fs, &stop, &done);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    churn(fs, &format!("file{writer}")).expect("writes");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for round in 0..8 {
            let before = done.load(Ordering::Relaxed);
            while done.load(Ordering::Relaxed) < before + 5 {
                std::thread::sleep(Duration::from_millis(1));
            }
            fs.freeze(Duration::from_secs(60)).expect("freezes");
            assert!(matches!(
                fs.freeze(Duration::from_secs(1)),
                Err(Error::Busy)
            ));
            let first = device.snapshot();
            // None of these waits.
            fs.sync().expect("nothing is to be done");
            assert!(fs.status().frozen_for.is_some());
            assert!(fs.snapshot_usage().expect("reads").is_empty());
            let root = fs.root().expect("reads");
            fs.lookup(&root, b"lost+found").expect("reads");
            std::thread::sleep(Duration::from_millis(50));
            assert_eq!(bytes(&first), bytes(&device), "somebody has written");
            judge(&first, &format!("freeze {round}"));
            assert!(fs.thaw(), "it was frozen");
            assert!(!fs.thaw(), "it is not any more");
        }
        stop.store(true, Ordering::Relaxed);
    });
    let superblock = read_superblock(&*device).expect("reads");
    assert!(superblock.incompat().contains(Incompat::RECOVER));
    fs.close().expect("closes");
    judge(&device, "after all");
}

#[test]
fn a_freeze_ends_by_itself() {
    let (_device, fs) = volume();
    fs.freeze(Duration::from_millis(300)).expect("freezes");
    let begin = Instant::now();
    churn(&fs, "file").expect("goes on");
    assert!(begin.elapsed() >= Duration::from_millis(200));
    assert!(!fs.thaw(), "its time was over");
    assert!(fs.status().frozen_for.is_none());
    fs.close().expect("closes");
}

#[test]
fn closing_ends_a_freeze_and_lets_none_begin() {
    let (device, fs) = volume();
    fs.freeze(Duration::from_secs(3600)).expect("freezes");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| churn(&fs, "file"));
        std::thread::sleep(Duration::from_millis(50));
        fs.end_freezes();
        waiting.join().expect("no panic").expect("goes on");
    });
    let refused = fs.freeze(Duration::from_secs(1));
    let closed = ReadOnlyReason::Closed;
    assert!(matches!(refused, Err(Error::ReadOnly { reason }) if reason == closed));
    fs.close().expect("closes");
    judge(&device, "closed");
}

#[test]
fn snapshots_wait_for_the_thaw() {
    let (device, fs) = volume();
    fs.create_snapshot("first", "").expect("takes it");
    fs.freeze(Duration::from_secs(3600)).expect("freezes");
    std::thread::scope(|scope| {
        let taken = scope.spawn(|| fs.create_snapshot("second", ""));
        std::thread::sleep(Duration::from_millis(100));
        assert!(!taken.is_finished());
        assert_eq!(fs.snapshots().len(), 1);
        assert_eq!(fs.snapshot_usage().expect("reads").len(), 1);
        assert!(fs.thaw());
        taken.join().expect("no panic").expect("takes it");
    });
    fs.close().expect("closes");
    drop(fs);
    check::assert_clean(device, "with snapshots");
}
