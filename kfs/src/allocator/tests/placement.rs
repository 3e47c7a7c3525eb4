//! Goal: streams get long, aligned runs; directories are spread and files stay near their parents.

use super::volume::{TestVolume, make_image};
use crate::allocator::{ALLOCATE_CREDITS, ALLOCATE_INODE_CREDITS, ContiguousRequest};
use crate::ids::{BlockNr, GroupNr, InodeNr, Run};

fn volume() -> TestVolume {
    TestVolume::open(&make_image(
        "512M",
        &[
            "-t",
            "ext4",
            "-b",
            "4096",
            "-g",
            "8192",
            "-G",
            "4",
            "-O",
            "^has_journal",
        ],
    ))
}

fn group_of(volume: &TestVolume, inode: InodeNr) -> GroupNr {
    volume.geometry.inode_location(inode).unwrap().0
}

fn new_inode(volume: &TestVolume, parent: InodeNr, is_directory: bool) -> InodeNr {
    let reservation = volume
        .allocator
        .reserve_inode(parent, is_directory)
        .unwrap();
    let mut handle = volume.journal.start(ALLOCATE_INODE_CREDITS).unwrap();
    volume.allocator.allocate_inode(&mut handle, reservation)
}

#[test]
fn a_stream_gets_a_whole_group() {
    let volume = TestVolume::open(&make_image(
        "512M",
        &["-t", "ext4", "-b", "4096", "-O", "^has_journal"],
    ));
    let reservation = volume.reserve(0, 32768).unwrap();
    assert_eq!(reservation.len(), 32768);
    assert_eq!(reservation.run().start.0 % 512, 0);
}

#[test]
fn a_stream_goes_on_where_it_stopped() {
    let volume = volume();
    let mut at = volume.geometry.group_first_block(GroupNr(2)).0 + 100;
    for _ in 0..20 {
        let mut reservation = volume.reserve(at, 64).unwrap();
        assert_eq!(
            reservation.run(),
            Run {
                start: BlockNr(at),
                len: 64
            }
        );
        let mut handle = volume.journal.start(ALLOCATE_CREDITS).unwrap();
        volume.allocator.allocate(&mut handle, &mut reservation, 64);
        at += 64;
    }
}

#[test]
fn whole_runs_or_none() {
    let volume = volume();
    let blocks = volume.allocator.free_blocks();
    let goal = volume.geometry.group_first_block(GroupNr(2)).plus(700);
    let ask = |len, align, only_at_goal| {
        let request = ContiguousRequest {
            goal,
            len,
            align,
            only_at_goal,
        };
        volume.allocator.reserve_contiguous(request)
    };
    // At the goal where it is free; alignment goes first.
    let first = ask(1000, (1, 0), false).unwrap().unwrap();
    assert_eq!((first.run().start, first.len()), (goal, 1000));
    assert!(ask(1, (1, 0), true).unwrap().is_none(), "it is taken");
    for (align, wanted) in [((512, 0), 0), ((512, 5), 5), ((512, 511), 511)] {
        let found = ask(2000, align, false).unwrap().unwrap();
        assert_eq!((found.run().start.0 % 512, found.len()), (wanted, 2000));
    }
    assert!(
        ask(1000, (512, 1), true).unwrap().is_none(),
        "the goal is not so aligned"
    );
    // Nothing is as long as this, and nothing is lost by asking.
    assert!(ask(8193, (1, 0), false).unwrap().is_none());
    assert!(ask(0, (1, 0), false).is_err());
    drop(first);
    assert_eq!(volume.allocator.free_blocks(), blocks);
    // Until no such run is left; then all is given back.
    let mut held = Vec::new();
    while let Some(found) = ask(3000, (512, 0), false).unwrap() {
        held.push(found);
    }
    assert!(held.len() > 20, "{} runs", held.len());
    assert!(ask(3000, (512, 0), false).unwrap().is_none());
    drop(held);
    assert_eq!(volume.allocator.free_blocks(), blocks);
    assert!(ask(3000, (512, 0), false).unwrap().is_some());
}

#[test]
fn large_requests_are_aligned() {
    let volume = volume();
    // A block in the way, so that the goal itself is taken.
    let goal = volume.geometry.group_first_block(GroupNr(2)).0 + 700;
    let _in_the_way = volume.reserve(goal, 1).unwrap();
    let run = volume.reserve(goal, 4096).unwrap().run();
    assert_eq!((run.start.0 % 512, run.len), (0, 4096));
    assert_eq!(volume.geometry.group_of(run.start).0, GroupNr(2));
    let small = volume.reserve(goal, 4).unwrap().run();
    assert_eq!(
        small,
        Run {
            start: BlockNr(goal + 1),
            len: 4
        }
    );
}

#[test]
fn short_leftovers_do_not_cut_a_stream_up() {
    let volume = volume();
    let first = volume.geometry.group_first_block(GroupNr(2)).0;
    // Every 16th block of the start of a group is in use.
    let _holes: Vec<_> = (0..100)
        .map(|n| volume.reserve(first + n * 16, 1).unwrap())
        .collect();
    let run = volume.reserve(first + 1, 2000).unwrap().run();
    assert_eq!(run.len, 2000);
    // A small file still goes into a gap.
    assert_eq!(
        volume.reserve(first + 1, 15).unwrap().run().start,
        BlockNr(first + 1)
    );
}

#[test]
fn fragments_are_used_when_nothing_else_is_left() {
    let volume = TestVolume::open(&make_image("8M", &["-t", "ext2", "-b", "1024"]));
    let mut kept = Vec::new();
    while let Ok(reservation) = volume.reserve(0, 3) {
        kept.push(reservation);
    }
    for (n, reservation) in kept.iter_mut().enumerate() {
        reservation.truncate(if n == 50 { 0 } else { reservation.len().min(2) });
    }
    let longest = volume.reserve(0, 1000).unwrap();
    assert!((3..=8).contains(&longest.len()), "{longest:?}");
    assert_eq!(volume.reserve(0, 1000).unwrap().len(), 1);
}

#[test]
fn directories_of_the_root_are_spread_over_flex_groups() {
    let volume = volume();
    let mut flexes: Vec<u32> = (0..4)
        .map(|_| group_of(&volume, new_inode(&volume, InodeNr::ROOT, true)).0 / 4)
        .collect();
    flexes.sort_unstable();
    flexes.dedup();
    // The first has root and lost+found already.
    assert_eq!(flexes, [1, 2, 3]);
    volume.commit();
    assert_eq!(volume.dump().directories.iter().sum::<u64>(), 2 + 4);
}

#[test]
fn files_and_subdirectories_stay_near() {
    let volume = volume();
    let top = new_inode(&volume, InodeNr::ROOT, true);
    for _ in 0..100 {
        assert_eq!(
            group_of(&volume, new_inode(&volume, top, false)),
            group_of(&volume, top)
        );
    }
    let below = new_inode(&volume, top, true);
    assert_eq!(group_of(&volume, below).0 / 4, group_of(&volume, top).0 / 4);
    let goal = volume.allocator.data_goal(below, false);
    let flex = group_of(&volume, below).0 / 4;
    assert_eq!(volume.geometry.group_of(goal), (GroupNr(flex * 4 + 1), 0));
}

#[test]
fn privileged_blocks_are_kept() {
    let volume = TestVolume::open(&make_image("8M", &["-t", "ext2", "-b", "1024", "-m", "10"]));
    let kept = volume.allocator.privileged_blocks();
    assert_eq!(kept, 819);
    let request = |privileged| crate::allocator::BlockRequest {
        goal: BlockNr(0),
        len: 50,
        privileged,
    };
    let mut held = Vec::new();
    while let Ok(reservation) = volume.allocator.reserve(request(false)) {
        held.push(reservation);
    }
    assert_eq!(volume.allocator.free_blocks(), kept);
    while let Ok(reservation) = volume.allocator.reserve(request(true)) {
        held.push(reservation);
    }
    assert_eq!(volume.allocator.free_blocks(), 0);
}
