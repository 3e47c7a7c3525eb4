//! The command: what it prints and how it ends, against a daemon of cardboard.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Output};

const HELLO: &str = r#"{"protocol":"kfs-control","protocol_version":1,"version":"9.9","pid":1,"commands":["status"]}"#;

/// Greets one client with `hello`, and answers each of its lines with `answer`.
fn daemon(path: &Path, hello: &'static str, answer: &'static str) -> std::thread::JoinHandle<()> {
    let listener = UnixListener::bind(path).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // The client may hang up at any time.
        let _ = writeln!(stream, "{hello}");
        let reader = BufReader::new(stream.try_clone().unwrap());
        for line in reader.lines() {
            if line.is_err() || writeln!(stream, "{answer}").is_err() {
                break;
            }
        }
    })
}

fn kfsctl(runtime_dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kfsctl"))
        .env("XDG_RUNTIME_DIR", runtime_dir)
        .args(args)
        .output()
        .unwrap()
}

fn asked(hello: &'static str, answer: &'static str, args: &[&str]) -> (bool, String, String) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("socket");
    let served = daemon(&socket, hello, answer);
    let args = [&["--socket", socket.to_str().unwrap()], args].concat();
    let output = kfsctl(directory.path(), &args);
    served.join().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.success(),
        text(output.stdout),
        text(output.stderr),
    )
}

const STATUS: &str = r#"{"id":1,"ok":{"daemon":{"version":"9.9","pid":1,"uptime_seconds":5.0},"volume":{"source":{"kind":"image","path":"/srv/disk.img"},"read_only":true},"sessions":[],"operations":[],"news":[1]}}"#;

#[test]
fn the_status_is_shown() {
    let (is_well, out, err) = asked(HELLO, STATUS, &["status"]);
    assert!(is_well, "{err}");
    assert!(
        out.contains("/srv/disk.img (read-only)") && out.contains("kfsd 9.9, pid 1"),
        "{out}"
    );
    let (is_well, out, _) = asked(HELLO, STATUS, &["status", "--json"]);
    assert!(is_well);
    assert_eq!(out.lines().count(), 1);
    let value: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(value["volume"]["source"]["path"], "/srv/disk.img");
}

#[test]
fn refusals_and_nonsense_are_explained() {
    let refusal =
        r#"{"id":1,"error":{"code":"failed","message":"it is raining","hint":"take an umbrella"}}"#;
    let (is_well, out, err) = asked(HELLO, refusal, &["status"]);
    assert!(!is_well && out.is_empty());
    assert!(
        err.contains("it is raining") && err.contains("take an umbrella"),
        "{err}"
    );
    let cases = [
        (HELLO, "gibberish", "cannot be read"),
        (HELLO, r#"{"id":1,"ok":{"volume":7}}"#, "cannot be read"),
        ("SSH-2.0-OpenSSH_9.2", "", "does not speak"),
        (
            r#"{"protocol":"kfs-control","protocol_version":2,"version":"","pid":1,"commands":[]}"#,
            "",
            "version 2",
        ),
        (
            r#"{"error":{"code":"busy","message":"too many clients"}}"#,
            "",
            "too many clients",
        ),
    ];
    for (hello, answer, part) in cases {
        let (is_well, _, err) = asked(hello, answer, &["status"]);
        assert!(!is_well && err.contains(part), "{hello} {answer}: {err}");
    }
}

#[test]
fn missing_daemons_are_told_apart() {
    let directory = tempfile::tempdir().unwrap();
    let failed = |args: &[&str], part: &str| {
        let output = kfsctl(directory.path(), args);
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && err.contains(part),
            "{args:?}: {err}"
        );
    };
    let socket = directory.path().join("kfsd.sock");
    let socket = socket.to_str().unwrap();
    failed(&["--socket", socket, "status"], "is kfsd running?");
    drop(UnixListener::bind(socket).unwrap());
    failed(&["--socket", socket, "status"], "is gone");
    failed(&["status", "--no-such-option"], "--no-such-option");
    failed(&[], "Usage");
}

#[test]
fn the_only_daemon_is_found() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("kfs")).unwrap();
    let served = daemon(&directory.path().join("kfs/kfsd-1.sock"), HELLO, STATUS);
    let output = kfsctl(directory.path(), &["status"]);
    let out = String::from_utf8(output.stdout).unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    // Another daemon of this machine may be running: then the choice is the user's.
    assert!(
        out.contains("/srv/disk.img") || err.contains("kfsd-1.sock"),
        "{out}{err}"
    );
    served.join().unwrap();
}

#[test]
fn an_idle_image_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    std::fs::File::create(&image)
        .unwrap()
        .set_len(64 << 20)
        .unwrap();
    let made = Command::new("mke2fs")
        .args([
            "-q", "-t", "ext4", "-b", "1024", "-N", "4096", "-L", "a label",
        ])
        .arg(&image)
        .status()
        .unwrap();
    assert!(made.success(), "mke2fs (package e2fsprogs) is needed");
    let args = ["--image", image.to_str().unwrap(), "status"];
    let output = kfsctl(directory.path(), &args);
    let out = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for part in [
        "a label",
        "clean",
        "blocks of 1.00 KiB",
        "of 4,096 used",
        "extent",
        "not in use",
    ] {
        assert!(out.contains(part), "{part:?} is not in\n{out}");
    }
    let output = kfsctl(directory.path(), &["status", "--json", "--image", args[1]]);
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["volume"]["state"], "clean");
    assert_eq!(value["volume"]["journal"]["size_bytes"], 4 << 20);
    assert!(value["daemon"].is_null());
}

/// As Linux's statfs has it, also where the superblock counts clusters.
#[test]
fn an_idle_image_has_the_size_that_linux_says() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.img");
    for (features, blocks) in [("^bigalloc", "277623"), ("bigalloc", "293888")] {
        let _ = std::fs::remove_file(&image);
        let made = Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-b", "1024", "-O", features])
            .arg(&image)
            .arg("300M")
            .output()
            .unwrap();
        assert!(made.status.success(), "{made:?}");
        let args = ["--image", image.to_str().unwrap(), "status", "--json"];
        let output = kfsctl(directory.path(), &args);
        let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let total = &value["volume"]["space"]["total_blocks"];
        assert_eq!(total.to_string(), blocks, "{features}");
    }
}

#[test]
fn what_is_no_image_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    std::fs::write(path("empty"), "").unwrap();
    std::fs::write(path("text"), "text ".repeat(10_000)).unwrap();
    let failed = |name: &str, part: &str| {
        let image = path(name);
        let output = kfsctl(
            directory.path(),
            &["--image", image.to_str().unwrap(), "status"],
        );
        let err = String::from_utf8(output.stderr).unwrap();
        assert!(
            !output.status.success() && err.contains(part),
            "{name}: {err}"
        );
    };
    failed("missing", "no such file");
    failed("empty", "too small");
    failed("text", "magic");
    failed(".", "is a directory");
    let both = ["--image", "x", "--socket", "y", "status"];
    assert!(!kfsctl(directory.path(), &both).status.success());
}

/// An image by mke2fs in a directory of its own.
fn image(directory: &Path) -> std::path::PathBuf {
    let path = directory.join("image");
    let made = Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-b", "1024"])
        .arg(&path)
        .arg("4M")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    path
}

fn check(path: &Path, options: &[&str]) -> (Option<i32>, String, String) {
    let image = path.to_str().unwrap();
    let args = [&["--image", image, "check"], options].concat();
    let output = kfsctl(path.parent().unwrap(), &args);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    )
}

#[test]
fn a_check_tells_sound_from_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let path = image(directory.path());
    let (status, out, err) = check(&path, &[]);
    assert_eq!(status, Some(0), "{out}{err}");
    assert!(out.ends_with("image: clean\n"), "{out}");
    // The count of free inodes in the superblock, and with it the superblock's checksum.
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[1024 + 16] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let (status, out, _) = check(&path, &[]);
    assert_eq!(status, Some(4), "{out}");
    assert!(out.ends_with("image: damaged: 2 errors\n"), "{out}");
    let (status, out, _) = check(&path, &["--json"]);
    assert_eq!(status, Some(4), "{out}");
    assert!(
        out.contains(r#""verdict":"damaged""#) && out.contains(r#""kind":"counters""#),
        "{out}"
    );
}

#[test]
fn a_check_that_cannot_be_done_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("image");
    std::fs::write(&path, vec![0; 1 << 20]).unwrap();
    let (status, out, err) = check(&path, &[]);
    assert_eq!(status, Some(8), "{out}{err}");
    assert!(err.contains("not an ext2/3/4 file system"), "{err}");
    let output = kfsctl(directory.path(), &["check"]);
    assert_eq!(output.status.code(), Some(8));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("no running kfsd was found"), "{err}");
}
