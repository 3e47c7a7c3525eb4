//! Orphans: inodes that whoever opens the volume next deletes or truncates. They are in use though
//! nothing names them.

use super::Checker;
use super::inodes::InodeRef;
use super::report::{Finding, FindingKind};
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::{BlockNr, InodeNr};
use crate::layout::inode::{InodeBytes, S_IFMT};
use crate::layout::{RoCompat, orphan};
use std::collections::HashSet;

/// Pieces that the orphan file may lie in.
const EXTENTS_MAX: usize = 1 << 16;

/// The orphans named by list and file.
#[derive(Default)]
pub(super) struct Orphans {
    inodes: HashSet<InodeNr>,
}

impl Orphans {
    pub(super) fn contains(&self, nr: InodeNr) -> bool {
        !self.inodes.is_empty() && self.inodes.contains(&nr)
    }

    pub(super) fn len(&self) -> u64 {
        self.inodes.len() as u64
    }
}

impl Checker<'_> {
    /// Finds the orphans. Must come before the inode tables are checked.
    pub(super) fn find_orphans(&mut self) -> Result<()> {
        self.read_orphan_list()?;
        self.read_orphan_file()?;
        self.recovery.orphans = self.orphans.len();
        Ok(())
    }

    fn orphan_damage(&mut self, damage: &Corrupt) {
        self.findings
            .add(Finding::corrupt(FindingKind::Orphans, damage));
    }

    /// An inode that may be an orphan: in the part of its table that is in use, and not empty.
    fn orphan_candidate(&self, nr: InodeNr) -> Result<Option<InodeBytes<Vec<u8>>>> {
        let geometry = &self.image.geometry;
        let Ok((group, index)) = geometry.inode_location(nr) else {
            return Ok(None);
        };
        if nr < geometry.first_inode || index >= self.groups.inodes_to_read(geometry, group) {
            return Ok(None);
        }
        let inode = match self.image.inode_in_table(self.groups.desc(group), index) {
            Err(Error::Corrupt(_)) => return Ok(None),
            other => other?,
        };
        Ok((inode.mode() & S_IFMT != 0).then_some(inode))
    }

    fn read_orphan_list(&mut self) -> Result<()> {
        let mut next = InodeNr(self.superblock.s_last_orphan.get());
        while next.0 != 0 {
            let inode = self.orphan_candidate(next)?;
            let (Some(inode), true) = (inode, self.orphans.inodes.insert(next)) else {
                self.orphan_damage(&Corrupt::OrphanList { inode: next });
                break;
            };
            next = InodeNr(inode.dtime());
        }
        Ok(())
    }

    fn read_orphan_file(&mut self) -> Result<()> {
        let geometry = self.image.geometry.clone();
        let Some(nr) = geometry.orphan_file_inode else {
            return Ok(());
        };
        let inode = match self.image.inode(nr) {
            Err(Error::Corrupt(damage)) => {
                self.orphan_damage(&damage);
                return Ok(());
            }
            other => other?,
        };
        let inode: InodeRef<'_> = InodeBytes::new(inode.bytes());
        let map = self.map(nr, &inode, EXTENTS_MAX)?;
        let seed = geometry.inode_seed(nr, inode.generation());
        let blocks = geometry.blocks_for(inode.size_bytes());
        if blocks == 0 || blocks != map.end() {
            let text = format!("orphan file {nr}: {} blocks of {blocks}", map.end());
            self.findings
                .add(Finding::error(FindingKind::Orphans, text).inode(nr));
        }
        for index in 0..blocks.min(map.end()) as u32 {
            let Some(block) = map.find(index) else {
                let inode = nr;
                self.orphan_damage(&Corrupt::DirectoryHole {
                    inode,
                    block: index,
                });
                break;
            };
            self.read_orphan_block(block, seed)?;
        }
        Ok(())
    }

    fn read_orphan_block(&mut self, block: BlockNr, seed: Option<u32>) -> Result<()> {
        let bytes = self.image.read(block, 1)?;
        if !orphan::has_magic(&bytes) || !orphan::verify_checksum(seed, block, &bytes) {
            self.orphan_damage(&Corrupt::OrphanBlock { block });
            return Ok(());
        }
        let entries = orphan::entries_per_block(self.image.geometry.block_size);
        for nr in super::blocks::pointers(&bytes).take(entries).map(InodeNr) {
            if nr.0 == 0 {
                continue;
            }
            if !self
                .image
                .geometry
                .ro_compat
                .contains(RoCompat::ORPHAN_PRESENT)
            {
                let text = "the orphan file has entries, which the superblock does not say";
                self.findings
                    .add(Finding::error(FindingKind::Orphans, text).block(block));
                return Ok(());
            }
            if self.orphan_candidate(nr)?.is_none() || !self.orphans.inodes.insert(nr) {
                self.orphan_damage(&Corrupt::OrphanList { inode: nr });
            }
        }
        Ok(())
    }
}
