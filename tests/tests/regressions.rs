//! What once went wrong, each with what must hold.

use kfs::{
    Error, Filesystem, InodeFlags, MountOptions, NewNode, SetAttr, SliceSource, WriteOptions,
};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::{e2fsprogs, tree};
use std::sync::Arc;

const S_IFREG: u16 = 0o100_644;

fn volume(options: &mkfs::Options) -> (Arc<MemoryDevice>, Arc<Filesystem>) {
    let device = Arc::new(MemoryDevice::new(16 << 20));
    mkfs::format(&*device, options).expect("formats");
    let fs = open(&device);
    (device, fs)
}

fn open(device: &Arc<MemoryDevice>) -> Arc<Filesystem> {
    let options = MountOptions {
        commit_interval: None,
        ..MountOptions::default()
    };
    Filesystem::open(Arc::clone(device) as Arc<dyn BlockDevice>, options).expect("opens")
}

/// What the device would hold if the power went now, recovered and judged.
fn crash(device: &MemoryDevice) -> Arc<MemoryDevice> {
    let crashed = Arc::new(device.snapshot());
    open(&crashed).close().expect("closes");
    check(&crashed);
    crashed
}

/// e2fsck finds nothing wrong.
fn check(device: &MemoryDevice) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    device.write_to(&path).expect("writes the image");
    e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{found}"));
}

fn write(fs: &Filesystem, inode: &Arc<kfs::Inode>, offset: u64, content: &[u8]) {
    let mut source = SliceSource::new(content);
    let written = fs
        .write(
            inode,
            offset,
            content.len(),
            &mut source,
            WriteOptions::default(),
        )
        .expect("writes");
    assert_eq!(written, content.len());
}

/// Shrinking an open file without names took its orphan note away: after a crash its blocks were
/// lost and e2fsck complained.
#[test]
fn a_nameless_file_that_shrinks_stays_an_orphan() {
    let (device, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let file = NewNode {
        mode: S_IFREG,
        ..NewNode::default()
    };
    let inode = fs.create(&root, b"file", &file).expect("creates");
    fs.acquire(&inode, 1);
    write(&fs, &inode, 0, &[7; 50_000]);
    fs.unlink(&root, b"file").expect("unlinks");
    let change = SetAttr {
        size_bytes: Some(100),
        ..SetAttr::default()
    };
    fs.set_attr(&inode, &change).expect("truncates");
    fs.sync().expect("syncs");
    crash(&device);
    fs.release(&inode, 1).expect("deletes");
    assert!(inode.is_deleted());
    fs.sync().expect("syncs");
    crash(&device);
}

/// A nameless file that had shrunk could not be given a name any more.
#[test]
fn a_nameless_file_that_shrinks_can_get_a_name() {
    let (device, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let file = NewNode {
        mode: S_IFREG,
        ..NewNode::default()
    };
    let inode = fs.create_unnamed(&root, &file).expect("creates");
    fs.acquire(&inode, 1);
    write(&fs, &inode, 0, &[7; 50_000]);
    let change = SetAttr {
        size_bytes: Some(9),
        ..SetAttr::default()
    };
    fs.set_attr(&inode, &change).expect("truncates");
    fs.link(&inode, &root, b"named").expect("links");
    fs.sync().expect("syncs");
    let picture = tree::picture(&open(&crash(&device))).expect("walks");
    assert!(picture["/named"].contains("links 1 size 9"), "{picture:?}");
}

/// An inode that left memory and came back had forgotten what fsync must wait for.
#[test]
fn fsync_waits_for_changes_made_before_the_inode_left_memory() {
    let (device, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let file = NewNode {
        mode: S_IFREG,
        ..NewNode::default()
    };
    let inode = fs.create(&root, b"file", &file).expect("creates");
    write(&fs, &inode, 0, b"content");
    drop(inode);
    let again = fs.lookup(&root, b"file").expect("finds");
    fs.fsync(&again, true).expect("syncs");
    let picture = tree::picture(&open(&crash(&device))).expect("walks");
    assert!(picture["/file"].contains("size 7"), "{picture:?}");
}

/// A file beyond 2 GiB on an image without large_file: e2fsck wants the feature.
#[test]
fn large_files_set_the_feature() {
    let mut options = mkfs::Options::default();
    options
        .apply_features("^large_file")
        .expect("a feature mkfs knows");
    let (device, fs) = volume(&options);
    let root = fs.root().expect("root");
    let file = NewNode {
        mode: S_IFREG,
        ..NewNode::default()
    };
    for (name, size) in [(&b"written"[..], None), (b"truncated", Some(3 << 30))] {
        let inode = fs.create(&root, name, &file).expect("creates");
        match size {
            None => write(&fs, &inode, 3 << 30, b"far"),
            Some(size) => {
                let change = SetAttr {
                    size_bytes: Some(size),
                    ..SetAttr::default()
                };
                fs.set_attr(&inode, &change).expect("grows");
            }
        }
    }
    fs.sync().expect("syncs");
    crash(&device);
}

/// The last free block went to the moved tail, and truncate failed with ENOSPC for want of a node.
#[test]
fn truncate_works_on_a_full_volume() {
    let (device, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let file = NewNode {
        mode: S_IFREG,
        ..NewNode::default()
    };
    let scattered = fs.create(&root, b"scattered", &file).expect("creates");
    for block in 0..4 {
        write(&fs, &scattered, block * 40_960, &[1; 4096]);
    }
    let filler = fs.create(&root, b"filler", &file).expect("creates");
    let options = WriteOptions {
        privileged: true,
        ..WriteOptions::default()
    };
    let content = vec![2; 16 << 20];
    let mut source = SliceSource::new(&content);
    let len = content.len();
    let written = fs
        .write(&filler, 0, len, &mut source, options)
        .expect("fills");
    assert!(written < len, "the volume is full");
    for size in (1..40).rev() {
        let change = SetAttr {
            size_bytes: Some(size * 4000),
            ..SetAttr::default()
        };
        fs.set_attr(&scattered, &change)
            .expect("truncates on a full volume");
    }
    fs.sync().expect("syncs");
    crash(&device);
}

/// A volume that was ext3 and was given extents later: `/old` is a block map of `len` bytes.
fn converted_volume(len: u64) -> Arc<MemoryDevice> {
    let folder = tempfile::tempdir().expect("temporary folder");
    let image = folder.path().join("image");
    let file = folder.path().join("file");
    std::fs::write(&file, vec![0x5a; len as usize]).expect("writes");
    let run = |program: &str, arguments: &[&str]| {
        let output = std::process::Command::new(program)
            .args(arguments)
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        assert!(output.status.success(), "{program}: {output:?}");
    };
    let image_name = image.to_str().expect("ASCII");
    let layout = "^extents,^64bit,^flex_bg";
    run(
        "mke2fs",
        &[
            "-q", "-t", "ext4", "-b", "1024", "-g", "1024", "-O", layout, image_name, "24M",
        ],
    );
    let request = format!("write {} old", file.display());
    run("debugfs", &["-w", "-R", &request, image_name]);
    run("tune2fs", &["-O", "extents", image_name]);
    let bytes = std::fs::read(&image).expect("reads");
    let device = Arc::new(MemoryDevice::new(bytes.len() as u64));
    device.write_at(0, &bytes).expect("writes");
    device
}

/// A block map was freed in one transaction, whatever its size, and could not be cut at all.
#[test]
fn block_maps_shrink_and_go_in_steps() {
    let device = converted_volume(14 << 20);
    let fs = open(&device);
    let root = fs.root().expect("root");
    let inode = fs.lookup(&root, b"old").expect("finds");
    for size in [14_000_001, 5_000_000, 300_000, 20_000, 100] {
        let change = SetAttr {
            size_bytes: Some(size),
            ..SetAttr::default()
        };
        fs.set_attr(&inode, &change).expect("truncates");
        fs.sync().expect("syncs");
        let picture = tree::picture(&open(&crash(&device))).expect("walks");
        assert!(
            picture["/old"].contains(&format!("size {size}")),
            "{picture:?}"
        );
    }
    drop((inode, root));
    fs.close().expect("closes");
    crash(&device);

    let device = converted_volume(14 << 20);
    let fs = open(&device);
    let root = fs.root().expect("root");
    let before = fs.space().blocks_free;
    fs.unlink(&root, b"old").expect("unlinks");
    fs.sync().expect("syncs");
    assert!(fs.space().blocks_free > before + (14 << 10));
    crash(&device);
}

/// Files with block maps could become larger than a map reaches, which e2fsck takes for damage.
#[test]
fn block_maps_limit_the_size() {
    let device = converted_volume(100_000);
    let fs = open(&device);
    let root = fs.root().expect("root");
    let inode = fs.lookup(&root, b"old").expect("finds");
    let resize = |size| {
        let change = SetAttr {
            size_bytes: Some(size),
            ..SetAttr::default()
        };
        fs.set_attr(&inode, &change)
    };
    let most = (12 + 256 + 256 * 256 + 256 * 256 * 256) * 1024;
    assert!(matches!(resize(most + 1), Err(Error::FileTooLarge)));
    resize(most).expect("grows");
    fs.sync().expect("syncs");
    crash(&device);
}

/// Nobody closes a volume that is only read: after the replay of its journal the superblock kept
/// the counts from before, which e2fsck takes for damage.
#[test]
fn a_replay_for_reading_only_brings_the_counts_up_to_date() {
    let (device, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let file = NewNode {
        mode: S_IFREG,
        ..NewNode::default()
    };
    let inode = fs.create(&root, b"file", &file).expect("creates");
    write(&fs, &inode, 0, &[7; 50_000]);
    fs.sync().expect("syncs");
    let crashed = Arc::new(device.snapshot());
    let options = MountOptions {
        read_only: true,
        commit_interval: None,
        ..MountOptions::default()
    };
    let reader = Filesystem::open(Arc::clone(&crashed) as Arc<dyn BlockDevice>, options);
    reader.expect("opens").close().expect("closes");
    check(&crashed);
}

/// chattr(1) could make devices and links immutable, which e2fsck takes for damage.
#[test]
fn special_files_take_few_flags() {
    let (device, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    for (mode, name) in [
        (0o020_600, "device"),
        (0o010_600, "fifo"),
        (0o120_777, "link"),
    ] {
        let node = NewNode {
            mode,
            target: if name == "link" { b"target" } else { b"" },
            ..NewNode::default()
        };
        let inode = fs.create(&root, name.as_bytes(), &node).expect("creates");
        for flag in [InodeFlags::IMMUTABLE, InodeFlags::APPEND, InodeFlags::SYNC] {
            let refused = fs.set_flags(&inode, flag);
            assert!(
                matches!(refused, Err(Error::NotSupported)),
                "{name} {flag:?}"
            );
        }
        fs.set_flags(&inode, InodeFlags::NOATIME).expect("sets");
    }
    fs.sync().expect("syncs");
    crash(&device);
}

/// chown(2) without any id reaches us as a change of nothing: the time of change has to move, and
/// set-id bits stay, because the same comes when root writes to a program with capabilities.
#[test]
fn an_empty_change_moves_the_time_of_change_only() {
    let (_, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let node = NewNode {
        mode: 0o104_755,
        ..NewNode::default()
    };
    let inode = fs.create(&root, b"file", &node).expect("creates");
    let before = fs.attr(&inode);
    std::thread::sleep(std::time::Duration::from_millis(20));
    fs.set_attr(&inode, &SetAttr::default()).expect("changes");
    let after = fs.attr(&inode);
    assert!(after.ctime > before.ctime, "{before:?} {after:?}");
    assert_eq!((after.mode, after.mtime), (before.mode, before.mtime));
}

/// Pages that a mapping wrote took capabilities away, and were lost when the file had become immutable.
#[test]
fn delayed_writes_are_not_judged_again() {
    const CAPABILITY: &[u8] = b"security.capability";
    let (_, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let node = NewNode {
        mode: S_IFREG,
        ..NewNode::default()
    };
    let inode = fs.create(&root, b"file", &node).expect("creates");
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    fs.set_xattr(&inode, CAPABILITY, &capability, kfs::SetMode::Any, false)
        .expect("sets");
    fs.set_flags(
        &inode,
        kfs::InodeFlags::IMMUTABLE | kfs::InodeFlags::EXTENTS,
    )
    .expect("sets flags");
    let options = WriteOptions {
        delayed: true,
        ..WriteOptions::default()
    };
    let written = fs.write(&inode, 0, 4, &mut SliceSource::new(b"late"), options);
    assert_eq!(written.expect("writes"), 4);
    fs.get_xattr(&inode, CAPABILITY).expect("is still there");
    let now = fs.write(
        &inode,
        0,
        3,
        &mut SliceSource::new(b"now"),
        WriteOptions::default(),
    );
    assert!(matches!(now, Err(kfs::Error::NotPermitted)), "{now:?}");
}

/// An access list that says no more than the permission bits moved them, but no time.
#[test]
fn a_list_that_the_mode_can_hold_moves_the_time_of_change() {
    let (_, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let node = NewNode {
        mode: 0o100_700,
        ..NewNode::default()
    };
    let inode = fs.create(&root, b"file", &node).expect("creates");
    let before = fs.attr(&inode);
    std::thread::sleep(std::time::Duration::from_millis(20));
    let mut list = vec![2, 0, 0, 0];
    for (tag, permissions) in [(1, 7), (4, 5), (32, 7)] {
        list.extend([tag, 0, permissions, 0, 255, 255, 255, 255]);
    }
    let name = b"system.posix_acl_access";
    fs.set_xattr(&inode, name, &list, kfs::SetMode::Any, false)
        .expect("sets");
    let after = fs.attr(&inode);
    assert_eq!(after.mode, 0o100_757);
    assert!(after.ctime > before.ctime, "{before:?} {after:?}");
}

/// A directory lost the capabilities it was given when its owner changed; ext4 keeps them.
#[test]
fn directories_keep_capabilities_when_the_owner_changes() {
    let (_, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let node = NewNode {
        mode: 0o040_755,
        ..NewNode::default()
    };
    let inode = fs.create(&root, b"folder", &node).expect("creates");
    let name = b"security.capability";
    fs.set_xattr(&inode, name, &[1; 20], kfs::SetMode::Any, false)
        .expect("sets");
    let change = SetAttr {
        uid: Some(7),
        ..SetAttr::default()
    };
    fs.set_attr(&inode, &change).expect("changes the owner");
    fs.get_xattr(&inode, name).expect("is still there");
}

/// A write that reached over the largest size of files wrote nothing; Linux writes what fits.
#[test]
fn a_write_over_the_largest_size_is_cut_short() {
    let (_, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let node = NewNode {
        mode: S_IFREG,
        ..NewNode::default()
    };
    let inode = fs.create(&root, b"file", &node).expect("creates");
    let block = u64::from(fs.space().block_size);
    let largest = u64::from(u32::MAX) * block;
    let mut source = SliceSource::new(&[5; 100]);
    let options = WriteOptions::default();
    let written = fs.write(&inode, largest - 30, 100, &mut source, options);
    assert_eq!(written.expect("writes"), 30);
    let beyond = fs.write(&inode, largest, 1, &mut SliceSource::new(&[5]), options);
    assert!(
        matches!(beyond, Err(kfs::Error::FileTooLarge)),
        "{beyond:?}"
    );
}

/// RENAME_WHITEOUT was refused; overlayfs needs it.
#[test]
fn a_rename_can_leave_a_whiteout() {
    let (device, fs) = volume(&mkfs::Options::default());
    let root = fs.root().expect("root");
    let node = NewNode {
        mode: S_IFREG,
        ..NewNode::default()
    };
    fs.create(&root, b"old", &node).expect("creates");
    let mode = kfs::RenameMode::Replace;
    fs.rename_with_whiteout(&root, b"old", &root, b"new", mode, &NewNode::default())
        .expect("renames");
    let whiteout = fs.lookup(&root, b"old").expect("is there");
    let attr = fs.attr(&whiteout);
    assert_eq!((attr.mode, attr.links), (0o020_000, 1));
    fs.sync().expect("syncs");
    crash(&device);
}

/// Comparing with a snapshot and restoring from it walked the tree by recursion: one that is deep enough
/// ended the process.
#[test]
fn deep_trees_are_compared_and_restored() {
    let (_device, fs) = volume(&mkfs::Options {
        inodes_count: Some(5000),
        ..mkfs::Options::default()
    });
    let node = NewNode {
        mode: 0o040_755,
        ..NewNode::default()
    };
    let mut directory = fs.root().expect("a root");
    for _ in 0..1900 {
        directory = fs.create(&directory, b"d", &node).expect("creates");
    }
    fs.create_snapshot("deep", "").expect("there is room");
    let change = SetAttr {
        mode: Some(0o700),
        ..SetAttr::default()
    };
    fs.set_attr(&directory, &change).expect("changes");
    let view = fs.open_snapshot("deep").expect("opens");
    // A stack that is too small for as many calls within calls as there are directories.
    let small = std::thread::Builder::new().stack_size(256 << 10);
    std::thread::scope(|scope| {
        let work = || {
            let changes = fs.changes_since(&view).expect("compares");
            assert_eq!(changes.len(), 1);
            let restored = fs
                .restore_path(&view, b"/d", b"/d", &mut kfs::unwatched)
                .expect("restores");
            assert_eq!((restored.inodes, restored.made), (1900, 0));
        };
        let thread = small.spawn_scoped(scope, work).expect("starts");
        thread.join().expect("ends well");
    });
    assert_eq!(fs.attr(&directory).mode & 0o7777, 0o755);
}
