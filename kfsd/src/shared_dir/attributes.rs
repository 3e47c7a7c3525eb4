//! The host's attributes in the form of the wire.

use crate::fuse::abi::{Attr, Kstatfs, Statx as WireStatx, SxTime};
use rustix::fs::{StatVfs, Statx, StatxTimestamp};

/// Attributes as GETATTR gives them.
pub(super) fn attr(stat: &Statx) -> Attr {
    Attr {
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        atime: stat.stx_atime.tv_sec.cast_unsigned(),
        mtime: stat.stx_mtime.tv_sec.cast_unsigned(),
        ctime: stat.stx_ctime.tv_sec.cast_unsigned(),
        atimensec: stat.stx_atime.tv_nsec,
        mtimensec: stat.stx_mtime.tv_nsec,
        ctimensec: stat.stx_ctime.tv_nsec,
        mode: u32::from(stat.stx_mode),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        rdev: encode_device(stat.stx_rdev_major, stat.stx_rdev_minor),
        blksize: stat.stx_blksize,
        flags: 0,
    }
}

/// Attributes as STATX gives them.
pub(super) fn statx(stat: &Statx) -> WireStatx {
    WireStatx {
        mask: stat.stx_mask,
        blksize: stat.stx_blksize,
        attributes: stat.stx_attributes.bits(),
        nlink: stat.stx_nlink,
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        mode: stat.stx_mode,
        spare0: 0,
        ino: stat.stx_ino,
        size: stat.stx_size,
        blocks: stat.stx_blocks,
        attributes_mask: stat.stx_attributes_mask.bits(),
        atime: time(stat.stx_atime),
        btime: time(stat.stx_btime),
        ctime: time(stat.stx_ctime),
        mtime: time(stat.stx_mtime),
        rdev_major: stat.stx_rdev_major,
        rdev_minor: stat.stx_rdev_minor,
        dev_major: stat.stx_dev_major,
        dev_minor: stat.stx_dev_minor,
        spare2: [0; 14],
    }
}

/// Numbers of a file system.
pub(super) fn statfs(numbers: &StatVfs) -> Kstatfs {
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Kstatfs {
        blocks: numbers.f_blocks,
        bfree: numbers.f_bfree,
        bavail: numbers.f_bavail,
        files: numbers.f_files,
        ffree: numbers.f_ffree,
        bsize: narrow(numbers.f_bsize),
        namelen: narrow(numbers.f_namemax),
        frsize: narrow(numbers.f_frsize),
        ..Kstatfs::default()
    }
}

fn time(time: StatxTimestamp) -> SxTime {
    SxTime {
        tv_sec: time.tv_sec,
        tv_nsec: time.tv_nsec,
        reserved: 0,
    }
}

/// A device number as the kernel puts it into 32 bits: 12 bits of major, 20 of minor.
fn encode_device(major: u32, minor: u32) -> u32 {
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The way back: major and minor.
pub(super) fn decode_device(device: u32) -> (u32, u32) {
    (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_round_trip() {
        for (major, minor) in [(0, 0), (1, 3), (8, 255), (259, 0x1_2345), (0xfff, 0xf_ffff)] {
            assert_eq!(decode_device(encode_device(major, minor)), (major, minor));
        }
    }
}
