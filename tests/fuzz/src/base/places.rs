//! Finds out what lies where in an image that is sound: the targets of structured edits.

use kfs::layout::inode::{InodeBytes, InodeFlags, S_IFDIR, S_IFMT, S_IFREG};
use kfs::layout::{GroupFlags, RawExtentHeader, RawExtentIndex, RawExtentLeaf, RawGroupDesc};
use kfs::{Geometry, GroupNr, InodeNr};
use kfs_disk::{BlockDevice, MemoryDevice};
use zerocopy::FromBytes;

/// Most blocks of the log that are places of their own.
const LOG_PLACES: usize = 200;

/// What a place holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The superblock.
    Superblock,
    /// Descriptor of a group.
    Descriptor(GroupNr),
    /// A group's block bitmap.
    BlockBitmap(GroupNr),
    /// A group's inode bitmap.
    InodeBitmap(GroupNr),
    /// An inode in use.
    Inode(InodeNr),
    /// Entries of a directory.
    Directory(InodeNr),
    /// Root of a hash tree.
    TreeRoot(InodeNr),
    /// Inner node of a hash tree.
    TreeNode(InodeNr),
    /// Node of an extent tree.
    Extents(InodeNr),
    /// Block of a block map.
    Indirect,
    /// Extended attributes.
    Xattrs,
    /// A block of the orphan file.
    Orphans(InodeNr),
    /// The log's superblock.
    LogSuperblock,
    /// Another block of the log.
    Log,
    /// Head of a segment of the snapshot store.
    StoreSegment,
    /// Head of a batch in it.
    StoreBatch,
    /// A block of the table of snapshots.
    StoreTable,
    /// Old content of a block.
    PreImage(u64),
}

impl Kind {
    /// Kinds that edits choose from, by number.
    pub const CLASSES: usize = 18;

    /// Which of them this is.
    #[must_use]
    pub fn class(self) -> usize {
        match self {
            Self::Superblock => 0,
            Self::Descriptor(_) => 1,
            Self::BlockBitmap(_) => 2,
            Self::InodeBitmap(_) => 3,
            Self::Inode(_) => 4,
            Self::Directory(_) => 5,
            Self::TreeRoot(_) => 6,
            Self::TreeNode(_) => 7,
            Self::Extents(_) => 8,
            Self::Indirect => 9,
            Self::Xattrs => 10,
            Self::Orphans(_) => 11,
            Self::LogSuperblock => 12,
            Self::Log => 13,
            Self::StoreSegment => 14,
            Self::StoreBatch => 15,
            Self::StoreTable => 16,
            Self::PreImage(_) => 17,
        }
    }
}

/// A piece of an image that is one structure.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// What it is.
    pub kind: Kind,
    /// Where it starts, in bytes.
    pub offset: u64,
    /// Its length in bytes.
    pub len: usize,
}

/// Blocks of a file: those of its map and those of its data, with their logical numbers.
#[derive(Debug, Default)]
pub(super) struct FileBlocks {
    pub(super) nodes: Vec<u64>,
    pub(super) data: Vec<(u64, u64)>,
}

pub(super) fn read(device: &MemoryDevice, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    device
        .read_at(offset, &mut bytes)
        .expect("within the device");
    bytes
}

fn read_block(device: &MemoryDevice, geometry: &Geometry, block: u64) -> Vec<u8> {
    let offset = block << geometry.block_size_bits;
    read(device, offset, geometry.block_size as usize)
}

pub(super) fn desc_offset(geometry: &Geometry, group: GroupNr) -> u64 {
    let (block, offset) = geometry.desc_location(group);
    geometry.offset_of(block) + offset as u64
}

pub(super) fn read_desc(
    device: &MemoryDevice,
    geometry: &Geometry,
    group: GroupNr,
) -> RawGroupDesc {
    let offset = desc_offset(geometry, group);
    RawGroupDesc::from_slice(&read(device, offset, geometry.desc_size as usize))
}

pub(super) fn inode_offset(device: &MemoryDevice, geometry: &Geometry, nr: InodeNr) -> u64 {
    let (group, index) = geometry.inode_location(nr).expect("an inode that is there");
    let table = read_desc(device, geometry, group).inode_table();
    let (block, offset) = geometry.inode_table_offset(index);
    geometry.offset_of(table.plus(u64::from(block))) + offset as u64
}

pub(super) fn read_inode(
    device: &MemoryDevice,
    geometry: &Geometry,
    nr: InodeNr,
) -> InodeBytes<Vec<u8>> {
    let offset = inode_offset(device, geometry, nr);
    InodeBytes::new(read(device, offset, geometry.inode_size as usize))
}

/// The blocks of a file, from its map.
pub(super) fn file_blocks(
    device: &MemoryDevice,
    geometry: &Geometry,
    area: &[u8],
    flags: InodeFlags,
) -> FileBlocks {
    let mut found = FileBlocks::default();
    if flags.contains(InodeFlags::EXTENTS) {
        walk_extents(device, geometry, area, &mut found);
    } else {
        for slot in 0..15 {
            let block = pointer(area, slot);
            let level = slot.saturating_sub(11);
            walk_map(device, geometry, block, level, &mut found);
        }
    }
    found
}

fn walk_extents(device: &MemoryDevice, geometry: &Geometry, node: &[u8], found: &mut FileBlocks) {
    let (header, rest) = RawExtentHeader::ref_from_prefix(node).expect("a node has a header");
    let entries = rest.chunks(12).take(header.eh_entries.get().into());
    for entry in entries {
        if header.eh_depth.get() == 0 {
            let leaf = RawExtentLeaf::ref_from_bytes(entry).expect("12 bytes");
            for index in 0..u64::from(leaf.len()) {
                let logical = u64::from(leaf.logical().0) + index;
                found.data.push((logical, leaf.physical().0 + index));
            }
        } else {
            let index = RawExtentIndex::ref_from_bytes(entry).expect("12 bytes");
            found.nodes.push(index.child().0);
            let child = read_block(device, geometry, index.child().0);
            walk_extents(device, geometry, &child, found);
        }
    }
}

fn pointer(bytes: &[u8], index: usize) -> u64 {
    let bytes = bytes[index * 4..][..4].try_into().expect("four bytes");
    u64::from(u32::from_le_bytes(bytes))
}

fn walk_map(
    device: &MemoryDevice,
    geometry: &Geometry,
    block: u64,
    level: usize,
    found: &mut FileBlocks,
) {
    if block == 0 {
        return;
    }
    if level == 0 {
        found.data.push((found.data.len() as u64, block));
        return;
    }
    found.nodes.push(block);
    let bytes = read_block(device, geometry, block);
    for index in 0..bytes.len() / 4 {
        walk_map(device, geometry, pointer(&bytes, index), level - 1, found);
    }
}

/// Blocks of the log, in its order.
pub(super) fn log_blocks(device: &MemoryDevice, geometry: &Geometry) -> Vec<u64> {
    let Some(nr) = geometry.journal_inode else {
        return Vec::new();
    };
    let inode = read_inode(device, geometry, nr);
    let blocks = file_blocks(device, geometry, inode.block_area(), inode.flags());
    blocks.data.into_iter().map(|(_, block)| block).collect()
}

/// The blocks of the log that are in use.
pub(super) fn locate_log(dirty: &MemoryDevice, geometry: &Geometry, log: &[u64]) -> Vec<Place> {
    let is_used = |&(_, block): &(usize, u64)| {
        let bytes = read_block(dirty, geometry, block);
        bytes.iter().any(|&byte| byte != 0)
    };
    log.iter()
        .copied()
        .enumerate()
        .filter(is_used)
        .take(LOG_PLACES)
        .map(|(index, block)| Place {
            kind: if index == 0 {
                Kind::LogSuperblock
            } else {
                Kind::Log
            },
            offset: block << geometry.block_size_bits,
            len: geometry.block_size as usize,
        })
        .collect()
}

struct Finder<'d> {
    device: &'d MemoryDevice,
    geometry: &'d Geometry,
    places: Vec<Place>,
}

/// All structures of the image but the log.
pub(super) fn locate(device: &MemoryDevice, geometry: &Geometry) -> Vec<Place> {
    let mut finder = Finder {
        device,
        geometry,
        places: Vec::new(),
    };
    finder.add(Kind::Superblock, 1024, 1024);
    for group in (0..geometry.groups_count()).map(GroupNr) {
        finder.add_group(group);
    }
    finder.places
}

impl Finder<'_> {
    fn add(&mut self, kind: Kind, offset: u64, len: usize) {
        self.places.push(Place { kind, offset, len });
    }

    fn add_block(&mut self, kind: Kind, block: u64) {
        let offset = block << self.geometry.block_size_bits;
        self.add(kind, offset, self.geometry.block_size as usize);
    }

    fn add_group(&mut self, group: GroupNr) {
        let geometry = self.geometry;
        let desc = read_desc(self.device, geometry, group);
        let offset = desc_offset(geometry, group);
        self.add(Kind::Descriptor(group), offset, geometry.desc_size as usize);
        self.add_block(Kind::BlockBitmap(group), desc.block_bitmap().0);
        self.add_block(Kind::InodeBitmap(group), desc.inode_bitmap().0);
        if desc.flags().contains(GroupFlags::INODE_UNINIT) {
            return;
        }
        let bitmap = read_block(self.device, geometry, desc.inode_bitmap().0);
        for index in 0..geometry.inodes_per_group {
            if bitmap[index as usize / 8] >> (index % 8) & 1 != 0 {
                self.add_inode(geometry.inode_nr(group, index));
            }
        }
    }

    fn add_inode(&mut self, nr: InodeNr) {
        let (device, geometry) = (self.device, self.geometry);
        let inode = read_inode(device, geometry, nr);
        if inode.mode() == 0 {
            return;
        }
        let offset = inode_offset(device, geometry, nr);
        self.add(Kind::Inode(nr), offset, geometry.inode_size as usize);
        if inode.file_acl() != 0 {
            self.add_block(Kind::Xattrs, inode.file_acl());
        }
        let flags = inode.flags();
        let kind = inode.mode() & S_IFMT;
        let has_blocks = matches!(kind, S_IFREG | S_IFDIR) && inode.size_bytes() > 0;
        let is_mapped = flags.contains(InodeFlags::EXTENTS) || has_blocks;
        if flags.contains(InodeFlags::INLINE_DATA) || !is_mapped {
            return;
        }
        let blocks = file_blocks(device, geometry, inode.block_area(), flags);
        let node_kind = if flags.contains(InodeFlags::EXTENTS) {
            Kind::Extents(nr)
        } else {
            Kind::Indirect
        };
        for block in blocks.nodes {
            self.add_block(node_kind, block);
        }
        if kind == S_IFDIR {
            let is_tree = flags.contains(InodeFlags::INDEX);
            for (logical, block) in blocks.data {
                let kind = self.directory_kind(nr, is_tree, logical, block);
                self.add_block(kind, block);
            }
        } else if geometry.orphan_file_inode == Some(nr) {
            for (_, block) in blocks.data {
                self.add_block(Kind::Orphans(nr), block);
            }
        }
    }

    fn directory_kind(&self, nr: InodeNr, is_tree: bool, logical: u64, block: u64) -> Kind {
        if is_tree && logical == 0 {
            return Kind::TreeRoot(nr);
        }
        let bytes = read_block(self.device, self.geometry, block);
        let spans = u32::from(u16::from_le_bytes([bytes[4], bytes[5]])) == self.geometry.block_size;
        if is_tree && bytes[..4] == [0; 4] && spans {
            Kind::TreeNode(nr)
        } else {
            Kind::Directory(nr)
        }
    }
}
