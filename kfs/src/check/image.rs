//! `Image`: reading blocks, inode tables and single inodes of the volume that is checked.

use crate::corrupt::Corrupt;
use crate::error::{Error, IoOp, Result};
use crate::ids::{BlockNr, InodeNr};
use crate::layout::inode::InodeBytes;
use crate::layout::{Geometry, RawGroupDesc};
use kfs_disk::BlockDevice;
use std::sync::Arc;

/// The device with the facts of its volume.
pub(super) struct Image {
    pub(super) device: Arc<dyn BlockDevice>,
    pub(super) geometry: Geometry,
}

impl Image {
    /// Fills `buffer`, of whole blocks, from `block` on.
    pub(super) fn read_into(&self, block: BlockNr, buffer: &mut [u8]) -> Result<()> {
        self.device
            .read_at(self.geometry.offset_of(block), buffer)
            .map_err(|source| Error::Io {
                op: IoOp::Read,
                block,
                source,
            })
    }

    /// The bytes of `count` blocks.
    pub(super) fn read(&self, block: BlockNr, count: u32) -> Result<Vec<u8>> {
        let mut buffer = vec![0; count as usize * self.geometry.block_size as usize];
        self.read_into(block, &mut buffer)?;
        Ok(buffer)
    }

    /// The descriptor of an inode's group and the inode's bytes, past what the check has loaded.
    ///
    /// # Errors
    /// `Corrupt` when there is no such inode or its table is not within the volume, `Io`.
    pub(super) fn inode(&self, nr: InodeNr) -> Result<InodeBytes<Vec<u8>>> {
        let geometry = &self.geometry;
        let (group, index) = geometry.inode_location(nr)?;
        let (block, offset) = geometry.desc_location(group);
        if !geometry.contains_block(block) {
            return Err(Corrupt::BlockOutside { block }.into());
        }
        let bytes = self.read(block, 1)?;
        let desc = RawGroupDesc::from_slice(&bytes[offset..offset + geometry.desc_size as usize]);
        self.inode_in_table(&desc, index)
    }

    /// An inode's bytes by the descriptor of its group.
    ///
    /// # Errors
    /// `Corrupt` when the table is not within the volume, `Io`.
    pub(super) fn inode_in_table(
        &self,
        desc: &RawGroupDesc,
        index: u32,
    ) -> Result<InodeBytes<Vec<u8>>> {
        let (block, offset) = self.geometry.inode_table_offset(index);
        let table = desc.inode_table();
        let len = u64::from(self.geometry.inode_table_blocks);
        if !self.geometry.contains_run(table, len) {
            return Err(Corrupt::BlockOutside { block: table }.into());
        }
        let bytes = self.read(table.plus(u64::from(block)), 1)?;
        let inode = bytes[offset..offset + self.geometry.inode_size as usize].to_vec();
        Ok(InodeBytes::new(inode))
    }
}
