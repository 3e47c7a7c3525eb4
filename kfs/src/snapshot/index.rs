//! Where the pre-images of each snapshot are: by block, the oldest content that counts.
//!
//! A snapshot sees a block as its own pre-image has it, else as the next newer snapshot sees it, else
//! as it is in place. A pre-image that was taken for a snapshot which is deleted by now belongs to
//! the next older one, unless that has its own; without an older one nobody needs it.

use super::store::Location;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;

/// The pre-images of one snapshot, by block.
type Records = BTreeMap<u64, Location>;

/// Snapshots that a pre-image may belong to, as it may just be on its way from a deleted one to the next older.
const OWNERS: usize = 2;

/// The pre-images of all snapshots.
#[derive(Default)]
pub(super) struct Index {
    /// Those being deleted are here until their pre-images have found an owner.
    snapshots: BTreeMap<u32, Records>,
    /// The newest that is not being deleted.
    newest: Option<u32>,
}

impl Index {
    /// Adds a snapshot without pre-images, the newest of all.
    pub(super) fn add(&mut self, id: u32) {
        self.snapshots.entry(id).or_default();
        self.newest = Some(id);
    }

    /// The newest snapshot.
    pub(super) fn newest(&self) -> Option<u32> {
        self.newest
    }

    /// Enters a pre-image that was taken when `snapshot`, which may be deleted, was the newest. Those of a
    /// block must come in the order in which they were taken. Returns whether anyone needs it.
    pub(super) fn insert(&mut self, snapshot: u32, block: u64, location: Location) -> bool {
        let Some((_, records)) = self.snapshots.range_mut(..=snapshot).next_back() else {
            return false;
        };
        match records.entry(block) {
            Entry::Vacant(vacant) => {
                vacant.insert(location);
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// Whether the newest snapshot has a pre-image, so that the block may be overwritten.
    pub(super) fn newest_has(&self, block: u64) -> bool {
        self.newest
            .is_some_and(|newest| self.find(newest, block).is_some())
    }

    /// The pre-image through which a snapshot sees a block; `None` where that is in place.
    pub(super) fn find(&self, snapshot: u32, block: u64) -> Option<Location> {
        self.snapshots
            .range(snapshot..)
            .find_map(|(_, records)| records.get(&block).copied())
    }

    /// The first block of a range that a snapshot does not see in place.
    pub(super) fn next_moved(&self, snapshot: u32, blocks: Range<u64>) -> Option<u64> {
        self.snapshots
            .range(snapshot..)
            .filter_map(|(_, records)| records.range(blocks.clone()).next())
            .map(|(block, _)| *block)
            .min()
    }

    /// The snapshots, newest first, with those whose pre-images have not found an owner yet.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = u32> + '_ {
        self.snapshots.keys().rev().copied()
    }

    /// All blocks with pre-images that a snapshot sees, each once.
    pub(super) fn blocks_seen_by(&self, snapshot: u32) -> Vec<u64> {
        let seen = self.snapshots.range(snapshot..);
        let mut blocks: Vec<u64> = seen
            .flat_map(|(_, records)| records.keys().copied())
            .collect();
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    /// Whether somebody needs the pre-image at a place, which was taken when `snapshot` was the newest.
    pub(super) fn needs(&self, snapshot: u32, block: u64, place: Location) -> bool {
        let mut owners = self.snapshots.range(..=snapshot).rev().take(OWNERS);
        owners.any(|(_, records)| records.get(&block) == Some(&place))
    }

    /// A pre-image has a new place. False if nobody needs it.
    pub(super) fn relocate(
        &mut self,
        snapshot: u32,
        block: u64,
        from: Location,
        to: Location,
    ) -> bool {
        let owners = self.snapshots.range_mut(..=snapshot).rev().take(OWNERS);
        let mut places = owners.filter_map(|(_, records)| records.get_mut(&block));
        let place = places.find(|place| **place == from);
        place.map(|place| *place = to).is_some()
    }

    /// The pre-image that is a snapshot's own.
    pub(super) fn own(&self, snapshot: u32, block: u64) -> Option<Location> {
        self.snapshots.get(&snapshot)?.get(&block).copied()
    }

    /// Pre-images that nobody would need if a snapshot were not there.
    pub(super) fn unneeded_without(&self, snapshot: u32) -> u64 {
        let Some(records) = self.snapshots.get(&snapshot) else {
            return 0;
        };
        let older = self.snapshots.range(..snapshot).next_back();
        match older {
            None => records.len() as u64,
            Some((_, older)) => records
                .keys()
                .filter(|block| older.contains_key(block))
                .count() as u64,
        }
    }

    /// A snapshot is deleted: from now on pre-images are taken for the newest of those in `left`.
    pub(super) fn retire(&mut self, left: &[u32]) {
        self.newest = left.last().copied();
    }

    /// Gives up to `limit` pre-images of a retired snapshot to the next older one. Returns those that
    /// nobody needs, or `None` when the snapshot has none left and is gone.
    pub(super) fn remove_some(&mut self, snapshot: u32, limit: usize) -> Option<Vec<Location>> {
        let records = self.snapshots.get_mut(&snapshot)?;
        if records.is_empty() {
            self.snapshots.remove(&snapshot);
            return None;
        }
        let rest = match records.keys().nth(limit).copied() {
            Some(next) => records.split_off(&next),
            None => Records::new(),
        };
        let moved = std::mem::replace(records, rest);
        let older = self.snapshots.range_mut(..snapshot).next_back();
        let Some((_, older)) = older else {
            return Some(moved.into_values().collect());
        };
        let mut unneeded = Vec::new();
        for (block, location) in moved {
            match older.entry(block) {
                Entry::Vacant(vacant) => {
                    vacant.insert(location);
                }
                Entry::Occupied(_) => unneeded.push(location),
            }
        }
        Some(unneeded)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(block: u32) -> Location {
        Location { block, checksum: 0 }
    }

    #[test]
    fn a_snapshot_sees_the_first_content_after_it() {
        let mut index = Index::default();
        for id in [1, 2, 3] {
            index.add(id);
        }
        assert!(index.insert(2, 50, at(1)));
        assert!(index.insert(3, 50, at(2)));
        assert!(index.insert(3, 60, at(3)));
        assert_eq!(index.find(1, 50), Some(at(1)));
        assert_eq!(index.find(3, 50), Some(at(2)));
        assert_eq!(index.find(2, 60), Some(at(3)));
        assert_eq!(index.find(1, 70), None);
        assert_eq!(index.next_moved(1, 51..100), Some(60));
        assert!(index.newest_has(60) && !index.newest_has(70));
    }

    #[test]
    fn deleting_keeps_what_older_ones_see() {
        let mut index = Index::default();
        for id in [1, 2, 3] {
            index.add(id);
        }
        index.insert(1, 10, at(1));
        index.insert(2, 10, at(2));
        index.insert(2, 20, at(3));
        assert_eq!(index.unneeded_without(2), 1);
        index.retire(&[1, 3]);
        let mut unneeded = Vec::new();
        while let Some(some) = index.remove_some(2, 1) {
            assert_eq!(index.find(1, 20), Some(at(3)));
            unneeded.extend(some);
        }
        assert_eq!(unneeded, [at(2)]);
        assert_eq!(index.find(1, 10), Some(at(1)));
        assert_eq!(index.find(1, 20), Some(at(3)));
        assert_eq!(index.find(3, 20), None);
        // As read back from the store, where they still bear the deleted one's id.
        assert!(index.insert(2, 30, at(4)));
        assert!(!index.insert(2, 10, at(2)));
        index.retire(&[3]);
        assert_eq!(index.remove_some(1, 10).map(|some| some.len()), Some(3));
        assert_eq!(index.remove_some(1, 10), None);
        assert!(!index.insert(2, 30, at(4)));
    }

    #[test]
    fn the_newest_may_go_while_others_write() {
        let mut index = Index::default();
        index.add(1);
        index.add(2);
        index.insert(2, 10, at(1));
        index.retire(&[1]);
        assert_eq!(index.newest(), Some(1));
        assert!(index.newest_has(10));
        assert!(index.insert(1, 20, at(2)));
        while index.remove_some(2, 1).is_some() {}
        assert_eq!(index.find(1, 10), Some(at(1)));
        assert!(index.own(1, 10).is_some() && index.own(1, 20).is_some());
    }
}
