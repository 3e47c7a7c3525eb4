//! Makes a base: formats it, fills it, and cuts the power of a copy in the middle of changes.

use super::places::{self, file_blocks};
use super::{Base, Recipe, inline, options, store};
use kfs::layout::inode::{DeviceNumber, InodeBytes, InodeFlags};
use kfs::{
    Filesystem, Geometry, Inode, InodeNr, NewNode, RenameMode, SetAttr, SetMode, SliceSource,
    SpaceChange, WriteOptions, read_superblock,
};
use kfs_disk::{BlockDevice, MemoryDevice};
use mkfs::{Content, Options};
use std::sync::Arc;

/// Name of the file that gets a block map.
const MAPPED: &[u8] = b"mapped";
/// Name of the directory that gets a block map.
const MAPPED_DIRECTORY: &[u8] = b"mapped-directory";
/// Names of what gets its content in the inode, where the image has that.
const INLINE: &[u8] = b"inline";
const INLINE_DIRECTORY: &[u8] = b"inline-directory";

pub(super) fn base(recipe: &Recipe, has_snapshots: bool) -> Base {
    let device = Arc::new(MemoryDevice::new(recipe.size_bytes));
    format(&device, recipe);
    let fs = open(&device);
    fill(&fs, recipe).expect("there is space for everything");
    let mapped = [MAPPED, MAPPED_DIRECTORY].map(|name| find(&fs, name).nr());
    let in_inode = [INLINE, INLINE_DIRECTORY].map(|name| find(&fs, name).nr());
    fs.close().expect("the device never fails");
    drop(fs);
    for nr in mapped {
        to_block_map(&device, nr);
    }
    let store_inode = has_snapshots.then(|| take_snapshots(&device));
    let dirty = cut_power(&device);
    if recipe.inline_data {
        for image in [&*device, &dirty] {
            inline::add(image, in_inode[0], in_inode[1]);
        }
    }
    let superblock = read_superblock(&*device).expect("mkfs wrote it");
    let geometry = Geometry::try_from(&superblock).expect("mkfs wrote it");
    let mut places = places::locate(&device, &geometry);
    let recovered = Arc::new(dirty.snapshot());
    drop(open(&recovered));
    let log = places::log_blocks(&device, &geometry);
    places.extend(places::locate_log(&dirty, &geometry, &log));
    let store = store_inode.map_or_else(Vec::new, |nr| store::blocks(&device, &geometry, nr));
    for image in [&*device, &dirty] {
        store::name(image, &geometry, &store);
    }
    places.extend(store::locate(&dirty, &geometry, &store));
    let of_class = |class| {
        let indexes = 0..places.len();
        indexes
            .filter(|&index| places[index].kind.class() == class)
            .collect()
    };
    Base {
        by_class: std::array::from_fn(of_class),
        clean: device.snapshot(),
        dirty,
        geometry,
        places,
        log,
        store,
    }
}

fn open(device: &Arc<MemoryDevice>) -> Arc<Filesystem> {
    let device: Arc<dyn BlockDevice> = Arc::clone(device) as Arc<dyn BlockDevice>;
    Filesystem::open(device, options()).expect("an image that mkfs and kfs have made")
}

fn format(device: &MemoryDevice, recipe: &Recipe) {
    let mut format = Options {
        block_size: Some(recipe.block_size),
        inode_size: Some(recipe.inode_size),
        blocks_per_group: Some(recipe.blocks_per_group),
        inodes_count: Some(recipe.inodes_count),
        label: "base".into(),
        uuid: Some(*b"the uuid of base"),
        hash_seed: Some(*b"its hash seed..."),
        content: Content::Zeros,
        time: Some(1_600_000_000),
        ..Options::default()
    };
    format
        .apply_features(recipe.features)
        .expect("features that mkfs has");
    if !recipe.features.contains("^has_journal") {
        format.journal_bytes = Some(1024 * u64::from(recipe.block_size));
    }
    mkfs::format(device, &format).expect("options that fit each other");
}

fn make(fs: &Filesystem, parent: &Inode, name: &[u8], mode: u16) -> kfs::Result<Arc<Inode>> {
    let node = NewNode {
        mode,
        uid: 1000,
        gid: 100,
        target: if mode == LINK { b"directory/name" } else { b"" },
        ..NewNode::default()
    };
    fs.create(parent, name, &node)
}

const FILE: u16 = 0o100_644;
const DIRECTORY: u16 = 0o040_755;
const LINK: u16 = 0o120_777;

fn write(fs: &Filesystem, inode: &Arc<Inode>, offset: u64, len: usize) -> kfs::Result<()> {
    let content: Vec<u8> = (0..len).map(|index| index as u8 | 1).collect();
    let mut source = SliceSource::new(&content);
    fs.write(inode, offset, len, &mut source, WriteOptions::default())?;
    Ok(())
}

fn find(fs: &Filesystem, name: &[u8]) -> Arc<Inode> {
    let root = fs.root().expect("a root");
    fs.lookup(&root, name).expect("it was made")
}

fn fill(fs: &Filesystem, recipe: &Recipe) -> kfs::Result<()> {
    let root = fs.root()?;
    let directory = make(fs, &root, b"directory", DIRECTORY)?;
    let below = make(fs, &directory, b"below", DIRECTORY)?;
    for name in [&b"a"[..], b"name", b"another-name", &[b'n'; 255]] {
        let file = make(fs, &below, name, FILE)?;
        write(fs, &file, 0, 100 * name.len())?;
    }
    fill_special(fs, &root)?;
    fill_files(fs, &root, recipe)?;
    fill_xattrs(fs, &root)?;
    make(fs, &root, INLINE, FILE)?;
    make(fs, &root, INLINE_DIRECTORY, DIRECTORY)?;
    let big = make(fs, &root, b"tree", DIRECTORY)?;
    let file = make(fs, &root, b"linked", FILE)?;
    for number in 0..recipe.names {
        let name = format!("{number:05}-with-a-name-that-is-long-enough-to-fill-blocks-soon");
        fs.link(&file, &big, name.as_bytes())?;
    }
    let mapped = make(fs, &root, MAPPED_DIRECTORY, DIRECTORY)?;
    for number in 0..5 {
        let name = format!("{number:0200}");
        fs.link(&file, &mapped, name.as_bytes())?;
    }
    Ok(())
}

fn fill_special(fs: &Filesystem, root: &Inode) -> kfs::Result<()> {
    for (name, mode) in [("fifo", 0o010_600), ("socket", 0o140_600), ("short", LINK)] {
        make(fs, root, name.as_bytes(), mode)?;
    }
    let (major, minor) = (8, 300);
    for (name, mode) in [("char", 0o020_600), ("block", 0o060_600)] {
        let node = NewNode {
            mode,
            device: DeviceNumber { major, minor },
            ..NewNode::default()
        };
        fs.create(root, name.as_bytes(), &node)?;
    }
    let long = NewNode {
        mode: LINK,
        target: &[b't'; 600],
        ..NewNode::default()
    };
    fs.create(root, b"long", &long).map(drop)
}

fn fill_files(fs: &Filesystem, root: &Inode, recipe: &Recipe) -> kfs::Result<()> {
    let block = u64::from(recipe.block_size);
    let plain = make(fs, root, b"plain", FILE)?;
    write(fs, &plain, 0, 20_000)?;
    // Every other block: an extent for each, which makes the tree grow.
    let sparse = make(fs, root, b"sparse", FILE)?;
    let extents = if recipe.block_size == 1024 { 400 } else { 350 };
    for index in 0..extents {
        write(fs, &sparse, 2 * index * block, 10)?;
    }
    let ahead = make(fs, root, b"ahead", FILE)?;
    write(fs, &ahead, 3 * block, 5 * block as usize)?;
    let keep = SpaceChange::Allocate { keep_size: true };
    fs.change_space(&ahead, 0, 20 * block, keep, WriteOptions::default())?;
    let mapped = make(fs, root, MAPPED, FILE)?;
    write(fs, &mapped, 0, 40 * block as usize)
}

fn fill_xattrs(fs: &Filesystem, root: &Inode) -> kfs::Result<()> {
    let set = |inode: &Arc<Inode>, name: &str, value: &[u8]| {
        fs.set_xattr(inode, name.as_bytes(), value, SetMode::Any, false)
    };
    let many = make(fs, root, b"attributes", FILE)?;
    set(&many, "user.small", b"v")?;
    set(&many, "security.selinux", b"a_label\0")?;
    set(&many, "user.long", &[7; 500])?;
    set(&many, "trusted.other", &[8; 100])?;
    let acl: Vec<u8> = [
        [1u16, 7, 0xffff, 0xffff],
        [2, 6, 77, 0],
        [4, 5, 0xffff, 0xffff],
        [16, 5, 0xffff, 0xffff],
        [32, 4, 0xffff, 0xffff],
    ]
    .iter()
    .flatten()
    .flat_map(|half| half.to_le_bytes())
    .collect();
    let acl = [&[2, 0, 0, 0], &acl[..]].concat();
    set(&many, "system.posix_acl_access", &acl)?;
    let below = fs.lookup(root, b"directory")?;
    set(&below, "system.posix_acl_default", &acl)
}

/// Rewrites an inode so that the blocks it has are mapped as in ext3. Of a file of 40 blocks the
/// first three become those of the map.
fn to_block_map(device: &MemoryDevice, nr: InodeNr) {
    let superblock = read_superblock(device).expect("mkfs wrote it");
    let geometry = Geometry::try_from(&superblock).expect("mkfs wrote it");
    let block_size = geometry.block_size as usize;
    let mut inode = places::read_inode(device, &geometry, nr);
    let blocks = file_blocks(device, &geometry, inode.block_area(), inode.flags()).data;
    let blocks: Vec<u32> = blocks.iter().map(|&(_, block)| block as u32).collect();
    let mut area = [0; 60];
    let put = |bytes: &mut [u8], index: usize, block: u32| {
        bytes[index * 4..][..4].copy_from_slice(&block.to_le_bytes());
    };
    let pointers = |blocks: &[u32]| {
        let mut bytes = vec![0; block_size];
        for (index, block) in blocks.iter().enumerate() {
            put(&mut bytes, index, *block);
        }
        bytes
    };
    if let [single, double, child, data @ ..] = &blocks[..]
        && data.len() > 12
    {
        let (direct, rest) = data.split_at(12);
        let (by_single, by_double) = rest.split_at(rest.len() / 2);
        let (child_pointers, top) = (pointers(by_double), pointers(&[*child]));
        for (block, bytes) in [
            (single, pointers(by_single)),
            (child, child_pointers),
            (double, top),
        ] {
            write_block(device, &geometry, u64::from(*block), &bytes);
        }
        direct
            .iter()
            .chain([single, double])
            .enumerate()
            .for_each(|(index, block)| put(&mut area, index, *block));
        let mapped = 12 + geometry.block_size / 4 + by_double.len() as u32;
        inode.set_size_bytes(u64::from(mapped) * u64::from(geometry.block_size));
    } else {
        for (index, block) in blocks.iter().enumerate() {
            put(&mut area, index, *block);
        }
    }
    *inode.block_area_mut() = area;
    let flags = inode.flags() - InodeFlags::EXTENTS;
    inode.set_flags(flags);
    write_inode(device, &geometry, nr, &mut inode);
}

fn write_block(device: &MemoryDevice, geometry: &Geometry, block: u64, bytes: &[u8]) {
    device
        .write_at(block << geometry.block_size_bits, bytes)
        .expect("within the device");
}

pub(super) fn write_inode(
    device: &MemoryDevice,
    geometry: &Geometry,
    nr: InodeNr,
    inode: &mut InodeBytes<Vec<u8>>,
) {
    inode.update_checksum(geometry, nr);
    let offset = places::inode_offset(device, geometry, nr);
    device
        .write_at(offset, inode.bytes())
        .expect("within the device");
}

/// Snapshots with changes after each. Returns the inode of their store.
fn take_snapshots(device: &Arc<MemoryDevice>) -> InodeNr {
    let fs = open(device);
    let changed = change_between_snapshots(&fs);
    changed.expect("there is space for everything");
    let store = fs.volume().snapshots.store_inode();
    fs.close().expect("the device never fails");
    store.expect("there are snapshots")
}

fn change_between_snapshots(fs: &Filesystem) -> kfs::Result<()> {
    let root = fs.root()?;
    let resize = |name: &[u8], size| {
        let change = SetAttr {
            size_bytes: Some(size),
            ..SetAttr::default()
        };
        fs.set_attr(&find(fs, name), &change)
    };
    fs.create_snapshot("first", "before all changes")?;
    write(fs, &find(fs, b"plain"), 3000, 4000)?;
    write(fs, &find(fs, b"sparse"), 5000, 3000)?;
    resize(b"plain", 9000)?;
    fs.unlink(&root, b"long")?;
    for number in 0..20 {
        let name = format!("new-{number}");
        let file = make(fs, &root, name.as_bytes(), FILE)?;
        write(fs, &file, 0, 3000)?;
    }
    fs.create_snapshot("second", "")?;
    write(fs, &find(fs, b"plain"), 0, 9000)?;
    write(fs, &find(fs, b"new-3"), 100, 100)?;
    for name in [&b"new-5"[..], b"new-6", b"fifo"] {
        fs.unlink(&root, name)?;
    }
    fs.rename(
        &root,
        b"new-7",
        &find(fs, b"directory"),
        b"moved",
        RenameMode::Replace,
    )?;
    resize(b"new-8", 10)?;
    fs.remove_xattr(&find(fs, b"attributes"), b"user.small")
}

/// The image as it is when the power goes in the middle of changes.
fn cut_power(device: &MemoryDevice) -> MemoryDevice {
    let device = Arc::new(device.snapshot());
    let fs = open(&device);
    change(&fs).expect("there is space for everything");
    let image = device.snapshot();
    drop(fs);
    image
}

/// Transactions with blocks of all kinds, revokes among them, and orphans.
fn change(fs: &Filesystem) -> kfs::Result<()> {
    let root = fs.root()?;
    let directory = make(fs, &root, b"gone", DIRECTORY)?;
    for number in 0..60 {
        let name = format!("{number:0100}");
        make(fs, &directory, name.as_bytes(), FILE)?;
        if number % 20 == 0 {
            fs.sync()?;
        }
    }
    for number in 0..60 {
        let name = format!("{number:0100}");
        fs.unlink(&directory, name.as_bytes())?;
    }
    fs.rmdir(&root, b"gone")?;
    fs.sync()?;
    // The log's own magic number, which has to be escaped there, in the first bytes of a block.
    let escaped = make(fs, &root, b"escaped", LINK)?;
    fs.remove_xattr(&find(fs, b"attributes"), b"user.long")?;
    for name in [&b"sparse"[..], b"plain", b"attributes"] {
        let inode = fs.lookup(&root, name)?;
        fs.acquire(&inode, 1);
        fs.unlink(&root, name)?;
    }
    drop(escaped);
    fs.sync()?;
    let cut = SetAttr {
        size_bytes: Some(5000),
        ..SetAttr::default()
    };
    fs.set_attr(&find(fs, b"ahead"), &cut)?;
    fs.sync()
}
