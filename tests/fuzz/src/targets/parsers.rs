//! Each parser of what is on disk, on bytes that are anything.
//!
//! The first byte chooses the parser. Where a parser wants blocks, the bytes are those of a device.

use crate::base;
use crate::input::Input;
use kfs::allocator::Allocator;
use kfs::dir::{Directory, DirectoryBlocks, DirectoryFormat, FileName, NameHasher};
use kfs::extent::{ExtentTree, IndirectMap, LOGICAL_END, REWRITE_CREDITS_MIN};
use kfs::layout::inode::InodeBytes;
use kfs::layout::journal::{
    JournalIncompat, RawBlockTail, RawCommitBlock, RawJournalHeader, RawJournalSuperblock,
    RawRevokeHeader, TagFormat,
};
use kfs::layout::{
    FileType, RawGroupDesc, RawSuperblock, SizeFacts, acl, dirent, features, orphan, xattr,
};
use kfs::storage::{Buffer, BufferCache, Handle, Journal};
use kfs::xattr::{XattrName, XattrSet};
use kfs::{BlockNr, Error, Geometry, GroupNr, InodeNr, LogicalBlock, Result, Run, SetMode};
use kfs_disk::{BlockDevice, MemoryDevice};
use std::ops::ControlFlow;
use std::sync::Arc;
use zerocopy::FromBytes;

/// Bytes in a block of the devices here.
const BLOCK_SIZE: usize = 1024;
/// Blocks of a device.
const BLOCKS: usize = 24;
/// Blocks that an input fills; the others are for what grows.
const FILLED: usize = 8;
/// Metadata blocks that a change here may touch.
const CREDITS: u32 = 64;

/// One parser.
pub fn parsers(data: &[u8]) {
    let mut input = Input::new(data);
    match input.u8() % 10 {
        0 => superblock(&mut input),
        1 => group_descriptor(&mut input),
        2 => inode(&mut input),
        3 => directory(&mut input, false),
        4 => directory(&mut input, true),
        5 => extents(&mut input),
        6 => block_map(&mut input),
        7 => xattrs(&mut input),
        8 => log_blocks(&mut input),
        _ => small_ones(&mut input),
    }
}

fn padded(input: &mut Input<'_>, len: usize) -> Vec<u8> {
    let mut bytes = input.take(len).to_vec();
    bytes.resize(len, 0);
    bytes
}

/// A superblock of a base with pieces of it written over.
fn superblock(input: &mut Input<'_>) {
    let base = base::get(usize::from(input.u8()));
    let mut bytes = vec![0; 1024];
    base.clean
        .read_at(1024, &mut bytes)
        .expect("a device has a superblock");
    while !input.is_empty() {
        let at = input.index(1024);
        let len = usize::from(input.u8() % 16) + 1;
        let len = len.min(1024 - at);
        let new = input.take(len);
        bytes[at..at + new.len()].copy_from_slice(new);
    }
    let (raw, _) = RawSuperblock::mut_from_prefix(&mut bytes).expect("its length");
    raw.update_checksum();
    let _ = features::check(raw);
    let _ = features::names(raw);
    let _ = features::read_only_names(raw);
    let Ok(geometry) = Geometry::try_from(&*raw) else {
        return;
    };
    let last = GroupNr(geometry.groups_count() - 1);
    for group in [GroupNr(0), GroupNr(last.0 / 2), last] {
        let _ = geometry.desc_location(group);
        let _ = geometry.base_metadata_blocks(group);
        let first = geometry.group_first_block(group);
        let blocks = geometry.blocks_in_group(group);
        assert_eq!(geometry.group_of(first), (group, 0));
        let _ = geometry.offset_of(first.plus(u64::from(blocks)));
    }
    for nr in [0, 1, geometry.inodes_count(), u32::MAX].map(InodeNr) {
        if let Ok((group, index)) = geometry.inode_location(nr) {
            assert!(group <= last);
            let _ = geometry.inode_table_offset(index);
            assert_eq!(geometry.inode_nr(group, index), nr);
        }
    }
    raw.seal();
    assert!(raw.verify_checksum());
    geometry_of_a_volume(&geometry);
}

/// The allocator on a volume of zeros with such a geometry, where it is not too large.
fn geometry_of_a_volume(geometry: &Geometry) {
    if geometry.blocks_count() << geometry.block_size_bits > 64 << 20 {
        return;
    }
    let size = geometry.blocks_count() << geometry.block_size_bits;
    let device: Arc<dyn BlockDevice> = Arc::new(MemoryDevice::new(size));
    let cache = BufferCache::new(device, geometry.block_size, geometry.blocks_count(), 0);
    let _ = Allocator::open(Arc::new(cache), geometry.clone());
}

fn group_descriptor(input: &mut Input<'_>) {
    let base = base::get(usize::from(input.u8()));
    let geometry = &base.geometry;
    let mut desc = RawGroupDesc::from_slice(&padded(input, geometry.desc_size as usize));
    let _ = desc.verify_checksum(geometry, GroupNr(0));
    desc.update_checksum(geometry, GroupNr(0));
    assert!(desc.verify_checksum(geometry, GroupNr(0)));
    let bitmap = padded(input, geometry.block_size as usize);
    desc.update_block_bitmap(geometry, &bitmap);
    desc.update_inode_bitmap(geometry, &bitmap);
    assert!(desc.verify_block_bitmap(geometry, &bitmap));
    assert!(desc.verify_inode_bitmap(geometry, &bitmap));
}

fn inode(input: &mut Input<'_>) {
    let base = base::get(usize::from(input.u8()));
    let geometry = &base.geometry;
    let size = [128, 256, 512, 1024][usize::from(input.u8() & 3)];
    let mut inode = InodeBytes::new(padded(input, size));
    let _ = (inode.mode(), inode.uid(), inode.gid(), inode.size_bytes());
    let _ = (
        inode.links_count(),
        inode.blocks_512(geometry),
        inode.flags(),
    );
    let _ = (inode.atime(), inode.mtime(), inode.ctime(), inode.crtime());
    let _ = (
        inode.version(),
        inode.projid(),
        inode.rdev(),
        inode.file_acl(),
    );
    let nr = InodeNr(12);
    let _ = inode.verify_checksum(geometry, nr);
    let size_bytes = inode.size_bytes();
    inode.set_size_bytes(size_bytes);
    assert_eq!(inode.size_bytes(), size_bytes);
    let times = (inode.atime(), inode.crtime());
    inode.set_atime(times.0);
    inode.set_crtime(times.1.unwrap_or(times.0));
    assert_eq!((inode.atime(), inode.crtime()), times);
    let _ = inode.set_blocks_512(geometry, input.u64());
    let area = inode.xattr_area().to_vec();
    attributes(nr, &area, None);
    inode.xattr_area_mut().fill(0);
    if geometry.inode_size as usize == size {
        inode.update_checksum(geometry, nr);
        assert!(inode.verify_checksum(geometry, nr));
    }
}

/// A device with the bytes of the input, and what layers above want.
struct Volume {
    cache: Arc<BufferCache>,
    journal: Arc<Journal>,
    geometry: Geometry,
}

fn volume(input: &mut Input<'_>) -> Volume {
    let device = MemoryDevice::new((BLOCKS * BLOCK_SIZE) as u64);
    let mut block = 1;
    while !input.is_empty() && block <= FILLED {
        // Blocks are filled from the front, in pieces, so that few bytes fill many.
        let (at, len) = (input.index(BLOCK_SIZE), usize::from(input.u8()));
        let piece = input.take(len);
        let room = piece.len().min(BLOCK_SIZE - at);
        let offset = (block * BLOCK_SIZE + at) as u64;
        device
            .write_at(offset, &piece[..room])
            .expect("within the device");
        if input.u8() & 1 != 0 {
            block += 1;
        }
    }
    let device: Arc<dyn BlockDevice> = Arc::new(device);
    let size = BLOCK_SIZE as u32;
    let cache = BufferCache::new(Arc::clone(&device), size, BLOCKS as u64, 1 << 20);
    let cache = Arc::new(cache);
    Volume {
        journal: Arc::new(Journal::open(device, Arc::clone(&cache), None)),
        // Without checksums: the bytes are to be looked at.
        geometry: {
            let geometry = &base::get(2).geometry;
            geometry.with_size(SizeFacts {
                blocks_count: BLOCKS as u64,
                ..geometry.size()
            })
        },
        cache,
    }
}

/// The blocks of a device as those of a directory.
struct Blocks {
    cache: Arc<BufferCache>,
    format: DirectoryFormat,
    count: u32,
    indexed: bool,
}

impl DirectoryBlocks for Blocks {
    fn format(&self) -> DirectoryFormat {
        self.format
    }

    fn blocks_count(&self) -> u32 {
        self.count
    }

    fn block(&self, block: LogicalBlock) -> Result<Arc<Buffer>> {
        self.cache.get(BlockNr(u64::from(block.0) + 1))
    }

    fn prepare(&mut self, count: u32) -> Result<()> {
        if self.count + count < BLOCKS as u32 {
            Ok(())
        } else {
            Err(Error::NoSpace)
        }
    }

    fn append(&mut self, _: &mut Handle<'_>) -> (LogicalBlock, Arc<Buffer>) {
        let logical = LogicalBlock(self.count);
        self.count += 1;
        let block = BlockNr(u64::from(self.count));
        let buffer = self.cache.get_zeroed(block);
        (logical, buffer.expect("prepared"))
    }

    fn is_indexed(&self) -> bool {
        self.indexed
    }

    fn set_indexed(&mut self, _: &mut Handle<'_>, indexed: bool) {
        self.indexed = indexed;
    }
}

fn directory(input: &mut Input<'_>, indexed: bool) {
    let (how, count) = (input.u8(), input.u8());
    let name = input.take(usize::from(input.clone().u8() % 16) + 1);
    let volume = volume(input);
    let format = DirectoryFormat {
        has_file_type: how & 1 == 0,
        dir_index: how & 2 == 0,
        large_dir: how & 4 != 0,
        hash_unsigned: how & 8 != 0,
        default_hash_version: how >> 4 & 3,
        ..DirectoryFormat::new(&volume.geometry, InodeNr(12), 1)
    };
    let mut directory = Directory::new(Blocks {
        cache: Arc::clone(&volume.cache),
        format,
        count: 1 + u32::from(count) % FILLED as u32,
        indexed,
    });
    let mut names: Vec<Vec<u8>> = Vec::new();
    let mut cookie = 0;
    let _ = directory.entries_from(0, &mut |entry| {
        names.push(entry.name.to_vec());
        cookie = entry.cookie;
        ControlFlow::Continue(())
    });
    let _ = directory.entries_from(cookie, &mut |_| ControlFlow::Continue(()));
    let _ = (directory.parent(), directory.is_empty());
    names.truncate(20);
    names.push(name.to_vec());
    for name in &names {
        let Ok(name) = FileName::new(name) else {
            continue;
        };
        let _ = directory.lookup(name);
    }
    let change = |directory: &mut Directory<Blocks>, name: &[u8], what: u8| -> Result<()> {
        let name = FileName::new(name)?;
        let mut handle = volume.journal.start(CREDITS)?;
        let nr = InodeNr(13);
        match what {
            0 => directory.add(&mut handle, name, nr, FileType::Regular),
            1 => directory.remove(&mut handle, name).map(drop),
            2 => directory
                .replace(&mut handle, name, nr, FileType::Regular)
                .map(drop),
            _ => {
                let entry = directory.parent_entry()?;
                directory.set_parent(&mut handle, &entry, nr);
                Ok(())
            }
        }
    };
    for number in 0..u16::from(count) {
        let name = format!("{number:050}");
        let _ = change(&mut directory, name.as_bytes(), 0);
    }
    for (index, name) in names.iter().enumerate() {
        let _ = change(&mut directory, name, index as u8 & 3);
    }
    let _ = directory.is_empty();
}

fn extents(input: &mut Input<'_>) {
    let mut root: [u8; 60] = input.array();
    let numbers = [(); 4].map(|()| input.number() as u32);
    let volume = volume(input);
    let tree = ExtentTree::new(&volume.cache, &volume.geometry, InodeNr(12), 1);
    let _ = (tree.depth(&root), tree.last(&root));
    for logical in numbers.map(LogicalBlock) {
        let _ = tree.map(&root, logical, 100);
        let _ = tree.nearest_before(&root, logical);
    }
    let mut blocks = 0;
    let _ = tree.for_each(
        &root,
        LogicalBlock(numbers[0]),
        &mut |extent: kfs::extent::Extent| {
            blocks += u64::from(extent.len);
            Ok(ControlFlow::Continue(()))
        },
    );
    assert!(blocks <= LOGICAL_END);
    let _ = tree.for_each_node(&root, &mut |_| Ok(()));
    let Ok(mut handle) = volume.journal.start(REWRITE_CREDITS_MIN + CREDITS) else {
        return;
    };
    let [a, b, c, _] = numbers;
    let (first, last) = (LogicalBlock(a.min(b)), LogicalBlock(a.max(b)));
    let _ = tree.remove(&mut root, &mut handle, &Spare, first, last);
    let _ = tree.mark_written(&mut root, &mut handle, &Spare, LogicalBlock(c), 10);
    let _ = tree.mark_unwritten(&mut root, &mut handle, &Spare, LogicalBlock(b), 3);
}

/// Nodes that a tree wants: there are none.
struct Spare;

impl kfs::extent::NodeAllocator for Spare {
    type Reservation = ();

    fn reserve_nodes(&self, count: u32, _: BlockNr) -> Result<()> {
        if count == 0 {
            Ok(())
        } else {
            Err(Error::NoSpace)
        }
    }

    fn allocate_node(&self, _: &mut Handle<'_>, (): &mut ()) -> BlockNr {
        unreachable!("none was promised")
    }

    fn check_free(&self, _: Run) -> Result<()> {
        Ok(())
    }

    fn free_node(&self, _: &mut Handle<'_>, _: BlockNr) -> Result<()> {
        Ok(())
    }
}

fn block_map(input: &mut Input<'_>) {
    let root: [u8; 60] = input.array();
    let numbers = [(); 4].map(|()| input.number() as u32);
    let volume = volume(input);
    let map = IndirectMap::new(&volume.cache, &volume.geometry, InodeNr(12));
    for logical in numbers.map(LogicalBlock) {
        let _ = map.map(&root, logical, 100);
    }
    let _ = map.for_each(&root, LogicalBlock(numbers[0]), &mut |_| {
        Ok(ControlFlow::Continue(()))
    });
    if let Ok(trim) = map.plan_trim(&root, u64::from(numbers[1])) {
        let mut root = root;
        if let Ok(mut handle) = volume.journal.start(CREDITS) {
            trim.apply(&mut root, &mut handle);
        }
    }
}

fn xattrs(input: &mut Input<'_>) {
    let area = usize::from(input.u8());
    let area = input.take(area).to_vec();
    let mut block = padded(input, BLOCK_SIZE);
    let has_block = area.len() & 1 == 0;
    let nr = InodeNr(12);
    attributes(nr, &area, has_block.then_some((BlockNr(5), &block)));
    xattr::update_checksum(Some(7), BlockNr(5), &mut block);
    assert!(xattr::verify_checksum(Some(7), BlockNr(5), &block));
}

fn attributes(nr: InodeNr, area: &[u8], block: Option<(BlockNr, &[u8])>) {
    let Ok(set) = XattrSet::parse(nr, area, block, BLOCK_SIZE as u32) else {
        return;
    };
    let _ = set.list(true);
    for name in set.names().chain(XattrName::parse(b"user.new")) {
        let _ = set.get(&name);
        for value in [&b""[..], &[1; 40], &[2; 900]] {
            let _ = set.plan_set(&name, value, SetMode::Any);
        }
        let _ = set.plan_remove(&name);
    }
}

fn log_blocks(input: &mut Input<'_>) {
    let incompat = JournalIncompat::from_bits_retain(u32::from(input.u8()));
    let mut block = padded(input, BLOCK_SIZE);
    if let Ok((raw, _)) = RawJournalSuperblock::ref_from_prefix(&block) {
        let _ = (raw.check(BLOCK_SIZE as u32, 1024), raw.log_end());
    }
    let _ = RawJournalHeader::parse(&block, 1);
    assert!(TagFormat::of(incompat).tags(&block).count() <= BLOCK_SIZE / 8);
    for is_64bit in [false, true] {
        assert!(RawRevokeHeader::records(&block, is_64bit).count() <= BLOCK_SIZE / 4);
    }
    RawBlockTail::update_checksum(&mut block, 7);
    assert!(RawBlockTail::verify_checksum(&block, 7));
    RawCommitBlock::update_checksum(&mut block, 7);
    assert!(RawCommitBlock::verify_checksum(&block, 7));
}

fn small_ones(input: &mut Input<'_>) {
    let how = input.u8();
    let bytes = input.take_rest();
    if let Ok(disk) = acl::encode(bytes) {
        assert!(acl::decode(&disk).is_some());
    }
    if let Some(xattr) = acl::decode(bytes) {
        let _ = acl::encode(&xattr);
    }
    if let Ok(name) = XattrName::parse(bytes) {
        assert_eq!(name.full(), bytes);
        let _ = name.value_from_disk(InodeNr(12), bytes);
    }
    let _ = FileName::new(bytes);
    if let Ok(hasher) = NameHasher::new(how & 7, how & 8 != 0, [1, 2, 3, 4]) {
        let _ = hasher.hash(bytes);
    }
    let mut block = bytes.to_vec();
    block.resize(BLOCK_SIZE, 0);
    let _ = orphan::has_magic(&block);
    orphan::update_tail(Some(7), BlockNr(5), &mut block);
    assert!(orphan::verify_checksum(Some(7), BlockNr(5), &block));
    dirent::update_checksum(Some(7), &mut block);
    assert!(dirent::verify_checksum(Some(7), &block));
    let _ = kfs::layout::htree::verify_checksum(Some(7), &block, 32);
    let _ = kfs::layout::extent::verify_checksum(Some(7), &block);
}
