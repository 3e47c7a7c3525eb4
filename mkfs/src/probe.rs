//! Recognises what a device holds, so that it is not overwritten by mistake.

use kfs_disk::BlockDevice;
use std::io;

/// A signature: offset in bytes, the bytes there, and what has them.
type Signature = (u64, &'static [u8], &'static str);

const SIGNATURES: &[Signature] = &[
    (
        1024 + 0x38,
        &[0x53, 0xef],
        "an ext2, ext3 or ext4 file system",
    ),
    (0, b"XFSB", "an XFS file system"),
    (65536 + 64, b"_BHRfS_M", "a btrfs file system"),
    (4096 - 10, b"SWAPSPACE2", "swap space"),
    (4096 - 10, b"SWAP-SPACE", "swap space"),
    (16384 - 10, b"SWAPSPACE2", "swap space"),
    (65536 - 10, b"SWAPSPACE2", "swap space"),
    (512, b"EFI PART", "a GPT partition table"),
    (4096, b"EFI PART", "a GPT partition table"),
    (0, b"LUKS\xba\xbe", "a LUKS volume"),
    (512, b"LABELONE", "an LVM physical volume"),
    (1024, &[0x10, 0x20, 0xf5, 0xf2], "an F2FS file system"),
    (3, b"NTFS    ", "an NTFS file system"),
    (3, b"EXFAT   ", "an exFAT file system"),
    (54, b"FAT1", "a FAT file system"),
    (82, b"FAT32", "a FAT file system"),
    (32769, b"CD001", "an ISO 9660 file system"),
    (0, b"hsqs", "a squashfs file system"),
    (1024, &[0xe2, 0xe1, 0xf5, 0xe0], "an EROFS file system"),
    (
        24,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca],
        "a bcachefs file system",
    ),
    (
        4096 + 24,
        &[0xc6, 0x85, 0x73, 0xf6, 0x4e, 0x1a, 0x45, 0xca],
        "a bcachefs file system",
    ),
    (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "an MD RAID member"),
    (0, b"QFI\xfb", "a QCOW2 disk image"),
    (0, b"KDMV", "a VMDK disk image"),
    (64, &[0x7f, 0x10, 0xda, 0xbe], "a VDI disk image"),
    (0, b"vhdxfile", "a VHDX disk image"),
];

/// Bytes at the start of a device in which signatures are looked for.
const PROBE_BYTES: u64 = 128 * 1024;

/// Names what the device holds; `None` when nothing is recognised.
///
/// # Errors
/// When the device cannot be read.
pub fn probe(device: &dyn BlockDevice) -> io::Result<Option<&'static str>> {
    let mut start = vec![0; PROBE_BYTES.min(device.size_bytes()) as usize];
    device.read_at(0, &mut start)?;
    Ok(recognise(&start))
}

fn recognise(start: &[u8]) -> Option<&'static str> {
    let found = SIGNATURES.iter().find(|(offset, magic, _)| {
        let at = *offset as usize;
        start.get(at..at + magic.len()) == Some(magic)
    });
    match found {
        Some(signature) => Some(signature.2),
        None => has_partitions(start).then_some("a partition table"),
    }
}

/// Whether the first sector is a partition table of the old kind: its mark alone also ends many a
/// boot sector, so an entry must make sense.
fn has_partitions(start: &[u8]) -> bool {
    let Some(sector) = start.get(..512) else {
        return false;
    };
    if sector[510..] != [0x55, 0xaa] {
        return false;
    }
    let entries: Vec<&[u8]> = sector[446..510].chunks_exact(16).collect();
    let flags_ok = entries.iter().all(|entry| entry[0] & 0x7f == 0);
    flags_ok
        && entries
            .iter()
            .any(|entry| entry[4] != 0 && entry[12..16] != [0; 4])
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfs_disk::MemoryDevice;

    #[test]
    fn signatures_are_recognised() {
        for (offset, magic, name) in SIGNATURES {
            let device = MemoryDevice::new(1 << 20);
            device.write_at(*offset, magic).unwrap();
            assert_eq!(probe(&device).unwrap(), Some(*name));
        }
    }

    #[test]
    fn partitions_are_recognised() {
        let device = MemoryDevice::new(4096);
        assert_eq!(probe(&device).unwrap(), None);
        device.write_at(510, &[0x55, 0xaa]).unwrap();
        assert_eq!(probe(&device).unwrap(), None);
        device.write_at(446 + 4, &[0x83]).unwrap();
        device.write_at(446 + 12, &[1]).unwrap();
        assert_eq!(probe(&device).unwrap(), Some("a partition table"));
    }

    #[test]
    fn tiny_devices_hold_nothing() {
        assert_eq!(probe(&MemoryDevice::new(100)).unwrap(), None);
    }
}
