//! What a hostile guest is served: an image in memory, a directory of the host.

use crate::base;
use kfs::ErrorsPolicy;
use kfsd::config::{CachePolicy, SharedDirOptions};
use kfsd::fuse::Session;
use kfsd::image::{Image, ImageConfig};
use kfsd::shared_dir::{SharedDir, SharedDirConfig};
use kfsd::volume::Volume;
use std::path::Path;
use std::sync::Arc;

const POLICIES: [CachePolicy; 4] = [
    CachePolicy::Auto,
    CachePolicy::Always,
    CachePolicy::Never,
    CachePolicy::Metadata,
];

/// A volume and a session that waits for INIT. `how` chooses the image and how it is served.
pub(crate) fn image(how: u8) -> (Image, Arc<Session>) {
    let base = base::get(usize::from(how & 7));
    let config = ImageConfig {
        path: "base".into(),
        read_only: false,
        cache: POLICIES[usize::from(how >> 3 & 3)],
        writeback: how & 32 != 0,
        readdirplus: how & 64 == 0,
        timeout: None,
        errors: ErrorsPolicy::Continue,
        snapshot: None,
        snapshot_dir: kfsd::config::SnapshotDir::Visible,
        drop_capabilities: false,
    };
    let device = Box::new(base.clean.snapshot());
    let image = Image::on_device(device, base::options(), &config).expect("a sound image");
    let session = Session::new(image.new_session().expect("a sound root"));
    (image, Arc::new(session))
}

/// The same for a directory of the host.
pub(crate) fn shared_dir(path: &Path, how: u8) -> (SharedDir, Arc<Session>) {
    let config = SharedDirConfig {
        path: path.into(),
        read_only: how & 0x87 == 0x87,
        cache: POLICIES[usize::from(how >> 3 & 3)],
        writeback: how & 32 != 0,
        readdirplus: how & 64 == 0,
        timeout: None,
        options: SharedDirOptions {
            xattr: how & 1 == 0,
            posix_acl: how & 2 != 0,
            security_label: how & 4 != 0,
            announce_submounts: how & 8 != 0,
            allow_direct_io: how & 16 != 0,
            preserve_noatime: how & 32 != 0,
            killpriv_v2: how & 64 == 0,
            ..SharedDirOptions::default()
        },
    };
    let volume = SharedDir::open(&config).expect("the directory is there");
    let session = Session::new(volume.new_session().expect("the directory opens"));
    (volume, Arc::new(session))
}
