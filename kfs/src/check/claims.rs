//! `Claims`: which blocks are in use, and which more than once.

use super::Checker;
use super::bits::LazyBits;
use super::blocks::{Visitor, walk};
use super::report::{Finding, FindingKind};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::extent::Extent;
use crate::ids::{BlockNr, InodeNr};
use crate::layout::Geometry;
use std::ops::Range;

/// Runs claimed twice that are followed up; more are only counted.
const SHARED_MAX: usize = 1024;
/// Claimants named for a run.
const OWNERS_MAX: usize = 8;

/// Blocks in use by whoever claimed them first, and runs that others claimed after that.
pub(super) struct Claims {
    first: u64,
    used: LazyBits,
    shared: Vec<Range<u64>>,
    /// Blocks claimed more than once, each as often as it was claimed again.
    shared_blocks: u64,
}

impl Claims {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let first = u64::from(geometry.first_data_block);
        Self {
            first,
            used: LazyBits::new(geometry.blocks_count() - first),
            shared: Vec::new(),
            shared_blocks: 0,
        }
    }

    /// Claims a run that lies within the volume. `false` when part of it was claimed before.
    pub(super) fn claim(&mut self, start: BlockNr, len: u64) -> bool {
        let Self {
            first,
            used,
            shared,
            shared_blocks,
        } = self;
        let mut is_new = true;
        let range = start.0 - *first..start.0 - *first + len;
        used.set_range(range, |overlap| {
            is_new = false;
            *shared_blocks += overlap.end - overlap.start;
            if shared.len() < SHARED_MAX {
                shared.push(overlap.start + *first..overlap.end + *first);
            }
        });
        is_new
    }

    /// Copies the bits of blocks from `start`, a group's first block, on.
    pub(super) fn copy_bytes(&self, start: BlockNr, out: &mut [u8]) {
        self.used.copy_bytes(start.0 - self.first, out);
    }

    /// The runs claimed more than once, sorted and disjoint.
    fn shared_runs(&self) -> Vec<Range<u64>> {
        let mut sorted = self.shared.clone();
        sorted.sort_unstable_by_key(|run| run.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for run in sorted {
            match merged.last_mut() {
                Some(last) if run.start <= last.end => last.end = last.end.max(run.end),
                _ => merged.push(run),
            }
        }
        merged
    }
}

/// A run claimed more than once, with its claimants.
struct Shared {
    run: Range<u64>,
    is_metadata: bool,
    owners: Vec<InodeNr>,
    more_owners: bool,
}

/// Notes what an inode has of the shared runs.
struct Owners<'s> {
    shared: &'s mut [Shared],
    nr: InodeNr,
    /// Nodes that may still be read: many inodes may name the same ones.
    budget: &'s mut u64,
}

impl Owners<'_> {
    fn note(&mut self, run: Range<u64>) {
        let first = self
            .shared
            .partition_point(|shared| shared.run.end <= run.start);
        for shared in &mut self.shared[first..] {
            if shared.run.start >= run.end {
                break;
            }
            if shared.owners.last() == Some(&self.nr) {
                continue;
            }
            if shared.owners.len() < OWNERS_MAX {
                shared.owners.push(self.nr);
            } else {
                shared.more_owners = true;
            }
        }
    }
}

impl Visitor for Owners<'_> {
    fn node(&mut self, block: BlockNr) -> bool {
        self.note(block.0..block.0 + 1);
        let may_read = *self.budget > 0;
        *self.budget = self.budget.saturating_sub(1);
        may_read
    }

    fn extent(&mut self, extent: Extent) {
        self.note(extent.physical.0..extent.physical.0 + u64::from(extent.len));
    }

    fn damage(&mut self, _: Corrupt) {}
}

impl Checker<'_> {
    /// Reports the blocks that were claimed more than once, and by whom.
    pub(super) fn report_shared(&mut self) -> Result<()> {
        if self.claims.shared_blocks == 0 {
            return Ok(());
        }
        let mut shared: Vec<Shared> = self
            .claims
            .shared_runs()
            .into_iter()
            .map(|run| Shared {
                is_metadata: self.groups.is_fixed(&run),
                run,
                owners: Vec::new(),
                more_owners: false,
            })
            .collect();
        let mut budget = self.image.geometry.blocks_count();
        self.for_each_used_inode(|checker, nr, inode| {
            let mut owners = Owners {
                shared: &mut shared,
                nr,
                budget: &mut budget,
            };
            let acl = inode.file_acl();
            if acl != 0 {
                owners.note(acl..acl.saturating_add(1));
            }
            if nr == InodeNr(super::resize::RESIZE_INODE) || !super::inodes::has_blocks(inode) {
                return Ok(());
            }
            walk(&checker.image, nr, inode, &mut owners)
        })?;
        for shared in shared {
            self.findings.add(describe(&shared));
        }
        if self.claims.shared.len() >= SHARED_MAX {
            let text = format!(
                "{} blocks in all are claimed more than once",
                self.claims.shared_blocks
            );
            self.findings
                .add(Finding::error(FindingKind::SharedBlocks, text));
        }
        Ok(())
    }
}

fn describe(shared: &Shared) -> Finding {
    let mut owners: Vec<String> = shared
        .owners
        .iter()
        .map(|nr| format!("inode {nr}"))
        .collect();
    if shared.is_metadata {
        owners.insert(0, "fixed metadata".to_string());
    }
    if shared.more_owners {
        owners.push("others".to_string());
    }
    let Range { start, end } = shared.run;
    let blocks = if end - start == 1 {
        format!("block {start} is")
    } else {
        format!("blocks {start} to {} are", end - 1)
    };
    let text = format!("{blocks} claimed more than once: {}", owners.join(", "));
    Finding::error(FindingKind::SharedBlocks, text).block(BlockNr(start))
}
