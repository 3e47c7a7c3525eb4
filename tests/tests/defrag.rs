//! Goal: a defragmentation changes nothing but where data lies; it makes that better and never worse,
//! whoever works on the volume meanwhile and whenever the power goes.
//!
//! Method: files in many pieces, alone; random operations and snapshots with defragmentations in between,
//! compared with pictures.
//!
//! `KFS_SEED=N` replays one run, `KFS_DEFRAG_SEEDS=N` makes that many, of `KFS_DEFRAG_STEPS=N` steps each.

use kfs::{Error, Filesystem, Inode, SliceSource, SpaceChange, WriteOptions};
use kfs_disk::testing::SplitMix64;
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::check;
use kfs_tests::defrag::{defrag_all, make_fragmented, shape, survey};
use kfs_tests::e2fsprogs;
use kfs_tests::power_cut::{Picture, formatted, open};
use kfs_tests::tree::picture;
use kfs_tests::variables::{number, seeds};
use kfs_tests::workload::Workload;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

fn options(seed: u64) -> mkfs::Options {
    let block_size = if seed.is_multiple_of(2) { 1024 } else { 4096 };
    mkfs::Options {
        block_size: Some(block_size),
        blocks_per_group: Some(2048),
        ..mkfs::Options::default()
    }
}

fn plain() -> mkfs::Options {
    mkfs::Options {
        block_size: Some(4096),
        ..mkfs::Options::default()
    }
}

/// Shapes of all files, by inode.
fn shapes(fs: &Arc<Filesystem>) -> Vec<String> {
    let mut all: Vec<String> = files(fs)
        .iter()
        .map(|file| {
            let shape = shape(fs, file).expect("reads");
            format!("{:?}: {shape}", file.nr())
        })
        .collect();
    all.sort();
    all
}

/// All files of the volume.
fn files(fs: &Arc<Filesystem>) -> Vec<Arc<Inode>> {
    let mut found = Vec::new();
    let mut waiting = vec![fs.root().expect("root")];
    while let Some(directory) = waiting.pop() {
        let mut names = Vec::new();
        fs.list(&directory, 0, &mut |entry| {
            names.push(entry.name.to_vec());
            std::ops::ControlFlow::Continue(())
        })
        .expect("lists");
        for name in names {
            if name == b"." || name == b".." {
                continue;
            }
            let inode = fs.lookup(&directory, &name).expect("is there");
            if inode.is_directory() {
                waiting.push(inode);
            } else if inode.is_regular() {
                found.push(inode);
            }
        }
    }
    found
}

fn ask_e2fsck(device: &MemoryDevice, context: &str) {
    let image = tempfile::NamedTempFile::new().expect("makes a file");
    device.write_to(image.path()).expect("writes");
    e2fsprogs::check(image.path()).unwrap_or_else(|said| panic!("{context}: {said}"));
}

/// Closes the volume and lets both checks judge it.
fn close_and_judge(fs: Arc<Filesystem>, device: &Arc<MemoryDevice>, context: &str) {
    fs.close().expect("closes");
    drop(fs);
    check::assert_clean(Arc::clone(device) as Arc<dyn BlockDevice>, context);
    ask_e2fsck(device, context);
}

fn punch(fs: &Filesystem, file: &Arc<Inode>, offset: u64, len: u64) {
    let options = WriteOptions::default();
    fs.change_space(file, offset, len, SpaceChange::PunchHole, options)
        .expect("punches");
}

#[test]
fn files_in_pieces_become_whole() {
    let device = Arc::new(formatted(256 << 20, &plain()));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let made = make_fragmented(&fs, &["a", "b", "c"], 1700).expect("there is room");
    // A hole, and unwritten blocks.
    punch(&fs, &made[1], 100 << 12, 5 << 12);
    let zero = SpaceChange::ZeroRange { keep_size: true };
    fs.change_space(&made[1], 700 << 12, 9 << 12, zero, WriteOptions::default())
        .expect("zeros");
    let (before, shown) = (shapes(&fs), picture(&fs).expect("walks"));
    let worst = survey(&fs, false).expect("walks");
    assert_eq!((worst.files, worst.candidates.len()), (3, 3));
    assert!(worst.layout.fragments > 5000, "{worst:?}");
    assert_eq!(worst.layout.aligned_blocks, 0);

    let done = defrag_all(&fs, false).expect("moves");

    let best = survey(&fs, false).expect("walks");
    println!("{done:?}: {:?} became {:?}", worst.layout, best.layout);
    assert_eq!(best.layout.blocks, worst.layout.blocks);
    // The hole and the unwritten range each end an extent, not a fragment.
    assert!(
        best.layout.fragments <= 4 && best.layout.extents <= 7,
        "{best:?}"
    );
    assert_eq!(best.layout.gain, 0, "{best:?}");
    // Each file has three whole windows; one of them has a hole.
    assert_eq!(best.layout.aligned_blocks, 8 * 512, "{best:?}");
    assert_eq!(shapes(&fs), before);
    assert_eq!(picture(&fs).expect("walks"), shown);
    assert_eq!(
        defrag_all(&fs, false).expect("looks").moved_bytes,
        0,
        "nothing is left to do"
    );
    drop(made);
    close_and_judge(fs, &device, "files in pieces");
}

#[test]
fn what_snapshots_see_stays_unless_asked_for() {
    let device = Arc::new(formatted(128 << 20, &plain()));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    make_fragmented(&fs, &["a", "b"], 900).expect("there is room");
    fs.create_snapshot("s", "").expect("there is room");
    let shown = picture(&fs).expect("walks");
    let seen = survey(&fs, false).expect("walks");
    assert_eq!((seen.layout.gain, seen.kept_blocks), (0, 1800), "{seen:?}");
    assert_eq!(defrag_all(&fs, false).expect("looks").moved_bytes, 0);
    assert_eq!(fs.volume().allocator.pinned_blocks(), 0);

    let done = defrag_all(&fs, true).expect("moves");
    fs.sync().expect("commits");

    assert_eq!(done.moved_bytes, 1800 << 12);
    // Nodes of the trees, too.
    let pinned = fs.volume().allocator.pinned_blocks();
    assert!((1800..1830).contains(&pinned), "{pinned}");
    assert_eq!(survey(&fs, true).expect("walks").layout.fragments, 2);
    let view = fs.open_snapshot("s").expect("opens");
    assert_eq!(picture(&view).expect("walks"), shown);
    assert_eq!(survey(&view, true).expect("walks").layout.fragments, 1800);
    drop(view);
    fs.delete_snapshot("s").expect("deletes");
    assert_eq!(fs.volume().allocator.pinned_blocks(), 0);
    close_and_judge(fs, &device, "after the snapshot");
}

#[test]
fn a_full_volume_is_no_failure() {
    let device = Arc::new(formatted(24 << 20, &plain()));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let made = make_fragmented(&fs, &["a", "b"], 1000).expect("there is room");
    let filler = &make_fragmented(&fs, &["filler"], 1).expect("there is room")[0];
    let content = vec![7; 1 << 20];
    let mut offset = 0;
    let options = WriteOptions::default();
    loop {
        let source = &mut SliceSource::new(&content);
        match fs.write(filler, offset, content.len(), source, options) {
            Ok(written) => offset += written as u64,
            Err(Error::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    let shown = picture(&fs).expect("walks");
    let before = survey(&fs, false).expect("walks").layout;
    let done = defrag_all(&fs, false).expect("does what it can");
    assert!(done.no_room > 0, "{done:?}");
    let after = survey(&fs, false).expect("walks").layout;
    assert!(after.fragments <= before.fragments);
    // With some room it gets better.
    fs.unlink(&fs.root().expect("root"), b"filler")
        .expect("unlinks");
    fs.sync().expect("commits");
    defrag_all(&fs, false).expect("moves");
    let better = survey(&fs, false).expect("walks").layout;
    assert!(better.fragments < before.fragments / 10, "{better:?}");
    drop(made);
    assert_eq!(picture(&fs).expect("walks").get("/a"), shown.get("/a"));
    close_and_judge(fs, &device, "a full volume");
}

#[test]
fn some_files_cannot_be_moved() {
    let device = Arc::new(formatted(64 << 20, &plain()));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let made = make_fragmented(&fs, &["a", "b"], 50).expect("there is room");
    let flags = kfs::InodeFlags::IMMUTABLE;
    let flags = fs.attr(&made[0]).flags | flags;
    fs.set_flags(&made[0], flags).expect("sets");
    let seen = fs.survey(b"/", false, kfs_tests::defrag::never());
    let seen = seen.expect("walks");
    assert_eq!(seen.skipped.immutable, 1);
    assert_eq!(seen.candidates.len(), 1);
    assert_eq!(seen.candidates[0].path, b"/b");
    let only = fs.survey(b"/b", false, kfs_tests::defrag::never());
    assert_eq!(only.expect("looks").candidates, seen.candidates);
    let missing = fs.survey(b"/x", false, kfs_tests::defrag::never());
    assert!(matches!(missing, Err(Error::NotFound)));
    fs.create_snapshot("s", "").expect("there is room");
    let store = fs.survey(b"/.kfs/snapshots", false, kfs_tests::defrag::never());
    assert!(matches!(store, Err(Error::NotFound)));
}

/// While the volume is frozen a defragmentation waits, and who reads the file does not.
#[test]
fn a_frozen_volume_is_read_and_not_moved() {
    let device = Arc::new(formatted(64 << 20, &plain()));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    make_fragmented(&fs, &["a", "b"], 300).expect("there is room");
    let shown = picture(&fs).expect("walks");
    fs.freeze(Duration::from_secs(60)).expect("freezes");
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let moving = scope.spawn(|| {
            let done = defrag_all(&fs, false).expect("moves");
            is_done.store(true, Ordering::Release);
            done
        });
        for _ in 0..20 {
            assert!(picture(&fs).expect("walks") == shown);
            std::thread::sleep(Duration::from_millis(10));
        }
        assert!(!is_done.load(Ordering::Acquire), "it was moved");
        assert!(fs.thaw(), "the freeze has ended");
        let done = moving.join().expect("does not panic");
        assert_eq!(done.moved_bytes, 600 << 12);
    });
    assert!(picture(&fs).expect("walks") == shown);
    close_and_judge(fs, &device, "after the freeze");
}

/// Random operations, snapshots and defragmentations.
fn model_run(seed: u64, steps: u64) -> u64 {
    let bytes = if seed.is_multiple_of(3) {
        12 << 20
    } else {
        32 << 20
    };
    let device = Arc::new(formatted(bytes, &options(seed)));
    let mut fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let mut workload = Workload::new(Arc::clone(&fs), seed);
    let mut random = SplitMix64::new(seed);
    let mut snapshots: Vec<(String, Picture)> = Vec::new();
    let mut moved = 0;
    for step in 0..steps {
        match random.below(50) {
            0 | 1 => {
                let moves_kept = random.below(2) == 0;
                let (before, shown) = (shapes(&fs), picture(&fs).expect("walks"));
                let worst = survey(&fs, true).expect("walks").layout;
                let done = defrag_all(&fs, moves_kept);
                let done = done.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
                moved += done.moved_bytes;
                assert_eq!(shapes(&fs), before, "seed {seed}, step {step}");
                assert!(
                    picture(&fs).expect("walks") == shown,
                    "seed {seed}, step {step}"
                );
                let best = survey(&fs, true).expect("walks").layout;
                // In windows of 2 MiB, each of which is worth two fragments.
                let window = (2 << 20) / u64::from(fs.space().block_size);
                let measure = |layout: &kfs::FileLayout| {
                    layout.fragments as i64 - 2 * (layout.aligned_blocks / window) as i64
                };
                assert!(
                    measure(&best) <= measure(&worst),
                    "seed {seed}: {worst:?} became {best:?}"
                );
            }
            2 if snapshots.len() < 4 => {
                let name = format!("s{step}");
                match fs.create_snapshot(&name, "") {
                    Ok(_) => snapshots.push((name, picture(&fs).expect("walks"))),
                    Err(Error::NoSpace | Error::SnapshotStoreFull) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
            3 if !snapshots.is_empty() => {
                let at = random.below(snapshots.len() as u64) as usize;
                let (name, _) = snapshots.remove(at);
                fs.delete_snapshot(&name).expect("deletes");
            }
            4 if random.below(4) == 0 => {
                fs.close().expect("closes");
                drop(fs);
                fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
                workload = workload.reopened(Arc::clone(&fs));
            }
            _ => match workload.operate().and_then(|_| workload.overwrite()) {
                Ok(_) => {}
                Err(Error::NoSpace | Error::SnapshotStoreFull) => {
                    if let Some((name, _)) = snapshots.pop() {
                        fs.delete_snapshot(&name).expect("deletes");
                    }
                }
                Err(error) => panic!("seed {seed}: {error}"),
            },
        }
        if step.is_multiple_of(100) {
            assert_shown(&fs, &snapshots, &format!("seed {seed}, step {step}"));
        }
    }
    assert_shown(&fs, &snapshots, &format!("seed {seed}"));
    for (name, _) in snapshots {
        fs.delete_snapshot(&name).expect("deletes");
    }
    drop(workload);
    close_and_judge(fs, &device, &format!("seed {seed}"));
    moved
}

fn assert_shown(fs: &Arc<Filesystem>, snapshots: &[(String, Picture)], context: &str) {
    for (name, shown) in snapshots {
        let view = fs.open_snapshot(name).expect("opens");
        assert!(
            picture(&view).expect("walks") == *shown,
            "{context}: {name}"
        );
    }
}

#[test]
fn nothing_changes_but_where_data_lies() {
    let steps = number("KFS_DEFRAG_STEPS").unwrap_or(600);
    for seed in seeds("KFS_DEFRAG_SEEDS", 4) {
        let moved = model_run(seed, steps);
        println!("seed {seed}: {moved} bytes moved");
        assert!(moved > 100_000, "seed {seed}: {moved} bytes moved");
    }
}
