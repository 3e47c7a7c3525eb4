//! Goal: snapshots take at most 1 MiB of memory for each TiB and snapshot, beyond what is being used: what a volume
//! takes that does the same without them, once all that can be read again is forgotten. Used are the bitmaps of the
//! block groups in which something was changed: two bits for each of their blocks, however many snapshots there are.
//!
//! Method: a volume of 1 TiB with many files, in a sparse file. Equal copies of it have 0, 1, 10 and 100 snapshots
//! and do the same work, between one snapshot and the next. The allocator of this test counts the bytes
//! that are live. `KFS_MEMORY_FILES` says how many files (20000); ten million take half an hour and 5 GiB.
#![allow(unsafe_code, reason = "a global allocator that counts")]

use kfs::{Filesystem, MountOptions, NewNode, SliceSource, WriteOptions};
use kfs_disk::{BlockDevice, FileDevice};
use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const TIB: u64 = 1 << 40;
/// What each snapshot of each TiB may take.
const LIMIT: usize = 1 << 20;
const HELD: [u32; 3] = [1, 10, 100];
/// What snapshots take in all for a group whose bitmap is in use.
const GROUP: usize = 8 << 10;
/// Rounds of work; at most one snapshot is taken before each.
const ROUNDS: u32 = 100;
const STEPS: u32 = 10;
const FILES_IN_A_DIRECTORY: u32 = 1000;

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: all calls are passed on to the system's allocator, with a count beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        LIVE.fetch_add(new_size, Ordering::Relaxed);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

fn live() -> usize {
    LIVE.load(Ordering::Relaxed)
}

fn open(path: &Path) -> Arc<Filesystem> {
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(path).expect("opens"));
    let options = MountOptions {
        commit_interval: None,
        ..MountOptions::default()
    };
    Filesystem::open(device, options).expect("is a volume")
}

fn node(mode: u16) -> NewNode<'static> {
    NewNode {
        mode,
        ..NewNode::default()
    }
}

fn write(fs: &Filesystem, inode: &Arc<kfs::Inode>, offset: u64, fill: u8) {
    let bytes = [fill; 4096];
    let data = &mut SliceSource::new(&bytes);
    fs.write(inode, offset, bytes.len(), data, WriteOptions::default())
        .expect("writes");
}

fn make(path: &Path, files: u32) {
    std::fs::File::create(path)
        .and_then(|file| file.set_len(TIB))
        .expect("a sparse file");
    let device = FileDevice::open(path).expect("opens");
    mkfs::format(&device, &mkfs::Options::default()).expect("formats");
    drop(device);
    let fs = open(path);
    let root = fs.root().expect("a root");
    let mut directory = Arc::clone(&root);
    for number in 0..files {
        if number % FILES_IN_A_DIRECTORY == 0 {
            let name = format!("d{}", number / FILES_IN_A_DIRECTORY);
            let made = fs.create(&root, name.as_bytes(), &node(0o040_755));
            directory = made.expect("creates");
        }
        let name = format!("f{number}");
        let file = fs.create(&directory, name.as_bytes(), &node(0o100_644));
        let file = file.expect("creates");
        if number % 10 == 0 {
            write(&fs, &file, 0, 1);
        }
    }
    drop((root, directory));
    fs.close().expect("closes");
}

/// The volume does the same work whatever snapshots it has. All over it, files are written, made and removed.
fn work(fs: &Filesystem, round: u32, files: u32) {
    let directories = files / FILES_IN_A_DIRECTORY;
    for step in 0..STEPS {
        let directory = (round * 7 + step * 31) % directories;
        let path = format!("/d{directory}");
        let parent = kfs::resolve(fs, path.as_bytes()).expect("is there");
        let number =
            directory * FILES_IN_A_DIRECTORY + (round * STEPS + step) % FILES_IN_A_DIRECTORY;
        let file = fs.lookup(&parent, format!("f{number}").as_bytes());
        write(fs, &file.expect("is there"), u64::from(step) * 4096, 2);
        let name = format!("new-{round}-{step}");
        let made = fs.create(&parent, name.as_bytes(), &node(0o100_644));
        write(fs, &made.expect("creates"), 0, 3);
        if round > 0 && step % 2 == 0 {
            let before = (round * 7 - 7 + step * 31) % directories;
            let parent = kfs::resolve(fs, format!("/d{before}").as_bytes()).expect("is there");
            let name = format!("new-{}-{step}", round - 1);
            fs.unlink(&parent, name.as_bytes()).expect("removes");
        }
    }
}

/// What is live when all that can be read again is forgotten.
fn settled(fs: &Filesystem) -> usize {
    fs.sync().expect("syncs");
    // What waits for its place on the disk is not the snapshots'; taking one leaves nothing of it.
    let journal = &fs.volume().journal;
    journal.checkpoint().expect("is in its place");
    fs.drop_caches();
    live()
}

struct Figures {
    /// Live bytes that taking the snapshots has added, one after the other, with nothing done between.
    taking: isize,
    /// Live bytes of the volume after all rounds.
    working: isize,
    /// Bytes of old metadata that the snapshots have.
    metadata: u64,
}

fn measure(template: &Path, held: u32, files: u32) -> Figures {
    let path = template.with_extension(format!("{held}.img"));
    let copied = Command::new("cp")
        .arg("--sparse=always")
        .args([template, &path])
        .status();
    assert!(copied.expect("cp runs").success());
    let before = live();
    let fs = open(&path);
    // What any first use loads is not the snapshots'.
    fs.create(&fs.root().expect("a root"), b"first", &node(0o100_644))
        .expect("creates");
    let empty = settled(&fs);
    // The first one makes the store.
    for number in 0..held {
        fs.create_snapshot(&format!("idle-{number}"), "")
            .expect("takes");
    }
    let taking = settled(&fs) as isize - empty as isize;
    for number in 0..held {
        fs.delete_snapshot(&format!("idle-{number}"))
            .expect("deletes");
    }
    for round in 0..ROUNDS {
        if held > 0 && round % (ROUNDS / held) == 0 {
            fs.create_snapshot(&format!("s{round}"), "").expect("takes");
        }
        work(&fs, round, files);
    }
    assert_eq!(fs.snapshots().len(), held as usize);
    let working = settled(&fs) as isize - before as isize;
    let usage = fs.snapshot_usage().expect("is known");
    fs.close().expect("closes");
    std::fs::remove_file(&path).expect("removes");
    Figures {
        taking,
        working,
        metadata: usage.iter().map(|usage| usage.metadata_bytes).sum(),
    }
}

#[test]
fn snapshots_take_little_memory() {
    let files = kfs_tests::variables::number("KFS_MEMORY_FILES").unwrap_or(20_000);
    let files = u32::try_from(files).expect("a number of files");
    let place = std::env::var_os("KFS_SPEED_DIR").map_or_else(std::env::temp_dir, Into::into);
    let folder = tempfile::tempdir_in(place).expect("a folder");
    let template = folder.path().join("template.img");
    make(&template, files);
    let without = measure(&template, 0, files);
    println!("1 TiB, {files} files: {} KiB live", without.working >> 10);
    // Each directory has its files in its own group.
    let groups = (ROUNDS * STEPS).min(files / FILES_IN_A_DIRECTORY) as usize;
    let mut over = Vec::new();
    for held in HELD {
        let with = measure(&template, held, files);
        let more = with.working - without.working;
        println!(
            "{held:3} snapshots: {} KiB when they are taken, {} KiB after writes under each, which made them keep {} KiB of old metadata",
            with.taking >> 10,
            more >> 10,
            with.metadata >> 10
        );
        let limit = (LIMIT * held as usize) as isize;
        if with.taking > limit || more > limit + (GROUP * groups) as isize {
            over.push(held);
        }
    }
    assert!(over.is_empty(), "too much with {over:?} snapshots");
}
