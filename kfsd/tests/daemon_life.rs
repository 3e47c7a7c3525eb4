//! The daemon begins, tells what it does, and ends as it should.
//!
//! These tests need root and /dev/fuse.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod daemon;

use daemon::{Daemon, kfsd, wait_until};
use kfsctl::status::{Source, TransportKind};
use kfsctl::{Client, ClientError, ErrorCode, Request};
use rustix::process::Signal;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;

#[test]
fn signals_end_it_in_order() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        let mut daemon = Daemon::with_mount(&[]);
        fs::write(daemon.mount().join("file"), "x").unwrap();
        daemon.signal(signal);
        assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
        assert!(!daemon.is_mounted());
        assert!(!daemon.control().exists());
        assert_eq!(fs::read(daemon.host().join("file")).unwrap(), b"x");
    }
}

#[test]
fn a_busy_mount_does_not_hold_the_end_up() {
    let mut daemon = Daemon::with_mount(&[]);
    let mut file = fs::File::create(daemon.mount().join("file")).unwrap();
    file.write_all(b"written").unwrap();
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
    assert_eq!(fs::read(daemon.host().join("file")).unwrap(), b"written");
}

#[test]
fn unmounting_ends_it() {
    let mut daemon = Daemon::with_mount(&[]);
    assert!(
        Command::new("umount")
            .arg(daemon.mount())
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
}

#[test]
fn the_status_tells_what_is_served() {
    let daemon = Daemon::with_mount(&[]);
    let mut client = Client::connect(&daemon.control()).unwrap();
    let _open = fs::File::create(daemon.mount().join("file")).unwrap();
    let status = client.status().unwrap();
    assert_eq!(status.daemon.unwrap().pid, daemon.pid());
    assert_eq!(
        status.volume.source,
        Source::SharedDir {
            path: daemon.host()
        }
    );
    assert!(status.volume.space.unwrap().total_blocks > 0);
    let [session] = &status.sessions[..] else {
        panic!("{:?}", status.sessions)
    };
    assert_eq!(session.transport, TransportKind::DevFuse);
    assert_eq!(session.endpoint, daemon.mount());
    assert!(session.connected);
    assert_eq!(session.fuse_version.map(|version| version.0), Some(7));
    assert_eq!(
        (session.open_handles, session.known_inodes),
        (Some(1), Some(2))
    );
    let create = status
        .operations
        .iter()
        .find(|operation| operation.name == "create")
        .unwrap();
    assert_eq!((create.count, create.errors), (1, 0));
    // The kernel forgets what is gone.
    fs::remove_file(daemon.mount().join("file")).unwrap();
    drop(_open);
    wait_until("the handle is closed and the node forgotten", || {
        let session = client.status().unwrap().sessions.remove(0);
        (session.open_handles, session.known_inodes) == (Some(0), Some(1))
    });
}

#[test]
fn what_needs_an_image_is_told_so_of_a_directory() {
    let daemon = Daemon::with_mount(&[]);
    let mut client = Client::connect(&daemon.control()).unwrap();
    let restore = |path: Option<&str>| Request::Restore {
        snapshot: "a".into(),
        path: path.map(str::to_owned),
        to: None,
        force: false,
    };
    let resize = Request::Resize {
        size_bytes: 0,
        is_added: false,
        cursor: 0,
    };
    let requests = [
        (restore(None), "has no snapshots", "serve an image"),
        (restore(Some("/a")), "has no snapshots", "serve an image"),
        (Request::SnapshotList {}, "has no snapshots", "btrfs"),
        (Request::Check { snapshot: None }, "not an image", "fsck"),
        (resize, "not an image", "resize2fs"),
        (Request::Trim {}, "not an image", "fstrim"),
        (Request::Thaw {}, "not an image", "fsfreeze"),
    ];
    for (request, part, advice) in requests {
        let error = client.request(&request).unwrap_err();
        let ClientError::Refused(error) = error else {
            panic!("{request:?}: {error}");
        };
        assert_eq!(
            error.code,
            ErrorCode::NotSupported,
            "{request:?}: {error:?}"
        );
        let host = daemon.host();
        assert!(error.message.contains(host.to_str().unwrap()), "{error:?}");
        assert!(error.message.contains(part), "{request:?}: {error:?}");
        assert!(error.hint.contains(advice), "{request:?}: {error:?}");
    }
}

#[test]
fn hostile_clients_do_not_end_it() {
    let daemon = Daemon::with_mount(&[]);
    for garbage in [
        &b"\0\0\0\0"[..],
        b"{\"command\":",
        &[b'['; 200_000],
        &[0xff; 2_000_000],
    ] {
        let mut stream = UnixStream::connect(daemon.control()).unwrap();
        // It may hang up in the middle.
        let _ = stream.write_all(garbage);
        let _ = stream.write_all(b"\n");
    }
    let mut client = Client::connect(&daemon.control()).unwrap();
    client.request(&Request::Status {}).unwrap();
}

#[test]
fn one_directory_on_two_mounts() {
    let scratch = tempfile::tempdir().unwrap();
    let path = |name: &str| scratch.path().join(name);
    for name in ["host", "mount", "second"] {
        fs::create_dir(path(name)).unwrap();
    }
    let (host, mount, second) = (path("host"), path("mount"), path("second"));
    let args = [
        "--shared-dir".as_ref(),
        host.as_os_str(),
        "--mount".as_ref(),
        mount.as_os_str(),
    ];
    let args = [&args[..], &["--mount".as_ref(), second.as_os_str()]].concat();
    let mut daemon = Daemon::start(scratch, &args);
    let is_mounted = |path: &std::path::Path| {
        fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains(path.to_str().unwrap())
    };
    wait_until("both are mounted", || {
        is_mounted(&mount) && is_mounted(&second)
    });
    wait_until("the daemon serves", || {
        Client::connect(&daemon.control()).is_ok()
    });
    fs::write(mount.join("file"), "from one").unwrap();
    assert_eq!(fs::read(second.join("file")).unwrap(), b"from one");
    let status = Client::connect(&daemon.control())
        .unwrap()
        .status()
        .unwrap();
    assert_eq!(status.sessions.len(), 2);
    assert!(
        Command::new("umount")
            .arg(&second)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(fs::read(mount.join("file")).unwrap(), b"from one");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), Some(0));
    assert!(!is_mounted(&mount));
}

#[test]
fn wrong_command_lines_are_explained() {
    let failed = |status: i32, args: &[&str], part: &str| {
        let output = kfsd(args);
        let message = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(status), "{args:?}: {message}");
        assert!(message.contains(part), "{args:?}: {message}");
        assert!(message.lines().count() <= 5, "a whole usage: {message}");
    };
    failed(2, &[], "--image IMAGE or --shared-dir DIR");
    failed(
        1,
        &["--shared-dir", "/no/such/directory", "--mount", "/tmp"],
        "--shared-dir /no/such/directory: there is no such directory",
    );
    failed(
        1,
        &["--image", "/no/such.img", "--mount", "/tmp"],
        "--image /no/such.img: there is no such file; check the path, or make an image with mkfs",
    );
    failed(1, &["--image", "/tmp", "--mount", "/tmp"], "--shared-dir");
    failed(
        2,
        &["--shared-dir", "/tmp", "--mount", "/tmp", "-o", "wings"],
        "wings",
    );
    failed(2, &["--no-such-option"], "--no-such-option");
    let times: [(&[&str], &str); 2] = [
        (&["--snapshot-every", "soon"], "30s, 5min or 1h"),
        (&["-o", "timeout=soon"], "a number of seconds"),
    ];
    for (option, part) in times {
        failed(
            2,
            &[&["--image", "a", "--mount", "b"], option].concat(),
            part,
        );
    }
    failed(
        1,
        &[
            "--shared-dir",
            "/tmp",
            "--mount",
            "/tmp",
            "--control-socket",
            "/no/such/dir/c",
        ],
        "/no/such/dir/c",
    );
}

#[test]
fn capabilities_are_printed_for_management_programs() {
    let output = kfsd(&["--print-capabilities"]);
    assert!(output.status.success());
    let value: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(value["type"], "fs");
}

/// The capability set `name` of a thread.
fn capabilities(thread: &std::path::Path, name: &str) -> u64 {
    let status = fs::read_to_string(thread.join("status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
}

/// An image by mke2fs.
fn make_image(path: &std::path::Path) {
    fs::File::create(path).unwrap().set_len(64 << 20).unwrap();
    let mut mke2fs = Command::new("mke2fs");
    let status = mke2fs
        .args(["-q", "-t", "ext4"])
        .arg(path)
        .status()
        .unwrap();
    assert!(status.success(), "mke2fs (package e2fsprogs) is needed");
}

fn assert_clean(image: &std::path::Path) {
    let output = Command::new("e2fsck")
        .arg("-fn")
        .arg(image)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

#[test]
fn an_image_is_served_without_privileges() {
    let scratch = tempfile::tempdir().unwrap();
    let (image, socket) = (
        scratch.path().join("disk.img"),
        scratch.path().join("socket"),
    );
    make_image(&image);
    let args = [
        "--image".as_ref(),
        image.as_os_str(),
        "--socket-path".as_ref(),
        socket.as_os_str(),
    ];
    let mut daemon = Daemon::start(scratch, &args);
    wait_until("the daemon serves", || {
        Client::connect(&daemon.control()).is_ok()
    });
    let status = Client::connect(&daemon.control())
        .unwrap()
        .status()
        .unwrap();
    assert_eq!(
        status.volume.source,
        Source::Image {
            path: image.clone()
        }
    );
    assert!(status.volume.journal.unwrap().size_bytes > 0);
    assert!(
        status
            .volume
            .features
            .unwrap()
            .incompat
            .contains(&"extent".into())
    );
    for thread in fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
        let thread = thread.unwrap().path();
        // The threads that answered us may be gone by now.
        if thread.exists() {
            for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
                assert_eq!(
                    capabilities(&thread, name),
                    0,
                    "{name} of {}",
                    thread.display()
                );
            }
        }
    }
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
    assert!(!socket.exists() && !daemon.control().exists());
    assert_clean(&image);
}

#[test]
fn an_image_in_use_names_its_holder() {
    let scratch = tempfile::tempdir().unwrap();
    let (image, mount) = (
        scratch.path().join("disk.img"),
        scratch.path().join("mount"),
    );
    make_image(&image);
    fs::create_dir(&mount).unwrap();
    let args = [
        "--image".as_ref(),
        image.as_os_str(),
        "--mount".as_ref(),
        mount.as_os_str(),
    ];
    let mut daemon = Daemon::start(scratch, &args);
    wait_until("the image is mounted", || daemon.is_mounted());
    fs::write(mount.join("file"), "content").unwrap();
    let second = kfsd(&["--image", image.to_str().unwrap(), "--mount", "/mnt"]);
    let message = String::from_utf8(second.stderr).unwrap();
    assert!(!second.status.success());
    assert!(message.contains(&format!("{}", daemon.pid())), "{message}");
    assert!(
        Command::new("umount")
            .arg(&mount)
            .status()
            .unwrap()
            .success()
    );
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
    assert_clean(&image);
}

/// Serves a directory to virtual machines, with a file in it.
fn with_socket(options: &[&str]) -> Daemon {
    let scratch = tempfile::tempdir().unwrap();
    let (host, socket) = (scratch.path().join("host"), scratch.path().join("socket"));
    fs::create_dir(&host).unwrap();
    fs::write(host.join("only file"), "").unwrap();
    let mut args = vec!["--shared-dir".as_ref(), host.as_os_str()];
    args.extend(["--socket-path".as_ref(), socket.as_os_str()]);
    args.extend(options.iter().map(std::ffi::OsStr::new));
    let daemon = Daemon::start(scratch, &args);
    wait_until("the daemon serves", || {
        Client::connect(&daemon.control()).is_ok_and(|mut client| client.status().is_ok())
    });
    daemon
}

#[test]
fn the_sandbox_shuts_every_thread_in() {
    for sandbox in ["namespace", "chroot"] {
        let mut daemon = with_socket(&["--sandbox", sandbox, "--modcaps=-mknod"]);
        let process = std::path::PathBuf::from(format!("/proc/{}", daemon.pid()));
        let threads = || -> Vec<_> {
            let entries = fs::read_dir(process.join("task")).unwrap();
            entries.map(|entry| entry.unwrap().path()).collect()
        };
        // The thread that answered the first client goes with it.
        wait_until(
            "only main, signals, control and the socket are left",
            || threads().len() == 4,
        );
        for thread in threads() {
            // CHOWN, DAC_OVERRIDE, FOWNER, FSETID, SETGID, SETUID, SETFCAP.
            let kept = 1 | 1 << 1 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 31;
            for name in ["CapPrm:", "CapEff:", "CapBnd:"] {
                assert_eq!(
                    capabilities(&thread, name),
                    kept,
                    "{name} of {}",
                    thread.display()
                );
            }
            let root: Vec<_> = fs::read_dir(thread.join("root")).unwrap().collect();
            assert_eq!(root.len(), 1, "{}", thread.display());
            assert_eq!(root[0].as_ref().unwrap().file_name(), "only file");
        }
        let network = |path: &std::path::Path| fs::read_link(path.join("ns/net")).unwrap();
        let is_apart = network(&process) != network("/proc/self".as_ref());
        assert_eq!(is_apart, sandbox == "namespace");
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
        // The paths are out of the daemon's sight, and the sockets are gone all the same.
        assert!(!daemon.control().exists());
        assert!(!daemon.scratch.path().join("socket").exists());
    }
}

#[test]
fn a_daemon_for_one_machine_ends_with_it() {
    let mut daemon = with_socket(&[]);
    drop(UnixStream::connect(daemon.scratch.path().join("socket")).unwrap());
    assert_eq!(daemon.wait(), Some(0), "{}", daemon.log());
}

#[test]
fn a_socket_that_is_in_use_is_not_taken_over() {
    let daemon = with_socket(&[]);
    let socket = daemon.scratch.path().join("socket");
    let args = [
        "--shared-dir",
        "/tmp",
        "--socket-path",
        socket.to_str().unwrap(),
    ];
    let output = kfsd(&args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(
        !output.status.success() && message.contains("another process"),
        "{message}"
    );
    assert!(socket.exists());
}
