//! Goal: with many threads no block or inode has two owners, and the disk agrees in the end.
//! Method: each thread claims what it gets in a shared table of owners, on a volume small enough to
//! run full, while others commit.

use super::volume::{TestVolume, make_image};
use crate::Error;
use crate::allocator::{
    ALLOCATE_CREDITS, ALLOCATE_INODE_CREDITS, BlockRequest, FREE_INODE_CREDITS,
};
use crate::ids::{BlockNr, InodeNr, Run};
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

fn work(shared: &Shared<'_>, me: u8) {
    let (volume, allocator) = (shared.volume, &shared.volume.allocator);
    let mut seed = u64::from(me);
    shared.barrier.wait();
    let mut runs: Vec<Run> = Vec::new();
    let mut inodes: Vec<(InodeNr, bool)> = Vec::new();
    for _ in 0..ROUNDS {
        match next(&mut seed) % 8 {
            0..4 => {
                let goal = BlockNr(u64::from(next(&mut seed)) % volume.geometry.blocks_count);
                let len = 1 + next(&mut seed) % (1 << (next(&mut seed) % 12));
                match allocator.reserve(BlockRequest {
                    goal,
                    len,
                    privileged: true,
                }) {
                    Ok(mut reservation) => {
                        shared.blocks.change(range(reservation.run()), 0, me);
                        let len = 1 + next(&mut seed) % reservation.len();
                        let mut handle = volume.journal.start(ALLOCATE_CREDITS).unwrap();
                        runs.push(allocator.allocate(&mut handle, &mut reservation, len));
                        shared.blocks.change(range(reservation.run()), me, 0);
                    }
                    Err(Error::NoSpace) => drop(shared.no_space.fetch_add(1, SeqCst)),
                    Err(error) => panic!("{error}"),
                }
            }
            4..6 if !runs.is_empty() => {
                let run = runs.swap_remove(next(&mut seed) as usize % runs.len());
                let mut handle = volume
                    .journal
                    .start(allocator.free_credits(run.len))
                    .unwrap();
                shared.blocks.change(range(run), me, 0);
                allocator.free(&mut handle, run).unwrap();
            }
            6 => {
                let parent = InodeNr(2 + next(&mut seed) % (volume.geometry.inodes_count - 2));
                let is_directory = next(&mut seed).is_multiple_of(3);
                if let Ok(reservation) = allocator.reserve_inode(parent, is_directory) {
                    let inode = reservation.inode();
                    shared
                        .inodes
                        .change(inode.0.into()..u64::from(inode.0) + 1, 0, me);
                    let mut handle = volume.journal.start(ALLOCATE_INODE_CREDITS).unwrap();
                    allocator.allocate_inode(&mut handle, reservation);
                    inodes.push((inode, is_directory));
                }
            }
            7 if inodes.len() > 20 => {
                let (inode, is_directory) = inodes.swap_remove(3);
                let mut handle = volume.journal.start(FREE_INODE_CREDITS).unwrap();
                shared
                    .inodes
                    .change(inode.0.into()..u64::from(inode.0) + 1, me, 0);
                allocator
                    .free_inode(&mut handle, inode, is_directory)
                    .unwrap();
            }
            _ => {}
        }
        if next(&mut seed).is_multiple_of(64) {
            volume.journal.commit_all().unwrap();
        }
    }
    // All hold what they have until the last is done, so that the volume runs full.
    shared.barrier.wait();
    for run in runs {
        shared.blocks.change(range(run), me, 0);
        let mut handle = volume
            .journal
            .start(allocator.free_credits(run.len))
            .unwrap();
        allocator.free(&mut handle, run).unwrap();
    }
    for (inode, is_directory) in inodes {
        shared
            .inodes
            .change(inode.0.into()..u64::from(inode.0) + 1, me, 0);
        let mut handle = volume.journal.start(FREE_INODE_CREDITS).unwrap();
        allocator
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
        blocks: Owners::new(volume.geometry.blocks_count),
        inodes: Owners::new(u64::from(volume.geometry.inodes_count) + 1),
        no_space: AtomicU32::new(0),
        barrier: Barrier::new(THREADS.into()),
    };
    std::thread::scope(|scope| {
        for me in 1..=THREADS {
            let shared = &shared;
            scope.spawn(move || work(shared, me));
        }
    });
    assert!(
        shared.no_space.load(SeqCst) > 0,
        "the volume never ran full"
    );
    volume.commit();
    assert_eq!(volume.allocator.free_counts(), before);
    assert_eq!(volume.allocator.free_blocks(), before.blocks);
    volume.assert_clean();
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
