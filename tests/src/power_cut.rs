//! Cutting the power: a workload is recorded on a device that logs its writes, and every image that
//! a power cut could have left is recovered and compared with what was there between operations.
//!
//! ```text
//!  step          | 1       | 2    | 3 (sync)    | 4
//!  writes        w w       w w w  w F w F       w w
//!  power cut                              ^
//!                the tree is as after step 3 at the least, as after 4 at the most
//! ```

use crate::{check, e2fsprogs, tree};
use kfs::{Filesystem, MountOptions, Result};
use kfs_disk::testing::CrashDevice;
use kfs_disk::{BlockDevice, MemoryDevice};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A tree as [`tree::picture`] takes it.
pub type Picture = BTreeMap<String, String>;

/// Options that make a workload do the same each time: no thread that commits, fixed generations.
#[must_use]
pub fn options() -> MountOptions {
    MountOptions {
        commit_interval: None,
        generation_seed: Some(7),
        cache_bytes: 1 << 20,
        ..MountOptions::default()
    }
}

/// A formatted volume in memory.
///
/// # Panics
/// When it cannot be formatted.
#[must_use]
pub fn formatted(bytes: u64, options: &mkfs::Options) -> MemoryDevice {
    let device = MemoryDevice::new(bytes);
    mkfs::format(&device, options).expect("formats");
    device
}

/// Opens a volume in memory.
///
/// # Errors
/// What the file system reports.
pub fn open(device: Arc<dyn BlockDevice>) -> Result<Arc<Filesystem>> {
    Filesystem::open(device, options())
}

/// Part of the tree after an operation, and where in the device's log the operation began.
struct Step {
    /// For messages.
    what: String,
    /// Entries in the log when it began.
    began: usize,
    /// The tree after it.
    picture: Picture,
    /// From which position of the log on everything up to here is durable, if it is.
    durable_at: Option<usize>,
}

/// The operations of one actor, in their order, on a part of the tree that only it changes.
pub struct History {
    /// The file or directory that the pictures are of: empty for the root, else with a leading slash.
    path: String,
    steps: Vec<Step>,
}

impl History {
    /// The history of an actor on `path`, whose content is durable now.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn begin(fs: &Filesystem, path: &str) -> Result<Self> {
        let mut history = Self {
            path: path.into(),
            steps: Vec::new(),
        };
        history.steps.push(Step {
            what: "the beginning".into(),
            began: 0,
            picture: history.picture(fs)?,
            durable_at: Some(0),
        });
        Ok(history)
    }

    fn picture(&self, fs: &Filesystem) -> Result<Picture> {
        tree::picture_of(fs, &self.path)
    }

    /// Notes an operation that began at position `began` of the log and has just ended. Whether it
    /// made the actor's part of the tree durable is `is_sync`.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn note(
        &mut self,
        fs: &Filesystem,
        device: &CrashDevice,
        (what, began, is_sync): (String, usize, bool),
    ) -> Result<()> {
        let durable_at = is_sync.then(|| device.position());
        self.steps.push(Step {
            what,
            began,
            picture: self.picture(fs)?,
            durable_at,
        });
        Ok(())
    }

    /// Notes that the volume was closed: all is durable from now on.
    ///
    /// # Panics
    /// When the history has not begun.
    pub fn end(&mut self, device: &CrashDevice) {
        let last = self.steps.last().expect("it has begun");
        let (picture, position) = (last.picture.clone(), device.position());
        self.steps.push(Step {
            what: "close".into(),
            began: position,
            picture,
            durable_at: Some(position),
        });
    }

    /// Compares a recovered volume with what may be there after a power cut at `position`.
    ///
    /// # Panics
    /// When it is none of that.
    fn assert_possible(&self, fs: &Filesystem, position: usize, context: &str) {
        let picture = self
            .picture(fs)
            .unwrap_or_else(|error| panic!("{context}: {}: {error}", self.path));
        let is_durable = |step: &Step| step.durable_at.is_some_and(|at| at <= position);
        let first = self.steps.iter().rposition(is_durable);
        let first = first.expect("the beginning is durable");
        let last = self.steps.iter().rposition(|step| step.began <= position);
        let last = last.expect("the beginning has begun");
        let possible = &self.steps[first..=last];
        assert!(
            possible.iter().any(|step| step.picture == picture),
            "{context}: no state from '{}' ({first}) to '{}' ({last}) is\n{picture:#?}\ndurable was\n{:#?}",
            possible[0].what,
            self.steps[last].what,
            possible[0].picture
        );
    }
}

/// How thoroughly to look at a recording.
#[derive(Clone, Copy)]
pub struct Effort {
    /// Every so many positions of the log the power is cut.
    pub points_step: usize,
    /// Images for each of them.
    pub images_a_point: usize,
    /// Every so many images e2fsck is asked, too; never if 0.
    pub e2fsck_every: usize,
}

/// What was seen while images were recovered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reached {
    /// Images recovered.
    pub images: usize,
    /// Of these, judged by e2fsck.
    pub judged: usize,
    /// Transactions replayed.
    pub transactions: u64,
    /// Orphans finished.
    pub orphans: u64,
}

impl std::ops::AddAssign for Reached {
    fn add_assign(&mut self, other: Self) {
        self.images += other.images;
        self.judged += other.judged;
        self.transactions += other.transactions;
        self.orphans += other.orphans;
    }
}

/// Cuts the power at every position of the device's log, recovers what is left, and hands it with
/// the position to `judge`. kfs's own check sees every image, before and after.
///
/// # Panics
/// When an image does not recover, or `judge`, the check or e2fsck find fault with it.
pub fn cut_everywhere(
    device: &CrashDevice,
    name: &str,
    effort: Effort,
    judge: impl Fn(&Arc<Filesystem>, usize, &str),
) -> Reached {
    let mut reached = Reached::default();
    for point in device.crash_points().step_by(effort.points_step) {
        let position = point.position();
        for image in point.images(effort.images_a_point, position as u64) {
            let context = format!("{name}, {image}");
            let recovered = Arc::new(image.device.snapshot());
            let as_found = Arc::new(image.device.snapshot());
            check::assert_recoverable(as_found, &format!("{context}, before recovery"));
            let fs = open(Arc::clone(&recovered) as Arc<dyn BlockDevice>)
                .unwrap_or_else(|error| panic!("{context}: does not recover: {error}"));
            judge(&fs, position, &context);
            let recovery = fs.status().recovery;
            reached.transactions += u64::from(recovery.transactions);
            reached.orphans += u64::from(recovery.orphans);
            fs.close()
                .unwrap_or_else(|error| panic!("{context}: does not close: {error}"));
            let after = Arc::clone(&recovered) as Arc<dyn BlockDevice>;
            check::assert_clean(after, &format!("{context}, recovered"));
            let asks = effort.e2fsck_every > 0;
            if asks && reached.images.is_multiple_of(effort.e2fsck_every) {
                ask_e2fsck(&image.device, &recovered, &context);
                reached.judged += 1;
            }
            reached.images += 1;
        }
    }
    reached
}

/// As [`cut_everywhere`], and compares with the histories of all actors.
///
/// # Panics
/// When an image shows what no history had.
pub fn assert_histories(
    device: &CrashDevice,
    histories: &[History],
    name: &str,
    effort: Effort,
) -> Reached {
    cut_everywhere(device, name, effort, |fs, position, context| {
        for history in histories {
            history.assert_possible(fs, position, context);
        }
    })
}

/// Lets e2fsck judge what kfs has recovered, and recover on its own. The images that it finds fault with
/// are kept.
fn ask_e2fsck(image: &MemoryDevice, recovered: &MemoryDevice, context: &str) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let write = |device: &MemoryDevice, name: &str| {
        let path = folder.path().join(name);
        device.write_to(&path).expect("writes the image");
        path
    };
    let found = e2fsprogs::check(&write(recovered, "recovered-by-kfs"));
    let found = found.and_then(|()| e2fsprogs::recover_and_check(&write(image, "by-e2fsck")));
    if let Err(found) = found {
        write(image, "image");
        let kept = folder.keep();
        panic!("{context}: {found}\nimages are in {}", kept.display());
    }
}
