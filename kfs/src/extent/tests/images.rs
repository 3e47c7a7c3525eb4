//! Goal: e2fsprogs agrees: on every tree that kfs writes, and on what block maps made by it say.
//! Method: a tree is changed in an image by mke2fs; e2fsck and debugfs judge and list it. Files with
//! block maps are written by debugfs and listed by both.

use super::model::{LOGICAL_RANGE, Op, Pair};
use super::*;
use crate::allocator::{ALLOCATE_CREDITS, Allocator, BlockRequest};
use crate::layout::{GroupFlags, InodeBytes, InodeFlags, RawGroupDesc};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

const INODE: InodeNr = InodeNr(12);
/// Blocks of the image that mke2fs leaves free.
const DATA_START: u64 = 9000;
const IMAGE_NODES_START: u64 = 60_000;

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    String::from_utf8(output.stdout).expect("text")
}

fn debugfs(image: &Path, command: &str) -> String {
    run(
        "debugfs",
        &["-w", "-R", command, image.to_str().expect("text")],
    )
}

/// An image of 64 MiB with blocks of 1 KiB, and a file, inode 12, with the content of `source`.
fn make(dir: &Path, features: &str, source: &Path) -> PathBuf {
    let image = dir.join("image");
    let path = image.to_str().expect("text");
    let backups = "num_backup_sb=0";
    run(
        "mke2fs",
        &[
            "-q", "-F", "-t", "ext4", "-b", "1024", "-E", backups, "-O", features, path, "64M",
        ],
    );
    debugfs(&image, &format!("write {} file", source.display()));
    image
}

fn open(image: &Path) -> (Arc<MemoryDevice>, Geometry) {
    let device = MemoryDevice::from_file(image).expect("the image");
    let mut bytes = [0; 1024];
    device.read_at(1024, &mut bytes).expect("memory");
    let raw: RawSuperblock = zerocopy::transmute!(bytes);
    (
        Arc::new(device),
        Geometry::try_from(&raw).expect("made by mke2fs"),
    )
}

/// Offset of inode 12, which is in group 0.
fn inode_offset(device: &MemoryDevice, geometry: &Geometry) -> u64 {
    let mut bytes = vec![0; geometry.desc_size as usize];
    device.read_at(2048, &mut bytes).expect("memory");
    let desc = RawGroupDesc::from_slice(&bytes);
    assert!(!desc.flags().contains(GroupFlags::INODE_UNINIT));
    let index = u64::from(INODE.0 - 1);
    geometry.offset_of(desc.inode_table()) + index * u64::from(geometry.inode_size)
}

fn read_inode(device: &MemoryDevice, geometry: &Geometry) -> InodeBytes<Vec<u8>> {
    let mut bytes = vec![0; geometry.inode_size as usize];
    device
        .read_at(inode_offset(device, geometry), &mut bytes)
        .expect("memory");
    InodeBytes::new(bytes)
}

/// Writes the tree's root into the inode, and everything to `image`.
fn store(pair: &Pair, device: &MemoryDevice, image: &Path) {
    let geometry = &pair.volume.geometry;
    let mut inode = read_inode(device, geometry);
    *inode.block_area_mut() = pair.root;
    inode.set_size_bytes(u64::from(2 * LOGICAL_RANGE) * 1024);
    let blocks = pair.model.len() as u64 + pair.node_blocks as u64;
    inode.set_blocks_512(geometry, 2 * blocks).expect("small");
    inode.update_checksum(geometry, INODE);
    pair.volume.commit();
    device
        .write_at(inode_offset(device, geometry), inode.bytes())
        .expect("memory");
    device.write_to(image).expect("the image");
}

/// What e2fsck has to say beside the blocks that the bitmaps do not have, and those blocks.
/// The superblock's count is nobody's here; those of groups are the allocator's, if there is one.
fn fsck(image: &Path, has_allocator: bool) -> (Vec<String>, BTreeSet<u64>) {
    const EXPECTED: [&str; 6] = [
        "Block bitmap differences:",
        "Fix? no",
        "Free blocks count wrong (",
        "/",
        "***",
        "+",
    ];
    // What it says of groups whose bitmaps are not made yet comes amidst the lists of blocks.
    const UNINIT: &str = "block(s) in use but group is marked BLOCK_UNINIT";
    let output = run("e2fsck", &["-fn", image.to_str().expect("text")]);
    let mut blocks = BTreeSet::new();
    let mut complaints = Vec::new();
    for line in output
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
    {
        // That nodes are half full is mere advice: so are they in every tree that was split.
        let is_advice = line.ends_with("could be narrower.  Optimize? no");
        let is_expected = EXPECTED.iter().any(|known| line.starts_with(known));
        let is_group = !has_allocator && line.starts_with("Free blocks count wrong for group");
        if !is_group
            && !is_advice
            && !is_expected
            && !line.ends_with(UNINIT)
            && !line.starts_with("Pass ")
        {
            complaints.push(line.to_string());
        }
    }
    let (_, last_pass) = output.split_once("Pass 5").expect("e2fsck goes to its end");
    for item in last_pass.replace("Group", " Group").split_whitespace() {
        if let Some(item) = item.strip_prefix('+') {
            let item = item.trim_matches(['(', ')']);
            let (first, last) = item.split_once("--").unwrap_or((item, item));
            let number = |text: &str| text.parse::<u64>().expect("a block");
            blocks.extend(number(first)..=number(last));
        }
    }
    (complaints, blocks)
}

/// The leaf entries that debugfs lists: logical, physical, length, unwritten.
fn listed(image: &Path) -> Vec<Extent> {
    let output = debugfs(image, &format!("ex -l <{INODE}>"));
    let mut all = Vec::new();
    for line in output.lines().skip(1) {
        let numbers: Vec<u64> = line
            .split(|c: char| !c.is_ascii_digit())
            .filter_map(|number| number.parse().ok())
            .collect();
        // Level/levels entry/entries first-last first-last length flags
        let [_, _, _, _, logical, _, physical, _, len] = numbers[..] else {
            panic!("debugfs says {line}");
        };
        let unwritten = line.ends_with("Uninit");
        all.push(Extent {
            unwritten,
            ..extent(logical as u32, physical, len as u32)
        });
    }
    all
}

fn judge(pair: &Pair, device: &MemoryDevice, image: &Path) {
    pair.compare();
    store(pair, device, image);
    let (complaints, found) = fsck(image, false);
    assert_eq!(complaints, Vec::<String>::new());
    let mut used: BTreeSet<u64> = pair.model.values().map(|(physical, _)| *physical).collect();
    used.extend(&pair.volume.nodes.0.lock().used);
    assert_eq!(found, used);
    assert_eq!(listed(image), pair.volume.extents(&pair.root));
}

fn changes(features: &str) {
    let dir = tempfile::tempdir().expect("a directory");
    let empty = dir.path().join("empty");
    File::create(&empty).expect("a file");
    let image = make(dir.path(), features, &empty);
    let (device, geometry) = open(&image);
    let inode = read_inode(&device, &geometry);
    assert!(inode.flags().contains(InodeFlags::EXTENTS));
    assert_eq!(
        *inode.block_area(),
        ExtentTree::empty_root(),
        "debugfs begins with the same"
    );
    let mut volume = Volume::open(Arc::clone(&device), geometry, IMAGE_NODES_START);
    volume.generation = inode.generation();
    let mut pair = Pair::new(volume, DATA_START);
    judge(&pair, &device, &image);
    let comb = |first, teeth| Op::Comb { first, teeth };
    let mark = |first, len, unwritten| Op::Mark {
        first,
        len,
        unwritten,
    };
    let remove = |first, len| Op::Remove { first, len };
    for op in [
        comb(100, 3),
        comb(0, 3),
        comb(1000, 400),
        Op::Insert {
            first: 3000,
            len: 900,
            unwritten: true,
            joined: false,
        },
        mark(3100, 50, false),
        comb(4000, 900),
        comb(4001, 400),
        mark(900, 5000, true),
        mark(1200, 300, false),
        remove(1100, 300),
        comb(1801, 300),
        Op::Replace {
            pick: 700,
            unwritten: false,
        },
        remove(2000, 2300),
        remove(4810, 2),
        comb(0, 2900),
        remove(30, 5000),
        remove(0, 6000),
    ] {
        pair.run(&op);
        judge(&pair, &device, &image);
    }
}

#[test]
fn e2fsck_accepts_trees_with_checksums() {
    changes("^has_journal,sparse_super2,^resize_inode,metadata_csum");
}

#[test]
fn e2fsck_accepts_trees_without_checksums() {
    changes("^has_journal,sparse_super2,^resize_inode,^metadata_csum");
}

/// Data and nodes from the volume's own allocator: e2fsck finds no bitmap or group count to mend.
#[test]
fn nodes_come_from_the_allocator() {
    let dir = tempfile::tempdir().expect("a directory");
    let empty = dir.path().join("empty");
    File::create(&empty).expect("a file");
    let features = "^has_journal,sparse_super2,^resize_inode,metadata_csum";
    let image = make(dir.path(), features, &empty);
    let (device, geometry) = open(&image);
    let mut volume = Volume::open(Arc::clone(&device), geometry.clone(), 0);
    volume.generation = read_inode(&device, &geometry).generation();
    let allocator = Allocator::open(Arc::clone(&volume.cache), geometry).expect("sound");
    volume.journal.add_observer(allocator.observer());
    let mut pair = Pair::new(volume, 0);

    let free_before = allocator.free_blocks();
    for logical in (0..1000).map(|i| 2 * i) {
        let goal = BlockNr(3000 + 2 * u64::from(logical));
        let request = BlockRequest {
            goal,
            len: 1,
            privileged: false,
        };
        let mut data = allocator.reserve(request).expect("space");
        let physical = data.run().start;
        let tree = pair.volume.tree();
        let credits = tree.step_credits(&pair.root).expect("sound") + ALLOCATE_CREDITS;
        let mut handle = pair.volume.journal.start(credits).expect("starts");
        let one = extent(logical, physical.0, 1);
        let change = tree.insert(&mut pair.root, &mut handle, &allocator, one, physical);
        allocator.allocate(&mut handle, &mut data, 1);
        pair.node_blocks += change.expect("space").net();
        pair.model.insert(logical, (physical.0, false));
    }
    assert!(pair.node_blocks > 12, "a tree of two levels");
    assert_eq!(
        allocator.free_blocks(),
        free_before - 1000 - pair.node_blocks as u64
    );
    store(&pair, &device, &image);
    assert_eq!(fsck(&image, true), (Vec::new(), BTreeSet::new()));

    let mut next = Some(LogicalBlock(0));
    while let Some(first) = next {
        let mut handle = pair.volume.journal.start(100).expect("starts");
        let last = LogicalBlock(u32::MAX);
        let tree = pair.volume.tree();
        let removed = tree.remove(&mut pair.root, &mut handle, &allocator, first, last);
        let Removed { progress, runs } = removed.expect("sound");
        for run in runs {
            allocator.free(&mut handle, run).expect("in use");
        }
        pair.node_blocks += progress.nodes.net();
        next = progress.next;
    }
    assert_eq!((pair.root, pair.node_blocks), (ExtentTree::empty_root(), 0));
    pair.model.clear();
    store(&pair, &device, &image);
    assert_eq!(allocator.free_blocks(), free_before);
    assert_eq!(fsck(&image, true), (Vec::new(), BTreeSet::new()));
}

/// What `stat` of debugfs lists: extents, and indirect blocks.
fn listed_map(image: &Path) -> (Vec<Extent>, Vec<BlockNr>) {
    let output = debugfs(image, &format!("stat <{INODE}>"));
    let list = output.split_once("BLOCKS:").expect("a list").1;
    let list = list.split_once("TOTAL").expect("a total").0;
    let (mut extents, mut nodes) = (Vec::new(), Vec::new());
    let range = |text: &str| -> (u64, u64) {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        (
            first.parse().expect("a number"),
            last.parse().expect("a number"),
        )
    };
    for item in list
        .split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
    {
        let (key, value) = item.split_once(':').expect("a pair");
        let key = key.trim_matches(['(', ')']);
        let (physical, _) = range(value);
        if key.ends_with("IND") {
            nodes.push(BlockNr(physical));
        } else {
            let (first, last) = range(key);
            extents.push(extent(first as u32, physical, (last - first + 1) as u32));
        }
    }
    (extents, nodes)
}

#[test]
fn block_maps_say_what_debugfs_says() {
    let dir = tempfile::tempdir().expect("a directory");
    let source = dir.path().join("source");
    let mut file = File::create(&source).expect("a file");
    // Direct, single, double and triple indirect; the ends of each and holes between.
    for (first, len) in [
        (0, 5),
        (7, 9),
        (200, 100),
        (520, 20),
        (65_800, 30),
        (131_000, 700),
    ] {
        file.seek(SeekFrom::Start(first * 1024)).expect("a file");
        file.write_all(&vec![1; len * 1024]).expect("space");
    }
    let image = make(
        dir.path(),
        "^has_journal,sparse_super2,^resize_inode,^extents,^64bit",
        &source,
    );
    let (device, geometry) = open(&image);
    let inode = read_inode(&device, &geometry);
    assert!(!inode.flags().contains(InodeFlags::EXTENTS));
    let root = *inode.block_area();
    let volume = Volume::open(device, geometry, IMAGE_NODES_START);
    let map = IndirectMap::new(&volume.cache, &volume.geometry, INODE);
    let (want, mut want_nodes) = listed_map(&image);
    assert!(want_nodes.len() > 6 && want.len() >= 6);

    let mut found = Vec::new();
    map.for_each(&root, LogicalBlock(0), |extent| {
        found.push(extent);
        Ok(ControlFlow::Continue(()))
    })
    .expect("sound");
    assert_eq!(blocks_of(&found), blocks_of(&want));
    let (mut at, mut mapped) = (0, BTreeMap::new());
    while at < 140_000 {
        match map.map(&root, LogicalBlock(at), 3000).expect("sound") {
            Mapping::Mapped { physical, len } => {
                assert!(len > 0);
                mapped.extend((0..len).map(|i| (at + i, physical.0 + u64::from(i))));
                at += len;
            }
            Mapping::Hole { len } => {
                assert!((1..=3000).contains(&len));
                at += len;
            }
            Mapping::Unwritten { .. } => panic!("block maps have no such state"),
        }
    }
    assert_eq!(mapped, blocks_of(&want));
    damaged_maps(&volume, &root);
    want_nodes.sort_unstable();
    for first in [0, 9, 700, 131_100] {
        trimmed_map(&image, first, &blocks_of(&want), &want_nodes);
    }
}

/// Cuts the map at `first`: all behind it is freed, once, and all before it stays.
fn trimmed_map(image: &Path, first: u64, want: &BTreeMap<u32, u64>, want_nodes: &[BlockNr]) {
    let (device, geometry) = open(image);
    let mut root = *read_inode(&device, &geometry).block_area();
    let volume = Volume::open(device, geometry, IMAGE_NODES_START);
    let map = IndirectMap::new(&volume.cache, &volume.geometry, INODE);
    let (mut freed, mut nodes) = (Vec::new(), Vec::new());
    loop {
        let trim = map.plan_trim(&root, first).expect("sound");
        let mut handle = volume.journal.start(TRIM_CREDITS).expect("starts");
        trim.apply(&mut root, &mut handle);
        freed.extend(trim.data.iter().flat_map(|run| run.start.0..run.end().0));
        nodes.extend(trim.nodes);
        if trim.is_done {
            break;
        }
    }
    let mut kept = Vec::new();
    map.for_each(&root, LogicalBlock(0), |extent| {
        kept.push(extent);
        Ok(ControlFlow::Continue(()))
    })
    .expect("sound");
    let is_before = |logical: &u32| u64::from(*logical) < first;
    let mut before = want.clone();
    before.retain(|logical, _| is_before(logical));
    assert_eq!(blocks_of(&kept), before, "cut at {first}");
    let mut behind: Vec<u64> = want
        .iter()
        .filter(|(logical, _)| !is_before(logical))
        .map(|(_, physical)| *physical)
        .collect();
    behind.sort_unstable();
    freed.sort_unstable();
    assert_eq!(freed, behind, "cut at {first}");
    nodes.sort_unstable();
    if first == 0 {
        assert_eq!(nodes, want_nodes);
        assert_eq!(root, [0; 60]);
    }
    assert!(nodes.iter().all(|node| want_nodes.contains(node)));
}

fn blocks_of(extents: &[Extent]) -> BTreeMap<u32, u64> {
    let each = |e: &Extent| {
        let (logical, physical) = (e.logical.0, e.physical.0);
        (0..e.len).map(move |i| (logical + i, physical + u64::from(i)))
    };
    extents.iter().flat_map(each).collect()
}

fn damaged_maps(volume: &Volume, root: &Root) {
    let map = IndirectMap::new(&volume.cache, &volume.geometry, INODE);
    for slot in 0..15 {
        let mut root = *root;
        root[slot * 4..slot * 4 + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let outside = |error| matches!(error, Error::Corrupt(Corrupt::IndirectBlock { .. }));
        assert!(map.plan_trim(&root, 0).is_err_and(outside));
        let at = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 268, 65_804][slot];
        assert!(map.map(&root, LogicalBlock(at), 9).is_err_and(outside));
    }
    // A block full of pointers to itself.
    let itself = BlockNr(50_000);
    let buffer = volume.cache.get(itself).expect("memory");
    {
        let mut handle = volume.journal.start(1).expect("starts");
        let mut bytes = handle.get_write_access(&buffer);
        for pointer in bytes.as_chunks_mut::<4>().0 {
            *pointer = 50_000u32.to_le_bytes();
        }
    }
    let mut root = [0; 60];
    root[56..].copy_from_slice(&50_000u32.to_le_bytes());
    let trim = map.plan_trim(&root, 0).expect("a step");
    assert!(!trim.is_done);
    let error = map
        .for_each(&root, LogicalBlock(0), |_| Ok(ControlFlow::Continue(())))
        .expect_err("endless");
    assert!(matches!(
        error,
        Error::Corrupt(Corrupt::IndirectTooLarge { .. })
    ));
    map.map(&root, LogicalBlock(1 << 20), 9).expect("an answer");
}
