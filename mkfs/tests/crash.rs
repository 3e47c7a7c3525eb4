//! The power goes while mkfs overwrites a file system: the device then holds the old one untouched,
//! the new one complete, or none, and never a superblock over metadata of another.

#![expect(clippy::unwrap_used, reason = "tests fail by panics")]

use kfs::Geometry;
use kfs_disk::testing::{CrashDevice, Fault, FaultDevice, FaultTrigger, OpKind};
use kfs_disk::{BlockDevice, MemoryDevice};
use mkfs::{Error, Options, format};

const OLD: [u8; 16] = [1; 16];
const NEW: [u8; 16] = [2; 16];

fn options(uuid: [u8; 16]) -> Options {
    Options {
        uuid: Some(uuid),
        hash_seed: Some(uuid),
        time: Some(1),
        ..Options::default()
    }
}

/// A device with the old file system.
fn old_device() -> MemoryDevice {
    let device = MemoryDevice::new(4 << 20);
    format(&device, &options(OLD)).unwrap();
    device
}

/// The uuid of the file system on a device, if a whole superblock is there.
fn uuid_of(device: &MemoryDevice) -> Option<[u8; 16]> {
    let superblock = kfs::read_superblock(device).ok()?;
    Some(Geometry::try_from(&superblock).ok()?.uuid)
}

#[test]
fn a_power_cut_leaves_one_file_system_or_none() {
    let old = old_device();
    let device = CrashDevice::new(old.snapshot());
    format(&device, &options(NEW)).unwrap();
    let (old, new) = (old.to_vec(), device.snapshot().to_vec());
    let (mut olds, mut nones, mut news) = (0, 0, 0);
    for point in device.crash_points() {
        for image in point.images(12, 7) {
            match uuid_of(&image.device) {
                None => nones += 1,
                Some(OLD) => {
                    // The boot block before the superblock may be gone.
                    assert!(image.device.to_vec()[1024..] == old[1024..], "{image}");
                    olds += 1;
                }
                Some(_) => {
                    assert!(image.device.to_vec() == new, "{image}");
                    news += 1;
                }
            }
        }
    }
    assert!(olds > 0 && nones > 20 && news > 0, "{olds} {nones} {news}");
}

#[test]
fn a_failing_device_is_reported() {
    let counting = FaultDevice::new(old_device());
    format(&counting, &options(NEW)).unwrap();
    let writes = counting.count(OpKind::Write);
    assert!(writes > 10);
    for n in 0..writes {
        let device = FaultDevice::new(old_device());
        device.inject(Fault::new(OpKind::Write, FaultTrigger::Nth(n)));
        let error = format(&device, &options(NEW)).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error}");
        let mut bytes = [0; 1024];
        device.read_at(1024, &mut bytes).unwrap();
        assert!(
            bytes.iter().all(|&byte| byte == 0) || n + 1 == writes,
            "write {n}"
        );
    }
}
