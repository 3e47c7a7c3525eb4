//! Where the metadata of a sound image lies.

use kfs::layout::htree::ROOT_INFO_OFFSET;
use kfs::layout::inode::{InodeBytes, InodeFlags, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use kfs::layout::{GroupFlags, RawGroupDesc, RawSuperblock};
use kfs::{BlockNr, Geometry, GroupNr, InodeNr};
use zerocopy::FromBytes;

/// A piece of metadata.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ObjectKind {
    /// The primary superblock.
    Superblock,
    /// A group's descriptor.
    Desc(u32),
    /// A group's block bitmap, as far as it has bits.
    BlockBitmap(u32),
    /// A group's inode bitmap, as far as it has bits.
    InodeBitmap(u32),
    /// An inode that is in use.
    Inode(u32),
    /// An inode that is not.
    FreeInode(u32),
    /// A node of this inode's extent tree.
    ExtentNode(u32),
    /// A block of this inode's block map.
    MapBlock(u32),
    /// A block of entries of this directory.
    Leaf(u32),
    /// The root of this directory's hash tree.
    TreeRoot(u32),
    /// An inner node of this directory's hash tree.
    TreeNode(u32),
    /// A block of attributes.
    Xattr,
    /// The target of a symbolic link.
    Target,
    /// The log's superblock.
    Journal,
    /// A block of the orphan file, which has this inode.
    Orphans(u32),
}

/// A piece of metadata and its place in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Object {
    /// What it is.
    pub kind: ObjectKind,
    /// First byte.
    pub offset: usize,
    /// Bytes.
    pub len: usize,
}

impl Object {
    /// Its bytes in an image.
    #[must_use]
    pub fn of<'i>(&self, image: &'i [u8]) -> &'i [u8] {
        &image[self.offset..self.offset + self.len]
    }

    /// Its bytes in an image, to be changed.
    pub fn of_mut<'i>(&self, image: &'i mut [u8]) -> &'i mut [u8] {
        &mut image[self.offset..self.offset + self.len]
    }
}

/// All metadata of an image.
#[derive(Clone, Debug)]
pub struct Map {
    /// The facts of the volume.
    pub geometry: Geometry,
    /// The pieces; of a kind in the order of their numbers.
    pub objects: Vec<Object>,
}

impl Map {
    /// The map of a sound image.
    ///
    /// # Panics
    /// When the image is not sound.
    #[must_use]
    pub fn of(image: &[u8]) -> Self {
        let superblock = RawSuperblock::ref_from_bytes(&image[1024..2048]).expect("a superblock");
        let geometry = Geometry::try_from(superblock).expect("a sound superblock");
        let mut map = Self {
            geometry: geometry.clone(),
            objects: Vec::new(),
        };
        map.add(ObjectKind::Superblock, 1024, 1024);
        for group in 0..geometry.groups_count() {
            map.add_group(image, group);
        }
        map
    }

    fn add(&mut self, kind: ObjectKind, offset: usize, len: usize) {
        self.objects.push(Object { kind, offset, len });
    }

    fn add_block(&mut self, kind: ObjectKind, block: u64) {
        let offset = self.geometry.offset_of(BlockNr(block)) as usize;
        self.add(kind, offset, self.geometry.block_size as usize);
    }

    fn block<'i>(&self, image: &'i [u8], block: u64) -> &'i [u8] {
        let offset = self.geometry.offset_of(BlockNr(block)) as usize;
        &image[offset..offset + self.geometry.block_size as usize]
    }

    fn add_group(&mut self, image: &[u8], group: u32) {
        let geometry = self.geometry.clone();
        let (block, offset) = geometry.desc_location(GroupNr(group));
        let offset = geometry.offset_of(block) as usize + offset;
        let len = geometry.desc_size as usize;
        let desc = RawGroupDesc::from_slice(&image[offset..offset + len]);
        self.add(ObjectKind::Desc(group), offset, len);
        let flags = desc.flags();
        if !flags.contains(GroupFlags::BLOCK_UNINIT) {
            let offset = geometry.offset_of(desc.block_bitmap()) as usize;
            let bits = geometry.blocks_in_group(GroupNr(group));
            self.add(
                ObjectKind::BlockBitmap(group),
                offset,
                (bits as usize).div_ceil(8),
            );
        }
        if !flags.contains(GroupFlags::INODE_UNINIT) {
            let offset = geometry.offset_of(desc.inode_bitmap()) as usize;
            self.add(
                ObjectKind::InodeBitmap(group),
                offset,
                geometry.inode_bitmap_bytes(),
            );
            let table = geometry.offset_of(desc.inode_table()) as usize;
            let unused = if geometry.has_group_checksums() {
                desc.itable_unused()
            } else {
                0
            };
            for index in 0..geometry.inodes_per_group - unused {
                let nr = geometry.inode_nr(GroupNr(group), index);
                self.add_inode(image, nr, table + (index * geometry.inode_size) as usize);
            }
        }
    }

    fn add_inode(&mut self, image: &[u8], nr: InodeNr, offset: usize) {
        let len = self.geometry.inode_size as usize;
        let inode = InodeBytes::new(&image[offset..offset + len]);
        let is_reserved = nr < self.geometry.first_inode;
        if inode.links_count() == 0 && !is_reserved {
            self.add(ObjectKind::FreeInode(nr.0), offset, len);
            return;
        }
        self.add(ObjectKind::Inode(nr.0), offset, len);
        if inode.file_acl() != 0 {
            self.add_block(ObjectKind::Xattr, inode.file_acl());
        }
        let kind = inode.mode() & S_IFMT;
        let is_fast = kind == S_IFLNK && inode.size_bytes() < 60;
        if !matches!(kind, S_IFREG | S_IFDIR | S_IFLNK) || is_fast {
            return;
        }
        let mut data = Vec::new();
        if inode.flags().contains(InodeFlags::EXTENTS) {
            self.add_extents(image, nr.0, inode.block_area(), &mut data);
        } else {
            for slot in 0..15 {
                let block = word(inode.block_area(), slot);
                self.add_map(image, nr.0, block, slot.saturating_sub(11), &mut data);
            }
        }
        let Some(&first) = data.first() else { return };
        if kind == S_IFDIR {
            self.add_directory(image, nr.0, &data, inode.flags());
        } else if kind == S_IFLNK {
            self.add_block(ObjectKind::Target, first);
        } else if Some(nr) == self.geometry.journal_inode {
            let offset = self.geometry.offset_of(BlockNr(first)) as usize;
            self.add(ObjectKind::Journal, offset, 1024);
        } else if Some(nr) == self.geometry.orphan_file_inode {
            for block in data {
                self.add_block(ObjectKind::Orphans(nr.0), block);
            }
        }
    }

    /// Adds the nodes below one, and collects the file's blocks in order.
    fn add_extents(&mut self, image: &[u8], nr: u32, node: &[u8], data: &mut Vec<u64>) {
        let half = |at: usize| u64::from(node[at]) | u64::from(node[at + 1]) << 8;
        let (entries, depth) = (half(2) as usize, half(6));
        for entry in (1..=entries).map(|entry| entry * 12) {
            if depth == 0 {
                let start = u64::from(word(&node[entry..], 2)) | half(entry + 6) << 32;
                let len = half(entry + 4);
                let len = if len > 32768 { len - 32768 } else { len };
                data.extend(start..start + len);
            } else {
                let child = u64::from(word(&node[entry..], 1)) | half(entry + 8) << 32;
                self.add_block(ObjectKind::ExtentNode(nr), child);
                self.add_extents(image, nr, self.block(image, child), data);
            }
        }
    }

    fn add_map(&mut self, image: &[u8], nr: u32, block: u32, level: usize, data: &mut Vec<u64>) {
        if block == 0 {
            return;
        }
        if level == 0 {
            data.push(block.into());
            return;
        }
        self.add_block(ObjectKind::MapBlock(nr), block.into());
        let bytes = self.block(image, block.into());
        for slot in 0..bytes.len() / 4 {
            self.add_map(image, nr, word(bytes, slot), level - 1, data);
        }
    }

    fn add_directory(&mut self, image: &[u8], nr: u32, data: &[u64], flags: InodeFlags) {
        let mut nodes = vec![];
        if flags.contains(InodeFlags::INDEX) {
            let root = self.block(image, data[0]);
            if root[ROOT_INFO_OFFSET + 6] > 0 {
                let entries = &root[ROOT_INFO_OFFSET + 8..];
                let count = word(entries, 0) >> 16;
                nodes.extend((0..count as usize).map(|at| word(entries, at * 2 + 1)));
            }
        }
        for (index, &block) in (0..).zip(data) {
            let kind = if index == 0 && flags.contains(InodeFlags::INDEX) {
                ObjectKind::TreeRoot(nr)
            } else if nodes.contains(&index) {
                ObjectKind::TreeNode(nr)
            } else {
                ObjectKind::Leaf(nr)
            };
            self.add_block(kind, block);
        }
    }
}

/// The n-th little-endian word.
fn word(bytes: &[u8], index: usize) -> u32 {
    let at = index * 4;
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
