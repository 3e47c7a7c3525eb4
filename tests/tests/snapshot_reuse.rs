//! Goal: segments of the snapshot store are used again and again, after what is needed in them was copied to others
//! if that is little, and wherever the power goes meanwhile, no batch that counts is lost, and none that does not
//! is missed. So the store is never much larger than what is needed in it.
//!
//! Method: one snapshot stays, others come and go, on a store whose segments have had several lives each. Writes
//! are logged, with and without somebody else who commits all the time, and the power is cut at each. Then the snapshot that stayed shows what it did, and another one
//! can be taken, which a store refuses that misses something.
//!
//! `KFS_CRASH_SEEDS=N` does N seeds.

use kfs::Filesystem;
use kfs_disk::testing::CrashDevice;
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::power_cut::{Effort, Picture, Reached, cut_everywhere, formatted, open};
use kfs_tests::tree::{difference, picture};
use kfs_tests::variables::seeds;
use kfs_tests::workload::Workload;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const BLOCK: usize = 1024;
/// Where a segment's head has its sequence number, and what it begins with: md-docs/format/snapshots.md.
const SEQUENCE: std::ops::Range<usize> = 24..32;
const SEGMENT_MAGIC: &[u8] = b"kfs-segm";
/// The same of a batch, and its commit and kind.
const BATCH_MAGIC: &[u8] = b"kfs-batc";
const COMMIT: std::ops::Range<usize> = 32..40;
const KIND: std::ops::Range<usize> = 40..42;
const MOVED: [u8; 2] = [4, 0];
const SEGMENT_BYTES: u64 = 128 * BLOCK as u64;
/// The snapshot that stays.
const KEPT: &str = "kept";
/// Snapshots that come and go before writes are logged, and meanwhile.
const BEFORE: u64 = 400;
const LOGGED: u64 = 30;
/// The same until something has been copied.
const LOGGED_MAX: u64 = 120;

/// What changes from one snapshot to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// The same few blocks: of them the snapshot that stays needs only the first content.
    Same,
    /// And another one each time, which that snapshot needs.
    Others,
}

/// The highest sequence number of a segment, and how many segments have one.
fn lives(device: &MemoryDevice) -> (u64, usize) {
    let bytes = device.to_vec();
    let heads = bytes
        .chunks_exact(BLOCK)
        .filter(|block| block.starts_with(SEGMENT_MAGIC));
    let sequence = |head: &[u8]| u64::from_le_bytes(head[SEQUENCE].try_into().expect("8 bytes"));
    let sequences: Vec<u64> = heads.map(sequence).collect();
    (
        sequences.iter().copied().max().unwrap_or(0),
        sequences.len(),
    )
}

/// The last commit that has copied what is needed in sparse segments, 0 if there is none.
fn last_copies(device: &MemoryDevice) -> u64 {
    let bytes = device.to_vec();
    let heads = bytes.chunks_exact(BLOCK);
    let copies = heads.filter(|head| head.starts_with(BATCH_MAGIC) && head[KIND] == MOVED);
    let commit = |head: &[u8]| u64::from_le_bytes(head[COMMIT].try_into().expect("8 bytes"));
    copies.map(commit).max().unwrap_or(0)
}

/// The file that changes in a round: each has its inode in another block.
fn other(round: u64) -> String {
    format!("other{}", 4 * round)
}

/// Folders come and go, always in the same blocks of metadata, and another snapshot takes the place of the newest.
fn take_one_more(fs: &Filesystem, round: u64, change: Change) {
    let root = fs.root().expect("reads");
    if change == Change::Others {
        let file = fs.lookup(&root, other(round).as_bytes());
        let mode = kfs::SetAttr {
            mode: Some(0o600),
            ..kfs::SetAttr::default()
        };
        fs.set_attr(&file.expect("is there"), &mode)
            .expect("changes");
    }
    for at in 0..4 {
        let name = format!("folder{at}");
        let node = kfs::NewNode {
            mode: 0o040_755,
            ..kfs::NewNode::default()
        };
        if round.is_multiple_of(2) {
            fs.create(&root, name.as_bytes(), &node).expect("creates");
        } else {
            fs.rmdir(&root, name.as_bytes()).expect("removes");
        }
    }
    fs.create_snapshot(&format!("r{round}"), "")
        .expect("there is room");
    if let Some(before) = round.checked_sub(1) {
        fs.delete_snapshot(&format!("r{before}")).expect("deletes");
    }
}

fn make_others(fs: &Filesystem) {
    let root = fs.root().expect("reads");
    for nr in 0..4 * (BEFORE + LOGGED_MAX) {
        let name = format!("other{nr}");
        let node = kfs::NewNode {
            mode: 0o100_644,
            ..kfs::NewNode::default()
        };
        fs.create(&root, name.as_bytes(), &node).expect("creates");
    }
}

/// The store is not much larger than what is needed in it.
fn assert_compact(fs: &Filesystem, seed: u64) {
    let (bytes, needed) = fs.snapshot_store_bytes();
    let spare = 24 * SEGMENT_BYTES;
    assert!(
        bytes <= 4 * needed + spare,
        "seed {seed}: {needed} of {bytes} bytes are needed"
    );
}

/// A closed volume whose store has segments with several lives each.
struct Prepared {
    device: MemoryDevice,
    /// What [`KEPT`] shows.
    shown: Picture,
    /// Snapshots that have come and gone.
    rounds: u64,
}

/// Snapshots come and go until it is enough.
fn prepare(
    seed: u64,
    change: Change,
    mut is_enough: impl FnMut(u64, &MemoryDevice) -> bool,
) -> Prepared {
    let options = mkfs::Options {
        block_size: Some(BLOCK as u32),
        blocks_per_group: Some(2048),
        ..mkfs::Options::default()
    };
    let device = Arc::new(formatted(16 << 20, &options));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let mut workload = Workload::new(Arc::clone(&fs), seed);
    workload.operate_while_room(30, "before all");
    if change == Change::Others {
        make_others(&fs);
    }
    fs.create_snapshot(KEPT, "").expect("there is room");
    let shown = picture(&fs).expect("walks");
    drop(workload);
    let mut rounds = 0;
    while !is_enough(rounds, &device) {
        take_one_more(&fs, rounds, change);
        rounds += 1;
    }
    assert_compact(&fs, seed);
    fs.close().expect("closes");
    let device = device.snapshot();
    Prepared {
        device,
        shown,
        rounds,
    }
}

/// A volume in whose store something will soon be copied, if that is ever so.
fn prepared(seed: u64, change: Change) -> Prepared {
    if change == Change::Same {
        return prepare(seed, change, |rounds, _| rounds == BEFORE);
    }
    let mut copies = None;
    let until_copied = |rounds, device: &MemoryDevice| {
        let last = last_copies(device);
        let before = *copies.get_or_insert(last);
        if rounds == BEFORE / 4 {
            copies = Some(last);
        }
        assert!(rounds < BEFORE, "seed {seed}: nothing is copied");
        rounds > BEFORE / 4 && last > before
    };
    let copied = prepare(seed, change, until_copied).rounds;
    prepare(seed, change, |rounds, _| rounds == copied - 10)
}

/// Small commits, each with old metadata, so that some are on their way whatever others do. And a snapshot that comes
/// and goes, so that places in the store are given up meanwhile.
fn commit_all_the_time(fs: &Filesystem, is_done: &AtomicBool) {
    let root = fs.root().expect("reads");
    let node = kfs::NewNode {
        mode: 0o100_644,
        ..kfs::NewNode::default()
    };
    while !is_done.load(Ordering::Relaxed) {
        let file = fs.create(&root, b"writer", &node).expect("creates");
        fs.fsync(&file, false).expect("syncs");
        fs.unlink(&root, b"writer").expect("removes");
        fs.create_snapshot("writer", "").expect("there is room");
        fs.delete_snapshot("writer").expect("deletes");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn run(seed: u64, change: Change, with_writer: bool) -> Reached {
    let Prepared {
        device,
        shown,
        rounds,
    } = prepared(seed, change);
    let (newest, count) = lives(&device);
    // Where something is copied new ones are needed, too.
    let lives_each = if change == Change::Same { 2 } else { 1 };
    assert!(
        newest as usize > lives_each * count,
        "seed {seed}: {newest} lives of {count} segments"
    );
    let copies = last_copies(&device);
    let device = Arc::new(CrashDevice::new(device));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if with_writer {
            scope.spawn(|| commit_all_the_time(&fs, &is_done));
        }
        for round in rounds..rounds + LOGGED_MAX {
            take_one_more(&fs, round, change);
            // When that happens depends on what the machine does otherwise.
            let is_copied = || change == Change::Same || last_copies(&device.snapshot()) > copies;
            if round >= rounds + LOGGED && is_copied() {
                break;
            }
        }
        is_done.store(true, Ordering::Relaxed);
    });
    fs.close().expect("closes");
    if change == Change::Others {
        let last = last_copies(&device.snapshot());
        assert!(last > copies, "seed {seed}: nothing was copied");
    }
    let (last, _) = lives(&device.snapshot());
    assert!(last > newest + 2, "seed {seed}: {newest} to {last}");
    let effort = Effort {
        points_step: if with_writer { 7 } else { 1 },
        images_a_point: 4,
        e2fsck_every: 0,
    };
    let name = format!("segments used again, {change:?}, seed {seed}, writer {with_writer}");
    cut_everywhere(&device, &name, effort, |fs, _, context| {
        let view = fs.open_snapshot(KEPT);
        let view = view.unwrap_or_else(|error| panic!("{context}: {error:?}"));
        let now = picture(&view).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        assert!(now == shown, "{context}: {}", difference(&shown, &now));
        drop(view);
        let taken = fs.create_snapshot("after", "");
        taken.unwrap_or_else(|error| panic!("{context}: {error:?}"));
    })
}

#[test]
fn the_power_goes() {
    let seeds = seeds("KFS_CRASH_SEEDS", 2);
    let mut reached = Reached::default();
    for seed in &seeds {
        reached += run(*seed, Change::Same, false);
        reached += run(*seed, Change::Others, false);
        reached += run(*seed, Change::Others, true);
    }
    println!("{} workloads on old segments: {reached:?}", seeds.len());
    assert!(reached.images > seeds.len() * 300, "{reached:?}");
}
