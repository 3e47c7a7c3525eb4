//! The command: what it refuses, what it says, what it leaves behind.

#![expect(clippy::unwrap_used, reason = "tests fail by panics")]

use std::path::Path;
use std::process::{Command, Output};

fn mkfs(arguments: &[&str], image: &Path, rest: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_mkfs"))
        .args(arguments)
        .arg(image)
        .args(rest)
        .output()
        .unwrap()
}

fn stderr(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn creates_and_then_refuses() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    let output = mkfs(&[], &image, &["64M"]);
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("65536 1k blocks"));
    assert_eq!(image.metadata().unwrap().len(), 64 << 20);
    let text = stderr(&mkfs(&[], &image, &[]));
    assert!(
        text.contains("holds an ext2, ext3 or ext4 file system; use -F"),
        "{text}"
    );
    let output = mkfs(&["-F", "-q", "-L", "new"], &image, &[]);
    assert!(
        output.status.success() && output.stdout.is_empty(),
        "{output:?}"
    );
}

#[test]
fn a_dry_run_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    let output = mkfs(&["-n"], &image, &["64M"]);
    assert!(output.status.success());
    assert!(String::from_utf8_lossy(&output.stdout).contains("Would create"));
    assert!(!image.exists());
    std::fs::write(&image, vec![1; 1 << 20]).unwrap();
    assert!(mkfs(&["-n"], &image, &[]).status.success());
    assert_eq!(std::fs::read(&image).unwrap(), vec![1; 1 << 20]);
}

#[test]
fn bad_input_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    let cases: [(&[&str], &[&str], &str); 9] = [
        (&[], &[], "give a size"),
        (&[], &["12X"], "'12X' is not a size"),
        (&[], &["10K"], "too few"),
        (&["-b", "512"], &["64M"], "block size 512"),
        (&["-O", "bigalloc"], &["64M"], "'bigalloc'"),
        (&["-E", "resize=1T"], &["64M"], "'resize' after -E"),
        (&["-J", "size=999"], &["64M"], "journal of 1022976 blocks"),
        (&["-L", "a label that is much too long"], &["64M"], "label"),
        (&["-N", "99999999"], &["64M"], "99999999 inodes"),
    ];
    for (before, after, expected) in cases {
        let text = stderr(&mkfs(before, &image, after));
        assert!(text.contains(expected), "{text}");
        assert!(!image.exists(), "{expected}");
    }
}

#[test]
fn odd_targets_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let text = stderr(&mkfs(&["-F"], dir.path(), &["64M"]));
    assert!(text.contains("directory"), "{text}");
    let text = stderr(&mkfs(&["-F"], Path::new("/dev/null"), &[]));
    assert!(text.contains("/dev/null"), "{text}");
    let text = stderr(&mkfs(&[], &dir.path().join("no/such/dir.img"), &["64M"]));
    assert!(text.contains("dir.img"), "{text}");
}

#[test]
fn an_image_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    let _held = kfs_disk::FileDevice::create(&image, 64 << 20).unwrap();
    let text = stderr(&mkfs(&["-F"], &image, &[]));
    assert!(text.contains("in use"), "{text}");
}

#[test]
fn a_larger_size_makes_the_file_larger() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    std::fs::write(&image, vec![0; 1 << 20]).unwrap();
    assert!(mkfs(&["-q"], &image, &["64M"]).status.success());
    assert_eq!(image.metadata().unwrap().len(), 64 << 20);
}
