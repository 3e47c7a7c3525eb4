//! What mkfs makes must please e2fsck, and be what mke2fs makes of the same options.

#![expect(clippy::unwrap_used, reason = "tests fail by panics")]

use kfs_disk::{BlockDevice, FileDevice};
use mkfs::{Content, Options, Report, format, parse_size};
use std::path::{Path, PathBuf};
use std::process::Command;

struct Image {
    _dir: tempfile::TempDir,
    path: PathBuf,
}

impl Image {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        Self { _dir: dir, path }
    }

    /// Makes a new image.
    fn format(size: &str, options: &Options) -> (Self, Report) {
        let image = Self::new();
        let device = FileDevice::create(&image.path, parse_size(size, 1).unwrap()).unwrap();
        let options = Options {
            content: Content::Zeros,
            ..options.clone()
        };
        let report = format(&device, &options).unwrap();
        (image, report)
    }

    fn mke2fs(size: &str, arguments: &[&str]) -> Self {
        let image = Self::new();
        let fixed = ["-q", "-t", "ext4", "-O", "orphan_file,^resize_inode"];
        let output = Command::new("mke2fs")
            .args(fixed)
            .args(arguments)
            .arg(&image.path)
            .arg(size)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        image
    }

    fn dumpe2fs(&self) -> String {
        let output = Command::new("dumpe2fs").arg(&self.path).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }
}

fn e2fsck(path: &Path) {
    let output = Command::new("e2fsck")
        .arg("-fn")
        .arg(path)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {text}", path.display());
}

/// Options by the letters that mkfs and mke2fs share.
fn options(arguments: &[&str]) -> Options {
    let mut options = Options::default();
    for pair in arguments.chunks(2) {
        match pair[0] {
            "-b" => options.block_size = Some(pair[1].parse().unwrap()),
            "-I" => options.inode_size = Some(pair[1].parse().unwrap()),
            "-i" => options.inode_ratio = Some(pair[1].parse().unwrap()),
            "-N" => options.inodes_count = Some(pair[1].parse().unwrap()),
            "-g" => options.blocks_per_group = Some(pair[1].parse().unwrap()),
            "-G" => options.groups_per_flex = Some(pair[1].parse().unwrap()),
            "-m" => options.reserved_percent = pair[1].parse().unwrap(),
            "-L" => options.label = pair[1].to_string(),
            "-O" => options.apply_features(pair[1]).unwrap(),
            "-E" => options.apply_extended(pair[1]).unwrap(),
            "-J" => options.apply_journal(pair[1]).unwrap(),
            letter => panic!("{letter}"),
        }
    }
    options
}

/// What depends on chance, time or the way of writing is taken out.
fn comparable(dump: &str) -> String {
    const DIFFERENT: [&str; 7] = [
        "Filesystem UUID:",
        "Filesystem created:",
        "Last write time:",
        "Last checked:",
        "Lifetime writes:",
        "Directory Hash Seed:",
        "Checksum:",
    ];
    let line = |line: &str| {
        let line = line
            .replace(", ITABLE_ZEROED]", "]")
            .replace(" [ITABLE_ZEROED]", "");
        match line.split_once("csum 0x") {
            Some((before, after)) => format!("{before}{}", &after[after.len().min(8)..]),
            None => line,
        }
    };
    dump.lines()
        .filter(|l| !DIFFERENT.iter().any(|different| l.starts_with(different)))
        .map(|l| line(l) + "\n")
        .collect()
}

fn compare(size: &str, arguments: &[&str]) {
    let (ours, _) = Image::format(size, &options(arguments));
    let theirs = Image::mke2fs(size, arguments);
    e2fsck(&ours.path);
    let (ours, theirs) = (comparable(&ours.dumpe2fs()), comparable(&theirs.dumpe2fs()));
    for (a, b) in ours.lines().zip(theirs.lines()) {
        assert_eq!(a, b, "{size} {arguments:?}");
    }
    assert_eq!(ours.lines().count(), theirs.lines().count());
}

#[test]
fn every_size_pleases_e2fsck() {
    let sizes = [
        "128K", "300K", "1M", "2M", "2100K", "8M", "9M", "33M", "100M", "129M", "500M", "513M",
        "1000M", "5G", "33G", "130G",
    ];
    for size in sizes {
        for block_size in [1024, 2048, 4096] {
            if size == "128K" && block_size == 4096 {
                continue;
            }
            let options = Options {
                block_size: Some(block_size),
                ..Options::default()
            };
            let (image, _) = Image::format(size, &options);
            e2fsck(&image.path);
        }
    }
}

#[test]
fn sizes_that_end_badly() {
    // One to a few blocks more than whole groups: a last group of no use is left out.
    for blocks in [
        8193,
        8194,
        8200,
        8250,
        8300,
        8193 * 3,
        8192 * 2 + 1 + 60,
        8192 * 4 + 90,
    ] {
        let options = Options {
            block_size: Some(1024),
            ..Options::default()
        };
        let (image, report) = Image::format(&format!("{blocks}K"), &options);
        assert!(report.blocks_count <= blocks);
        e2fsck(&image.path);
    }
}

#[test]
fn a_terabyte_is_sparse_and_quick() {
    let start = std::time::Instant::now();
    let (image, report) = Image::format("1T", &Options::default());
    let elapsed = start.elapsed();
    assert!(
        report.bytes_written < 16 << 20,
        "{} bytes",
        report.bytes_written
    );
    let blocks = std::os::unix::fs::MetadataExt::blocks(&image.path.metadata().unwrap());
    assert!(blocks * 512 < 16 << 20, "{blocks} sectors");
    // A second is the aim; a busy machine and a debug build get more.
    assert!(elapsed.as_secs() < 5, "{elapsed:?}");
    e2fsck(&image.path);
}

#[test]
fn fifteen_terabytes() {
    let (image, report) = Image::format("15T", &Options::default());
    assert_eq!(report.blocks_count, 15 << 28);
    let output = Command::new("dumpe2fs")
        .arg("-h")
        .arg(&image.path)
        .output()
        .unwrap();
    assert!(output.status.success());
}

#[test]
fn same_as_mke2fs() {
    compare("1000M", &[]);
    compare("200M", &[]);
    compare("600M", &["-b", "1024"]);
    compare("300M", &["-b", "2048"]);
    compare("5G", &["-L", "a label", "-m", "1"]);
    compare("100G", &[]);
}

#[test]
fn same_as_mke2fs_with_options() {
    compare("300M", &["-I", "128", "-b", "4096"]);
    compare("300M", &["-I", "1024", "-b", "4096"]);
    compare("1G", &["-N", "5000"]);
    compare("1G", &["-i", "65536", "-G", "4"]);
    compare("700M", &["-b", "1024", "-g", "1024"]);
    compare("1G", &["-J", "size=40"]);
    compare("1G", &["-E", "stride=16,stripe_width=64,root_owner=12:34"]);
}

#[test]
fn same_as_mke2fs_with_features() {
    compare("2G", &["-O", "^flex_bg"]);
    compare("2G", &["-O", "sparse_super2"]);
    compare("2G", &["-O", "^sparse_super"]);
    compare("1G", &["-O", "^metadata_csum"]);
    compare("300M", &["-b", "4096", "-O", "^metadata_csum,uninit_bg"]);
    compare("1G", &["-O", "^64bit"]);
    compare("1G", &["-O", "large_dir,^dir_index,^huge_file"]);
    compare("64M", &["-O", "^filetype"]);
    compare("64M", &["-O", "^has_journal,^orphan_file"]);
    compare("2G", &["-O", "meta_bg", "-b", "1024"]);
}

#[test]
fn more_features_please_e2fsck() {
    for list in [
        "none",
        "metadata_csum_seed",
        "stable_inodes",
        "^ext_attr,^dir_nlink",
        "none,64bit",
    ] {
        let (image, _) = Image::format("64M", &options(&["-O", list]));
        e2fsck(&image.path);
    }
}

#[test]
fn inodes_in_use_may_reach_into_the_next_group() {
    let (image, report) = Image::format("64M", &options(&["-b", "1024", "-N", "64"]));
    assert_eq!(report.inodes_count, 64);
    e2fsck(&image.path);
}

#[test]
fn old_content_does_not_matter() {
    for arguments in [
        &[][..],
        &["-O", "^metadata_csum"],
        &["-E", "nodiscard"],
        &["-E", "lazy_itable_init"],
    ] {
        let image = Image::new();
        std::fs::write(&image.path, vec![0xa5; 64 << 20]).unwrap();
        let device = FileDevice::open(&image.path).unwrap();
        format(&device, &options(arguments)).unwrap();
        drop(device);
        e2fsck(&image.path);
    }
}

#[test]
fn bad_options_leave_the_device_alone() {
    let image = Image::new();
    let device = FileDevice::create(&image.path, 8 << 20).unwrap();
    device.write_at(1024, &[7; 1024]).unwrap();
    let options = Options {
        inodes_count: Some(1 << 31),
        ..Options::default()
    };
    format(&device, &options).unwrap_err();
    let mut start = [0; 1024];
    device.read_at(1024, &mut start).unwrap();
    assert_eq!(start, [7; 1024]);
}
