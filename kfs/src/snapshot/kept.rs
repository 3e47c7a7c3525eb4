//! Which blocks snapshots keep: they are neither overwritten in place nor handed out.
//!
//! A block is kept when it was in use as some snapshot sees the bitmaps. That holds for metadata, too,
//! though its old content is in the store: so all blocks of a snapshot are where they were, and the
//! volume can be set back to it. Where the store is damaged and nobody knows what was in use, all of a group is
//! kept: that costs room until the snapshot is deleted, and nothing else.

use super::{OldContent, Snapshots};
use crate::allocator::{KeptBlocks, LiveBitmap};
use crate::error::{Error, Result};
use crate::ids::GroupNr;
use crate::layout::{GroupFlags, RawGroupDesc};
use std::sync::atomic::Ordering;

/// What one snapshot sees of a group differently from the next newer one.
struct Difference {
    snapshot: u32,
    /// Not so for one that is being deleted: what it has belongs to the next older one.
    counts: bool,
    /// Another block bitmap.
    bitmap: Option<OldContent>,
    /// Another descriptor.
    desc: Option<OldContent>,
}

impl KeptBlocks for Snapshots {
    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    fn is_active(&self) -> bool {
        Snapshots::is_active(self)
    }

    fn keeps_any(&self) -> bool {
        !self.state.read().table.snapshots.is_empty()
    }

    fn kept(&self, group: GroupNr, live: &LiveBitmap<'_>) -> Result<Vec<u64>> {
        let mut all = vec![0u64; live.bytes.len() / 8];
        self.each_kept(group, live, |_, kept| {
            all.iter_mut()
                .zip(kept)
                .for_each(|(all, kept)| *all |= kept);
        })?;
        Ok(all)
    }
}

impl Snapshots {
    /// Tells for each snapshot, newest first, which blocks of a group it keeps.
    pub(crate) fn each_kept(
        &self,
        group: GroupNr,
        live: &LiveBitmap<'_>,
        mut visit: impl FnMut(u32, &[u64]),
    ) -> Result<()> {
        let size = live.bytes.len();
        let mut bitmap = live.bytes.to_vec();
        let mut is_uninit = live.is_uninit;
        let mut is_known = true;
        let mut kept = vec![0u64; size / 8];
        let mut content = vec![0; size];
        let _reading = self.readers.read();
        for difference in self.differences(group, live) {
            if let Some(old) = &difference.bitmap {
                is_known = self.can_read_old(old, &mut bitmap, group)?;
            }
            if let Some(old) = &difference.desc {
                // If nobody knows, it may have been written: too much is kept, never too little.
                is_uninit =
                    self.can_read_old(old, &mut content, group)? && self.is_uninit(group, &content);
            }
            if !difference.counts {
                continue;
            }
            if is_uninit {
                kept.fill(0);
            } else if !is_known {
                kept.fill(u64::MAX);
            } else {
                for (kept, bits) in kept.iter_mut().zip(words(&bitmap)) {
                    *kept = bits;
                }
            }
            self.cut(difference.snapshot, group, &mut kept)?;
            visit(difference.snapshot, &kept);
        }
        Ok(())
    }

    /// Reads what a group's bitmap or a block of descriptors was. False if that is damaged.
    fn can_read_old(&self, old: &OldContent, content: &mut [u8], group: GroupNr) -> Result<bool> {
        match self.read_old(old, content) {
            Ok(()) => Ok(true),
            Err(Error::Corrupt(damage)) => {
                if !self.damage_is_told.swap(true, Ordering::Relaxed) {
                    log::error!(
                        "the snapshot store is damaged: {damage}; what snapshots see of group {group}, and of others perhaps, cannot be read, and free blocks are kept for them until they are deleted"
                    );
                }
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// What is behind the end that the volume had then is no block of the snapshot.
    fn cut(&self, snapshot: u32, group: GroupNr, kept: &mut [u64]) -> Result<()> {
        let count = match self.blocks_count_at(snapshot) {
            Err(Error::Corrupt(_)) => return Ok(()),
            count => count?,
        };
        let first = self.geometry.group_first_block(group).0;
        let left = count.saturating_sub(first);
        let end = usize::try_from(left).unwrap_or(usize::MAX);
        for (word, at) in kept.iter_mut().zip((0..).step_by(64)) {
            let bits = end.saturating_sub(at);
            if bits < 64 {
                *word &= (1 << bits) - 1;
            }
        }
        Ok(())
    }

    /// Whether a block of the descriptor table says that a group's block bitmap was never written.
    fn is_uninit(&self, group: GroupNr, table: &[u8]) -> bool {
        let (_, offset) = self.geometry.desc_location(group);
        let end = offset + self.geometry.desc_size as usize;
        let desc = RawGroupDesc::from_slice(&table[offset..end]);
        self.geometry.has_group_checksums() && desc.flags().contains(GroupFlags::BLOCK_UNINIT)
    }

    /// What the snapshots see of a group, newest first.
    fn differences(&self, group: GroupNr, live: &LiveBitmap<'_>) -> Vec<Difference> {
        let (desc_block, _) = self.geometry.desc_location(group);
        let state = self.state.read();
        let ids = state.index.newest_first();
        let mut differences: Vec<Difference> = ids
            .map(|id| {
                let old = |block| state.index.own(id, block).map(OldContent::Stored);
                Difference {
                    snapshot: id,
                    counts: state.table.snapshots.iter().any(|record| record.id == id),
                    bitmap: old(live.block.0),
                    desc: old(desc_block.0),
                }
            })
            .collect();
        // What waits for its commit belongs to the newest.
        if let Some(newest) = differences.first_mut() {
            let pending = |block: u64| {
                let (_, content) = state.pending.get(&block)?;
                Some(OldContent::InMemory(content.clone()))
            };
            newest.bitmap = newest.bitmap.take().or_else(|| pending(live.block.0));
            newest.desc = newest.desc.take().or_else(|| pending(desc_block.0));
        }
        differences
    }

    /// The groups whose bitmaps have changed under a snapshot: others keep no free blocks.
    pub(crate) fn groups_with_pins(&self, bitmaps: &[u64]) -> Vec<GroupNr> {
        let state = self.state.read();
        let Some(oldest) = state.table.snapshots.first() else {
            return Vec::new();
        };
        let changed = |block: &u64| state.find(oldest.id, *block).is_some();
        let groups = bitmaps.iter().enumerate();
        groups
            .filter(|(_, block)| changed(block))
            .map(|(nr, _)| GroupNr(nr as u32))
            .collect()
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    bytes
        .chunks_exact(8)
        .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("chunks of eight")))
}
