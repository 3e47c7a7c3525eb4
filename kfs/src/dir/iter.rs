//! Listing a directory with cookies that stay good while the directory changes.
//!
//! A cookie names an entry; a walk goes on with the entries whose cookie is above it. Nothing
//! present all the time between two calls is missed or told twice, whatever else comes and goes:
//!
//! - Hash trees, and directories of one block that would become one (so that a walk survives the
//!   conversion and packing), are listed in the order of hashes. A cookie is 31 bits of the major
//!   hash, then 32 of the minor (of a CRC where the hash has no minor). Names equal in all 63 bits
//!   are told apart by counting on, in the order of the names. Only the coming and going of a name
//!   that collides in all 63 bits can shift the cookie of another.
//! - Other directories are listed in the order of blocks. A cookie is the offset of the entry plus
//!   1; entries there never move.
//!
//! `.` and `..` have the cookies 1 and 2 where the order is that of hashes. Cookies fit 63 bits.

use super::block::{Entries, EntryRef};
use super::hash::NameHasher;
use super::htree::Path;
use super::name::{has_forbidden_byte, is_dot};
use super::{DirEntry, Directory, DirectoryBlocks};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::{InodeNr, LogicalBlock};
use crate::layout::dirent::FileType;
use std::ops::ControlFlow;
use std::sync::Arc;

/// Lowest 32 bits that a hashed entry's cookie may have, above those of `.` and `..`.
const LOW_MIN: u32 = 16;
/// Highest, so that there is room to count on.
const LOW_MAX: u32 = u32::MAX - (1 << 16);

/// An entry as a listing tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedEntry<'n> {
    /// Its name.
    pub name: &'n [u8],
    /// What it stands for.
    pub entry: DirEntry,
    /// Where a listing that goes on after this entry starts.
    pub cookie: u64,
}

/// Called for each entry; `Break` ends the listing. Who did not take the last entry goes on with
/// the cookie of the one before.
type Visit<'v> = dyn FnMut(&ListedEntry<'_>) -> ControlFlow<()> + 'v;

/// An entry with its place in the order of hashes.
struct Sorted<'b> {
    major: u32,
    low: u32,
    entry: EntryRef<'b>,
}

impl<B: DirectoryBlocks> Directory<B> {
    /// Tells the entries behind `cookie` (0: all) one after the other, until `visit` breaks.
    ///
    /// # Errors
    /// `Corrupt` when a block is damaged; entries may have been told before.
    pub fn entries_from(&self, cookie: u64, visit: &mut Visit<'_>) -> Result<()> {
        if cookie > i64::MAX.cast_unsigned() {
            return Ok(());
        }
        if self.is_tree() {
            return self.list_tree(cookie, visit);
        }
        match self.format.new_tree_hasher() {
            Some(hasher) if self.blocks.blocks_count() == 1 => {
                self.list_hashed_block(&hasher, cookie, visit)
            }
            _ => self.list_linear(cookie, visit),
        }
    }

    fn list_linear(&self, cookie: u64, visit: &mut Visit<'_>) -> Result<()> {
        self.first_block()?;
        let block_size = u64::from(self.format.block_size);
        let Ok(first) = u32::try_from(cookie / block_size) else {
            return Ok(());
        };
        for number in first..self.blocks.blocks_count() {
            let block = LogicalBlock(number);
            let content = self.leaf_block(block)?.freeze();
            let start = u64::from(number) * block_size;
            for entry in Entries::of_leaf(&self.format, block, &content) {
                let entry = entry?;
                let own = start + entry.offset as u64 + 1;
                if entry.is_used()
                    && own > cookie
                    && self.tell(block, &entry, own, visit)?.is_break()
                {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn list_hashed_block(
        &self,
        hasher: &NameHasher,
        cookie: u64,
        visit: &mut Visit<'_>,
    ) -> Result<()> {
        let block = LogicalBlock(0);
        let content = self.leaf_block(block)?.freeze();
        for entry in Entries::of_leaf(&self.format, block, &content) {
            let entry = entry?;
            if is_dot(entry.name) && self.tell_dot(&entry, cookie, visit)?.is_break() {
                return Ok(());
            }
        }
        let mut sorted = Vec::new();
        self.collect(hasher, block, &content, None, &mut sorted)?;
        self.tell_sorted(block, sorted, cookie, visit).map(|_| ())
    }

    fn list_tree(&self, cookie: u64, visit: &mut Visit<'_>) -> Result<()> {
        let root = self.root()?;
        let content = self.first_block()?.freeze();
        for entry in Entries::of_root(&self.format, &content).take(2) {
            if self.tell_dot(&entry?, cookie, visit)?.is_break() {
                return Ok(());
            }
        }
        // Below 2^31, as the cookie is below 2^63.
        let mut path = self.probe(&root, ((cookie >> 32) as u32) << 1)?;
        loop {
            let (leaves, more) = self.collision_leaves(&mut path)?;
            let mut sorted = Vec::new();
            for leaf in &leaves {
                self.collect(
                    &root.hasher,
                    leaf.block,
                    &leaf.content,
                    Some(leaf),
                    &mut sorted,
                )?;
            }
            let block = leaves.first().map_or(LogicalBlock(0), |leaf| leaf.block);
            if self.tell_sorted(block, sorted, cookie, visit)?.is_break() || !more {
                return Ok(());
            }
        }
    }

    /// The leaf of the path and those that continue its last hash: together they hold all names of
    /// each hash. Moves the path behind them; tells also whether there is more.
    fn collision_leaves(&self, path: &mut Path) -> Result<(Vec<Leaf>, bool)> {
        let mut leaves = Vec::new();
        loop {
            let block = path.leaf();
            let content = self.leaf_block(block)?.freeze();
            leaves.push(Leaf {
                block,
                content,
                range: path.range(),
            });
            let continued = path.is_continued();
            let more = self.advance(path)?;
            if !continued || !more {
                return Ok((leaves, more));
            }
        }
    }

    /// Adds the entries of a block to `sorted`, with their hashes. In a leaf of a tree they must
    /// lie in its range: else a walk would go back, or leave out what is there.
    fn collect<'b>(
        &self,
        hasher: &NameHasher,
        block: LogicalBlock,
        content: &'b [u8],
        leaf: Option<&Leaf>,
        sorted: &mut Vec<Sorted<'b>>,
    ) -> Result<()> {
        for entry in Entries::of_leaf(&self.format, block, content) {
            let entry = entry?;
            if !entry.is_used() || (leaf.is_none() && is_dot(entry.name)) {
                continue;
            }
            let hash = hasher.hash(entry.name);
            if leaf.is_some_and(|leaf| !leaf.covers(hash.major)) {
                let (inode, hash) = (self.format.inode, hash.major);
                return Err(Corrupt::HtreeHash { inode, block, hash }.into());
            }
            let minor = if hasher.has_minor() {
                hash.minor
            } else {
                crc32c::crc32c(entry.name)
            };
            let low = minor.clamp(LOW_MIN, LOW_MAX);
            sorted.push(Sorted {
                major: hash.major,
                low,
                entry,
            });
        }
        Ok(())
    }

    fn tell_sorted(
        &self,
        block: LogicalBlock,
        mut sorted: Vec<Sorted<'_>>,
        cookie: u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>> {
        sorted.sort_unstable_by_key(|sorted| (sorted.major, sorted.low, sorted.entry.name));
        let mut last = None;
        for Sorted { major, low, entry } in &sorted {
            let low = match last {
                Some((last_major, last_low)) if last_major == *major && last_low >= *low => {
                    u32::saturating_add(last_low, 1)
                }
                _ => *low,
            };
            last = Some((*major, low));
            let own = u64::from(major >> 1) << 32 | u64::from(low);
            if own > cookie && self.tell(block, entry, own, visit)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    fn tell_dot(
        &self,
        entry: &EntryRef<'_>,
        cookie: u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>> {
        let own = entry.name.len() as u64;
        if own <= cookie {
            return Ok(ControlFlow::Continue(()));
        }
        self.tell(LogicalBlock(0), entry, own, visit)
    }

    fn tell(
        &self,
        block: LogicalBlock,
        entry: &EntryRef<'_>,
        cookie: u64,
        visit: &mut Visit<'_>,
    ) -> Result<ControlFlow<()>> {
        if has_forbidden_byte(entry.name) {
            let (inode, offset) = (self.format.inode, entry.offset as u32);
            return Err(Corrupt::DirectoryName {
                inode,
                block,
                offset,
            }
            .into());
        }
        let file_type = match self.format.has_file_type {
            true => FileType::from_raw(entry.file_type),
            false => FileType::Unknown,
        };
        let name = entry.name;
        let entry = DirEntry {
            inode: InodeNr(entry.inode),
            file_type,
        };
        Ok(visit(&ListedEntry {
            name,
            entry,
            cookie,
        }))
    }
}

/// A block of entries of a tree, and the hashes that may be in it.
struct Leaf {
    block: LogicalBlock,
    content: Arc<[u8]>,
    range: (u32, Option<u32>),
}

impl Leaf {
    fn covers(&self, hash: u32) -> bool {
        // Where the next leaf continues a hash, names of that hash lie here as well.
        let (low, high) = self.range;
        hash >= low & !1 && high.is_none_or(|high| hash < high)
    }
}
