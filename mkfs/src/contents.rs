//! The bytes of a new file system's inodes, directories and extent trees. Pure.

use crate::plan::{FilePlan, LOST_FOUND_INODE, ORPHAN_INODE, Plan};
use kfs::layout::dirent::{DIR_TAIL_SIZE, RawDirent, encode_rec_len, update_checksum};
use kfs::layout::extent::{ENTRY_SIZE, ROOT_ENTRIES, RawExtentIndex, RawExtentLeaf};
use kfs::layout::features::Incompat;
use kfs::layout::inode::{S_IFDIR, S_IFREG};
use kfs::layout::journal::RawJournalSuperblock;
use kfs::layout::{FileType, Geometry, InodeBytes, InodeFlags, RawExtentHeader, extent, orphan};
use kfs::{BlockNr, InodeNr, LogicalBlock};
use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

/// A block to be written.
pub(crate) type Block = (BlockNr, Vec<u8>);

/// Inode 1 holds the bad blocks, of which there are none.
const BAD_BLOCKS_INODE: InodeNr = InodeNr(1);
/// Generation of all inodes that mkfs makes.
const GENERATION: u32 = 0;

/// The inodes in use that are not empty.
pub(crate) fn inodes(plan: &Plan) -> Vec<(InodeNr, InodeBytes<Vec<u8>>)> {
    let mut inodes = vec![
        (BAD_BLOCKS_INODE, bad_blocks_inode(plan)),
        (InodeNr::ROOT, directory_inode(plan, &plan.root, 0o755, 3)),
        (
            LOST_FOUND_INODE,
            directory_inode(plan, &plan.lost_found, 0o700, 2),
        ),
    ];
    let (uid, gid) = plan.root_owner;
    inodes[1].1.set_uid(uid);
    inodes[1].1.set_gid(gid);
    let file = |file: &FilePlan| file_inode(plan, file, S_IFREG | 0o600, 1);
    inodes.extend(
        plan.journal
            .as_ref()
            .map(|journal| (InodeNr::JOURNAL, file(journal))),
    );
    inodes.extend(
        plan.orphan
            .as_ref()
            .map(|orphan| (ORPHAN_INODE, file(orphan))),
    );
    for (nr, inode) in &mut inodes {
        inode.update_checksum(&plan.geometry, *nr);
    }
    inodes
}

fn bad_blocks_inode(plan: &Plan) -> InodeBytes<Vec<u8>> {
    let mut inode = InodeBytes::new(vec![0; plan.geometry.inode_size as usize]);
    inode.set_atime(plan.time);
    inode.set_mtime(plan.time);
    inode.set_ctime(plan.time);
    inode
}

fn directory_inode(plan: &Plan, file: &FilePlan, mode: u16, links: u16) -> InodeBytes<Vec<u8>> {
    file_inode(plan, file, S_IFDIR | mode, links)
}

fn file_inode(plan: &Plan, file: &FilePlan, mode: u16, links: u16) -> InodeBytes<Vec<u8>> {
    let geometry = &plan.geometry;
    let mut inode = InodeBytes::new(vec![0; geometry.inode_size as usize]);
    inode.clear(geometry.want_extra_isize);
    inode.set_mode(mode);
    inode.set_links_count(links);
    inode.set_size_bytes(file.data_blocks() * u64::from(geometry.block_size));
    inode.set_generation(GENERATION);
    inode.set_flags(InodeFlags::EXTENTS);
    let blocks = file.data_blocks() + u64::from(file.leaf.is_some());
    inode
        .set_blocks_512(geometry, blocks * u64::from(geometry.block_size / 512))
        .expect("the files of a new file system are small");
    inode.set_atime(plan.time);
    inode.set_mtime(plan.time);
    inode.set_ctime(plan.time);
    inode.set_crtime(plan.time);
    fill_block_area(file, inode.block_area_mut());
    inode
}

/// Writes header and entries to the start of a node.
fn fill_leaf(file: &FilePlan, max: u16, node: &mut [u8]) {
    let mut header = RawExtentHeader::new(max, 0);
    header.eh_entries = U16::new(file.extents.len() as u16);
    node[..ENTRY_SIZE].copy_from_slice(header.as_bytes());
    let mut logical = LogicalBlock(0);
    for (entry, run) in node[ENTRY_SIZE..]
        .chunks_exact_mut(ENTRY_SIZE)
        .zip(&file.extents)
    {
        let leaf = RawExtentLeaf::new(logical, run.start, run.len, false);
        entry.copy_from_slice(leaf.as_bytes());
        logical = logical
            .checked_plus(run.len)
            .expect("below the largest file");
    }
}

fn fill_block_area(file: &FilePlan, area: &mut [u8]) {
    let Some(leaf) = file.leaf else {
        fill_leaf(file, ROOT_ENTRIES, area);
        return;
    };
    let mut header = RawExtentHeader::new(ROOT_ENTRIES, 1);
    header.eh_entries = U16::new(1);
    area[..ENTRY_SIZE].copy_from_slice(header.as_bytes());
    let index = RawExtentIndex::new(LogicalBlock(0), leaf);
    area[ENTRY_SIZE..2 * ENTRY_SIZE].copy_from_slice(index.as_bytes());
}

/// `s_jnl_blocks`: the block area and the size of the journal's inode, for e2fsck to restore it.
pub(crate) fn journal_backup(plan: &Plan, file: &FilePlan) -> [U32; 17] {
    let inode = file_inode(plan, file, S_IFREG | 0o600, 1);
    let mut backup = [U32::new(0); 17];
    for (word, bytes) in backup.iter_mut().zip(inode.block_area().chunks_exact(4)) {
        word.as_mut_bytes().copy_from_slice(bytes);
    }
    backup[15] = inode.raw().i_size_high;
    backup[16] = inode.raw().i_size_lo;
    backup
}

/// All blocks of files and extent trees that have content.
pub(crate) fn file_blocks(plan: &Plan) -> Vec<Block> {
    let mut blocks = root_blocks(plan);
    blocks.extend(lost_found_blocks(plan));
    if let Some(journal) = &plan.journal {
        blocks.push(journal_superblock(plan, journal));
        blocks.extend(leaf_block(plan, InodeNr::JOURNAL, journal));
    }
    if let Some(file) = &plan.orphan {
        let seed = plan.geometry.inode_seed(ORPHAN_INODE, GENERATION);
        blocks.extend(file.blocks().map(|nr| {
            let mut block = empty_block(&plan.geometry);
            orphan::update_tail(seed, nr, &mut block);
            (nr, block)
        }));
        blocks.extend(leaf_block(plan, ORPHAN_INODE, file));
    }
    blocks
}

fn empty_block(geometry: &Geometry) -> Vec<u8> {
    vec![0; geometry.block_size as usize]
}

fn leaf_block(plan: &Plan, inode: InodeNr, file: &FilePlan) -> Option<Block> {
    let nr = file.leaf?;
    let mut block = empty_block(&plan.geometry);
    fill_leaf(
        file,
        RawExtentHeader::block_entries(plan.geometry.block_size),
        &mut block,
    );
    extent::update_checksum(plan.geometry.inode_seed(inode, GENERATION), &mut block);
    Some((nr, block))
}

fn journal_superblock(plan: &Plan, journal: &FilePlan) -> Block {
    let geometry = &plan.geometry;
    let len = u32::try_from(journal.data_blocks()).expect("journals are limited");
    let raw = RawJournalSuperblock::new(geometry.block_size, len, geometry.uuid);
    let mut block = empty_block(geometry);
    block[..1024].copy_from_slice(raw.as_bytes());
    (journal.extents[0].start, block)
}

/// Makes a directory block of these entries; the last one takes the rest.
fn directory_block(plan: &Plan, owner: InodeNr, entries: &[(InodeNr, &[u8])]) -> Vec<u8> {
    let geometry = &plan.geometry;
    let mut block = empty_block(geometry);
    let seed = geometry.inode_seed(owner, GENERATION);
    let end = block.len() - if seed.is_some() { DIR_TAIL_SIZE } else { 0 };
    let has_type = geometry.incompat.contains(Incompat::FILETYPE);
    let mut at = 0;
    for (n, (inode, name)) in entries.iter().enumerate() {
        let size = kfs::layout::dirent::dirent_size(name.len());
        let rec_len = if n + 1 == entries.len() {
            end - at
        } else {
            size
        };
        let file_type = if has_type && inode.0 != 0 {
            FileType::Directory
        } else {
            FileType::Unknown
        };
        let dirent = RawDirent {
            inode: U32::new(inode.0),
            rec_len: U16::new(encode_rec_len(rec_len, geometry.block_size)),
            name_len: name.len() as u8,
            file_type: file_type as u8,
        };
        block[at..at + 8].copy_from_slice(dirent.as_bytes());
        block[at + 8..at + 8 + name.len()].copy_from_slice(name);
        at += rec_len;
    }
    update_checksum(seed, &mut block);
    block
}

fn root_blocks(plan: &Plan) -> Vec<Block> {
    let root = InodeNr::ROOT;
    let entries: [(InodeNr, &[u8]); 3] = [
        (root, b"."),
        (root, b".."),
        (LOST_FOUND_INODE, b"lost+found"),
    ];
    let block = directory_block(plan, root, &entries);
    plan.root.blocks().map(|nr| (nr, block.clone())).collect()
}

fn lost_found_blocks(plan: &Plan) -> Vec<Block> {
    let owner = LOST_FOUND_INODE;
    let first = directory_block(plan, owner, &[(owner, b"."), (InodeNr::ROOT, b"..")]);
    let empty = directory_block(plan, owner, &[(InodeNr(0), b"")]);
    let content = |n: usize| if n == 0 { first.clone() } else { empty.clone() };
    plan.lost_found
        .blocks()
        .enumerate()
        .map(|(n, nr)| (nr, content(n)))
        .collect()
}
