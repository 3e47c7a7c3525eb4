//! Makes the checksums of a damaged image right again, so that checks behind them are reached.

use super::map::{Map, Object, ObjectKind};
use kfs::layout::inode::InodeBytes;
use kfs::layout::journal::RawJournalSuperblock;
use kfs::layout::{RawGroupDesc, RawSuperblock, dirent, extent, htree, orphan, xattr};
use kfs::{BlockNr, Geometry, GroupNr, InodeNr};
use zerocopy::FromBytes;

/// Recomputes the checksums of all metadata in its old places.
pub fn fix_checksums(image: &mut [u8], map: &Map) {
    let mut geometry = map.geometry.clone();
    {
        let superblock = superblock(image);
        geometry.csum_seed = superblock.checksum_seed();
        geometry.uuid = superblock.s_uuid;
    }
    let generations = generations(image, map, &geometry);
    for object in &map.objects {
        fix_object(image, object, &geometry, &generations);
    }
    for object in &map.objects {
        if let ObjectKind::Desc(group) = object.kind {
            fix_desc(image, map, object, &geometry, group);
        }
    }
    superblock(image).update_checksum();
}

fn superblock(image: &mut [u8]) -> &mut RawSuperblock {
    RawSuperblock::mut_from_bytes(&mut image[1024..2048]).expect("as many bytes as it has")
}

/// The checksum seed of each inode.
fn generations(image: &[u8], map: &Map, geometry: &Geometry) -> Vec<(u32, Option<u32>)> {
    map.objects
        .iter()
        .filter_map(|object| match object.kind {
            ObjectKind::Inode(nr) => {
                let generation = InodeBytes::new(object.of(image)).generation();
                Some((nr, geometry.inode_seed(InodeNr(nr), generation)))
            }
            _ => None,
        })
        .collect()
}

fn fix_object(
    image: &mut [u8],
    object: &Object,
    geometry: &Geometry,
    seeds: &[(u32, Option<u32>)],
) {
    let seed_of = |nr: u32| {
        let found = seeds.iter().find(|(inode, _)| *inode == nr);
        found.and_then(|(_, seed)| *seed)
    };
    let block = BlockNr((object.offset >> geometry.block_size_bits) as u64);
    let bytes = object.of_mut(image);
    match object.kind {
        // An inode that was never used has no checksum.
        ObjectKind::Inode(nr) | ObjectKind::FreeInode(nr)
            if bytes.iter().any(|&byte| byte != 0) =>
        {
            InodeBytes::new(bytes).update_checksum(geometry, InodeNr(nr));
        }
        ObjectKind::ExtentNode(nr) => {
            let room = usize::from(u16::from_le_bytes([bytes[4], bytes[5]]));
            if (room + 1) * 12 + 4 <= bytes.len() {
                extent::update_checksum(seed_of(nr), bytes);
            }
        }
        // The tail may be what was damaged.
        ObjectKind::Leaf(nr) if dirent::RawDirTail::of_block(bytes).is_some() => {
            dirent::update_checksum(seed_of(nr), bytes);
        }
        ObjectKind::TreeRoot(nr) => fix_index(bytes, seed_of(nr), htree::ROOT_ENTRIES_OFFSET),
        ObjectKind::TreeNode(nr) => fix_index(bytes, seed_of(nr), htree::NODE_ENTRIES_OFFSET),
        ObjectKind::Xattr => xattr::update_checksum(geometry.csum_seed, block, bytes),
        ObjectKind::Journal => {
            let log = RawJournalSuperblock::mut_from_bytes(bytes).expect("as long as it is");
            log.update_checksum();
        }
        ObjectKind::Orphans(nr) if orphan::has_magic(bytes) => {
            orphan::update_tail(seed_of(nr), block, bytes);
        }
        _ => {}
    }
}

fn fix_index(bytes: &mut [u8], seed: Option<u32>, entries_offset: usize) {
    let half = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (limit, count) = (half(entries_offset), half(entries_offset + 2));
    if count <= limit && entries_offset + limit * 8 + 8 <= bytes.len() {
        htree::update_checksum(seed, bytes, entries_offset);
    }
}

fn fix_desc(image: &mut [u8], map: &Map, object: &Object, geometry: &Geometry, group: u32) {
    let mut desc = RawGroupDesc::from_slice(object.of(image));
    for bitmap in &map.objects {
        // The map has the bits, the checksum covers the block.
        let end = bitmap.offset + geometry.block_size as usize;
        match bitmap.kind {
            ObjectKind::BlockBitmap(of) if of == group => {
                desc.update_block_bitmap(geometry, &image[bitmap.offset..end]);
            }
            ObjectKind::InodeBitmap(of) if of == group => {
                desc.update_inode_bitmap(geometry, &image[bitmap.offset..end]);
            }
            _ => {}
        }
    }
    desc.update_checksum(geometry, GroupNr(group));
    desc.write_to_slice(object.of_mut(image));
}
