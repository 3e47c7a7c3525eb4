//! Guests at work through kfsd: what they did is judged by e2fsck and by Linux's own ext4.
//!
//! These tests boot QEMU, mount loop devices and take minutes, hence `#[ignore]`: `make test` prepares
//! the guest (tests/guest/prepare.sh --programs) and runs them all by
//! `cargo test -p kfs-tests --test guest -- --ignored`.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use kfs_tests::guest::{
    Daemon, Guest, GuestConfig, GuestReport, KernelMount, Workspace, compare_manifests, e2fsck,
    manifest, repository, run,
};

const MINUTE: Duration = Duration::from_secs(60);

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
        &["--shared-dir", text(&shared), "--xattr", "--posix-acl"],
        "programs.sh",
        &["KFS_SMALL=1", "KFS_MANIFEST_BLOCKS=0"],
    )?;
    compare_manifests(&report.manifest, &shared_manifest(&shared)?)
}

/// The host's folder, without the blocks, which the host allocates when it likes.
fn shared_manifest(shared: &Path) -> Result<String> {
    run(Command::new(repository().join("tests/guest/manifest.sh"))
        .env("KFS_MANIFEST_BLOCKS", "0")
        .arg(shared))
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
                    variables: &[&format!("KFS_SELF={name}"), "KFS_PEERS=one two host"],
                    programs: false,
                    queues: 1,
                    timeout: 5 * MINUTE,
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
    for guest in guests {
        println!("{}", guest.finish()?.output);
    }
    println!("{host_said}");
    anyhow::ensure!(
        host.status.success(),
        "the host's peer: {}\n{host_said}",
        host.status
    );
    let seen = manifest(&mount_point)?;
    daemon.stop()?;
    e2fsck(&image)?;
    let kernel = KernelMount::new(&workspace, &image)?;
    compare_manifests(&seen, &manifest(kernel.dir())?)
}
