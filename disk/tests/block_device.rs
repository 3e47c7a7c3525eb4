//! `FileDevice` on real block devices and images that the kernel uses.
//!
//! Needs root and loop devices: `cargo test -p kfs-disk --test block_device -- --ignored`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use kfs_disk::{BlockDevice, FileDevice, Holder, OpenError};

fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program)
        .args(args)
        .output()
        .expect("the program is installed");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {text}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().expect("the temporary path is UTF-8")
}

/// An image that is attached to a loop device until it is dropped.
struct Attached {
    dir: tempfile::TempDir,
    device: PathBuf,
    mount_point: Option<PathBuf>,
}

impl Attached {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("the temporary directory is writable");
        let image = dir.path().join("disk.img");
        drop(FileDevice::create(&image, 16 << 20).expect("the directory is new"));
        let device = PathBuf::from(run("losetup", &["--show", "-f", text(&image)]));
        Attached {
            dir,
            device,
            mount_point: None,
        }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk.img")
    }

    fn mount(&mut self) -> &Path {
        run("mke2fs", &["-q", "-t", "ext4", text(&self.device)]);
        let mount_point = self.dir.path().join("a mount point");
        fs::create_dir(&mount_point).expect("the directory is new");
        run("mount", &[text(&self.device), text(&mount_point)]);
        self.mount_point.insert(mount_point)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if let Some(mount_point) = &self.mount_point {
            run("umount", &[text(mount_point)]);
        }
        run("losetup", &["-d", text(&self.device)]);
    }
}

fn holder(result: Result<FileDevice, OpenError>) -> Holder {
    match result {
        Err(OpenError::InUse { holder, .. }) => holder,
        other => panic!("not refused as in use: {other:?}"),
    }
}

#[test]
#[ignore = "needs root and loop devices"]
fn reads_and_writes_a_block_device() {
    let attached = Attached::new();
    let mut device = FileDevice::open(&attached.device).unwrap();
    assert!(device.is_block_device());
    assert_eq!((device.size_bytes(), device.sector_size()), (16 << 20, 512));
    device.write_at(0, &vec![7; 4 << 20]).unwrap();
    device.write_zeroes(100, 1 << 20).unwrap();
    device.write_zeroes((2 << 20) + 5, 10).unwrap();
    device.discard((3 << 20) + 1, (1 << 20) - 1).unwrap();
    device.flush().unwrap();
    let mut bytes = vec![0; 3 << 20];
    device.read_at(0, &mut bytes).unwrap();
    for (place, byte) in bytes.iter().enumerate() {
        let zero = (100..(1 << 20) + 100).contains(&place)
            || ((2 << 20) + 5..(2 << 20) + 15).contains(&place);
        assert_eq!(*byte, if zero { 0 } else { 7 }, "at {place}");
    }
    assert!(device.write_at((16 << 20) - 1, b"xy").is_err());
    assert!(device.resize(1 << 20).is_err());
    device.grow(16 << 20).unwrap();
    let err = device.grow(17 << 20).unwrap_err();
    assert_eq!(
        err.to_string(),
        "the block device has 16.00 MiB, 17.00 MiB are needed"
    );

    let Holder::Process { pid, .. } = holder(FileDevice::open(&attached.device)) else {
        panic!("the holder is this process");
    };
    assert_eq!(pid, std::process::id());
    let path = attached.device.clone();
    drop(device);
    let reader = FileDevice::open_read_only(&path).unwrap();
    assert!(matches!(
        holder(FileDevice::open(&path)),
        Holder::Process { .. }
    ));
    drop(reader);
    FileDevice::open(&path).unwrap();
}

#[test]
#[ignore = "needs root and loop devices"]
fn refuses_what_the_kernel_has_mounted() {
    let mut attached = Attached::new();
    let mount_point = attached.mount().to_owned();
    let err = FileDevice::open(&attached.device).unwrap_err();
    assert!(
        err.to_string()
            .contains(&format!("umount {}", mount_point.display())),
        "{err}"
    );
    assert_eq!(holder(Err(err)), Holder::Mount { mount_point });
    let loop_device = Holder::Loop {
        device: attached.device.clone(),
    };
    assert_eq!(holder(FileDevice::open(attached.image())), loop_device);
    // Whoever reads what Linux writes at the same time reads nonsense.
    let to_read = FileDevice::open_read_only(attached.image());
    assert_eq!(holder(to_read), loop_device);
}

#[test]
#[ignore = "needs root and loop devices"]
fn a_read_only_loop_device_does_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("disk.img");
    drop(FileDevice::create(&image, 1 << 20).unwrap());
    let device = run("losetup", &["--show", "-r", "-f", text(&image)]);
    let result = FileDevice::open(&image);
    let on_device = FileDevice::open(&device);
    run("losetup", &["-d", &device]);
    result.unwrap();
    let err = on_device.unwrap_err();
    assert!(matches!(err, OpenError::ReadOnlyMedium { .. }), "{err}");
}
