//! Goal: what contradicts itself on disk is refused by name, before any change, and the rest of the
//! volume goes on working.

use super::volume::{TestVolume, make_image};
use crate::allocator::{ALLOCATE_CREDITS, Allocator, FREE_INODE_CREDITS};
use crate::ids::{BlockNr, GroupNr, InodeNr, Run};
use crate::layout::RawGroupDesc;
use crate::{Corrupt, Error};
use kfs_disk::testing::{Fault, FaultDevice, FaultTrigger, OpKind};
use kfs_disk::{BlockDevice, MemoryDevice};
use std::sync::Arc;

fn image() -> MemoryDevice {
    make_image(
        "64M",
        &["-t", "ext4", "-b", "1024", "-E", "packed_meta_blocks=0"],
    )
}

/// The descriptor of a group and its place in bytes.
fn desc(volume: &TestVolume, group: GroupNr) -> (RawGroupDesc, u64) {
    let (block, offset) = volume.geometry.desc_location(group);
    let size = volume.geometry.desc_size as usize;
    let bytes = volume.cache.get(block).unwrap();
    let desc = RawGroupDesc::from_slice(&bytes.read()[offset..offset + size]);
    (desc, volume.geometry.offset_of(block) + offset as u64)
}

fn flip(device: &MemoryDevice, offset: u64) {
    let mut byte = [0];
    device.read_at(offset, &mut byte).unwrap();
    device.write_at(offset, &[byte[0] ^ 0x10]).unwrap();
}

/// Fills the volume, and asserts that a group was spared.
fn assert_group_is_spared(volume: &TestVolume, group: GroupNr) {
    let mut held = Vec::new();
    while let Ok(reservation) = volume.reserve(volume.geometry.group_first_block(group).0, 8192) {
        assert_ne!(volume.geometry.group_of(reservation.run().start).0, group);
        held.push(reservation);
    }
    assert!(!held.is_empty());
    assert_eq!(volume.allocator.free_blocks(), 0);
}

#[test]
fn a_bad_descriptor_costs_its_group_only() {
    let image = image();
    let (_, at) = desc(&TestVolume::open(&image), GroupNr(2));
    flip(&image, at + 12);
    let volume = TestVolume::open(&image);
    let damage = Corrupt::GroupChecksum { group: GroupNr(2) };
    assert_eq!(volume.allocator.damage(), Some(damage.clone()));
    let inode = volume.geometry.inode_nr(GroupNr(2), 0);
    let error = volume.allocator.inode_block(inode).unwrap_err();
    assert!(matches!(error, Error::Corrupt(found) if found == damage));
    assert!(volume.allocator.is_inode_allocated(inode).is_err());
    assert_group_is_spared(&volume, GroupNr(2));
}

fn damaged_desc(change: impl FnOnce(&mut RawGroupDesc)) -> Option<Corrupt> {
    let image = image();
    let volume = TestVolume::open(&image);
    let (mut desc, at) = desc(&volume, GroupNr(4));
    change(&mut desc);
    desc.update_checksum(&volume.geometry, GroupNr(4));
    let mut bytes = vec![0; volume.geometry.desc_size as usize];
    desc.write_to_slice(&mut bytes);
    image.write_at(at, &bytes).unwrap();
    let volume = TestVolume::open(&image);
    if volume.allocator.damage().is_none() {
        assert_group_is_spared(&volume, GroupNr(4));
    }
    volume.allocator.damage()
}

#[test]
fn impossible_descriptor_fields() {
    let field = |change: fn(&mut RawGroupDesc)| match damaged_desc(change) {
        Some(Corrupt::GroupField {
            group: GroupNr(4),
            field,
            ..
        }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        field(|desc| desc.set_block_bitmap(BlockNr(1 << 40))),
        "bg_block_bitmap"
    );
    assert_eq!(
        field(|desc| desc.set_inode_bitmap(BlockNr(0))),
        "bg_inode_bitmap"
    );
    assert_eq!(
        field(|desc| desc.set_inode_table(BlockNr(65_500))),
        "bg_inode_table"
    );
    assert_eq!(
        field(|desc| desc.set_free_blocks_count(8193)),
        "bg_free_blocks_count"
    );
    assert_eq!(
        field(|desc| desc.set_free_inodes_count(70_000)),
        "bg_free_inodes_count"
    );
    assert_eq!(
        field(|desc| desc.set_used_dirs_count(1)),
        "bg_used_dirs_count"
    );
    assert_eq!(
        field(|desc| desc.set_itable_unused(1 << 20)),
        "bg_itable_unused"
    );
    let counted = damaged_desc(|desc| desc.set_free_blocks_count(7000));
    let group = GroupNr(4);
    assert!(
        matches!(counted, Some(Corrupt::BlockBitmapCount { group: g, descriptor: 7000, .. }) if g == group),
        "{counted:?}"
    );
}

#[test]
fn a_bad_block_bitmap_costs_its_group_only() {
    let image = image();
    let (desc, _) = desc(&TestVolume::open(&image), GroupNr(0));
    flip(&image, desc.block_bitmap().0 * 1024 + 900);
    let volume = TestVolume::open(&image);
    assert_eq!(volume.allocator.damage(), None);
    assert_group_is_spared(&volume, GroupNr(0));
    let damage = Corrupt::BlockBitmapChecksum { group: GroupNr(0) };
    assert_eq!(volume.allocator.damage(), Some(damage));
    let mut handle = volume
        .journal
        .start(volume.allocator.free_credits(1))
        .unwrap();
    let run = Run {
        start: BlockNr(8000),
        len: 1,
    };
    assert!(matches!(
        volume.allocator.free(&mut handle, run),
        Err(Error::Corrupt(Corrupt::BlockBitmapChecksum { .. }))
    ));
    assert!(!handle.is_modified());
}

#[test]
fn a_bad_inode_bitmap_costs_its_group_only() {
    let image = image();
    let (desc, _) = desc(&TestVolume::open(&image), GroupNr(0));
    flip(&image, desc.inode_bitmap().0 * 1024 + 100);
    let volume = TestVolume::open(&image);
    let inode = volume
        .allocator
        .reserve_inode(InodeNr::ROOT, false)
        .unwrap()
        .inode();
    assert_ne!(volume.geometry.inode_location(inode).unwrap().0, GroupNr(0));
    let damage = Corrupt::InodeBitmapChecksum { group: GroupNr(0) };
    assert_eq!(volume.allocator.damage(), Some(damage));
}

#[test]
fn bitmaps_without_checksums_are_checked_by_their_content() {
    let image = make_image("8M", &["-t", "ext2", "-b", "1024"]);
    let (desc, _) = desc(&TestVolume::open(&image), GroupNr(0));
    let open = |offset: u64| {
        let image = image.snapshot();
        flip(&image, offset);
        let volume = TestVolume::open(&image);
        let blocks = volume.reserve(0, 1).err();
        let inodes = volume.allocator.reserve_inode(InodeNr::ROOT, false).err();
        assert!(blocks.is_some() || inodes.is_some());
        volume.allocator.damage()
    };
    let bitmap = desc.block_bitmap().0 * 1024;
    assert!(matches!(
        open(bitmap),
        Some(Corrupt::BlockBitmapMetadata {
            block: BlockNr(5),
            ..
        })
    ));
    assert!(matches!(
        open(bitmap + 1000),
        Some(Corrupt::BlockBitmapCount { .. })
    ));
    let bitmap = desc.inode_bitmap().0 * 1024;
    assert!(matches!(
        open(bitmap),
        Some(Corrupt::InodeBitmapCount { .. })
    ));
}

#[test]
fn frees_that_cannot_be_are_refused() {
    let volume = TestVolume::open(&image());
    let allocator = &volume.allocator;
    let mut handle = volume.journal.start(64).unwrap();
    let mut free = |start, len| {
        let error = allocator
            .free(
                &mut handle,
                Run {
                    start: BlockNr(start),
                    len,
                },
            )
            .unwrap_err();
        assert!(!handle.is_modified());
        error
    };
    let last = volume.geometry.blocks_count() - 1;
    assert!(matches!(
        free(0, 1),
        Error::Corrupt(Corrupt::BlockOutside { .. })
    ));
    assert!(matches!(
        free(last, 2),
        Error::Corrupt(Corrupt::BlockOutside { .. })
    ));
    assert!(matches!(
        free(u64::MAX, 2),
        Error::Corrupt(Corrupt::BlockOutside { .. })
    ));
    assert!(matches!(
        free(9000, 0),
        Error::Corrupt(Corrupt::BlockOutside { .. })
    ));
    assert!(matches!(
        free(1, 1),
        Error::Corrupt(Corrupt::RunInMetadata { .. })
    ));
    assert!(matches!(
        free(8190, 4),
        Error::Corrupt(Corrupt::RunInMetadata { .. })
    ));
    assert!(matches!(
        free(last, 1),
        Error::Corrupt(Corrupt::RunNotInUse { .. })
    ));
}

#[test]
fn promised_and_protected_runs_are_no_data() {
    let volume = TestVolume::open(&image());
    let allocator = &volume.allocator;
    let reservation = volume.reserve(20_000, 100).unwrap();
    let run = reservation.run();
    assert!(allocator.is_valid_data_run(run) && !allocator.is_allocated(run).unwrap());
    allocator.protect(&[Run {
        start: run.start.plus(50),
        len: 1,
    }]);
    assert!(!allocator.is_valid_data_run(run));
}

#[test]
fn inodes_that_cannot_be_are_refused() {
    let volume = TestVolume::open(&image());
    let allocator = &volume.allocator;
    let mut handle = volume.journal.start(FREE_INODE_CREDITS).unwrap();
    let error = allocator
        .free_inode(&mut handle, InodeNr::ROOT, true)
        .unwrap_err();
    assert!(matches!(
        error,
        Error::Corrupt(Corrupt::InodeReserved {
            inode: InodeNr::ROOT
        })
    ));
    let outside = InodeNr(volume.geometry.inodes_count() + 1);
    let error = allocator
        .free_inode(&mut handle, outside, true)
        .unwrap_err();
    assert!(matches!(
        error,
        Error::Corrupt(Corrupt::InodeOutside { .. })
    ));
    assert!(allocator.reserve_inode(InodeNr(0), true).is_err());
}

#[test]
fn a_group_that_cannot_be_read_is_passed_by() {
    let volume = TestVolume::open(&image());
    let (desc, _) = desc(&volume, GroupNr(0));
    let offset = desc.block_bitmap().0 * 1024;
    let device = FaultDevice::new(Arc::clone(&volume.device));
    device.inject(Fault::new(OpKind::Read, FaultTrigger::Always).in_range(offset..offset + 1024));
    let device: Arc<dyn BlockDevice> = Arc::new(device);
    let cache =
        crate::storage::BufferCache::new(device, 1024, volume.geometry.blocks_count(), 1 << 20);
    let allocator = Allocator::open(Arc::new(cache), volume.geometry.clone()).unwrap();
    let request = crate::allocator::BlockRequest {
        goal: BlockNr(8000),
        len: 10,
        privileged: true,
    };
    let run = allocator.reserve(request).unwrap().run();
    assert_ne!(volume.geometry.group_of(run.start).0, GroupNr(0));
    assert_eq!(allocator.damage(), None);
    let mut handle = volume.journal.start(ALLOCATE_CREDITS * 2).unwrap();
    let error = allocator
        .free(
            &mut handle,
            Run {
                start: BlockNr(8000),
                len: 1,
            },
        )
        .unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
}
