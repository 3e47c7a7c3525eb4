//! The log on disk: a ring of blocks, and how a transaction is laid out in it.
//!
//! ```text
//!  descriptor | block ... block | descriptor | block ... | revoke ... | commit
//! ```
//!
//! kfs writes one form (checksum v3, 64-bit tags, revokes); recovery reads all forms that jbd2 has.
//! Source: kernel documentation, ext4, "Journal (jbd2)".

use super::Journal;
use super::transaction::{Frozen, FrozenBlock};
use crate::checksum::{CRC32C_INIT, crc32c};
use crate::error::{Error, IoOp, Result};
use crate::ids::{BlockNr, Run, Tid};
use crate::layout::journal::{
    BlockType, JBD2_MAGIC, JournalIncompat, RawBlockTag3, RawBlockTail, RawCommitBlock,
    RawJournalHeader, RawJournalSuperblock, RawRevokeHeader, TagFlags,
};
use kfs_disk::BlockDevice;
use std::io::IoSlice;
use std::mem::size_of;
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// Features that kfs writes with.
pub(super) const INCOMPAT_WRITTEN: JournalIncompat = JournalIncompat::REVOKE
    .union(JournalIncompat::BIT64)
    .union(JournalIncompat::CSUM_V3);

/// Bytes of the UUID that follows the first tag of a descriptor.
const TAG_UUID_BYTES: usize = 16;
/// `-EIO`, as Linux notes what aborted a journal.
const ERRNO_IO: u32 = (-5_i32).cast_unsigned();

/// Where the log lies on the device: the blocks of the journal inode, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogArea {
    /// Runs in log order, with the log block that each starts at.
    runs: Vec<(u32, Run)>,
    len: u32,
}

impl LogArea {
    /// A log in these runs of blocks.
    #[must_use]
    pub fn new(runs: impl IntoIterator<Item = Run>) -> Self {
        let mut area = Self {
            runs: Vec::new(),
            len: 0,
        };
        for run in runs {
            area.runs.push((area.len, run));
            area.len = area.len.saturating_add(run.len);
        }
        area
    }

    /// Its runs, in log order.
    pub fn runs(&self) -> impl Iterator<Item = Run> + '_ {
        self.runs.iter().map(|(_, run)| *run)
    }

    /// Blocks in the area.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether there is no block at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The run of physical blocks from log block `index` on, as far as it is contiguous.
    #[must_use]
    pub fn run_at(&self, index: u32) -> Option<Run> {
        let found = self
            .runs
            .partition_point(|(first, _)| *first <= index)
            .checked_sub(1)?;
        let (first, run) = self.runs[found];
        let skipped = index - first;
        (skipped < run.len).then(|| Run {
            start: run.start.plus(u64::from(skipped)),
            len: run.len - skipped,
        })
    }
}

/// A log that recovery has left empty.
pub struct LogOptions {
    /// Where it lies.
    pub area: LogArea,
    /// Its superblock.
    pub superblock: RawJournalSuperblock,
    /// The id that the first transaction takes.
    pub next_tid: Tid,
}

/// A block of the log, counted from the log's start (the superblock is 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LogPosition(pub(super) u32);

impl LogPosition {
    /// Blocks from here on to `other`, around the ring of `len` blocks that excludes the superblock.
    pub(super) fn distance_to(self, other: Self, len: u32) -> u32 {
        if other.0 >= self.0 {
            other.0 - self.0
        } else {
            other.0 + len - self.0
        }
    }
}

/// The writing end of the log.
pub(super) struct Log {
    area: LogArea,
    /// First block of the ring.
    first: u32,
    /// Block after the last one of the ring.
    end: u32,
    head: LogPosition,
    next_tid: Tid,
    uuid: [u8; 16],
    seed: u32,
    block_size: usize,
}

impl Log {
    pub(super) fn new(options: LogOptions, block_size: usize) -> Self {
        let superblock = &options.superblock;
        let first = superblock.s_first.get();
        Self {
            first,
            end: superblock.log_end(),
            head: LogPosition(first),
            next_tid: options.next_tid,
            uuid: superblock.s_uuid,
            seed: crc32c(CRC32C_INIT, &superblock.s_uuid),
            area: options.area,
            block_size,
        }
    }

    /// Blocks of the ring.
    pub(super) fn len(&self) -> u32 {
        self.end - self.first
    }

    pub(super) fn head(&self) -> LogPosition {
        self.head
    }

    pub(super) fn next_tid(&self) -> Tid {
        self.next_tid
    }

    /// Log blocks that a transaction takes.
    pub(super) fn blocks_needed(&self, frozen: &Frozen) -> u32 {
        let blocks = frozen.blocks.len();
        let descriptors = blocks.div_ceil(self.tags_per_descriptor());
        let revokes = frozen.revoked.len().div_ceil(self.revokes_per_block());
        u32::try_from(descriptors + blocks + revokes + 1).unwrap_or(u32::MAX)
    }

    fn tags_per_descriptor(&self) -> usize {
        let fixed = size_of::<RawJournalHeader>() + TAG_UUID_BYTES + size_of::<RawBlockTail>();
        (self.block_size - fixed) / size_of::<RawBlockTag3>()
    }

    /// Freed blocks that one revoke block names.
    pub(super) fn revokes_per_block(&self) -> usize {
        let fixed = size_of::<RawRevokeHeader>() + size_of::<RawBlockTail>();
        (self.block_size - fixed) / size_of::<u64>()
    }

    /// Writes all of a transaction but its commit block.
    pub(super) fn write_blocks(&mut self, device: &dyn BlockDevice, frozen: &Frozen) -> Result<()> {
        assert_eq!(
            frozen.tid, self.next_tid,
            "the log holds transactions without gaps"
        );
        let mut blocks: Vec<Arc<[u8]>> = Vec::with_capacity(frozen.blocks.len() + 2);
        for group in frozen.blocks.chunks(self.tags_per_descriptor()) {
            let contents: Vec<(Arc<[u8]>, bool)> =
                group.iter().map(|block| escaped(&block.content)).collect();
            blocks.push(self.descriptor(frozen.tid, group, &contents));
            blocks.extend(contents.into_iter().map(|(content, _)| content));
        }
        let revoked: Vec<BlockNr> = frozen.revoked.iter().copied().collect();
        for group in revoked.chunks(self.revokes_per_block()) {
            blocks.push(self.revoke_block(frozen.tid, group));
        }
        self.append(device, &blocks)
    }

    /// Writes the commit block, which ends the transaction.
    pub(super) fn write_commit(&mut self, device: &dyn BlockDevice, tid: Tid) -> Result<()> {
        let mut block = vec![0; self.block_size];
        let commit = RawCommitBlock::new(tid.0);
        commit
            .write_to_prefix(&mut block)
            .expect("a block is larger than its header");
        RawCommitBlock::update_checksum(&mut block, self.seed);
        self.append(device, &[block.into()])?;
        self.next_tid = tid.next();
        Ok(())
    }

    fn descriptor(
        &self,
        tid: Tid,
        group: &[FrozenBlock],
        contents: &[(Arc<[u8]>, bool)],
    ) -> Arc<[u8]> {
        let mut block = vec![0; self.block_size];
        let header = RawJournalHeader::new(BlockType::Descriptor, tid.0);
        header
            .write_to_prefix(&mut block)
            .expect("a block is larger than its header");
        let mut at = size_of::<RawJournalHeader>();
        for (index, (frozen, (content, is_escaped))) in group.iter().zip(contents).enumerate() {
            let mut flags = TagFlags::empty();
            flags.set(TagFlags::ESCAPE, *is_escaped);
            flags.set(TagFlags::SAME_UUID, index > 0);
            flags.set(TagFlags::LAST_TAG, index + 1 == group.len());
            let checksum = data_checksum(self.seed, tid, content);
            let tag = RawBlockTag3::new(frozen.buffer.nr().0, flags, checksum);
            tag.write_to_prefix(&mut block[at..])
                .expect("tags are counted to fit");
            at += size_of::<RawBlockTag3>();
            if index == 0 {
                block[at..at + TAG_UUID_BYTES].copy_from_slice(&self.uuid);
                at += TAG_UUID_BYTES;
            }
        }
        RawBlockTail::update_checksum(&mut block, self.seed);
        block.into()
    }

    fn revoke_block(&self, tid: Tid, revoked: &[BlockNr]) -> Arc<[u8]> {
        let mut block = vec![0; self.block_size];
        let used = size_of::<RawRevokeHeader>() + std::mem::size_of_val(revoked);
        let header = RawRevokeHeader::new(tid.0, u32::try_from(used).expect("within a block"));
        header
            .write_to_prefix(&mut block)
            .expect("a block is larger than its header");
        let records = block[size_of::<RawRevokeHeader>()..].chunks_exact_mut(size_of::<u64>());
        for (record, nr) in records.zip(revoked) {
            record.copy_from_slice(&nr.0.to_be_bytes());
        }
        RawBlockTail::update_checksum(&mut block, self.seed);
        block.into()
    }

    /// Writes blocks at the head, which moves on: one call a contiguous piece of the ring.
    fn append(&mut self, device: &dyn BlockDevice, mut blocks: &[Arc<[u8]>]) -> Result<()> {
        while !blocks.is_empty() {
            let run = self
                .area
                .run_at(self.head.0)
                .expect("the head is within the log");
            let piece = blocks
                .len()
                .min(run.len as usize)
                .min((self.end - self.head.0) as usize);
            let (now, later) = blocks.split_at(piece);
            let slices: Vec<IoSlice<'_>> = now.iter().map(|block| IoSlice::new(block)).collect();
            device
                .write_vectored_at(run.start.0 * self.block_size as u64, &slices)
                .map_err(|source| Error::Io {
                    op: IoOp::Write,
                    block: run.start,
                    source,
                })?;
            self.head.0 += u32::try_from(piece).expect("bounded by the log's length");
            if self.head.0 == self.end {
                self.head.0 = self.first;
            }
            blocks = later;
        }
        Ok(())
    }
}

/// Checksum of a logged block, as its tag carries it.
pub(super) fn data_checksum(seed: u32, tid: Tid, content: &[u8]) -> u32 {
    crc32c(crc32c(seed, &tid.0.to_be_bytes()), content)
}

/// The content as the log holds it: a block that begins with the log's own magic number would be
/// taken for one of the log's blocks, so it is stored with those bytes zeroed and a flag.
fn escaped(content: &Arc<[u8]>) -> (Arc<[u8]>, bool) {
    if !content.starts_with(&JBD2_MAGIC.to_be_bytes()) {
        return (Arc::clone(content), false);
    }
    let mut copy: Arc<[u8]> = Arc::from(&content[..]);
    Arc::make_mut(&mut copy)[..4].fill(0);
    (copy, true)
}

/// The log's superblock as it stands on disk, changed when the tail moves.
pub(super) struct LogSuperblock {
    pub(super) raw: RawJournalSuperblock,
    block: BlockNr,
}

impl LogSuperblock {
    pub(super) fn new(log: &LogOptions) -> Self {
        let block = log.area.run_at(0).map_or(BlockNr(0), |run| run.start);
        Self {
            raw: log.superblock.clone(),
            block,
        }
    }

    /// Writes where recovery has to start: transaction `tid` at `start`; `None` for an empty log.
    pub(super) fn write(
        &mut self,
        device: &dyn BlockDevice,
        block_size: usize,
        tid: Tid,
        start: Option<LogPosition>,
    ) -> Result<()> {
        self.raw.s_sequence.set(tid.0);
        self.raw.s_start.set(start.map_or(0, |position| position.0));
        self.store(device, block_size)
    }

    /// Writes it as it is.
    fn store(&mut self, device: &dyn BlockDevice, block_size: usize) -> Result<()> {
        self.raw.update_checksum();
        device
            .write_at(self.block.0 * block_size as u64, self.raw.as_bytes())
            .map_err(|source| Error::Io {
                op: IoOp::Write,
                block: self.block,
                source,
            })
    }
}

impl Journal {
    /// Moves the log's tail and makes that durable.
    pub(super) fn write_tail(&self, tid: Tid, start: LogPosition) -> Result<()> {
        self.write_superblock(tid, Some(start))
    }

    /// Notes on disk that the log is empty. Everything must be checkpointed.
    ///
    /// # Errors
    /// When the device fails.
    pub fn mark_empty(&self) -> Result<()> {
        let next = self.state.lock().running.tid;
        self.write_superblock(next, None)
    }

    /// Notes on disk, before the first commit, where the log starts.
    ///
    /// # Errors
    /// When the device fails.
    pub fn mark_in_use(&self) -> Result<()> {
        let start = self
            .log
            .lock()
            .as_ref()
            .map(|log| (log.next_tid(), log.head(), log.len()));
        let Some((tid, head, len)) = start else {
            return Ok(());
        };
        self.checkpoint.reset(tid, head, len);
        self.write_superblock(tid, Some(head))
    }

    /// Notes on disk that the journal was aborted: whoever recovers it marks the volume for e2fsck.
    ///
    /// # Errors
    /// When the device fails.
    pub fn record_error(&self) -> Result<()> {
        if let Some(superblock) = self.superblock.lock().as_mut() {
            superblock.raw.s_errno.set(ERRNO_IO);
            superblock.store(&*self.device, self.cache.block_size())?;
            self.flush()?;
        }
        Ok(())
    }

    fn write_superblock(&self, tid: Tid, start: Option<LogPosition>) -> Result<()> {
        if let Some(superblock) = self.superblock.lock().as_mut() {
            superblock.write(&*self.device, self.cache.block_size(), tid, start)?;
            self.flush()?;
        }
        Ok(())
    }
}

/// Reads a log's superblock from log block 0.
pub(super) fn read_superblock(
    device: &dyn BlockDevice,
    area: &LogArea,
    block_size: usize,
) -> Result<RawJournalSuperblock> {
    let block = area.run_at(0).map_or(BlockNr(0), |run| run.start);
    let mut bytes = vec![0; size_of::<RawJournalSuperblock>()];
    device
        .read_at(block.0 * block_size as u64, &mut bytes)
        .map_err(|source| Error::Io {
            op: IoOp::Read,
            block,
            source,
        })?;
    Ok(RawJournalSuperblock::read_from_bytes(&bytes).expect("read as many bytes as it has"))
}
