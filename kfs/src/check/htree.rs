//! Hash trees of directories: every index block, and which hashes each leaf may have.

use super::Checker;
use super::directories::Map;
use super::report::FindingKind;
use crate::corrupt::Corrupt;
use crate::dir::block::{self, Entries};
use crate::dir::htree::Index;
use crate::dir::{DirectoryFormat, NameHasher};
use crate::error::Result;
use crate::ids::{InodeNr, LogicalBlock};
use crate::layout::dirent::dirent_size;
use crate::layout::htree::{
    HASH_TEA, MAX_LEVELS, MAX_LEVELS_LARGE, NODE_ENTRIES_OFFSET, ROOT_ENTRIES_OFFSET,
    ROOT_INFO_OFFSET, ROOT_INFO_SIZE, RawDxRootInfo, entry_limit, verify_checksum,
};
use std::collections::HashMap;
use zerocopy::FromBytes;

/// `unused_flags` of the root: a tree that no reader knows.
const FLAG_INCOMPATIBLE: u8 = 1;

/// The hashes that the parent's entries give to a block. Bit 0 of either says that the hash itself
/// may lie on both sides.
#[derive(Clone, Copy, Debug)]
struct Range {
    low: u32,
    /// `None` for the last.
    high: Option<u32>,
}

impl Range {
    fn contains(self, hash: u32) -> bool {
        let is_below = self.high.is_none_or(|high| {
            let bound = high & !1;
            hash < bound || hash == bound && high & 1 == 1
        });
        hash >= self.low & !1 && is_below
    }

    /// Whether an index entry with this hash may be below.
    fn contains_entry(self, hash: u32) -> bool {
        hash & !1 >= self.low & !1 && self.high.is_none_or(|high| hash <= high)
    }
}

#[derive(Clone, Copy, Debug)]
enum Role {
    Index,
    Leaf(Range),
}

/// What the tree says of the directory's blocks.
pub(super) struct Tree {
    hasher: NameHasher,
    roles: HashMap<u32, Role>,
}

impl Tree {
    /// Whether a block is part of the tree itself.
    pub(super) fn is_index(&self, block: LogicalBlock) -> bool {
        matches!(self.roles.get(&block.0), Some(Role::Index))
    }

    /// The damage if a name does not belong into its block.
    pub(super) fn misplaced(
        &self,
        inode: InodeNr,
        block: LogicalBlock,
        name: &[u8],
    ) -> Option<Corrupt> {
        let Some(Role::Leaf(range)) = self.roles.get(&block.0) else {
            return None;
        };
        let hash = self.hasher.hash(name).major;
        (!range.contains(hash)).then_some(Corrupt::HtreeHash { inode, block, hash })
    }
}

/// A walk down a tree.
struct Walk<'w> {
    format: &'w DirectoryFormat,
    map: &'w Map,
    roles: HashMap<u32, Role>,
}

impl Checker<'_> {
    /// Checks the index blocks. `None` when the root is damaged.
    pub(super) fn check_tree(
        &mut self,
        format: &DirectoryFormat,
        map: &Map,
    ) -> Result<Option<Tree>> {
        let nr = format.inode;
        let Some(root) = map.find(0) else {
            return Ok(None);
        };
        let bytes = self.image.read(root, 1)?;
        let info = RawDxRootInfo::ref_from_prefix(&bytes[ROOT_INFO_OFFSET..]);
        let (info, _) = info.expect("a block is longer");
        let levels_max = if format.large_dir {
            MAX_LEVELS_LARGE
        } else {
            MAX_LEVELS
        };
        let levels = info.indirect_levels;
        let hasher = NameHasher::new(info.hash_version, format.hash_unsigned, format.hash_seed);
        let is_sound = info.reserved_zero.get() == 0
            && info.info_length == ROOT_INFO_SIZE
            && levels <= levels_max
            && info.hash_version <= HASH_TEA
            && info.unused_flags & FLAG_INCOMPATIBLE == 0
            && has_root_shape(format, &bytes);
        let (true, Ok(hasher)) = (is_sound, hasher) else {
            let info_length = info.info_length;
            let damage = Corrupt::HtreeRoot {
                inode: nr,
                info_length,
                levels,
            };
            self.findings.corrupt(FindingKind::HashTree, nr, &damage);
            return Ok(None);
        };
        let mut walk = Walk {
            format,
            map,
            roles: HashMap::from([(0, Role::Index)]),
        };
        let range = Range { low: 0, high: None };
        let root = LogicalBlock(0);
        self.check_index(&mut walk, root, &bytes, ROOT_ENTRIES_OFFSET, range, levels)?;
        let roles = walk.roles;
        for block in 1..map.end() as u32 {
            if !roles.contains_key(&block) && map.find(block).is_some() {
                let text = format!("block {block} is in no place of the hash tree");
                self.findings.inode(FindingKind::HashTree, nr, text);
            }
        }
        Ok(Some(Tree { hasher, roles }))
    }

    /// Checks an index block and all below; `levels` index blocks come between it and a leaf.
    fn check_index(
        &mut self,
        walk: &mut Walk<'_>,
        block: LogicalBlock,
        bytes: &[u8],
        entries_offset: usize,
        range: Range,
        levels: u8,
    ) -> Result<()> {
        let format = walk.format;
        let nr = format.inode;
        let fits = entry_limit(
            format.block_size,
            entries_offset,
            format.checksum_seed.is_some(),
        );
        let index = match Index::parse(bytes, entries_offset, fits) {
            Ok(index) => index,
            Err((limit, count)) => {
                let damage = Corrupt::HtreeCounts {
                    inode: nr,
                    block,
                    limit,
                    count,
                };
                self.findings.corrupt(FindingKind::HashTree, nr, &damage);
                return Ok(());
            }
        };
        if !verify_checksum(format.checksum_seed, bytes, entries_offset) {
            let damage = Corrupt::DirectoryChecksum { inode: nr, block };
            self.findings.corrupt(FindingKind::HashTree, nr, &damage);
        }
        let hash_of = |at: usize| if at == 0 { range.low } else { index.hash(at) };
        let is_within = (1..index.count()).all(|at| range.contains_entry(index.hash(at)));
        if !index.is_sorted() || !is_within {
            let damage = Corrupt::HtreeOrder { inode: nr, block };
            self.findings.corrupt(FindingKind::HashTree, nr, &damage);
        }
        for at in 0..index.count() {
            let high = if at + 1 < index.count() {
                Some(hash_of(at + 1))
            } else {
                range.high
            };
            let low = hash_of(at);
            let below = Range { low, high };
            self.check_child(walk, block, index.child(at), below, levels)?;
        }
        Ok(())
    }

    fn check_child(
        &mut self,
        walk: &mut Walk<'_>,
        parent: LogicalBlock,
        child: u32,
        range: Range,
        levels: u8,
    ) -> Result<()> {
        let nr = walk.format.inode;
        let role = if levels == 0 {
            Role::Leaf(range)
        } else {
            Role::Index
        };
        let place = walk.map.find(child);
        let (Some(place), false) = (place, walk.roles.contains_key(&child)) else {
            let damage = Corrupt::HtreeChild {
                inode: nr,
                block: parent,
                child,
            };
            self.findings.corrupt(FindingKind::HashTree, nr, &damage);
            return Ok(());
        };
        walk.roles.insert(child, role);
        if levels == 0 {
            return Ok(());
        }
        let bytes = self.image.read(place, 1)?;
        let block = LogicalBlock(child);
        if !has_node_shape(walk.format, &bytes) {
            let text = format!("block {child} is no index block of the hash tree");
            self.findings.inode(FindingKind::HashTree, nr, text);
            return Ok(());
        }
        self.check_index(walk, block, &bytes, NODE_ENTRIES_OFFSET, range, levels - 1)
    }
}

/// Whether the entries of a root are `.` and one `..` that spans the rest.
fn has_root_shape(format: &DirectoryFormat, bytes: &[u8]) -> bool {
    let mut entries = Entries::of_root(format, bytes);
    let block_size = format.block_size as usize;
    block::dots(format, bytes).is_ok()
        && matches!(entries.next(), Some(Ok(dot)) if dot.rec_len == dirent_size(1))
        && matches!(entries.next(), Some(Ok(dots)) if dots.rec_len == block_size - dirent_size(1))
}

/// Whether an inner index block looks like one unused entry.
fn has_node_shape(format: &DirectoryFormat, bytes: &[u8]) -> bool {
    matches!(Entries::of_root(format, bytes).next(), Some(Ok(entry)) if !entry.is_used() && entry.rec_len == bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_hashes_cross_a_bound_with_its_low_bit_only() {
        let range = |low, high| Range { low, high };
        assert!(range(10, Some(20)).contains(10));
        assert!(!range(10, Some(20)).contains(20));
        assert!(range(10, Some(21)).contains(20));
        assert!(range(11, None).contains(10));
        assert!(!range(12, None).contains(10));
        assert!(range(10, Some(20)).contains_entry(20));
        assert!(!range(10, Some(20)).contains_entry(21));
    }
}
