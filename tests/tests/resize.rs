//! Goal: growing loses nothing, leaves an ordinary file system whatever it began with and whenever it ends, and
//! disturbs nobody.
//!
//! Method: images of mke2fs with descriptors kept in every way there is, grown again and again to random sizes while
//! operations go on, judged by e2fsck and kfs's own check each time. Power cuts at every write of a growth, and a
//! device whose n-th write, flush or read fails. Threads that allocate meanwhile. Snapshots from before.
//!
//! `KFS_SEED=N` does one seed, `KFS_RESIZE_SEEDS=N` that many of each layout.

use kfs::{Error, Filesystem, GrowthProgress, Result};
use kfs_disk::testing::{CrashDevice, Fault, FaultDevice, OpKinds, SplitMix64};
use kfs_disk::{BlockDevice, FileDevice, MemoryDevice};
use kfs_tests::faults::{assert_sound, fail_each};
use kfs_tests::layouts::{LAYOUTS, mke2fs, size_of};
use kfs_tests::power_cut::{Effort, cut_everywhere, open, options};
use kfs_tests::tree::picture;
use kfs_tests::variables::seeds;
use kfs_tests::workload::Workload;
use kfs_tests::{check, e2fsprogs};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Some blocks are kept for descriptors, and not enough for all sizes.
const FEW_KEPT: (&str, &str) = ("few kept blocks", "-b 1024 -g 1024 -E resize=40960");

const MIB: u64 = 1 << 20;

/// Grows as kfsctl does, slice by slice.
fn grow(fs: &Filesystem, bytes: u64, slice: Duration) -> Result<GrowthProgress> {
    let mut cursor = 0;
    loop {
        let progress = fs.grow(bytes, cursor, slice)?;
        match progress.next {
            Some(next) => cursor = next,
            None => return Ok(progress),
        }
    }
}

/// Grows an image again and again.
fn grown(name: &str, layout: &str, seed: u64) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    let mut random = SplitMix64::new(seed);
    let mut size = 8 * MIB + random.below(4 * MIB);
    mke2fs(&path, layout, size);
    let mut number = 0;
    for round in 0..4 {
        let context = format!("{name}, seed {seed}, round {round}");
        let device = Arc::new(FileDevice::open(&path).expect("opens"));
        let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
        let mut workload = Workload::within(Arc::clone(&fs), "", seed * 100 + round);
        if round == 0 {
            workload.operate_while_room(60, &context);
        }
        for _ in 0..3 {
            size += match random.below(3) {
                0 => random.below(MIB),
                1 => random.below(8 * MIB),
                _ => random.below(40 * MIB),
            };
            number += 1;
            let before = (picture(&fs).expect("walks"), fs.space());
            let slice = [Duration::ZERO, Duration::from_secs(1)][random.below(2) as usize];
            let progress =
                grow(&fs, size, slice).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(progress.size_bytes, progress.target_bytes, "{context}");
            assert_eq!(progress.size_bytes, size_of(&fs), "{context}");
            assert!(
                progress.size_bytes <= size && progress.size_bytes + 2 * MIB > size,
                "{context}"
            );
            assert_eq!(picture(&fs).expect("walks"), before.0, "{context}");
            let space = fs.space();
            assert!(space.blocks >= before.1.blocks && space.inodes >= before.1.inodes);
            let used = |space: kfs::SpaceStatus| space.blocks - space.blocks_free;
            // A resize inode that goes has had one block.
            let lost = used(before.1).wrapping_sub(used(space));
            assert!(lost <= 1, "{context}: what is in use has changed: {lost}");
            if round == 0 {
                workload.operate_while_room(30, &context);
            }
        }
        fill(&fs, round, &context);
        let last = (picture(&fs).expect("walks"), fs.space());
        drop(workload);
        fs.close()
            .unwrap_or_else(|error| panic!("{context}: {error}"));
        drop(fs);
        e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{context}: {found}"));
        check::assert_clean(Arc::clone(&device) as Arc<dyn BlockDevice>, &context);
        let again = open(device as Arc<dyn BlockDevice>).expect("opens");
        assert_eq!(picture(&again).expect("walks"), last.0, "{context}");
        // What was deleted and open is free by now.
        let (space, before) = (again.space(), last.1);
        assert_eq!(
            (space.blocks, space.inodes),
            (before.blocks, before.inodes),
            "{context}"
        );
        again.close().expect("closes");
    }
    assert_eq!(number, 12);
}

/// Puts a file into most of the free space, and deletes the one before.
fn fill(fs: &Filesystem, round: u64, context: &str) {
    let root = fs.root().expect("reads");
    if round > 0 {
        let name = format!("filled{}", round - 1);
        fs.unlink(&root, name.as_bytes()).expect("unlinks");
        fs.sync().expect("syncs");
    }
    let node = kfs::NewNode {
        mode: 0o100_644,
        ..kfs::NewNode::default()
    };
    let name = format!("filled{round}");
    let inode = fs.create(&root, name.as_bytes(), &node).expect("creates");
    let space = fs.space();
    let bytes = space.blocks_available * u64::from(space.block_size) / 10 * 9;
    let data = vec![round as u8 + 1; MIB as usize];
    for offset in (0..bytes).step_by(MIB as usize) {
        let source = &mut kfs::SliceSource::new(&data);
        let options = kfs::WriteOptions::default();
        fs.write(&inode, offset, data.len(), source, options)
            .unwrap_or_else(|error| panic!("{context}: {offset} of {bytes}: {error}"));
    }
}

#[test]
fn grown_images_are_sound() {
    for (name, layout) in LAYOUTS.iter().chain([&FEW_KEPT]) {
        for seed in seeds("KFS_RESIZE_SEEDS", 1) {
            grown(name, layout, seed);
        }
        println!("{name}: sound");
    }
}

/// A volume of 8 MiB with some files, on a device of `bytes`.
fn prepared(layout: &str, bytes: u64) -> MemoryDevice {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    mke2fs(&path, layout, 8 * MIB);
    let device = FileDevice::open(&path).expect("opens");
    device.grow(bytes).expect("a longer file");
    let fs = open(Arc::new(device)).expect("opens");
    Workload::new(Arc::clone(&fs), 5).operate_while_room(40, layout);
    fs.close().expect("closes");
    drop(fs);
    MemoryDevice::from_file(&path).expect("reads the image")
}

/// Layouts whose growth to 44 MiB takes all the ways.
const CUT: &[(&str, &str)] = &[
    ("kept blocks", "-b 1024 -g 1024"),
    ("few kept blocks", "-b 1024 -g 1024 -E resize=20480"),
    ("none kept", "-b 1024 -g 1024 -O ^resize_inode"),
    (
        "no checksums",
        "-b 1024 -g 1024 -O ^metadata_csum,^uninit_bg,^resize_inode",
    ),
];

#[test]
fn a_power_cut_leaves_some_size() {
    for (name, layout) in CUT {
        let bytes = 44 * MIB - 300 * 1024;
        let base = prepared(layout, bytes);
        let device = Arc::new(CrashDevice::new(base));
        let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
        let before = picture(&fs).expect("walks");
        let size_before = size_of(&fs);
        let mut cursor = 0;
        let mut calls = 0;
        let target = loop {
            let progress = fs.grow(0, cursor, Duration::ZERO).expect("grows");
            calls += 1;
            if calls % 3 == 0 {
                fs.sync().expect("syncs");
            }
            if calls % 8 == 0 {
                fs.volume().journal.checkpoint().expect("checkpoints");
            }
            match progress.next {
                Some(next) => cursor = next,
                None => break progress.size_bytes,
            }
        };
        fs.close().expect("closes");
        drop(fs);
        let effort = Effort {
            points_step: 1,
            images_a_point: 3,
            e2fsck_every: 25,
        };
        let reached = cut_everywhere(&device, name, effort, |fs, _, context| {
            assert_eq!(picture(fs).expect("walks"), before, "{context}");
            let size = size_of(fs);
            assert!((size_before..=target).contains(&size), "{context}: {size}");
            let progress = grow(fs, 0, Duration::from_secs(60));
            let progress =
                progress.unwrap_or_else(|error| panic!("{context}: goes not on: {error}"));
            assert_eq!(progress.size_bytes, target, "{context}");
            assert_eq!(picture(fs).expect("walks"), before, "{context}");
        });
        println!("{name}: {reached:?}");
        assert!(reached.images > 100 && reached.judged > 3 && reached.transactions > 20);
    }
}

/// Whether the growth got as far as the n-th operation, which fails.
fn fails(base: &MemoryDevice, fault: Fault, context: &str) -> bool {
    let memory = Arc::new(base.snapshot());
    let device = Arc::new(FaultDevice::new(Arc::clone(&memory)));
    let fs =
        open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens before anything fails");
    let before = picture(&fs).expect("walks");
    let size_before = size_of(&fs);
    fs.drop_caches();
    device.inject(fault);
    let mut cursor = 0;
    loop {
        match fs.grow(0, cursor, Duration::ZERO).and_then(|progress| {
            fs.sync()?;
            Ok(progress)
        }) {
            Ok(GrowthProgress {
                next: Some(next), ..
            }) => cursor = next,
            Ok(_) | Err(Error::Io { .. } | Error::Device { .. } | Error::ReadOnly { .. }) => break,
            Err(error) => panic!("{context}: not the device's failure: {error}"),
        }
    }
    let was_reached = device.struck() > 0;
    device.clear();
    let _ = fs.close();
    drop(fs);
    let fs = open(Arc::clone(&memory) as Arc<dyn BlockDevice>)
        .unwrap_or_else(|error| panic!("{context}: does not recover: {error}"));
    assert_eq!(picture(&fs).expect("walks"), before, "{context}");
    assert!(size_of(&fs) >= size_before, "{context}");
    let progress = grow(&fs, 0, Duration::from_secs(60));
    let progress = progress.unwrap_or_else(|error| panic!("{context}: goes not on: {error}"));
    assert_eq!(progress.size_bytes, progress.target_bytes, "{context}");
    assert_eq!(picture(&fs).expect("walks"), before, "{context}");
    fs.close().expect("closes");
    drop(fs);
    assert_sound(Arc::clone(&memory) as Arc<dyn BlockDevice>, true, context);
    was_reached
}

#[test]
fn a_failing_device_leaves_some_size() {
    for (name, layout) in &CUT[1..3] {
        let base = prepared(layout, 30 * MIB);
        for (what, kinds) in [
            ("write", OpKinds::CHANGES),
            ("flush", OpKinds::FLUSHES),
            ("read", OpKinds::READS),
        ] {
            let words = format!("{name}, {what}");
            let run = |fault, context: &str| fails(&base, fault, context);
            let failures = fail_each(kinds, &words, run);
            println!("{name}: {failures} of {what}s");
            assert!(
                failures > 7,
                "{name}: only {failures} of {what}s have failed"
            );
        }
    }
}

/// What dumpe2fs says the number of blocks is, going by the superblock in block `superblock`.
fn blocks_by(image: &Path, superblock: u32) -> u64 {
    let output = Command::new("dumpe2fs")
        .args(["-h", "-o", &format!("superblock={superblock}")])
        .args(["-o", "blocksize=1024"])
        .arg(image)
        .output()
        .expect("dumpe2fs is installed");
    let text = String::from_utf8_lossy(&output.stdout);
    let count = text
        .lines()
        .find_map(|line| line.strip_prefix("Block count:"))
        .and_then(|count| count.trim().parse().ok());
    count.unwrap_or_else(|| panic!("no count of blocks in: {text}"))
}

#[test]
fn backups_are_not_old_after_a_growth_that_nobody_goes_on_with() {
    for (name, layout) in CUT {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("image");
        prepared(layout, 60 * MIB).write_to(&path).expect("writes");
        // Groups have 1024 blocks, and the first with a backup is the second.
        let backup = 1025;
        let before = blocks_by(&path, backup);
        let fs = open(Arc::new(FileDevice::open(&path).expect("opens"))).expect("opens");
        let progress = fs.grow(60 * MIB, 0, Duration::ZERO).expect("grows");
        assert!(progress.next.is_some(), "{name}: it has grown at once");
        fs.close().expect("closes");
        drop(fs);
        let now = blocks_by(&path, 1);
        assert!(now > before, "{name}: {now} blocks");
        assert_eq!(blocks_by(&path, backup), now, "{name}: the backup is old");
        e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{name}: {found}"));
    }
}

#[test]
fn others_allocate_meanwhile() {
    let base = prepared("-b 1024 -g 1024 -O ^resize_inode", 120 * MIB);
    let device = Arc::new(base);
    let options = kfs::MountOptions {
        commit_interval: Some(Duration::from_millis(20)),
        ..options()
    };
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, options).expect("opens");
    let stop = AtomicBool::new(false);
    let root = fs.root().expect("reads");
    std::thread::scope(|scope| {
        for thread in 0..3u64 {
            let node = kfs::NewNode {
                mode: 0o040_755,
                ..kfs::NewNode::default()
            };
            let home = format!("home{thread}");
            fs.create(&root, home.as_bytes(), &node).expect("creates");
            let (fs, stop) = (Arc::clone(&fs), &stop);
            scope.spawn(move || {
                let mut workload = Workload::within(fs, &format!("{home}/"), thread);
                while !stop.load(Ordering::Relaxed) {
                    workload.operate_while_room(10, "beside a growth");
                }
            });
        }
        for size in (10..=120).step_by(10) {
            grow(&fs, size * MIB, Duration::from_millis(1)).expect("grows");
            std::thread::sleep(Duration::from_millis(50));
        }
        stop.store(true, Ordering::Relaxed);
    });
    fill(&fs, 0, "at last");
    let last = picture(&fs).expect("walks");
    fs.close().expect("closes");
    drop(fs);
    check::assert_clean(
        Arc::clone(&device) as Arc<dyn BlockDevice>,
        "grown beside others",
    );
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    device.write_to(&path).expect("writes the image");
    e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{found}"));
    let fs = open(device as Arc<dyn BlockDevice>).expect("opens");
    assert_eq!(picture(&fs).expect("walks"), last);
}

#[test]
fn snapshots_from_before_show_what_they_did() {
    for (name, layout) in CUT {
        let device = Arc::new(prepared(layout, 60 * MIB));
        let mut fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
        fs.create_snapshot("before", "").expect("takes it");
        let before = picture(&fs).expect("walks");
        let reopened = |fs: Arc<Filesystem>| {
            fs.close().expect("closes");
            drop(fs);
            open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens")
        };
        grow(&fs, 25 * MIB, Duration::ZERO).expect("grows");
        fill(&fs, 0, name);
        fs.create_snapshot("between", "").expect("takes it");
        let between = picture(&fs).expect("walks");
        fs = reopened(fs);
        grow(&fs, 0, Duration::ZERO).expect("grows");
        let grown = (size_of(&fs), fs.space());
        fill(&fs, 1, name);
        fill(&fs, 2, name);
        fs = reopened(fs);
        for (snapshot, shown) in [("before", &before), ("between", &between)] {
            let view = fs.open_snapshot(snapshot).expect("opens");
            assert_eq!(&picture(&view).expect("walks"), shown, "{name}: {snapshot}");
            let seen = kfs::snapshot::SnapshotDevice::open(&fs.volume().snapshots, snapshot);
            check::assert_clean(
                Arc::new(seen.expect("opens")),
                &format!("{name}: {snapshot}"),
            );
            let refused = fs.begin_restore(snapshot, "undo");
            assert!(
                matches!(refused, Err(Error::OtherSize)),
                "{name}: {refused:?}"
            );
        }
        // Nothing of the last part is kept for snapshots that never had it.
        let root = fs.root().expect("reads");
        fs.unlink(&root, b"filled2").expect("unlinks");
        fs.sync().expect("syncs");
        assert!(
            fs.space().blocks_free + 2000 > grown.1.blocks_free,
            "{name}: {:?}",
            fs.space()
        );
        fs.delete_snapshot("between").expect("deletes");
        fs.delete_snapshot("before").expect("deletes");
        assert_eq!(fs.volume().allocator.pinned_blocks(), 0, "{name}");
        assert_eq!(size_of(&fs), grown.0);
        fs.close().expect("closes");
        drop(fs);
        check::assert_clean(Arc::clone(&device) as Arc<dyn BlockDevice>, name);
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let device = Arc::new(prepared("-b 1024 -g 1024", 20 * MIB));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let size = size_of(&fs);
    for bytes in [1, size - 1024, u64::MAX] {
        let refused = fs.grow(bytes, 0, Duration::ZERO);
        assert!(refused.is_err(), "{bytes}: {refused:?}");
        assert_eq!(size_of(&fs), size);
    }
    // The device has a fixed size.
    let refused = fs.grow(21 * MIB, 0, Duration::ZERO);
    assert!(matches!(refused, Err(Error::Device { .. })), "{refused:?}");
    let same = fs
        .grow(size, 0, Duration::from_secs(1))
        .expect("nothing is to be done");
    assert_eq!((same.size_bytes, same.next), (size, None));
    fs.close().expect("closes");
    drop(fs);
    check::assert_clean(device, "refused");
}
