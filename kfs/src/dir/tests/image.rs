//! Directories of images by e2fsprogs: read theirs, and let e2fsck judge ours.

use super::super::{Directory, DirectoryFormat};
use super::fake::Fake;
use super::{list, name};
use crate::e2fsprogs::Image;
use crate::error::Error;
use crate::ids::{BlockNr, InodeNr};
use crate::layout::FileType;
use kfs_disk::MemoryDevice;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

const COUNT: u32 = 2500;

fn name_of(number: u32) -> Vec<u8> {
    let mut name = format!("{number}-").into_bytes();
    let tail = if number.is_multiple_of(3) {
        &b"caf\xe9 "[..]
    } else {
        b"plain"
    };
    while name.len() < 60 + (number as usize * 7) % 180 {
        name.extend_from_slice(tail);
    }
    name
}

/// An image whose folder `/d` has many links to `/f`, and the folder `/d/sub`.
fn image(options: &[&str]) -> Image {
    Image::make(options, "24M", |source| {
        fs::write(source.join("f"), "content").unwrap();
        fs::create_dir_all(source.join("d/sub")).unwrap();
        for number in 0..COUNT {
            let name = name_of(number);
            let name = std::ffi::OsStr::from_bytes(&name);
            fs::hard_link(source.join("f"), source.join("d").join(name)).unwrap();
        }
    })
}

/// What `debugfs stat` says behind a word.
fn field(stat: &str, word: &str) -> u64 {
    let rest = stat
        .split(word)
        .nth(1)
        .unwrap_or_else(|| panic!("no {word} in {stat}"))
        .trim();
    match rest.strip_prefix("0x") {
        Some(hex) => {
            let end = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap();
            u64::from_str_radix(&hex[..end], 16).unwrap()
        }
        None => Image::numbers(rest)[0],
    }
}

/// Blocks of a file in their order, from `debugfs stat`: `(0-3):100-103, (IND):55, (4):200`.
fn blocks(stat: &str) -> Vec<BlockNr> {
    let (_, runs) = stat
        .split_once("EXTENTS:")
        .or_else(|| stat.split_once("BLOCKS:"))
        .unwrap();
    let runs = runs
        .split("TOTAL")
        .next()
        .unwrap()
        .split(['\n', ','])
        .map(str::trim);
    let mut blocks = Vec::new();
    for run in runs.filter(|run| !run.contains("IND") && !run.contains("ETB")) {
        match Image::numbers(run)[..] {
            [first, last, start, _] => {
                blocks.extend((0..=last - first).map(|i| BlockNr(start + i)));
            }
            [_, start] => blocks.push(BlockNr(start)),
            _ => assert!(run.is_empty(), "{run}"),
        }
    }
    blocks
}

fn stat_inode(image: &Image, path: &str) -> InodeNr {
    InodeNr(field(&image.debugfs(&format!("stat {path}")), "Inode:") as u32)
}

struct Opened {
    device: Arc<MemoryDevice>,
    directory: Directory<Fake>,
}

/// The folder `/d`.
fn open(image: &Image) -> Opened {
    let stat = image.debugfs("stat /d");
    let generation = field(&stat, "Generation:") as u32;
    let inode = InodeNr(field(&stat, "Inode:") as u32);
    let format = DirectoryFormat::new(&image.geometry(), inode, generation);
    let device = Arc::new(MemoryDevice::from_file(image.path()).unwrap());
    let mut fake = Fake::on(device.clone(), format);
    fake.blocks = blocks(&stat);
    fake.indexed = field(&stat, "Flags:") & 0x1000 != 0;
    assert_eq!(
        fake.blocks.len() as u64 * u64::from(format.block_size),
        field(&stat, "Size:")
    );
    Opened {
        device,
        directory: Directory::new(fake),
    }
}

impl Opened {
    fn close(self, image: &Image) -> Fake {
        let fake = self.directory.into_blocks();
        fake.journal.commit_all().unwrap();
        fake.journal.checkpoint().unwrap();
        self.device.write_to(image.path()).unwrap();
        fake
    }
}

fn check_content(image: &Image, directory: &Directory<Fake>) {
    let file = stat_inode(image, "/f");
    let listed: BTreeSet<Vec<u8>> = list(directory, 0, 50).into_iter().map(|e| e.0).collect();
    let mut expected: BTreeSet<Vec<u8>> = (0..COUNT).map(name_of).collect();
    expected.extend([b".".to_vec(), b"..".to_vec(), b"sub".to_vec()]);
    assert!(
        listed == expected,
        "{} names instead of {}",
        listed.len(),
        expected.len()
    );
    for number in (0..COUNT).step_by(7) {
        let entry = directory.lookup(name(&name_of(number))).unwrap().unwrap();
        assert_eq!(entry.inode, file);
        if directory.format.has_file_type {
            assert_eq!(entry.file_type, FileType::Regular);
        }
    }
    assert_eq!(
        directory.lookup(name(b"sub")).unwrap().unwrap().inode,
        stat_inode(image, "/d/sub")
    );
    assert_eq!(directory.lookup(name(b"none")).unwrap(), None);
    assert_eq!(directory.parent().unwrap(), InodeNr::ROOT);
    assert!(!directory.is_empty().unwrap());
}

/// Options of mke2fs, and values put into the superblock before hash trees are built.
const KINDS: [(&[&str], &[&str]); 5] = [
    (&["-b", "4096"], &[]),
    (&["-b", "1024"], &["ssv def_hash_version tea"]),
    (&["-b", "1024", "-O", "^metadata_csum"], &["ssv flags 2"]),
    (
        &["-b", "2048", "-O", "^filetype"],
        &["ssv def_hash_version legacy"],
    ),
    (
        &["-b", "1024", "-O", "large_dir"],
        &["ssv flags 2", "ssv def_hash_version tea"],
    ),
];

#[test]
fn directories_of_e2fsprogs_are_read_and_changed() {
    for (options, settings) in KINDS {
        let image = image(options);
        for setting in settings {
            image.debugfs(setting);
        }
        let linear = open(&image);
        assert!(!linear.directory.blocks.indexed);
        check_content(&image, &linear.directory);
        image.index_directories();
        let mut tree = open(&image);
        assert!(tree.directory.blocks.indexed);
        check_content(&image, &tree.directory);
        let file = stat_inode(&image, "/f").0;
        for number in (0..COUNT).step_by(3) {
            tree.directory.remove_now(&name_of(number)).unwrap();
        }
        for number in (0..COUNT).step_by(3) {
            tree.directory.add_now(&name_of(number), file).unwrap();
        }
        check_content(&image, &tree.directory);
        tree.close(&image);
        image.check();
    }
}

/// Gives the folder `/d` the first of its blocks and a content made by kfs alone.
fn rebuild(image: &Image, indexed: bool) -> Fake {
    let mut opened = open(image);
    let sub = stat_inode(image, "/d/sub");
    let file = stat_inode(image, "/f").0;
    let fake = &mut opened.directory.blocks;
    fake.spare = fake.blocks.drain(..).rev().collect();
    fake.indexed = false;
    opened.directory.format.dir_index &= indexed;
    let directory = &mut opened.directory;
    directory
        .with_handle(|d, handle| d.init(handle, InodeNr::ROOT))
        .unwrap();
    directory
        .with_handle(|d, handle| d.add(handle, name(b"sub"), sub, FileType::Directory))
        .unwrap();
    for number in 0..COUNT / 2 {
        directory.add_now(&name_of(number), file).unwrap();
        if number % 5 == 4 {
            directory.remove_now(&name_of(number - 2)).unwrap();
        }
        assert!(matches!(
            directory.add_now(b"sub", file),
            Err(Error::Exists)
        ));
    }
    opened.close(image)
}

#[test]
fn e2fsck_accepts_directories_of_kfs() {
    for (options, settings) in KINDS {
        for indexed in [true, false] {
            let image = image(options);
            for setting in settings {
                image.debugfs(setting);
            }
            let flags = field(&image.debugfs("stat /d"), "Flags:") & !0x1000;
            let fake = rebuild(&image, indexed);
            assert_eq!(fake.indexed, indexed);
            let (inode, count) = (fake.format.inode, fake.blocks.len());
            let size = count * fake.format.block_size as usize;
            let flags = flags | if indexed { 0x1000 } else { 0 };
            // Of each five names, four stayed; /f itself is one more.
            let links = COUNT / 2 / 5 * 4 + 1;
            image.debugfs_script(&format!(
                "punch <{inode}> {count}\nsif <{inode}> size {size}\n\
                 sif <{inode}> flags {flags:#x}\nsif /f links_count {links}
"
            ));
            image.check();
            let deep = indexed && fake.format.block_size == 1024;
            let dump = image.debugfs("htree_dump /d");
            assert_eq!(dump.contains("Root node dump"), indexed, "{dump}");
            assert_eq!(dump.contains("Indirect levels: 1"), deep, "{dump}");
        }
    }
}
