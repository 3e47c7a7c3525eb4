//! Goal: taking a snapshot takes no time, whatever there is on the volume; a mounted volume with snapshots is about as fast as one without, however many they are; and one who
//! writes does not notice that a snapshot is deleted.
//!
//! Method: volumes that hold 0, 1, 10 and 100 snapshots do the same work in turns, so that what else the
//! machine does meets all of them. Before each turn the oldest snapshot goes and a new one is taken, so all
//! that is overwritten or deleted is kept by a snapshot. Compared are the fastest rounds of each. Slow and to
//! be run alone, from an optimised build: `cargo test --release -p kfs-tests --test snapshot_speed --
//! --ignored --nocapture --test-threads=1`. `KFS_SPEED_DIR` says where the images lie.

use anyhow::{Context, Result, ensure};
use kfs::{Filesystem, MountOptions, NewNode, SpaceChange, WriteOptions};
use kfs_disk::{BlockDevice, FileDevice};
use kfs_tests::guest::{Daemon, program, run};
use kfsctl::{Client, Request};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const IMAGE_BYTES: u64 = 2048 * MIB;
/// The file that is overwritten.
const FILE_BYTES: u64 = 64 * MIB;
const WRITE_BYTES: u64 = MIB / 8;
/// Random writes, of this many bytes each.
const RANDOM_WRITES: u64 = 4000;
const RANDOM_BYTES: u64 = 16 << 10;
/// Files that are made and removed.
const FILES: u32 = 4000;
const HELD: [usize; 4] = [0, 1, 10, 100];
const ROUNDS: usize = 9;
/// What a volume with snapshots has to reach of one without.
const SHARE: f64 = 0.8;
/// The longest that a write may wait while a snapshot is deleted.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

const WORK: [&str; 4] = ["overwrite", "random", "create", "delete"];

/// A volume on a mount.
struct Volume {
    daemon: Daemon,
    client: Client,
    dir: PathBuf,
    big: File,
    taken: u32,
    seed: u64,
}

fn folder() -> Result<tempfile::TempDir> {
    let place = std::env::var_os("KFS_SPEED_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    Ok(tempfile::tempdir_in(place)?)
}

/// A path as an argument.
fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

impl Volume {
    fn new(folder: &Path, name: &str) -> Result<Self> {
        let own = |what: &str| folder.join(format!("{name}.{what}"));
        let (image, dir, control) = (own("img"), own("mnt"), own("control"));
        // All of it is there, and stays so, or the host's allocation of blocks is what is measured.
        let mut file = File::create(&image)?;
        for _ in 0..IMAGE_BYTES / MIB {
            file.write_all(&[1; MIB as usize])?;
        }
        file.sync_all()?;
        run(Command::new(program("mkfs")?)
            .args(["-q", "-F", "-E", "nodiscard"])
            .arg(&image))?;
        fs::create_dir(&dir)?;
        let daemon = Daemon::start_with_log(
            &own("log"),
            &[
                "--image",
                text(&image),
                "--mount",
                text(&dir),
                "--control-socket",
                text(&control),
            ],
            &[&dir, &control],
        )?;
        let mut client = Client::connect(&control)?;
        client.be_patient();
        let big = File::create_new(dir.join("big"))?;
        let volume = Self {
            daemon,
            client,
            dir,
            big,
            taken: 0,
            seed: 0x1234_5678,
        };
        volume.overwrite()?;
        Ok(volume)
    }

    fn take(&mut self) -> Result<()> {
        self.taken += 1;
        let create = Request::SnapshotCreate {
            name: Some(format!("s{}", self.taken)),
            comment: String::new(),
        };
        self.client.request(&create)?;
        Ok(())
    }

    fn delete_snapshot(&mut self, number: u32) -> Result<()> {
        let names = vec![format!("s{number}")];
        self.client.request(&Request::SnapshotDelete { names })?;
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.big.sync_all()?;
        self.client.request(&Request::Sync {})?;
        Ok(())
    }

    fn overwrite(&self) -> Result<()> {
        let bytes = vec![self.taken as u8; WRITE_BYTES as usize];
        for offset in (0..FILE_BYTES).step_by(WRITE_BYTES as usize) {
            self.big.write_all_at(&bytes, offset)?;
        }
        Ok(())
    }

    fn random_writes(&mut self, count: u64) -> Result<()> {
        let bytes = vec![0xa5; RANDOM_BYTES as usize];
        for _ in 0..count {
            // A linear congruential generator will do.
            self.seed = self
                .seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let at = (self.seed >> 33) % (FILE_BYTES / RANDOM_BYTES);
            self.big.write_all_at(&bytes, at * RANDOM_BYTES)?;
        }
        Ok(())
    }

    fn create(&self) -> Result<()> {
        let dir = self.dir.join("dir");
        fs::create_dir(&dir)?;
        for number in 0..FILES {
            fs::write(dir.join(format!("file-{number}")), [1; 4096])?;
        }
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        Ok(fs::remove_dir_all(self.dir.join("dir"))?)
    }

    fn stop(self) -> Result<()> {
        let Self { daemon, big, .. } = self;
        drop(big);
        daemon.stop()
    }
}

/// A volume that holds a number of snapshots, and for each kind of work the seconds of each round.
struct Bench {
    volume: Volume,
    held: usize,
    times: [Vec<f64>; 4],
}

impl Bench {
    fn new(folder: &Path, held: usize) -> Result<Self> {
        let mut volume = Volume::new(folder, &held.to_string())?;
        for _ in 0..held {
            volume.random_writes(20)?;
            volume.sync()?;
            volume.take()?;
        }
        Ok(Self {
            volume,
            held,
            times: Default::default(),
        })
    }

    /// The oldest goes, a new one comes: all there is now is kept by one.
    fn renew(&mut self) -> Result<()> {
        self.volume.sync()?;
        if self.held > 0 {
            self.volume
                .delete_snapshot(self.volume.taken + 1 - self.held as u32)?;
            self.volume.take()?;
        }
        Ok(())
    }

    /// One round of all work.
    fn round(&mut self) -> Result<()> {
        for kind in 0..WORK.len() {
            self.renew()?;
            let begin = Instant::now();
            match kind {
                0 => self.volume.overwrite()?,
                1 => self.volume.random_writes(RANDOM_WRITES)?,
                2 => self.volume.create()?,
                _ => self.volume.delete()?,
            }
            self.volume.sync()?;
            self.times[kind].push(begin.elapsed().as_secs_f64());
        }
        Ok(())
    }
}

/// The fastest round: what else the machine does makes rounds slower, never faster.
fn fastest(times: &[f64]) -> f64 {
    times.iter().copied().fold(f64::INFINITY, f64::min)
}

#[test]
#[ignore = "measures; to be run alone: make soak"]
fn snapshots_cost_little() -> Result<()> {
    let folder = folder()?;
    let mut all = HELD
        .iter()
        .map(|&held| Bench::new(folder.path(), held))
        .collect::<Result<Vec<_>>>()?;
    for round in 0..=ROUNDS {
        // Each is the first in turn once in a while.
        for offset in 0..all.len() {
            all[(round + offset) % HELD.len()].round()?;
        }
        if round == 0 {
            // Warm now.
            all.iter_mut()
                .for_each(|bench| bench.times = Default::default());
        }
    }
    let mut slow = Vec::new();
    for (kind, name) in WORK.iter().enumerate() {
        let without = fastest(&all[0].times[kind]);
        print!("{name:<10} {:7.1} ms without;", without * 1e3);
        for bench in &all[1..] {
            let share = without / fastest(&bench.times[kind]);
            print!("  {:3} snapshots {:4.0} %", bench.held, share * 100.0);
            if share < SHARE {
                slow.push(format!("{name} with {} snapshots: {share:.2}", bench.held));
            }
        }
        println!();
    }
    for bench in all {
        bench.volume.stop()?;
    }
    ensure!(slow.is_empty(), "too slow: {slow:?}");
    Ok(())
}

#[test]
#[ignore = "measures; to be run alone: make soak"]
fn a_deletion_does_not_hold_up_writers() -> Result<()> {
    let folder = folder()?;
    let mut volume = Volume::new(folder.path(), "waits")?;
    let small = File::create_new(volume.dir.join("small"))?;
    volume.create()?;
    for _ in 0..3 {
        volume.take()?;
        volume.overwrite()?;
        volume.random_writes(RANDOM_WRITES)?;
    }
    volume.delete()?;
    volume.sync()?;
    let is_done = AtomicBool::new(false);
    let (waits, took) = std::thread::scope(|scope| {
        let writer = scope.spawn(|| -> Result<Vec<Duration>> {
            let mut waits = Vec::new();
            while !is_done.load(Ordering::Relaxed) {
                let begin = Instant::now();
                small.write_all_at(&[1; 4096], 0)?;
                waits.push(begin.elapsed());
                std::thread::sleep(Duration::from_micros(200));
            }
            Ok(waits)
        });
        std::thread::sleep(Duration::from_millis(100));
        let begin = Instant::now();
        let deleted = (1..=3).try_for_each(|number| volume.delete_snapshot(number));
        let took = begin.elapsed();
        is_done.store(true, Ordering::Relaxed);
        (writer.join().expect("no panic"), deleted.map(|()| took))
    });
    let (mut waits, took) = (waits?, took?);
    waits.sort();
    let longest = *waits.last().context("it did not write")?;
    println!(
        "3 deletions took {took:?}; {} writes meanwhile, the longest took {longest:?}, one in a hundred {:?}",
        waits.len(),
        waits[waits.len() * 99 / 100]
    );
    drop(small);
    volume.stop()?;
    ensure!(longest < LONGEST_WAIT, "a write took {longest:?}");
    Ok(())
}

/// An empty volume of 1 TiB.
fn large_volume(folder: &Path) -> Result<Arc<dyn BlockDevice>> {
    let path = folder.join("large.img");
    File::create(&path)?.set_len(1 << 40)?;
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(&path)?);
    mkfs::format(&*device, &mkfs::Options::default())?;
    Ok(device)
}

/// How long taking a snapshot may take when nobody else is at work.
const INSTANT: Duration = Duration::from_millis(50);

#[test]
#[ignore = "measures; to be run alone: make soak"]
fn a_snapshot_of_a_large_volume_is_instant() -> Result<()> {
    let files =
        std::env::var("KFS_SPEED_FILES").map_or(Ok(10_000_000u32), |files| files.parse())?;
    let folder = folder()?;
    let device = large_volume(folder.path())?;
    let fs = Filesystem::open(Arc::clone(&device), MountOptions::default())?;
    let root = fs.root()?;
    let node = |mode| NewNode {
        mode,
        ..NewNode::default()
    };
    let mut directory = Arc::clone(&root);
    for number in 0..files {
        if number % 10_000 == 0 {
            let name = format!("dir-{}", number / 10_000);
            directory = fs.create(&root, name.as_bytes(), &node(0o040_755))?;
        }
        fs.create(&directory, number.to_string().as_bytes(), &node(0o100_644))?;
    }
    drop((root, directory));
    fs.close()?;
    let opened = Instant::now();
    let fs = Filesystem::open(device, MountOptions::default())?;
    let open_took = opened.elapsed();
    let mut times = Vec::new();
    for number in 0..100 {
        // Something for it to write back.
        let name = format!("new-{number}");
        fs.create(&*fs.root()?, name.as_bytes(), &node(0o100_644))?;
        let begin = Instant::now();
        fs.create_snapshot(&name, "")?;
        let took = begin.elapsed();
        if number == 0 {
            println!("1 TiB, {files} files: open {open_took:?}, first snapshot {took:?}");
        }
        times.push(took);
    }
    times.sort();
    let median = times[times.len() / 2];
    println!(
        "half of 100 snapshots took less than {median:?}, the longest {:?}",
        times[times.len() - 1]
    );
    fs.close()?;
    // A flush of a disk that others use may take longer than all else.
    ensure!(median < INSTANT, "a snapshot took {median:?}");
    Ok(())
}

/// How long it may take on a volume of which nearly all was just deleted: no bar is needed, and nobody has to
/// wait for it in the background.
const SOON: Duration = Duration::from_secs(1);

/// A volume of 1 TiB with nine files `f0` to `f8` of 100 GiB, preallocated.
fn full_volume(device: &Arc<dyn BlockDevice>) -> Result<Arc<Filesystem>> {
    let fs = Filesystem::open(Arc::clone(device), MountOptions::default())?;
    let root = fs.root()?;
    let node = NewNode {
        mode: 0o100_644,
        ..NewNode::default()
    };
    for number in 0..9 {
        let file = fs.create(&root, format!("f{number}").as_bytes(), &node)?;
        let change = SpaceChange::Allocate { keep_size: false };
        fs.change_space(&file, 0, 100 << 30, change, WriteOptions::default())?;
    }
    Ok(fs)
}

fn unlink_all(fs: &Filesystem) -> Result<()> {
    let root = fs.root()?;
    for number in 0..9 {
        fs.unlink(&root, format!("f{number}").as_bytes())?;
    }
    Ok(())
}

#[test]
#[ignore = "measures; to be run alone: make soak"]
fn a_snapshot_right_after_a_large_deletion_is_quick() -> Result<()> {
    let folder = folder()?;
    let device = large_volume(folder.path())?;
    let fs = full_volume(&device)?;
    fs.create_snapshot("before", "")?;
    let begin = Instant::now();
    unlink_all(&fs)?;
    let unlinked = begin.elapsed();
    let begin = Instant::now();
    fs.create_snapshot("after", "")?;
    let took = begin.elapsed();
    println!("900 GiB were deleted in {unlinked:?}, and a snapshot taken in {took:?}");
    fs.close()?;
    ensure!(took < SOON, "a snapshot took {took:?}");
    Ok(())
}

#[test]
#[ignore = "measures; to be run alone: make soak"]
fn a_deletion_on_a_large_volume_is_quick() -> Result<()> {
    let folder = folder()?;
    let device = large_volume(folder.path())?;
    let fs = full_volume(&device)?;
    for name in ["oldest", "one", "two", "newest"] {
        fs.create_snapshot(name, "")?;
        if name == "one" {
            unlink_all(&fs)?;
        }
    }
    fs.sync()?;
    let mut longest = Duration::ZERO;
    let mut delete = |fs: &Filesystem, name: &str| -> Result<()> {
        let pinned = fs.status().pinned_blocks >> 18;
        let begin = Instant::now();
        fs.delete_snapshot(name)?;
        let took = begin.elapsed();
        println!("'{name}' was deleted in {took:?}, with {pinned} GiB pinned");
        longest = longest.max(took);
        Ok(())
    };
    delete(&fs, "two")?;
    delete(&fs, "oldest")?;
    // With nothing in memory.
    fs.close()?;
    let fs = Filesystem::open(device, MountOptions::default())?;
    delete(&fs, "newest")?;
    delete(&fs, "one")?;
    fs.close()?;
    ensure!(longest < SOON, "a deletion took {longest:?}");
    Ok(())
}
