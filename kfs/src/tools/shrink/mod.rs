//! A smaller volume, on an image that nobody serves.
//!
//! - `survey.rs`: what lies behind the new end, and whether it fits before it
//! - `journal.rs`: the journal gets a place before the new end
//! - `moves.rs`: blocks of files get places before the new end
//! - `numbers.rs`: inodes get numbers before those that go
//! - `fs/shrink.rs`: the end goes
//!
//! Invariants: until all is moved the volume has its old size, and after each transaction it is whole;
//! nothing has changed when shrinking is refused. Interrupted anywhere, the same call goes on.

mod journal;
mod moves;
mod numbers;
mod survey;

use crate::error::{Error, Result};
use crate::fs::{Filesystem, MountOptions, shortened, worthwhile};
use crate::ids::{BlockNr, GroupNr, InodeNr};
use crate::layout::superblock::STATE_ERROR;
use crate::layout::{Compat, Geometry};
use journal::Switch;
use kfs_disk::BlockDevice;
use moves::Mover;
use numbers::Renumber;
use std::ops::ControlFlow;
use std::sync::Arc;
use survey::Survey;

/// What shrinking is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShrinkPhase {
    /// Looking for what lies behind the new end, in groups.
    Survey,
    /// Moving it, in blocks.
    Move,
    /// Giving other numbers to inodes, in inodes.
    Renumber,
    /// Taking the end away, in groups.
    Cut,
}

/// How far shrinking is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShrinkProgress {
    /// What it is at.
    pub phase: ShrinkPhase,
    /// How much of that is done.
    pub done: u64,
    /// How much that is.
    pub total: u64,
}

/// What shrinking has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shrunk {
    /// Size of the volume before, in bytes.
    pub before_bytes: u64,
    /// Size now.
    pub size_bytes: u64,
    /// What it was to be: what was asked for, or a little less where the last group would be too small.
    pub target_bytes: u64,
    /// Blocks that were moved.
    pub moved_blocks: u64,
    /// Whether all is done; false when it was stopped.
    pub is_complete: bool,
}

/// Told how far it is, and asked whether to go on.
pub(super) type Watch<'w> = dyn FnMut(ShrinkProgress) -> ControlFlow<()> + 'w;

/// Makes the volume on `device` smaller. The device stays as long as it is; what lies behind `size_bytes`
/// is of no use then. `watch` may stop the work: the volume is whole then, and has its old size or, where it
/// was being cut already, one in between.
///
/// # Errors
/// `TooSmall`, `Shrink` and `Resize` when that cannot be; nothing has changed then. `ReadOnly`, `Corrupt`,
/// `Io`.
pub fn shrink(
    device: &Arc<dyn BlockDevice>,
    options: &MountOptions,
    size_bytes: u64,
    watch: &mut Watch<'_>,
) -> Result<Shrunk> {
    let mut journal_blocks = 0;
    loop {
        let fs = Filesystem::open(Arc::clone(device), options.clone())?;
        let result = shrink_open(&fs, size_bytes, watch);
        let closed = fs.close();
        drop(fs);
        let result = result?;
        closed?;
        match result {
            Outcome::Ended(mut shrunk) => {
                shrunk.moved_blocks += journal_blocks;
                return Ok(shrunk);
            }
            // Its end is trimmed when the volume is opened again.
            Outcome::Extended(switch, blocks) => {
                switch.make(&**device)?;
                journal_blocks += blocks;
            }
        }
    }
}

/// How far one opening of the volume came.
enum Outcome {
    /// All is done, or was stopped.
    Ended(Shrunk),
    /// The journal has another place, of so many blocks, which is to become that of its log.
    Extended(Box<Switch>, u64),
}

/// The size in bytes that a volume gets which is to have `size_bytes`: a last group that is too small is left
/// out. 0 where nothing is left.
#[must_use]
pub fn shrunk_size(geometry: &Geometry, size_bytes: u64) -> u64 {
    let blocks = worthwhile(geometry, size_bytes >> geometry.block_size_bits);
    geometry.offset_of(BlockNr(blocks))
}

/// The size in bytes, about, below which the volume on `device` cannot be made smaller.
///
/// # Errors
/// `NeedsRecovery` for one that was not closed, `Corrupt`, `Io`.
pub fn minimum_size(device: &Arc<dyn BlockDevice>) -> Result<u64> {
    let options = MountOptions {
        read_only: true,
        ..MountOptions::default()
    };
    let fs = Filesystem::open(Arc::clone(device), options)?;
    let blocks = Survey::minimum(&fs)?;
    Ok(fs.volume.geometry.offset_of(BlockNr(blocks)))
}

fn refused(why: impl Into<String>) -> Error {
    Error::Shrink { why: why.into() }
}

fn shrink_open(fs: &Filesystem, size_bytes: u64, watch: &mut Watch<'_>) -> Result<Outcome> {
    let geometry = &fs.volume.geometry;
    if let Some(reason) = fs.volume.read_only() {
        return Err(Error::ReadOnly { reason });
    }
    check_state(fs)?;
    journal::trim(fs)?;
    let before = geometry.blocks_count();
    let target = worthwhile(geometry, size_bytes >> geometry.block_size_bits);
    if target > before {
        return Err(refused("it is smaller than that already"));
    }
    if target == 0 {
        let blocks = Survey::minimum(fs)?;
        return Err(Error::TooSmall {
            minimum_bytes: geometry.offset_of(BlockNr(blocks)),
        });
    }
    let mut shrunk = Shrunk {
        before_bytes: geometry.offset_of(BlockNr(before)),
        size_bytes: 0,
        target_bytes: geometry.offset_of(BlockNr(target)),
        moved_blocks: 0,
        is_complete: true,
    };
    if target < before {
        fs.volume.journal.commit_all()?;
        let result = run(fs, target, &mut shrunk, watch);
        fs.volume.allocator.set_fence(u64::MAX);
        if let Some(extended) = result? {
            return Ok(extended);
        }
    } else {
        // What may have been left to do.
        fs.refresh_all_copies()?;
    }
    shrunk.size_bytes = geometry.offset_of(BlockNr(geometry.blocks_count()));
    Ok(Outcome::Ended(shrunk))
}

/// Fails for a volume that is not in order.
fn check_state(fs: &Filesystem) -> Result<()> {
    let superblock = fs.volume.superblock();
    let compat = superblock.compat();
    if superblock.s_state.get() & STATE_ERROR != 0 {
        return Err(refused("errors were found on it: run e2fsck first"));
    }
    if !compat.contains(Compat::HAS_JOURNAL) && !fs.was_clean() {
        return Err(refused(
            "it was not closed, and has no journal: run e2fsck first",
        ));
    }
    if !fs.orphans.all().is_empty() {
        return Err(refused(
            "files wait for the rest of their deletion: run e2fsck first",
        ));
    }
    if compat.contains(Compat::STABLE_INODES) {
        return Err(refused(
            "its inodes must keep their numbers (stable_inodes)",
        ));
    }
    if compat.contains(Compat::RESIZE_INODE) && fs.volume.geometry.first_meta_bg().is_some() {
        return Err(refused(
            "resize_inode and meta_bg exclude each other: run e2fsck first",
        ));
    }
    if let Some(damage) = fs.volume.allocator.damage() {
        return Err(damage.into());
    }
    let snapshots = fs.snapshots();
    if !snapshots.is_empty() || fs.volume.snapshots.store_inode().is_some() {
        let names: Vec<&str> = snapshots.iter().map(|one| one.name.as_str()).collect();
        return Err(refused(format!(
            "it has snapshots ({}): delete them first, with kfsctl snapshot delete",
            names.join(", ")
        )));
    }
    Ok(())
}

fn run(
    fs: &Filesystem,
    target: u64,
    shrunk: &mut Shrunk,
    watch: &mut Watch<'_>,
) -> Result<Option<Outcome>> {
    shrunk.is_complete = false;
    // What is clear from the counts needs no look at all inodes.
    Survey::check_size(fs, target)?;
    let Some(survey) = Survey::take(fs, target, watch)? else {
        return Ok(None);
    };
    survey.check_fit(fs)?;
    fs.volume.allocator.set_fence(target);
    if survey.has_journal() {
        let switch = journal::extend(fs)?;
        let blocks = survey.journal_blocks();
        return Ok(Some(Outcome::Extended(Box::new(switch), blocks)));
    }
    let mut mover = Mover::new(fs, BlockNr(target), survey.move_blocks, watch);
    let is_moved = mover.run(&survey.with_blocks)?;
    shrunk.moved_blocks = mover.moved();
    if !is_moved {
        return Ok(None);
    }
    let from = first_inode_behind(fs, target);
    if !Renumber::new(fs, from, watch).run(&survey.inodes_behind)? {
        return Ok(None);
    }
    // Nothing of what was there is to be written any more when the end is gone.
    fs.volume.journal.commit_all()?;
    fs.volume.journal.checkpoint()?;
    shrunk.is_complete = cut(fs, target, watch)?;
    Ok(None)
}

/// The lowest number of an inode in a group that goes.
fn first_inode_behind(fs: &Filesystem, target: u64) -> InodeNr {
    let geometry = &fs.volume.geometry;
    let groups = shortened(geometry, target).groups_count();
    geometry.inode_nr(GroupNr(groups), 0)
}

/// Takes the end away. Returns false when it was stopped.
fn cut(fs: &Filesystem, target: u64, watch: &mut Watch<'_>) -> Result<bool> {
    let geometry = &fs.volume.geometry;
    let per_group = u64::from(geometry.blocks_per_group);
    let total = (geometry.blocks_count() - target).div_ceil(per_group);
    while geometry.blocks_count() > target {
        let left = (geometry.blocks_count() - target).div_ceil(per_group);
        let progress = ShrinkProgress {
            phase: ShrinkPhase::Cut,
            done: total - left,
            total,
        };
        if watch(progress).is_break() {
            return Ok(false);
        }
        fs.shrink_step(target)?;
    }
    fs.refresh_all_copies()?;
    fs.volume.journal.commit_all()?;
    Ok(true)
}
