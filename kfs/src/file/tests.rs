//! What cannot be brought about from outside at will: a truncation that had to stop half-way, and a
//! reader who is late.

use super::{DataSink, SliceSink, SliceSource, SpaceChange, WriteOptions};
use crate::e2fsprogs::Image;
use crate::error::Result;
use crate::extent::REWRITE_CREDITS_MIN;
use crate::fs::{Filesystem, MountOptions};
use crate::inode::{Inode, Removal, SetAttr};
use crate::ops::NewNode;
use kfs_disk::FileDevice;
use std::io::IoSliceMut;
use std::sync::Arc;

const BLOCK: u64 = 1024;
/// Every other block of the file is there. A step is left over where blocks lie in many groups.
const BLOCKS: u64 = 5000;
const CUT_TO: u64 = 3 * BLOCK + 100;

/// An image, its volume, and a file of many extents in it.
fn with_file() -> (Image, Arc<Filesystem>, Arc<Inode>) {
    let image = Image::make(&["-b", "1024", "-g", "256", "-t", "ext4"], "8M", |_| {});
    let device = FileDevice::open(image.path()).unwrap();
    let options = MountOptions {
        commit_interval: None,
        ..MountOptions::default()
    };
    let fs = Filesystem::open(Arc::new(device), options).unwrap();
    let root = fs.root().unwrap();
    let node = NewNode {
        mode: 0o100_644,
        ..NewNode::default()
    };
    let file = fs.create(&root, b"file", &node).unwrap();
    for block in (0..BLOCKS).step_by(2) {
        write(&fs, &file, block * BLOCK, &[0xaa; BLOCK as usize]);
    }
    let file = Arc::clone(&file);
    (image, fs, file)
}

fn write(fs: &Filesystem, file: &Arc<Inode>, offset: u64, bytes: &[u8]) {
    let source = &mut SliceSource::new(bytes);
    let written = fs.write(file, offset, bytes.len(), source, WriteOptions::default());
    assert_eq!(written.unwrap(), bytes.len());
}

fn read(fs: &Filesystem, file: &Arc<Inode>) -> Vec<u8> {
    let mut bytes = vec![0; file.size_bytes() as usize];
    let len = bytes.len();
    let read = fs.read(file, 0, len, &mut SliceSink::new(&mut bytes));
    assert_eq!(read.unwrap(), len);
    bytes
}

/// Sets the size and frees some of the blocks behind it, as one step of a truncation.
fn cut_half(fs: &Filesystem, inode: &Arc<Inode>) {
    let file = fs.file(inode);
    let first = CUT_TO.div_ceil(BLOCK);
    let removal = fs.volume().transact(REWRITE_CREDITS_MIN, |handle| {
        let removal = file.cut_some(handle, first)?;
        inode.update(fs.volume(), handle, |state, _| {
            state.fields_mut().set_size_bytes(CUT_TO);
        });
        Ok(removal)
    });
    assert_eq!(
        removal.unwrap(),
        Removal::More,
        "the file is too small for this test"
    );
    assert!(inode.is_being_cut());
}

#[test]
fn what_was_cut_off_never_comes_back() {
    type Growth = fn(&Filesystem, &Arc<Inode>);
    let growths: [(&str, Growth); 5] = [
        ("write", |fs, file| {
            write(fs, file, (BLOCKS - 1) * BLOCK, b"end");
        }),
        ("append", |fs, file| {
            let options = WriteOptions {
                append: true,
                ..WriteOptions::default()
            };
            let source = &mut SliceSource::new(&[1; 5000]);
            fs.write(file, 0, 5000, source, options).unwrap();
        }),
        ("truncate", |fs, file| {
            let size = SetAttr {
                size_bytes: Some(BLOCKS * BLOCK),
                ..SetAttr::default()
            };
            fs.set_attr(file, &size).unwrap();
        }),
        ("allocate", |fs, file| {
            let change = SpaceChange::Allocate { keep_size: false };
            let options = WriteOptions::default();
            fs.change_space(file, 0, BLOCKS * BLOCK, change, options)
                .unwrap();
        }),
        ("allocate behind the end", |fs, file| {
            let change = SpaceChange::Allocate { keep_size: true };
            let options = WriteOptions::default();
            fs.change_space(file, 0, BLOCKS * BLOCK, change, options)
                .unwrap();
            let size = SetAttr {
                size_bytes: Some(BLOCKS * BLOCK),
                ..SetAttr::default()
            };
            fs.set_attr(file, &size).unwrap();
        }),
    ];
    for (name, grow) in growths {
        let (image, fs, file) = with_file();
        cut_half(&fs, &file);
        assert_eq!(read(&fs, &file).len() as u64, CUT_TO, "{name}");
        grow(&fs, &file);
        assert!(!file.is_being_cut(), "{name}");
        let behind = &read(&fs, &file)[CUT_TO as usize..];
        assert!(!behind.is_empty(), "{name}");
        assert!(!behind.contains(&0xaa), "{name}: shows what was cut off");
        fs.close().unwrap();
        drop(fs);
        image.check();
    }
}

#[test]
fn the_rest_is_cut_at_the_end() {
    let (image, fs, file) = with_file();
    cut_half(&fs, &file);
    // A new name is no reason to forget it.
    fs.link(&file, &fs.root().unwrap(), b"name").unwrap();
    drop(file);
    fs.close().unwrap();
    drop(fs);
    image.check();
}

/// A reader who has looked up where the data is, and falls asleep for long enough that others do much.
struct Late<'a> {
    bytes: Vec<u8>,
    meanwhile: &'a (dyn Fn() + Sync),
}

impl DataSink for Late<'_> {
    fn fill(
        &mut self,
        len: usize,
        read: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> Result<()>,
    ) -> Result<()> {
        std::thread::scope(|scope| {
            scope.spawn(self.meanwhile);
        });
        self.bytes = vec![0; len];
        read(&mut [IoSliceMut::new(&mut self.bytes)])
    }

    fn zeros(&mut self, len: usize) -> Result<()> {
        self.bytes = vec![0; len];
        Ok(())
    }
}

#[test]
fn a_late_reader_sees_nothing_of_others() {
    let (image, fs, _) = with_file();
    let root = fs.root().unwrap();
    let node = NewNode {
        mode: 0o100_644,
        ..NewNode::default()
    };
    let read = fs.create(&root, b"read", &node).unwrap();
    let other = fs.create(&root, b"other", &node).unwrap();
    write(&fs, &read, 0, &[0xaa; BLOCK as usize]);
    fs.create_snapshot("one", "").unwrap();
    let meanwhile = || {
        write(&fs, &read, 0, &[0xbb; BLOCK as usize]);
        fs.delete_snapshot("one").unwrap();
        fs.sync().unwrap();
        // All that is free now, the block that the reader has found among it.
        let bytes = [0xee; BLOCK as usize];
        let options = WriteOptions {
            append: true,
            privileged: true,
            ..WriteOptions::default()
        };
        let append = || {
            let source = &mut SliceSource::new(&bytes);
            fs.write(&other, 0, bytes.len(), source, options)
        };
        while append().is_ok() {}
    };
    let mut sink = Late {
        bytes: Vec::new(),
        meanwhile: &meanwhile,
    };
    fs.read(&read, 0, BLOCK as usize, &mut sink).unwrap();
    assert_eq!(sink.bytes, [0xbb; BLOCK as usize]);
    drop((root, read, other));
    fs.close().unwrap();
    drop(fs);
    image.check();
}

#[test]
fn a_nameless_file_survives_the_end_of_a_snapshot() {
    let (image, fs, _) = with_file();
    fs.create_snapshot("one", "").unwrap();
    let node = NewNode {
        mode: 0o100_644,
        ..NewNode::default()
    };
    let root = fs.root().unwrap();
    // Between this and the reference that a client gets for it.
    let nameless = fs.create_unnamed(&root, &node).unwrap();
    fs.delete_snapshot("one").unwrap();
    write(&fs, &nameless, 0, b"here");
    drop((root, nameless));
    fs.close().unwrap();
    drop(fs);
    image.check();
}
