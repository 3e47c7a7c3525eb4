//! Keeping the old content of metadata blocks, as the journal hands them over.

use super::growth::SPARE_SEGMENTS;
use super::store::Content;
use super::{Snapshots, State};
use crate::ids::Tid;
use crate::snapshot::format::Kind;
use crate::storage::{Buffer, PreImageSink, StorePurpose};
use std::sync::Arc;

impl State {
    /// Whether a snapshot may see a block that is about to change for the first time since it was
    /// taken.
    fn wants(&self, block: u64) -> bool {
        !self.index.newest_has(block)
            && !self.pending.contains_key(&block)
            && !self.fresh.contains(&block)
    }
}

impl PreImageSink for Snapshots {
    fn reserve(&self, blocks: u32, purpose: StorePurpose) -> bool {
        if !self.is_active() {
            return true;
        }
        let Ok(store) = self.store() else { return true };
        let pending = self.state.read().pending.len() as u64;
        let mut reserved = self.reserved.lock();
        let spare = match purpose {
            StorePurpose::Operation => SPARE_SEGMENTS,
            StorePurpose::Growth => 0,
        };
        let wanted = *reserved + u64::from(blocks);
        let fits = store.has_room_for(wanted + pending, spare);
        if fits {
            *reserved = wanted;
        }
        fits
    }

    fn release(&self, blocks: u32) {
        let mut reserved = self.reserved.lock();
        *reserved = reserved.saturating_sub(blocks.into());
    }

    fn join(&self, tid: Tid, buffer: &Buffer, is_new: bool) {
        if !self.is_active() {
            return;
        }
        let block = buffer.nr().0;
        let mut state = self.state.write();
        if is_new && state.wants(block) {
            state.fresh.insert(block);
        } else if state.wants(block) {
            state.pending.insert(block, (tid, buffer.freeze()));
        }
        drop(state);
        // Afterwards: what is on its way from the one to the other counts twice rather than not at all.
        self.release(1);
    }

    fn write_out(&self, tid: Tid) -> crate::Result<()> {
        let taken: Vec<(u64, Arc<[u8]>)> = {
            let state = self.state.read();
            let pending = state.pending.iter();
            pending
                .filter(|(_, (taken, _))| !taken.is_after(tid))
                .map(|(block, (_, content))| (*block, Arc::clone(content)))
                .collect()
        };
        let newest = self.state.read().index.newest();
        let Some(snapshot) = newest.filter(|_| !taken.is_empty()) else {
            self.forget_pending(&taken);
            return Ok(());
        };
        let store = self.store()?;
        let content: Vec<Content<'_>> = taken
            .iter()
            .map(|(block, content)| Content {
                block: *block,
                taken: None,
                bytes: content,
            })
            .collect();
        let locations = store.append(Kind::PreImages { snapshot }, &content)?;
        let mut unneeded = Vec::new();
        let mut state = self.state.write();
        for ((block, _), location) in taken.iter().zip(locations) {
            state.pending.remove(block);
            if !state.index.insert(snapshot, *block, location) {
                unneeded.push(location);
            }
        }
        drop(state);
        store.release(&unneeded);
        Ok(())
    }
}

impl Snapshots {
    fn forget_pending(&self, taken: &[(u64, Arc<[u8]>)]) {
        if taken.is_empty() {
            return;
        }
        let mut state = self.state.write();
        for (block, _) in taken {
            state.pending.remove(block);
        }
    }
}
