//! The snapshot store: a hidden file, written as a log of batches into segments.
//!
//! What a batch says is found again by reading the heads of all segments when the volume is opened.
//! A segment whose last needed block is gone may be written anew. The file only grows while there are
//! snapshots, so blocks that were the store's when a snapshot was taken are the store's still.

use super::format::{
    Batch, Entry, Kind, SEGMENT_BLOCKS, SegmentHead, StoreId, Taken, blocks_for, decode_segment,
    encode_segment, is_damaged_segment, store_of_segment,
};
use super::segments::{Place, Segment, Segments};
use crate::corrupt::Corrupt;
use crate::error::{Error, IoOp, Result};
use crate::ids::{BlockNr, Run};
use kfs_disk::BlockDevice;
use parking_lot::{Mutex, RwLock};
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

impl Location {
    /// The segment that it is in.
    pub(super) fn segment(self) -> u32 {
        self.block / SEGMENT_BLOCKS
    }
}

/// A block that is to be appended.
#[derive(Clone, Copy)]
pub(super) struct Content<'c> {
    /// The block that it is of, 0 in a table.
    pub(super) block: u64,
    /// When it was taken, if not now.
    pub(super) taken: Option<Taken>,
    pub(super) bytes: &'c [u8],
}

pub(super) struct Store {
    device: Arc<dyn BlockDevice>,
    block_size: usize,
    id: StoreId,
    /// Where the file's blocks are, in order, with the first block of each run within the file.
    runs: RwLock<Vec<(u32, Run)>>,
    /// Held by the one who appends; the segments' lock is not held over I/O.
    pub(super) appending: Mutex<()>,
    pub(super) segments: Mutex<Segments>,
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

    /// Whether it holds pre-images that were elsewhere before.
    pub(super) fn is_copy(&self) -> bool {
        self.batch.kind == Kind::Moved
    }

    /// Its blocks, with where they are.
    pub(super) fn blocks(&self) -> impl Iterator<Item = (Location, &Entry)> + '_ {
        let blocks = (self.first..).zip(&self.batch.entries);
        blocks.map(|(block, entry)| {
            let checksum = entry.checksum;
            (Location { block, checksum }, entry)
        })
    }

    /// Its pre-images: when they were taken, their blocks, where they are.
    pub(super) fn pre_images(&self) -> impl Iterator<Item = (Taken, u64, Location)> + '_ {
        let with_batch = self.snapshot().map(|snapshot| Taken {
            snapshot,
            commit: self.batch.commit,
        });
        self.blocks().filter_map(move |(at, entry)| {
            let moved = entry.taken.filter(|_| self.is_copy());
            Some((moved.or(with_batch)?, entry.block, at))
        })
    }

    /// The newest snapshot when its pre-images were taken, if it holds some.
    pub(super) fn snapshot(&self) -> Option<u32> {
        match self.batch.kind {
            Kind::PreImages { snapshot } => Some(snapshot),
            Kind::Table { .. } | Kind::Moved | Kind::Void => None,
        }
    }
}

/// Blocks in so many runs.
fn end_of(runs: &[(u32, Run)]) -> u32 {
    runs.last().map_or(0, |(first, run)| first + run.len)
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
            segments: Mutex::new(Segments {
                next_sequence: 1,
                next_commit: 1,
                ..Segments::default()
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
        let mut in_place = runs.to_vec();
        in_place.sort_unstable_by_key(|run| run.start);
        let overlap = |pair: &[Run]| pair[0].start.plus(pair[0].len.into()) > pair[1].start;
        if in_place.windows(2).any(overlap) {
            let what = "blocks are in it twice";
            return Err(Corrupt::SnapshotStore { what }.into());
        }
        let mut store = Self::with_id(device, block_size, [0; 16]);
        store.add_runs(runs);
        let count = store.segments.lock().list.len() as u32;
        let Some(id) = store.find_id(count)? else {
            return Ok(None);
        };
        store.id = id;
        let mut contents = Contents::default();
        for segment in 0..count {
            let read = store.read_segment(segment, &mut contents)?;
            store.segments.get_mut().list[segment as usize] = read;
        }
        contents.found.sort_by_key(|found| found.order);
        let segments = store.segments.get_mut();
        let newest = segments.list.iter().map(|segment| segment.sequence).max();
        // Heads of segments that were begun when the power went may be missing: no number is used twice.
        let begun = 1 + u64::from(count);
        segments.next_sequence = newest.unwrap_or(0).saturating_add(begun);
        let commits = contents.found.iter().map(|found| found.batch.commit);
        let last = commits.max().unwrap_or(0);
        segments.next_commit = last.saturating_add(1);
        segments.seals.attach(&segments.list, last);
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
        let mut blocks = end_of(&runs);
        for run in added {
            runs.push((blocks, *run));
            blocks += run.len;
        }
        let count = blocks / SEGMENT_BLOCKS;
        let mut segments = self.segments.lock();
        let known = segments.list.len() as u32;
        segments.free.extend(known..count);
        segments.list.resize(count as usize, Segment::default());
    }

    /// Blocks in the file.
    pub(super) fn blocks_count(&self) -> u64 {
        end_of(&self.runs.read()).into()
    }

    /// Blocks with content that somebody needs.
    pub(super) fn blocks_needed(&self) -> u64 {
        let segments = self.segments.lock();
        segments.list.iter().map(|s| u64::from(s.needed)).sum()
    }

    /// Whether this many blocks of content can be appended, whatever they are divided into, and
    /// `spare` segments stay free.
    pub(super) fn has_room_for(&self, content: u64, spare: u64) -> bool {
        let room = self.segments.lock().room(spare);
        room.is_some_and(|room| blocks_for(content) <= room)
    }

    /// Appends blocks as one commit. They are durable after the next flush of the device.
    ///
    /// # Errors
    /// When the device fails, or there is no room: nothing was appended that counts then.
    pub(super) fn append(&self, kind: Kind, content: &[Content<'_>]) -> Result<Vec<Location>> {
        let _one = self.appending.lock();
        let commit = self.segments.lock().begin_append(kind);
        self.seal_durable()?;
        self.break_seals(blocks_for(content.len() as u64))?;
        let appended = self.append_commit(kind, commit, content);
        self.segments.lock().end_append(commit, appended.is_ok());
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
                Kind::PreImages { .. } | Kind::Moved | Kind::Void => 1,
            };
            let most = rest.len().min(kind.entries_max(self.block_size));
            if least > most {
                return Err(Error::SnapshotStoreFull);
            }
            let place = self.segments.lock().take(least, most, commit)?;
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
            .map(|content| Entry {
                block: content.block,
                checksum: crc32c::crc32c(content.bytes),
                taken: content.taken,
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
        blocks.extend(content.iter().map(|content| content.bytes));
        self.write(first + content.len() as u32 - blocks.len() as u32, &blocks)
    }

    /// Whether all blocks of a batch are what its head says.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn is_whole(&self, found: &Found) -> Result<bool> {
        for (location, _) in found.blocks() {
            if !self.is_readable(location)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether a block's content is not damaged.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn is_readable(&self, location: Location) -> Result<bool> {
        let mut content = vec![0; self.block_size];
        match self.read_content(location, &mut content) {
            Ok(()) => Ok(true),
            Err(Error::Corrupt(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes nothing of a batch, also for who reads the store next. What follows it in its segment
    /// still counts.
    ///
    /// # Errors
    /// When the device fails.
    pub(super) fn void(&self, found: &Found) -> Result<()> {
        let mut head = vec![0; self.block_size];
        self.read(found.first - 1, &mut head)?;
        if Batch::decode(&head, self.id, found.order.0).is_none() {
            return Ok(());
        }
        Batch::void(&mut head);
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

    /// A segment is not written anew.
    pub(super) fn hold_segment(&self, nr: u32) {
        self.segments.lock().need(nr, 1);
    }

    /// Segments that were held may be written anew.
    pub(super) fn let_segments_go(&self, held: &[u32]) {
        let mut segments = self.segments.lock();
        held.iter().for_each(|nr| segments.release(*nr));
    }

    /// A segment is never written anew, nor cleaned.
    pub(super) fn keep_segment(&self, nr: u32) {
        self.hold_segment(nr);
        self.pass_by(nr);
    }

    /// Somebody needs a block that was found when the store was opened.
    pub(super) fn need(&self, location: Location) {
        self.segments.lock().need(location.segment(), 1);
    }

    /// Up to `limit` segments in which `most` blocks are needed at the most, the sparsest first.
    pub(super) fn sparsest(&self, most: u32, limit: usize) -> Vec<u32> {
        self.segments.lock().sparsest(most, limit)
    }

    /// Blocks that somebody needs in a segment.
    pub(super) fn needed_count(&self, nr: u32) -> usize {
        self.segments.lock().list[nr as usize].needed as usize
    }

    /// The batches of a segment that is over.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn batches_of(&self, nr: u32) -> Result<Vec<Found>> {
        let head = self.segments.lock().list[nr as usize].head();
        let mut found = Vec::new();
        self.read_batches(nr, head, &mut found)?;
        Ok(found)
    }

    /// How many of these segments are free.
    pub(super) fn count_free(&self, segments: &[u32]) -> usize {
        let known = self.segments.lock();
        segments
            .iter()
            .filter(|nr| known.free.contains(*nr))
            .count()
    }

    /// A segment cannot be read: it is not cleaned.
    pub(super) fn pass_by(&self, nr: u32) {
        self.segments.lock().passed_by.insert(nr);
    }

    /// Nobody needs these blocks any more.
    pub(super) fn release(&self, locations: &[Location]) {
        let mut segments = self.segments.lock();
        for location in locations {
            segments.release(location.segment());
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
        let runs = self.runs.read();
        let behind = runs.partition_point(|(first, _)| *first <= block);
        let (first, run) = runs.get(behind.checked_sub(1)?)?;
        let within = block - first;
        let left = run.len.checked_sub(within).filter(|left| *left > 0)?;
        Some((run.start.plus(within.into()), left))
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
