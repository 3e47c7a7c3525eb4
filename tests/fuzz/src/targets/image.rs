//! Opens a damaged image, reads all of it, changes it, closes it, and opens it again.

use crate::base::{self, Editor, Kind};
use crate::changes::Changes;
use crate::input::Input;
use crate::walk::walk;
use kfs::check::{CheckOptions, Verdict, check};
use kfs::{ErrorsPolicy, Filesystem, MountOptions};
use kfs_disk::{BlockDevice, MemoryDevice};
use std::sync::Arc;

/// All kinds of structures.
const CLASSES: [usize; Kind::CLASSES] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13];

/// An image, edited as the input says.
pub fn image(data: &[u8]) {
    let mut input = Input::new(data);
    let (which, how) = (input.u8(), input.u8());
    let base = base::get(usize::from(which));
    let mut editor = Editor::new(base, how & 1 != 0);
    editor.edit(&mut input, &CLASSES);
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
    use_volume(&device, options, &mut input);
    if how & 32 != 0 {
        use_volume(&device, base::options(), &mut Input::new(&[]));
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
    match check(device, &options, &mut |_| {}) {
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

fn use_volume(device: &Arc<MemoryDevice>, options: MountOptions, input: &mut Input<'_>) {
    let device: Arc<dyn BlockDevice> = Arc::clone(device) as Arc<dyn BlockDevice>;
    let Ok(fs) = Filesystem::open(device, options) else {
        return;
    };
    let mut changes = Changes::new(&fs, walk(&fs));
    changes.run(input);
    changes.let_go();
    walk(&fs);
    let _ = fs.sync();
    let _ = fs.close();
}
