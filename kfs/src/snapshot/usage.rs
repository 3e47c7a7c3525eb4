//! Who holds how much space.

use super::Snapshots;
use crate::allocator::Allocator;
use crate::error::{Error, Result};

/// What a snapshot holds of what the volume does not use any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotUsage {
    /// Bytes that only this snapshot keeps: deleting it frees them.
    pub unique_bytes: u64,
    /// Bytes that it keeps together with others.
    pub shared_bytes: u64,
    /// Bytes of old metadata in the store that go with it.
    pub metadata_bytes: u64,
}

impl Snapshots {
    /// What each snapshot holds, oldest first as in [`Snapshots::list`]. Looks at each group that has
    /// changed since the oldest.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn usage(&self, allocator: &Allocator) -> Result<Vec<SnapshotUsage>> {
        let ids = self.state.read().table.ids();
        let mut usage = vec![SnapshotUsage::default(); ids.len()];
        let size = u64::from(self.geometry.block_size);
        for group in self.groups_with_pins(&allocator.block_bitmaps()) {
            let looked = allocator.with_live_bitmap(group, |live| {
                let mut once: Vec<u64> = vec![0; live.bytes.len() / 8];
                let mut twice = once.clone();
                let mut sets = Vec::with_capacity(ids.len());
                self.each_kept(group, live, |id, kept| {
                    let mut pinned = kept.to_vec();
                    if !live.is_uninit {
                        for (bits, live) in pinned.iter_mut().zip(live.bytes.chunks_exact(8)) {
                            let live = live.try_into().expect("chunks of eight");
                            *bits &= !u64::from_le_bytes(live);
                        }
                    }
                    for ((bits, once), twice) in pinned.iter().zip(&mut once).zip(&mut twice) {
                        *twice |= *once & bits;
                        *once |= bits;
                    }
                    sets.push((id, pinned));
                })?;
                for (id, pinned) in sets {
                    let Ok(at) = ids.binary_search(&id) else {
                        continue;
                    };
                    for (bits, twice) in pinned.iter().zip(&twice) {
                        usage[at].unique_bytes += u64::from((bits & !twice).count_ones()) * size;
                        usage[at].shared_bytes += u64::from((bits & twice).count_ones()) * size;
                    }
                }
                Ok(())
            });
            match looked {
                // Of a damaged group nobody knows.
                Err(Error::Corrupt(_)) => {}
                looked => looked?,
            }
        }
        let state = self.state.read();
        for (id, usage) in ids.iter().zip(&mut usage) {
            usage.metadata_bytes = state.index.unneeded_without(*id) * size;
        }
        Ok(usage)
    }

    /// Bytes of the store's file, and bytes of content in it that somebody needs.
    #[must_use]
    pub fn store_bytes(&self) -> (u64, u64) {
        let size = u64::from(self.geometry.block_size);
        self.store().map_or((0, 0), |store| {
            (store.blocks_count() * size, store.blocks_needed() * size)
        })
    }

    /// Blocks that a snapshot sees otherwise than in place: metadata that has changed since.
    pub(crate) fn changed_blocks(&self, snapshot: u32) -> Vec<u64> {
        let state = self.state.read();
        let mut blocks = state.index.blocks_seen_by(snapshot);
        blocks.extend(state.pending.keys());
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }
}
