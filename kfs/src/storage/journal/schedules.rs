//! Goal: whatever threads do with the journal, in whatever order: nobody waits for ever, who is told
//! that a transaction is durable finds it so, and a power cut leaves the state after some whole number
//! of transactions.
//!
//! Method: writers, a committer, a checkpointer, a thread that frees blocks and writes data over them,
//! and in some runs one that aborts, on a log so small that it wraps. A deterministic scheduler
//! (`crate::sync::schedule`) interleaves them at every lock and device call. The power is then cut at
//! many moments, each image recovered, and compared with what the transactions were.
//!
//! `KFS_SCHEDULES=N` explores that many interleavings, `KFS_SCHEDULES_FIRST=N` starts at that seed.

use super::tests::{BLOCK_SIZE, BLOCKS, LOG_BLOCKS, area, block_on, formatted};
use super::*;
use crate::sync::schedule::{self, Task};
use kfs_disk::MemoryDevice;
use kfs_disk::testing::{CrashDevice, SplitMix64};
use parking_lot::Mutex as Plain;
use std::collections::BTreeMap;
use std::io;

/// Metadata blocks that the writers change.
const SHARED: u64 = 12;
/// First block of those that are metadata once and data ever after.
const FREED: u64 = 100;
/// A block of file data that is overwritten in place.
const DATA: u64 = 200;
const WRITERS: u64 = 2;
/// The abort comes in one of so many runs.
const ABORTS_ONE_OF: u64 = 5;

/// A device at whose calls another thread may go on.
struct Preempting(CrashDevice);

impl BlockDevice for Preempting {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        schedule::preempt();
        self.0.read_at(offset, buf)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        schedule::preempt();
        let written = self.0.write_at(offset, buf);
        schedule::preempt();
        written
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[io::IoSlice<'_>]) -> io::Result<()> {
        schedule::preempt();
        let written = self.0.write_vectored_at(offset, bufs);
        schedule::preempt();
        written
    }

    fn flush(&self) -> io::Result<()> {
        schedule::preempt();
        let flushed = self.0.flush();
        schedule::preempt();
        flushed
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.write_zeroes(offset, len)
    }

    fn size_bytes(&self) -> u64 {
        self.0.size_bytes()
    }
}

/// A block set to a value by a transaction.
struct Change {
    tid: Tid,
    block: u64,
    value: u8,
}

/// What must be so after a power cut at `position` of the device's log or later.
enum Promise {
    /// The transaction is durable.
    Committed(Tid),
    /// The block holds data with this value, or a later one.
    Data { block: u64, value: u8 },
}

struct Run {
    device: Arc<Preempting>,
    journal: Journal,
    cache: Arc<BufferCache>,
    first: Tid,
    /// In the order in which they were made.
    changes: Plain<Vec<Change>>,
    promises: Plain<Vec<(usize, Promise)>>,
}

impl Run {
    fn new() -> Self {
        let base = formatted();
        let device = Arc::new(Preempting(CrashDevice::new(base.snapshot())));
        let dynamic = Arc::clone(&device) as Arc<dyn BlockDevice>;
        let mut log = recover(&*device, area(), BLOCK_SIZE, BLOCKS)
            .expect("recovers")
            .log;
        reset_log(&*device, &mut log, BLOCK_SIZE).expect("memory");
        let cache = Arc::new(BufferCache::new(
            Arc::clone(&dynamic),
            BLOCK_SIZE,
            BLOCKS,
            1 << 20,
        ));
        let journal = Journal::open(dynamic, Arc::clone(&cache), Some(log));
        journal.mark_in_use().expect("memory");
        device.0.restart_log();
        Self {
            first: journal.running_tid(),
            device,
            journal,
            cache,
            changes: Plain::default(),
            promises: Plain::default(),
        }
    }

    fn promise(&self, promise: Promise) {
        let position = self.device.0.position();
        self.promises.lock().push((position, promise));
    }

    /// Sets blocks to a value within one handle.
    fn set(&self, blocks: &[u64], value: u8) -> Result<Tid> {
        let buffers: Result<Vec<_>> = blocks
            .iter()
            .map(|block| self.cache.get(BlockNr(*block)))
            .collect();
        let buffers = buffers?;
        let mut handle = self.journal.start(blocks.len() as u32)?;
        let tid = handle.tid();
        assert!(!self.journal.is_committed(tid), "with a handle open");
        for buffer in &buffers {
            let mut bytes = handle.get_write_access(buffer);
            bytes.fill(value);
            let block = buffer.nr().0;
            self.changes.lock().push(Change { tid, block, value });
        }
        assert!(!self.journal.is_committed(tid), "with a handle open");
        Ok(tid)
    }

    fn commit(&self, tid: Tid) -> Result<()> {
        self.journal.commit(tid)?;
        assert!(self.journal.is_committed(tid), "was said to be durable");
        self.promise(Promise::Committed(tid));
        let statistics = self.journal.statistics();
        assert!(
            statistics.log_blocks_used < LOG_BLOCKS,
            "the log is overfull"
        );
        Ok(())
    }

    fn write_data(&self, block: u64, value: u8) -> Result<()> {
        let content = [value; BLOCK_SIZE as usize];
        let written = self
            .device
            .write_at(block * u64::from(BLOCK_SIZE), &content);
        written.map_err(|source| Error::Device {
            op: crate::IoOp::Write,
            source,
        })
    }

    /// Changes a few blocks at a time, and syncs now and then.
    fn writer(&self, thread: u64, mut random: SplitMix64) -> Result<()> {
        for round in 0..7 {
            let count = 1 + random.next_u64() % 5;
            let first = random.next_u64() % SHARED;
            let blocks: Vec<u64> = (0..count).map(|i| 1 + (first + i * 5) % SHARED).collect();
            let mut unique = blocks.clone();
            unique.sort_unstable();
            unique.dedup();
            let tid = self.set(&unique, (1 + thread * 20 + round) as u8)?;
            if random.next_u64().is_multiple_of(3) {
                self.commit(tid)?;
            }
        }
        Ok(())
    }

    /// Overwrites data in place and has it made durable, as fdatasync does, by way of a transaction
    /// that somebody else may be committing.
    fn syncer(&self) -> Result<()> {
        for value in 1..6 {
            let tid = self.set(&[SHARED + 1], value)?;
            schedule::preempt();
            self.write_data(DATA, value)?;
            if self.journal.is_committed(tid) {
                self.journal.flush()?;
            } else {
                self.journal.commit_with_data(tid)?;
                self.promise(Promise::Committed(tid));
            }
            let block = DATA;
            self.promise(Promise::Data { block, value });
        }
        Ok(())
    }

    /// Makes metadata blocks, frees them, and writes data over them once that is durable.
    fn freer(&self) -> Result<()> {
        for round in 0..5 {
            let block = FREED + round;
            let tid = self.set(&[block], 0xee)?;
            if round % 2 == 0 {
                self.commit(tid)?;
            }
            let freed = {
                let mut handle = self.journal.start(1)?;
                handle.forget(BlockNr(block));
                handle.tid()
            };
            self.commit(freed)?;
            let value = 0xd0 + round as u8;
            self.write_data(block, value)?;
            self.journal.commit_all()?;
            self.promise(Promise::Data { block, value });
        }
        Ok(())
    }

    fn committer(&self) -> Result<()> {
        for round in 0..6 {
            if round % 2 == 0 {
                self.commit_running()?;
            } else {
                self.journal.checkpoint()?;
            }
        }
        Ok(())
    }

    fn commit_running(&self) -> Result<()> {
        let tid = self.journal.running_tid();
        self.journal.commit(tid)
    }

    /// What the shared blocks hold after all transactions up to the first and `count` after it.
    fn state_after(&self, count: u32) -> BTreeMap<u64, u8> {
        let mut state = BTreeMap::new();
        for change in self.changes.lock().iter() {
            if self.age(change.tid) < count && change.block <= SHARED + 1 {
                state.insert(change.block, change.value);
            }
        }
        state
    }

    fn age(&self, tid: Tid) -> u32 {
        tid.0.wrapping_sub(self.first.0)
    }

    /// Changes of a block come in the order of their transactions: none joined one that had frozen.
    fn assert_changes_in_order(&self) {
        let mut last = BTreeMap::new();
        for change in self.changes.lock().iter() {
            let age = self.age(change.tid);
            let before = last.insert(change.block, age).unwrap_or(0);
            assert!(before <= age, "block {} changed back", change.block);
        }
    }

    /// Cuts the power at one of `step` moments and recovers.
    fn assert_recoverable(&self, seed: u64, step: usize) -> usize {
        let newest = self.age(self.journal.running_tid());
        let states: Vec<BTreeMap<u64, u8>> = (0..=newest + 1)
            .map(|count| self.state_after(count))
            .collect();
        let mut images = 0;
        for point in self
            .device
            .0
            .crash_points()
            .skip(seed as usize % step)
            .step_by(step)
        {
            for image in point.images(2, seed) {
                let context = format!("{image}");
                recover(&image.device, area(), BLOCK_SIZE, BLOCKS)
                    .unwrap_or_else(|error| panic!("{context}: {error}"));
                self.assert_promised(&image.device, &states, point.position(), &context);
                images += 1;
            }
        }
        images
    }

    fn assert_promised(
        &self,
        device: &MemoryDevice,
        states: &[BTreeMap<u64, u8>],
        position: usize,
        context: &str,
    ) {
        let mut durable = 0;
        for (at, promise) in self.promises.lock().iter() {
            match promise {
                Promise::Committed(tid) if *at <= position => {
                    durable = durable.max(self.age(*tid) + 1);
                }
                Promise::Data { block, value } if *at <= position => {
                    let found = block_on(device, *block);
                    let is_later = *block == DATA && found[0] >= *value;
                    assert!(
                        found[0] == *value || is_later,
                        "{context}: data of block {block} is {}, not {value}",
                        found[0]
                    );
                }
                _ => {}
            }
        }
        let found: BTreeMap<u64, u8> = (1..=SHARED + 1)
            .map(|block| (block, block_on(device, block)[0]))
            .filter(|(_, value)| *value != 0)
            .collect();
        assert!(
            states[durable as usize..].contains(&found),
            "{context}: not the state after {durable} transactions or more of {}: {found:?}",
            states.len() - 1
        );
    }
}

struct Explored {
    images: usize,
    has_wrapped: bool,
}

/// Explores one interleaving.
fn explore(seed: u64, step: usize) -> Explored {
    let run = Run::new();
    let aborts = seed.is_multiple_of(ABORTS_ONE_OF);
    let finish = |result: Result<()>| match result {
        Err(Error::ReadOnly { .. }) if aborts => {}
        other => other.expect("nothing fails but by the abort"),
    };
    let run_ref = &run;
    let mut tasks: Vec<Task<'_>> = vec![
        Box::new(move || finish(run_ref.committer())),
        Box::new(move || finish(run_ref.syncer())),
        Box::new(move || finish(run_ref.freer())),
    ];
    for thread in 0..WRITERS {
        let random = SplitMix64::new(seed * WRITERS + thread);
        tasks.push(Box::new(move || finish(run_ref.writer(thread, random))));
    }
    if aborts {
        tasks.push(Box::new(move || {
            for _ in 0..seed % 50 {
                schedule::preempt();
            }
            run_ref.journal.abort(&Error::Invalid);
        }));
    }
    schedule::run(seed, tasks);
    if aborts {
        assert!(matches!(run.journal.start(1), Err(Error::ReadOnly { .. })));
        assert!(run.journal.commit_all().is_err());
    } else {
        run.journal.commit_all().expect("memory");
        run.promise(Promise::Committed(Tid(run
            .journal
            .running_tid()
            .0
            .wrapping_sub(1))));
        run.journal.checkpoint().expect("memory");
        assert_eq!(run.journal.statistics().log_blocks_used, 0);
    }
    run.assert_changes_in_order();
    let written = run.journal.statistics().log_blocks_written;
    Explored {
        images: run.assert_recoverable(seed, step),
        has_wrapped: written > LOG_BLOCKS.into(),
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

#[test]
fn interleavings_of_the_journal() {
    let first = number("KFS_SCHEDULES_FIRST", 1);
    let count = number("KFS_SCHEDULES", 300);
    let (mut images, mut wrapped) = (0, 0);
    for seed in first..first + count {
        // Says which it was.
        let explored = std::panic::catch_unwind(|| explore(seed, 7));
        let explored = explored.unwrap_or_else(|panic| {
            eprintln!("KFS_SCHEDULES_FIRST={seed} KFS_SCHEDULES=1");
            std::panic::resume_unwind(panic)
        });
        images += explored.images;
        wrapped += u64::from(explored.has_wrapped);
    }
    println!("{count} interleavings, {wrapped} with a log that wrapped, {images} power cuts");
    assert!(images as u64 > count * 5 && wrapped * 3 > count);
}
