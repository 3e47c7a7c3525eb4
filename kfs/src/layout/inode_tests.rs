//! Tests of `inode.rs`.

use super::*;

#[test]
fn devices_round_trip() {
    let mut inode = InodeBytes::new(vec![0u8; 256]);
    for (major, minor) in [
        (8, 1),
        (0, 0),
        (255, 255),
        (256, 0),
        (8, 256),
        (4095, 0xf_ffff),
    ] {
        inode.set_rdev(DeviceNumber { major, minor });
        assert_eq!(inode.rdev(), DeviceNumber { major, minor });
    }
}

#[test]
fn small_inodes_keep_whole_seconds() {
    let time = Timestamp {
        seconds: 1_700_000_000,
        nanoseconds: 5,
    };
    let mut small = InodeBytes::new(vec![0u8; 128]);
    small.clear(0);
    small.set_mtime(time);
    small.set_crtime(time);
    assert_eq!(small.mtime(), Timestamp::from_seconds(1_700_000_000));
    assert_eq!(small.crtime(), None);
    let mut large = InodeBytes::new(vec![0u8; 256]);
    large.clear(32);
    large.set_mtime(time);
    large.set_crtime(time);
    assert_eq!((large.mtime(), large.crtime()), (time, Some(time)));
    assert_eq!(large.xattr_area().len(), 96);
}

#[test]
fn impossible_extra_size_is_none() {
    let mut inode = InodeBytes::new(vec![0u8; 256]);
    inode.clear(132);
    assert_eq!(inode.extra_isize(), 0);
    assert!(inode.xattr_area().is_empty());
}
