//! The snapshot store: a hidden file, written as a log of batches into segments.
//!
//! What a batch says is found again by reading the heads of all segments when the volume is opened.
//! A segment whose last needed block is gone may be written anew. The file only grows while there are
//! snapshots, so blocks that were the store's when a snapshot was taken are the store's still.

use super::format::{
    Batch, Entry, Kind, SEGMENT_BLOCKS, SegmentHead, StoreId, blocks_for, decode_segment,
    encode_segment, entries_max, is_damaged_segment, store_of_segment,
};
use super::seal::Seals;
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
    pub(super) appending: Mutex<()>,
    pub(super) state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) segments: Vec<Segment>,
    /// Segments, other than the current one, in which nobody needs anything.
    pub(super) free: BTreeSet<u32>,
    /// The segment that batches are appended to.
    pub(super) current: Option<u32>,
    pub(super) seals: Seals,
    next_sequence: u64,
    next_commit: u64,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Segment {
    /// Of its newest life, 0 when it has had none.
    pub(super) sequence: u64,
    /// Blocks in it that somebody needs.
    pub(super) needed: u32,
    /// The block behind its last batch, counted from its head.
    pub(super) end: u32,
    /// Whether its head says where they end.
    pub(super) is_sealed: bool,
}

impl Segment {
    /// Its head, with a seal.
    pub(super) fn head(&self) -> SegmentHead {
        SegmentHead {
            sequence: self.sequence,
            end: self.end,
        }
    }
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

/// When a batch was written: segments by sequence, batches by place.
pub(super) type Order = (u64, u32);

/// What is found when a store is read.
#[derive(Default)]
pub(super) struct Contents {
    /// In the order in which it was written.
    pub(super) found: Vec<Found>,
    /// Segments with batches that are not found any more, and from where on.
    pub(super) lost: Vec<(u32, Order)>,
}

/// A batch found when the store is read.
pub(super) struct Found {
    pub(super) order: Order,
    pub(super) batch: Batch,
    /// Block within the store of the first block after the head.
    pub(super) first: u32,
}

impl Found {
    /// Whether it holds a table.
    pub(super) fn is_table(&self) -> bool {
        matches!(self.batch.kind, Kind::Table { .. })
    }

    /// The newest snapshot when its pre-images were taken, if it holds some.
    pub(super) fn snapshot(&self) -> Option<u32> {
        match self.batch.kind {
            Kind::PreImages { snapshot } => Some(snapshot),
            Kind::Table { .. } | Kind::Void => None,
        }
    }
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

    /// Reads a store that lies in `runs`. `None` when it holds nothing.
    pub(super) fn open(
        device: Arc<dyn BlockDevice>,
        block_size: u32,
        runs: &[Run],
    ) -> Result<Option<(Self, Contents)>> {
        // Blocks of the store have numbers of 32 bits; a volume has not more blocks in one file.
        let blocks: u64 = runs.iter().map(|run| u64::from(run.len)).sum();
        if blocks * u64::from(block_size) > device.size_bytes() || blocks > u64::from(u32::MAX) {
            let what = "it has more blocks than the volume";
            return Err(Corrupt::SnapshotStore { what }.into());
        }
        let mut store = Self::with_id(device, block_size, [0; 16]);
        store.add_runs(runs);
        let count = store.state.lock().segments.len() as u32;
        let Some(id) = store.find_id(count)? else {
            return Ok(None);
        };
        store.id = id;
        let mut contents = Contents::default();
        for segment in 0..count {
            let read = store.read_segment(segment, &mut contents)?;
            store.state.get_mut().segments[segment as usize] = read;
        }
        contents.found.sort_by_key(|found| found.order);
        let state = store.state.get_mut();
        let newest = state.segments.iter().map(|segment| segment.sequence).max();
        // Heads of segments that were begun when the power went may be missing: no number is used twice.
        let begun = 1 + u64::from(count);
        state.next_sequence = newest.unwrap_or(0).saturating_add(begun);
        let commits = contents.found.iter().map(|found| found.batch.commit);
        let last = commits.max().unwrap_or(0);
        state.next_commit = last.saturating_add(1);
        state.seals.attach(&state.segments, last);
        Ok(Some((store, contents)))
    }

    /// The id in the first of so many segments that has one.
    fn find_id(&self, segments: u32) -> Result<Option<StoreId>> {
        let mut head = vec![0; self.block_size];
        for segment in 0..segments {
            self.read(segment * SEGMENT_BLOCKS, &mut head)?;
            if let Some(id) = store_of_segment(&head) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    fn read_segment(&self, segment: u32, contents: &mut Contents) -> Result<Segment> {
        let mut block = vec![0; self.block_size];
        self.read(segment * SEGMENT_BLOCKS, &mut block)?;
        let head = match decode_segment(&block, self.id) {
            Some(head) => head,
            None if is_damaged_segment(&block) => {
                // The first batch knows whose it is.
                self.read(segment * SEGMENT_BLOCKS + 1, &mut block)?;
                let Some(sequence) = Batch::sequence(&block, self.id) else {
                    contents.lost.push((segment, (0, 0)));
                    return Ok(Segment::default());
                };
                SegmentHead { sequence, end: 0 }
            }
            None => return Ok(Segment::default()),
        };
        let end = self.read_batches(segment, head, &mut contents.found)?;
        let is_sealed = head.end != 0;
        if is_sealed && end != head.end {
            contents.lost.push((segment, (head.sequence, end)));
        }
        Ok(Segment {
            sequence: head.sequence,
            needed: 0,
            end,
            is_sealed,
        })
    }

    /// Returns the block behind the last batch that is found.
    fn read_batches(&self, segment: u32, head: SegmentHead, found: &mut Vec<Found>) -> Result<u32> {
        let end = match head.end {
            0 => SEGMENT_BLOCKS,
            end => end.min(SEGMENT_BLOCKS),
        };
        let mut content = vec![0; self.block_size];
        let mut at = 1;
        while at + 1 < end {
            let block = segment * SEGMENT_BLOCKS + at;
            self.read(block, &mut content)?;
            let Some(batch) = Batch::decode(&content, self.id, head.sequence) else {
                break;
            };
            let len = batch.entries.len() as u32;
            if len > end - at - 1 {
                break;
            }
            found.push(Found {
                order: (head.sequence, at),
                batch,
                first: block + 1,
            });
            at += 1 + len;
        }
        Ok(at)
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
        let rest = state.room_in_current();
        let room = free.saturating_sub(spare) * u64::from(SEGMENT_BLOCKS - 1) + u64::from(rest);
        free >= spare && blocks_for(content) <= room
    }

    /// Appends blocks as one commit. They are durable after the next flush of the device.
    ///
    /// # Errors
    /// When the device fails, or there is no room: nothing was appended that counts then.
    pub(super) fn append(&self, kind: Kind, content: &[Content<'_>]) -> Result<Vec<Location>> {
        let _one = self.appending.lock();
        let commit = self.state.lock().begin_append(kind);
        self.seal_durable()?;
        self.break_seals(blocks_for(content.len() as u64))?;
        let appended = self.append_commit(kind, commit, content);
        self.state.lock().end_append(commit, appended.is_ok());
        appended
    }

    fn append_commit(
        &self,
        kind: Kind,
        commit: u64,
        content: &[Content<'_>],
    ) -> Result<Vec<Location>> {
        let mut locations = Vec::with_capacity(content.len());
        let mut rest = content;
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
            let place = self.state.lock().take(least, most, commit)?;
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
        let head = SegmentHead {
            sequence: place.sequence,
            end: 0,
        };
        let head = encode_segment(self.block_size, self.id, head);
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
        self.flush()
    }

    /// Writes a segment's head.
    pub(super) fn write_head(&self, nr: u32, head: SegmentHead) -> Result<()> {
        let block = encode_segment(self.block_size, self.id, head);
        self.write(nr * SEGMENT_BLOCKS, &[&block])
    }

    pub(super) fn flush(&self) -> Result<()> {
        self.device.flush().map_err(|source| Error::Device {
            op: IoOp::Flush,
            source,
        })
    }

    /// What was in a segment is not given up.
    pub(super) fn keep_segment(&self, nr: u32) {
        self.state.lock().need(nr, 1);
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
        let is_current = self.current == Some(nr);
        if !is_current && self.segments[nr as usize].needed == 0 {
            self.free.insert(nr);
        }
    }

    /// The number of a commit that is about to be appended.
    fn begin_append(&mut self, kind: Kind) -> u64 {
        let commit = self.next_commit;
        self.next_commit = commit.saturating_add(1);
        if matches!(kind, Kind::PreImages { .. }) {
            self.seals.begin_pre_images(commit);
        }
        commit
    }

    /// A commit was appended, or only a part of it.
    fn end_append(&mut self, commit: u64, is_whole: bool) {
        self.seals.end_append(commit, is_whole);
        if !is_whole && let Some(last) = self.current.take() {
            // What would come behind a batch that is not there would not be found.
            self.note_if_free(last);
        }
    }

    /// Blocks behind the last batch of the current segment.
    fn room_in_current(&self) -> u32 {
        self.current.map_or(0, |nr| {
            SEGMENT_BLOCKS.saturating_sub(self.segments[nr as usize].end)
        })
    }

    /// Takes a place for a batch of `least` to `most` blocks of content.
    fn take(&mut self, least: usize, most: usize, commit: u64) -> Result<Place> {
        // The head takes one.
        if (self.room_in_current() as usize) < least + 1 {
            self.next_segment()?;
        }
        let len = (self.room_in_current().saturating_sub(1) as usize).min(most);
        let nr = self
            .current
            .filter(|_| len >= least)
            .ok_or(Error::SnapshotStoreFull)?;
        self.need(nr, len as u32);
        self.seals.note_batch(nr, commit);
        let segment = &mut self.segments[nr as usize];
        let at = segment.end;
        segment.end += 1 + len as u32;
        Ok(Place {
            segment: nr,
            at,
            len,
            sequence: segment.sequence,
        })
    }

    /// Goes on in a free segment.
    fn next_segment(&mut self) -> Result<()> {
        let is_open = |nr: &&u32| !self.segments[**nr as usize].is_sealed;
        let nr = self.free.iter().find(is_open).copied();
        let nr = nr.ok_or(Error::SnapshotStoreFull)?;
        self.free.remove(&nr);
        self.segments[nr as usize] = Segment {
            sequence: self.next_sequence,
            end: 1,
            ..Segment::default()
        };
        self.next_sequence = self.next_sequence.saturating_add(1);
        if let Some(last) = self.current.replace(nr) {
            self.note_if_free(last);
        }
        Ok(())
    }
}
