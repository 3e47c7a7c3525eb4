//! Goal: whatever takes its time tells how far it is, and ends in order when that is asked for.
//!
//! Method: the requests of kfsctl carried out on a volume in memory, with a witness who notes what he is told, and
//! who ends each of them at his first, second, ... word until one comes to its end.

use kfs::check::Verdict;
use kfs::{Filesystem, MountOptions, NewNode, SliceSource, WriteOptions};
use kfs_disk::{BlockDevice, FileDevice, MemoryDevice};
use kfs_tests::check::look;
use kfsctl::{ErrorCode, Progress, Request, RequestError};
use serde_json::Value;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

const MIB: u64 = 1 << 20;

/// What a request said meanwhile.
#[derive(Default)]
struct Witness {
    heard: Vec<Progress>,
    /// After how many words he wants it to end.
    patience: Option<usize>,
}

impl Witness {
    fn hear(&mut self, progress: &Progress) -> ControlFlow<()> {
        self.heard.push(progress.clone());
        match self.patience {
            Some(patience) if self.heard.len() > patience => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        }
    }

    /// It never goes back within a stage, nor beyond the end, and somebody learns how much there is.
    fn judge(&self, what: &str) {
        assert!(
            self.heard.iter().any(|told| told.total > 0),
            "{what}: {:?}",
            self.heard
        );
        assert!(
            self.heard.iter().all(|told| told.done <= told.total),
            "{what}"
        );
        for two in self.heard.windows(2) {
            let goes_on = two[0].done <= two[1].done;
            assert!(goes_on || two[0].stage != two[1].stage, "{what}: {two:?}");
        }
    }
}

fn volume(device: &Arc<dyn BlockDevice>) -> Arc<Filesystem> {
    mkfs::format(&**device, &mkfs::Options::default()).expect("formats");
    let fs = open(device);
    let root = fs.root().expect("a root");
    let directory = NewNode {
        mode: 0o040_755,
        ..NewNode::default()
    };
    let directory = fs.create(&root, b"d", &directory).expect("creates");
    let file = NewNode {
        mode: 0o100_644,
        ..NewNode::default()
    };
    for number in 0..8u8 {
        let file = fs
            .create(&directory, &[b'a' + number], &file)
            .expect("creates");
        let bytes = vec![number + 1; 3 * MIB as usize];
        let data = &mut SliceSource::new(&bytes);
        fs.write(&file, 0, bytes.len(), data, WriteOptions::default())
            .expect("writes");
    }
    for name in ["one", "two", "three"] {
        fs.create_snapshot(name, "").expect("takes");
        for letter in [b"a", b"b", b"c"] {
            fs.unlink(&directory, letter).ok();
        }
    }
    fs
}

fn open(device: &Arc<dyn BlockDevice>) -> Arc<Filesystem> {
    let options = MountOptions {
        commit_interval: None,
        ..MountOptions::default()
    };
    Filesystem::open(Arc::clone(device), options).expect("opens")
}

fn ask(
    fs: &Arc<Filesystem>,
    request: &Request,
    witness: &mut Witness,
) -> Result<Value, RequestError> {
    kfsctl::execute::execute(fs, request, &mut |told| witness.hear(told))
}

fn requests(new_image: &Path) -> Vec<Request> {
    let path = new_image.to_owned();
    let name = || "one".to_owned();
    vec![
        Request::SnapshotExport {
            name: name(),
            path: path.clone(),
        },
        // The device has no file to share blocks with.
        Request::SnapshotClone { name: name(), path },
        Request::Check {
            snapshot: Some(name()),
        },
        Request::Check { snapshot: None },
        Request::Trim {},
        Request::Restore {
            snapshot: name(),
            path: Some("/d".into()),
            to: None,
            force: false,
        },
        Request::SnapshotDelete {
            names: ["one", "two", "three"].map(Into::into).to_vec(),
        },
    ]
}

#[test]
fn whatever_takes_time_tells_and_stops() {
    let folder = tempfile::tempdir().expect("a folder");
    let new_image = folder.path().join("new.img");
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(300 * MIB));
    let fs = volume(&device);
    for request in requests(&new_image) {
        let what = format!("{request:?}");
        let mut ended = 0;
        loop {
            let mut witness = Witness {
                patience: Some(ended),
                ..Witness::default()
            };
            match ask(&fs, &request, &mut witness) {
                Ok(_) => {
                    witness.judge(&what);
                    break;
                }
                Err(error) => {
                    assert_eq!(error.code, ErrorCode::Cancelled, "{what}: {error:?}");
                    assert!(!new_image.exists(), "{what} leaves half an image");
                }
            }
            // What a deletion has done stays done.
            if let Request::SnapshotDelete { .. } = request {
                let left = fs.snapshots().len();
                assert_eq!(left, 3, "ended before the first");
                break;
            }
            ended += 1 + ended / 4;
            assert!(ended < 500, "{what} never ends");
        }
        if ended == 0 {
            let mut witness = Witness::default();
            ask(&fs, &request, &mut witness).expect("comes to its end");
            witness.judge(&what);
        }
        let _ = std::fs::remove_file(&new_image);
    }
    fs.close().expect("closes");
    let report = look(device, "after all");
    assert_eq!(report.verdict(), Verdict::Clean, "{report:?}");
}

#[test]
fn deletions_end_between_two() {
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(300 * MIB));
    let fs = volume(&device);
    let request = Request::SnapshotDelete {
        names: ["one", "two", "three"].map(Into::into).to_vec(),
    };
    let mut told = 0;
    let mut is_asked = false;
    let error = kfsctl::execute::execute(&fs, &request, &mut |progress| {
        told += 1;
        // In the middle of the second: that one is deleted all the same.
        is_asked |= progress.done >= 1000;
        match is_asked {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    let error = error.expect_err("is ended");
    assert_eq!(error.code, ErrorCode::Cancelled);
    assert!(error.message.contains("1 of 3 snapshots"), "{error:?}");
    let left: Vec<String> = fs.snapshots().into_iter().map(|left| left.name).collect();
    assert_eq!(left, ["two", "three"]);
    fs.close().expect("closes");
}

#[test]
fn setting_the_volume_back_tells() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("disk.img");
    let file = std::fs::File::create(&path).expect("creates");
    file.set_len(300 * MIB).expect("grows");
    let device: Arc<dyn BlockDevice> = Arc::new(FileDevice::open(&path).expect("opens"));
    let fs = volume(&device);
    fs.begin_restore("one", "undo").expect("begins");
    fs.close().expect("closes");
    let options = MountOptions {
        commit_interval: None,
        ..MountOptions::default()
    };
    let mut heard = Vec::new();
    // Who wants it to end is not listened to: it is half done.
    let fs = Filesystem::open_watched(device, options, &mut |done, total| {
        heard.push((done, total));
        ControlFlow::Break(())
    });
    let fs = fs.expect("is set back");
    assert!(!heard.is_empty() && heard.iter().all(|(done, total)| done < total));
    assert!(kfs::resolve(&fs, b"/d/a").is_ok(), "/d/a is not back");
    fs.close().expect("closes");
}
