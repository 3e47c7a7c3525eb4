//! A read-only check of a whole volume, as `e2fsck -fn` does it.
//!
//! ```text
//!  superblock  features, fields, copies        journal   replayed in memory where it must be
//!  groups      descriptors, fixed metadata     orphans   who is in use without a name
//!  inodes      fields, blocks, attributes   -> Claims, States
//!  directories blocks, hash trees, entries  -> names, parents
//!  links       one tree, counts of names
//!  bitmaps     against Claims and States; counters
//! ```
//!
//! What it keeps to:
//! - nothing is ever written, and nothing that is read is believed before it was checked;
//! - damage is a [`Finding`], the check goes on behind it; only a failing device, or a volume that
//!   cannot be judged (no superblock, features that kfs cannot write), is an error;
//! - memory is a few bits a block and a few bytes an inode in use, and no number from the image makes
//!   it more than what the image really holds;
//! - what e2fsck calls broken is never [`Verdict::Clean`] (`tests/tests/check.rs`).

mod bitmaps;
mod bits;
mod blocks;
mod claims;
mod directories;
mod fields;
mod groups;
mod htree;
mod image;
mod inodes;
mod journal;
mod links;
mod orphans;
mod overlay;
mod report;
mod resize;
mod states;
mod superblock;
mod xattrs;

pub use report::{CheckReport, Finding, FindingKind, Recovery, Replay, Severity, Totals, Verdict};

use crate::error::{Error, Result};
use crate::layout::{Incompat, RawSuperblock};
use claims::Claims;
use groups::Groups;
use image::Image;
use journal::Replayed;
use kfs_disk::BlockDevice;
use links::Directory;
use orphans::Orphans;
use report::Findings;
use states::States;
use std::ops::ControlFlow;
use std::sync::Arc;
use superblock::Opened;
use xattrs::XattrBlocks;

/// How to check.
#[derive(Clone, Copy, Debug)]
pub struct CheckOptions {
    /// Findings that the report lists; all are counted.
    pub findings_max: usize,
    /// Bytes of memory for the replay of a journal.
    pub replay_bytes_max: u64,
    /// The device shows a snapshot: the log in it is that of the volume as it goes on.
    pub is_snapshot: bool,
}

impl Default for CheckOptions {
    fn default() -> Self {
        Self {
            findings_max: 1000,
            replay_bytes_max: 2 << 30,
            is_snapshot: false,
        }
    }
}

/// What a check is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The inode tables.
    Inodes,
    /// The directories.
    Directories,
    /// Bitmaps and counters.
    Bitmaps,
}

/// How far a phase is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// The phase.
    pub phase: Phase,
    /// Steps done.
    pub done: u64,
    /// Steps in all.
    pub total: u64,
}

/// Checks the volume on `device`, which nobody may change meanwhile. `progress` is told how far it is, and may end
/// it.
///
/// # Errors
/// `Corrupt` when there is no superblock at all, `Unsupported` for features whose rules are not
/// known, `Interrupted`, `Io`. Never for damage, which is what the report is for.
pub fn check(
    device: Arc<dyn BlockDevice>,
    options: &CheckOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<CheckReport> {
    let mut findings = Findings::new(options.findings_max);
    let mut recovery = Recovery::default();
    let Some(mut opened) = superblock::open(device, &mut findings)? else {
        return Ok(findings.into_report(Totals::default(), recovery, false));
    };
    if opened.superblock.incompat().contains(Incompat::RECOVER) {
        match journal::replay(&opened.image, options.replay_bytes_max, &mut findings)? {
            Replayed::Done(device, replay) => {
                recovery.journal = Some(replay);
                // The journal may have held the superblock. What was wrong with the one before
                // keeps the journal from being replayed at all.
                let mut after = Findings::new(options.findings_max);
                let again = superblock::open(device, &mut after)?;
                if findings.is_empty() {
                    findings = after;
                }
                match again {
                    Some(again) => opened = again,
                    None => return Ok(findings.into_report(Totals::default(), recovery, false)),
                }
            }
            Replayed::Failed => {
                return Ok(findings.into_report(Totals::default(), recovery, false));
            }
        }
    }
    Checker::new(opened, findings, recovery, progress)?.run(options)
}

/// A check under way.
struct Checker<'p> {
    image: Image,
    superblock: RawSuperblock,
    groups: Groups,
    findings: Findings,
    claims: Claims,
    states: States,
    /// By number.
    directories: Vec<Directory>,
    xattr_blocks: XattrBlocks,
    orphans: Orphans,
    has_lost_found: bool,
    /// Nodes and directory blocks that may still be read outside the walk that claims blocks: a
    /// damaged volume may have many inodes name the same ones.
    walk_budget: u64,
    totals: Totals,
    recovery: Recovery,
    phase: Phase,
    progress: &'p mut dyn FnMut(Progress) -> ControlFlow<()>,
}

impl<'p> Checker<'p> {
    fn new(
        opened: Opened,
        findings: Findings,
        recovery: Recovery,
        progress: &'p mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self> {
        let Opened { image, superblock } = opened;
        let geometry = image.geometry.clone();
        let totals = Totals {
            block_size: geometry.block_size,
            inodes: geometry.inodes_count().into(),
            blocks: geometry.blocks_count(),
            ..Totals::default()
        };
        Ok(Self {
            groups: Groups::read(&image)?,
            claims: Claims::new(&geometry),
            states: States::new(&geometry),
            directories: Vec::new(),
            xattr_blocks: XattrBlocks::new(&geometry),
            orphans: Orphans::default(),
            has_lost_found: false,
            walk_budget: geometry.blocks_count(),
            phase: Phase::Inodes,
            image,
            superblock,
            findings,
            totals,
            recovery,
            progress,
        })
    }

    fn run(mut self, options: &CheckOptions) -> Result<CheckReport> {
        self.check_state();
        self.check_backups()?;
        self.check_groups();
        if !options.is_snapshot {
            self.check_journal()?;
        }
        self.find_orphans()?;
        self.check_inodes()?;
        self.check_xattr_counts();
        self.report_shared()?;
        self.phase = Phase::Directories;
        self.check_directories()?;
        self.check_connectivity();
        self.check_links();
        self.phase = Phase::Bitmaps;
        self.check_bitmaps()?;
        Ok(self.findings.into_report(self.totals, self.recovery, true))
    }

    fn step(&mut self, done: u64, total: u64) -> Result<()> {
        let progress = Progress {
            phase: self.phase,
            done,
            total,
        };
        match (self.progress)(progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Error::Interrupted),
        }
    }
}
