//! Guests and daemons as child processes: what the tests that boot QEMU are made of.
//!
//! A `Workspace` is a temporary folder with an image or a shared folder in it. Every process started
//! here is ended when its value is dropped, by its own process id; nothing else is ever signalled.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ is in the repository")
}

/// A program of this workspace: from `KFS_BIN_DIR`, or from where cargo put the running test.
pub fn program(name: &str) -> Result<PathBuf> {
    let folder = match std::env::var_os("KFS_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => std::env::current_exe()?
            .ancestors()
            .nth(2)
            .context("the test is not in target/PROFILE/deps")?
            .to_owned(),
    };
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{} is missing: cargo build --workspace --bins",
        path.display()
    );
    Ok(path)
}

/// Runs a command to its end; an error with all it said unless it succeeds.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(
        output.status.success(),
        "{command:?}: {}\n{said}",
        output.status
    );
    Ok(said)
}

/// A temporary folder for one test: its image, sockets and logs.
pub struct Workspace {
    folder: TempDir,
}

impl Workspace {
    /// An empty workspace.
    pub fn new() -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("kfs-test.")
            .tempdir()
            .context("making a temporary folder")?;
        Ok(Self { folder })
    }

    /// A path in the workspace.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Formats `disk.img` with our mkfs; `options` come before its name.
    pub fn make_image(&self, size: &str, options: &[&str]) -> Result<PathBuf> {
        let image = self.path("disk.img");
        run(Command::new(program("mkfs")?)
            .args(["-q"])
            .args(options)
            .arg(&image)
            .arg(size))?;
        Ok(image)
    }
}

/// Linux's view of an image, by a loop mount.
pub struct KernelMount {
    dir: PathBuf,
}

impl KernelMount {
    /// Mounts `image`, which must be clean, on the workspace's folder `kernel`.
    pub fn new(workspace: &Workspace, image: &Path) -> Result<Self> {
        Self::mount(workspace, image, "loop,ro,noload")
    }

    /// Mounts `image` for writing, which replays its journal.
    pub fn replay(workspace: &Workspace, image: &Path) -> Result<Self> {
        Self::mount(workspace, image, "loop")
    }

    /// Mounts `image` on the workspace's folder `name`, with options of mount(8).
    pub fn with_options(
        workspace: &Workspace,
        image: &Path,
        name: &str,
        options: &str,
    ) -> Result<Self> {
        Self::mount_on(workspace.path(name), image, options)
    }

    fn mount(workspace: &Workspace, image: &Path, options: &str) -> Result<Self> {
        Self::mount_on(workspace.path("kernel"), image, options)
    }

    fn mount_on(dir: PathBuf, image: &Path, options: &str) -> Result<Self> {
        fs::create_dir_all(&dir)?;
        run(Command::new("mount")
            .args(["-o", options])
            .arg(image)
            .arg(&dir))?;
        Ok(Self { dir })
    }

    /// Where the image's root is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for KernelMount {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("umount").arg(&self.dir)) {
            eprintln!("cannot unmount {}: {error}", self.dir.display());
        }
    }
}

/// A running kfsd.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts kfsd with `arguments` and waits until every socket and mount point in `ready` is there.
    pub fn start(workspace: &Workspace, arguments: &[&str], ready: &[&Path]) -> Result<Self> {
        Self::start_with_log(&workspace.path("kfsd.log"), arguments, ready)
    }

    /// The same with the log in a file of its own, where there are several daemons.
    pub fn start_with_log(log: &Path, arguments: &[&str], ready: &[&Path]) -> Result<Self> {
        let log = log.to_owned();
        let output = File::create(&log)?;
        let child = Command::new(program("kfsd")?)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("starting kfsd")?;
        let mut daemon = Self { child, log };
        let started = Instant::now();
        while !ready.iter().all(|path| is_ready(path)) {
            if let Some(status) = daemon.child.try_wait()? {
                bail!(
                    "kfsd {arguments:?} ended at its start: {status}\n{}",
                    daemon.log()
                );
            }
            ensure!(
                started.elapsed() < Duration::from_secs(30),
                "kfsd is not ready: {}",
                daemon.log()
            );
            sleep(Duration::from_millis(50));
        }
        Ok(daemon)
    }

    /// What kfsd wrote to its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Asks kfsd to end by SIGTERM; an error unless it ends with status 0 in time.
    pub fn stop(mut self) -> Result<()> {
        if self.child.try_wait()?.is_none() {
            signal(&self.child, Signal::TERM)?;
        }
        let status = wait(&mut self.child, Duration::from_secs(60))
            .with_context(|| format!("kfsd after SIGTERM\n{}", self.log()))?;
        ensure!(status.success(), "kfsd ended with {status}\n{}", self.log());
        Ok(())
    }

    /// Ends kfsd by SIGKILL, as a crash of the host would.
    pub fn kill(mut self) -> Result<()> {
        ensure!(
            self.child.try_wait()?.is_none(),
            "kfsd ended before it was killed\n{}",
            self.log()
        );
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already waited for after stop() and kill(); then both calls do nothing.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// A booted guest that runs one script.
pub struct Guest {
    child: Child,
    output: PathBuf,
    manifest: PathBuf,
}

/// How a guest ended.
pub struct GuestReport {
    /// What the guest printed.
    pub output: String,
    /// The lines of tests/guest/manifest.sh, if the script sent them.
    pub manifest: String,
}

/// What to boot; see tests/guest/boot.sh.
pub struct GuestConfig<'a> {
    /// Tells the files of several guests apart.
    pub name: &'a str,
    /// The vhost-user socket of the daemon.
    pub socket: &'a Path,
    /// A script in tests/guest, or an absolute path.
    pub script: &'a str,
    /// Laid beside the script, as /run/kfs/NAME.
    pub files: &'a [&'a Path],
    /// Exported to the script, as "NAME=VALUE".
    pub variables: &'a [&'a str],
    /// With the Debian root.
    pub programs: bool,
    /// Request queues.
    pub queues: u32,
    /// After which the guest is ended.
    pub timeout: Duration,
}

impl Guest {
    /// Boots a guest; it runs while the caller goes on.
    pub fn boot(workspace: &Workspace, config: &GuestConfig<'_>) -> Result<Self> {
        let scripts = repository().join("tests/guest");
        let output = workspace.path(&format!("{}.log", config.name));
        let manifest = workspace.path(&format!("{}.manifest", config.name));
        let written = File::create(&output)?;
        let mut command = Command::new(scripts.join("boot.sh"));
        command
            .arg("--share")
            .arg(format!("myfs={}", config.socket.display()))
            .arg("--script")
            .arg(scripts.join(config.script))
            .arg("--file")
            .arg(scripts.join("manifest.sh"))
            .arg("--collect")
            .arg(&manifest)
            .args(["--queues", &config.queues.to_string()])
            .args(["--timeout", &config.timeout.as_secs().to_string()]);
        for file in config.files {
            command.arg("--file").arg(file);
        }
        for variable in config.variables {
            command.args(["--env", variable]);
        }
        if config.programs {
            command.args(["--programs", "--memory", "1024"]);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(written.try_clone()?)
            .stderr(written)
            .spawn()
            .context("starting boot.sh")?;
        Ok(Self {
            child,
            output,
            manifest,
        })
    }

    /// What the guest printed so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.output).unwrap_or_default()).into_owned()
    }

    /// Waits until the guest printed `text`.
    pub fn wait_for(&mut self, text: &str, limit: Duration) -> Result<()> {
        let started = Instant::now();
        while !self.output().contains(text) {
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "the guest ended ({status}) before it said '{text}'\n{}",
                    self.output()
                );
            }
            ensure!(
                started.elapsed() < limit,
                "the guest never said '{text}'\n{}",
                self.output()
            );
            sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Waits for the guest's end; an error with its output unless its script succeeded.
    pub fn finish(mut self) -> Result<GuestReport> {
        let status = self.child.wait()?;
        let output = self.output();
        ensure!(status.success(), "the guest ended with {status}\n{output}");
        let manifest = String::from_utf8_lossy(&fs::read(&self.manifest)?).into_owned();
        Ok(GuestReport { output, manifest })
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // boot.sh ends its QEMU when it is terminated.
            signal(&self.child, Signal::TERM).ok();
            self.child.wait().ok();
        }
    }
}

/// Runs tests/guest/manifest.sh on a folder of the host.
pub fn manifest(dir: &Path) -> Result<String> {
    let output = Command::new(repository().join("tests/guest/manifest.sh"))
        .arg(dir)
        .output()?;
    ensure!(output.status.success(), "manifest.sh: {}", output.status);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The lines in which two manifests differ, as an error; nothing when they are the same.
pub fn compare_manifests(guest: &str, host: &str) -> Result<()> {
    ensure!(
        guest.ends_with("# end\n"),
        "the guest's manifest is not whole:\n{guest}"
    );
    if guest == host {
        return Ok(());
    }
    let guest_lines: std::collections::BTreeSet<_> = guest.lines().collect();
    let host_lines: std::collections::BTreeSet<_> = host.lines().collect();
    let mut text = String::new();
    for line in guest_lines.difference(&host_lines).take(20) {
        text += &format!("guest: {line}\n");
    }
    for line in host_lines.difference(&guest_lines).take(20) {
        text += &format!("host:  {line}\n");
    }
    bail!("guest and host see different trees:\n{text}")
}

/// `e2fsck -fn`; an error with its words unless it is content.
pub fn e2fsck(image: &Path) -> Result<()> {
    run(Command::new("e2fsck").arg("-fn").arg(image)).map(drop)
}

fn signal(child: &Child, signal: Signal) -> Result<()> {
    let id = i32::try_from(child.id()).context("process ids are positive")?;
    let pid = Pid::from_raw(id).context("process ids are not zero")?;
    kill_process(pid, signal).context("signalling a child")
}

fn wait(child: &mut Child, limit: Duration) -> Result<ExitStatus> {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(started.elapsed() < limit, "still runs after {limit:?}");
        sleep(Duration::from_millis(50));
    }
}

/// A socket that exists, or a folder that is a mount point.
fn is_ready(path: &Path) -> bool {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return false;
    };
    if !metadata.is_dir() {
        return metadata.file_type().is_socket();
    }
    path.parent()
        .and_then(|parent| fs::metadata(parent).ok())
        .is_some_and(|parent| parent.dev() != metadata.dev())
}
