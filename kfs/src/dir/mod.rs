//! Directories: names and the inodes they stand for, in linear blocks or in a hash tree.
//!
//! ```text
//! linear:     | . | .. | name | name ...      | name | name ...
//! hash tree:  | . | .. | root: hash -> block |   block 0, where a scan sees only . and ..
//!                          |          |
//!                      leaf block  leaf block     same shape as a linear block, any order within
//! ```
//!
//! A directory knows its blocks through [`DirectoryBlocks`] and no inodes. A directory of one block
//! becomes a hash tree when it needs a second one and the volume has `dir_index`.
//!
//! Who calls holds the directory's lock: shared to look up and to list, exclusive to change. Every
//! change plans first: whatever can fail (reads, checks, space) comes before the first write access.
//! Checksums are verified once per read of a block and stored at the end of each change.

pub(crate) mod block;
mod check;
mod hash;
pub(crate) mod htree;
mod iter;
mod linear;
mod name;
mod renumber;
#[cfg(test)]
mod tests;

use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::{InodeNr, LogicalBlock};
use crate::layout::dirent::{DIR_TAIL_SIZE, FileType};
use crate::layout::features::{Compat, Incompat};
use crate::layout::{Geometry, dirent, htree as layout_htree};
use crate::storage::{Buffer, Handle};
use block::{NewEntry, Position};
pub use hash::{HashAlgorithm, NameHash, NameHasher};
pub use iter::ListedEntry;
pub use name::FileName;
pub(crate) use renumber::NamingBlock;
use std::sync::Arc;

/// Most blocks of a directory that one change touches, those appended included. What appending
/// itself changes (bitmaps, extents, the inode) is up to the [`DirectoryBlocks`].
pub const CHANGE_CREDITS: u32 = 7;
/// Most blocks that adding one name appends.
pub const APPENDS_MAX: u32 = 3;

/// What a directory needs to know of its volume and of its inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectoryFormat {
    /// The directory's inode.
    pub inode: InodeNr,
    /// Bytes in a block.
    pub block_size: u32,
    /// Seed of the inode's checksums; `None` without metadata_csum.
    pub checksum_seed: Option<u32>,
    /// Entries hold the type of the file.
    pub has_file_type: bool,
    /// Hash trees are in use.
    pub dir_index: bool,
    /// Hash trees may have a third level.
    pub large_dir: bool,
    /// Hash of new trees.
    pub default_hash_version: u8,
    /// Hashes take characters as unsigned.
    pub hash_unsigned: bool,
    /// Seed of the hashes.
    pub hash_seed: [u32; 4],
}

impl DirectoryFormat {
    /// The format of one directory of a volume.
    #[must_use]
    pub fn new(geometry: &Geometry, inode: InodeNr, generation: u32) -> Self {
        Self {
            inode,
            block_size: geometry.block_size,
            checksum_seed: geometry.inode_seed(inode, generation),
            has_file_type: geometry.incompat.contains(Incompat::FILETYPE),
            dir_index: geometry.compat.contains(Compat::DIR_INDEX),
            large_dir: geometry.incompat.contains(Incompat::LARGEDIR),
            default_hash_version: geometry.default_hash_version,
            hash_unsigned: geometry.hash_unsigned,
            hash_seed: geometry.hash_seed,
        }
    }

    /// Bytes of a block that hold entries.
    pub(super) fn leaf_len(&self) -> usize {
        let tail = if self.checksum_seed.is_some() {
            DIR_TAIL_SIZE
        } else {
            0
        };
        self.block_size as usize - tail
    }

    fn hasher(&self, version: u8) -> Result<NameHasher> {
        NameHasher::new(version, self.hash_unsigned, self.hash_seed)
    }

    /// The hasher of new trees; `None` when directories are to stay linear.
    fn new_tree_hasher(&self) -> Option<NameHasher> {
        if self.dir_index {
            self.hasher(self.default_hash_version).ok()
        } else {
            None
        }
    }
}

/// The blocks of a directory, as its inode maps them.
pub trait DirectoryBlocks {
    /// Facts that do not change while the directory is in use.
    fn format(&self) -> DirectoryFormat;

    /// Blocks that the directory has.
    fn blocks_count(&self) -> u32;

    /// A block of the directory.
    ///
    /// # Errors
    /// When it cannot be read, and when it is a hole.
    fn block(&self, block: LogicalBlock) -> Result<Arc<Buffer>>;

    /// Makes sure that the next `count` calls of `append` succeed. Space not used by the end of the
    /// operation is given back.
    ///
    /// # Errors
    /// `NoSpace` and what a device may report.
    fn prepare(&mut self, count: u32) -> Result<()>;

    /// Adds a prepared block at the end. The buffer's content is of no interest: who calls makes
    /// it anew through [`Handle::get_create_access`].
    fn append(&mut self, handle: &mut Handle<'_>) -> (LogicalBlock, Arc<Buffer>);

    /// Whether the inode has the flag of a hash tree.
    fn is_indexed(&self) -> bool;

    /// Sets or clears that flag.
    fn set_indexed(&mut self, handle: &mut Handle<'_>, indexed: bool);
}

impl<T: DirectoryBlocks> DirectoryBlocks for &mut T {
    fn format(&self) -> DirectoryFormat {
        (**self).format()
    }

    fn blocks_count(&self) -> u32 {
        (**self).blocks_count()
    }

    fn block(&self, block: LogicalBlock) -> Result<Arc<Buffer>> {
        (**self).block(block)
    }

    fn prepare(&mut self, count: u32) -> Result<()> {
        (**self).prepare(count)
    }

    fn append(&mut self, handle: &mut Handle<'_>) -> (LogicalBlock, Arc<Buffer>) {
        (**self).append(handle)
    }

    fn is_indexed(&self) -> bool {
        (**self).is_indexed()
    }

    fn set_indexed(&mut self, handle: &mut Handle<'_>, indexed: bool) {
        (**self).set_indexed(handle, indexed);
    }
}

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// The inode; not checked against the volume.
    pub inode: InodeNr,
    /// Its type, `Unknown` where the volume does not record types in entries.
    pub file_type: FileType,
}

/// Where an entry lies.
struct Found {
    block: LogicalBlock,
    buffer: Arc<Buffer>,
    position: Position,
}

/// Where a directory's `..` lies. Holding it keeps the block in memory.
pub struct ParentEntry(Found);

impl Found {
    fn entry(&self, format: &DirectoryFormat) -> DirEntry {
        let file_type = FileType::from_raw(self.position.file_type);
        let file_type = if format.has_file_type {
            file_type
        } else {
            FileType::Unknown
        };
        DirEntry {
            inode: InodeNr(self.position.inode),
            file_type,
        }
    }
}

/// What lies at the end of a directory's block.
#[derive(Clone, Copy)]
enum TailKind {
    /// The root of a hash tree has its checksum behind the entries of the tree.
    TreeRoot,
    Entries,
}

/// A directory.
pub struct Directory<B> {
    blocks: B,
    format: DirectoryFormat,
}

impl<B: DirectoryBlocks> Directory<B> {
    /// The directory in these blocks.
    pub fn new(blocks: B) -> Self {
        let format = blocks.format();
        Self { blocks, format }
    }

    /// The blocks given to [`Directory::new`].
    pub fn into_blocks(self) -> B {
        self.blocks
    }

    /// What `name` stands for, `None` when there is no such entry.
    ///
    /// # Errors
    /// `Corrupt` when a block on the way is damaged; `Unsupported` for a hash kfs does not know.
    pub fn lookup(&self, name: FileName<'_>) -> Result<Option<DirEntry>> {
        Ok(self.find(name)?.map(|found| found.entry(&self.format)))
    }

    /// The inode that `..` stands for.
    ///
    /// # Errors
    /// `Corrupt` when the first block is damaged.
    pub fn parent(&self) -> Result<InodeNr> {
        let buffer = self.first_block()?;
        let bytes = buffer.read();
        Ok(block::dots(&self.format, &bytes)?.1)
    }

    /// Adds a name.
    ///
    /// # Errors
    /// `Exists` when the name is there; `NoSpace` when the volume, or the hash tree at its largest
    /// depth, is full; `Corrupt` when a block on the way is damaged. Nothing has changed then.
    pub fn add(
        &mut self,
        handle: &mut Handle<'_>,
        name: FileName<'_>,
        inode: InodeNr,
        file_type: FileType,
    ) -> Result<()> {
        if name.is_dot() {
            return Err(Error::Exists);
        }
        let entry = NewEntry {
            inode,
            file_type,
            name: name.as_bytes(),
        };
        if self.is_tree() {
            self.add_to_tree(handle, &entry)
        } else {
            self.add_linear(handle, &entry)
        }
    }

    /// Removes a name and tells what it stood for.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for `.` and `..`; `Corrupt` when a block on the way is damaged.
    pub fn remove(&mut self, handle: &mut Handle<'_>, name: FileName<'_>) -> Result<DirEntry> {
        let found = self.find_changeable(name)?;
        let kind = self.tail_kind(found.block);
        let mut bytes = handle.get_write_access(&found.buffer);
        block::remove(&self.format, &mut bytes, &found.position);
        self.update_checksum(kind, &mut bytes);
        Ok(found.entry(&self.format))
    }

    /// Lets an existing name stand for another inode, and tells what it stood for.
    ///
    /// # Errors
    /// As [`Directory::remove`].
    pub fn replace(
        &mut self,
        handle: &mut Handle<'_>,
        name: FileName<'_>,
        inode: InodeNr,
        file_type: FileType,
    ) -> Result<DirEntry> {
        let found = self.find_changeable(name)?;
        self.write_inode(handle, &found, inode, file_type);
        Ok(found.entry(&self.format))
    }

    /// Where `..` lies, for [`Directory::set_parent`].
    ///
    /// # Errors
    /// `Corrupt` when the first block is damaged, `Io`.
    pub fn parent_entry(&self) -> Result<ParentEntry> {
        let buffer = self.first_block()?;
        let position = {
            let bytes = buffer.read();
            let (_, old) = block::dots(&self.format, &bytes)?;
            let offset = block::dot_dot_offset(&self.format, &bytes);
            let file_type = FileType::Directory as u8;
            Position {
                offset,
                previous: Some(0),
                inode: old.0,
                file_type,
            }
        };
        Ok(ParentEntry(Found {
            block: LogicalBlock(0),
            buffer,
            position,
        }))
    }

    /// Lets `..` stand for another directory, as a rename to another parent does.
    pub fn set_parent(&mut self, handle: &mut Handle<'_>, entry: &ParentEntry, parent: InodeNr) {
        self.write_inode(handle, &entry.0, parent, FileType::Directory);
    }

    /// Makes the first block of a new directory, with `.` and `..`.
    ///
    /// # Errors
    /// What [`DirectoryBlocks::prepare`] reports.
    pub fn init(&mut self, handle: &mut Handle<'_>, parent: InodeNr) -> Result<()> {
        assert_eq!(
            self.blocks.blocks_count(),
            0,
            "only a new directory is initialised"
        );
        self.blocks.prepare(1)?;
        let content = block::pack(&self.format, self.dot_entries(self.format.inode, parent));
        let (_, buffer) = self.blocks.append(handle);
        handle.get_create_access(&buffer).copy_from_slice(&content);
        Ok(())
    }

    /// Whether it has no entries but `.` and `..`.
    ///
    /// # Errors
    /// `Corrupt` when a block is damaged.
    pub fn is_empty(&self) -> Result<bool> {
        if self.is_tree() {
            self.is_tree_empty()
        } else {
            self.is_linear_empty()
        }
    }

    fn dot_entries(&self, own: InodeNr, parent: InodeNr) -> [NewEntry<'static>; 2] {
        let file_type = FileType::Directory;
        [
            NewEntry {
                inode: own,
                file_type,
                name: b".",
            },
            NewEntry {
                inode: parent,
                file_type,
                name: b"..",
            },
        ]
    }

    /// Whether the blocks form a hash tree. Without `dir_index` its flag means nothing, and its
    /// inner blocks look like blocks without entries.
    fn is_tree(&self) -> bool {
        self.format.dir_index && self.blocks.is_indexed()
    }

    fn find(&self, name: FileName<'_>) -> Result<Option<Found>> {
        match (self.is_tree(), name.is_dot()) {
            (true, true) => self.find_dot_in_root(name.as_bytes()),
            (true, false) => self.find_in_tree(name.as_bytes()),
            (false, _) => self.find_linear(name.as_bytes()),
        }
    }

    fn find_changeable(&self, name: FileName<'_>) -> Result<Found> {
        if name.is_dot() {
            return Err(Error::Invalid);
        }
        self.find(name)?.ok_or(Error::NotFound)
    }

    fn write_inode(
        &self,
        handle: &mut Handle<'_>,
        found: &Found,
        inode: InodeNr,
        file_type: FileType,
    ) {
        let kind = self.tail_kind(found.block);
        let mut bytes = handle.get_write_access(&found.buffer);
        block::replace(
            &self.format,
            &mut bytes,
            found.position.offset,
            inode,
            file_type,
        );
        self.update_checksum(kind, &mut bytes);
    }

    /// Where a block with `.`, `..` or entries has its checksum. To be asked before the block is locked.
    fn tail_kind(&self, block: LogicalBlock) -> TailKind {
        if block.0 == 0 && self.is_tree() {
            TailKind::TreeRoot
        } else {
            TailKind::Entries
        }
    }

    fn update_checksum(&self, kind: TailKind, bytes: &mut [u8]) {
        let seed = self.format.checksum_seed;
        match kind {
            TailKind::TreeRoot => {
                layout_htree::update_checksum(seed, bytes, layout_htree::ROOT_ENTRIES_OFFSET);
            }
            TailKind::Entries => dirent::update_checksum(seed, bytes),
        }
    }

    /// The first block, which has `.` and `..`.
    fn first_block(&self) -> Result<Arc<Buffer>> {
        if self.blocks.blocks_count() == 0 {
            return Err(Corrupt::DirectoryEmpty {
                inode: self.format.inode,
            }
            .into());
        }
        if self.is_tree() {
            self.root_block()
        } else {
            self.leaf_block(LogicalBlock(0))
        }
    }
}
