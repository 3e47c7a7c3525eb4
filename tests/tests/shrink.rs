//! Goal: a volume made smaller loses nothing, and is an ordinary file system of its new size; interrupted
//! anywhere it is whole.
//!
//! Method: images of mke2fs with descriptors kept in every way there is, filled and fragmented, made smaller
//! again and again, judged by e2fsck and kfs's own check each time.
//!
//! `KFS_SEED=N` does one seed, `KFS_RESIZE_SEEDS=N` that many of each layout, `KFS_LAYOUT=NAME` one layout.

use kfs::{
    BlockNr, Error, Filesystem, Inode, NewNode, Result, SetMode, Shrunk, SliceSource, SpaceChange,
    WriteOptions,
};
use kfs_disk::testing::SplitMix64;
use kfs_disk::{BlockDevice, FileDevice};
use kfs_tests::power_cut::{open, options};
use kfs_tests::tree::picture;
use kfs_tests::variables::number;
use kfs_tests::workload::Workload;
use kfs_tests::{check, e2fsprogs};
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// Options of mke2fs, among them all ways to keep descriptors. Groups of 1 MiB make them many.
const LAYOUTS: &[(&str, &str)] = &[
    ("kept blocks", "-b 1024 -g 1024"),
    ("few kept blocks", "-b 1024 -g 1024 -E resize=200000"),
    ("none kept", "-b 1024 -g 1024 -O ^resize_inode"),
    ("meta_bg", "-b 1024 -g 1024 -O meta_bg,^resize_inode"),
    (
        "meta_bg without flex_bg",
        "-b 1024 -g 1024 -O meta_bg,^resize_inode,^flex_bg",
    ),
    ("without flex_bg", "-b 1024 -g 1024 -O ^flex_bg"),
    ("without 64bit", "-b 1024 -g 1024 -O ^64bit"),
    ("uninit_bg", "-b 1024 -g 1024 -O ^metadata_csum,uninit_bg"),
    (
        "no checksums",
        "-b 1024 -g 1024 -O ^metadata_csum,^uninit_bg",
    ),
    (
        "sparse_super2",
        "-b 1024 -g 1024 -O sparse_super2,^resize_inode",
    ),
    (
        "copies everywhere",
        "-b 1024 -g 1024 -O ^sparse_super,^resize_inode",
    ),
    ("no journal", "-b 1024 -g 1024 -O ^has_journal"),
    ("blocks of 4 KiB", "-b 4096 -g 2048"),
    (
        "blocks of 4 KiB, none kept",
        "-b 4096 -g 2048 -O ^resize_inode",
    ),
    ("usual groups", "-b 1024"),
];

const MIB: u64 = 1 << 20;

fn seeds() -> Vec<u64> {
    match number("KFS_SEED") {
        Some(seed) => vec![seed],
        None => (1..=number("KFS_RESIZE_SEEDS").unwrap_or(1)).collect(),
    }
}

fn mke2fs(path: &Path, layout: &str, bytes: u64) {
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .args(layout.split(' '))
        .arg(path)
        .arg(format!("{}k", bytes / 1024))
        .output()
        .expect("mke2fs runs (package e2fsprogs)");
    assert!(made.status.success(), "{layout}: {made:?}");
}

fn size_of(fs: &Filesystem) -> u64 {
    let geometry = &fs.volume().geometry;
    geometry.offset_of(BlockNr(geometry.blocks_count()))
}

fn operate(workload: &mut Workload, count: u32, context: &str) {
    for _ in 0..count {
        match workload.operate() {
            Ok(_) | Err(Error::NoSpace) => {}
            Err(error) => panic!("{context}: {error}"),
        }
    }
}

/// A volume with all kinds of things on it, most of them far behind its beginning.
struct Populated<'f> {
    fs: &'f Arc<Filesystem>,
    random: SplitMix64,
}

impl Populated<'_> {
    fn make(&self, directory: &Inode, name: &str, mode: u16) -> Arc<Inode> {
        let node = NewNode {
            mode,
            ..NewNode::default()
        };
        let made = self.fs.create(directory, name.as_bytes(), &node);
        made.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Writes bytes that no other place has. Returns whether there was room.
    fn write(&mut self, inode: &Arc<Inode>, offset: u64, len: usize) -> bool {
        let byte = self.random.next_u64() as u8;
        let data: Vec<u8> = (0..len).map(|at| byte ^ (at / 7) as u8).collect();
        let options = WriteOptions::default();
        match self
            .fs
            .write(inode, offset, len, &mut SliceSource::new(&data), options)
        {
            Ok(_) => true,
            Err(Error::NoSpace) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Fills the volume with files, then deletes many: what stays is everywhere.
    fn fill(&mut self, root: &Inode, keeps: u64) {
        let homes: Vec<Arc<Inode>> = (0..12)
            .map(|nr| self.make(root, &format!("home{nr}"), 0o040_755))
            .collect();
        let mut made = Vec::new();
        while self.fs.space().blocks_available > 600 && self.fs.space().inodes_free > 40 {
            let home = &homes[self.random.below(homes.len() as u64) as usize];
            let name = format!("file{}", made.len());
            let file = self.make(home, &name, 0o100_644);
            let len = match self.random.below(4) {
                0 => 1 + self.random.below(900),
                1 => 1 + self.random.below(400_000),
                _ => 1 + self.random.below(30_000),
            };
            if !self.write(&file, 0, len as usize) {
                break;
            }
            made.push((Arc::clone(home), name));
        }
        for (home, name) in made {
            if self.random.below(100) >= keeps {
                self.fs.unlink(&home, name.as_bytes()).expect("unlinks");
            }
        }
        self.fs.sync().expect("syncs");
    }

    /// Links, attributes, a directory with a tree, files in many pieces, holes and unwritten parts.
    fn add_oddities(&mut self, root: &Inode) {
        let odd = self.make(root, "odd", 0o040_755);
        let many = self.make(&odd, "many", 0o040_755);
        let shared = self.make(&odd, "shared", 0o100_600);
        self.write(&shared, 0, 5000);
        for nr in 0..400 {
            let name = format!("a name that is long enough to need some blocks, number {nr}");
            if nr % 4 == 0 {
                self.fs
                    .link(&shared, &many, name.as_bytes())
                    .expect("links");
            } else {
                self.make(&many, &name, 0o100_644);
            }
        }
        for nr in 0..30 {
            let inside = self.make(&many, &format!("below{nr}"), 0o040_755);
            let value = vec![nr; 700];
            let set = self
                .fs
                .set_xattr(&inside, b"user.block", &value, SetMode::Any, false);
            set.expect("sets");
            let target = "x".repeat(10 + 17 * usize::from(nr));
            let node = NewNode {
                mode: 0o120_777,
                target: target.as_bytes(),
                ..NewNode::default()
            };
            self.fs.create(&inside, b"link", &node).expect("links");
        }
        let pieces = self.make(&odd, "pieces", 0o100_644);
        let between = self.make(&odd, "between", 0o100_644);
        for nr in 0..700 {
            self.write(&pieces, nr * 8192, 1000);
            self.write(&between, nr * 4096, 900);
        }
        self.fs.unlink(&odd, b"between").expect("unlinks");
        let space = SpaceChange::Allocate { keep_size: true };
        let options = WriteOptions::default();
        let unwritten = self.make(&odd, "unwritten", 0o100_644);
        self.write(&unwritten, 40_000, 3000);
        self.fs
            .change_space(&unwritten, 0, 100_000, space, options)
            .expect("has room");
        self.make(&odd, "pipe", 0o010_644);
    }
}

fn populate(fs: &Arc<Filesystem>, seed: u64, keeps: u64) {
    let mut workload = Workload::within(Arc::clone(fs), "", seed);
    operate(&mut workload, 150, "populating");
    let mut populated = Populated {
        fs,
        random: SplitMix64::new(seed),
    };
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
    let mut rounds = 0;
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
        if matches!(&result, Err(Error::Shrink { why }) if why.contains("own inode 8")) {
            // The journal stays where it is.
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
    println!("{name}: {rounds} rounds to {size}, {moved} blocks moved");
    drop(device);
    let last = shrink_file(&path, size).expect("nothing is to be done");
    assert_eq!((last.size_bytes, last.moved_blocks), (size, 0));
    e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{name}, file cut: {found}"));
}

#[test]
fn shrunk_images_are_sound() {
    let only = std::env::var("KFS_LAYOUT").ok();
    for (name, layout) in LAYOUTS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        for seed in seeds() {
            shrunk(name, layout, seed);
        }
    }
}
