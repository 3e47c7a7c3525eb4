//! Goal: whoever writes while snapshots come and go loses nothing and sees nothing of it, and what a
//! snapshot shows first it shows to the end.
//!
//! Method: threads with random operations in directories of their own; and threads that write to and read
//! from pieces of the same blocks, so that all of them move the blocks at once, on a volume where what is
//! given back is soon written by somebody else.
//!
//! `KFS_SNAPSHOT_ROUNDS=N` snapshots are taken for the first, `KFS_MOVE_ROUNDS=N` for the second.

use kfs::{Error, Filesystem, NewNode, SliceSink, SliceSource, WriteOptions};
use kfs_disk::BlockDevice;
use kfs_tests::power_cut::{Picture, formatted, open};
use kfs_tests::tree::{difference, picture};
use kfs_tests::variables::number;
use kfs_tests::workload::Workload;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Threads that write all the time, while snapshots come and go: what one shows first it shows to the
/// end.
#[test]
fn others_go_on_writing() {
    const THREADS: u64 = 3;
    let options = mkfs::Options {
        block_size: Some(1024),
        blocks_per_group: Some(2048),
        ..mkfs::Options::default()
    };
    let device = Arc::new(formatted(96 << 20, &options));
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
    let root = fs.root().expect("root");
    for thread in 0..THREADS {
        let node = NewNode {
            mode: 0o040_755,
            ..NewNode::default()
        };
        let name = format!("t{thread}");
        fs.create(&root, name.as_bytes(), &node).expect("creates");
    }
    let stop = AtomicBool::new(false);
    let mut kept: Vec<(String, Picture)> = Vec::new();
    let mut compared = 0;
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (fs, stop) = (&fs, &stop);
            scope.spawn(move || {
                let home = format!("t{thread}/");
                let mut workload = Workload::within(Arc::clone(fs), &home, thread);
                while !stop.load(Ordering::Relaxed) {
                    let done = workload.operate().map(|_| ());
                    let done = done.and_then(|()| workload.overwrite().map(|_| ()));
                    match done {
                        Ok(()) | Err(Error::NoSpace | Error::SnapshotStoreFull) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        // The threads end whatever happens here.
        let _stop = StopAtEnd(&stop);
        let rounds = number("KFS_SNAPSHOT_ROUNDS").unwrap_or(30);
        for round in 0..rounds {
            let name = format!("s{round}");
            match fs.create_snapshot(&name, "") {
                Ok(_) => {
                    let view = fs.open_snapshot(&name).expect("opens");
                    kept.push((name, picture(&view).expect("walks")));
                }
                Err(Error::NoSpace | Error::SnapshotStoreFull) => {}
                Err(error) => panic!("{error}"),
            }
            if kept.len() > 4 {
                let (name, shown) = kept.remove((round % 5) as usize);
                let view = fs.open_snapshot(&name).expect("opens");
                let now = picture(&view).expect("walks");
                assert!(now == shown, "{name}: {}", difference(&shown, &now));
                assert!(matches!(fs.delete_snapshot(&name), Err(Error::Busy)));
                drop(view);
                fs.delete_snapshot(&name).expect("deletes");
                compared += 1;
            }
        }
    });
    assert!(compared > 10, "{compared} compared");
    fs.close().expect("closes");
    drop(fs);
    let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens again");
    for (name, shown) in kept {
        let view = fs.open_snapshot(&name).expect("opens");
        let now = picture(&view).expect("walks");
        assert!(now == shown, "{name}: {}", difference(&shown, &now));
        drop(view);
        fs.delete_snapshot(&name).expect("deletes");
    }
    fs.close().expect("closes");
    kfs_tests::check::assert_clean(device, "after all");
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Writers of the same blocks.
const WRITERS: usize = 3;
/// Each writes pieces of this size, one after the other's, none at the start of a block.
const PIECE: usize = 700;
const PIECES: usize = 24;

fn file(fs: &Filesystem, name: &str) -> Arc<kfs::Inode> {
    let node = NewNode {
        mode: 0o100_644,
        ..NewNode::default()
    };
    let root = fs.root().expect("a root");
    Arc::clone(&fs.create(&root, name.as_bytes(), &node).expect("creates"))
}

fn write(fs: &Filesystem, file: &Arc<kfs::Inode>, offset: usize, bytes: &[u8]) -> kfs::Result<()> {
    let source = &mut SliceSource::new(bytes);
    let options = WriteOptions::default();
    let written = fs.write(file, offset as u64, bytes.len(), source, options)?;
    assert!(written <= bytes.len());
    Ok(())
}

fn read(fs: &Filesystem, file: &Arc<kfs::Inode>, offset: usize) -> Vec<u8> {
    let mut bytes = vec![0; PIECE];
    let sink = &mut SliceSink::new(&mut bytes);
    assert_eq!(
        fs.read(file, offset as u64, PIECE, sink).expect("reads"),
        PIECE
    );
    bytes
}

/// What the writers have done, and whether that is enough.
#[derive(Default)]
struct Done {
    rounds: AtomicU64,
    stop: AtomicBool,
}

/// Writes its pieces of the file again and again, and reads each back: nobody else writes there.
fn write_own(fs: &Filesystem, file: &Arc<kfs::Inode>, writer: usize, done: &Done) {
    // The others end, too, when this fails.
    let _stop = StopAtEnd(&done.stop);
    let mut rounds = 0u64;
    while !done.stop.load(Ordering::Relaxed) {
        rounds += 1;
        done.rounds.fetch_add(1, Ordering::Relaxed);
        let bytes = [(rounds % 50) as u8 + 50 * writer as u8; PIECE];
        for piece in 0..PIECES {
            let at = (piece * WRITERS + writer) * PIECE;
            write(fs, file, at, &bytes).expect("there is room");
            let now = read(fs, file, at);
            assert!(
                now == bytes,
                "writer {writer}, round {rounds}, piece {piece}: {now:?}"
            );
        }
    }
}

/// Takes what is given back, and fills it with bytes that nobody else writes.
fn take_over(fs: &Filesystem, stop: &AtomicBool) {
    let root = fs.root().expect("a root");
    while !stop.load(Ordering::Relaxed) {
        let other = file(fs, "other");
        let block = [0xff; 4096];
        while write(fs, &other, other.size_bytes() as usize, &block).is_ok()
            && other.size_bytes() < 2 << 20
        {}
        drop(other);
        fs.unlink(&root, b"other").expect("removes");
        fs.sync().expect("syncs");
    }
}

/// Takes and deletes snapshots, for so many rounds and until the writers have done something.
fn come_and_go(fs: &Filesystem, done: &Done) {
    let rounds = number("KFS_MOVE_ROUNDS").unwrap_or(200);
    let mut round = 0;
    let is_enough = |round| round >= rounds && done.rounds.load(Ordering::Relaxed) >= 200;
    while !is_enough(round) && !done.stop.load(Ordering::Relaxed) {
        let name = round.to_string();
        fs.create_snapshot(&name, "").expect("there is room");
        if round > 0 {
            let old = (round - 1).to_string();
            fs.delete_snapshot(&old).expect("deletes");
        }
        // Now and then there is none at all.
        if round % 8 == 7 {
            fs.delete_snapshot(&name).expect("deletes");
            fs.create_snapshot(&name, "").expect("there is room");
        }
        round += 1;
    }
}

/// Several write to the same blocks, which snapshots keep, and lose nothing to each other; and what they
/// read is theirs, though the blocks they found may be given away before they have read them.
#[test]
fn blocks_are_moved_by_several_at_once() {
    for block_size in [1024, 4096] {
        let options = mkfs::Options {
            block_size: Some(block_size),
            ..mkfs::Options::default()
        };
        let device = Arc::new(formatted(16 << 20, &options));
        let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
        let shared = file(&fs, "shared");
        write(&fs, &shared, 0, &[0; PIECES * WRITERS * PIECE]).expect("there is room");
        let done = Done::default();
        std::thread::scope(|scope| {
            let (fs, shared, done) = (&fs, &shared, &done);
            for writer in 0..WRITERS {
                scope.spawn(move || write_own(fs, shared, writer, done));
            }
            scope.spawn(|| take_over(fs, &done.stop));
            let _stop = StopAtEnd(&done.stop);
            come_and_go(fs, done);
        });
        fs.close().expect("closes");
        drop((shared, fs));
        kfs_tests::check::assert_clean(device, "after all");
    }
}
