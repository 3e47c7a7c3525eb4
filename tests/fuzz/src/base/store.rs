//! The snapshot store of a base: where its structures lie, and their checksums.

use super::checksums::fix;
use super::places::file_blocks;
use super::places::{Kind, Place, read, read_inode};
use kfs::checksum::{CRC32C_INIT, crc32c};
use kfs::layout::RawGroupDesc;
use kfs::{Geometry, InodeNr};
use kfs_disk::{BlockDevice, MemoryDevice};

/// Blocks in a segment.
const SEGMENT_BLOCKS: usize = 128;
/// Where the entries of a batch start in its head, in bytes.
const ENTRIES_OFFSET: usize = 64;
const ENTRY_SIZE: usize = 16;
/// Where heads have the id of their store: kfs makes it of random bytes.
const ID: std::ops::Range<usize> = 8..24;

/// A batch in the store: positions are of its list of blocks.
struct Batch {
    head: usize,
    len: usize,
    is_table: bool,
}

/// The blocks of the store's file.
pub(super) fn blocks(device: &MemoryDevice, geometry: &Geometry, nr: InodeNr) -> Vec<u64> {
    let inode = read_inode(device, geometry, nr);
    let blocks = file_blocks(device, geometry, inode.block_area(), inode.flags());
    blocks.data.into_iter().map(|(_, block)| block).collect()
}

fn get(device: &MemoryDevice, geometry: &Geometry, block: u64) -> Vec<u8> {
    let len = geometry.block_size as usize;
    read(device, block << geometry.block_size_bits, len)
}

fn put(device: &MemoryDevice, geometry: &Geometry, block: u64, bytes: &[u8]) {
    device
        .write_at(block << geometry.block_size_bits, bytes)
        .expect("the store lies within the device");
}

fn number(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]))
}

/// Segments that were ever written, and the batches in them.
fn walk(device: &MemoryDevice, geometry: &Geometry, store: &[u64]) -> (Vec<usize>, Vec<Batch>) {
    let (mut segments, mut batches) = (Vec::new(), Vec::new());
    let room = (geometry.block_size as usize - ENTRIES_OFFSET) / ENTRY_SIZE;
    for first in (0..store.len()).step_by(SEGMENT_BLOCKS) {
        if !get(device, geometry, store[first]).starts_with(b"kfs-segm") {
            continue;
        }
        segments.push(first);
        let end = (first + SEGMENT_BLOCKS).min(store.len());
        let mut head = first + 1;
        while head < end {
            let bytes = get(device, geometry, store[head]);
            if !bytes.starts_with(b"kfs-batc") {
                break;
            }
            // Edits may say anything of these.
            let len = number(&bytes, 42).min(room).min(end - head - 1);
            let is_table = number(&bytes, 40) == 2;
            batches.push(Batch {
                head,
                len,
                is_table,
            });
            head += 1 + len;
        }
    }
    (segments, batches)
}

/// The structures of the store.
pub(super) fn locate(device: &MemoryDevice, geometry: &Geometry, store: &[u64]) -> Vec<Place> {
    let place = |kind, at: usize| Place {
        kind,
        offset: store[at] << geometry.block_size_bits,
        len: geometry.block_size as usize,
    };
    let (segments, batches) = walk(device, geometry, store);
    let segments = segments.iter().map(|at| Place {
        len: ENTRIES_OFFSET,
        ..place(Kind::StoreSegment, *at)
    });
    let mut places: Vec<Place> = segments.collect();
    for batch in &batches {
        let bytes = get(device, geometry, store[batch.head]);
        places.push(Place {
            len: ENTRIES_OFFSET + batch.len * ENTRY_SIZE,
            ..place(Kind::StoreBatch, batch.head)
        });
        for index in 0..batch.len {
            let entry = &bytes[ENTRIES_OFFSET + index * ENTRY_SIZE..][..8];
            let block = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
            let kind = if batch.is_table {
                Kind::StoreTable
            } else {
                Kind::PreImage(block)
            };
            places.push(place(kind, batch.head + 1 + index));
        }
    }
    places
}

/// Stores all checksums of the store: those of content in the heads of batches first.
pub(super) fn fix_store(device: &MemoryDevice, geometry: &Geometry, store: &[u64]) {
    let (segments, batches) = walk(device, geometry, store);
    for at in segments {
        let mut bytes = get(device, geometry, store[at]);
        seal(&mut bytes, 0);
        put(device, geometry, store[at], &bytes);
    }
    for batch in batches {
        let mut bytes = get(device, geometry, store[batch.head]);
        for index in 0..batch.len {
            let content = get(device, geometry, store[batch.head + 1 + index]);
            let at = ENTRIES_OFFSET + index * ENTRY_SIZE + 8;
            let sum = !crc32c(CRC32C_INIT, &content);
            bytes[at..at + 4].copy_from_slice(&sum.to_le_bytes());
        }
        seal(&mut bytes, batch.len);
        put(device, geometry, store[batch.head], &bytes);
    }
}

/// Stores the checksum of a head with so many entries.
fn seal(head: &mut [u8], entries: usize) {
    let sum = crc32c(CRC32C_INIT, &head[..60]);
    let sum = !crc32c(sum, &head[ENTRIES_OFFSET..][..entries * ENTRY_SIZE]);
    head[60..64].copy_from_slice(&sum.to_le_bytes());
}

/// Gives the store an id that is always the same.
pub(super) fn name(device: &MemoryDevice, geometry: &Geometry, store: &[u64]) {
    let (segments, batches) = walk(device, geometry, store);
    for at in segments.into_iter().chain(batches.iter().map(|b| b.head)) {
        let mut bytes = get(device, geometry, store[at]);
        bytes[ID].copy_from_slice(b"the base's store");
        put(device, geometry, store[at], &bytes);
    }
    fix_store(device, geometry, store);
}

/// Stores the checksums within old content of `block`, whose structures today are among `places`.
pub(super) fn fix_old<'p>(
    device: &MemoryDevice,
    geometry: &Geometry,
    places: impl Iterator<Item = &'p Place>,
    (block, at): (u64, u64),
) {
    let (start, bits) = (block << geometry.block_size_bits, geometry.block_size_bits);
    for place in places.filter(|place| place.offset >> bits == block) {
        let offset = at + (place.offset - start);
        match place.kind {
            Kind::Descriptor(group) => {
                let mut bytes = read(device, offset, geometry.desc_size as usize);
                let mut desc = RawGroupDesc::from_slice(&bytes);
                desc.update_checksum(geometry, group);
                desc.write_to_slice(&mut bytes);
                device.write_at(offset, &bytes).expect("within the device");
            }
            Kind::Superblock
            | Kind::Inode(_)
            | Kind::Directory(_)
            | Kind::TreeRoot(_)
            | Kind::TreeNode(_)
            | Kind::Extents(_) => fix(device, geometry, &Place { offset, ..*place }),
            _ => {}
        }
    }
}
