//! Opens a damaged image, reads all of it, changes it, closes it, and opens it again.

use crate::base::{self, Editor, Kind};
use crate::changes::Changes;
use crate::input::Input;
use crate::walk::walk;
use kfs::{Filesystem, MountOptions};
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
    let options = MountOptions {
        read_only: how & 12 == 12,
        cache_bytes: if how & 16 == 0 { 1 << 20 } else { 0 },
        ..base::options()
    };
    use_volume(&device, options, &mut input);
    if how & 32 != 0 {
        use_volume(&device, base::options(), &mut Input::new(&[]));
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
