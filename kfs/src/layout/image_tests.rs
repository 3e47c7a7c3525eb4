//! Reads images made by mke2fs and checks every structure and checksum in them.

use super::features::{self, Compat, Incompat};
use super::inode::{S_IFDIR, S_IFMT};
use super::{
    GroupFlags, InodeBytes, InodeFlags, RawDirent, RawExtentHeader, RawExtentIndex, RawExtentLeaf,
    RawGroupDesc, RawSuperblock, dirent, extent, htree, journal, orphan, xattr,
};
use crate::ids::{BlockNr, GroupNr, InodeNr};
use crate::layout::Geometry;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::process::Command;
use zerocopy::FromBytes;

/// An image as bytes in memory, with its geometry.
struct Image {
    bytes: Vec<u8>,
    geometry: Geometry,
}

/// What was seen, so that a test cannot pass by seeing nothing.
#[derive(Default, Debug, PartialEq)]
struct Seen {
    inodes: u32,
    linear: u32,
    indexed: u32,
    nodes: u32,
    xattrs: u32,
    orphan_blocks: u32,
    backups: u32,
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .expect(program);
    // e2fsck says 1 when it changed something, as -D asks it to.
    let ok = output.status.success() || program == "e2fsck" && output.status.code() == Some(1);
    assert!(
        ok,
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Files that need deep extent trees, hash trees and attribute blocks.
fn fill(dir: &Path) {
    std::fs::create_dir(dir.join("many")).unwrap();
    for n in 0..400 {
        let name = format!("a name that is long enough to fill blocks soon, number {n}");
        File::create(dir.join("many").join(name)).unwrap();
    }
    let mut sparse = File::create(dir.join("sparse")).unwrap();
    for n in 0..1000u64 {
        sparse.seek(SeekFrom::Start(n * 8192)).unwrap();
        sparse.write_all(&[1; 100]).unwrap();
    }
    std::os::unix::fs::symlink("sparse", dir.join("link")).unwrap();
}

fn make(size: &str, options: &[&str]) -> Image {
    let temp = tempfile::tempdir().unwrap();
    let (tree, image) = (temp.path().join("tree"), temp.path().join("image"));
    std::fs::create_dir(&tree).unwrap();
    fill(&tree);
    let (tree, image) = (tree.to_str().unwrap(), image.to_str().unwrap());
    run(
        "mke2fs",
        &[
            &["-q", "-F", "-t", "ext4", "-d", tree],
            options,
            &[image, size],
        ]
        .concat(),
    );
    let value = "x".repeat(300);
    run(
        "debugfs",
        &[
            "-w",
            "-R",
            &format!("ea_set /sparse user.long {value}"),
            image,
        ],
    );
    run(
        "debugfs",
        &["-w", "-R", "ea_set /sparse user.short 1", image],
    );
    run("e2fsck", &["-fyD", image]);
    let bytes = std::fs::read(image).unwrap();
    let (raw, _) = RawSuperblock::ref_from_prefix(&bytes[1024..]).unwrap();
    let geometry = Geometry::try_from(raw).unwrap();
    Image { bytes, geometry }
}

impl Image {
    fn block(&self, nr: BlockNr) -> &[u8] {
        assert!(
            self.geometry.contains_block(nr),
            "{nr} is outside the volume"
        );
        let at = self.geometry.offset_of(nr) as usize;
        &self.bytes[at..at + self.geometry.block_size as usize]
    }

    fn desc(&self, group: GroupNr) -> RawGroupDesc {
        let (block, offset) = self.geometry.desc_location(group);
        let size = self.geometry.desc_size as usize;
        RawGroupDesc::from_slice(&self.block(block)[offset..offset + size])
    }

    fn inode(&self, inode: InodeNr) -> InodeBytes<&[u8]> {
        let (group, index) = self.geometry.inode_location(inode).unwrap();
        let (block, offset) = self.geometry.inode_table_offset(index);
        let block = self.desc(group).inode_table().plus(u64::from(block));
        let size = self.geometry.inode_size as usize;
        InodeBytes::new(&self.block(block)[offset..offset + size])
    }

    fn check(&self) -> Seen {
        let mut seen = Seen::default();
        let raw = RawSuperblock::ref_from_prefix(&self.bytes[1024..])
            .unwrap()
            .0;
        assert!(raw.verify_checksum());
        features::check(raw).unwrap();
        let mut free = [0u64; 2];
        for group in (0..self.geometry.groups_count()).map(GroupNr) {
            let desc = self.check_group(group, &mut seen);
            free[0] +=
                u64::from(desc.free_blocks_count()) * u64::from(self.geometry.cluster_blocks);
            free[1] += u64::from(desc.free_inodes_count());
        }
        assert_eq!(free[0], raw.free_blocks_count());
        assert_eq!(free[1], u64::from(raw.s_free_inodes_count.get()));
        self.check_journal();
        seen
    }

    fn check_group(&self, group: GroupNr, seen: &mut Seen) -> RawGroupDesc {
        let geometry = &self.geometry;
        let desc = self.desc(group);
        assert!(desc.verify_checksum(geometry, group), "group {group}");
        if !desc.flags().contains(GroupFlags::BLOCK_UNINIT) {
            assert!(desc.verify_block_bitmap(geometry, self.block(desc.block_bitmap())));
        }
        if geometry.has_superblock_backup(group) && group.0 > 0 {
            let first = geometry.group_first_block(group);
            let backup = RawSuperblock::ref_from_prefix(self.block(first)).unwrap().0;
            assert_eq!(
                backup.s_magic.get(),
                super::superblock::EXT4_MAGIC,
                "group {group}"
            );
            assert_eq!(u32::from(backup.s_block_group_nr.get()), group.0);
            assert!(backup.verify_checksum());
            seen.backups += 1;
        }
        if desc.flags().contains(GroupFlags::INODE_UNINIT) {
            return desc;
        }
        let bitmap = self.block(desc.inode_bitmap());
        assert!(desc.verify_inode_bitmap(geometry, bitmap));
        for index in 0..geometry.inodes_per_group {
            if bitmap[(index / 8) as usize] & 1 << (index % 8) != 0 {
                self.check_inode(geometry.inode_nr(group, index), seen);
            }
        }
        desc
    }

    fn check_inode(&self, nr: InodeNr, seen: &mut Seen) {
        let inode = self.inode(nr);
        if inode.mode() == 0 {
            return;
        }
        assert!(inode.verify_checksum(&self.geometry, nr), "inode {nr}");
        seen.inodes += 1;
        if inode.file_acl() != 0 {
            self.check_xattrs(BlockNr(inode.file_acl()));
            seen.xattrs += 1;
        }
        if !inode.flags().contains(InodeFlags::EXTENTS) {
            return;
        }
        let seed = self.geometry.inode_seed(nr, inode.generation());
        let blocks = self.walk(seed, inode.block_area(), seen);
        if Some(nr) == self.geometry.orphan_file_inode {
            for &block in &blocks {
                assert!(orphan::has_magic(self.block(block)));
                assert!(orphan::verify_checksum(seed, block, self.block(block)));
                seen.orphan_blocks += 1;
            }
        }
        if inode.mode() & S_IFMT == S_IFDIR {
            let indexed = inode.flags().contains(InodeFlags::INDEX);
            for (n, &block) in blocks.iter().enumerate() {
                self.check_dir_block(seed, self.block(block), indexed.then_some(n), seen);
            }
        }
    }

    /// Physical blocks of a file in logical order.
    fn walk(&self, seed: Option<u32>, node: &[u8], seen: &mut Seen) -> Vec<BlockNr> {
        let (header, rest) = RawExtentHeader::ref_from_prefix(node).unwrap();
        assert_eq!(header.eh_magic.get(), extent::EXTENT_MAGIC);
        let count = usize::from(header.eh_entries.get());
        if header.eh_depth.get() == 0 {
            let (leaves, _) = <[RawExtentLeaf]>::ref_from_prefix_with_elems(rest, count).unwrap();
            let blocks = |e: &RawExtentLeaf| {
                let start = e.physical();
                (0..e.len()).map(move |n| start.plus(u64::from(n)))
            };
            return leaves.iter().flat_map(blocks).collect();
        }
        let (indexes, _) = <[RawExtentIndex]>::ref_from_prefix_with_elems(rest, count).unwrap();
        let mut blocks = Vec::new();
        for index in indexes {
            let child = self.block(index.child());
            assert!(extent::verify_checksum(seed, child));
            seen.nodes += 1;
            blocks.extend(self.walk(seed, child, seen));
        }
        blocks
    }

    fn check_dir_block(
        &self,
        seed: Option<u32>,
        block: &[u8],
        index: Option<usize>,
        seen: &mut Seen,
    ) {
        let size = self.geometry.block_size;
        let first = RawDirent::ref_from_prefix(block).unwrap().0;
        let node = first.inode.get() == 0
            && dirent::decode_rec_len(first.rec_len.get(), size) == size as usize;
        let root = index == Some(0);
        if root || node && index.is_some() && dirent::RawDirTail::of_block(block).is_none() {
            let offset = if root {
                htree::ROOT_ENTRIES_OFFSET
            } else {
                htree::NODE_ENTRIES_OFFSET
            };
            let counts = htree::RawDxCountLimit::ref_from_prefix(&block[offset..])
                .unwrap()
                .0;
            assert_eq!(
                counts.limit.get(),
                htree::entry_limit(size, offset, seed.is_some())
            );
            assert!(htree::verify_checksum(seed, block, offset));
            seen.indexed += 1;
        } else {
            assert!(dirent::verify_checksum(seed, block));
            seen.linear += 1;
        }
    }

    fn check_xattrs(&self, nr: BlockNr) {
        let block = self.block(nr);
        assert!(xattr::verify_checksum(self.geometry.csum_seed, nr, block));
        let (header, _) = xattr::RawXattrHeader::ref_from_prefix(block).unwrap();
        assert_eq!(header.h_magic.get(), xattr::XATTR_MAGIC);
        let mut at = size_of::<xattr::RawXattrHeader>();
        let mut hashes = Vec::new();
        while block[at..at + 4] != [0; 4] {
            let (entry, rest) = xattr::RawXattrEntry::ref_from_prefix(&block[at..]).unwrap();
            let name = &rest[..usize::from(entry.e_name_len)];
            let from = usize::from(entry.e_value_offs.get());
            let value = &block[from..from + entry.e_value_size.get() as usize];
            assert_eq!(entry.e_hash.get(), xattr::entry_hash(name, value));
            hashes.push(entry.e_hash.get());
            at += xattr::entry_size(name.len());
        }
        assert!(!hashes.is_empty());
        // e2fsprogs leaves the hash of the whole block out; Linux sets it.
        assert!([0, xattr::block_hash(hashes)].contains(&header.h_hash.get()));
    }

    fn check_journal(&self) {
        let Some(inode) = self.geometry.journal_inode else {
            return;
        };
        let inode = self.inode(inode);
        if !inode.flags().contains(InodeFlags::EXTENTS) {
            return;
        }
        let blocks = self.walk(None, inode.block_area(), &mut Seen::default());
        let raw = journal::RawJournalSuperblock::ref_from_prefix(self.block(blocks[0]))
            .unwrap()
            .0;
        raw.check(self.geometry.block_size, blocks.len() as u32)
            .unwrap();
        assert_eq!(raw.s_maxlen.get() as usize, blocks.len());
    }
}

/// Makes an image, checks all of it, and that the interesting structures were there.
fn check(size: &str, options: &[&str]) -> (Image, Seen) {
    let image = make(size, options);
    let seen = image.check();
    // Blocks of 64 KiB are larger than the holes of the sparse file: it has one extent.
    let deep = seen.nodes > 0 || image.geometry.block_size == 65536;
    assert!(seen.inodes > 400 && deep && seen.linear > 0, "{seen:?}");
    (image, seen)
}

#[test]
fn default_image() {
    let (image, seen) = check("300M", &["-b", "4096"]);
    assert_eq!(
        (image.geometry.block_size, image.geometry.desc_size),
        (4096, 64)
    );
    assert!(
        seen.indexed > 0 && seen.xattrs > 0 && seen.backups == 1,
        "{seen:?}"
    );
    assert!(image.geometry.csum_seed.is_some());
}

#[test]
fn blocks_of_1k() {
    let (image, seen) = check("64M", &["-b", "1024"]);
    assert_eq!(image.geometry.first_data_block, 1);
    assert!(seen.backups >= 4 && seen.indexed > 0, "{seen:?}");
}

#[test]
fn blocks_of_64k() {
    let (image, seen) = check("300M", &["-b", "65536", "-O", "^has_journal"]);
    assert_eq!(image.geometry.block_size, 65536);
    assert!(seen.linear > 0);
}

#[test]
fn short_descriptors() {
    for options in [
        "^64bit",
        "^64bit,^metadata_csum,uninit_bg",
        "^64bit,^metadata_csum",
    ] {
        let (image, _) = check("64M", &["-b", "1024", "-O", options]);
        assert_eq!(image.geometry.desc_size, 32);
        assert_eq!(
            image.geometry.has_gdt_csum(),
            options.ends_with("uninit_bg")
        );
    }
}

#[test]
fn crc16_of_long_descriptors() {
    let (image, _) = check(
        "64M",
        &["-b", "1024", "-O", "64bit,^metadata_csum,uninit_bg"],
    );
    assert!(image.geometry.has_gdt_csum() && image.geometry.desc_size == 64);
}

#[test]
fn small_inodes() {
    let (image, _) = check("64M", &["-I", "128"]);
    assert_eq!(
        (image.geometry.inode_size, image.geometry.want_extra_isize),
        (128, 0)
    );
}

#[test]
fn large_inodes() {
    let (image, _) = check("64M", &["-I", "1024"]);
    assert_eq!(image.geometry.inode_size, 1024);
}

#[test]
fn meta_block_groups() {
    let (image, _) = check(
        "64M",
        &["-b", "1024", "-O", "meta_bg,^resize_inode", "-g", "512"],
    );
    assert!(image.geometry.incompat.contains(Incompat::META_BG));
    assert!(image.geometry.desc_blocks() > 2);
}

#[test]
fn seed_in_the_superblock_and_orphan_file() {
    let (image, seen) = check("64M", &["-O", "metadata_csum_seed,orphan_file"]);
    assert!(image.geometry.incompat.contains(Incompat::CSUM_SEED));
    assert!(seen.orphan_blocks > 0, "{seen:?}");
}

#[test]
fn two_backups() {
    let (image, seen) = check("64M", &["-b", "1024", "-O", "sparse_super2"]);
    assert!(image.geometry.compat.contains(Compat::SPARSE_SUPER2));
    assert_eq!(seen.backups, 2);
}

#[test]
fn clusters() {
    let (image, _) = check("300M", &["-O", "bigalloc"]);
    assert_eq!(image.geometry.cluster_blocks, 16);
}

#[test]
fn damage_is_noticed() {
    let mut image = make("64M", &[]);
    let (block, offset) = image.geometry.desc_location(GroupNr(0));
    let at = image.geometry.offset_of(block) as usize + offset;
    image.bytes[at + 12] ^= 1;
    assert!(
        !image
            .desc(GroupNr(0))
            .verify_checksum(&image.geometry, GroupNr(0))
    );
    image.bytes[at + 12] ^= 1;
    let root = InodeNr::ROOT;
    let mut inode = InodeBytes::new(image.inode(root).bytes().to_vec());
    assert!(inode.verify_checksum(&image.geometry, root));
    inode.set_uid(7);
    assert!(!inode.verify_checksum(&image.geometry, root));
    inode.update_checksum(&image.geometry, root);
    assert!(inode.verify_checksum(&image.geometry, root));
    let mut raw = RawSuperblock::read_from_prefix(&image.bytes[1024..])
        .unwrap()
        .0;
    raw.s_blocks_count_lo.set(7);
    assert!(!raw.verify_checksum());
    assert!(Geometry::try_from(&raw).is_err());
    raw.update_checksum();
    assert!(Geometry::try_from(&raw).is_err());
}
