//! Goal: whatever the device holds when the power goes, recovery gives the state after some whole
//! number of transactions, and never less than what was committed.
//! Method: random transactions on a small volume with a tiny log (so that it wraps and checkpoints),
//! the device copied after random commits, each copy recovered and compared with a model.

use super::*;
use crate::corrupt::Corrupt;
use crate::ids::Run;
use crate::layout::journal::RawJournalSuperblock;
use kfs_disk::MemoryDevice;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use zerocopy::IntoBytes;

pub(super) const BLOCK_SIZE: u32 = 1024;
pub(super) const BLOCKS: u64 = 512;
const LOG_START: u64 = 256;
pub(super) const LOG_BLOCKS: u32 = 64;

pub(super) fn area() -> LogArea {
    // Two pieces, so that a transaction crosses the seam.
    LogArea::new([
        Run {
            start: BlockNr(LOG_START + 100),
            len: 20,
        },
        Run {
            start: BlockNr(LOG_START),
            len: LOG_BLOCKS - 20,
        },
    ])
}

pub(super) fn formatted() -> Arc<MemoryDevice> {
    let device = MemoryDevice::new(BLOCKS * u64::from(BLOCK_SIZE));
    let mut superblock = RawJournalSuperblock::new(BLOCK_SIZE, LOG_BLOCKS, [7; 16]);
    superblock.s_sequence.set(u32::MAX - 3);
    let at = area().run_at(0).expect("not empty").start.0 * u64::from(BLOCK_SIZE);
    device.write_at(at, superblock.as_bytes()).expect("memory");
    Arc::new(device)
}

fn open(device: &Arc<MemoryDevice>) -> (Journal, Arc<BufferCache>) {
    let recovered = recover(&**device, area(), BLOCK_SIZE, BLOCKS).expect("recovers");
    let mut log = recovered.log;
    reset_log(&**device, &mut log, BLOCK_SIZE).expect("memory");
    let dynamic: Arc<dyn BlockDevice> = Arc::clone(device) as Arc<dyn BlockDevice>;
    let cache = Arc::new(BufferCache::new(
        Arc::clone(&dynamic),
        BLOCK_SIZE,
        BLOCKS,
        1 << 20,
    ));
    let journal = Journal::open(dynamic, Arc::clone(&cache), Some(log));
    journal.mark_in_use().expect("memory");
    (journal, cache)
}

pub(super) fn block_on(device: &MemoryDevice, nr: u64) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE as usize];
    device
        .read_at(nr * u64::from(BLOCK_SIZE), &mut block)
        .expect("memory");
    block
}

fn set(journal: &Journal, cache: &BufferCache, nr: u64, byte: u8) {
    let buffer = cache.get(BlockNr(nr)).expect("memory");
    let mut handle = journal.start(1).expect("not aborted");
    let mut bytes = handle.get_write_access(&buffer);
    bytes.fill(byte);
    if byte == 0xc0 {
        // Looks like a block of the log itself.
        bytes[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Set {
        nr: u64,
        byte: u8,
    },
    /// Free a metadata block; it becomes file data, written to its place after the commit.
    FreeAndReuse {
        nr: u64,
        byte: u8,
    },
    Commit,
    Checkpoint,
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1..64u64, any::<u8>()).prop_map(|(nr, byte)| Step::Set { nr, byte }),
        1 => (1..64u64).prop_map(|nr| Step::Set { nr, byte: 0xc0 }),
        2 => (1..64u64, any::<u8>()).prop_map(|(nr, byte)| Step::FreeAndReuse { nr, byte }),
        3 => Just(Step::Commit),
        1 => Just(Step::Checkpoint),
        1 => Just(Step::Crash),
    ]
}

fn content(byte: u8) -> Vec<u8> {
    let mut block = vec![byte; BLOCK_SIZE as usize];
    if byte == 0xc0 {
        block[..4].copy_from_slice(&0xc03b_3998_u32.to_be_bytes());
    }
    block
}

fn run(steps: &[Step]) {
    let mut device = formatted();
    let (mut journal, mut cache) = open(&device);
    let mut committed: BTreeMap<u64, u8> = BTreeMap::new();
    let mut running: BTreeMap<u64, u8> = BTreeMap::new();
    let mut data: BTreeSet<u64> = BTreeSet::new();
    for step in steps {
        match *step {
            Step::Set { nr, byte } if !data.contains(&nr) => {
                let tid = journal.running_tid();
                set(&journal, &cache, nr, byte);
                if journal.running_tid() != tid {
                    // It was full, and was committed to make room.
                    committed.append(&mut running);
                }
                running.insert(nr, byte);
            }
            Step::FreeAndReuse { nr, byte } if !data.contains(&nr) => {
                journal.start(1).expect("not aborted").forget(BlockNr(nr));
                journal.commit_all().expect("memory");
                committed.append(&mut running);
                device
                    .write_at(nr * u64::from(BLOCK_SIZE), &[byte; BLOCK_SIZE as usize])
                    .expect("memory");
                committed.insert(nr, byte);
                data.insert(nr);
            }
            Step::Commit => {
                journal.commit_all().expect("memory");
                committed.append(&mut running);
            }
            Step::Checkpoint => journal.checkpoint().expect("memory"),
            Step::Crash => {
                running.clear();
                device = Arc::new(device.snapshot());
                (journal, cache) = open(&device);
                data.clear();
                check(&device, &committed);
            }
            Step::Set { .. } | Step::FreeAndReuse { .. } => {}
        }
    }
    let crashed = Arc::new(device.snapshot());
    let (_journal, _cache) = open(&crashed);
    check(&crashed, &committed);
}

fn check(device: &MemoryDevice, committed: &BTreeMap<u64, u8>) {
    for (nr, byte) in committed {
        let mut expected = content(*byte);
        let found = block_on(device, *nr);
        if *byte == 0xc0 && found[0] == 0xc0 && found[1] == 0xc0 {
            // File data with that byte carries no magic number.
            expected = vec![0xc0; BLOCK_SIZE as usize];
        }
        assert!(
            found == expected,
            "block {nr}: {:02x?} is not {byte:#04x}",
            &found[..8]
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn recovery_gives_what_was_committed(steps in prop::collection::vec(step(), 1..300)) {
        run(&steps);
    }
}

#[test]
fn uncommitted_changes_do_not_reach_the_device() {
    let device = formatted();
    let (journal, cache) = open(&device);
    set(&journal, &cache, 5, 1);
    journal.checkpoint().expect("memory");
    assert_eq!(block_on(&device, 5), content(0));
    journal.commit_all().expect("memory");
    assert_eq!(
        block_on(&device, 5),
        content(0),
        "committed to the log, not to its place"
    );
    journal.checkpoint().expect("memory");
    assert_eq!(block_on(&device, 5), content(1));
}

#[test]
fn a_damaged_transaction_stops_recovery() {
    let device = formatted();
    let (journal, cache) = open(&device);
    set(&journal, &cache, 5, 1);
    journal.commit_all().expect("memory");
    set(&journal, &cache, 5, 2);
    journal.commit_all().expect("memory");
    // Descriptor, block, commit: the second transaction's block is log block 5.
    let at = area().run_at(5).expect("in the log").start.0 * u64::from(BLOCK_SIZE);
    device.write_at(at + 512, &[0xff; 512]).expect("memory");
    let damage = recover(&*device, area(), BLOCK_SIZE, BLOCKS).err();
    assert!(matches!(
        damage,
        Some(Error::Corrupt(Corrupt::JournalTransaction { .. }))
    ));
    assert_eq!(block_on(&device, 5), content(0), "nothing was replayed");
}

#[test]
fn handles_of_many_threads_commit_together() {
    let device = formatted();
    let (journal, cache) = open(&device);
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let (journal, cache) = (&journal, &cache);
            scope.spawn(move || {
                for round in 0..200u64 {
                    let nr = 1 + (thread * 16 + round % 16);
                    set(journal, cache, nr, u8::try_from(round).expect("below 200"));
                    if round % 7 == 0 {
                        journal.commit(journal.running_tid()).expect("memory");
                    }
                }
            });
        }
    });
    journal.commit_all().expect("memory");
    let statistics = journal.statistics();
    assert_eq!(statistics.running_blocks, 0);
    assert!(
        statistics.commits >= 29,
        "each thread asked for 29 commits in turn"
    );
    let crashed = Arc::new(device.snapshot());
    drop(open(&crashed));
    for nr in 1..=64u64 {
        let round = 199 - (199 - (nr - 1) % 16) % 16;
        assert_eq!(
            block_on(&crashed, nr)[9],
            u8::try_from(round).expect("below 200")
        );
    }
}

#[test]
fn an_aborted_journal_takes_no_handles() {
    let device = formatted();
    let (journal, cache) = open(&device);
    set(&journal, &cache, 5, 1);
    journal.abort(&Error::Invalid);
    assert!(matches!(journal.start(1), Err(Error::ReadOnly { .. })));
    assert!(journal.commit_all().is_err());
    drop(open(&device));
    assert_eq!(block_on(&device, 5), content(0));
}
