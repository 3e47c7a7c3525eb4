//! The engine on images made by mke2fs, judged by e2fsck.

use kfs::{Filesystem, MountOptions, NewNode, RenameMode, SliceSink, SliceSource, WriteOptions};
use kfs_disk::FileDevice;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

const S_IFREG: u16 = 0o100_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFLNK: u16 = 0o120_000;

fn mke2fs(path: &Path, size: &str, options: &[&str]) {
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .args(options)
        .arg(path)
        .arg(size)
        .output()
        .expect("e2fsprogs is installed");
    assert!(
        made.status.success(),
        "mke2fs: {}",
        String::from_utf8_lossy(&made.stderr)
    );
}

fn e2fsck(path: &Path) {
    let checked = Command::new("e2fsck")
        .args(["-fn"])
        .arg(path)
        .output()
        .expect("e2fsprogs is installed");
    assert!(
        checked.status.success(),
        "e2fsck: {}{}",
        String::from_utf8_lossy(&checked.stdout),
        String::from_utf8_lossy(&checked.stderr)
    );
}

fn open(path: &Path) -> Arc<Filesystem> {
    let device = FileDevice::open(path).expect("opens");
    let options = MountOptions {
        commit_interval: None,
        ..MountOptions::default()
    };
    Filesystem::open(Arc::new(device), options).expect("mounts")
}

fn work(fs: &Filesystem) {
    let root = fs.root().expect("root");
    let directory = NewNode {
        mode: S_IFDIR | 0o755,
        ..NewNode::default()
    };
    let file = NewNode {
        mode: S_IFREG | 0o644,
        ..NewNode::default()
    };
    let top = fs.create(&root, b"top", &directory).expect("mkdir");
    for index in 0..2000u32 {
        let name = format!("file-with-a-long-name-{index}");
        let inode = fs.create(&top, name.as_bytes(), &file).expect("create");
        let content = vec![index as u8; (index as usize * 37) % 20_000];
        let written = fs
            .write(
                &inode,
                u64::from(index % 7) * 5000,
                content.len(),
                &mut SliceSource::new(&content),
                WriteOptions::default(),
            )
            .expect("write");
        assert_eq!(written, content.len());
        let mut back = vec![0; content.len()];
        let offset = u64::from(index % 7) * 5000;
        fs.read(&inode, offset, back.len(), &mut SliceSink::new(&mut back))
            .expect("read");
        assert_eq!(back, content);
    }
    for index in (0..2000u32).step_by(3) {
        let name = format!("file-with-a-long-name-{index}");
        fs.unlink(&top, name.as_bytes()).expect("unlink");
    }
    for index in 0..50 {
        let name = format!("directory-{index}");
        fs.create(&top, name.as_bytes(), &directory).expect("mkdir");
    }
    let moved = fs.lookup(&top, b"directory-3").expect("lookup");
    fs.rename(&top, b"directory-4", &moved, b"below", RenameMode::Replace)
        .expect("rename");
    fs.rmdir(&top, b"directory-5").expect("rmdir");
    let long = vec![b'x'; 500];
    for target in [&b"short"[..], &long] {
        let link = NewNode {
            mode: S_IFLNK | 0o777,
            target,
            ..NewNode::default()
        };
        let name = format!("link-{}", target.len());
        let inode = fs.create(&root, name.as_bytes(), &link).expect("symlink");
        assert_eq!(fs.read_link(&inode).expect("readlink"), target);
    }
    let inode = fs.lookup(&top, b"file-with-a-long-name-1").expect("lookup");
    fs.link(&inode, &root, b"hard").expect("link");
    let attribute = vec![7; 700];
    fs.set_xattr(&inode, b"user.test", &attribute, kfs::SetMode::Any, false)
        .expect("setxattr");
    fs.set_xattr(&inode, b"user.small", b"v", kfs::SetMode::Create, false)
        .expect("setxattr");
    assert_eq!(
        fs.get_xattr(&inode, b"user.test").expect("getxattr"),
        attribute
    );
}

fn round_trip(options: &[&str]) {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    mke2fs(&path, "64M", options);
    let fs = open(&path);
    work(&fs);
    fs.close().expect("closes");
    drop(fs);
    e2fsck(&path);
    let fs = open(&path);
    let root = fs.root().expect("root");
    let top = fs.lookup(&root, b"top").expect("lookup");
    assert!(fs.lookup(&top, b"file-with-a-long-name-1999").is_ok());
    assert!(fs.lookup(&top, b"file-with-a-long-name-999").is_err());
    fs.close().expect("closes");
    drop(fs);
    e2fsck(&path);
}

#[test]
fn defaults() {
    round_trip(&[]);
}

#[test]
fn blocks_of_1_kib() {
    round_trip(&["-b", "1024"]);
}

#[test]
fn without_64bit() {
    round_trip(&["-O", "^64bit"]);
}

#[test]
fn without_checksums() {
    round_trip(&["-O", "^metadata_csum"]);
}

#[test]
fn inodes_of_128_bytes() {
    round_trip(&["-I", "128"]);
}

#[test]
fn without_a_journal() {
    round_trip(&["-O", "^has_journal"]);
}

#[test]
fn without_an_orphan_file() {
    round_trip(&["-O", "^orphan_file"]);
}

/// A removed directory's blocks were written by the next checkpoint over the file that had got them:
/// freeing a directory's blocks must revoke them.
#[test]
fn blocks_of_removed_directories_are_not_written_over_files() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    // Large enough a journal that nothing is checkpointed before the end.
    mke2fs(&path, "64M", &["-b", "1024", "-J", "size=8"]);
    let fs = open(&path);
    let root = fs.root().expect("root");
    let directory = NewNode {
        mode: S_IFDIR | 0o755,
        ..NewNode::default()
    };
    let file = NewNode {
        mode: S_IFREG | 0o644,
        ..NewNode::default()
    };
    for index in 0..200 {
        let name = format!("directory-{index}");
        fs.create(&root, name.as_bytes(), &directory)
            .expect("mkdir");
    }
    fs.sync().expect("sync");
    for index in 0..200 {
        let name = format!("directory-{index}");
        fs.rmdir(&root, name.as_bytes()).expect("rmdir");
    }
    fs.sync().expect("sync");
    let inode = fs.create(&root, b"all", &file).expect("create");
    let content = vec![0xa5; 64 << 20];
    let mut source = SliceSource::new(&content);
    let written = fs
        .write(
            &inode,
            0,
            content.len(),
            &mut source,
            WriteOptions::default(),
        )
        .expect("writes until the volume is full");
    assert!(written < content.len(), "every free block was taken");
    fs.close().expect("closes");
    drop((inode, root, fs));
    e2fsck(&path);
    let fs = open(&path);
    let inode = fs
        .lookup(&fs.root().expect("root"), b"all")
        .expect("lookup");
    let mut back = vec![0; written];
    fs.read(&inode, 0, written, &mut SliceSink::new(&mut back))
        .expect("read");
    assert!(back.iter().all(|byte| *byte == 0xa5));
}
