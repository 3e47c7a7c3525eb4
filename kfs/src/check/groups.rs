//! Group descriptors, and the blocks that no file can have.

use super::Checker;
use super::image::Image;
use super::report::{Finding, FindingKind, Findings};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::{BlockNr, GroupNr};
use crate::layout::{Geometry, GroupFlags, Incompat, RawGroupDesc};
use std::ops::Range;

/// The descriptors, and what of them can be used.
pub(super) struct Groups {
    pub(super) descs: Vec<RawGroupDesc>,
    /// Groups whose inode tables lie outside the volume.
    lost: Vec<GroupNr>,
    /// Blocks of fixed metadata, sorted and disjoint.
    fixed: Vec<Range<u64>>,
}

impl Groups {
    /// Reads all descriptors.
    pub(super) fn read(image: &Image) -> Result<Self> {
        let geometry = &image.geometry;
        let mut descs = Vec::with_capacity(geometry.groups_count() as usize);
        let mut loaded: Option<(BlockNr, Vec<u8>)> = None;
        for group in (0..geometry.groups_count()).map(GroupNr) {
            let (block, offset) = geometry.desc_location(group);
            if loaded.as_ref().is_none_or(|(nr, _)| *nr != block) {
                if !geometry.contains_block(block) {
                    return Err(Corrupt::BlockOutside { block }.into());
                }
                loaded = Some((block, image.read(block, 1)?));
            }
            let (_, bytes) = loaded.as_ref().expect("loaded just above");
            let end = offset + geometry.desc_size as usize;
            descs.push(RawGroupDesc::from_slice(&bytes[offset..end]));
        }
        Ok(Self {
            descs,
            lost: Vec::new(),
            fixed: Vec::new(),
        })
    }

    pub(super) fn desc(&self, group: GroupNr) -> &RawGroupDesc {
        &self.descs[group.0 as usize]
    }

    /// Inodes at the start of a group's table that may be in use.
    pub(super) fn inodes_to_read(&self, geometry: &Geometry, group: GroupNr) -> u32 {
        if self.lost.binary_search(&group).is_ok() {
            return 0;
        }
        let desc = self.desc(group);
        if !geometry.has_group_checksums() {
            return geometry.inodes_per_group;
        }
        if desc.flags().contains(GroupFlags::INODE_UNINIT) {
            return 0;
        }
        geometry
            .inodes_per_group
            .saturating_sub(desc.itable_unused())
    }

    /// Whether a run has blocks of fixed metadata.
    pub(super) fn is_fixed(&self, run: &Range<u64>) -> bool {
        let first = self.fixed.partition_point(|fixed| fixed.end <= run.start);
        self.fixed
            .get(first)
            .is_some_and(|fixed| fixed.start < run.end)
    }

    fn add_fixed(&mut self, run: Range<u64>) {
        match self.fixed.last_mut() {
            Some(last) if last.end == run.start => last.end = run.end,
            _ => self.fixed.push(run),
        }
    }

    fn sort_fixed(&mut self) {
        self.fixed.sort_unstable_by_key(|run| run.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for run in self.fixed.drain(..) {
            match merged.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                _ => merged.push(run),
            }
        }
        self.fixed = merged;
    }
}

impl Checker<'_> {
    /// Checks the descriptors and claims what they name.
    pub(super) fn check_groups(&mut self) {
        let geometry = self.image.geometry.clone();
        for group in (0..geometry.groups_count()).map(GroupNr) {
            let base = u64::from(geometry.base_metadata_blocks(group));
            let start = geometry.group_first_block(group);
            let left = geometry.blocks_count() - start.0;
            if base > left {
                group_error(&mut self.findings, group, "has no room for its descriptors");
            }
            let len = base.min(left);
            self.claims.claim(start, len);
            self.groups.add_fixed(start.0..start.0 + len);
        }
        for group in (0..geometry.groups_count()).map(GroupNr) {
            let desc = self.groups.desc(group).clone();
            check_fields(&mut self.findings, &geometry, group, &desc);
            self.claim_tables(&geometry, group, &desc);
        }
        self.groups.sort_fixed();
    }

    /// Claims bitmaps and inode table where they are within the volume.
    fn claim_tables(&mut self, geometry: &Geometry, group: GroupNr, desc: &RawGroupDesc) {
        let table_len = u64::from(geometry.inode_table_blocks);
        let parts = [
            ("bg_block_bitmap", desc.block_bitmap(), 1),
            ("bg_inode_bitmap", desc.inode_bitmap(), 1),
            ("bg_inode_table", desc.inode_table(), table_len),
        ];
        for (field, start, len) in parts {
            if !is_in_place(geometry, group, start, len) {
                let value = start.0;
                let damage = Corrupt::GroupField {
                    group,
                    field,
                    value,
                };
                let finding = Finding::corrupt(FindingKind::Group, &damage);
                self.findings.add(finding.group(group));
            }
            if !geometry.contains_run(start, len) {
                if field == "bg_inode_table" {
                    self.groups.lost.push(group);
                }
                continue;
            }
            if !self.claims.claim(start, len) {
                let text = format!("group {group}: {field} {start} lies on other metadata");
                let finding = Finding::error(FindingKind::Group, text);
                self.findings.add(finding.group(group).block(start));
            }
            self.groups.add_fixed(start.0..start.0 + len);
        }
    }
}

fn group_error(findings: &mut Findings, group: GroupNr, text: &str) {
    let text = format!("group {group}: {text}");
    findings.add(Finding::error(FindingKind::Group, text).group(group));
}

/// Whether a part of a group lies where it may: anywhere with flex_bg, else in the group.
fn is_in_place(geometry: &Geometry, group: GroupNr, start: BlockNr, len: u64) -> bool {
    if !geometry.contains_run(start, len) || start == BlockNr(0) {
        return false;
    }
    if geometry.incompat.contains(Incompat::FLEX_BG) {
        return true;
    }
    let last = BlockNr(start.0 + len - 1);
    geometry.group_of(start).0 == group && geometry.group_of(last).0 == group
}

fn check_fields(findings: &mut Findings, geometry: &Geometry, group: GroupNr, desc: &RawGroupDesc) {
    if !desc.verify_checksum(geometry, group) {
        let damage = Corrupt::GroupChecksum { group };
        findings.add(Finding::corrupt(FindingKind::Group, &damage).group(group));
    }
    let flags = desc.flags();
    let uninit = GroupFlags::INODE_UNINIT | GroupFlags::BLOCK_UNINIT;
    if !geometry.has_group_checksums() {
        if flags.intersects(uninit) || desc.itable_unused() != 0 {
            group_error(
                findings,
                group,
                "marked as not initialised without checksums",
            );
        }
        return;
    }
    if desc.itable_unused() > geometry.inodes_per_group {
        let (field, value) = ("bg_itable_unused", desc.itable_unused().into());
        let damage = Corrupt::GroupField {
            group,
            field,
            value,
        };
        findings.add(Finding::corrupt(FindingKind::Group, &damage).group(group));
    }
    let is_last = group.0 + 1 == geometry.groups_count();
    if is_last && flags.contains(GroupFlags::BLOCK_UNINIT) {
        group_error(
            findings,
            group,
            "the last group's block bitmap must be there",
        );
    }
}
