//! Goal: when the device fails, the caller is told, nothing that was durable is lost, and the volume
//! is whole after a restart.
//!
//! Method: a random workload on a device whose n-th write, or n-th flush, fails, for every n, once
//! and from then on. The volume must take no change after a failed commit, and never panic. Then the
//! device works again: the image recovers to the tree after some operation, not older than the last
//! sync that succeeded, and e2fsck finds nothing.

use kfs::check::{Finding, FindingKind};
use kfs::{Error, Filesystem, MountOptions};
use kfs_disk::testing::{Fault, FaultDevice, FaultTrigger, OpKinds};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::faults::fail_each;
use kfs_tests::operations::{self, Operation};
use kfs_tests::workload::Workload;
use kfs_tests::{check, e2fsprogs, tree};
use std::collections::BTreeMap;
use std::sync::Arc;

const IMAGE_BYTES: u64 = 8 << 20;
const OPERATIONS: usize = 50;
/// Every so many images e2fsck is asked, too.
const E2FSCK_EVERY: u64 = 20;

type Picture = BTreeMap<String, String>;

fn options() -> MountOptions {
    MountOptions {
        commit_interval: None,
        generation_seed: Some(7),
        ..MountOptions::default()
    }
}

/// What a run with a failing device left.
struct Run {
    image: MemoryDevice,
    /// Trees after each operation that succeeded, from the last durable one on.
    possible: Vec<Picture>,
    has_failed: bool,
    /// The journal was aborted.
    was_aborted: bool,
    /// It was before the volume was closed, and what was written after that reached the device.
    is_on_record: bool,
}

fn run(seed: u64, fault: Fault) -> Run {
    let memory = Arc::new(MemoryDevice::new(IMAGE_BYTES));
    mkfs::format(&*memory, &mkfs::Options::default()).expect("formats");
    let device = Arc::new(FaultDevice::new(Arc::clone(&memory)));
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, options())
        .expect("opens before anything fails");
    let mut possible = vec![tree::picture(&fs).expect("reads do not fail")];
    let mut workload = Workload::new(Arc::clone(&fs), seed);
    device.inject(fault);
    let mut has_failed = false;
    for _ in 0..OPERATIONS {
        match workload.operate() {
            Ok((_, is_durable)) => {
                assert!(
                    !fs.status().journal.aborted,
                    "an operation succeeded on an aborted journal"
                );
                if is_durable {
                    possible.clear();
                }
                possible.push(tree::picture(&fs).expect("reads do not fail"));
            }
            Err(Error::Io { .. } | Error::Device { .. } | Error::ReadOnly { .. }) => {
                has_failed = true;
                break;
            }
            Err(error) => panic!("seed {seed}: not the device's failure: {error}"),
        }
    }
    if has_failed {
        // What failed half-way may show, if its blocks got into a commit that was under way.
        possible.push(tree::picture(&fs).expect("reads do not fail"));
    }
    drop(workload);
    let was_aborted_before = fs.status().journal.aborted;
    let closed = fs.close();
    let was_aborted = fs.status().journal.aborted;
    has_failed |= closed.is_err();
    drop(fs);
    Run {
        image: memory.snapshot(),
        possible,
        has_failed,
        was_aborted,
        is_on_record: was_aborted_before && closed.is_ok(),
    }
}

/// Whether the superblock (at 1024) says in `s_state` (at 58) that errors were found.
fn has_error_mark(device: &MemoryDevice) -> bool {
    let mut state = [0; 2];
    device.read_at(1024 + 58, &mut state).expect("memory");
    u16::from_le_bytes(state) & 2 != 0
}

fn judge(run: &Run, context: &str, asks_e2fsck: bool) {
    let device = Arc::new(run.image.snapshot());
    if !run.was_aborted {
        // The check calls an image broken whose journal says that it was aborted.
        let as_found = Arc::new(run.image.snapshot());
        check::assert_recoverable(as_found, &format!("{context}, before recovery"));
    }
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, options())
        .unwrap_or_else(|error| panic!("{context}: does not recover: {error}"));
    let picture = tree::picture(&fs).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert!(
        run.possible.contains(&picture),
        "{context}: recovered to\n{picture:#?}"
    );
    fs.close()
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    drop(fs);
    if run.is_on_record {
        assert!(has_error_mark(&device), "{context}: e2fsck is not told");
    }
    let after = Arc::clone(&device) as Arc<dyn BlockDevice>;
    if run.was_aborted {
        // Nothing is wrong but that there was an error.
        let report = check::look(after, context);
        let others = |finding: &&Finding| finding.kind != FindingKind::Superblock;
        let other = report.findings.iter().find(others);
        assert!(
            report.is_complete && other.is_none(),
            "{context}: {other:?}"
        );
    } else {
        check::assert_clean(after, context);
    }
    if asks_e2fsck {
        let folder = tempfile::tempdir().expect("temporary folder");
        let path = folder.path().join("image");
        device.write_to(&path).expect("writes the image");
        // The error is on record in the superblock, for whoever checks images at boot.
        e2fsprogs::recover_and_check(&path).unwrap_or_else(|found| panic!("{context}: {found}"));
    }
}

fn each_fails(kinds: OpKinds, name: &str) {
    let (mut failures, mut on_record) = (0, 0);
    for seed in 1..=2 {
        let mut runs = 0u64;
        failures += fail_each(kinds, &format!("seed {seed}, {name}"), |fault, context| {
            let run = run(seed, fault);
            judge(&run, context, (runs / 2).is_multiple_of(E2FSCK_EVERY));
            runs += 1;
            on_record += u64::from(run.is_on_record);
            run.has_failed
        });
    }
    assert!(failures > 20, "only {failures} runs met a failure");
    assert!(on_record > 5, "only {on_record} runs left a note of it");
}

/// Whether the operation got as far as its n-th read, which fails. If the operation fails, too, it has
/// changed nothing; the volume goes on and is whole.
fn survives_a_failed_read(base: &MemoryDevice, operation: &Operation, nth: u64) -> bool {
    let context = format!("{}, read {nth} fails", operation.name);
    let memory = Arc::new(base.snapshot());
    let device = Arc::new(FaultDevice::new(Arc::clone(&memory)));
    let fs = Filesystem::open(Arc::clone(&device) as Arc<dyn BlockDevice>, options())
        .expect("opens before anything fails");
    let before = tree::picture(&open(Arc::new(base.snapshot()))).expect("reads do not fail");
    device.inject(Fault::new(OpKinds::READS, FaultTrigger::Nth(nth)));
    let result = operation.run(&fs);
    let was_reached = device.struck() > 0;
    device.clear();
    match result {
        // It can do without: with another group in place of one whose bitmap cannot be read, or
        // leaving what is to be deleted to the next open.
        Ok(_) => {}
        Err(Error::Io { .. }) if was_reached => {
            let after = tree::picture(&fs).unwrap_or_else(|error| panic!("{context}: {error}"));
            assert_eq!(after, before, "{context}: has changed something");
        }
        Err(error) => panic!("{context}: {error}"),
    }
    let again = operation.run(&fs);
    assert!(again.is_ok(), "{context}: {again:?}");
    fs.close()
        .unwrap_or_else(|error| panic!("{context}: {error}"));
    drop(fs);
    check::assert_clean(Arc::clone(&memory) as Arc<dyn BlockDevice>, &context);
    let folder = tempfile::tempdir().expect("temporary folder");
    let path = folder.path().join("image");
    memory.write_to(&path).expect("writes the image");
    e2fsprogs::check(&path).unwrap_or_else(|found| panic!("{context}: {found}"));
    was_reached
}

fn open(device: Arc<MemoryDevice>) -> Arc<Filesystem> {
    Filesystem::open(device, options()).expect("opens")
}

#[test]
fn each_read_fails() {
    let device = Arc::new(MemoryDevice::new(IMAGE_BYTES));
    mkfs::format(&*device, &mkfs::Options::default()).expect("formats");
    let fs = open(Arc::clone(&device));
    operations::prepare(&fs).expect("makes the tree");
    fs.close().expect("closes");
    let mut failures = 0;
    for operation in &operations::all() {
        let reached = |nth: &u64| survives_a_failed_read(&device, operation, *nth);
        failures += (0..).take_while(reached).count();
    }
    assert!(failures > 50, "only {failures} reads failed");
}

#[test]
fn each_write_fails() {
    each_fails(OpKinds::CHANGES, "write");
}

#[test]
fn each_flush_fails() {
    each_fails(OpKinds::FLUSHES, "flush");
}
