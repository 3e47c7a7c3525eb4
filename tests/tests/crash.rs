//! Goal: whenever the power goes, recovery gives the volume as it was after some whole number of
//! operations, at least as many as had been made durable; and e2fsck finds nothing to complain of.
//!
//! Method: a random workload on a device that logs writes and flushes. After every operation a
//! picture of the whole tree is taken. Then the power is cut after every single write, with no,
//! all, some, torn and reordered unflushed writes; each image is recovered by kfs and its picture
//! looked for among those that may be. Every so many images e2fsck judges the result of kfs's
//! recovery, and on another copy recovers itself.
//!
//! Operations never overwrite bytes in place: that is not atomic, by design.
//!
//! `KFS_SEED=N` replays one workload; `KFS_CRASH_SEEDS=N` runs that many (soak).

use kfs::{
    Filesystem, Inode, MountOptions, NewNode, RenameMode, SetAttr, SetMode, SliceSource,
    WriteOptions,
};
use kfs_disk::testing::{CrashDevice, SplitMix64};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::{e2fsprogs, tree};
use std::collections::BTreeMap;
use std::sync::Arc;

const IMAGE_BYTES: u64 = 8 << 20;
const OPERATIONS: usize = 60;
/// Images for each moment; all of them are recovered by kfs.
const IMAGES_A_POINT: usize = 4;
/// Writes tear at these bounds. The superblock is 1024 bytes with a checksum at its end and, like
/// ext4, kfs relies on its being written as a whole; everything else may tear anywhere.
const ATOMIC_BYTES: u32 = 1024;
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

struct Workload {
    fs: Arc<Filesystem>,
    random: SplitMix64,
    /// Directories and files by path; directories end with a slash.
    names: Vec<String>,
    next: u32,
}

impl Workload {
    fn below(&mut self, bound: usize) -> usize {
        (self.random.next_u64() % bound as u64) as usize
    }

    fn resolve(&self, path: &str) -> (Arc<Inode>, String) {
        let mut directory = self.fs.root().expect("root");
        let mut parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let last = parts.pop().expect("a path has a name").to_string();
        for part in parts {
            directory = self.fs.lookup(&directory, part.as_bytes()).expect("exists");
        }
        (directory, last)
    }

    fn any(&mut self, directories: bool) -> Option<String> {
        let fitting: Vec<String> = self
            .names
            .iter()
            .filter(|name| name.ends_with('/') == directories)
            .cloned()
            .collect();
        if fitting.is_empty() {
            return None;
        }
        let index = self.below(fitting.len());
        Some(fitting[index].clone())
    }

    fn new_path(&mut self) -> String {
        let parent = self.any(true).unwrap_or_default();
        self.next += 1;
        let filler = "x".repeat(self.below(60));
        format!("{parent}n{}{filler}", self.next)
    }

    /// Does one operation and says which. Those that find nothing to work on make a file.
    fn operate(&mut self) -> (String, bool) {
        match self.below(16) {
            0..=3 => (self.make(0o100_644), false),
            4 | 5 => (self.make(0o040_755), false),
            6..=8 => (self.append(), false),
            9 => (self.truncate(), false),
            10 | 11 => (self.remove(), false),
            12 => (self.rename(), false),
            13 => (self.link(), false),
            14 => (self.set_xattr(), false),
            _ => {
                self.fs.sync().expect("memory does not fail");
                ("sync".into(), true)
            }
        }
    }

    fn make(&mut self, mode: u16) -> String {
        let path = self.new_path();
        let (directory, name) = self.resolve(&path);
        let node = NewNode {
            mode,
            uid: 5,
            gid: 6,
            ..NewNode::default()
        };
        self.fs
            .create(&directory, name.as_bytes(), &node)
            .expect("creates");
        let is_directory = mode & 0o040_000 != 0;
        self.names.push(if is_directory {
            format!("{path}/")
        } else {
            path.clone()
        });
        format!("make {path}")
    }

    fn append(&mut self) -> String {
        let Some(path) = self.any(false) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path);
        let inode = self.fs.lookup(&directory, name.as_bytes()).expect("exists");
        let len = 1 + self.below(9000);
        let byte = (self.random.next_u64() & 0xff) as u8;
        let content: Vec<u8> = (0..len).map(|index| byte ^ index as u8).collect();
        let offset = self.fs.attr(&inode).size_bytes;
        let mut source = SliceSource::new(&content);
        self.fs
            .write(&inode, offset, len, &mut source, WriteOptions::default())
            .expect("writes");
        format!("append {len} to {path}")
    }

    fn truncate(&mut self) -> String {
        let Some(path) = self.any(false) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path);
        let inode = self.fs.lookup(&directory, name.as_bytes()).expect("exists");
        let size = self.fs.attr(&inode).size_bytes;
        let size = self.random.next_u64() % (size + 1);
        let change = SetAttr {
            size_bytes: Some(size),
            ..SetAttr::default()
        };
        self.fs.set_attr(&inode, &change).expect("truncates");
        format!("truncate {path} to {size}")
    }

    fn remove(&mut self) -> String {
        let wants_directory = self.below(3) == 0;
        let Some(path) = self.any(wants_directory) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path);
        if wants_directory {
            if self.fs.rmdir(&directory, name.as_bytes()).is_err() {
                return self.make(0o040_755);
            }
        } else {
            self.fs
                .unlink(&directory, name.as_bytes())
                .expect("unlinks");
        }
        self.names.retain(|other| *other != path);
        format!("remove {path}")
    }

    fn rename(&mut self) -> String {
        let (Some(from), Some(to)) = (self.any(false), self.any(false)) else {
            return self.make(0o100_644);
        };
        let replaces = self.below(2) == 0 && from != to;
        let to = if replaces { to } else { self.new_path() };
        let (old, old_name) = self.resolve(&from);
        let (new, new_name) = self.resolve(&to);
        let are_same = {
            let target = self.fs.lookup(&new, new_name.as_bytes()).ok();
            let source = self.fs.lookup(&old, old_name.as_bytes()).expect("exists");
            target.is_some_and(|target| target.nr() == source.nr())
        };
        self.fs
            .rename(
                &old,
                old_name.as_bytes(),
                &new,
                new_name.as_bytes(),
                RenameMode::Replace,
            )
            .expect("renames");
        if !are_same {
            self.names.retain(|other| *other != from && *other != to);
            self.names.push(to.clone());
        }
        format!("rename {from} to {to}")
    }

    fn link(&mut self) -> String {
        let Some(path) = self.any(false) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path);
        let inode = self.fs.lookup(&directory, name.as_bytes()).expect("exists");
        let other = self.new_path();
        let (directory, name) = self.resolve(&other);
        self.fs
            .link(&inode, &directory, name.as_bytes())
            .expect("links");
        self.names.push(other.clone());
        format!("link {path} to {other}")
    }

    fn set_xattr(&mut self) -> String {
        let Some(path) = self.any(false) else {
            return self.make(0o100_644);
        };
        let (directory, name) = self.resolve(&path);
        let inode = self.fs.lookup(&directory, name.as_bytes()).expect("exists");
        let value = vec![9; self.below(300)];
        self.fs
            .set_xattr(&inode, b"user.crash", &value, SetMode::Any, false)
            .expect("sets");
        format!("xattr of {} bytes on {path}", value.len())
    }
}

fn record(seed: u64, block_size: u32) -> (Arc<CrashDevice>, Vec<Step>) {
    let device = CrashDevice::with_sector_size(formatted(block_size), ATOMIC_BYTES);
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
    let random = SplitMix64::new(seed);
    let mut workload = Workload {
        fs: Arc::clone(&fs),
        random,
        names: Vec::new(),
        next: 0,
    };
    for _ in 0..OPERATIONS {
        let began = device.position();
        let (what, is_sync) = workload.operate();
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
