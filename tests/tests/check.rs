//! Goal: the check never calls clean what e2fsck calls broken.
//!
//! Method: sound images of many kinds are damaged as a seed decides, in half of the cases with the
//! checksums made right again so that deeper checks are reached. Then `e2fsck -fn` and the check
//! judge the same bytes. Where the check says more than e2fsck, that is counted.
//!
//! `KFS_CHECK_SEED=N` looks at one image and prints everything; `KFS_CHECK_SEEDS=N` looks at that
//! many; `KFS_CHECK_VERBOSE=1` prints where the check says more.

use kfs::check::{CheckOptions, CheckReport, Verdict, check};
use kfs::{Filesystem, MountOptions, NewNode, SliceSource, WriteOptions};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::damage::{Base, RECIPES, damage, damage_heavily, fix_checksums};
use kfs_tests::workload::Workload;
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Images looked at without a wish for more.
const SEEDS: u64 = 360;
/// e2fsck's exit status from which on it has found something that is not repaired.
const EXIT_DAMAGED: i32 = 4;
/// Images with heavy damage, of each kind.
const HEAVY_SEEDS: u64 = 12;
/// What a check of one of them may take.
const HEAVY_PATIENCE: Duration = Duration::from_secs(10);
/// Seconds that e2fsck may take.
const PATIENCE: &str = "30";

fn look(bytes: &[u8]) -> kfs::Result<CheckReport> {
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::from_bytes(bytes));
    check(device, &CheckOptions::default(), &mut |_| {
        std::ops::ControlFlow::Continue(())
    })
}

/// A folder in memory where there is one.
fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        tempfile::tempdir_in(memory)
    } else {
        tempfile::tempdir()
    }
    .expect("temporary folder")
}

/// A file with a base image, into which damage is written and from which it is taken again.
struct Patient {
    base: Base,
    path: PathBuf,
    file: std::fs::File,
}

impl Patient {
    fn new(base: Base, path: PathBuf) -> Self {
        std::fs::write(&path, &base.bytes).expect("writes the image");
        let file = std::fs::File::options()
            .write(true)
            .open(&path)
            .expect("opens the image");
        Self { base, path, file }
    }

    /// Writes those blocks of `bytes` that differ from the base, or the base's own.
    fn write(&self, bytes: &[u8], is_damage: bool) {
        let pairs = self.base.bytes.chunks(1024).zip(bytes.chunks(1024));
        for (index, (base, damaged)) in pairs.enumerate() {
            if base != damaged {
                let chunk = if is_damage { damaged } else { base };
                self.file
                    .write_all_at(chunk, index as u64 * 1024)
                    .expect("writes a block");
            }
        }
    }

    /// What `e2fsck -fn` says: exit status and text. `None` when it crashed.
    fn judge(&self, bytes: &[u8]) -> (Option<i32>, String) {
        self.write(bytes, true);
        let judged = e2fsck(&["-fn"], &self.path);
        self.write(bytes, false);
        judged
    }

    /// The same after e2fsck has replayed the journal and finished orphans, as a boot does it.
    fn judge_recovered(&self, bytes: &[u8], folder: &Path) -> (Option<i32>, String) {
        let path = folder.join("recovered");
        std::fs::write(&path, bytes).expect("writes the image");
        let (status, text) = e2fsck(&["-p"], &path);
        if status.is_none_or(|status| status >= EXIT_DAMAGED) {
            return (status, text);
        }
        e2fsck(&["-fn"], &path)
    }
}

fn e2fsck(options: &[&str], path: &Path) -> (Option<i32>, String) {
    let output = Command::new("timeout")
        .args([PATIENCE, "e2fsck"])
        .args(options)
        .arg(path)
        .output()
        .expect("e2fsck can be run (package e2fsprogs)");
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    // 124 and more are timeout's own, and signals.
    (output.status.code().filter(|&code| code < 124), text)
}

/// How the two judges agreed.
#[derive(Default)]
struct Score {
    /// Both say broken; both say clean.
    agreed: (u64, u64),
    /// The check needs the journal replayed, and e2fsck had nothing left to say after that.
    recovered: u64,
    /// Only the check says broken, by the kinds of its findings.
    more: BTreeMap<String, u64>,
    /// e2fsck crashed or did not end.
    crashed: u64,
    misses: Vec<String>,
}

impl Score {
    fn more(&self) -> u64 {
        self.more.values().sum()
    }
}

fn kinds(report: &kfs::Result<CheckReport>) -> String {
    match report {
        Ok(report) => {
            let mut kinds: Vec<&str> = report.findings.iter().map(|f| f.kind.as_str()).collect();
            kinds.dedup();
            kinds.truncate(3);
            kinds.join(", ")
        }
        Err(error) => format!("error: {error}"),
    }
}

fn describe(report: &kfs::Result<CheckReport>) -> String {
    match report {
        Ok(report) => {
            let lines: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
            format!("{:?}\n{}", report.verdict(), lines.join("\n"))
        }
        Err(error) => format!("error: {error}"),
    }
}

fn examine(patient: &Patient, seed: u64, folder: &Path, score: &mut Score, is_verbose: bool) {
    let mut bytes = patient.base.bytes.clone();
    let changes = damage(&mut bytes, &patient.base.map, seed);
    let are_fixed = seed & 1 == 1;
    if are_fixed {
        fix_checksums(&mut bytes, &patient.base.map);
    }
    let report = look(&bytes);
    let verdict = report
        .as_ref()
        .map_or(Verdict::Broken, CheckReport::verdict);
    let (status, text) = if patient.base.is_dirty {
        patient.judge_recovered(&bytes, folder)
    } else {
        patient.judge(&bytes)
    };
    let context = || {
        let changes: Vec<String> = changes.iter().map(ToString::to_string).collect();
        let fixed = if are_fixed { ", checksums right" } else { "" };
        let name = patient.base.recipe.name;
        let said = describe(&report);
        format!(
            "seed {seed}, {name}{fixed}\n{}\ncheck: {said}\ne2fsck {status:?}:\n{text}",
            changes.join("\n")
        )
    };
    let Some(status) = status else {
        score.crashed += 1;
        return;
    };
    match (status >= EXIT_DAMAGED, verdict) {
        (true, Verdict::Broken) => score.agreed.0 += 1,
        (false, Verdict::Clean) => score.agreed.1 += 1,
        (true, Verdict::Clean) => score.misses.push(context()),
        (false, Verdict::NeedsRecovery) => score.recovered += 1,
        (true, Verdict::NeedsRecovery) if patient.base.is_dirty => score.misses.push(context()),
        (true, Verdict::NeedsRecovery) => {
            let (after, after_text) = patient.judge_recovered(&bytes, folder);
            if after == Some(0) {
                score.recovered += 1;
            } else {
                score
                    .misses
                    .push(format!("{}\nrecovered {after:?}:\n{after_text}", context()));
            }
        }
        (false, Verdict::Broken) => {
            *score.more.entry(kinds(&report)).or_default() += 1;
            if is_verbose {
                println!("MORE {}\n", context());
            }
        }
    }
    if std::env::var_os("KFS_CHECK_SEED").is_some() {
        println!("{}", context());
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// How many pieces of each kind an image has.
fn pieces(base: &Base) -> String {
    let mut counts: BTreeMap<String, u32> = BTreeMap::new();
    for object in &base.map.objects {
        let kind = format!("{:?}", object.kind);
        let kind = kind.split('(').next().unwrap_or_default().to_string();
        *counts.entry(kind).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(k, n)| format!("{k} {n}")).collect();
    counts.join(", ")
}

fn patients(folder: &Path) -> Vec<Patient> {
    let mut bases: Vec<Base> = RECIPES
        .iter()
        .map(|recipe| Base::make(*recipe, folder))
        .collect();
    bases.push(Base::made_by_kfs());
    bases.push(Base::left_by_kfs());
    bases
        .into_iter()
        .enumerate()
        .map(|(index, base)| {
            let said = describe(&look(&base.bytes));
            let expected = if base.is_dirty {
                "NeedsRecovery\n"
            } else {
                "Clean\n"
            };
            assert_eq!(said, expected, "{}, not damaged", base.recipe.name);
            println!("{}: {}", base.recipe.name, pieces(&base));
            Patient::new(base, folder.join(format!("image{index}")))
        })
        .collect()
}

#[test]
fn what_e2fsck_calls_broken_is_never_clean() {
    let folder = folder();
    let patients = patients(folder.path());
    let seeds = match number("KFS_CHECK_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = number("KFS_CHECK_FIRST").unwrap_or(0);
            first..first + number("KFS_CHECK_SEEDS").unwrap_or(SEEDS)
        }
    };
    let is_verbose = std::env::var_os("KFS_CHECK_VERBOSE").is_some();
    let mut score = Score::default();
    let count = seeds.end - seeds.start;
    for seed in seeds {
        let patient = &patients[(seed / 2) as usize % patients.len()];
        examine(patient, seed, folder.path(), &mut score, is_verbose);
    }
    println!(
        "both broken {}, both clean {}, recovery {}, check says more {}, e2fsck crashed {}",
        score.agreed.0,
        score.agreed.1,
        score.recovered,
        score.more(),
        score.crashed
    );
    println!("where the check says more: {:#?}", score.more);
    for miss in &score.misses {
        println!("MISS {miss}\n");
    }
    assert!(score.misses.is_empty(), "{} misses", score.misses.len());
    if count >= SEEDS {
        // A check that calls everything broken would never miss.
        assert!(score.agreed.1 > count / 10, "too little is clean");
        assert!(score.more() < count / 20, "the check cries wolf");
    }
}

#[test]
fn heavy_damage_neither_panics_nor_hangs() {
    let folder = folder();
    for patient in patients(folder.path()) {
        let base = &patient.base;
        for seed in 0..HEAVY_SEEDS {
            let mut bytes = base.bytes.clone();
            damage_heavily(&mut bytes, &base.map, seed, 40 + seed as u32 * 40);
            // Something of the superblock must be right to get anywhere.
            bytes[1024..2048].copy_from_slice(&base.bytes[1024..2048]);
            if seed % 2 == 0 {
                fix_checksums(&mut bytes, &base.map);
            }
            let begin = Instant::now();
            let report = look(&bytes);
            let name = base.recipe.name;
            assert!(
                begin.elapsed() < HEAVY_PATIENCE,
                "{name}, seed {seed}: {:?}",
                begin.elapsed()
            );
            let verdict = report.map(|report| report.verdict());
            assert!(
                !matches!(verdict, Ok(Verdict::Clean)),
                "{name}, seed {seed}"
            );
        }
    }
}

#[test]
fn a_volume_in_use_needs_recovery_and_nothing_else() {
    let device = Arc::new(MemoryDevice::new(10 << 20));
    mkfs::format(&*device, &mkfs::Options::default()).expect("formats");
    let options = || MountOptions {
        commit_interval: None,
        ..MountOptions::default()
    };
    let open = |device: &Arc<MemoryDevice>| {
        Filesystem::open(Arc::clone(device) as Arc<dyn BlockDevice>, options()).expect("opens")
    };
    let fs = open(&device);
    let mut workload = Workload::new(Arc::clone(&fs), 3);
    for _ in 0..100 {
        workload.operate().expect("memory does not fail");
    }
    let root = fs.root().expect("root");
    for (name, mode) in [(b"file", 0o100_644), (b"fold", 0o040_755)] {
        let node = NewNode {
            mode,
            ..NewNode::default()
        };
        let inode = fs.create(&root, name, &node).expect("creates");
        // As a client does that has it open.
        fs.acquire(&inode, 1);
        if mode == 0o100_644 {
            let mut source = SliceSource::new(&[1; 9000]);
            fs.write(&inode, 0, 9000, &mut source, WriteOptions::default())
                .expect("writes");
            fs.unlink(&root, name).expect("removes");
        } else {
            fs.rmdir(&root, name).expect("removes");
        }
    }
    fs.sync().expect("syncs");
    let crashed = Arc::new(device.snapshot());
    let report = look(&crashed.to_vec()).expect("can be checked");
    assert_eq!(report.verdict(), Verdict::NeedsRecovery, "{report:#?}");
    assert_eq!(report.errors, 0);
    assert!(report.recovery.journal.is_some_and(|r| r.blocks > 0));
    // These two, and what the workload had open.
    assert!(report.recovery.orphans >= 2, "{:?}", report.recovery);
    let recovered = open(&crashed);
    let found = recovered.status().recovery.orphans;
    assert_eq!(u64::from(found), report.recovery.orphans);
    recovered.close().expect("closes");
    let report = look(&crashed.to_vec()).expect("can be checked");
    assert_eq!(report.verdict(), Verdict::Clean, "{report:#?}");
}
