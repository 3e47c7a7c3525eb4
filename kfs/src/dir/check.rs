//! Loads blocks of a directory and checks them: the checksum and, of index blocks, the order of the
//! entries once a read; what bounds a walk, each time.

use super::htree::Index;
use super::{Directory, DirectoryBlocks};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::LogicalBlock;
use crate::layout::dirent;
use crate::layout::htree::{self, NODE_ENTRIES_OFFSET, ROOT_ENTRIES_OFFSET};
use crate::storage::Buffer;
use std::sync::Arc;

impl<B: DirectoryBlocks> Directory<B> {
    /// A block of entries.
    pub(super) fn leaf_block(&self, block: LogicalBlock) -> Result<Arc<Buffer>> {
        let buffer = self.blocks.block(block)?;
        if !buffer.is_verified() {
            if !dirent::verify_checksum(self.format.checksum_seed, &buffer.read()) {
                return Err(self.bad_checksum(block));
            }
            buffer.set_verified();
        }
        Ok(buffer)
    }

    /// Block 0 of a hash tree.
    pub(super) fn root_block(&self) -> Result<Arc<Buffer>> {
        self.index_block(LogicalBlock(0), ROOT_ENTRIES_OFFSET)
    }

    /// An inner node of a hash tree.
    pub(super) fn node_block(&self, block: LogicalBlock) -> Result<Arc<Buffer>> {
        self.index_block(block, NODE_ENTRIES_OFFSET)
    }

    fn index_block(&self, block: LogicalBlock, entries_offset: usize) -> Result<Arc<Buffer>> {
        let buffer = self.blocks.block(block)?;
        if !buffer.is_verified() {
            let bytes = buffer.read();
            if !htree::verify_checksum(self.format.checksum_seed, &bytes, entries_offset) {
                return Err(self.bad_checksum(block));
            }
            let index = self.parse_index(block, &bytes, entries_offset)?;
            if !index.is_sorted() {
                return Err(Corrupt::HtreeOrder {
                    inode: self.format.inode,
                    block,
                }
                .into());
            }
            drop(bytes);
            buffer.set_verified();
        }
        Ok(buffer)
    }

    /// The entries of an index block, which are as many as the block can hold at the most.
    pub(super) fn parse_index<'b>(
        &self,
        block: LogicalBlock,
        bytes: &'b [u8],
        entries_offset: usize,
    ) -> Result<Index<'b>> {
        let has_checksum = self.format.checksum_seed.is_some();
        let fits = htree::entry_limit(self.format.block_size, entries_offset, has_checksum);
        Index::parse(bytes, entries_offset, fits).map_err(|(limit, count)| {
            Corrupt::HtreeCounts {
                inode: self.format.inode,
                block,
                limit,
                count,
            }
            .into()
        })
    }

    fn bad_checksum(&self, block: LogicalBlock) -> crate::Error {
        Corrupt::DirectoryChecksum {
            inode: self.format.inode,
            block,
        }
        .into()
    }
}
