//! Directories without an index: every block is looked through.

use super::block::{self, Entries, NewEntry, Place};
use super::name::is_dot;
use super::{Directory, DirectoryBlocks, Found};
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::LogicalBlock;
use crate::storage::{Buffer, Handle};
use std::sync::Arc;

impl<B: DirectoryBlocks> Directory<B> {
    pub(super) fn find_linear(&self, name: &[u8]) -> Result<Option<Found>> {
        for number in 0..self.blocks.blocks_count() {
            let block = LogicalBlock(number);
            let buffer = self.leaf_block(block)?;
            let position = {
                let bytes = buffer.read();
                block::find(Entries::of_leaf(&self.format, block, &bytes), name)?
            };
            if let Some(position) = position {
                return Ok(Some(Found {
                    block,
                    buffer,
                    position,
                }));
            }
        }
        Ok(None)
    }

    pub(super) fn is_linear_empty(&self) -> Result<bool> {
        self.first_block()?;
        for number in 0..self.blocks.blocks_count() {
            if !self.is_leaf_empty(LogicalBlock(number))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a block has no entries but `.` and `..`.
    pub(super) fn is_leaf_empty(&self, block: LogicalBlock) -> Result<bool> {
        let buffer = self.leaf_block(block)?;
        let bytes = buffer.read();
        for entry in Entries::of_leaf(&self.format, block, &bytes) {
            let entry = entry?;
            if entry.is_used() && !is_dot(entry.name) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn add_linear(
        &mut self,
        handle: &mut Handle<'_>,
        entry: &NewEntry<'_>,
    ) -> Result<()> {
        let mut room = None;
        for number in 0..self.blocks.blocks_count() {
            let block = LogicalBlock(number);
            let buffer = self.leaf_block(block)?;
            let place = {
                let bytes = buffer.read();
                block::find_place(Entries::of_leaf(&self.format, block, &bytes), entry.name)?
            };
            match place {
                Place::Taken => return Err(Error::Exists),
                Place::At(offset) if room.is_none() => room = Some((block, buffer, offset)),
                Place::At(_) | Place::None => {}
            }
        }
        if let Some((block, buffer, offset)) = room {
            self.forget_stale_index(handle);
            self.insert_into(handle, block, &buffer, offset, entry);
            return Ok(());
        }
        if self.blocks.blocks_count() == 0 {
            return Err(Corrupt::DirectoryEmpty {
                inode: self.format.inode,
            }
            .into());
        }
        match self.format.new_tree_hasher() {
            Some(hasher) if self.blocks.blocks_count() == 1 => {
                self.convert_to_tree(handle, &hasher, entry)
            }
            _ => self.add_linear_block(handle, entry),
        }
    }

    fn add_linear_block(&mut self, handle: &mut Handle<'_>, entry: &NewEntry<'_>) -> Result<()> {
        self.blocks.prepare(1)?;
        let content = block::pack(&self.format, [*entry]);
        self.forget_stale_index(handle);
        let (_, buffer) = self.blocks.append(handle);
        handle.get_create_access(&buffer).copy_from_slice(&content);
        Ok(())
    }

    /// Writes an entry into the record at `offset`, which has room.
    pub(super) fn insert_into(
        &self,
        handle: &mut Handle<'_>,
        block: LogicalBlock,
        buffer: &Arc<Buffer>,
        offset: usize,
        entry: &NewEntry<'_>,
    ) {
        let kind = self.tail_kind(block);
        let mut bytes = handle.get_write_access(buffer);
        block::insert(&self.format, &mut bytes, offset, entry);
        self.update_checksum(kind, &mut bytes);
    }

    /// On a volume whose `dir_index` was turned off, a name added without regard to a tree left
    /// from before would be missing from it should the feature be turned on again.
    fn forget_stale_index(&mut self, handle: &mut Handle<'_>) {
        if self.blocks.is_indexed() {
            self.blocks.set_indexed(handle, false);
        }
    }
}
