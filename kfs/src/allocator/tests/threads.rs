//! Goal: with many threads no block or inode has two owners, and the disk agrees in the end.
//! Method: each thread claims what it gets in a shared table of owners, on a volume small enough to
//! run full, while others commit.

use super::volume::{TestVolume, make_image};
use crate::Error;
use crate::allocator::{ALLOCATE_CREDITS, ALLOCATE_INODE_CREDITS, FREE_INODE_CREDITS};
use crate::ids::{InodeNr, Run};
use std::sync::Barrier;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering::SeqCst};

const THREADS: u8 = 6;
const ROUNDS: u32 = 2000;

struct Owners(Vec<AtomicU8>);

impl Owners {
    fn new(count: u64) -> Self {
        Self((0..count).map(|_| AtomicU8::new(0)).collect())
    }

    fn change(&self, range: std::ops::Range<u64>, from: u8, to: u8) {
        for nr in range {
            self.0[nr as usize]
                .compare_exchange(from, to, SeqCst, SeqCst)
                .expect("one owner");
        }
    }
}

fn range(run: Run) -> std::ops::Range<u64> {
    run.start.0..run.end().0
}

/// A generator good enough to vary what threads do.
fn next(seed: &mut u64) -> u32 {
    *seed = seed
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    (*seed >> 33) as u32
}

struct Shared<'v> {
    volume: &'v TestVolume,
    blocks: Owners,
    inodes: Owners,
    no_space: AtomicU32,
    barrier: Barrier,
}

/// What one thread owns.
struct Worker<'v> {
    shared: &'v Shared<'v>,
    me: u8,
    seed: u64,
    runs: Vec<Run>,
    inodes: Vec<(InodeNr, bool)>,
}

impl Worker<'_> {
    fn next(&mut self) -> u32 {
        next(&mut self.seed)
    }

    fn work(mut self) {
        self.shared.barrier.wait();
        // From a full volume on: what one frees another waits for.
        while self.take_blocks() {}
        for _ in 0..ROUNDS {
            match self.next() % 8 {
                0..4 => drop(self.take_blocks()),
                4..6 if !self.runs.is_empty() => {
                    let which = self.next() as usize % self.runs.len();
                    let run = self.runs.swap_remove(which);
                    self.free_blocks(run);
                }
                6 => self.take_inode(),
                7 if self.inodes.len() > 20 => {
                    let (inode, is_directory) = self.inodes.swap_remove(3);
                    self.free_inode(inode, is_directory);
                }
                _ => {}
            }
            if self.next().is_multiple_of(64) {
                self.shared.volume.journal.commit_all().unwrap();
            }
        }
        for run in std::mem::take(&mut self.runs) {
            self.free_blocks(run);
        }
        for (inode, is_directory) in std::mem::take(&mut self.inodes) {
            self.free_inode(inode, is_directory);
        }
    }

    /// False when the volume was full.
    fn take_blocks(&mut self) -> bool {
        let volume = self.shared.volume;
        let goal = u64::from(self.next()) % volume.geometry.blocks_count();
        let order = self.next() % 12;
        let len = 1 + self.next() % (1 << order);
        match volume.reserve(goal, len) {
            Ok(mut reservation) => {
                self.shared
                    .blocks
                    .change(range(reservation.run()), 0, self.me);
                let len = 1 + self.next() % reservation.len();
                let mut handle = volume.journal.start(ALLOCATE_CREDITS).unwrap();
                self.runs.push(
                    volume
                        .allocator
                        .allocate(&mut handle, &mut reservation, len),
                );
                self.shared
                    .blocks
                    .change(range(reservation.run()), self.me, 0);
                true
            }
            Err(Error::NoSpace) => {
                self.shared.no_space.fetch_add(1, SeqCst);
                false
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn free_blocks(&self, run: Run) {
        let volume = self.shared.volume;
        let credits = volume.allocator.free_credits(run.len);
        let mut handle = volume.journal.start(credits).unwrap();
        self.shared.blocks.change(range(run), self.me, 0);
        volume.allocator.free(&mut handle, run).unwrap();
    }

    fn take_inode(&mut self) {
        let volume = self.shared.volume;
        let parent = InodeNr(2 + self.next() % (volume.geometry.inodes_count() - 2));
        let is_directory = self.next().is_multiple_of(3);
        if let Ok(reservation) = volume.allocator.reserve_inode(parent, is_directory) {
            let inode = reservation.inode();
            let nr = u64::from(inode.0);
            self.shared.inodes.change(nr..nr + 1, 0, self.me);
            let mut handle = volume.journal.start(ALLOCATE_INODE_CREDITS).unwrap();
            volume.allocator.allocate_inode(&mut handle, reservation);
            self.inodes.push((inode, is_directory));
        }
    }

    fn free_inode(&self, inode: InodeNr, is_directory: bool) {
        let volume = self.shared.volume;
        let nr = u64::from(inode.0);
        let mut handle = volume.journal.start(FREE_INODE_CREDITS).unwrap();
        self.shared.inodes.change(nr..nr + 1, self.me, 0);
        volume
            .allocator
            .free_inode(&mut handle, inode, is_directory)
            .unwrap();
    }
}

#[test]
fn threads_share_a_small_volume() {
    let volume = TestVolume::open(&make_image(
        "24M",
        &["-t", "ext4", "-b", "1024", "-g", "2048"],
    ));
    let before = volume.allocator.free_counts();
    let shared = Shared {
        volume: &volume,
        blocks: Owners::new(volume.geometry.blocks_count()),
        inodes: Owners::new(u64::from(volume.geometry.inodes_count()) + 1),
        no_space: AtomicU32::new(0),
        barrier: Barrier::new(THREADS.into()),
    };
    std::thread::scope(|scope| {
        for me in 1..=THREADS {
            let shared = &shared;
            let worker = Worker {
                shared,
                me,
                seed: u64::from(me),
                runs: Vec::new(),
                inodes: Vec::new(),
            };
            scope.spawn(move || worker.work());
        }
    });
    volume.commit();
    assert_eq!(volume.allocator.free_counts(), before);
    assert_eq!(volume.allocator.free_blocks(), before.blocks);
    volume.assert_clean();
    let full = shared.no_space.load(SeqCst);
    assert!(
        full >= THREADS.into(),
        "each saw a full volume at least once"
    );
}

#[test]
fn the_last_blocks_are_found_by_all_threads() {
    let volume = TestVolume::open(&make_image(
        "24M",
        &["-t", "ext4", "-b", "1024", "-g", "2048"],
    ));
    let free = volume.allocator.free_blocks();
    let got = AtomicU64::new(0);
    let dry = Barrier::new(THREADS.into());
    std::thread::scope(|scope| {
        for me in 0..u64::from(THREADS) {
            let (volume, got, dry) = (&volume, &got, &dry);
            scope.spawn(move || {
                let mut held = Vec::new();
                while let Ok(reservation) = volume.reserve(me * 4001, 33) {
                    got.fetch_add(reservation.len().into(), SeqCst);
                    held.push(reservation);
                }
                // Kept until all have run dry.
                dry.wait();
            });
        }
    });
    assert_eq!(got.load(SeqCst), free);
    assert_eq!(volume.allocator.free_blocks(), free);
}
