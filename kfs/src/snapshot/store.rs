//! The snapshot store: a hidden file, written as a log of batches into segments.
//!
//! What a batch says is found again by reading the heads of all segments when the volume is opened.
//! A segment whose last needed block is gone may be written anew. The file only grows while there are
//! snapshots, so blocks that were the store's when a snapshot was taken are the store's still.

use super::format::{
    Batch, Entry, Kind, SEGMENT_BLOCKS, StoreId, blocks_for, decode_segment, encode_segment,
    entries_max, store_of_segment,
};
use crate::corrupt::Corrupt;
use crate::error::{Error, IoOp, Result};
use crate::ids::{BlockNr, Run};
use kfs_disk::BlockDevice;
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::io::IoSlice;
use std::sync::Arc;

/// One block of content in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Location {
    /// Block within the store.
    pub(super) block: u32,
    /// crc32c of the content.
    pub(super) checksum: u32,
}

/// What is to be appended: for each block its number and content.
pub(super) type Content<'c> = (u64, &'c [u8]);

pub(super) struct Store {
    device: Arc<dyn BlockDevice>,
    block_size: usize,
    id: StoreId,
    /// Where the file's blocks are, in order.
    runs: RwLock<Vec<Run>>,
    /// Held by the one who appends; the state's lock is not held over I/O.
    appending: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    segments: Vec<Segment>,
    /// Segments, other than the current one, in which nobody needs anything.
    free: BTreeSet<u32>,
    /// The segment that batches are appended to, and its next free block.
    current: Option<(u32, u32)>,
    next_sequence: u64,
    next_commit: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Segment {
    /// Of its newest life, 0 when it has had none.
    sequence: u64,
    /// Blocks in it that somebody needs.
    needed: u32,
}

/// Where a batch goes.
struct Place {
    segment: u32,
    /// Block of its head within the segment.
    at: u32,
    /// Blocks of content.
    len: usize,
    sequence: u64,
}

/// A batch found when the store is read.
pub(super) struct Found {
    /// When it was written: segments by sequence, batches by place.
    order: (u64, u32),
    pub(super) batch: Batch,
    /// Block within the store of the first block after the head.
    pub(super) first: u32,
}

impl Store {
    /// A new store, still without blocks.
    pub(super) fn new(device: Arc<dyn BlockDevice>, block_size: u32) -> Self {
        Self::with_id(device, block_size, *uuid::Uuid::new_v4().as_bytes())
    }

    fn with_id(device: Arc<dyn BlockDevice>, block_size: u32, id: StoreId) -> Self {
        Self {
            device,
            block_size: block_size as usize,
            id,
            runs: RwLock::default(),
            appending: Mutex::default(),
            state: Mutex::new(State {
                next_sequence: 1,
                next_commit: 1,
                ..State::default()
            }),
        }
    }

    /// Reads a store that lies in `runs`. Also returns its batches, in the order in which they were
    /// written. `None` when it holds nothing.
    pub(super) fn open(
        device: Arc<dyn BlockDevice>,
        block_size: u32,
        runs: &[Run],
    ) -> Result<Option<(Self, Vec<Found>)>> {
        // Blocks of the store have numbers of 32 bits; a volume has not more blocks in one file.
        let blocks: u64 = runs.iter().map(|run| u64::from(run.len)).sum();
        if blocks * u64::from(block_size) > device.size_bytes() || blocks > u64::from(u32::MAX) {
            let what = "it has more blocks than the volume";
            return Err(Corrupt::SnapshotStore { what }.into());
        }
        let mut store = Self::with_id(device, block_size, [0; 16]);
        store.add_runs(runs);
        let count = store.state.lock().segments.len() as u32;
        let mut head = vec![0; store.block_size];
        let mut found = Vec::new();
        let mut newest = 0;
        for segment in 0..count {
            store.read(segment * SEGMENT_BLOCKS, &mut head)?;
            if store.id == [0; 16] {
                store.id = store_of_segment(&head).unwrap_or_default();
            }
            if let Some(sequence) = decode_segment(&head, store.id) {
                store.state.get_mut().segments[segment as usize].sequence = sequence;
                newest = newest.max(sequence);
                store.read_segment(segment, sequence, &mut found)?;
            }
        }
        if newest == 0 {
            return Ok(None);
        }
        found.sort_by_key(|found| found.order);
        let state = store.state.get_mut();
        state.next_sequence = newest.saturating_add(1);
        state.next_commit = found
            .iter()
            .map(|f| f.batch.commit)
            .max()
            .unwrap_or(0)
            .saturating_add(1);
        Ok(Some((store, found)))
    }

    fn read_segment(&self, segment: u32, sequence: u64, found: &mut Vec<Found>) -> Result<()> {
        let mut head = vec![0; self.block_size];
        let mut at = 1;
        while at + 1 < SEGMENT_BLOCKS {
            let block = segment * SEGMENT_BLOCKS + at;
            self.read(block, &mut head)?;
            let Some(batch) = Batch::decode(&head, self.id, sequence) else {
                return Ok(());
            };
            let len = batch.entries.len() as u32;
            if len > SEGMENT_BLOCKS - at - 1 {
                return Ok(());
            }
            found.push(Found {
                order: (sequence, at),
                batch,
                first: block + 1,
            });
            at += 1 + len;
        }
        Ok(())
    }

    /// Blocks were added at the end of the file. What does not make up a whole segment waits for more.
    pub(super) fn add_runs(&self, added: &[Run]) {
        let mut runs = self.runs.write();
        runs.extend_from_slice(added);
        let blocks: u64 = runs.iter().map(|run| u64::from(run.len)).sum();
        let segments = (blocks / u64::from(SEGMENT_BLOCKS)) as u32;
        let mut state = self.state.lock();
        let known = state.segments.len() as u32;
        state.free.extend(known..segments);
        state.segments.resize(segments as usize, Segment::default());
    }

    /// Blocks in the file.
    pub(super) fn blocks_count(&self) -> u64 {
        self.runs.read().iter().map(|run| u64::from(run.len)).sum()
    }

    /// Blocks with content that somebody needs.
    pub(super) fn blocks_needed(&self) -> u64 {
        let state = self.state.lock();
        state.segments.iter().map(|s| u64::from(s.needed)).sum()
    }

    /// Whether this many blocks of content can be appended, whatever they are divided into, and
    /// `spare` segments stay free.
    pub(super) fn has_room_for(&self, content: u64, spare: u64) -> bool {
        let state = self.state.lock();
        let free = state.free.len() as u64;
        let rest = state
            .current
            .map_or(0, |(_, next)| SEGMENT_BLOCKS.saturating_sub(next));
        let room = free.saturating_sub(spare) * u64::from(SEGMENT_BLOCKS - 1) + u64::from(rest);
        free >= spare && blocks_for(content) <= room
    }

    /// Appends blocks as one commit. They are durable after the next flush of the device.
    ///
    /// # Errors
    /// When the device fails, or there is no room: nothing was appended that counts then.
    pub(super) fn append(&self, kind: Kind, content: &[Content<'_>]) -> Result<Vec<Location>> {
        let _one = self.appending.lock();
        let mut locations = Vec::with_capacity(content.len());
        let mut rest = content;
        let commit = self.state.lock().new_commit();
        while !rest.is_empty() {
            // A table is one batch.
            let least = match kind {
                Kind::Table { .. } => rest.len(),
                Kind::PreImages { .. } | Kind::Void => 1,
            };
            let most = rest.len().min(entries_max(self.block_size));
            if least > most {
                return Err(Error::SnapshotStoreFull);
            }
            let place = self.state.lock().take(least, most)?;
            let (now, later) = rest.split_at(place.len);
            self.append_batch(&place, (kind, commit), now, &mut locations)?;
            rest = later;
        }
        Ok(locations)
    }

    fn append_batch(
        &self,
        place: &Place,
        (kind, commit): (Kind, u64),
        content: &[Content<'_>],
        locations: &mut Vec<Location>,
    ) -> Result<()> {
        let entries: Vec<Entry> = content
            .iter()
            .map(|(block, bytes)| Entry {
                block: *block,
                checksum: crc32c::crc32c(bytes),
            })
            .collect();
        let first = place.segment * SEGMENT_BLOCKS + place.at + 1;
        for (block, entry) in (first..).zip(&entries) {
            let checksum = entry.checksum;
            locations.push(Location { block, checksum });
        }
        let head = encode_segment(self.block_size, self.id, place.sequence);
        let batch = Batch {
            kind,
            commit,
            entries,
        };
        let batch = batch.encode(self.block_size, self.id, place.sequence);
        let mut blocks: Vec<&[u8]> = Vec::with_capacity(content.len() + 2);
        if place.at == 1 {
            blocks.push(&head);
        }
        blocks.push(&batch);
        blocks.extend(content.iter().map(|(_, bytes)| *bytes));
        self.write(first + content.len() as u32 - blocks.len() as u32, &blocks)
    }

    /// Whether all blocks of a batch are what its head says.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn is_whole(&self, found: &Found) -> Result<bool> {
        let mut content = vec![0; self.block_size];
        for (block, entry) in (found.first..).zip(&found.batch.entries) {
            let checksum = entry.checksum;
            match self.read_content(Location { block, checksum }, &mut content) {
                Ok(()) => {}
                Err(Error::Corrupt(_)) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    /// Makes nothing of a batch, also for who reads the store next. What follows it in its segment
    /// still counts.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn void(&self, found: &Found) -> Result<()> {
        let batch = Batch {
            kind: Kind::Void,
            ..found.batch.clone()
        };
        let head = batch.encode(self.block_size, self.id, found.order.0);
        self.write(found.first - 1, &[&head])?;
        self.device.flush().map_err(|source| Error::Device {
            op: IoOp::Flush,
            source,
        })
    }

    /// Somebody needs a block that was found when the store was opened.
    pub(super) fn need(&self, location: Location) {
        self.state.lock().need(location.block / SEGMENT_BLOCKS, 1);
    }

    /// Nobody needs these blocks any more.
    pub(super) fn release(&self, locations: &[Location]) {
        let mut state = self.state.lock();
        for location in locations {
            state.release(location.block / SEGMENT_BLOCKS);
        }
    }

    /// Reads a block's content.
    ///
    /// # Errors
    /// `Corrupt::PreImageChecksum`, `Io`.
    pub(super) fn read_content(&self, location: Location, buf: &mut [u8]) -> Result<()> {
        self.read(location.block, buf)?;
        if crc32c::crc32c(buf) == location.checksum {
            return Ok(());
        }
        let block = location.block;
        Err(Corrupt::PreImageChecksum { block }.into())
    }

    /// Where a block of the file is, and how many follow it there.
    fn place(&self, block: u32) -> Option<(BlockNr, u32)> {
        let mut skipped = 0;
        for run in &*self.runs.read() {
            if block < skipped + run.len {
                let within = block - skipped;
                return Some((run.start.plus(within.into()), run.len - within));
            }
            skipped += run.len;
        }
        None
    }

    fn read(&self, block: u32, buf: &mut [u8]) -> Result<()> {
        let (place, _) = self.place(block).ok_or(Error::Invalid)?;
        let offset = place.0 * self.block_size as u64;
        self.device
            .read_at(offset, buf)
            .map_err(|source| Error::Io {
                op: IoOp::Read,
                block: place,
                source,
            })
    }

    fn write(&self, mut block: u32, mut blocks: &[&[u8]]) -> Result<()> {
        while !blocks.is_empty() {
            let (place, len) = self.place(block).ok_or(Error::Invalid)?;
            let (now, later) = blocks.split_at(blocks.len().min(len as usize));
            let slices: Vec<IoSlice<'_>> = now.iter().map(|bytes| IoSlice::new(bytes)).collect();
            self.device
                .write_vectored_at(place.0 * self.block_size as u64, &slices)
                .map_err(|source| Error::Io {
                    op: IoOp::Write,
                    block: place,
                    source,
                })?;
            block += now.len() as u32;
            blocks = later;
        }
        Ok(())
    }

    /// Makes what is left in new blocks from another life no part of this store.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn clear(device: &dyn BlockDevice, block_size: u32, run: Run) -> Result<()> {
        let size = u64::from(block_size);
        device
            .write_zeroes(run.start.0 * size, u64::from(run.len) * size)
            .map_err(|source| Error::Io {
                op: IoOp::Write,
                block: run.start,
                source,
            })
    }
}

impl State {
    /// Somebody needs blocks in a segment.
    fn need(&mut self, nr: u32, blocks: u32) {
        self.segments[nr as usize].needed += blocks;
        if blocks > 0 {
            self.free.remove(&nr);
        }
    }

    /// A block in a segment is not needed any more.
    fn release(&mut self, nr: u32) {
        let segment = &mut self.segments[nr as usize];
        segment.needed = segment.needed.saturating_sub(1);
        self.note_if_free(nr);
    }

    fn note_if_free(&mut self, nr: u32) {
        let is_current = self.current.is_some_and(|(current, _)| current == nr);
        if !is_current && self.segments[nr as usize].needed == 0 {
            self.free.insert(nr);
        }
    }

    fn new_commit(&mut self) -> u64 {
        let commit = self.next_commit;
        self.next_commit = commit.saturating_add(1);
        commit
    }

    /// Takes a place for a batch of `least` to `most` blocks of content.
    fn take(&mut self, least: usize, most: usize) -> Result<Place> {
        let room = |current: Option<(u32, u32)>| match current {
            // The head takes one.
            Some((_, next)) => (SEGMENT_BLOCKS.saturating_sub(next + 1)) as usize,
            None => 0,
        };
        if room(self.current) < least {
            self.next_segment()?;
        }
        let len = room(self.current).min(most);
        let (segment, at) = self
            .current
            .filter(|_| len >= least)
            .ok_or(Error::SnapshotStoreFull)?;
        self.current = Some((segment, at + 1 + len as u32));
        self.need(segment, len as u32);
        Ok(Place {
            segment,
            at,
            len,
            sequence: self.segments[segment as usize].sequence,
        })
    }

    /// Goes on in a free segment.
    fn next_segment(&mut self) -> Result<()> {
        let nr = self.free.pop_first().ok_or(Error::SnapshotStoreFull)?;
        self.segments[nr as usize].sequence = self.next_sequence;
        self.next_sequence = self.next_sequence.saturating_add(1);
        if let Some((last, _)) = self.current.replace((nr, 1)) {
            self.note_if_free(last);
        }
        Ok(())
    }
}
