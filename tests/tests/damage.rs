//! Goal: damage that is found while the volume is in use fails what needs the damaged part and
//! nothing else, is on record for e2fsck, and stops changes where the owner wants that.
//!
//! Method: a directory's block is overwritten on the device of an open volume, behind its back.

use kfs::{Error, ErrorsPolicy, Filesystem, MountOptions, NewNode, ReadOnlyReason};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::e2fsprogs;
use std::sync::Arc;

const S_IFREG: u16 = 0o100_644;
const S_IFDIR: u16 = 0o040_755;

fn open(device: &Arc<MemoryDevice>, errors: ErrorsPolicy) -> Arc<Filesystem> {
    let options = MountOptions {
        commit_interval: None,
        errors,
        ..MountOptions::default()
    };
    Filesystem::open(Arc::clone(device) as Arc<dyn BlockDevice>, options).expect("opens")
}

fn node(mode: u16) -> NewNode<'static> {
    NewNode {
        mode,
        ..NewNode::default()
    }
}

/// A volume with `/sound/file` and `/damaged/NEEDLE`; the block with the needle is damaged.
fn damaged() -> Arc<MemoryDevice> {
    const NEEDLE: &[u8] = b"NEEDLE-IN-A-HAYSTACK";
    let device = Arc::new(MemoryDevice::new(16 << 20));
    mkfs::format(&*device, &mkfs::Options::default()).expect("formats");
    let fs = open(&device, ErrorsPolicy::Default);
    let root = fs.root().expect("root");
    for (directory, name) in [(&b"sound"[..], &b"file"[..]), (b"damaged", NEEDLE)] {
        let directory = fs
            .create(&root, directory, &node(S_IFDIR))
            .expect("creates");
        fs.create(&directory, name, &node(S_IFREG))
            .expect("creates");
    }
    drop(root);
    fs.close().expect("closes");
    let bytes = device.to_vec();
    // The journal has it, too, and is not read again.
    for at in bytes
        .windows(NEEDLE.len())
        .enumerate()
        .filter(|(_, w)| *w == NEEDLE)
    {
        device.write_at(at.0 as u64, b"needle").expect("memory");
    }
    device
}

fn find_damage(fs: &Filesystem) -> Error {
    let root = fs.root().expect("root");
    let directory = fs.lookup(&root, b"damaged").expect("its inode is whole");
    let error = fs
        .lookup(&directory, b"x")
        .expect_err("the checksum is wrong");
    assert!(matches!(error, Error::Corrupt(_)), "{error}");
    fs.note(&error);
    error
}

/// What the superblock (at 1024) says: `s_state` (at 0x3a) and `s_error_count` (at 0x194).
fn record(device: &MemoryDevice) -> (u16, u32) {
    let (mut state, mut count) = ([0; 2], [0; 4]);
    device.read_at(1024 + 0x3a, &mut state).expect("memory");
    device.read_at(1024 + 0x194, &mut count).expect("memory");
    (u16::from_le_bytes(state), u32::from_le_bytes(count))
}

#[test]
fn goes_on_and_is_on_record() {
    let device = damaged();
    let fs = open(&device, ErrorsPolicy::Continue);
    find_damage(&fs);
    find_damage(&fs);
    assert_eq!(fs.status().damage_found, 2);
    let root = fs.root().expect("root");
    let sound = fs.lookup(&root, b"sound").expect("is sound");
    fs.create(&sound, b"another", &node(S_IFREG))
        .expect("goes on");
    fs.sync().expect("syncs");
    drop((root, sound));
    fs.close().expect("closes");
    assert_eq!(record(&device), (3, 2), "clean but for the errors");
    // It stays on record until e2fsck has repaired it.
    open(&device, ErrorsPolicy::Continue)
        .close()
        .expect("closes");
    assert_eq!(record(&device), (3, 2));
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    device.write_to(&path).expect("writes the image");
    e2fsprogs::check(&path).expect_err("is damaged");
    e2fsprogs::repair(&path).expect("repairs");
    let repaired = MemoryDevice::from_file(&path).expect("reads the image");
    assert_eq!(record(&repaired).0, 1);
}

#[test]
fn stops_changes_where_wanted() {
    for ask_superblock in [false, true] {
        let device = damaged();
        let policy = if ask_superblock {
            // `s_errors` (at 0x3c), with the checksum that belongs to it.
            let mut raw = kfs::read_superblock(&*device).expect("reads");
            raw.s_errors.set(2);
            raw.seal();
            let bytes = zerocopy::IntoBytes::as_bytes(&raw);
            device.write_at(1024, bytes).expect("memory");
            ErrorsPolicy::Default
        } else {
            ErrorsPolicy::RemountReadOnly
        };
        let fs = open(&device, policy);
        let root = fs.root().expect("root");
        fs.create(&root, b"before", &node(S_IFREG))
            .expect("creates");
        find_damage(&fs);
        let refused = fs.create(&root, b"after", &node(S_IFREG));
        assert!(matches!(
            refused,
            Err(Error::ReadOnly {
                reason: ReadOnlyReason::Error
            })
        ));
        fs.lookup(&root, b"before").expect("reads go on");
        drop(root);
        fs.close().expect("closes");
        assert_eq!(record(&device), (3, 1));
        let fs = open(&device, ErrorsPolicy::Continue);
        let root = fs.root().expect("root");
        fs.lookup(&root, b"before").expect("was committed");
        assert!(matches!(fs.lookup(&root, b"after"), Err(Error::NotFound)));
    }
}
