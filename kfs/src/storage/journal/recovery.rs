//! Recovery: replays the log of an image that was not closed.
//!
//! Three passes, as jbd2 does: *scan* finds the last transaction that is whole, *revoke* collects
//! which blocks must not be replayed from which transactions, *replay* writes the rest to their
//! places. All passes only read the log, so a crash during recovery just means doing it again.
//!
//! A transaction is whole when its commit block is there with the right id and checksum and, where
//! the log has checksums, every block of it matches its tag. All forms of tags that jbd2 has ever
//! written are read.

use super::log::{LogArea, LogOptions, LogSuperblock, data_checksum, read_superblock};
use crate::checksum::{CRC32C_INIT, crc32c};
use crate::corrupt::Corrupt;
use crate::error::{Error, IoOp, Result};
use crate::ids::{BlockNr, Tid};
use crate::layout::journal::{
    BlockType, JBD2_MAGIC, JournalIncompat, RawBlockTail, RawCommitBlock, RawJournalHeader,
    RawJournalSuperblock, RawRevokeHeader, TagFlags, TagFormat,
};
use kfs_disk::BlockDevice;
use std::collections::HashMap;

/// Incompatible features of a log that recovery can read.
const INCOMPAT_READ: JournalIncompat = JournalIncompat::REVOKE
    .union(JournalIncompat::BIT64)
    .union(JournalIncompat::CSUM_V2)
    .union(JournalIncompat::CSUM_V3)
    .union(JournalIncompat::ASYNC_COMMIT);

/// What recovery did.
pub struct Recovered {
    /// Transactions replayed.
    pub transactions: u32,
    /// Blocks written to their places.
    pub blocks: u64,
    /// The log, empty, ready for [`Journal::open`](super::Journal::open).
    pub log: LogOptions,
}

/// Brings the volume on `device` to the state of the log's last whole transaction. With a read-only
/// device the caller must not need recovery: see [`needs_recovery`].
///
/// # Errors
/// `Corrupt` when the log's superblock is not one or a committed transaction is damaged (nothing was
/// changed then), `Unsupported` for features of the log that kfs does not know, `Io`.
pub fn recover(
    device: &dyn BlockDevice,
    area: LogArea,
    block_size: u32,
    blocks_count: u64,
) -> Result<Recovered> {
    let reader = LogReader::open(device, area, block_size as usize, blocks_count)?;
    let mut recovered = Recovered {
        transactions: 0,
        blocks: 0,
        log: LogOptions {
            next_tid: Tid(reader.superblock.s_sequence.get()).or_first(),
            superblock: reader.superblock.clone(),
            area: reader.area.clone(),
        },
    };
    if reader.superblock.s_start.get() == 0 {
        return Ok(recovered);
    }
    let scan = reader.scan()?;
    if scan.is_damaged {
        // Later transactions may be whole, and partly in place: replaying a part would mix states.
        return Err(Corrupt::JournalTransaction { tid: scan.end }.into());
    }
    let revoked = reader.revokes(&scan)?;
    recovered.blocks = reader.replay(&scan, &revoked)?;
    recovered.transactions = scan.transactions;
    // Ids that a damaged tail of the log carries must not be used again: its blocks could be taken
    // for a continuation of what is written next.
    recovered.log.next_tid = Tid(scan.end.0.wrapping_add(1)).or_first();
    if recovered.blocks > 0 {
        device.flush().map_err(|source| Error::Device {
            op: IoOp::Flush,
            source,
        })?;
    }
    Ok(recovered)
}

/// Takes a log over without replaying what it may hold: the volume needs no recovery.
///
/// # Errors
/// As [`recover`].
pub fn attach(
    device: &dyn BlockDevice,
    area: LogArea,
    block_size: u32,
    blocks_count: u64,
) -> Result<Recovered> {
    let reader = LogReader::open(device, area, block_size as usize, blocks_count)?;
    let mut tid = reader.superblock.s_sequence.get();
    if reader.superblock.s_start.get() != 0 {
        // Beyond every id that a leftover transaction can have.
        tid = tid.wrapping_add(reader.area.len());
    }
    let log = LogOptions {
        next_tid: Tid(tid).or_first(),
        superblock: reader.superblock.clone(),
        area: reader.area.clone(),
    };
    Ok(Recovered {
        transactions: 0,
        blocks: 0,
        log,
    })
}

/// The log's superblock, checked as recovery checks it.
///
/// # Errors
/// As [`recover`].
pub fn inspect(
    device: &dyn BlockDevice,
    area: LogArea,
    block_size: u32,
    blocks_count: u64,
) -> Result<RawJournalSuperblock> {
    let reader = LogReader::open(device, area, block_size as usize, blocks_count)?;
    Ok(reader.superblock)
}

/// Writes the log's superblock as kfs uses the log from here on: empty, with kfs's features.
///
/// # Errors
/// When the device fails.
pub fn reset_log(device: &dyn BlockDevice, log: &mut LogOptions, block_size: u32) -> Result<()> {
    log.superblock
        .set_written_features(super::log::INCOMPAT_WRITTEN);
    let mut superblock = LogSuperblock::new(log);
    superblock.write(device, block_size as usize, log.next_tid, None)?;
    log.superblock = superblock.raw;
    device.flush().map_err(|source| Error::Device {
        op: IoOp::Flush,
        source,
    })
}

/// What the scan found.
struct Scan {
    first: Tid,
    /// The first transaction that is not whole.
    end: Tid,
    transactions: u32,
    is_damaged: bool,
}

/// A block of the log with its place.
struct Tagged {
    home: BlockNr,
    log_block: u32,
    flags: TagFlags,
    checksum: u32,
}

struct LogReader<'d> {
    device: &'d dyn BlockDevice,
    area: LogArea,
    superblock: RawJournalSuperblock,
    block_size: usize,
    blocks_count: u64,
    seed: u32,
    format: TagFormat,
    has_checksums: bool,
}

impl<'d> LogReader<'d> {
    fn open(
        device: &'d dyn BlockDevice,
        area: LogArea,
        block_size: usize,
        blocks_count: u64,
    ) -> Result<Self> {
        let superblock = read_superblock(device, &area, block_size)?;
        check_superblock(&superblock, &area, block_size)?;
        let incompat = superblock.incompat();
        Ok(Self {
            device,
            area,
            block_size,
            blocks_count,
            seed: crc32c(CRC32C_INIT, &superblock.s_uuid),
            format: TagFormat::of(incompat),
            has_checksums: incompat.intersects(JournalIncompat::CSUM_V2 | JournalIncompat::CSUM_V3),
            superblock,
        })
    }

    fn scan(&self) -> Result<Scan> {
        let first = Tid(self.superblock.s_sequence.get());
        let mut scan = Scan {
            first,
            end: first,
            transactions: 0,
            is_damaged: false,
        };
        let mut at = self.superblock.s_start.get();
        // No log holds more transactions than blocks, so a ring of forged headers ends too.
        let mut budget = self.superblock.log_end();
        while let Some(transaction) = self.read_transaction(at, scan.end, &mut budget)? {
            if !self.verify_data(scan.end, &transaction)? {
                scan.is_damaged = true;
                break;
            }
            at = transaction.next;
            scan.end = scan.end.next();
            scan.transactions += 1;
        }
        Ok(scan)
    }

    fn revokes(&self, scan: &Scan) -> Result<HashMap<BlockNr, Tid>> {
        let mut revoked = HashMap::new();
        self.for_each(scan, |tid, transaction| {
            // Transactions come in order: the last one to revoke a block wins.
            revoked.extend(transaction.revoked.iter().map(|nr| (*nr, tid)));
            Ok(())
        })?;
        Ok(revoked)
    }

    fn replay(&self, scan: &Scan, revoked: &HashMap<BlockNr, Tid>) -> Result<u64> {
        let mut written = 0;
        self.for_each(scan, |tid, transaction| {
            for tagged in &transaction.blocks {
                // A revoke covers the block's copies up to and including its own transaction.
                if revoked
                    .get(&tagged.home)
                    .is_some_and(|revoke| !tid.is_after(*revoke))
                {
                    continue;
                }
                let mut block = self.read(tagged.log_block)?;
                if tagged.flags.contains(TagFlags::ESCAPE) {
                    block[..4].copy_from_slice(&JBD2_MAGIC.to_be_bytes());
                }
                self.device
                    .write_at(tagged.home.0 * self.block_size as u64, &block)
                    .map_err(|source| Error::Io {
                        op: IoOp::Write,
                        block: tagged.home,
                        source,
                    })?;
                written += 1;
            }
            Ok(())
        })?;
        Ok(written)
    }

    fn for_each(
        &self,
        scan: &Scan,
        mut visit: impl FnMut(Tid, &LoggedTransaction) -> Result<()>,
    ) -> Result<()> {
        let mut at = self.superblock.s_start.get();
        let mut tid = scan.first;
        let mut budget = self.superblock.log_end();
        while tid != scan.end {
            let Some(transaction) = self.read_transaction(at, tid, &mut budget)? else {
                break;
            };
            visit(tid, &transaction)?;
            at = transaction.next;
            tid = tid.next();
        }
        Ok(())
    }

    /// The transaction `tid` that starts at log block `at`, or `None` if it is not whole.
    fn read_transaction(
        &self,
        mut at: u32,
        tid: Tid,
        budget: &mut u32,
    ) -> Result<Option<LoggedTransaction>> {
        let mut transaction = LoggedTransaction::default();
        loop {
            if *budget == 0 {
                return Ok(None);
            }
            *budget -= 1;
            let block = self.read(at)?;
            let Some(block_type) = RawJournalHeader::parse(&block, tid.0) else {
                return Ok(None);
            };
            at = self.after(at, 1);
            match block_type {
                BlockType::Descriptor => {
                    if self.has_checksums && !RawBlockTail::verify_checksum(&block, self.seed) {
                        return Ok(None);
                    }
                    let before = transaction.blocks.len();
                    self.read_tags(&block, at, &mut transaction.blocks);
                    let count = u32::try_from(transaction.blocks.len() - before)
                        .expect("bounded by the block size");
                    let Some(left) = budget.checked_sub(count) else {
                        return Ok(None);
                    };
                    *budget = left;
                    at = self.after(at, count);
                }
                BlockType::Revoke => {
                    if self.has_checksums && !RawBlockTail::verify_checksum(&block, self.seed) {
                        return Ok(None);
                    }
                    self.read_revokes(&block, &mut transaction.revoked);
                }
                BlockType::Commit => {
                    if self.has_checksums && !RawCommitBlock::verify_checksum(&block, self.seed) {
                        return Ok(None);
                    }
                    transaction.next = at;
                    return Ok(Some(transaction));
                }
            }
        }
    }

    fn read_tags(&self, block: &[u8], first: u32, tagged: &mut Vec<Tagged>) {
        let mut log_block = first;
        for tag in self.format.tags(block) {
            tagged.push(Tagged {
                home: BlockNr(tag.block),
                log_block,
                flags: tag.flags,
                checksum: tag.checksum,
            });
            log_block = self.after(log_block, 1);
        }
    }

    fn read_revokes(&self, block: &[u8], revoked: &mut Vec<BlockNr>) {
        let is_64bit = self.superblock.incompat().contains(JournalIncompat::BIT64);
        revoked.extend(RawRevokeHeader::records(block, is_64bit).map(BlockNr));
    }

    /// Whether all blocks of a transaction lie in the volume and match their tags.
    fn verify_data(&self, tid: Tid, transaction: &LoggedTransaction) -> Result<bool> {
        for tagged in &transaction.blocks {
            if tagged.home.0 >= self.blocks_count {
                return Ok(false);
            }
            if !self.has_checksums {
                continue;
            }
            let block = self.read(tagged.log_block)?;
            let found = data_checksum(self.seed, tid, &block);
            if !self.format.checksum_matches(tagged.checksum, found) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The log block `count` blocks after `at`, around the ring.
    fn after(&self, at: u32, count: u32) -> u32 {
        let (first, end) = (self.superblock.s_first.get(), self.superblock.log_end());
        let len = end - first;
        first + (at - first + count % len) % len
    }

    fn read(&self, log_block: u32) -> Result<Vec<u8>> {
        let run = self
            .area
            .run_at(log_block)
            .ok_or(Corrupt::JournalBlockOutside {
                block: log_block,
                len: self.area.len(),
            })?;
        let mut block = vec![0; self.block_size];
        self.device
            .read_at(run.start.0 * self.block_size as u64, &mut block)
            .map_err(|source| Error::Io {
                op: IoOp::Read,
                block: run.start,
                source,
            })?;
        Ok(block)
    }
}

#[derive(Default)]
struct LoggedTransaction {
    blocks: Vec<Tagged>,
    revoked: Vec<BlockNr>,
    /// Log block after the commit block.
    next: u32,
}

fn check_superblock(
    superblock: &RawJournalSuperblock,
    area: &LogArea,
    block_size: usize,
) -> Result<()> {
    superblock.check(u32::try_from(block_size).unwrap_or(0), area.len())?;
    let unknown = superblock.incompat().difference(INCOMPAT_READ);
    if unknown.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = unknown
        .iter_names()
        .map(|(name, _)| format!("journal {name}"))
        .collect();
    let names = if names.is_empty() {
        format!("journal {:#x}", unknown.bits())
    } else {
        names.join(", ")
    };
    Err(Error::Unsupported { names })
}
