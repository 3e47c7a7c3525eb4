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
        (&[], &["10K"], "10.00 KiB is too small"),
        (&["-b", "512"], &["64M"], "block size 512"),
        (&["-O", "bigalloc"], &["64M"], "'bigalloc'"),
        (
            &["-E", "resize=1T"],
            &["64M"],
            "-E: unknown option 'resize'",
        ),
        (
            &["-J", "size=999"],
            &["64M"],
            "a journal of 999.00 MiB does not fit: it may have 1.00 MiB to 32.00 MiB",
        ),
        (&["-L", "a label that is much too long"], &["64M"], "label"),
        (&["-N", "99999999"], &["64M"], "99999999 inodes"),
    ];
    for (before, after, expected) in cases {
        let output = mkfs(before, &image, after);
        let text = stderr(&output);
        assert!(text.contains(expected), "{text}");
        // Without a size the command line is right where the file is there.
        let status = if after.is_empty() { 1 } else { 2 };
        assert_eq!(output.status.code(), Some(status), "{text}");
        assert!(!image.exists(), "{expected}");
    }
}

#[test]
fn what_fails_is_no_wrong_usage() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("tiny"), "x").unwrap();
    std::fs::create_dir(path("from")).unwrap();
    std::fs::write(path("from/large"), vec![1; 3 << 20]).unwrap();
    let from = path("from");
    let from = ["-d", from.to_str().unwrap()];
    let cases: [(&[&str], &str, &[&str], &str); 4] = [
        (&[], "tiny", &[], "too small"),
        (&["-d", "/no/such"], "a", &["64M"], "-d /no/such"),
        (&[], "no/a", &["64M"], "make it first"),
        (&from, "a", &["2M"], "no space left"),
    ];
    for (before, image, after, expected) in cases {
        let output = mkfs(before, &path(image), after);
        let text = stderr(&output);
        assert!(text.contains(expected), "{text}");
        assert_eq!(output.status.code(), Some(1), "{text}");
        let causes: Vec<&str> = text.trim_end().split(": ").collect();
        let once = |cause: &&str| causes.iter().filter(|one| *one == cause).count() == 1;
        assert!(causes.iter().all(once), "said twice: {text}");
    }
}

#[test]
fn one_file_is_no_files() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    std::fs::write(from.join("a"), "x").unwrap();
    let from = ["-d", from.to_str().unwrap()];
    let output = mkfs(&from, &dir.path().join("disk.img"), &["8M"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("Filled with 1 file and 1 B of data"),
        "{text}"
    );
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
