//! Gives an image what neither mkfs nor kfs makes: content that lies in inodes (inline_data).

use super::make::write_inode;
use super::places::read_inode;
use kfs::layout::Incompat;
use kfs::layout::inode::InodeFlags;
use kfs::{Geometry, InodeNr, read_superblock};
use kfs_disk::{BlockDevice, MemoryDevice};
use zerocopy::IntoBytes;

/// Bytes of content in the block area, and in the attribute behind it.
const AREA: usize = 60;
const REST: usize = 40;

/// Puts content into the inodes of an empty file and an empty directory below the root. The block
/// that the directory had is lost.
pub(super) fn add(device: &MemoryDevice, file: InodeNr, directory: InodeNr) {
    let mut superblock = read_superblock(device).expect("mkfs wrote it");
    let incompat = superblock.incompat() | Incompat::INLINE_DATA;
    superblock.s_feature_incompat.set(incompat.bits());
    superblock.seal();
    device
        .write_at(1024, superblock.as_bytes())
        .expect("within the device");
    let geometry = Geometry::try_from(&superblock).expect("mkfs wrote it");
    put(device, &geometry, file, &[b'c'; AREA + REST]);
    let parent = 2u32.to_le_bytes();
    let area = [&parent[..], &entries(&["one", "two"], AREA - 4, file)].concat();
    let rest = entries(&["three"], REST, file);
    put(device, &geometry, directory, &[area, rest].concat());
}

/// Entries that fill `len` bytes.
fn entries(names: &[&str], len: usize, inode: InodeNr) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (nth, name) in names.iter().enumerate() {
        let is_last = nth + 1 == names.len();
        let size = if is_last {
            len - bytes.len()
        } else {
            (8 + name.len()).next_multiple_of(4)
        };
        let start = bytes.len();
        bytes.extend(inode.0.to_le_bytes());
        bytes.extend((size as u16).to_le_bytes());
        bytes.extend([name.len() as u8, 1]);
        bytes.extend(name.as_bytes());
        bytes.resize(start + size, 0);
    }
    bytes
}

/// The content, in the block area and in the attribute `system.data`.
fn put(device: &MemoryDevice, geometry: &Geometry, nr: InodeNr, content: &[u8]) {
    let mut inode = read_inode(device, geometry, nr);
    let (area, rest) = content.split_at(AREA);
    inode.block_area_mut().copy_from_slice(area);
    inode.set_size_bytes(content.len() as u64);
    let flags = (inode.flags() - InodeFlags::EXTENTS) | InodeFlags::INLINE_DATA;
    inode.set_flags(flags);
    inode
        .set_blocks_512(geometry, 0)
        .expect("no blocks is a count");
    let attributes = inode.xattr_area_mut();
    attributes.fill(0);
    let offset = attributes.len() - 4 - rest.len();
    attributes[..4].copy_from_slice(&0xea02_0000_u32.to_le_bytes());
    // Length of the name, its prefix (`system.`), and where the value lies behind the magic number.
    attributes[4..6].copy_from_slice(&[4, 7]);
    attributes[6..8].copy_from_slice(&(offset as u16).to_le_bytes());
    attributes[12..16].copy_from_slice(&(rest.len() as u32).to_le_bytes());
    attributes[20..24].copy_from_slice(b"data");
    attributes[4 + offset..].copy_from_slice(rest);
    write_inode(device, geometry, nr, &mut inode);
}
