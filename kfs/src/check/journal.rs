//! The journal: its superblock, and its replay in memory where one is due.

use super::Checker;
use super::blocks::{Visitor, walk};
use super::image::Image;
use super::overlay::Overlay;
use super::report::{Finding, FindingKind, Findings, Replay};
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::ids::{BlockNr, InodeNr, Run};
use crate::layout::Incompat;
use crate::layout::inode::{InodeBytes, S_IFMT, S_IFREG};
use crate::storage::journal::{LogArea, inspect, recover};
use kfs_disk::BlockDevice;
use std::sync::Arc;

/// Runs of blocks that a journal may consist of; those that programs make have a few.
const RUNS_MAX: usize = 1 << 16;

/// Collects where the journal lies.
struct Area {
    runs: Vec<Run>,
    end: u64,
    is_broken: bool,
}

impl Visitor for Area {
    fn node(&mut self, _: BlockNr) -> bool {
        !self.is_broken
    }

    fn extent(&mut self, extent: Extent) {
        let is_next = u64::from(extent.logical.0) == self.end;
        self.is_broken |= !is_next || extent.unwritten || self.runs.len() >= RUNS_MAX;
        if self.is_broken {
            return;
        }
        self.end = extent.end();
        self.runs.push(Run {
            start: extent.physical,
            len: extent.len,
        });
    }

    fn damage(&mut self, _: Corrupt) {
        self.is_broken = true;
    }
}

/// What became of a journal.
pub(super) enum Replayed {
    /// The volume is to be read through this device.
    Done(Arc<dyn BlockDevice>, Replay),
    /// It cannot be replayed, which a finding says.
    Failed,
}

/// Where the journal of a volume lies. `None` when it cannot be used, which a finding says.
fn area(image: &Image, nr: InodeNr, findings: &mut Findings) -> Result<Option<LogArea>> {
    let inode = match image.inode(nr) {
        Err(Error::Corrupt(damage)) => {
            findings.corrupt(FindingKind::Journal, nr, &damage);
            return Ok(None);
        }
        other => other?,
    };
    let mut area = Area {
        runs: Vec::new(),
        end: 0,
        is_broken: false,
    };
    walk(image, nr, &InodeBytes::new(inode.bytes()), &mut area)?;
    let has_blocks = inode.mode() & S_IFMT == S_IFREG && inode.links_count() > 0;
    // The log is as long as the file, whatever was allocated.
    let len = image.geometry.blocks_for(inode.size_bytes());
    if area.is_broken || !has_blocks || area.end == 0 || area.end < len {
        let text = "the journal's blocks are not all there";
        findings.inode(FindingKind::Journal, nr, text);
        return Ok(None);
    }
    Ok(Some(LogArea::new(area.runs)))
}

/// Replays the journal into memory.
///
/// # Errors
/// `Unsupported` for a log that kfs does not know, `Io`.
pub(super) fn replay(image: &Image, bytes_max: u64, findings: &mut Findings) -> Result<Replayed> {
    let geometry = &image.geometry;
    let Some(nr) = geometry.journal_inode else {
        let text = "the journal must be replayed, but there is none";
        findings.add(Finding::error(FindingKind::Journal, text));
        return Ok(Replayed::Failed);
    };
    let Some(area) = area(image, nr, findings)? else {
        return Ok(Replayed::Failed);
    };
    let base = Arc::clone(&image.device);
    // A volume that has grown has blocks behind the end that this superblock knows.
    let count = base.size_bytes() >> geometry.block_size_bits;
    let overlay = Overlay::new(base, geometry.block_size, bytes_max);
    let recovered = recover(&overlay, area, geometry.block_size, count);
    match recovered {
        Ok(recovered) => {
            let replay = Replay {
                transactions: recovered.transactions,
                blocks: recovered.blocks,
            };
            Ok(Replayed::Done(Arc::new(overlay), replay))
        }
        Err(Error::Corrupt(damage)) => {
            findings.corrupt(FindingKind::Journal, nr, &damage);
            Ok(Replayed::Failed)
        }
        Err(error) => Err(error),
    }
}

impl Checker<'_> {
    /// Checks the superblock of a log that need not be replayed, or was.
    pub(super) fn check_journal(&mut self) -> Result<()> {
        let geometry = self.image.geometry.clone();
        let Some(nr) = geometry.journal_inode else {
            return Ok(());
        };
        let Some(area) = area(&self.image, nr, &mut self.findings)? else {
            return Ok(());
        };
        let device = &*self.image.device;
        let found = inspect(device, area, geometry.block_size, geometry.blocks_count());
        let log = match found {
            Ok(log) => log,
            Err(Error::Corrupt(damage)) => {
                self.findings.corrupt(FindingKind::Journal, nr, &damage);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let is_due = geometry.incompat.contains(Incompat::RECOVER);
        if log.s_start.get() != 0 && !is_due && self.recovery.journal.is_none() {
            // Whoever opens the volume takes them for leftovers.
            let text = "the journal has transactions, which the superblock does not say";
            self.findings
                .add(Finding::warning(FindingKind::Journal, text).inode(nr));
        }
        if log.s_errno.get() != 0 {
            let text = "the journal was aborted, and what has happened since is not known";
            self.findings.inode(FindingKind::Journal, nr, text);
        }
        for (is_wrong, field, value) in [
            (
                log.s_feature_ro_compat.get() != 0,
                "s_feature_ro_compat",
                log.s_feature_ro_compat.get(),
            ),
            (log.s_nr_users.get() > 1, "s_nr_users", log.s_nr_users.get()),
        ] {
            if is_wrong {
                let damage = Corrupt::JournalSuperblockField { field, value };
                self.findings.corrupt(FindingKind::Journal, nr, &damage);
            }
        }
        Ok(())
    }
}
