//! The bitmaps and counters against what was found in use.

use super::Checker;
use super::report::{Finding, FindingKind};
use crate::error::Result;
use crate::ids::{BlockNr, GroupNr};
use crate::layout::{Geometry, GroupFlags, RawGroupDesc};
use std::fmt::Display;

/// Differences of a bitmap that are listed.
const LISTED_MAX: usize = 4;

/// Sums over all groups: of the descriptors, and of what was found.
#[derive(Default)]
pub(super) struct Sums {
    free_blocks: (u64, u64),
    free_inodes: (u64, u64),
}

/// Bits of a bitmap that are not what they must be.
#[derive(Default)]
struct Difference {
    first: Vec<String>,
    count: u64,
}

impl Difference {
    /// Of two bitmaps of `bits` bits; `name` names a bit.
    fn of<N: Display>(found: &[u8], expected: &[u8], bits: u32, name: impl Fn(u32) -> N) -> Self {
        let mut difference = Self::default();
        for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
            let mut differ = found ^ expected;
            while differ != 0 {
                let bit = differ.trailing_zeros();
                differ &= differ - 1;
                let at = index as u32 * 8 + bit;
                if at >= bits {
                    break;
                }
                difference.count += 1;
                if difference.first.len() < LISTED_MAX {
                    let is_used = expected & (1 << bit) != 0;
                    let sign = if is_used { '+' } else { '-' };
                    difference.first.push(format!("{sign}{}", name(at)));
                }
            }
        }
        difference
    }

    /// `+` is in use and not marked, `-` marked and not in use.
    fn text(&self) -> Option<String> {
        let more = self.count - self.first.len() as u64;
        let list = self.first.join(" ");
        match (self.count, more) {
            (0, _) => None,
            (_, 0) => Some(list),
            _ => Some(format!("{list} and {more} more")),
        }
    }
}

/// Whether all bits from `from` on are set.
fn is_padded(bitmap: &[u8], from: u32) -> bool {
    let (byte, bit) = ((from / 8) as usize, from % 8);
    let mut rest = bitmap[byte.min(bitmap.len())..].iter();
    if bit > 0 && rest.next().is_some_and(|first| first >> bit != 0xff >> bit) {
        return false;
    }
    rest.all(|&byte| byte == 0xff)
}

fn count_clear(bitmap: &[u8], bits: u32) -> u32 {
    let whole = (bits / 8) as usize;
    let used: u32 = bitmap[..whole].iter().map(|byte| byte.count_ones()).sum();
    let rest = bits % 8;
    let last = if rest == 0 {
        0
    } else {
        (bitmap[whole] & ((1 << rest) - 1)).count_ones()
    };
    bits - used - last
}

impl Checker<'_> {
    /// Compares bitmaps and counters of all groups, and the superblock's sums.
    pub(super) fn check_bitmaps(&mut self) -> Result<()> {
        let geometry = self.image.geometry.clone();
        let mut sums = Sums::default();
        for group in (0..geometry.groups_count()).map(GroupNr) {
            let desc = self.groups.desc(group).clone();
            self.check_block_bitmap(&geometry, group, &desc, &mut sums)?;
            self.check_inode_bitmap(&geometry, group, &desc, &mut sums)?;
            self.step(u64::from(group.0) + 1, geometry.groups_count().into())?;
        }
        self.totals.blocks_used = geometry.blocks_count() - sums.free_blocks.1;
        self.totals.inodes_used = u64::from(geometry.inodes_count()) - sums.free_inodes.1;
        // Linux leaves the superblock's sums behind while the volume is in use, and takes those of
        // the groups when it opens one.
        if self.recovery.journal.is_none() {
            let blocks = (self.superblock.free_blocks_count(), sums.free_blocks);
            let inodes = self.superblock.s_free_inodes_count.get().into();
            self.check_sum("s_free_blocks_count", blocks.0, blocks.1);
            self.check_sum("s_free_inodes_count", inodes, sums.free_inodes);
        }
        Ok(())
    }

    fn check_sum(&mut self, field: &str, found: u64, (descriptors, expected): (u64, u64)) {
        if found != expected || found != descriptors {
            let text = format!("superblock: {field} is {found}, should be {expected}");
            self.findings
                .add(Finding::error(FindingKind::Counters, text));
        }
    }

    fn group_finding(&mut self, kind: FindingKind, group: GroupNr, text: impl Display) {
        let text = format!("group {group}: {text}");
        self.findings.add(Finding::error(kind, text).group(group));
    }

    fn check_block_bitmap(
        &mut self,
        geometry: &Geometry,
        group: GroupNr,
        desc: &RawGroupDesc,
        sums: &mut Sums,
    ) -> Result<()> {
        let kind = FindingKind::BlockBitmap;
        let start = geometry.group_first_block(group);
        let bits = geometry.blocks_in_group(group);
        let mut expected = vec![0; geometry.block_size as usize];
        let covered = geometry.block_bitmap_bytes().min(expected.len());
        self.claims.copy_bytes(start, &mut expected[..covered]);
        let is_uninit =
            geometry.has_group_checksums() && desc.flags().contains(GroupFlags::BLOCK_UNINIT);
        let name = |bit: u32| start.0 + u64::from(bit);
        if is_uninit {
            let implied = uninit_bitmap(geometry, group, desc);
            if let Some(text) = Difference::of(&implied, &expected, bits, name).text() {
                let text = format!("the block bitmap is not initialised, but not empty: {text}");
                self.group_finding(kind, group, text);
            }
        } else if geometry.contains_block(desc.block_bitmap()) {
            let bitmap = self.image.read(desc.block_bitmap(), 1)?;
            if !desc.verify_block_bitmap(geometry, &bitmap) {
                self.group_finding(kind, group, "block bitmap checksum mismatch");
            }
            if let Some(text) = Difference::of(&bitmap, &expected, bits, name).text() {
                self.group_finding(kind, group, format!("block bitmap differs: {text}"));
            }
            if !is_padded(&bitmap, bits) {
                self.group_finding(kind, group, "the block bitmap's end is not filled");
            }
        }
        let free = count_clear(&expected, bits);
        let found = desc.free_blocks_count();
        if found != free {
            let text = format!("{found} free blocks counted, {free} found");
            self.group_finding(FindingKind::Counters, group, text);
        }
        sums.free_blocks.0 += u64::from(found);
        sums.free_blocks.1 += u64::from(free);
        Ok(())
    }

    fn check_inode_bitmap(
        &mut self,
        geometry: &Geometry,
        group: GroupNr,
        desc: &RawGroupDesc,
        sums: &mut Sums,
    ) -> Result<()> {
        let kind = FindingKind::InodeBitmap;
        let bits = geometry.inodes_per_group;
        let mut expected = vec![0; geometry.block_size as usize];
        let mut directories = 0;
        for (index, state) in self.states.of_group(group.0) {
            expected[(index / 8) as usize] |= 1 << (index % 8);
            directories += u32::from(state.is_directory());
        }
        let is_uninit =
            geometry.has_group_checksums() && desc.flags().contains(GroupFlags::INODE_UNINIT);
        if !is_uninit && geometry.contains_block(desc.inode_bitmap()) {
            let bitmap = self.image.read(desc.inode_bitmap(), 1)?;
            if !desc.verify_inode_bitmap(geometry, &bitmap) {
                self.group_finding(kind, group, "inode bitmap checksum mismatch");
            }
            let name = |bit| geometry.inode_nr(group, bit);
            if let Some(text) = Difference::of(&bitmap, &expected, bits, name).text() {
                self.group_finding(kind, group, format!("inode bitmap differs: {text}"));
            }
            if !is_padded(&bitmap, bits) {
                self.group_finding(kind, group, "the inode bitmap's end is not filled");
            }
        }
        let free = count_clear(&expected, bits);
        let counts = [
            ("free inodes", desc.free_inodes_count(), free),
            ("directories", desc.used_dirs_count(), directories),
        ];
        for (what, found, expected) in counts {
            if found != expected {
                let text = format!("{found} {what} counted, {expected} found");
                self.group_finding(FindingKind::Counters, group, text);
            }
        }
        sums.free_inodes.0 += u64::from(desc.free_inodes_count());
        sums.free_inodes.1 += u64::from(free);
        Ok(())
    }
}

/// The bitmap that a group has which is marked as not initialised: its own metadata, as far as it
/// lies in the group.
fn uninit_bitmap(geometry: &Geometry, group: GroupNr, desc: &RawGroupDesc) -> Vec<u8> {
    let mut bitmap = vec![0u8; geometry.block_size as usize];
    let start = geometry.group_first_block(group);
    let end = start.0 + u64::from(geometry.blocks_in_group(group));
    let runs = [
        (start, geometry.base_metadata_blocks(group)),
        (desc.block_bitmap(), 1),
        (desc.inode_bitmap(), 1),
        (desc.inode_table(), geometry.inode_table_blocks),
    ];
    for (first, len) in runs {
        let last = first.0.saturating_add(u64::from(len)).min(end);
        for block in (first.0.max(start.0)..last).map(BlockNr) {
            let bit = block.0 - start.0;
            bitmap[(bit / 8) as usize] |= 1 << (bit % 8);
        }
    }
    bitmap
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_listed_and_counted() {
        let found = [0b0000_0011, 0xff];
        let expected = [0b0000_0110, 0x00];
        let difference = Difference::of(&found, &expected, 12, |bit| 100 + bit);
        assert_eq!(difference.text().unwrap(), "-100 +102 -108 -109 and 2 more");
        assert!(
            Difference::of(&found, &found, 16, |bit| bit)
                .text()
                .is_none()
        );
    }

    #[test]
    fn padding_and_counts() {
        assert!(is_padded(&[0x0f, 0xff], 8) && is_padded(&[0xf0, 0xff], 4));
        assert!(!is_padded(&[0xe0, 0xff], 4) && !is_padded(&[0xf0, 0x7f], 4));
        assert!(is_padded(&[0], 8));
        assert_eq!(count_clear(&[0x0f, 0x01], 12), 4 + 3);
        assert_eq!(count_clear(&[0x0f], 8), 4);
    }
}
