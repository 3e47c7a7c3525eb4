//! A kfsd of its own for a test, with a scratch directory, ended when the test ends.
#![allow(dead_code, reason = "each test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// How long anything may take on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Waits until `ready` holds.
pub(crate) fn wait_until(what: &str, mut ready: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !ready() {
        assert!(begin.elapsed() < DEADLINE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs kfsd to its end.
pub(crate) fn kfsd<S: AsRef<OsStr>>(args: &[S]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kfsd"))
        .args(args)
        .output()
        .unwrap()
}

/// A running daemon.
pub(crate) struct Daemon {
    child: Option<Child>,
    pub(crate) scratch: tempfile::TempDir,
    mount: Option<PathBuf>,
}

impl Daemon {
    /// A host directory `host`, mounted on `mount`, both in a scratch directory.
    pub(crate) fn with_mount(options: &[&str]) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let (host, mount) = (scratch.path().join("host"), scratch.path().join("mount"));
        std::fs::create_dir(&host).unwrap();
        std::fs::create_dir(&mount).unwrap();
        let mut args = vec!["--shared-dir".as_ref(), host.as_os_str()];
        args.extend(["--mount".as_ref(), mount.as_os_str()]);
        args.extend(options.iter().map(OsStr::new));
        let mut daemon = Self::start(scratch, &args);
        daemon.mount = Some(mount);
        wait_until("the directory is mounted", || daemon.is_mounted());
        wait_until("the control socket is there", || daemon.control().exists());
        daemon
    }

    /// A daemon with these options, and a control socket in the scratch directory.
    pub(crate) fn start(scratch: tempfile::TempDir, args: &[&OsStr]) -> Self {
        let log = std::fs::File::create(scratch.path().join("log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_kfsd"))
            .arg("--control-socket")
            .arg(scratch.path().join("control"))
            .args(args)
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self {
            child: Some(child),
            scratch,
            mount: None,
        }
    }

    /// The directory as the host has it.
    pub(crate) fn host(&self) -> PathBuf {
        self.scratch.path().join("host")
    }

    /// The directory as users of the mount see it.
    pub(crate) fn mount(&self) -> PathBuf {
        self.scratch.path().join("mount")
    }

    /// The control socket.
    pub(crate) fn control(&self) -> PathBuf {
        self.scratch.path().join("control")
    }

    /// What the daemon logged.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.scratch.path().join("log")).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Whether the mount is there.
    pub(crate) fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
        let mount = self.mount();
        mounts
            .lines()
            .any(|line| line.split(' ').nth(1).map(Path::new) == Some(&mount))
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.pid().try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for the end and returns the exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let child = self.child.as_mut().unwrap();
        let begin = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                self.child = None;
                return status.code();
            }
            assert!(begin.elapsed() < DEADLINE, "the daemon does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // A daemon that a failed test leaves must not hold its mount for ever.
            let _ = child.kill();
            let _ = child.wait();
        }
        if self.mount.is_some() && self.is_mounted() {
            let _ = Command::new("umount").arg("-l").arg(self.mount()).status();
        }
    }
}
