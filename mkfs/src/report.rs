//! What was made, for people.

use crate::plan::Plan;
use kfs::BlockNr;
use kfs::layout::features;
use kfs_disk::Bytes;
use std::fmt;

/// A file system that was made, or would be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Bytes in a block.
    pub block_size: u32,
    /// Blocks of the volume.
    pub blocks_count: u64,
    /// Inodes of the volume.
    pub inodes_count: u32,
    /// Groups of the volume.
    pub groups_count: u32,
    /// Blocks of the journal.
    pub journal_blocks: u64,
    /// The label.
    pub label: String,
    /// The uuid.
    pub uuid: [u8; 16],
    /// Names of the features.
    pub features: Vec<String>,
    /// Where the copies of the superblock are.
    pub backups: Vec<BlockNr>,
    /// Bytes written to the device; 0 when it was only planned.
    pub bytes_written: u64,
}

impl Report {
    pub(crate) fn new(plan: &Plan, bytes_written: u64) -> Self {
        let geometry = &plan.geometry;
        Self {
            block_size: geometry.block_size,
            blocks_count: geometry.blocks_count(),
            inodes_count: geometry.inodes_count(),
            groups_count: geometry.groups_count(),
            journal_blocks: plan
                .journal
                .as_ref()
                .map_or(0, |journal| journal.data_blocks()),
            label: String::from_utf8_lossy(plan.superblock.label()).into_owned(),
            uuid: geometry.uuid,
            features: features::names(&plan.superblock),
            backups: plan
                .backups()
                .map(|group| geometry.group_first_block(group))
                .collect(),
            bytes_written,
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kib = self.block_size / 1024;
        writeln!(
            f,
            "{} {kib}k blocks and {} inodes",
            self.blocks_count, self.inodes_count
        )?;
        writeln!(f, "Filesystem UUID: {}", uuid::Uuid::from_bytes(self.uuid))?;
        if !self.label.is_empty() {
            writeln!(f, "Filesystem label: {}", self.label)?;
        }
        match self.journal_blocks {
            0 => writeln!(f, "No journal")?,
            blocks => {
                let size = Bytes(blocks * u64::from(self.block_size));
                writeln!(f, "Journal: {blocks} blocks, {size}")?;
            }
        }
        if !self.backups.is_empty() {
            let backups: Vec<String> = self.backups.iter().map(BlockNr::to_string).collect();
            writeln!(
                f,
                "Superblock backups stored on blocks: {}",
                backups.join(", ")
            )?;
        }
        Ok(())
    }
}
