//! Limits: what is largest works, what is beyond it is refused with the right error and changes nothing.
//!
//! Volumes are sparse, in memory or in files; e2fsck judges each. `KFS_LIMITS_ENTRIES` says how many
//! names the large directory gets.

use kfs::{
    Error, Filesystem, Inode, MountOptions, NewNode, SetAttr, SliceSink, SliceSource, SpaceChange,
    WriteOptions,
};
use kfs_disk::{BlockDevice, FileDevice, MemoryDevice};
use kfs_tests::{e2fsprogs, operations, tree};
use std::collections::HashSet;
use std::ops::ControlFlow;
use std::sync::Arc;

const FILE: u16 = 0o100_644;
const DIRECTORY: u16 = 0o040_755;

fn open(device: &Arc<MemoryDevice>) -> Arc<Filesystem> {
    let options = MountOptions {
        commit_interval: None,
        ..MountOptions::default()
    };
    Filesystem::open(Arc::clone(device) as Arc<dyn BlockDevice>, options).expect("opens")
}

fn volume(size: u64, options: &mkfs::Options) -> (Arc<MemoryDevice>, Arc<Filesystem>) {
    let device = Arc::new(MemoryDevice::new(size));
    mkfs::format(&*device, options).expect("formats");
    let fs = open(&device);
    (device, fs)
}

/// Closes the volume; e2fsck finds nothing.
fn judge(device: &Arc<MemoryDevice>, fs: &Arc<Filesystem>) {
    fs.close().expect("closes");
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    device.write_to(&path).expect("writes the image");
    e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{found}"));
}

fn node(mode: u16) -> NewNode<'static> {
    NewNode {
        mode,
        ..NewNode::default()
    }
}

fn write(fs: &Filesystem, inode: &Arc<Inode>, offset: u64, content: &[u8]) -> kfs::Result<usize> {
    let mut source = SliceSource::new(content);
    let options = WriteOptions::default();
    fs.write(inode, offset, content.len(), &mut source, options)
}

fn read(fs: &Filesystem, inode: &Arc<Inode>, offset: u64, len: usize) -> Vec<u8> {
    let mut content = vec![0; len];
    let read = fs
        .read(inode, offset, len, &mut SliceSink::new(&mut content))
        .expect("reads");
    content.truncate(read);
    content
}

fn resize(fs: &Filesystem, inode: &Arc<Inode>, size: u64) -> kfs::Result<()> {
    let change = SetAttr {
        size_bytes: Some(size),
        ..SetAttr::default()
    };
    fs.set_attr(inode, &change).map(drop)
}

/// Every name of a directory, each once.
fn names(fs: &Filesystem, directory: &Arc<Inode>) -> HashSet<Vec<u8>> {
    let mut names = HashSet::new();
    fs.list(directory, 0, &mut |entry| {
        assert!(names.insert(entry.name.to_vec()), "a name comes twice");
        ControlFlow::Continue(())
    })
    .expect("lists");
    names
}

#[test]
fn files_reach_2_to_the_32_blocks() {
    for block_size in [1024, 4096] {
        let options = mkfs::Options {
            block_size: Some(block_size),
            ..mkfs::Options::default()
        };
        let (device, fs) = volume(64 << 20, &options);
        let root = fs.root().expect("root");
        let inode = fs.create(&root, b"large", &node(FILE)).expect("creates");
        let most = u64::from(block_size) * u64::from(u32::MAX);

        let written = write(&fs, &inode, most - 5000, &[7; 5000]).expect("writes the last block");
        assert_eq!(written, 5000);
        write(&fs, &inode, 0, &[8; 10]).expect("writes the first block");
        assert_eq!(fs.attr(&inode).size_bytes, most);
        for beyond in [
            write(&fs, &inode, most, &[1]).map(drop),
            write(&fs, &inode, i64::MAX as u64, &[1]).map(drop),
            resize(&fs, &inode, most + 1),
            allocate(&fs, &inode, most - 10, 11),
        ] {
            assert!(matches!(beyond, Err(Error::FileTooLarge)), "{beyond:?}");
        }
        assert_eq!(fs.attr(&inode).size_bytes, most);
        resize(&fs, &inode, most - 4000).expect("cuts");
        resize(&fs, &inode, most).expect("grows");

        fs.drop_caches();
        let mut end = [7; 5000];
        end[1000..].fill(0);
        assert_eq!(read(&fs, &inode, most - 5000, 6000), end);
        assert_eq!(read(&fs, &inode, 0, 11), [8, 8, 8, 8, 8, 8, 8, 8, 8, 8, 0]);
        assert_eq!(read(&fs, &inode, most / 2, 3), [0; 3]);
        judge(&device, &fs);
    }
}

fn allocate(fs: &Filesystem, inode: &Arc<Inode>, offset: u64, len: u64) -> kfs::Result<()> {
    let change = SpaceChange::Allocate { keep_size: false };
    fs.change_space(inode, offset, len, change, WriteOptions::default())
}

/// Names of many lengths; every hundredth as long as names can be.
fn long_name(number: usize) -> Vec<u8> {
    let len = if number.is_multiple_of(100) {
        255
    } else {
        8 + number % 20
    };
    let mut name = format!("{number:08}").into_bytes();
    name.resize(len, b'n');
    name
}

#[test]
fn directories_hold_many_names() {
    let count = std::env::var("KFS_LIMITS_ENTRIES").map_or(100_000, |text| {
        text.parse().expect("KFS_LIMITS_ENTRIES is a number")
    });
    let options = mkfs::Options {
        block_size: Some(4096),
        inodes_count: Some(count as u64 + 100),
        ..mkfs::Options::default()
    };
    let (device, fs) = volume((256 << 20) + count as u64 * 600, &options);
    let root = fs.root().expect("root");
    let directory = fs.create(&root, b"many", &node(DIRECTORY)).expect("makes");
    for number in 0..count {
        fs.create(&directory, &long_name(number), &node(FILE))
            .unwrap_or_else(|error| panic!("name {number}: {error}"));
    }
    let wanted: HashSet<_> = (0..count)
        .map(long_name)
        .chain([b".".to_vec(), b"..".to_vec()])
        .collect();
    assert!(names(&fs, &directory) == wanted);
    drop(directory);
    judge(&device, &fs);

    let fs = open(&device);
    let root = fs.root().expect("root");
    let directory = fs.lookup(&root, b"many").expect("is there");
    for number in 0..count {
        fs.lookup(&directory, &long_name(number))
            .unwrap_or_else(|error| panic!("name {number}: {error}"));
    }
    let missing = fs.lookup(&directory, &long_name(count));
    assert!(matches!(missing, Err(Error::NotFound)), "{missing:?}");
    // First every third, so that blocks empty in parts.
    for number in (0..count).step_by(3) {
        fs.unlink(&directory, &long_name(number)).expect("deletes");
    }
    assert_eq!(names(&fs, &directory).len(), 2 + count - count.div_ceil(3));
    judge(&device, &fs);

    let fs = open(&device);
    let root = fs.root().expect("root");
    let directory = fs.lookup(&root, b"many").expect("is there");
    for number in (0..count).filter(|number| !number.is_multiple_of(3)) {
        fs.unlink(&directory, &long_name(number)).expect("deletes");
    }
    fs.rmdir(&root, b"many").expect("is empty");
    judge(&device, &fs);
    println!("{count} names made, listed, found and deleted");
}

/// Beyond 65 000 links a directory stops to count (dir_nlink).
#[test]
fn directories_hold_more_than_65_000_directories() {
    const COUNT: usize = 65_100;
    let options = mkfs::Options {
        block_size: Some(1024),
        inodes_count: Some(COUNT as u64 + 100),
        ..mkfs::Options::default()
    };
    let (device, fs) = volume(256 << 20, &options);
    let root = fs.root().expect("root");
    let parent = fs.create(&root, b"many", &node(DIRECTORY)).expect("makes");
    let name = |number: usize| format!("d{number}").into_bytes();
    for number in 0..COUNT {
        fs.create(&parent, &name(number), &node(DIRECTORY))
            .unwrap_or_else(|error| panic!("directory {number}: {error}"));
        let counted = number as u32 + 3;
        let wanted = if counted <= 65_000 { counted } else { 1 };
        assert_eq!(fs.attr(&parent).links, wanted, "after {}", number + 1);
    }
    // What stopped to count does not begin again.
    let moved = fs.lookup(&parent, &name(7)).expect("is there");
    let mode = kfs::RenameMode::NoReplace;
    fs.rename(&parent, &name(7), &root, b"out", mode)
        .expect("moves out");
    fs.rename(&root, b"out", &parent, &name(7), mode)
        .expect("moves in");
    assert_eq!(fs.attr(&moved).links, 2);
    assert_eq!(fs.attr(&parent).links, 1);
    drop((parent, moved));
    judge(&device, &fs);

    let fs = open(&device);
    let root = fs.root().expect("root");
    let parent = fs.lookup(&root, b"many").expect("is there");
    assert_eq!(fs.attr(&parent).links, 1);
    assert_eq!(names(&fs, &parent).len(), COUNT + 2);
    for number in 0..COUNT {
        fs.rmdir(&parent, &name(number)).expect("deletes");
    }
    fs.rmdir(&root, b"many").expect("is empty");
    assert_eq!(fs.attr(&root).links, 3, "with lost+found");
    judge(&device, &fs);
}

/// 65 000 names of a file, and no more.
#[test]
fn files_have_65_000_names_at_the_most() {
    let options = mkfs::Options {
        block_size: Some(4096),
        ..mkfs::Options::default()
    };
    let (device, fs) = volume(64 << 20, &options);
    let root = fs.root().expect("root");
    let file = fs.create(&root, b"file", &node(FILE)).expect("creates");
    for number in 1..65_000 {
        fs.link(&file, &root, format!("{number}").as_bytes())
            .unwrap_or_else(|error| panic!("name {number}: {error}"));
    }
    let beyond = fs.link(&file, &root, b"beyond");
    assert!(matches!(beyond, Err(Error::TooManyLinks)), "{beyond:?}");
    assert_eq!(fs.attr(&file).links, 65_000);
    judge(&device, &fs);
}

#[test]
fn names_have_255_bytes_and_targets_4095() {
    let (device, fs) = volume(16 << 20, &mkfs::Options::default());
    let root = fs.root().expect("root");
    let (longest, beyond) = ([b'n'; 255], [b'n'; 256]);
    let file = fs.create(&root, &longest, &node(FILE)).expect("creates");
    fs.link(&file, &root, &[b'l'; 255]).expect("links");
    let mode = kfs::RenameMode::NoReplace;
    fs.rename(&root, &longest, &root, &[0xff; 255], mode)
        .expect("renames");
    let short = b"short".as_slice();
    fs.create(&root, short, &node(FILE)).expect("creates");
    let refused = [
        fs.create(&root, &beyond, &node(FILE)).map(drop),
        fs.create(&root, &beyond, &node(DIRECTORY)).map(drop),
        fs.link(&file, &root, &beyond),
        fs.rename(&root, short, &root, &beyond, mode),
        fs.rename(&root, &beyond, &root, b"new", mode),
        fs.lookup(&root, &beyond).map(drop),
        fs.unlink(&root, &beyond),
        fs.rmdir(&root, &beyond),
    ];
    for (index, result) in refused.into_iter().enumerate() {
        assert!(
            matches!(result, Err(Error::NameTooLong)),
            "{index}: {result:?}"
        );
    }
    // A target has to fit in a block, with a zero byte after it.
    let block = fs.space().block_size as usize;
    let target = vec![b't'; 4096];
    let link = |name: &[u8], len: usize| {
        let node = NewNode {
            mode: 0o120_777,
            target: &target[..len],
            ..NewNode::default()
        };
        fs.create(&root, name, &node)
    };
    let longest = link(b"link", block - 1).expect("links");
    assert_eq!(fs.read_link(&longest).expect("reads"), target[..block - 1]);
    let beyond = link(b"longer", block);
    assert!(matches!(beyond, Err(Error::NameTooLong)), "{beyond:?}");
    judge(&device, &fs);
}

/// What [`operations::all`] does to a volume without room: all of it, or nothing with `NoSpace`.
fn operate_without_room(kind: &str, fill: fn(&Filesystem)) -> (Vec<&'static str>, usize) {
    let mut refused = Vec::new();
    let all = operations::all();
    let count = all.len();
    for operation in all {
        let options = mkfs::Options {
            block_size: Some(1024),
            inodes_count: Some(64),
            journal_bytes: Some(1 << 20),
            ..mkfs::Options::default()
        };
        let (device, fs) = volume(8 << 20, &options);
        operations::prepare(&fs).expect("prepares");
        fill(&fs);
        let (before, room) = (tree::picture(&fs).expect("walks"), fs.space());
        match operation.run(&fs) {
            Ok(_) => {}
            Err(Error::NoSpace) => {
                refused.push(operation.name);
                let after = tree::picture(&fs).expect("walks");
                assert!(
                    after == before,
                    "{kind}: {} failed and changed something",
                    operation.name
                );
                let now = fs.space();
                assert_eq!(
                    (now.blocks_free, now.inodes_free),
                    (room.blocks_free, room.inodes_free),
                    "{kind}: {} failed and kept room",
                    operation.name
                );
            }
            Err(error) => panic!("{kind}: {}: {error}", operation.name),
        }
        judge(&device, &fs);
    }
    (refused, count)
}

/// Takes every block, those for root and those that inodes hold for themselves too.
fn take_all_blocks(fs: &Filesystem) {
    let root = fs.root().expect("root");
    let file = fs.create(&root, b"filler", &node(FILE)).expect("creates");
    let options = WriteOptions {
        privileged: true,
        ..WriteOptions::default()
    };
    let (mut offset, content) = (0, [9; 65_536]);
    loop {
        let mut source = SliceSource::new(&content);
        match fs.write(&file, offset, content.len(), &mut source, options) {
            Ok(written) => offset += written as u64,
            Err(Error::NoSpace) => break,
            Err(error) => panic!("{error}"),
        }
    }
    fs.finish_writing(&file);
    fs.sync().expect("syncs");
    assert_eq!(fs.space().blocks_free, 0);
}

#[test]
fn a_full_volume_changes_nothing() {
    let (refused, _) = operate_without_room("no blocks", take_all_blocks);
    assert_eq!(
        refused,
        [
            "mkdir d/n",
            "symlink l",
            "allocate for a",
            "long attribute of a",
        ]
    );
    // Appending writes what fits in the last block. Here nothing does.
    let (device, fs) = volume(8 << 20, &mkfs::Options::default());
    operations::prepare(&fs).expect("prepares");
    take_all_blocks(&fs);
    let before = tree::picture(&fs).expect("walks");
    let file = fs.lookup(&fs.root().expect("root"), b"a").expect("finds");
    for offset in [10_240, 1 << 20, 1 << 40] {
        let written = write(&fs, &file, offset, &[1; 5000]);
        assert!(matches!(written, Err(Error::NoSpace)), "{written:?}");
    }
    assert!(tree::picture(&fs).expect("walks") == before);
    judge(&device, &fs);
}

#[test]
fn a_volume_without_inodes_changes_nothing() {
    let (refused, _) = operate_without_room("no inodes", |fs| {
        let root = fs.root().expect("root");
        let full = loop {
            let name = format!("f{}", fs.space().inodes_free);
            if let Err(error) = fs.create(&root, name.as_bytes(), &node(FILE)) {
                break error;
            }
        };
        assert!(matches!(full, Error::NoSpace), "{full}");
        assert_eq!(fs.space().inodes_free, 0);
    });
    assert_eq!(
        refused,
        [
            "create f",
            "mkdir d/n",
            "symlink l",
            "mkfifo p",
            "name for a nameless file",
        ]
    );
}

/// Blocks of 1 KiB on 5 TiB: a fifth of the volume has numbers that need more than 32 bits.
#[test]
fn blocks_have_numbers_beyond_32_bits() {
    const SIZE: u64 = 5 << 40;
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    let options = mkfs::Options {
        block_size: Some(1024),
        // As few as there can be: the tables are not what this is about.
        inodes_count: Some(SIZE >> 23),
        lazy_inode_tables: true,
        content: mkfs::Content::Zeros,
        ..mkfs::Options::default()
    };
    let device = FileDevice::create(&path, SIZE).expect("makes a sparse file");
    mkfs::format(&device, &options).expect("formats");
    drop(device);
    let open = || {
        let device = FileDevice::open(&path).expect("opens the file");
        Filesystem::open(Arc::new(device), MountOptions::default()).expect("opens")
    };

    let fs = open();
    let root = fs.root().expect("root");
    // Directories in the root land all over the volume.
    let content: Vec<u8> = (0..300_000u32).map(|at| (at / 7) as u8).collect();
    for number in 0..40 {
        let name = format!("d{number}").into_bytes();
        let directory = fs.create(&root, &name, &node(DIRECTORY)).expect("makes");
        for name in [b"data".as_slice(), &[b'n'; 255]] {
            let file = fs.create(&directory, name, &node(FILE)).expect("creates");
            write(&fs, &file, 12_345, &content).expect("writes");
            let value = [number as u8; 900];
            fs.set_xattr(&file, b"user.a", &value, kfs::SetMode::Any, false)
                .expect("sets");
        }
        let target = vec![b't'; 800];
        let link = NewNode {
            mode: 0o120_777,
            target: &target,
            ..NewNode::default()
        };
        fs.create(&directory, b"link", &link).expect("links");
    }
    drop(root);
    fs.close().expect("closes");
    drop(fs);

    assert!(blocks_beyond(&path, 40) > 0, "nothing lies beyond 2^32");
    let fs = open();
    let root = fs.root().expect("root");
    for number in 0..40 {
        let name = format!("d{number}").into_bytes();
        let directory = fs.lookup(&root, &name).expect("is there");
        for name in [b"data".as_slice(), &[b'n'; 255]] {
            let file = fs.lookup(&directory, name).expect("is there");
            assert!(read(&fs, &file, 12_345, 400_000) == content);
            assert_eq!(read(&fs, &file, 12_300, 45), [0; 45]);
            let value = fs.get_xattr(&file, b"user.a").expect("gets");
            assert_eq!(value, [number as u8; 900]);
        }
        let link = fs.lookup(&directory, b"link").expect("is there");
        assert_eq!(fs.read_link(&link).expect("reads"), vec![b't'; 800]);
    }
    // Some go again, so that blocks up there are freed.
    for number in 0..10 {
        let name = format!("d{number}").into_bytes();
        let directory = fs.lookup(&root, &name).expect("is there");
        for name in [b"data".as_slice(), &[b'n'; 255], b"link"] {
            fs.unlink(&directory, name).expect("deletes");
        }
        drop(directory);
        fs.rmdir(&root, &name).expect("deletes");
    }
    drop(root);
    fs.close().expect("closes");
    drop(fs);
    e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{found}"));
}

/// How many of the directories `d0`, `d1`, ... have a block with a number beyond 2^32, as debugfs sees it.
fn blocks_beyond(image: &std::path::Path, count: usize) -> usize {
    let script = image.with_extension("script");
    let commands: String = (0..count)
        .map(|number| format!("blocks /d{number}\nblocks /d{number}/data\n"))
        .collect();
    std::fs::write(&script, commands).expect("writes the script");
    let output = std::process::Command::new("debugfs")
        .arg("-f")
        .arg(&script)
        .arg(image)
        .output()
        .expect("debugfs runs");
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines()
        .filter(|line| !line.starts_with("debugfs"))
        .filter(|line| {
            let mut blocks = line.split_whitespace().map(str::parse::<u64>);
            blocks.any(|block| block.is_ok_and(|block| block > u64::from(u32::MAX)))
        })
        .count()
}
