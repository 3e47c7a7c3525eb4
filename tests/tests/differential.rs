//! kfs and Linux's ext4 do the same operations: same answers, same errors, same trees.
//!
//! Needs root, loop devices and /dev/fuse, hence `#[ignore]`: `make test` runs it by name. A difference
//! names its seed; `KFS_SEED=N` does that one again, `KFS_MINIMIZE=1` also looks for the shortest
//! sequence that differs, `KFS_COMPARE_FROM=N` compares the trees after each operation from N on. `KFS_DIFFERENTIAL_SEEDS` and `KFS_DIFFERENTIAL_OPERATIONS` say how much to do.

use anyhow::{Context, Result, bail, ensure};
use kfs_tests::differential::{
    Actor, Difference, Duel, Figures, Generator, Operation, Rules, USERS, is_about_holes, minimize,
};
use kfs_tests::guest::{Daemon, KernelMount, Workspace, e2fsck, run};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

const SEEDS: u64 = 6;
const OPERATIONS: usize = 2500;

/// What the images are made with, and how kfsd mounts: the seed chooses. The limits of files follow from
/// the block size, so it is 4 KiB where operations go there.
const IMAGES: [&[&str]; 4] = [
    &["-b", "4096"],
    &["-b", "1024"],
    &["-b", "4096", "-I", "512", "-O", "^metadata_csum,^64bit"],
    &["-b", "4096", "-I", "128"],
];

/// Both sides of a duel, mounted.
struct Field {
    workspace: Workspace,
    subject: PathBuf,
    daemon: Daemon,
    reference: KernelMount,
    compares_holes: bool,
}

impl Field {
    fn new(seed: u64) -> Result<Self> {
        let workspace = Workspace::new()?;
        let options = image_options(seed);
        let [subject_image, reference_image] = ["kfs.img", "ext4.img"].map(|n| workspace.path(n));
        for image in [&subject_image, &reference_image] {
            run(Command::new("mke2fs")
                .args(["-q", "-F", "-t", "ext4"])
                .args(options)
                .arg(image)
                .arg("2G"))?;
        }
        let subject = workspace.path("kfs");
        fs::create_dir(&subject)?;
        let mut arguments = vec![
            "--image",
            text(&subject_image)?,
            "--mount",
            text(&subject)?,
            "-o",
            "noatime",
            "--control-socket",
            "none",
        ];
        if writes_back(seed) {
            arguments.push("--writeback");
        }
        let daemon = Daemon::start(&workspace, &arguments, &[&subject])?;
        let reference =
            KernelMount::with_options(&workspace, &reference_image, "ext4", "loop,noatime")?;
        keep_holes(&reference)?;
        Ok(Self {
            workspace,
            subject,
            daemon,
            reference,
            compares_holes: !rules(seed).maps,
        })
    }

    fn duel(&self, name: &str) -> Result<Duel> {
        let mut duel = Duel::new(&self.subject, self.reference.dir(), name)?;
        if !self.compares_holes {
            duel.leave_holes_out();
        }
        Ok(duel)
    }

    /// Ends the daemon; its image is clean, and Linux sees in it what it sees in its own.
    fn judge(self, name: &str) -> Result<()> {
        self.daemon.stop()?;
        let image = self.workspace.path("kfs.img");
        e2fsck(&image)?;
        let compares_holes = self.compares_holes;
        let mount = KernelMount::with_options(&self.workspace, &image, "after", "loop,ro")?;
        let [subject, reference] = [mount.dir(), self.reference.dir()]
            .map(|dir| Actor::start(&dir.join(name), &USERS[0])?.picture());
        let (mut subject, mut reference) = (subject?, reference?);
        if !compares_holes {
            subject.retain(|line| !is_about_holes(line));
            reference.retain(|line| !is_about_holes(line));
        }
        ensure!(
            subject.len() == reference.len(),
            "Linux sees {} lines in kfs's image and {} in its own",
            subject.len(),
            reference.len()
        );
        for (subject, reference) in subject.iter().zip(&reference) {
            ensure!(
                subject == reference,
                "Linux sees in kfs's image\n    {subject}\nand in its own\n    {reference}"
            );
        }
        Ok(())
    }
}

fn rules(seed: u64) -> Rules {
    let has_capabilities = seed % 7 < 3;
    let forbids_changes = seed.is_multiple_of(2) && !writes_back(seed);
    Rules {
        beyond_limits: !writes_back(seed) && !has_capabilities,
        maps: seed % 3 == 1 && !forbids_changes,
        capabilities: has_capabilities,
        watches: !writes_back(seed) && !image_options(seed).contains(&"128"),
        forbids_changes,
    }
}

fn image_options(seed: u64) -> &'static [&'static str] {
    // Small inodes have no parts of seconds, which Linux does not know where it keeps times.
    let kinds = if writes_back(seed) { 3 } else { IMAGES.len() };
    IMAGES[(seed % kinds as u64) as usize]
}

/// Some seeds let Linux delay writes for FUSE.
fn writes_back(seed: u64) -> bool {
    seed % 5 == 2
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("temporary paths are UTF-8")
}

/// Linux writes zeros into short unwritten extents rather than to split them, where this is not zero.
fn keep_holes(mount: &KernelMount) -> Result<()> {
    let source = run(Command::new("findmnt")
        .args(["-n", "-o", "SOURCE"])
        .arg(mount.dir()))?;
    let device = source.trim().trim_start_matches("/dev/");
    let setting = format!("/sys/fs/ext4/{device}/extent_max_zeroout_kb");
    fs::write(&setting, "0").with_context(|| setting.clone())
}

fn number(name: &str) -> Result<Option<u64>> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().with_context(|| format!("{name}={text}")))
        .transpose()
}

fn fight(seed: u64, operations: usize) -> Result<Figures> {
    let field = Field::new(seed)?;
    let mut duel = field.duel("duel")?;
    let compare_from = match number("KFS_COMPARE_FROM")? {
        Some(from) => usize::try_from(from)?,
        None => operations,
    };
    match duel.run(
        &mut Generator::new(seed, rules(seed)),
        operations,
        compare_from,
    ) {
        Ok(figures) => {
            drop(duel);
            field
                .judge("duel")
                .with_context(|| format!("seed {seed}"))?;
            Ok(figures)
        }
        Err(difference) => {
            let done = duel.into_operations();
            let shorter = if number("KFS_MINIMIZE")?.is_some() {
                shorten(&field, done, &difference)?
            } else {
                String::new()
            };
            bail!(
                "seed {seed}: {difference}\n{shorter}\nkfsd said:\n{}",
                field.daemon.log()
            );
        }
    }
}

fn shorten(field: &Field, operations: Vec<Operation>, wanted: &anyhow::Error) -> Result<String> {
    let signature = |error: &anyhow::Error| {
        let difference = error.downcast_ref::<Difference>();
        difference.map(|difference| difference.signature.clone())
    };
    let (mut round, mut last) = (0, String::new());
    let deadline = Instant::now() + Duration::from_secs(300);
    let shortest = minimize(operations, |shorter| {
        round += 1;
        if Instant::now() > deadline {
            return false;
        }
        let Ok(mut duel) = field.duel(&format!("shorter-{round}")) else {
            return false;
        };
        match duel.replay(shorter) {
            Ok(()) => false,
            Err(difference) => {
                let same = signature(&difference) == signature(wanted);
                if same {
                    last = format!("{difference}");
                }
                same
            }
        }
    });
    let mut text = format!("the shortest sequence that differs, after {round} tries:\n");
    for operation in shortest {
        text += &format!("    {operation:?}\n");
    }
    Ok(text + &last)
}

#[test]
#[ignore = "needs root, loop devices and /dev/fuse: make test"]
fn the_same_as_ext4() -> Result<()> {
    let seeds = match number("KFS_SEED")? {
        Some(seed) => seed..=seed,
        None => 1..=number("KFS_DIFFERENTIAL_SEEDS")?.unwrap_or(SEEDS),
    };
    let operations = match number("KFS_DIFFERENTIAL_OPERATIONS")? {
        Some(operations) => usize::try_from(operations)?,
        None => OPERATIONS,
    };
    let mut sums = BTreeMap::new();
    for seed in seeds.clone() {
        let figures = fight(seed, operations)?;
        println!(
            "seed {seed}: {} operations, {} succeeded, {} watched, {} pictures of up to {} lines",
            figures.operations, figures.succeeded, figures.watched, figures.pictures, figures.lines
        );
        for (action, [succeeded, all]) in figures.actions {
            let sum = sums.entry(action).or_insert([0, 0]);
            *sum = [sum[0] + succeeded, sum[1] + all];
        }
    }
    println!("actions, how many succeeded of how many: {sums:?}");
    let is_enough = seeds.end() - seeds.start() >= SEEDS - 1 && operations >= OPERATIONS;
    for (action, [succeeded, all]) in &sums {
        ensure!(
            !is_enough || *succeeded > 0,
            "none of {all} {action} succeeded"
        );
    }
    Ok(())
}
