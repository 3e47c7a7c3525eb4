//! Small sound images with a bit of everything: mke2fs fills them, debugfs adds what a folder cannot
//! have, `e2fsck -D` makes the hash trees.

use super::checksums::fix_checksums;
use super::map::{Map, ObjectKind};
use crate::workload::Workload;
use kfs::layout::inode::{InodeBytes, S_IFMT, S_IFREG};
use kfs::{Filesystem, InodeNr, MountOptions};
use kfs_disk::{BlockDevice, MemoryDevice};
use std::fmt::Write;
use std::fs;
use std::io::{self, Seek, SeekFrom, Write as _};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

/// The time at which the images are made, for all programs of e2fsprogs.
const FAKE_TIME: &str = "1700000000";
/// Blocks far apart in one file, for trees of several levels.
const PIECES: u64 = 420;

/// How an image is made.
#[derive(Clone, Copy, Debug)]
pub struct Recipe {
    /// For messages.
    pub name: &'static str,
    /// Options of mke2fs.
    pub options: &'static str,
    /// Size in KiB.
    pub size_kib: u32,
    /// Names in the largest directory.
    pub names: u32,
}

const fn recipe(name: &'static str, options: &'static str, size_kib: u32, names: u32) -> Recipe {
    Recipe {
        name,
        options,
        size_kib,
        names,
    }
}

/// The kinds of images.
pub const RECIPES: &[Recipe] = &[
    recipe("ext4", "-t ext4 -b 1024 -g 2048", 7168, 4000),
    recipe("ext4, blocks of 4 KiB", "-t ext4 -b 4096", 10240, 500),
    recipe(
        "ext4 without checksums",
        "-t ext4 -b 1024 -O ^metadata_csum,^64bit",
        6144,
        700,
    ),
    recipe(
        "ext4 with uninit_bg",
        "-t ext4 -b 1024 -g 2048 -O ^metadata_csum,uninit_bg",
        6144,
        700,
    ),
    recipe("ext3", "-t ext3 -b 1024", 6144, 700),
    recipe("inodes of 128 bytes", "-t ext4 -b 1024 -I 128", 6144, 700),
    recipe(
        "orphan_file, meta_bg",
        "-t ext4 -b 1024 -g 1024 -O orphan_file,meta_bg,^resize_inode,large_dir",
        7168,
        4000,
    ),
    recipe("ext2", "-t ext2 -b 1024", 3072, 300),
    recipe(
        "ext4 without a journal",
        "-t ext4 -b 2048 -O ^has_journal,^flex_bg,metadata_csum_seed",
        4096,
        300,
    ),
];

/// A sound image.
#[derive(Clone, Debug)]
pub struct Base {
    /// How it was made.
    pub recipe: Recipe,
    /// Its content.
    pub bytes: Vec<u8>,
    /// Its metadata.
    pub map: Map,
    /// Whether its journal must be replayed.
    pub is_dirty: bool,
}

impl Base {
    /// Makes the image with files in `folder`.
    ///
    /// # Panics
    /// When a program of e2fsprogs fails, or e2fsck does not find the result sound.
    #[must_use]
    pub fn make(recipe: Recipe, folder: &Path) -> Self {
        let tree = folder.join("tree");
        fill(&tree, recipe.names).expect("fills a folder");
        let path = folder.join("image");
        let mut options: Vec<&str> = vec!["-q", "-F", "-N", "256"];
        options.extend(recipe.options.split(' '));
        options.extend(["-U", "01234567-89ab-cdef-0123-456789abcdef"]);
        options.extend([
            "-E",
            "lazy_itable_init=0,hash_seed=76543210-89ab-cdef-0123-456789abcdef",
        ]);
        let tree_text = tree.to_str().expect("a plain path");
        let path_text = path.to_str().expect("a plain path");
        options.extend(["-d", tree_text, path_text]);
        let size = format!("{}k", recipe.size_kib);
        options.push(&size);
        run("mke2fs", &options, 0);
        let commands = folder.join("commands");
        fs::write(&commands, debugfs_commands()).expect("writes a file");
        let commands_text = commands.to_str().expect("a plain path");
        run("debugfs", &["-w", "-f", commands_text, path_text], 0);
        run("e2fsck", &["-fyD", path_text], 1);
        run("e2fsck", &["-fn", path_text], 0);
        let mut bytes = fs::read(&path).expect("reads the image");
        let map = Map::of(&bytes);
        share_attributes(&mut bytes, &map);
        fs::write(&path, &bytes).expect("writes the image");
        run("e2fsck", &["-fn", path_text], 0);
        fs::remove_dir_all(&tree).expect("removes the folder");
        Self {
            recipe,
            map: Map::of(&bytes),
            bytes,
            is_dirty: false,
        }
    }
}

impl Base {
    /// An image that kfs has made, and filled with a random workload.
    ///
    /// # Panics
    /// When kfs fails.
    #[must_use]
    pub fn made_by_kfs() -> Self {
        let (_, closed) = work();
        Self {
            recipe: recipe("made by kfs", "", 10240, 0),
            map: Map::of(&closed),
            bytes: closed,
            is_dirty: false,
        }
    }

    /// The same without being closed, so that its journal must be replayed.
    ///
    /// # Panics
    /// When kfs fails.
    #[must_use]
    pub fn left_by_kfs() -> Self {
        let (left, closed) = work();
        Self {
            recipe: recipe("left by kfs", "", 10240, 0),
            map: Map::of(&closed),
            bytes: left,
            is_dirty: true,
        }
    }
}

/// An image after some work, before and after it was closed.
fn work() -> (Vec<u8>, Vec<u8>) {
    let device = Arc::new(MemoryDevice::new(10 << 20));
    let options = mkfs::Options {
        block_size: Some(1024),
        ..mkfs::Options::default()
    };
    mkfs::format(&*device, &options).expect("formats");
    let options = MountOptions {
        commit_interval: None,
        generation_seed: Some(7),
        ..MountOptions::default()
    };
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, options);
    let fs = fs.expect("opens");
    let mut workload = Workload::new(Arc::clone(&fs), 5);
    for _ in 0..700 {
        workload.operate().expect("memory does not fail");
    }
    drop(workload);
    fs.sync().expect("syncs");
    let left = device.to_vec();
    fs.close().expect("closes");
    (left, device.to_vec())
}

fn run(program: &str, options: &[&str], worst: i32) {
    let output = Command::new(program)
        .args(options)
        .env("E2FSPROGS_FAKE_TIME", FAKE_TIME)
        .output()
        .unwrap_or_else(|error| panic!("{program} cannot be run (package e2fsprogs): {error}"));
    let is_well = output.status.code().is_some_and(|code| code <= worst);
    assert!(is_well, "{program} {options:?}: {output:?}");
}

/// A folder with files of all sizes, links and directories.
fn fill(tree: &Path, names: u32) -> io::Result<()> {
    fs::create_dir_all(tree.join("a/b/c/d"))?;
    fs::create_dir(tree.join("empty"))?;
    fs::write(tree.join("nothing"), b"")?;
    fs::write(tree.join("small"), b"small")?;
    for index in 0..12u32 {
        let content = vec![index as u8; (index * index * 300) as usize];
        fs::write(tree.join(format!("a/file{index}")), content)?;
    }
    std::os::unix::fs::symlink("a/b", tree.join("short"))?;
    std::os::unix::fs::symlink("x".repeat(150), tree.join("long"))?;
    let mut sparse = fs::File::create(tree.join("a/sparse"))?;
    for piece in 0..PIECES {
        sparse.seek(SeekFrom::Start(piece * 8192))?;
        sparse.write_all(&[1])?;
    }
    // So far out that a block map has three levels.
    let mut huge = fs::File::create(tree.join("a/huge"))?;
    huge.seek(SeekFrom::Start(5 << 30))?;
    huge.write_all(&[2])?;
    let many = tree.join("many");
    fs::create_dir(&many)?;
    fs::write(many.join("first"), b"many names")?;
    for index in 0..names {
        let filler = "n".repeat((index % 50) as usize);
        fs::hard_link(many.join("first"), many.join(format!("{filler}{index}")))?;
    }
    Ok(())
}

/// Devices, attributes, blocks that were never written, files that were deleted.
fn debugfs_commands() -> String {
    let mut text = String::new();
    let long = "v".repeat(300);
    let lines = [
        "mknod tty c 5 1",
        "mknod disk b 259 70000",
        "mknod pipe p",
        "ea_set small user.short value",
        "ea_set small user.other another",
        "ea_set a user.directory yes",
        "ea_set short trusted.link yes",
        "ea_set tty security.label system_u",
        "fallocate a/file3 20 60",
        "rm a/file5",
        "rm a/file9",
        "symlink a/second nothing-at-all",
    ];
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
    for index in [1, 2, 4] {
        let _ = writeln!(text, "ea_set a/file{index} user.long {index}{long}");
        let _ = writeln!(text, "ea_set a/file{index} user.empty \"\"");
    }
    text
}

/// Lets two inodes share a block of attributes, which only Linux does.
fn share_attributes(image: &mut [u8], map: &Map) {
    let inodes = map.objects.iter().filter(|object| match object.kind {
        ObjectKind::Inode(nr) => InodeNr(nr) >= map.geometry.first_inode,
        _ => false,
    });
    let regular: Vec<_> = inodes
        .filter(|object| InodeBytes::new(object.of(image)).mode() & S_IFMT == S_IFREG)
        .filter(|object| {
            let ObjectKind::Inode(nr) = object.kind else {
                return false;
            };
            Some(InodeNr(nr)) != map.geometry.orphan_file_inode
        })
        .collect();
    let acl = |object: &super::Object| InodeBytes::new(object.of(image)).file_acl();
    let Some(from) = regular
        .iter()
        .map(|object| acl(object))
        .find(|&acl| acl != 0)
    else {
        panic!("no inode has a block of attributes");
    };
    let to = regular
        .iter()
        .find(|object| acl(object) == 0)
        .expect("some inode has none");
    let mut inode = InodeBytes::new(to.of_mut(image));
    inode.set_file_acl(from);
    let blocks = inode.blocks_512(&map.geometry) + u64::from(map.geometry.block_size / 512);
    inode
        .set_blocks_512(&map.geometry, blocks)
        .expect("a small file");
    let header = (from << map.geometry.block_size_bits) as usize;
    image[header + 4] = 2;
    fix_checksums(image, map);
}
