//! Opens a damaged image, reads all of it, changes it, closes it, and opens it again.

use crate::base::{self, Editor, Kind};
use crate::changes::Changes;
use crate::input::Input;
use crate::walk::walk;
use kfs::check::{CheckOptions, Verdict, check};
use kfs::{ErrorsPolicy, Filesystem, MountOptions};
use kfs_disk::{BlockDevice, MemoryDevice};
use std::sync::Arc;

/// All kinds of structures but those of the snapshot store.
const CLASSES: [usize; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];
/// Those of the store three times, and all others.
const CLASSES_WITH_STORE: [usize; 26] = [
    14, 15, 16, 17, 14, 15, 16, 17, 15, 16, 17, 17, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,
];
/// Images with this number and higher ones have snapshots.
const WITH_SNAPSHOTS: u8 = 0xc0;

const _: () = assert!(Kind::CLASSES == 18, "the numbers above are of all of them");

/// An image, edited as the input says.
pub fn image(data: &[u8]) {
    let mut input = Input::new(data);
    let (which, how) = (input.u8(), input.u8());
    let has_snapshots = which >= WITH_SNAPSHOTS;
    let base = if has_snapshots {
        base::with_snapshots(usize::from(which))
    } else {
        base::get(usize::from(which))
    };
    let mut editor = Editor::new(base, how & 1 != 0);
    if has_snapshots {
        editor.edit(&mut input, &CLASSES_WITH_STORE);
    } else {
        editor.edit(&mut input, &CLASSES);
    }
    // For half of the inputs: what is behind a checksum, and what happens when it is wrong.
    if how & 2 == 0 {
        editor.fix_checksums();
    }
    let device = Arc::new(editor.into_device());
    let judged = (how & 64 != 0).then(|| judge(&device));
    let options = MountOptions {
        read_only: how & 12 == 12,
        errors: if how & 128 == 0 {
            ErrorsPolicy::Continue
        } else {
            ErrorsPolicy::RemountReadOnly
        },
        cache_bytes: if how & 16 == 0 { 1 << 20 } else { 0 },
        ..base::options()
    };
    use_volume(&device, options, has_snapshots, &mut input);
    if how & 32 != 0 {
        use_volume(
            &device,
            base::options(),
            has_snapshots,
            &mut Input::new(&[]),
        );
    }
    // Nothing that anyone asks for makes a sound volume unsound.
    if let Some(before) = judged
        && before != Verdict::Broken
    {
        assert_ne!(judge(&device), Verdict::Broken, "before: {before:?}");
    }
}

/// What the check says.
fn judge(device: &Arc<MemoryDevice>) -> Verdict {
    let device = Arc::clone(device) as Arc<dyn BlockDevice>;
    let options = CheckOptions {
        replay_bytes_max: 16 << 20,
        ..CheckOptions::default()
    };
    match check(device, &options, &mut |_| {
        std::ops::ControlFlow::Continue(())
    }) {
        Ok(report) => {
            let _ = report.findings.iter().map(ToString::to_string).count();
            if std::env::var_os("KFS_FUZZ_VERBOSE").is_some() {
                report
                    .findings
                    .iter()
                    .for_each(|finding| eprintln!("{finding}"));
            }
            report.verdict()
        }
        Err(_) => Verdict::Broken,
    }
}

fn use_volume(
    device: &Arc<MemoryDevice>,
    options: MountOptions,
    has_snapshots: bool,
    input: &mut Input<'_>,
) {
    let device: Arc<dyn BlockDevice> = Arc::clone(device) as Arc<dyn BlockDevice>;
    let fs = match Filesystem::open(device, options) {
        Ok(fs) => fs,
        Err(error) => return tell("not opened", &error),
    };
    let mut changes = Changes::new(&fs, walk(&fs));
    changes.run(input);
    if has_snapshots {
        use_snapshots(&fs, input);
        changes.run(input);
    }
    changes.let_go();
    walk(&fs);
    let _ = fs.sync();
    if let Err(error) = fs.close() {
        tell("not closed", &error);
    }
}

fn tell(what: &str, error: &kfs::Error) {
    if std::env::var_os("KFS_FUZZ_VERBOSE").is_some() {
        eprintln!("{what}: {error}");
    }
}

/// All that can be done with snapshots, under those that the image has.
fn use_snapshots(fs: &Filesystem, input: &mut Input<'_>) {
    let _ = fs.snapshot_usage();
    let how = input.u8();
    for record in fs.snapshots() {
        let Ok(view) = fs.open_snapshot(&record.name) else {
            continue;
        };
        walk(&view);
        let _ = fs.changes_since(&view);
        let path: &[u8] = [&b"/"[..], b"/directory", b"/plain", b"/sparse"][usize::from(how & 3)];
        let to: &[u8] = if how & 4 == 0 { path } else { b"/restored" };
        let _ = fs.restore_path(&view, path, to, &mut kfs::unwatched);
    }
    let _ = fs.create_snapshot("new", &format!("{:?}", input.take(8)));
    let name = match fs.snapshots().get(usize::from(how >> 4)) {
        Some(record) => record.name.clone(),
        None => "new".into(),
    };
    let _ = fs.delete_snapshot(&name);
    let _ = fs.trim(&mut kfs::unwatched);
    let _ = fs.snapshot_usage();
}
