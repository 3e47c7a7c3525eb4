//! Adding a name to a hash tree, making room by splitting what is full from the root downwards, so
//! that a block that is split always finds room in the one above.

use super::super::block::{self, Entries, NewEntry, Place};
use super::super::{Directory, DirectoryBlocks, NameHasher};
use super::search::{Path, PathNode, Root};
use super::split::{Hashed, LeafSplit, split_leaf};
use super::{index_count, insert_index_entry, set_index_count};
use crate::error::{Error, Result};
use crate::ids::{InodeNr, LogicalBlock};
use crate::layout::dirent::{RawDirent, encode_rec_len};
use crate::layout::htree::{
    DX_ENTRY_SIZE, NODE_ENTRIES_OFFSET, ROOT_ENTRIES_OFFSET, ROOT_INFO_OFFSET, ROOT_INFO_SIZE,
    RawDxCountLimit, RawDxEntry, RawDxRootInfo, entry_limit, update_checksum,
};
use crate::storage::{Buffer, Handle};
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

impl<B: DirectoryBlocks> Directory<B> {
    pub(in crate::dir) fn add_to_tree(
        &mut self,
        handle: &mut Handle<'_>,
        entry: &NewEntry<'_>,
    ) -> Result<()> {
        let root = self.root()?;
        let hash = root.hasher.hash(entry.name).major;
        let path = self.probe(&root, hash)?;
        let block = path.leaf();
        let buffer = self.leaf_block(block)?;
        let place = {
            let bytes = buffer.read();
            block::find_place(Entries::of_leaf(&self.format, block, &bytes), entry.name)?
        };
        if place == Place::Taken
            || (path.continues(hash) && self.find_in_tree(entry.name)?.is_some())
        {
            return Err(Error::Exists);
        }
        if let Place::At(offset) = place {
            self.insert_into(handle, block, &buffer, offset, entry);
            return Ok(());
        }
        let content = buffer.freeze();
        let hashed = self.hashed_entries(&root.hasher, block, &content, entry)?;
        let size: usize = hashed.iter().map(|(_, entry)| entry.size()).sum();
        if size <= self.format.leaf_len() {
            let packed = block::pack(&self.format, hashed.iter().map(|&(_, entry)| entry));
            handle.get_write_access(&buffer).copy_from_slice(&packed);
            return Ok(());
        }
        self.prepare_split(&root, &path)?;
        let split = split_leaf(&self.format, hashed);
        self.apply_split(handle, path, &buffer, &split);
        Ok(())
    }

    /// The used entries of a leaf and one more, with their hashes.
    fn hashed_entries<'b>(
        &self,
        hasher: &NameHasher,
        block: LogicalBlock,
        bytes: &'b [u8],
        entry: &NewEntry<'b>,
    ) -> Result<Vec<Hashed<'b>>> {
        let mut hashed = vec![(hasher.hash(entry.name).major, *entry)];
        for entry in Entries::of_leaf(&self.format, block, bytes) {
            let entry = entry?;
            if entry.is_used() {
                hashed.push((hasher.hash(entry.name).major, entry.to_new()));
            }
        }
        Ok(hashed)
    }

    /// Reserves the blocks for a split of the path's leaf and of the full index blocks above.
    fn prepare_split(&mut self, root: &Root, path: &Path) -> Result<()> {
        let full = full_nodes(path);
        if full == path.nodes.len() && root.levels >= self.levels_max() {
            return Err(Error::NoSpace);
        }
        // A full root needs one block as well: for the level that goes below it.
        let appends = 1 + full as u32;
        self.blocks.prepare(appends)
    }

    /// Cannot fail: the blocks are prepared and all buffers at hand.
    fn apply_split(
        &mut self,
        handle: &mut Handle<'_>,
        mut path: Path,
        leaf: &Arc<Buffer>,
        split: &LeafSplit,
    ) {
        let mut full = full_nodes(&path);
        if full == path.nodes.len() {
            self.add_level(handle, &mut path);
            // A node has more room than the root, so that the new one is not full.
            full -= 1;
        }
        for depth in path.nodes.len() - full..path.nodes.len() {
            self.split_node(handle, &mut path, depth);
        }
        let (block, upper) = self.blocks.append(handle);
        handle
            .get_create_access(&upper)
            .copy_from_slice(&split.upper);
        handle.get_write_access(leaf).copy_from_slice(&split.lower);
        let node = path.nodes.last_mut().expect("a path has its root");
        self.insert_behind(handle, node, split.hash, block);
    }

    /// Puts an index entry behind the one that the path takes in `node`.
    fn insert_behind(
        &self,
        handle: &mut Handle<'_>,
        node: &mut PathNode,
        hash: u32,
        block: LogicalBlock,
    ) {
        let mut bytes = handle.get_write_access(&node.buffer);
        insert_index_entry(&mut bytes, node.entries_offset, node.at, hash, block.0);
        update_checksum(self.format.checksum_seed, &mut bytes, node.entries_offset);
        node.count += 1;
    }

    /// Moves all entries of the root into a new node, which becomes its only child.
    fn add_level(&mut self, handle: &mut Handle<'_>, path: &mut Path) {
        let (block, buffer) = self.blocks.append(handle);
        let root = &mut path.nodes[0];
        let entries = {
            let bytes = root.buffer.read();
            bytes[ROOT_ENTRIES_OFFSET..][..root.count * DX_ENTRY_SIZE].to_vec()
        };
        let limit = self.write_node(handle, &buffer, &entries);
        {
            let mut bytes = handle.get_write_access(&root.buffer);
            let (info, _) = RawDxRootInfo::mut_from_prefix(&mut bytes[ROOT_INFO_OFFSET..])
                .expect("a block is longer than a root's info");
            info.indirect_levels += 1;
            set_index_count(&mut bytes[ROOT_ENTRIES_OFFSET..], 1);
            set_first_child(&mut bytes[ROOT_ENTRIES_OFFSET..], block);
            update_checksum(self.format.checksum_seed, &mut bytes, ROOT_ENTRIES_OFFSET);
        }
        let (at, count) = (root.at, root.count);
        (root.at, root.count) = (0, 1);
        let entries_offset = NODE_ENTRIES_OFFSET;
        let node = PathNode {
            buffer,
            entries_offset,
            at,
            count,
            limit,
            block,
        };
        path.nodes.insert(1, node);
    }

    /// Moves the upper half of a full node into a new one behind it. The parent has room.
    fn split_node(&mut self, handle: &mut Handle<'_>, path: &mut Path, depth: usize) {
        let (block, buffer) = self.blocks.append(handle);
        let (parents, nodes) = path.nodes.split_at_mut(depth);
        let (parent, node) = (
            parents.last_mut().expect("the root is not split"),
            &mut nodes[0],
        );
        let keep = node.count / 2;
        let (entries, hash) = {
            let bytes = node.buffer.read();
            let used = &bytes[NODE_ENTRIES_OFFSET..][..node.count * DX_ENTRY_SIZE];
            let upper = used[keep * DX_ENTRY_SIZE..].to_vec();
            let (first, _) = RawDxEntry::ref_from_prefix(&upper).expect("half of a full node");
            let hash = first.hash.get();
            (upper, hash)
        };
        let limit = self.write_node(handle, &buffer, &entries);
        {
            let mut bytes = handle.get_write_access(&node.buffer);
            set_index_count(&mut bytes[NODE_ENTRIES_OFFSET..], keep);
            update_checksum(self.format.checksum_seed, &mut bytes, NODE_ENTRIES_OFFSET);
        }
        self.insert_behind(handle, parent, hash, block);
        let moved = node.count - keep;
        node.count = keep;
        if node.at >= keep {
            parent.at += 1;
            let (at, entries_offset) = (node.at - keep, NODE_ENTRIES_OFFSET);
            *node = PathNode {
                buffer,
                entries_offset,
                at,
                count: moved,
                limit,
                block,
            };
        }
    }

    /// Makes an inner node of these entries; tells how many it can hold.
    fn write_node(&self, handle: &mut Handle<'_>, buffer: &Arc<Buffer>, entries: &[u8]) -> usize {
        let block_size = self.format.block_size;
        let seed = self.format.checksum_seed;
        let limit = entry_limit(block_size, NODE_ENTRIES_OFFSET, seed.is_some());
        let unused = RawDirent {
            inode: 0.into(),
            rec_len: encode_rec_len(block_size as usize, block_size).into(),
            name_len: 0,
            file_type: 0,
        };
        let mut bytes = handle.get_create_access(buffer);
        bytes[..NODE_ENTRIES_OFFSET].copy_from_slice(unused.as_bytes());
        bytes[NODE_ENTRIES_OFFSET..][..entries.len()].copy_from_slice(entries);
        let count = (entries.len() / DX_ENTRY_SIZE) as u16;
        set_counts(&mut bytes[NODE_ENTRIES_OFFSET..], limit, count);
        update_checksum(seed, &mut bytes, NODE_ENTRIES_OFFSET);
        usize::from(limit)
    }

    /// Turns a linear directory of one full block into a hash tree of two leaves, with one name
    /// more. A block that is full only by its gaps is packed and stays linear.
    pub(in crate::dir) fn convert_to_tree(
        &mut self,
        handle: &mut Handle<'_>,
        hasher: &NameHasher,
        entry: &NewEntry<'_>,
    ) -> Result<()> {
        let buffer = self.leaf_block(LogicalBlock(0))?;
        let content = buffer.freeze();
        let (own, parent) = block::dots(&self.format, &content)?;
        let dots = self.dot_entries(own, parent);
        let mut hashed = self.hashed_entries(hasher, LogicalBlock(0), &content, entry)?;
        hashed.retain(|(_, entry)| !super::super::name::is_dot(entry.name));
        let size: usize = dots
            .iter()
            .chain(hashed.iter().map(|(_, e)| e))
            .map(NewEntry::size)
            .sum();
        if size <= self.format.leaf_len() {
            let entries = hashed.iter().map(|&(_, entry)| entry);
            let packed = block::pack(&self.format, dots.into_iter().chain(entries));
            handle.get_write_access(&buffer).copy_from_slice(&packed);
            return Ok(());
        }
        self.blocks.prepare(2)?;
        let split = split_leaf(&self.format, hashed);
        let (lower_block, lower) = self.blocks.append(handle);
        handle
            .get_create_access(&lower)
            .copy_from_slice(&split.lower);
        let (upper_block, upper) = self.blocks.append(handle);
        handle
            .get_create_access(&upper)
            .copy_from_slice(&split.upper);
        let mut root = self.new_root(own, parent, lower_block);
        insert_index_entry(&mut root, ROOT_ENTRIES_OFFSET, 0, split.hash, upper_block.0);
        update_checksum(self.format.checksum_seed, &mut root, ROOT_ENTRIES_OFFSET);
        handle.get_write_access(&buffer).copy_from_slice(&root);
        self.blocks.set_indexed(handle, true);
        Ok(())
    }

    /// The root of a tree of one leaf, without checksum.
    fn new_root(&self, own: InodeNr, parent: InodeNr, leaf: LogicalBlock) -> Vec<u8> {
        let block_size = self.format.block_size;
        // Packed without a tail, `..` spans the rest of the block.
        let without_tail = super::super::DirectoryFormat {
            checksum_seed: None,
            ..self.format
        };
        let mut bytes = block::pack(&without_tail, self.dot_entries(own, parent));
        let info = RawDxRootInfo {
            reserved_zero: 0.into(),
            hash_version: self.format.default_hash_version,
            info_length: ROOT_INFO_SIZE,
            indirect_levels: 0,
            unused_flags: 0,
        };
        info.write_to_prefix(&mut bytes[ROOT_INFO_OFFSET..])
            .expect("a block is longer than a root's info");
        let has_checksum = self.format.checksum_seed.is_some();
        let limit = entry_limit(block_size, ROOT_ENTRIES_OFFSET, has_checksum);
        set_counts(&mut bytes[ROOT_ENTRIES_OFFSET..], limit, 1);
        set_first_child(&mut bytes[ROOT_ENTRIES_OFFSET..], leaf);
        bytes
    }
}

/// Index blocks at the end of the path that have no room.
fn full_nodes(path: &Path) -> usize {
    path.nodes
        .iter()
        .rev()
        .take_while(|node| node.count >= node.limit)
        .count()
}

fn set_counts(entries: &mut [u8], limit: u16, count: u16) {
    let counts = RawDxCountLimit {
        limit: limit.into(),
        count: count.into(),
    };
    counts.write_to_prefix(entries).expect("an index block");
    debug_assert_eq!(index_count(entries), usize::from(count));
}

fn set_first_child(entries: &mut [u8], block: LogicalBlock) {
    let (first, _) = RawDxEntry::mut_from_prefix(entries).expect("an index block");
    first.block = block.0.into();
}
