//! Makes checksums right again after edits, so that what they changed is looked at.

use super::places::{Kind, Place, desc_offset, read, read_desc, read_inode};
use kfs::checksum::{CRC32C_INIT, crc32c};
use kfs::layout::inode::InodeBytes;
use kfs::layout::journal::{
    BlockType, JournalIncompat, RawBlockTail, RawCommitBlock, RawJournalHeader,
    RawJournalSuperblock,
};
use kfs::layout::{RawSuperblock, dirent, extent, htree, orphan, xattr};
use kfs::{BlockNr, Geometry, GroupNr, InodeNr};
use kfs_disk::{BlockDevice, MemoryDevice};
use zerocopy::{FromBytes, IntoBytes};

/// Stores the checksum of what a place holds, where it has one.
pub(super) fn fix(device: &MemoryDevice, geometry: &Geometry, place: &Place) {
    let mut bytes = read(device, place.offset, place.len);
    let block = BlockNr(place.offset >> geometry.block_size_bits);
    match place.kind {
        Kind::Superblock => {
            let (raw, _) = RawSuperblock::mut_from_prefix(&mut bytes).expect("its length");
            raw.update_checksum();
        }
        Kind::Descriptor(group) => return fix_group(device, geometry, group),
        Kind::BlockBitmap(group) | Kind::InodeBitmap(group) => {
            return fix_bitmap(device, geometry, group, place.kind, &bytes);
        }
        Kind::Inode(nr) => InodeBytes::new(&mut bytes[..]).update_checksum(geometry, nr),
        Kind::Directory(nr) => {
            dirent::update_checksum(seed(device, geometry, nr), &mut bytes);
        }
        Kind::TreeRoot(nr) => fix_index(
            seed(device, geometry, nr),
            &mut bytes,
            htree::ROOT_ENTRIES_OFFSET,
        ),
        Kind::TreeNode(nr) => fix_index(
            seed(device, geometry, nr),
            &mut bytes,
            htree::NODE_ENTRIES_OFFSET,
        ),
        Kind::Extents(nr) => {
            let most = extent::RawExtentHeader::block_entries(geometry.block_size);
            if u16::from_le_bytes([bytes[4], bytes[5]]) <= most {
                extent::update_checksum(seed(device, geometry, nr), &mut bytes);
            }
        }
        Kind::Xattrs => xattr::update_checksum(geometry.csum_seed, block, &mut bytes),
        Kind::Orphans(nr) => {
            orphan::update_tail(seed(device, geometry, nr), block, &mut bytes);
        }
        Kind::Indirect
        | Kind::LogSuperblock
        | Kind::Log
        | Kind::StoreSegment
        | Kind::StoreBatch
        | Kind::StoreTable
        | Kind::PreImage(_) => return,
    }
    device
        .write_at(place.offset, &bytes)
        .expect("within the device");
}

fn seed(device: &MemoryDevice, geometry: &Geometry, nr: InodeNr) -> Option<u32> {
    geometry.inode_seed(nr, read_inode(device, geometry, nr).generation())
}

fn fix_group(device: &MemoryDevice, geometry: &Geometry, group: GroupNr) {
    let mut desc = read_desc(device, geometry, group);
    desc.update_checksum(geometry, group);
    write_desc(device, geometry, group, &desc);
}

fn fix_bitmap(
    device: &MemoryDevice,
    geometry: &Geometry,
    group: GroupNr,
    kind: Kind,
    bitmap: &[u8],
) {
    let mut desc = read_desc(device, geometry, group);
    if matches!(kind, Kind::BlockBitmap(_)) {
        desc.update_block_bitmap(geometry, bitmap);
    } else {
        desc.update_inode_bitmap(geometry, bitmap);
    }
    desc.update_checksum(geometry, group);
    write_desc(device, geometry, group, &desc);
}

fn write_desc(
    device: &MemoryDevice,
    geometry: &Geometry,
    group: GroupNr,
    desc: &kfs::layout::RawGroupDesc,
) {
    let mut bytes = vec![0; geometry.desc_size as usize];
    desc.write_to_slice(&mut bytes);
    device
        .write_at(desc_offset(geometry, group), &bytes)
        .expect("within the device");
}

/// Index blocks whose counts do not fit have no place for a checksum.
fn fix_index(seed: Option<u32>, block: &mut [u8], entries: usize) {
    let number = |at: usize| usize::from(u16::from_le_bytes([block[at], block[at + 1]]));
    let (limit, count) = (number(entries), number(entries + 2));
    if count <= limit && entries + limit * 8 + 8 <= block.len() {
        htree::update_checksum(seed, block, entries);
    }
}

/// Stores all checksums of a log that lies in these blocks, as its superblock says that it has them:
/// those of the blocks in their tags first, as the tags are covered, too.
pub fn fix_log(device: &dyn BlockDevice, log: &[u64], block_size: usize) {
    let offset = |block: u64| block * block_size as u64;
    let get = |block: u64| {
        let mut bytes = vec![0; block_size];
        // What lies outside cannot be fixed.
        device
            .read_at(offset(block), &mut bytes)
            .is_ok()
            .then_some(bytes)
    };
    let Some(mut first) = log.first().and_then(|&block| get(block)) else {
        return;
    };
    let (raw, _) = RawJournalSuperblock::mut_from_prefix(&mut first).expect("a block holds it");
    raw.update_checksum();
    let incompat = raw.incompat();
    let seed = crc32c(CRC32C_INIT, &raw.s_uuid);
    // The superblock is smaller than a block may be, so nothing but it is written.
    let _ = device.write_at(offset(log[0]), raw.as_bytes());
    if !incompat.intersects(JournalIncompat::CSUM_V2 | JournalIncompat::CSUM_V3) {
        return;
    }
    for (index, &nr) in log.iter().enumerate().skip(1) {
        let Some(mut block) = get(nr) else { continue };
        let (header, _) = RawJournalHeader::ref_from_prefix(&block).expect("a block holds it");
        let sequence = header.h_sequence.get();
        match RawJournalHeader::parse(&block, sequence) {
            Some(BlockType::Descriptor) => {
                let data = log[index + 1..].iter().map_while(|&nr| get(nr));
                fix_tags(&mut block, incompat, seed, sequence, data);
                RawBlockTail::update_checksum(&mut block, seed);
            }
            Some(BlockType::Revoke) => RawBlockTail::update_checksum(&mut block, seed),
            Some(BlockType::Commit) => RawCommitBlock::update_checksum(&mut block, seed),
            None => continue,
        }
        let _ = device.write_at(offset(nr), &block);
    }
}

/// The checksums in the tags of a descriptor.
fn fix_tags(
    block: &mut [u8],
    incompat: JournalIncompat,
    seed: u32,
    sequence: u32,
    data: impl Iterator<Item = Vec<u8>>,
) {
    const SAME_UUID: u8 = 2;
    const LAST_TAG: u8 = 8;
    let is_v3 = incompat.contains(JournalIncompat::CSUM_V3);
    let len = match (is_v3, incompat.contains(JournalIncompat::BIT64)) {
        (true, _) => 16,
        (false, true) => 14,
        (false, false) => 10,
    };
    let mut at = 12;
    for content in data {
        if at + len + 4 > block.len() {
            return;
        }
        let value = crc32c(crc32c(seed, &sequence.to_be_bytes()), &content);
        let flags = block[at + 7];
        if is_v3 {
            block[at + 12..at + 16].copy_from_slice(&value.to_be_bytes());
        } else {
            block[at + 4..at + 6].copy_from_slice(&(value as u16).to_be_bytes());
        }
        if flags & LAST_TAG != 0 {
            return;
        }
        at += len + if flags & SAME_UUID != 0 { 0 } else { 16 };
    }
}
