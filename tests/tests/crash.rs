//! Goal: whenever the power goes, recovery gives the volume as it was after some whole number of
//! operations, at least as many as had been made durable; and e2fsck finds nothing to complain of.
//!
//! Method: a random workload on a device that logs writes and flushes. After every operation a
//! picture of the whole tree is taken. Then the power is cut after every single write, with no,
//! all, some, torn and reordered unflushed writes; each image is recovered by kfs and its picture
//! looked for among those that may be. Every so many images e2fsck judges the result of kfs's
//! recovery, and on another copy recovers itself.
//!
//! `KFS_SEED=N` replays one workload; `KFS_CRASH_SEEDS=N` runs that many (soak).

use kfs::{Filesystem, MountOptions};
use kfs_disk::testing::CrashDevice;
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::workload::Workload;
use kfs_tests::{e2fsprogs, tree};
use std::collections::BTreeMap;
use std::sync::Arc;

const IMAGE_BYTES: u64 = 8 << 20;
const OPERATIONS: usize = 60;
/// Images for each moment; all of them are recovered by kfs.
const IMAGES_A_POINT: usize = 4;
/// Writes tear at these bounds.
const SECTOR_BYTES: u32 = 512;
/// Every so many images e2fsck is asked, too.
const E2FSCK_EVERY: usize = 60;

type Picture = BTreeMap<String, String>;

/// The tree after an operation, and where in the device's log the operation began and ended.
struct Step {
    what: String,
    began: usize,
    picture: Picture,
    /// Whether everything up to here is durable from the end of the step on.
    durable_at: Option<usize>,
}

fn options() -> MountOptions {
    MountOptions {
        commit_interval: None,
        generation_seed: Some(7),
        cache_bytes: 1 << 20,
        ..MountOptions::default()
    }
}

fn formatted(block_size: u32) -> MemoryDevice {
    let device = MemoryDevice::new(IMAGE_BYTES);
    let options = mkfs::Options {
        block_size: Some(block_size),
        ..mkfs::Options::default()
    };
    mkfs::format(&device, &options).expect("formats");
    device
}

fn record(seed: u64, block_size: u32) -> (Arc<CrashDevice>, Vec<Step>) {
    let device = CrashDevice::with_sector_size(formatted(block_size), SECTOR_BYTES);
    let device = Arc::new(device);
    let fs =
        Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, options()).expect("opens");
    let picture = tree::picture(&fs).expect("walks");
    let mut steps = vec![Step {
        what: "format".into(),
        began: 0,
        picture,
        durable_at: Some(0),
    }];
    let mut workload = Workload::new(Arc::clone(&fs), seed);
    for _ in 0..OPERATIONS {
        let began = device.position();
        let (what, is_sync) = workload.operate().expect("memory does not fail");
        let picture = tree::picture(&fs).expect("walks");
        let durable_at = is_sync.then(|| device.position());
        steps.push(Step {
            what,
            began,
            picture,
            durable_at,
        });
    }
    drop(workload);
    fs.close().expect("closes");
    let durable_at = Some(device.position());
    let picture = steps.last().expect("not empty").picture.clone();
    steps.push(Step {
        what: "close".into(),
        began: device.position(),
        picture,
        durable_at,
    });
    (device, steps)
}

/// Recovers one image by kfs and returns the tree found.
fn recover(image: &MemoryDevice) -> Result<(MemoryDevice, Picture), kfs::Error> {
    let device = Arc::new(image.snapshot());
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, options())?;
    let picture = tree::picture(&fs)?;
    fs.close()?;
    drop(fs);
    Ok((device.snapshot(), picture))
}

fn judge(image: &MemoryDevice, recovered: &MemoryDevice, context: &str) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let ours = folder.path().join("ours");
    recovered.write_to(&ours).expect("writes the image");
    e2fsprogs::check(&ours).unwrap_or_else(|found| panic!("{context}, recovered by kfs: {found}"));
    let theirs = folder.path().join("theirs");
    image.write_to(&theirs).expect("writes the image");
    e2fsprogs::recover_and_check(&theirs)
        .unwrap_or_else(|found| panic!("{context}, recovered by e2fsck: {found}"));
}

fn cut_the_power_everywhere(seed: u64, block_size: u32) -> usize {
    let (device, steps) = record(seed, block_size);
    let mut images = 0;
    for point in device.crash_points() {
        let position = point.position();
        let first = steps
            .iter()
            .rposition(|step| step.durable_at.is_some_and(|at| at <= position))
            .expect("the empty volume is durable");
        let last = steps
            .iter()
            .rposition(|step| step.began <= position)
            .expect("the first is");
        for image in point.images(IMAGES_A_POINT, seed ^ position as u64) {
            let context = format!("seed {seed}, blocks of {block_size}, {image}");
            let (recovered, picture) = recover(&image.device)
                .unwrap_or_else(|error| panic!("{context}: does not recover: {error}"));
            if !steps[first..=last]
                .iter()
                .any(|step| step.picture == picture)
            {
                let durable = &steps[first];
                panic!(
                    "{context}: no state from '{}' ({first}) to '{}' ({last}) is\n{picture:#?}\ndurable was\n{:#?}",
                    durable.what, steps[last].what, durable.picture
                );
            }
            if images % E2FSCK_EVERY == 0 {
                judge(&image.device, &recovered, &context);
            }
            images += 1;
        }
    }
    images
}

#[test]
fn every_power_cut_leaves_a_state_between_two_operations() {
    let number = |name: &str| {
        std::env::var(name)
            .ok()
            .and_then(|text| text.parse::<u64>().ok())
    };
    let seeds: Vec<u64> = match (number("KFS_SEED"), number("KFS_CRASH_SEEDS")) {
        (Some(seed), _) => vec![seed],
        (None, count) => (1..=count.unwrap_or(4)).collect(),
    };
    let mut images = 0;
    for seed in &seeds {
        let block_size = if seed % 2 == 0 { 1024 } else { 4096 };
        images += cut_the_power_everywhere(*seed, block_size);
    }
    println!("{images} crash images of {} workloads", seeds.len());
    assert!(
        images >= seeds.len() * 100,
        "the workloads write more than that"
    );
}
