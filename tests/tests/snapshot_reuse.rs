//! Goal: segments of the snapshot store are used again and again, and wherever the power goes meanwhile, no batch
//! that counts is lost, and none that does not is missed.
//!
//! Method: one snapshot stays, others come and go, on a store whose segments have had several lives each. Writes
//! are logged, and the power is cut at each. Then the snapshot that stayed shows what it did, and another one
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

const BLOCK: usize = 1024;
/// Where a segment's head has its sequence number, and what it begins with: md-docs/format/snapshots.md.
const SEQUENCE: std::ops::Range<usize> = 24..32;
const SEGMENT_MAGIC: &[u8] = b"kfs-segm";
/// The snapshot that stays.
const KEPT: &str = "kept";
/// Snapshots that come and go before writes are logged, and meanwhile.
const BEFORE: u64 = 400;
const LOGGED: u64 = 30;

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

/// Folders come and go, always in the same blocks of metadata, and another snapshot takes the place of the newest.
fn take_one_more(fs: &Filesystem, round: u64) {
    let root = fs.root().expect("reads");
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

/// A closed volume whose store has segments with several lives, and what [`KEPT`] shows.
fn prepared(seed: u64) -> (MemoryDevice, Picture) {
    let options = mkfs::Options {
        block_size: Some(BLOCK as u32),
        blocks_per_group: Some(2048),
        ..mkfs::Options::default()
    };
    let device = Arc::new(formatted(16 << 20, &options));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let mut workload = Workload::new(Arc::clone(&fs), seed);
    workload.operate_while_room(30, "before all");
    fs.create_snapshot(KEPT, "").expect("there is room");
    let shown = picture(&fs).expect("walks");
    drop(workload);
    for round in 0..BEFORE {
        take_one_more(&fs, round);
    }
    fs.close().expect("closes");
    (device.snapshot(), shown)
}

fn run(seed: u64) -> Reached {
    let (base, shown) = prepared(seed);
    let (newest, count) = lives(&base);
    assert!(
        newest as usize > 2 * count,
        "seed {seed}: {newest} lives of {count} segments"
    );
    let device = Arc::new(CrashDevice::new(base));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    for round in BEFORE..BEFORE + LOGGED {
        take_one_more(&fs, round);
    }
    fs.close().expect("closes");
    let (last, _) = lives(&device.snapshot());
    assert!(last > newest + 2, "seed {seed}: {newest} to {last}");
    let effort = Effort {
        points_step: 1,
        images_a_point: 4,
        e2fsck_every: 0,
    };
    let name = format!("segments used again, seed {seed}");
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
        reached += run(*seed);
    }
    println!("{} workloads on old segments: {reached:?}", seeds.len());
    assert!(reached.images > seeds.len() * 300, "{reached:?}");
}
