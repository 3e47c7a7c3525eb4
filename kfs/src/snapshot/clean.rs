//! Cleaning the store: what is needed in sparse segments is copied, and they can be written anew.
//!
//! ```text
//!   1. what is on its way is committed, so that all of the store is the file's for good
//!   2. what is needed in some segments is looked up, and is durable after a FLUSH
//!   3. it is appended once more, as moved pre-images, FLUSH
//!   4. the index names the copies
//!   5. who still reads where it was has ended: the segments are free
//! ```
//!
//! Where one snapshot stays and others come and go, a few blocks of each segment are the first content of
//! theirs since that one. The store would grow with all old metadata that ever was.

use super::Snapshots;
use super::format::{Kind, SEGMENT_BLOCKS, Taken};
use super::growth::GrowthParts;
use super::index::Index;
use super::store::{Content, Found, Location, Store};
use crate::error::Result;
use crate::storage::{Handle, PreImageSink, StorePurpose};

/// A segment is sparse if no more blocks than these are needed in it.
const SPARSE_BLOCKS: u32 = SEGMENT_BLOCKS / 4;
/// Segments that are cleaned at once: about as many as a growth would add.
const SEGMENTS_MAX: usize = 32;
/// Segments that must stay free meanwhile: a table finds room, so that a snapshot can be deleted.
const SPARE_FOR_TABLE: u64 = 1;
/// Blocks that are copied with one handle, which others may have to wait for.
const COPIES_MAX: usize = 256;

/// A block that is to be copied.
struct Needed {
    taken: Taken,
    block: u64,
    from: Location,
}

/// Segments with what is needed in them.
type Sparse = Vec<(u32, Vec<Needed>)>;

impl Needed {
    /// Whether it still is.
    fn is_needed(&self, index: &Index) -> bool {
        index.needs(self.taken.snapshot, self.block, self.from)
    }
}

impl Snapshots {
    /// Cleans segments if at least so many are sparse. Returns whether there is more room now.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn clean(
        &self,
        parts: &GrowthParts<'_>,
        store: &Store,
        least: usize,
    ) -> Result<bool> {
        // A damaged store is left as it is, and so is one that a volume is being set back from.
        if self.check_sound().is_err() || self.restoring().is_some() {
            return Ok(false);
        }
        if self.sparse_segments(store).len() < least {
            return Ok(false);
        }
        parts.journal.commit_all()?;
        let mut waiting = self.needed_in(store, &self.sparse_segments(store));
        // Others may have committed since: what would be voided if the power went now is not to be copied.
        store
            .flush_appended()
            .inspect_err(|error| parts.journal.abort(error))?;
        let mut freed = 0;
        while !waiting.is_empty() {
            // No freeze begins meanwhile, and none lasts.
            let handle = parts.journal.start_for(0, StorePurpose::Growth)?;
            let (chosen, promised) = self.choose(store, &mut waiting);
            if chosen.is_empty() {
                break;
            }
            let segments: Vec<u32> = chosen.iter().map(|(nr, _)| *nr).collect();
            let copied = self.copy(store, chosen, &handle);
            self.release(promised);
            drop(handle);
            // If it failed they are held to the end: what was to be copied must not be written over.
            let copied = copied?;
            store.let_segments_go(&segments);
            self.give_up(store, &copied);
            freed += store.count_free(&segments);
        }
        Ok(freed > 0)
    }

    /// Without those that hold the table: it is written anew with the next change.
    fn sparse_segments(&self, store: &Store) -> Vec<u32> {
        let mut segments = store.sparsest(SPARSE_BLOCKS, SEGMENTS_MAX);
        let state = self.state.read();
        let holds_table = |nr: u32| state.table_blocks.iter().any(|at| at.segment() == nr);
        segments.retain(|nr| !holds_table(*nr));
        segments
    }

    /// What is needed in some segments, given the sparsest first, which comes last. Those are left out of which
    /// not all is found: something has just come or gone.
    fn needed_in(&self, store: &Store, segments: &[u32]) -> Sparse {
        let mut sparse = Sparse::new();
        for nr in segments.iter().rev() {
            let Ok(batches) = store.batches_of(*nr) else {
                store.pass_by(*nr);
                continue;
            };
            let all = batches.iter().flat_map(Found::pre_images);
            let all = all.map(|(taken, block, from)| Needed { taken, block, from });
            let state = self.state.read();
            let needed: Vec<Needed> = all.filter(|one| one.is_needed(&state.index)).collect();
            drop(state);
            if store.needed_count(*nr) == needed.len() {
                sparse.push((*nr, needed));
            }
        }
        sparse
    }

    /// Chooses the last of the segments, as many as there is room for what is needed in them, and promises that
    /// room. Returns how much it is. The segments are held: a deletion may free them, but they are not written anew.
    fn choose(&self, store: &Store, waiting: &mut Sparse) -> (Sparse, u32) {
        let mut chosen = Sparse::new();
        let mut count = 0;
        let mut reserved = self.reserved.lock();
        // Behind that lock, as what joins a transaction goes from the one to the other.
        let pending = self.state.read().pending.len() as u64;
        while let Some((nr, needed)) = waiting.pop() {
            let with = count + needed.len();
            let wanted = *reserved + pending + with as u64;
            if with > COPIES_MAX || !store.has_room_for(wanted, SPARE_FOR_TABLE) {
                waiting.push((nr, needed));
                break;
            }
            store.hold_segment(nr);
            // If nothing of it is needed any more it may be in another life.
            let index = &self.state.read().index;
            if needed.iter().any(|one| one.is_needed(index)) {
                count = with;
                chosen.push((nr, needed));
            } else {
                store.let_segments_go(&[nr]);
            }
        }
        *reserved += count as u64;
        (chosen, count as u32)
    }

    /// Copies what is needed in segments, durably. Returns where it was.
    fn copy(&self, store: &Store, segments: Sparse, handle: &Handle<'_>) -> Result<Vec<Location>> {
        let size = self.geometry.block_size as usize;
        let mut bytes = Vec::new();
        let mut needed = Vec::new();
        for (nr, in_segment) in segments {
            let before = bytes.len();
            if read_all(store, size, &in_segment, &mut bytes) {
                needed.extend(in_segment);
                continue;
            }
            bytes.truncate(before);
            let index = &self.state.read().index;
            if in_segment.iter().all(|one| one.is_needed(index)) {
                // Who needs what is damaged will see; it stays where it is.
                store.pass_by(nr);
            }
        }
        if needed.is_empty() {
            return Ok(Vec::new());
        }
        let content = needed.iter().zip(bytes.chunks_exact(size));
        let content = content.map(|(needed, bytes)| Content {
            block: needed.block,
            taken: Some(needed.taken),
            bytes,
        });
        let content: Vec<Content<'_>> = content.collect();
        let copies = store
            .append(Kind::Moved, &content)
            .and_then(|copies| store.flush_appended().map(|()| copies))
            // Only the last copies may be torn when a store is opened, so there must not be others later.
            .inspect_err(|error| handle.abort(error))?;
        Ok(self.name_copies(store, &needed, copies))
    }

    /// From now on the index names the copies. Returns what was copied, of what is still needed.
    fn name_copies(
        &self,
        store: &Store,
        needed: &[Needed],
        copies: Vec<Location>,
    ) -> Vec<Location> {
        let mut moved = Vec::with_capacity(copies.len());
        let mut unneeded = Vec::new();
        let mut state = self.state.write();
        for (needed, copy) in needed.iter().zip(copies) {
            let Needed { taken, block, from } = *needed;
            if state.index.relocate(taken.snapshot, block, from, copy) {
                moved.push(from);
            } else {
                unneeded.push(copy);
            }
        }
        drop(state);
        store.release(&unneeded);
        moved
    }
}

/// Reads blocks, one behind the other. False if one cannot be read.
fn read_all(store: &Store, size: usize, needed: &[Needed], bytes: &mut Vec<u8>) -> bool {
    needed.iter().all(|needed| {
        let at = bytes.len();
        bytes.resize(at + size, 0);
        store.read_content(needed.from, &mut bytes[at..]).is_ok()
    })
}
