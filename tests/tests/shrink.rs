//! Goal: a volume made smaller loses nothing, and is an ordinary file system of its new size; interrupted
//! anywhere it is whole.
//!
//! Method: images of mke2fs with descriptors kept in every way there is, filled and fragmented, made smaller
//! again and again, judged by e2fsck and kfs's own check each time. Power cuts at every write of it, and a
//! device whose n-th write, flush or read fails. Work that is stopped at every step. What cannot be is refused.
//!
//! `KFS_SEED=N` does one seed, `KFS_RESIZE_SEEDS=N` that many of each layout, `KFS_LAYOUT=NAME` one layout.

use kfs::{Error, Filesystem, MountOptions, Result, SetMode, ShrinkPhase, Shrunk};
use kfs_disk::testing::{CrashDevice, Fault, FaultDevice, OpKinds, SplitMix64};
use kfs_disk::{BlockDevice, FileDevice, MemoryDevice};
use kfs_tests::faults::{assert_sound, fail_some};
use kfs_tests::layouts::{LAYOUTS, mke2fs, size_of};
use kfs_tests::populated::Populated;
use kfs_tests::power_cut::{Effort, cut_everywhere, formatted, open, options};
use kfs_tests::tree::picture;
use kfs_tests::variables::seeds;
use kfs_tests::workload::Workload;
use kfs_tests::{check, e2fsprogs};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Some blocks are kept for descriptors, and not enough for all sizes.
const FEW_KEPT: (&str, &str) = ("few kept blocks", "-b 1024 -g 1024 -E resize=200000");

const MIB: u64 = 1 << 20;

fn populate(fs: &Arc<Filesystem>, seed: u64, keeps: u64) {
    let mut workload = Workload::within(Arc::clone(fs), "", seed);
    workload.operate_while_room(150, "populating");
    let mut populated = Populated::new(fs, seed);
    let root = fs.root().expect("reads");
    populated.fill(&root, keeps);
    populated.add_oddities(&root);
}

/// Makes the volume smaller, and never stops.
fn shrink(device: &Arc<dyn BlockDevice>, bytes: u64) -> Result<Shrunk> {
    kfs::shrink(
        device,
        &options(),
        bytes,
        &mut |_| ControlFlow::Continue(()),
    )
}

/// Makes an image smaller, and the file with it.
fn shrink_file(path: &Path, bytes: u64) -> Result<Shrunk> {
    let mut image = Arc::new(FileDevice::open(path).expect("opens"));
    let device: Arc<dyn BlockDevice> = Arc::<FileDevice>::clone(&image);
    let shrunk = shrink(&device, bytes)?;
    drop(device);
    let image = Arc::get_mut(&mut image).expect("nobody else has it");
    image.resize(shrunk.size_bytes).expect("a shorter file");
    Ok(shrunk)
}

/// Shrinks an image again and again.
fn shrunk(name: &str, layout: &str, seed: u64) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    let mut random = SplitMix64::new(seed);
    let mut size = 60 * MIB + random.below(20 * MIB);
    mke2fs(&path, layout, size);
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(&path).expect("opens"));
    let fs = open(Arc::clone(&device)).expect("opens");
    populate(&fs, seed, 30);
    let before = picture(&fs).expect("walks");
    fs.close().expect("closes");
    drop(fs);
    let mut moved = 0;
    let (mut rounds, mut refused) = (0, 0);
    for round in 0..12 {
        let context = format!("{name}, seed {seed}, round {round}");
        let minimum = kfs::minimum_size(&device).expect("measures");
        let span = size - minimum;
        if span < MIB / 2 {
            break;
        }
        let wanted = if round == 11 {
            minimum
        } else {
            size - 1 - random.below(span / 2)
        };
        let result = shrink(&device, wanted);
        if matches!(&result, Err(Error::Shrink { why }) if why.contains("its journal")) {
            // It lies on both sides of the end, or has no room in few pieces.
            refused += 1;
            continue;
        }
        let shrunk = result.unwrap_or_else(|error| {
            panic!("{context}: {size} to {wanted}, least {minimum}: {error}")
        });
        assert!(
            shrunk.is_complete && shrunk.size_bytes == shrunk.target_bytes,
            "{context}"
        );
        assert!(
            shrunk.size_bytes <= wanted && shrunk.size_bytes < size,
            "{context}: {shrunk:?}"
        );
        size = shrunk.size_bytes;
        moved += shrunk.moved_blocks;
        rounds += 1;
        e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{context}: {found}"));
        check::assert_clean(Arc::clone(&device), &context);
        let fs = open(Arc::clone(&device)).expect("opens");
        assert_eq!(size_of(&fs), size, "{context}");
        assert!(
            picture(&fs).expect("walks") == before,
            "{context}: not what it was"
        );
        fs.close().expect("closes");
    }
    println!("{name}: {rounds} rounds to {size}, {moved} blocks moved, {refused} refused");
    assert!(rounds > 3, "{name}: {refused} refused");
    drop(device);
    let last = shrink_file(&path, size).expect("nothing is to be done");
    assert_eq!((last.size_bytes, last.moved_blocks), (size, 0));
    e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{name}, file cut: {found}"));
}

#[test]
fn shrunk_images_are_sound() {
    let only = std::env::var("KFS_LAYOUT").ok();
    for (name, layout) in LAYOUTS.iter().chain([&FEW_KEPT]) {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        for seed in seeds("KFS_RESIZE_SEEDS", 1) {
            shrunk(name, layout, seed);
        }
    }
}

#[test]
fn volumes_of_our_own_are_made_smaller() {
    let memory = formatted(120 * MIB, &mkfs::Options::default());
    let device: Arc<dyn BlockDevice> = Arc::new(memory.snapshot());
    let fs = open(Arc::clone(&device)).expect("opens");
    populate(&fs, 5, 30);
    fs.close().expect("closes");
    drop(fs);
    let (before, _) = look_at(&device);
    let minimum = kfs::minimum_size(&device).expect("measures");
    for wanted in [100 * MIB, (100 * MIB + minimum) / 2, minimum] {
        let shrunk = match shrink(&device, wanted) {
            Err(Error::Shrink { why }) if wanted == minimum && why.contains("its journal") => break,
            other => other.unwrap_or_else(|error| panic!("{wanted}: {error}")),
        };
        assert!(
            shrunk.is_complete && shrunk.size_bytes <= wanted,
            "{shrunk:?}"
        );
        let (seen, size) = look_at(&device);
        assert!(seen == before && size == shrunk.size_bytes, "{wanted}");
        check::assert_clean(Arc::clone(&device), "shrunk");
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("image");
        let mut image = vec![0; usize::try_from(size).expect("small")];
        device.read_at(0, &mut image).expect("reads");
        std::fs::write(&path, image).expect("writes");
        e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{wanted}: {found}"));
        println!("{shrunk:?}, least {minimum}");
    }
}

/// What lies in the superblock's second sector is brought in line when the volume is closed, and fits its
/// checksum.
#[test]
fn the_overhead_follows() {
    let options = mkfs::Options {
        block_size: Some(1024),
        blocks_per_group: Some(2048),
        ..mkfs::Options::default()
    };
    let device: Arc<dyn BlockDevice> = Arc::new(formatted(64 * MIB, &options));
    let overhead = || {
        let fs = open(Arc::clone(&device)).expect("opens");
        let superblock = fs.volume().superblock();
        fs.close().expect("closes");
        superblock.s_overhead_clusters.get()
    };
    let before = overhead();
    shrink(&device, 40 * MIB).expect("there is room");
    let after = overhead();
    // Each group that goes had two bitmaps and a table of inodes at least.
    assert!(0 < after && after < before - 12 * 3, "{before} {after}");
    check::assert_clean(Arc::clone(&device), "shrunk");
}

/// Layouts that take all the ways in which descriptors and the journal go.
const CUT: &[(&str, &str)] = &[
    ("kept blocks", "-b 1024 -g 1024 -J size=4,location=2M"),
    (
        "none kept",
        "-b 1024 -g 1024 -O ^resize_inode -J size=4,location=2M",
    ),
    (
        "meta_bg without flex_bg",
        "-b 1024 -g 1024 -O meta_bg,^resize_inode,^flex_bg -J size=4,location=2M",
    ),
    (
        "no checksums",
        "-b 1024 -g 1024 -O ^metadata_csum,^uninit_bg,^resize_inode -J size=4,location=2M",
    ),
    (
        "the journal behind",
        "-b 1024 -g 1024 -J size=4,location=19M",
    ),
    (
        "the journal behind, with a node",
        "-b 1024 -g 1024 -O ^flex_bg -J size=4,location=14M",
    ),
];

/// Size of a small volume, and what it is made.
const BEFORE: u64 = 24 * MIB;
const AFTER: u64 = 17 * MIB + 400 * 1024;

/// A small volume with a few things of all kinds behind [`AFTER`].
fn small(layout: &str) -> MemoryDevice {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    mke2fs(&path, &format!("{layout} -N 3000"), BEFORE);
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(&path).expect("opens"));
    let fs = open(Arc::clone(&device)).expect("opens");
    {
        let mut populated = Populated::new(&fs, 3);
        let root = fs.root().expect("reads");
        populated.fill(&root, 1);
        // All is full, but the end.
        let mut fillers = Vec::new();
        loop {
            let name = format!("filler{}", fillers.len());
            let filler = populated.make(&root, &name, 0o100_644);
            fillers.push((name, Arc::clone(&filler)));
            if !populated.write(&filler, 0, 128 * 1024) {
                break;
            }
        }
        let end = AFTER / u64::from(fs.space().block_size);
        fillers.retain(|(name, filler)| {
            let map = fs.file_map(filler, 0, 1000).expect("reads");
            let stays = map.iter().any(|extent| extent.physical < end);
            if !stays {
                fs.unlink(&root, name.as_bytes()).expect("unlinks");
            }
            stays
        });
        fs.sync().expect("syncs");
        let late = populated.make(&root, "late", 0o040_755);
        let shared = populated.make(&late, "shared", 0o100_644);
        populated.write(&shared, 0, 3000);
        for nr in 0..40u8 {
            let home = populated.make(&late, &format!("home{nr}"), 0o040_755);
            let value = vec![nr; 600];
            let set = fs.set_xattr(&home, b"user.block", &value, SetMode::Any, false);
            set.expect("sets");
            fs.link(&shared, &home, b"shared").expect("links");
            let file = populated.make(&home, "a file with a long name that is its own", 0o100_644);
            populated.write(&file, 0, 100 + usize::from(nr) * 70);
        }
        let pieces = populated.make(&late, "pieces", 0o100_644);
        for nr in 0..90 {
            populated.write(&pieces, nr * 4096, 1000);
        }
        for (name, _) in &fillers {
            fs.unlink(&root, name.as_bytes()).expect("unlinks");
        }
    }
    fs.close().expect("closes");
    drop(fs);
    drop(device);
    e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{layout}: {found}"));
    MemoryDevice::from_file(&path).expect("reads the image")
}

fn look_at(device: &Arc<dyn BlockDevice>) -> (BTreeMap<String, String>, u64) {
    let fs = open(Arc::clone(device)).expect("opens");
    let seen = (picture(&fs).expect("walks"), size_of(&fs));
    fs.close().expect("closes");
    seen
}

#[test]
fn a_power_cut_leaves_a_whole_volume() {
    for (name, layout) in CUT {
        let base = small(layout);
        let whole: Arc<dyn BlockDevice> = Arc::new(base.snapshot());
        let (before, size_before) = look_at(&whole);
        let device = Arc::new(CrashDevice::new(base));
        let shared: Arc<dyn BlockDevice> = Arc::<CrashDevice>::clone(&device);
        // Commits between the steps, wherever they come.
        let options = MountOptions {
            commit_interval: Some(Duration::from_millis(1)),
            ..options()
        };
        let mut steps = 0;
        let shrunk = kfs::shrink(&shared, &options, AFTER, &mut |progress| {
            steps += 1;
            if progress.phase != ShrinkPhase::Survey && steps % 3 == 0 {
                std::thread::sleep(Duration::from_millis(3));
            }
            ControlFlow::Continue(())
        });
        let shrunk = shrunk.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(shrunk.moved_blocks > 40, "{name}: {shrunk:?}");
        let target = shrunk.size_bytes;
        let effort = Effort {
            points_step: 1,
            images_a_point: 2,
            e2fsck_every: 40,
        };
        let reached = cut_everywhere(&device, name, effort, |fs, _, context| {
            assert!(
                picture(fs).expect("walks") == before,
                "{context}: not what it was"
            );
            let size = size_of(fs);
            assert!((target..=size_before).contains(&size), "{context}: {size}");
        });
        println!("{name}: {reached:?}, {shrunk:?}");
        assert!(reached.images > 150 && reached.judged > 3 && reached.transactions > 50);
    }
}

/// Whether shrinking got as far as the n-th operation, which fails.
fn fails(base: &MemoryDevice, fault: Fault, context: &str) -> bool {
    let memory = Arc::new(base.snapshot());
    let shared: Arc<dyn BlockDevice> = Arc::<MemoryDevice>::clone(&memory);
    let (before, size_before) = look_at(&shared);
    let device = Arc::new(FaultDevice::new(Arc::clone(&memory)));
    device.inject(fault);
    let faulty: Arc<dyn BlockDevice> = Arc::<FaultDevice<_>>::clone(&device);
    match shrink(&faulty, AFTER) {
        Ok(_) | Err(Error::Io { .. } | Error::Device { .. } | Error::ReadOnly { .. }) => {}
        Err(error) => panic!("{context}: not the device's failure: {error}"),
    }
    let was_reached = device.struck() > 0;
    let (after, size) = look_at(&shared);
    assert!(after == before, "{context}: not what it was");
    assert!(size <= size_before, "{context}: {size}");
    match shrink(&shared, AFTER) {
        Ok(again) => assert!(again.is_complete, "{context}: {again:?}"),
        // That there was an error is on record.
        Err(Error::Shrink { why }) if why.contains("e2fsck") => {}
        Err(error) => panic!("{context}: goes not on: {error}"),
    }
    assert!(look_at(&shared).0 == before, "{context}: not what it was");
    assert_sound(shared, true, context);
    was_reached
}

#[test]
fn a_failing_device_leaves_a_whole_volume() {
    for (name, layout) in [CUT[0], CUT[5]] {
        let base = small(layout);
        for (what, kinds) in [
            ("write", OpKinds::CHANGES),
            ("flush", OpKinds::FLUSHES),
            ("read", OpKinds::READS),
        ] {
            // All of the first, then fewer and fewer.
            let next = |nth: u64| nth + 1 + nth / 24;
            let words = format!("{name}, {what}");
            let run = |fault, context: &str| fails(&base, fault, context);
            let failures = fail_some(kinds, &words, next, run);
            println!("{name}: {failures} of {what}s");
            assert!(
                failures > 7,
                "{name}: only {failures} of {what}s have failed"
            );
        }
    }
}

#[test]
fn it_can_be_stopped_and_goes_on() {
    let (_, layout) = CUT[4];
    let base = small(layout);
    let whole: Arc<dyn BlockDevice> = Arc::new(base.snapshot());
    let (before, size_before) = look_at(&whole);
    let mut steps = 0;
    let complete = kfs::shrink(&whole, &options(), AFTER, &mut |_| {
        steps += 1;
        ControlFlow::Continue(())
    });
    let target = complete.expect("shrinks").size_bytes;
    for stop in (1..steps).step_by(3) {
        let context = format!("stopped at step {stop}");
        let device: Arc<dyn BlockDevice> = Arc::new(base.snapshot());
        let mut left = stop;
        let shrunk = kfs::shrink(&device, &options(), AFTER, &mut |_| {
            left -= 1;
            match left {
                0 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        let shrunk = shrunk.unwrap_or_else(|error| panic!("{context}: {error}"));
        assert!(!shrunk.is_complete, "{context}");
        check::assert_clean(Arc::clone(&device), &context);
        let (seen, size) = look_at(&device);
        assert!(seen == before, "{context}: not what it was");
        assert!((target..=size_before).contains(&size) && size == shrunk.size_bytes);
        let again = shrink(&device, AFTER).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(
            (again.is_complete, again.size_bytes),
            (true, target),
            "{context}"
        );
        assert!(look_at(&device).0 == before, "{context}: not what it was");
        check::assert_clean(device, &context);
    }
    println!("stopped at {steps} steps");
}

#[test]
fn what_cannot_be_is_refused() {
    let device: Arc<dyn BlockDevice> = Arc::new(small(CUT[0].1));
    let (before, size) = look_at(&device);
    let minimum = kfs::minimum_size(&device).expect("measures");
    for bytes in [0, 1, MIB, minimum / 2] {
        let refused = shrink(&device, bytes);
        assert!(
            matches!(refused, Err(Error::TooSmall { minimum_bytes }) if minimum_bytes == minimum),
            "{bytes}: {refused:?}"
        );
    }
    let refused = shrink(&device, size + 1024);
    assert!(matches!(refused, Err(Error::Shrink { .. })), "{refused:?}");
    let fs = open(Arc::clone(&device)).expect("opens");
    fs.create_snapshot("monday", "").expect("takes it");
    fs.close().expect("closes");
    drop(fs);
    let refused = shrink(&device, AFTER);
    assert!(
        matches!(&refused, Err(Error::Shrink { why }) if why.contains("monday")),
        "{refused:?}"
    );
    let fs = open(Arc::clone(&device)).expect("opens");
    fs.delete_snapshot("monday").expect("deletes");
    fs.close().expect("closes");
    drop(fs);
    assert_eq!(look_at(&device), (before, size));
    check::assert_clean(Arc::clone(&device), "refused");
    shrink(&device, AFTER).expect("nothing is in the way");
}
