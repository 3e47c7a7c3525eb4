//! Volumes by mke2fs, for tests that change their size.

use kfs::{BlockNr, Filesystem};
use std::path::Path;
use std::process::Command;

/// Options of mke2fs, among them all ways to keep descriptors. Groups of 1 MiB make
/// them many.
pub const LAYOUTS: &[(&str, &str)] = &[
    ("kept blocks", "-b 1024 -g 1024"),
    ("none kept", "-b 1024 -g 1024 -O ^resize_inode"),
    ("meta_bg", "-b 1024 -g 1024 -O meta_bg,^resize_inode"),
    (
        "meta_bg without flex_bg",
        "-b 1024 -g 1024 -O meta_bg,^resize_inode,^flex_bg",
    ),
    ("without flex_bg", "-b 1024 -g 1024 -O ^flex_bg"),
    ("without 64bit", "-b 1024 -g 1024 -O ^64bit"),
    ("uninit_bg", "-b 1024 -g 1024 -O ^metadata_csum,uninit_bg"),
    (
        "no checksums",
        "-b 1024 -g 1024 -O ^metadata_csum,^uninit_bg",
    ),
    (
        "sparse_super2",
        "-b 1024 -g 1024 -O sparse_super2,^resize_inode",
    ),
    (
        "copies everywhere",
        "-b 1024 -g 1024 -O ^sparse_super,^resize_inode",
    ),
    ("no journal", "-b 1024 -g 1024 -O ^has_journal"),
    ("blocks of 4 KiB", "-b 4096 -g 2048"),
    (
        "blocks of 4 KiB, none kept",
        "-b 4096 -g 2048 -O ^resize_inode",
    ),
    ("usual groups", "-b 1024"),
];

/// Makes an image of `bytes`, which are whole KiB, with options of mke2fs.
///
/// # Panics
/// When mke2fs does not.
pub fn mke2fs(path: &Path, layout: &str, bytes: u64) {
    let made = Command::new("mke2fs")
        .args(["-q", "-F", "-t", "ext4"])
        .args(layout.split(' '))
        .arg(path)
        .arg(format!("{}k", bytes / 1024))
        .output()
        .expect("mke2fs runs (package e2fsprogs)");
    assert!(made.status.success(), "{layout}: {made:?}");
}

/// The size of a volume in bytes.
#[must_use]
pub fn size_of(fs: &Filesystem) -> u64 {
    let geometry = &fs.volume().geometry;
    geometry.offset_of(BlockNr(geometry.blocks_count()))
}
