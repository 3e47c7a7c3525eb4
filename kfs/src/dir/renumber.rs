//! Inodes that get other numbers: who names them, and how entries come to name the new one.

use super::block::{self, Entries};
use super::{Directory, DirectoryBlocks, TailKind};
use crate::error::Result;
use crate::ids::{InodeNr, LogicalBlock};
use crate::layout::dirent::{self, RawDirent};
use crate::storage::{Buffer, Handle};
use std::sync::Arc;
use zerocopy::FromBytes;

/// Entries at the beginning of a tree's root: `.` and `..`.
const ROOT_ENTRIES: usize = 2;

/// A block with entries that name an inode, ready to be changed.
pub(crate) struct NamingBlock {
    buffer: Arc<Buffer>,
    kind: TailKind,
    offsets: Vec<usize>,
}

impl<B: DirectoryBlocks> Directory<B> {
    /// The inodes with number `from` or higher that a block's entries name, `.` and `..` included.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn inodes_from(&self, block: LogicalBlock, from: InodeNr) -> Result<Vec<InodeNr>> {
        let mut found = Vec::new();
        self.each_entry(block, |_, inode| {
            if inode >= from && !found.contains(&inode) {
                found.push(inode);
            }
        })?;
        Ok(found)
    }

    /// Finds the entries of a block that name an inode.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub(crate) fn naming_block(&self, block: LogicalBlock, inode: InodeNr) -> Result<NamingBlock> {
        let mut offsets = Vec::new();
        self.each_entry(block, |offset, found| {
            if found == inode {
                offsets.push(offset);
            }
        })?;
        Ok(NamingBlock {
            buffer: self.blocks.block(block)?,
            kind: self.tail_kind(block),
            offsets,
        })
    }

    /// Lets the entries name another inode.
    pub(crate) fn rename_inode(&self, handle: &mut Handle<'_>, block: &NamingBlock, to: InodeNr) {
        let mut bytes = handle.get_write_access(&block.buffer);
        for offset in &block.offsets {
            let (raw, _) =
                RawDirent::mut_from_prefix(&mut bytes[*offset..]).expect("a checked record");
            raw.inode = to.0.into();
        }
        self.update_checksum(block.kind, &mut bytes);
    }

    /// Visits the used entries of a block with their offsets. Inner nodes of a tree have none.
    fn each_entry(&self, block: LogicalBlock, mut visit: impl FnMut(usize, InodeNr)) -> Result<()> {
        // Asked before the block is locked.
        let kind = self.tail_kind(block);
        let (buffer, most) = match kind {
            TailKind::TreeRoot => (self.root_block()?, ROOT_ENTRIES),
            TailKind::Entries => {
                let buffer = self.blocks.block(block)?;
                if is_inner_node(&buffer.read()) {
                    return Ok(());
                }
                (self.leaf_block(block)?, usize::MAX)
            }
        };
        let bytes = buffer.read();
        let entries = match kind {
            TailKind::TreeRoot => Entries::of_root(&self.format, &bytes),
            TailKind::Entries => Entries::of_leaf(&self.format, block, &bytes),
        };
        for entry in entries.take(most) {
            let entry: block::EntryRef<'_> = entry?;
            if entry.is_used() {
                visit(entry.offset, InodeNr(entry.inode));
            }
        }
        Ok(())
    }
}

/// Whether a block begins with the unused entry over all of it that inner nodes of trees have. A block of
/// entries may, too, where it has no checksum: it has no entries then.
fn is_inner_node(bytes: &[u8]) -> bool {
    RawDirent::ref_from_prefix(bytes).is_ok_and(|(raw, _)| {
        let size = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let len = dirent::decode_rec_len(raw.rec_len.get(), size);
        raw.inode.get() == 0 && len == bytes.len()
    })
}
