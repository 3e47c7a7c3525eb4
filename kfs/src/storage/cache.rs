//! `BufferCache`: metadata blocks by number.
//!
//! Sharded by block number; each shard keeps its buffers in the order of their last use. A buffer
//! that somebody else holds (an inode, a transaction, the checkpoint list) is never evicted, which
//! is also what keeps changed blocks in memory: transactions hold their buffers.

use super::buffer::Buffer;
use crate::corrupt::Corrupt;
use crate::error::{Error, IoOp, Result};
use crate::ids::BlockNr;
use crate::sync::{Mutex, Rank};
use kfs_disk::BlockDevice;
use lru::LruCache;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const SHARDS: usize = 16;

/// How many buffers of a shard's cold end are looked at for one to evict.
const EVICTION_LOOKS: usize = 8;

/// The buffers of a volume.
pub struct BufferCache {
    device: Arc<dyn BlockDevice>,
    block_size: usize,
    blocks_count: AtomicU64,
    shards: Vec<Mutex<LruCache<BlockNr, Arc<Buffer>>>>,
    /// Buffers a shard keeps before it evicts.
    shard_capacity: usize,
    hits: AtomicU64,
    misses: AtomicU64,
}

/// How the cache has served since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatistics {
    /// Blocks found in memory.
    pub hits: u64,
    /// Blocks read from the device.
    pub misses: u64,
    /// Blocks held now.
    pub buffers: u64,
}

impl BufferCache {
    /// A cache for `blocks_count` blocks of `block_size` bytes that keeps about `capacity_bytes` of
    /// clean blocks.
    #[must_use]
    pub fn new(
        device: Arc<dyn BlockDevice>,
        block_size: u32,
        blocks_count: u64,
        capacity_bytes: u64,
    ) -> Self {
        let capacity =
            usize::try_from(capacity_bytes / u64::from(block_size)).unwrap_or(usize::MAX);
        Self {
            device,
            block_size: block_size as usize,
            blocks_count: AtomicU64::new(blocks_count),
            shards: (0..SHARDS)
                .map(|_| Mutex::new(Rank::CacheShard, LruCache::unbounded()))
                .collect(),
            shard_capacity: (capacity / SHARDS).max(16),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    /// The block's buffer, read from the device if it is not in memory.
    ///
    /// # Errors
    /// `Corrupt::BlockOutside` beyond the volume's end; `Io` when the device fails.
    pub fn get(&self, nr: BlockNr) -> Result<Arc<Buffer>> {
        let buffer = self.find_or_insert(nr)?;
        if buffer.is_loaded() {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(buffer);
        }
        let read = buffer.load(|| self.read_block(nr))?;
        let counter = if read { &self.misses } else { &self.hits };
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(buffer)
    }

    /// The block's buffer without reading the device, for a block that is about to be made anew
    /// with [`Handle::get_create_access`](super::Handle::get_create_access).
    ///
    /// # Errors
    /// `Corrupt::BlockOutside` beyond the volume's end.
    pub fn get_zeroed(&self, nr: BlockNr) -> Result<Arc<Buffer>> {
        let buffer = self.find_or_insert(nr)?;
        buffer.load(|| Ok::<_, Error>(vec![0; self.block_size].into()))?;
        Ok(buffer)
    }

    /// The block's buffer if it is in memory.
    pub(super) fn peek(&self, nr: BlockNr) -> Option<Arc<Buffer>> {
        self.shard(nr)
            .lock()
            .peek(&nr)
            .filter(|buffer| buffer.is_loaded())
            .map(Arc::clone)
    }

    /// There are this many blocks from now on, if there were fewer.
    pub(crate) fn grow(&self, blocks_count: u64) {
        self.blocks_count.fetch_max(blocks_count, Ordering::Relaxed);
    }

    /// Bytes in a block.
    #[must_use]
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Counters and the number of buffers held.
    #[must_use]
    pub fn statistics(&self) -> CacheStatistics {
        CacheStatistics {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            buffers: self
                .shards
                .iter()
                .map(|shard| shard.lock().len() as u64)
                .sum(),
        }
    }

    /// Forgets every buffer that nobody holds (`kfsctl drop-caches`, and after recovery).
    pub fn drop_clean(&self) {
        for shard in &self.shards {
            let mut shard = shard.lock();
            let cold: Vec<BlockNr> = shard
                .iter()
                .filter(|(_, buffer)| Arc::strong_count(buffer) == 1)
                .map(|(nr, _)| *nr)
                .collect();
            for nr in cold {
                shard.pop(&nr);
            }
        }
    }

    fn shard(&self, nr: BlockNr) -> &Mutex<LruCache<BlockNr, Arc<Buffer>>> {
        &self.shards[(nr.0 % SHARDS as u64) as usize]
    }

    fn find_or_insert(&self, nr: BlockNr) -> Result<Arc<Buffer>> {
        if nr.0 >= self.blocks_count.load(Ordering::Relaxed) {
            return Err(Corrupt::BlockOutside { block: nr }.into());
        }
        let mut shard = self.shard(nr).lock();
        if let Some(buffer) = shard.get(&nr) {
            return Ok(Arc::clone(buffer));
        }
        let buffer = Arc::new(Buffer::new(nr));
        shard.put(nr, Arc::clone(&buffer));
        if shard.len() > self.shard_capacity {
            Self::evict_one(&mut shard);
        }
        Ok(buffer)
    }

    /// Drops one cold buffer that only the cache holds. Held ones among the coldest are moved to the
    /// warm end, so that the next look does not meet them again.
    fn evict_one(shard: &mut LruCache<BlockNr, Arc<Buffer>>) {
        for _ in 0..EVICTION_LOOKS {
            let Some((nr, buffer)) = shard.pop_lru() else {
                return;
            };
            if Arc::strong_count(&buffer) == 1 {
                return;
            }
            shard.put(nr, buffer);
        }
    }

    fn read_block(&self, nr: BlockNr) -> Result<Arc<[u8]>> {
        let mut block: Arc<[u8]> = vec![0; self.block_size].into();
        let bytes = Arc::get_mut(&mut block).expect("just made, held once");
        self.device
            .read_at(nr.0 * self.block_size as u64, bytes)
            .map_err(|source| Error::Io {
                op: IoOp::Read,
                block: nr,
                source,
            })?;
        Ok(block)
    }
}
