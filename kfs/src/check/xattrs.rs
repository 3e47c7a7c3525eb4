//! Extended attributes: in the inodes, and in blocks that inodes may share.

use super::Checker;
use super::bits::LazyBits;
use super::inodes::InodeRef;
use super::report::{Finding, FindingKind};
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::{BlockNr, InodeNr};
use crate::layout::xattr::{RawXattrHeader, RawXattrInodeHeader, XATTR_MAGIC, verify_checksum};
use crate::layout::{Compat, Geometry};
use crate::xattr::audit_region;
use std::collections::BTreeMap;
use zerocopy::FromBytes;

const HEADER: usize = size_of::<RawXattrHeader>();

/// Blocks of attributes found so far.
pub(super) struct XattrBlocks {
    known: LazyBits,
    /// Those that say that several inodes share them, or that several inodes name: the count that
    /// the block has, and that of the inodes found.
    shared: BTreeMap<BlockNr, (u32, u32)>,
}

impl XattrBlocks {
    pub(super) fn new(geometry: &Geometry) -> Self {
        Self {
            known: LazyBits::new(geometry.blocks_count()),
            shared: BTreeMap::new(),
        }
    }
}

impl Checker<'_> {
    /// Checks an inode's attributes, and gives how many blocks it has for them.
    pub(super) fn check_xattrs(&mut self, nr: InodeNr, inode: &InodeRef<'_>) -> Result<u64> {
        if let Ok((header, region)) = RawXattrInodeHeader::ref_from_prefix(inode.xattr_area())
            && header.h_magic.get() == XATTR_MAGIC
            && let Err(error) = audit_region(nr, region, 0, false)
        {
            self.note_xattr_damage(nr, None, error)?;
        }
        let block = BlockNr(self.file_acl(inode));
        if block == BlockNr(0) {
            return Ok(0);
        }
        let geometry = &self.image.geometry;
        if !geometry.contains_block(block) || !geometry.compat.contains(Compat::EXT_ATTR) {
            let text = format!("its attribute block {block} cannot be");
            self.findings.inode(FindingKind::Xattr, nr, text);
            return Ok(0);
        }
        if self.xattr_blocks.known.set(block.0) {
            let counts = self.xattr_blocks.shared.entry(block).or_insert((1, 1));
            counts.1 = counts.1.saturating_add(1);
            return Ok(1);
        }
        self.claims.claim(block, 1);
        self.check_xattr_block(nr, block)?;
        Ok(1)
    }

    fn file_acl(&self, inode: &InodeRef<'_>) -> u64 {
        // The upper half counts in volumes of 64 bits only; elsewhere it was reported.
        let mask = if self.image.geometry.desc_size == 64 {
            u64::MAX
        } else {
            u64::from(u32::MAX)
        };
        inode.file_acl() & mask
    }

    fn check_xattr_block(&mut self, nr: InodeNr, block: BlockNr) -> Result<()> {
        let bytes = self.image.read(block, 1)?;
        let (header, _) = RawXattrHeader::ref_from_prefix(&bytes).expect("a block is longer");
        let damage = if header.h_magic.get() != XATTR_MAGIC {
            Some(Corrupt::XattrBlockMagic { block })
        } else if header.h_blocks.get() != 1 {
            let blocks = header.h_blocks.get();
            Some(Corrupt::XattrBlockLength { block, blocks })
        } else if !verify_checksum(self.image.geometry.csum_seed, block, &bytes) {
            Some(Corrupt::XattrBlockChecksum { block })
        } else {
            None
        };
        if let Some(damage) = damage {
            self.note_xattr_damage(nr, Some(block), damage.into())?;
        } else if let Err(error) = audit_region(nr, &bytes, HEADER, true) {
            self.note_xattr_damage(nr, Some(block), error)?;
        }
        let count = header.h_refcount.get();
        if count != 1 {
            self.xattr_blocks.shared.insert(block, (count, 1));
        }
        Ok(())
    }

    /// Adds a finding for damage; other errors pass.
    fn note_xattr_damage(
        &mut self,
        nr: InodeNr,
        block: Option<BlockNr>,
        error: Error,
    ) -> Result<()> {
        let Error::Corrupt(damage) = error else {
            return Err(error);
        };
        let mut finding = Finding::corrupt(FindingKind::Xattr, &damage).inode(nr);
        finding.block = block;
        self.findings.add(finding);
        Ok(())
    }

    /// Compares how many inodes share each block with what the block says.
    pub(super) fn check_xattr_counts(&mut self) {
        for (block, (found, expected)) in &self.xattr_blocks.shared {
            if found != expected {
                let text = format!(
                    "attribute block {block}: shared by {expected} inodes, but says {found}"
                );
                let finding = Finding::error(FindingKind::Xattr, text);
                self.findings.add(finding.block(*block));
            }
        }
    }
}
