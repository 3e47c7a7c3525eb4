//! Guests at work through kfsd: what they did is judged by e2fsck and by Linux's own ext4.
//!
//! These tests boot QEMU, mount loop devices and take minutes, hence `#[ignore]`: `make test` prepares
//! the guest (tests/guest/prepare.sh --programs) and runs them all by
//! `cargo test -p kfs-tests --test guest -- --ignored`.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use kfs_tests::guest::{
    Daemon, Guest, GuestConfig, GuestReport, KernelMount, Workspace, compare_manifests, e2fsck,
    manifest, program, repository, run,
};

const MINUTE: Duration = Duration::from_secs(60);
/// How long taking a snapshot may take while a guest writes as fast as it can. Not that of a debug build on a machine
/// with much else to do.
const SNAPSHOT_LIMIT: Duration = Duration::from_secs(if cfg!(debug_assertions) { 5 } else { 1 });

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are UTF-8")
}

/// One guest, one script, one daemon, which ends well.
fn serve(
    workspace: &Workspace,
    source: &[&str],
    script: &str,
    variables: &[&str],
) -> Result<GuestReport> {
    let socket = workspace.path("kfsd.sock");
    let arguments = [source, &["--socket-path", text(&socket)]].concat();
    let daemon = Daemon::start(workspace, &arguments, &[&socket])?;
    let guest = Guest::boot(
        workspace,
        &GuestConfig {
            name: "guest",
            socket: &socket,
            script,
            files: &[],
            variables,
            programs: script == "programs.sh",
            queues: 1,
            timeout: 20 * MINUTE,
        },
    )?;
    let report = guest
        .finish()
        .with_context(|| format!("kfsd said:\n{}", daemon.log()))?;
    daemon.stop()?;
    println!("{}", report.output);
    Ok(report)
}

fn judge(workspace: &Workspace, image: &Path, report: &GuestReport) -> Result<()> {
    e2fsck(image)?;
    let mount = KernelMount::new(workspace, image)?;
    compare_manifests(&report.manifest, &manifest(mount.dir())?)
}

#[test]
#[ignore = "boots QEMU: make test"]
fn tour_on_an_image() -> Result<()> {
    let workspace = Workspace::new()?;
    let image = workspace.make_image("256M", &[])?;
    let report = serve(&workspace, &["--image", text(&image)], "tour.sh", &[])?;
    judge(&workspace, &image, &report)
}

#[test]
#[ignore = "boots QEMU: make test"]
fn tour_on_an_image_of_1k_blocks_by_mke2fs() -> Result<()> {
    let workspace = Workspace::new()?;
    let image = workspace.path("disk.img");
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-b", "1024"])
        .arg(&image)
        .arg("256M"))?;
    let report = serve(&workspace, &["--image", text(&image)], "tour.sh", &[])?;
    judge(&workspace, &image, &report)
}

#[test]
#[ignore = "boots QEMU: make test"]
fn tour_on_a_shared_folder() -> Result<()> {
    let workspace = Workspace::new()?;
    let shared = workspace.path("shared");
    fs::create_dir(&shared)?;
    let report = serve(
        &workspace,
        &["--shared-dir", text(&shared), "--xattr", "--posix-acl"],
        "tour.sh",
        &["KFS_MANIFEST_BLOCKS=0"],
    )?;
    compare_manifests(&report.manifest, &shared_manifest(&shared)?)
}

#[test]
#[ignore = "boots QEMU: make test"]
fn programs_on_an_image() -> Result<()> {
    let workspace = Workspace::new()?;
    let image = workspace.make_image("1500M", &[])?;
    let report = serve(
        &workspace,
        &["--image", text(&image)],
        "programs.sh",
        &["KFS_SMALL=1"],
    )?;
    judge(&workspace, &image, &report)
}

#[test]
#[ignore = "boots QEMU: make test"]
fn programs_on_a_shared_folder() -> Result<()> {
    let workspace = Workspace::new()?;
    let shared = workspace.path("shared");
    fs::create_dir(&shared)?;
    let report = serve(
        &workspace,
        // The capability is for trusted.* attributes.
        &[
            "--shared-dir",
            text(&shared),
            "--posix-acl",
            "--modcaps",
            "+sys_admin",
        ],
        "programs.sh",
        &["KFS_SMALL=1", "KFS_MANIFEST_BLOCKS=0"],
    )?;
    compare_manifests(&report.manifest, &shared_manifest(&shared)?)
}

/// What an administrator does to a volume in use; SNAPSHOT is the newest one, OLDER the one before, FILE a new image.
const TOOLS: [&str; 10] = [
    "snapshot list",
    "snapshot diff OLDER SNAPSHOT",
    "check --snapshot SNAPSHOT",
    "defrag",
    "trim",
    "freeze --timeout 60s",
    "resize +64M",
    "fragmap",
    "snapshot export SNAPSHOT FILE",
    "snapshot clone SNAPSHOT FILE",
];

/// Uses one of them, the `number`-th snapshot being the newest.
fn use_tool(
    kfsctl: impl Fn(&[&str]) -> Result<String>,
    workspace: &Workspace,
    tool: &str,
    number: usize,
) -> Result<()> {
    let file = workspace.path(&format!("tool-{number}.img"));
    let command = tool
        .replace("SNAPSHOT", &format!("s{number}"))
        .replace("OLDER", &format!("s{}", number.saturating_sub(1)))
        .replace("FILE", text(&file));
    let arguments: Vec<&str> = command.split(' ').collect();
    kfsctl(&arguments)?;
    // At once: snapshots, too, wait for a frozen volume.
    if tool.starts_with("freeze") {
        kfsctl(&["thaw"])?;
    }
    if tool.ends_with("FILE") {
        e2fsck(&file)?;
        fs::remove_file(&file)?;
    }
    Ok(())
}

/// Snapshots come and go, and all tools are used, while a guest's programs (tar, git, sqlite, fio) work: what the
/// guest checks itself is right, and each snapshot is a whole volume.
#[test]
#[ignore = "boots QEMU: make test"]
fn snapshots_while_a_guest_works() -> Result<()> {
    let workspace = Workspace::new()?;
    let image = workspace.make_image("3G", &[])?;
    let (socket, control) = (workspace.path("kfsd.sock"), workspace.path("control"));
    let daemon = Daemon::start(
        &workspace,
        &[
            "--image",
            text(&image),
            "--socket-path",
            text(&socket),
            "--control-socket",
            text(&control),
            "--keep-listening",
        ],
        &[&socket, &control],
    )?;
    let kfsctl = |arguments: &[&str]| -> Result<String> {
        run(Command::new(program("kfsctl")?)
            .args(["--socket", text(&control)])
            .args(arguments))
    };
    let guest = Guest::boot(
        &workspace,
        &GuestConfig {
            name: "guest",
            socket: &socket,
            script: "programs.sh",
            files: &[],
            variables: &["KFS_SMALL=1", "KFS_STEPS=untar git sqlite fio load"],
            programs: true,
            queues: 1,
            timeout: 20 * MINUTE,
        },
    )?;
    let is_done = std::sync::atomic::AtomicBool::new(false);
    let (report, taken) = std::thread::scope(|scope| {
        let taker = scope.spawn(|| -> Result<(Vec<Duration>, usize)> {
            let (mut taken, mut used) = (Vec::new(), 0);
            while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                let begin = Instant::now();
                kfsctl(&["snapshot", "create", &format!("s{}", taken.len())])?;
                taken.push(begin.elapsed());
                // Not before the guest has begun, and each once: what it sees at its end stays.
                if let Some(tool) = TOOLS.get(taken.len().wrapping_sub(5)) {
                    use_tool(kfsctl, &workspace, tool, taken.len() - 1)?;
                    used += 1;
                }
                kfsctl(&["snapshot", "delete", "--keep", "last=4"])?;
                sleep(Duration::from_secs(2));
            }
            Ok((taken, used))
        });
        let report = guest.finish();
        is_done.store(true, std::sync::atomic::Ordering::Relaxed);
        (report, taker.join().expect("no panic"))
    });
    let report = report.with_context(|| format!("kfsd said:\n{}", daemon.log()))?;
    let (mut taken, used) = taken?;
    ensure!(used == TOOLS.len(), "only {used} tools were used");
    taken.sort();
    let count = taken.len();
    ensure!(count > 5, "only {count} snapshots were taken");
    let (median, longest) = (taken[count / 2], taken[count - 1]);
    println!(
        "{}\n{count} snapshots and {used} tools meanwhile: half took less than {median:?}, the longest {longest:?}",
        report.output
    );
    ensure!(longest < SNAPSHOT_LIMIT, "a snapshot took {longest:?}");
    daemon.stop()?;
    let idle = |arguments: &[&str]| -> Result<String> {
        run(Command::new(program("kfsctl")?)
            .args(["--image", text(&image)])
            .args(arguments))
    };
    for number in count - 4..count {
        // Each is an image of its own to e2fsck.
        let exported = workspace.path(&format!("s{number}.img"));
        let name = format!("s{number}");
        idle(&["snapshot", "export", &name, text(&exported)])?;
        e2fsck(&exported)?;
        fs::remove_file(&exported)?;
        idle(&["snapshot", "delete", &name])?;
    }
    e2fsck(&image)?;
    let kernel = KernelMount::new(&workspace, &image)?;
    // Removing the snapshot store, after the guest has looked, has changed the root's times.
    let without_root = |manifest: &str| -> String {
        let lines = manifest.lines().filter(|line| !line.starts_with(". "));
        lines.map(|line| format!("{line}\n")).collect()
    };
    let seen = manifest(kernel.dir())?;
    compare_manifests(&without_root(&report.manifest), &without_root(&seen))
}

/// The volume is set back under a guest that has files open: they are stale, and all else is as it was.
#[test]
#[ignore = "boots QEMU: make test"]
fn the_volume_is_set_back_under_a_guest() -> Result<()> {
    let workspace = Workspace::new()?;
    let image = workspace.make_image("256M", &[])?;
    let (socket, control) = (workspace.path("kfsd.sock"), workspace.path("control"));
    let mount_point = workspace.path("mount");
    fs::create_dir(&mount_point)?;
    let daemon = Daemon::start(
        &workspace,
        &[
            "--image",
            text(&image),
            "--socket-path",
            text(&socket),
            "--mount",
            text(&mount_point),
            "--control-socket",
            text(&control),
        ],
        &[&socket, &mount_point],
    )?;
    let kfsctl = |arguments: &[&str]| -> Result<String> {
        run(Command::new(program("kfsctl")?)
            .args(["--socket", text(&control)])
            .args(arguments))
    };
    let mut guest = Guest::boot(
        &workspace,
        &GuestConfig {
            name: "guest",
            socket: &socket,
            script: "stale.sh",
            files: &[],
            variables: &[],
            programs: false,
            queues: 1,
            timeout: 5 * MINUTE,
        },
    )?;
    guest.wait_for("wrote the first state", 2 * MINUTE)?;
    kfsctl(&["snapshot", "create", "then"])?;
    fs::write(mount_point.join("go"), "")?;
    guest.wait_for("opened", 2 * MINUTE)?;
    let refusal = kfsctl(&["restore", "then"]).expect_err("the volume is in use");
    let refusal = refusal.to_string();
    ensure!(
        refusal.contains(&format!("the guest at {}", text(&socket))),
        "the refusal does not name the guest: {refusal}"
    );
    kfsctl(&["restore", "--force", "then"])?;
    let report = guest
        .finish()
        .with_context(|| format!("kfsd said:\n{}", daemon.log()))?;
    println!("{}", report.output);
    ensure!(report.output.contains("saw the first state"));
    kfsctl(&["snapshot", "delete", "then", "before-restore-1"])?;
    daemon.stop()?;
    e2fsck(&image)
}

/// The host's folder, without the blocks, which the host allocates when it likes.
fn shared_manifest(shared: &Path) -> Result<String> {
    run(Command::new(repository().join("tests/guest/manifest.sh"))
        .env("KFS_MANIFEST_BLOCKS", "0")
        .arg(shared))
}

/// The suite that tests/scripts/pjdfstest.sh runs on a mount of the host, and installs.
#[test]
#[ignore = "boots QEMU: make test"]
fn pjdfstest_in_a_guest() -> Result<()> {
    let suite = repository().join("build/tools/bin/pjdfstest");
    ensure!(
        suite.exists(),
        "{} is missing: tests/scripts/pjdfstest.sh installs it",
        suite.display()
    );
    let workspace = Workspace::new()?;
    let image = workspace.make_image("1G", &[])?;
    let socket = workspace.path("kfsd.sock");
    let daemon = Daemon::start(
        &workspace,
        &["--image", text(&image), "--socket-path", text(&socket)],
        &[&socket],
    )?;
    let guest = Guest::boot(
        &workspace,
        &GuestConfig {
            name: "guest",
            socket: &socket,
            script: "pjdfstest.sh",
            files: &[
                &suite,
                &repository().join("tests/conformance/pjdfstest.toml"),
            ],
            variables: &[],
            programs: true,
            queues: 1,
            timeout: 20 * MINUTE,
        },
    )?;
    let report = guest
        .finish()
        .with_context(|| format!("kfsd said:\n{}", daemon.log()))?;
    daemon.stop()?;
    println!("{}", report.output);
    ensure!(
        report
            .output
            .contains("pjdfstest: 397 passed, 0 failed, 1 cannot apply"),
        "not all tests ran"
    );
    e2fsck(&image)
}

#[test]
#[ignore = "boots QEMU: make test"]
fn two_guests_and_a_mount_share_an_image() -> Result<()> {
    let workspace = Workspace::new()?;
    let image = workspace.make_image("256M", &[])?;
    let (one, two) = (workspace.path("one.sock"), workspace.path("two.sock"));
    let mount_point = workspace.path("mount");
    fs::create_dir(&mount_point)?;
    let daemon = Daemon::start(
        &workspace,
        &[
            "--image",
            text(&image),
            "--socket-path",
            text(&one),
            "--socket-path",
            text(&two),
            "--mount",
            text(&mount_point),
        ],
        &[&one, &two, &mount_point],
    )?;
    let guests = [("one", &one), ("two", &two)]
        .into_iter()
        .map(|(name, socket)| {
            Guest::boot(
                &workspace,
                &GuestConfig {
                    name,
                    socket,
                    script: "peers.sh",
                    files: &[],
                    variables: &[&format!("KFS_SELF={name}"), "KFS_PEERS=one two host"],
                    programs: false,
                    queues: 1,
                    timeout: 10 * MINUTE,
                },
            )
        })
        .collect::<Result<Vec<_>>>()?;
    let host = Command::new(repository().join("tests/guest/peers.sh"))
        .env("KFS_SELF", "host")
        .env("KFS_PEERS", "one two host")
        .env("KFS_DIR", &mount_point)
        .output()?;
    let host_said = String::from_utf8_lossy(&host.stdout).into_owned();
    // All of them are waited for: if one fails, the reason is often in what another one said.
    let ends: Vec<_> = guests.into_iter().map(Guest::finish).collect();
    println!("{host_said}\nkfsd said:\n{}", daemon.log());
    for end in &ends {
        match end {
            Ok(report) => println!("{}", report.output),
            Err(error) => println!("{error:#}"),
        }
    }
    ensure!(host.status.success(), "the host's peer: {}", host.status);
    ensure!(ends.iter().all(Result::is_ok), "a guest failed");
    let seen = manifest(&mount_point)?;
    daemon.stop()?;
    e2fsck(&image)?;
    let kernel = KernelMount::new(&workspace, &image)?;
    compare_manifests(&seen, &manifest(kernel.dir())?)
}

/// The Debian programs at full speed: on the host, through `--mount`.
fn programs_on_a_mount(workspace: &Workspace, source: &[&str]) -> Result<String> {
    let mount_point = workspace.path("mount");
    let collected = workspace.path("host.manifest");
    fs::create_dir(&mount_point)?;
    let arguments = [source, &["--mount", text(&mount_point)]].concat();
    let daemon = Daemon::start(workspace, &arguments, &[&mount_point])?;
    let scripts = repository().join("tests/guest");
    let output = run(Command::new(scripts.join("host.sh"))
        .arg("--dir")
        .arg(&mount_point)
        .arg("--script")
        .arg(scripts.join("programs.sh"))
        .arg("--file")
        .arg(scripts.join("manifest.sh"))
        .args(["--env", "KFS_MANIFEST_BLOCKS=0", "--collect"])
        .arg(&collected))
    .with_context(|| format!("kfsd said:\n{}", daemon.log()))?;
    println!("{output}");
    daemon.stop()?;
    Ok(fs::read_to_string(collected)?)
}

#[test]
#[ignore = "needs the guest's programs: make test"]
fn programs_on_a_mounted_image() -> Result<()> {
    let workspace = Workspace::new()?;
    let image = workspace.make_image("2G", &[])?;
    let seen = programs_on_a_mount(&workspace, &["--image", text(&image)])?;
    e2fsck(&image)?;
    let kernel = KernelMount::new(&workspace, &image)?;
    compare_manifests(&seen, &shared_manifest(kernel.dir())?)
}

#[test]
#[ignore = "needs the guest's programs: make test"]
fn programs_on_a_mounted_shared_folder() -> Result<()> {
    let workspace = Workspace::new()?;
    let shared = workspace.path("shared");
    fs::create_dir(&shared)?;
    let source = ["--shared-dir", text(&shared), "--posix-acl"];
    let seen = programs_on_a_mount(&workspace, &source)?;
    compare_manifests(&seen, &shared_manifest(&shared)?)
}

/// What synced.sh said is durable must be there, in `dir`.
fn check_synced(said: &str, dir: &Path) -> Result<usize> {
    let mut count = 0;
    // The last line may have been cut off.
    let whole = &said[..said.rfind('\n').map_or(0, |end| end + 1)];
    for line in whole
        .lines()
        .filter_map(|line| line.strip_prefix("synced "))
    {
        let (name, sum) = line.split_once(' ').context("synced NAME SUM")?;
        let found = run(Command::new("sha256sum").arg(dir.join(name)))?;
        ensure!(
            found.starts_with(sum),
            "{name} is {found}, not {sum} as when it was synced"
        );
        count += 1;
    }
    Ok(count)
}

/// After a crash: on a copy by e2fsck, on a copy by Linux, and by kfs itself, the image becomes
/// clean and holds all that was synced.
fn judge_crashed(workspace: &Workspace, image: &Path, said: &str) -> Result<usize> {
    let copy = workspace.path("copy.img");
    let copy_image = || {
        run(Command::new("cp")
            .arg("--sparse=always")
            .args([image, &copy]))
    };
    copy_image()?;
    let repaired = Command::new("e2fsck").arg("-fp").arg(&copy).output()?;
    // 1 tells of a replayed journal and nothing that -p would not do by itself.
    ensure!(
        matches!(repaired.status.code(), Some(0 | 1)),
        "e2fsck -fp: {repaired:?}"
    );
    e2fsck(&copy)?;
    let kernel = KernelMount::new(workspace, &copy)?;
    check_synced(said, kernel.dir()).context("replayed by e2fsck")?;
    drop(kernel);

    copy_image()?;
    let kernel = KernelMount::replay(workspace, &copy)?;
    check_synced(said, kernel.dir()).context("replayed by Linux")?;
    drop(kernel);
    e2fsck(&copy)?;

    let mount_point = workspace.path("recovered");
    fs::create_dir_all(&mount_point)?;
    let daemon = Daemon::start(
        workspace,
        &["--image", text(image), "--mount", text(&mount_point)],
        &[&mount_point],
    )?;
    let count = check_synced(said, &mount_point).context("replayed by kfs")?;
    daemon.stop()?;
    e2fsck(image)?;
    Ok(count)
}

#[test]
#[ignore = "takes minutes: make test"]
fn a_killed_mount_keeps_what_was_synced() -> Result<()> {
    for seconds in [1, 2, 4, 7, 11] {
        let workspace = Workspace::new()?;
        let image = workspace.make_image("512M", &[])?;
        let mount_point = workspace.path("mount");
        fs::create_dir(&mount_point)?;
        let daemon = Daemon::start(
            &workspace,
            &["--image", text(&image), "--mount", text(&mount_point)],
            &[&mount_point],
        )?;
        let work = Command::new(repository().join("tests/guest/synced.sh"))
            .env("KFS_DIR", &mount_point)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        sleep(Duration::from_secs(seconds));
        daemon.kill()?;
        // Its writes fail now, so it ends by itself.
        let said = work.wait_with_output()?;
        run(Command::new("umount").arg("-l").arg(&mount_point))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        let count = judge_crashed(&workspace, &image, &said)
            .with_context(|| format!("killed after {seconds} s"))?;
        println!("killed after {seconds} s: {count} synced files are there");
        ensure!(count > 0, "nothing was synced in {seconds} s");
    }
    Ok(())
}

#[test]
#[ignore = "boots QEMU: make test"]
fn a_killed_daemon_keeps_what_a_guest_synced() -> Result<()> {
    let workspace = Workspace::new()?;
    let image = workspace.make_image("512M", &[])?;
    let socket = workspace.path("kfsd.sock");
    let daemon = Daemon::start(
        &workspace,
        &["--image", text(&image), "--socket-path", text(&socket)],
        &[&socket],
    )?;
    let mut guest = Guest::boot(
        &workspace,
        &GuestConfig {
            name: "guest",
            socket: &socket,
            script: "synced.sh",
            files: &[],
            variables: &[],
            programs: false,
            queues: 1,
            timeout: 5 * MINUTE,
        },
    )?;
    let started = Instant::now();
    while guest.output().matches("synced ").count() < 40 {
        guest.wait_for("synced ", 2 * MINUTE)?;
        ensure!(
            started.elapsed() < 4 * MINUTE,
            "too slow:\n{}",
            guest.output()
        );
        sleep(Duration::from_millis(100));
    }
    daemon.kill()?;
    // What was under way to the terminal still arrives; then the guest hangs and is ended.
    sleep(Duration::from_secs(1));
    let said = guest.output();
    drop(guest);
    let count = judge_crashed(&workspace, &image, &said)?;
    println!("{count} synced files are there");
    Ok(())
}
