//! The resize inode: a block map of odd shape, whose indirect blocks are the blocks kept for
//! descriptors in group 0, each naming the same block of every group with a backup.

use super::Checker;
use super::blocks::{Visitor, pointers, walk};
use super::inodes::{Counted, InodeRef};
use super::report::{Finding, FindingKind};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::extent::Extent;
use crate::ids::{BlockNr, GroupNr, InodeNr};
use crate::layout::inode::{InodeFlags, S_IFMT, S_IFREG};

/// Number of the resize inode.
pub(super) const RESIZE_INODE: u32 = 7;
/// Its only pointer in use: that of the double indirect block.
const DOUBLE_INDIRECT: usize = 13;

/// Counts blocks; those reserved for descriptors are claimed as fixed metadata.
struct Count<'b> {
    blocks: u64,
    /// Nodes that may still be read.
    budget: u64,
    is_broken: &'b mut bool,
}

impl Visitor for Count<'_> {
    fn node(&mut self, _: BlockNr) -> bool {
        self.blocks += 1;
        let may_read = self.budget > 0;
        self.budget = self.budget.saturating_sub(1);
        may_read
    }

    fn extent(&mut self, extent: Extent) {
        self.blocks += u64::from(extent.len);
    }

    fn damage(&mut self, _: Corrupt) {
        *self.is_broken = true;
    }
}

impl Checker<'_> {
    /// Checks the inode of a volume that has the feature.
    pub(super) fn check_resize_inode(&mut self, inode: &InodeRef<'_>) -> Result<()> {
        let nr = InodeNr(RESIZE_INODE);
        let slots: Vec<u32> = pointers(inode.block_area()).collect();
        let block = BlockNr(slots[DOUBLE_INDIRECT].into());
        let is_sound = inode.mode() & S_IFMT == S_IFREG
            && inode.links_count() > 0
            && !inode.flags().contains(InodeFlags::EXTENTS)
            && slots
                .iter()
                .enumerate()
                .all(|(at, &slot)| (at == DOUBLE_INDIRECT) == (slot != 0))
            && self.image.geometry.contains_block(block);
        if !is_sound {
            self.resize_error("is not what it must be".to_string());
            return Ok(());
        }
        self.check_fields(nr, inode);
        self.claims.claim(block, 1);
        let mut is_broken = false;
        let mut count = Count {
            blocks: 0,
            budget: self.image.geometry.blocks_count(),
            is_broken: &mut is_broken,
        };
        walk(&self.image, nr, inode, &mut count)?;
        let blocks = count.blocks;
        if is_broken {
            self.resize_error("names blocks outside the volume".to_string());
            return Ok(());
        }
        let xattr_blocks = self.check_xattrs(nr, inode)?;
        self.check_block_count(nr, inode, blocks + xattr_blocks);
        let counted = Counted::default();
        self.check_size(nr, inode, &counted, false)?;
        self.check_reserved_blocks(block)
    }

    fn resize_error(&mut self, text: String) {
        let nr = InodeNr(RESIZE_INODE);
        self.findings.add(
            Finding::error(FindingKind::ResizeInode, format!("the resize inode {text}")).inode(nr),
        );
    }

    fn check_reserved_blocks(&mut self, double_indirect: BlockNr) -> Result<()> {
        let geometry = self.image.geometry.clone();
        let table: Vec<u32> = pointers(&self.image.read(double_indirect, 1)?).collect();
        let backups: Vec<GroupNr> = (1..geometry.groups_count())
            .map(GroupNr)
            .filter(|&group| geometry.has_superblock_backup(group))
            .collect();
        let first = u64::from(geometry.first_data_block) + 1 + u64::from(geometry.desc_blocks());
        for index in 0..geometry.reserved_gdt_blocks() {
            let block = BlockNr(first + u64::from(index));
            let slot = (geometry.desc_blocks() + index) as usize % table.len();
            if u64::from(table[slot]) != block.0 || !geometry.contains_block(block) {
                self.resize_error(format!("does not keep block {block}"));
                return Ok(());
            }
            let bytes = self.image.read(block, 1)?;
            let has_all = backups.iter().zip(pointers(&bytes)).all(|(group, found)| {
                let away = u64::from(group.0) * u64::from(geometry.blocks_per_group);
                u64::from(found) == block.0 + away
            });
            if !has_all {
                self.resize_error(format!("does not keep the backups of block {block}"));
                return Ok(());
            }
        }
        Ok(())
    }
}
