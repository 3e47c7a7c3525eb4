//! Goal: after any operations the disk shows exactly what was allocated and not freed, nothing is
//! handed out twice, nothing freed before its commit, and freeing all leaves what mke2fs made.
//! Method: random operations against vectors of bool; dumpe2fs and e2fsck look at the result.

use super::volume::{TestVolume, make_image, make_image_over};
use crate::allocator::{
    ALLOCATE_CREDITS, ALLOCATE_INODE_CREDITS, BlockRequest, FREE_INODE_CREDITS, InodeReservation,
    Reservation,
};
use crate::ids::{BlockNr, InodeNr, Run};
use crate::{Corrupt, Error};
use kfs_disk::MemoryDevice;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Reserve {
        goal: u64,
        len: u32,
        privileged: bool,
    },
    Allocate {
        which: usize,
        len: u32,
    },
    Split {
        which: usize,
        at: u32,
    },
    Drop {
        which: usize,
    },
    Free {
        which: usize,
        from: u32,
        len: u32,
    },
    FreeWrong {
        start: u64,
        len: u32,
    },
    Commit,
    ReserveInode {
        parent: u32,
        is_directory: bool,
    },
    AllocateInode {
        which: usize,
    },
    DropInode {
        which: usize,
    },
    FreeInode {
        which: usize,
    },
}

fn op() -> impl Strategy<Value = Op> {
    let len = prop_oneof![4 => 1..40u32, 2 => 40..3000u32, 1 => 3000..40_000u32];
    let which = || 0..1000usize;
    prop_oneof![
        8 => (0..70_000u64, len.clone(), prop::bool::weighted(0.3))
            .prop_map(|(goal, len, privileged)| Op::Reserve { goal, len, privileged }),
        8 => (which(), len.clone()).prop_map(|(which, len)| Op::Allocate { which, len }),
        2 => (which(), 0..100u32).prop_map(|(which, at)| Op::Split { which, at }),
        2 => which().prop_map(|which| Op::Drop { which }),
        4 => (which(), 0..3000u32, len).prop_map(|(which, from, len)| Op::Free { which, from, len }),
        1 => (0..70_000u64, 0..400u32).prop_map(|(start, len)| Op::FreeWrong { start, len }),
        2 => Just(Op::Commit),
        8 => (2..4000u32, any::<bool>())
            .prop_map(|(parent, is_directory)| Op::ReserveInode { parent, is_directory }),
        8 => which().prop_map(|which| Op::AllocateInode { which }),
        1 => which().prop_map(|which| Op::DropInode { which }),
        3 => which().prop_map(|which| Op::FreeInode { which }),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
#[repr(usize)]
enum Block {
    Free,
    /// In use when the image was made.
    Old,
    Promised,
    Used,
    Pending,
}

struct Model<'v> {
    volume: &'v TestVolume,
    blocks: Vec<Block>,
    /// Blocks of each state.
    counts: [u64; 5],
    inodes: Vec<bool>,
    reservations: Vec<Reservation>,
    runs: Vec<Run>,
    inode_reservations: Vec<(InodeReservation, bool)>,
    taken_inodes: Vec<(InodeNr, bool)>,
}

impl<'v> Model<'v> {
    fn new(volume: &'v TestVolume) -> Self {
        let dump = volume.dump();
        let total = dump.free_blocks.len() as u64;
        let state = |free: &bool| if *free { Block::Free } else { Block::Old };
        Self {
            volume,
            counts: [dump.sums[0], total - dump.sums[0], 0, 0, 0],
            blocks: dump.free_blocks.iter().map(state).collect(),
            inodes: dump.free_inodes.iter().map(|free| !free).collect(),
            reservations: Vec::new(),
            runs: Vec::new(),
            inode_reservations: Vec::new(),
            taken_inodes: Vec::new(),
        }
    }

    fn change(&mut self, run: Run, from: Block, to: Block) {
        for block in &mut self.blocks[run.start.0 as usize..run.end().0 as usize] {
            assert_eq!(*block, from, "{run:?}");
            *block = to;
        }
        self.counts[from as usize] -= u64::from(run.len);
        self.counts[to as usize] += u64::from(run.len);
    }

    fn count(&self, state: Block) -> u64 {
        self.counts[state as usize]
    }

    fn apply(&mut self, op: &Op) {
        match *op {
            Op::Reserve {
                goal,
                len,
                privileged,
            } => self.reserve(goal, len, privileged),
            Op::Allocate { which, len } if !self.reservations.is_empty() => {
                self.allocate(which % self.reservations.len(), len);
            }
            Op::Split { which, at } if !self.reservations.is_empty() => {
                let which = which % self.reservations.len();
                let at = at.min(self.reservations[which].len());
                let rest = self.reservations[which].split_off(at);
                self.reservations.push(rest);
            }
            Op::Drop { which } if !self.reservations.is_empty() => {
                let reservation = self
                    .reservations
                    .swap_remove(which % self.reservations.len());
                self.change(reservation.run(), Block::Promised, Block::Free);
            }
            Op::Free { which, from, len } if !self.runs.is_empty() => {
                self.free(which % self.runs.len(), from, len);
            }
            Op::FreeWrong { start, len } => self.free_wrong(Run {
                start: BlockNr(start),
                len,
            }),
            Op::Commit => self.commit(),
            Op::ReserveInode {
                parent,
                is_directory,
            } => self.reserve_inode(parent, is_directory),
            Op::AllocateInode { which } if !self.inode_reservations.is_empty() => {
                let which = which % self.inode_reservations.len();
                let (reservation, is_directory) = self.inode_reservations.swap_remove(which);
                let promised = reservation.inode();
                let mut handle = self.volume.journal.start(ALLOCATE_INODE_CREDITS).unwrap();
                let inode = self
                    .volume
                    .allocator
                    .allocate_inode(&mut handle, reservation);
                assert_eq!(inode, promised);
                self.taken_inodes.push((inode, is_directory));
            }
            Op::DropInode { which } if !self.inode_reservations.is_empty() => {
                let which = which % self.inode_reservations.len();
                let (reservation, _) = self.inode_reservations.swap_remove(which);
                self.inodes[reservation.inode().0 as usize] = false;
            }
            Op::FreeInode { which } if !self.taken_inodes.is_empty() => {
                let which = which % self.taken_inodes.len();
                let (inode, is_directory) = self.taken_inodes.swap_remove(which);
                self.free_inode(inode, is_directory);
            }
            _ => {}
        }
    }

    fn reserve(&mut self, goal: u64, len: u32, privileged: bool) {
        let allocator = &self.volume.allocator;
        let request = BlockRequest {
            goal: BlockNr(goal),
            len,
            privileged,
        };
        let kept = if privileged {
            0
        } else {
            allocator.privileged_blocks()
        };
        match allocator.reserve(request) {
            Ok(reservation) => {
                let run = reservation.run();
                assert!(0 < run.len && run.len <= len);
                assert!(self.count(Block::Free) - u64::from(run.len) >= kept);
                let at_goal = self
                    .blocks
                    .get(goal as usize..(goal + u64::from(len)) as usize);
                if len <= 16 && at_goal.is_some_and(|at| at.iter().all(|b| *b == Block::Free)) {
                    // Groups end runs; all else at the goal is taken whole.
                    let first = BlockNr(goal);
                    let last = BlockNr(goal + u64::from(len) - 1);
                    let geometry = &self.volume.geometry;
                    if geometry.group_of(first).0 == geometry.group_of(last).0
                        && u64::from(len) + kept <= self.count(Block::Free)
                    {
                        assert_eq!(run, Run { start: first, len });
                    }
                }
                self.change(run, Block::Free, Block::Promised);
                self.reservations.push(reservation);
            }
            Err(Error::NoSpace) => assert!(self.count(Block::Free) <= kept),
            Err(error) => panic!("{error}"),
        }
    }

    fn allocate(&mut self, which: usize, len: u32) {
        let reservation = &mut self.reservations[which];
        let len = len.min(reservation.len());
        if len > 0 {
            let expected = Run {
                start: reservation.run().start,
                len,
            };
            let mut handle = self.volume.journal.start(ALLOCATE_CREDITS).unwrap();
            let run = self
                .volume
                .allocator
                .allocate(&mut handle, reservation, len);
            assert_eq!(run, expected);
            self.change(run, Block::Promised, Block::Used);
            self.runs.push(run);
        }
        if self.reservations[which].is_empty() {
            self.reservations.swap_remove(which);
        }
    }

    fn free(&mut self, which: usize, from: u32, len: u32) {
        let whole = self.runs.swap_remove(which);
        let from = from % whole.len;
        let len = len.min(whole.len - from);
        let run = Run {
            start: whole.start.plus(from.into()),
            len,
        };
        let credits = self.volume.allocator.free_credits(len);
        let mut handle = self.volume.journal.start(credits).unwrap();
        self.volume.allocator.free(&mut handle, run).unwrap();
        drop(handle);
        self.change(run, Block::Used, Block::Pending);
        let parts = [
            Run {
                start: whole.start,
                len: from,
            },
            Run {
                start: run.end(),
                len: whole.len - from - len,
            },
        ];
        self.runs
            .extend(parts.into_iter().filter(|part| part.len > 0));
    }

    /// Frees what need not be in use. What is in use is put back into the list of runs first.
    fn free_wrong(&mut self, run: Run) {
        let range = run.start.0 as usize..run.end().0 as usize;
        if self
            .blocks
            .get(range)
            .is_some_and(|b| b.iter().all(|&b| b == Block::Used))
        {
            return;
        }
        // Old blocks that are not fixed metadata (the root directory, the journal) could be freed.
        let range = run.start.0 as usize..(run.end().0 as usize).min(self.blocks.len());
        if self
            .blocks
            .get(range)
            .is_some_and(|b| b.contains(&Block::Old))
        {
            return;
        }
        let mut handle = self
            .volume
            .journal
            .start(self.volume.allocator.free_credits(run.len))
            .unwrap();
        let error = self.volume.allocator.free(&mut handle, run).unwrap_err();
        assert!(!handle.is_modified());
        assert!(
            matches!(
                error,
                Error::Corrupt(Corrupt::RunNotInUse { .. } | Corrupt::BlockOutside { .. })
            ),
            "{error}"
        );
    }

    fn commit(&mut self) {
        self.volume.commit();
        for block in &mut self.blocks {
            if *block == Block::Pending {
                *block = Block::Free;
            }
        }
        self.counts[Block::Free as usize] += self.count(Block::Pending);
        self.counts[Block::Pending as usize] = 0;
    }

    fn reserve_inode(&mut self, parent: u32, is_directory: bool) {
        let parent = InodeNr(parent.min(self.volume.geometry.inodes_count()));
        match self.volume.allocator.reserve_inode(parent, is_directory) {
            Ok(reservation) => {
                let inode = reservation.inode();
                assert!(!self.inodes[inode.0 as usize], "{inode}");
                self.inodes[inode.0 as usize] = true;
                self.inode_reservations.push((reservation, is_directory));
            }
            // Groups with garbage in their tables give out a few inodes at a time.
            Err(Error::NoSpace) => assert!(
                self.inodes[1..].iter().all(|used| *used) || self.inode_reservations.len() > 60
            ),
            Err(error) => panic!("{error}"),
        }
    }

    fn free_inode(&mut self, inode: InodeNr, is_directory: bool) {
        let mut handle = self.volume.journal.start(FREE_INODE_CREDITS).unwrap();
        let allocator = &self.volume.allocator;
        assert!(allocator.is_inode_allocated(inode).unwrap());
        allocator
            .free_inode(&mut handle, inode, is_directory)
            .unwrap();
        assert!(!allocator.is_inode_allocated(inode).unwrap());
        let again = allocator
            .free_inode(&mut handle, inode, is_directory)
            .unwrap_err();
        assert!(
            matches!(again, Error::Corrupt(Corrupt::InodeNotInUse { .. })),
            "{again}"
        );
        self.inodes[inode.0 as usize] = false;
    }

    fn check_counts(&self) {
        let allocator = &self.volume.allocator;
        let (free, promised) = (self.count(Block::Free), self.count(Block::Promised));
        let pending = self.count(Block::Pending);
        assert_eq!(allocator.pending_blocks(), pending);
        assert_eq!(allocator.free_blocks(), free + pending);
        assert_eq!(allocator.free_counts().blocks, free + pending + promised);
        let free_inodes = self.inodes[1..].iter().filter(|used| !**used).count();
        assert_eq!(allocator.free_inodes(), free_inodes as u64);
        let on_disk = free_inodes + self.inode_reservations.len();
        assert_eq!(allocator.free_counts().inodes as usize, on_disk);
        assert_eq!(allocator.damage(), None);
    }

    /// Compares with what is on the device after a commit.
    fn check_disk(&self) {
        let dump = self.volume.dump();
        for (nr, (state, free)) in self.blocks.iter().zip(&dump.free_blocks).enumerate() {
            let expected = matches!(state, Block::Free | Block::Promised);
            assert_eq!(*free, expected, "block {nr}");
        }
        let promised: Vec<u32> = self
            .inode_reservations
            .iter()
            .map(|(r, _)| r.inode().0)
            .collect();
        for (nr, free) in dump.free_inodes.iter().enumerate().skip(1) {
            let expected = !self.inodes[nr] || promised.contains(&(nr as u32));
            assert_eq!(*free, expected, "inode {nr}");
        }
        let allocator = &self.volume.allocator;
        let counts = allocator.free_counts();
        let sums = [counts.blocks, counts.inodes.into(), allocator.directories()];
        assert_eq!(dump.sums, sums);
        // Bits without owners are all that may be wrong while things are allocated.
        let report = super::volume::text_of(&self.volume.e2fsck());
        assert!(!report.contains("checksum"), "{report}");
    }

    fn free_all(&mut self) {
        self.reservations.clear();
        self.inode_reservations.clear();
        for run in std::mem::take(&mut self.runs) {
            let credits = self.volume.allocator.free_credits(run.len);
            let mut handle = self.volume.journal.start(credits).unwrap();
            self.volume.allocator.free(&mut handle, run).unwrap();
        }
        for (inode, is_directory) in std::mem::take(&mut self.taken_inodes) {
            self.free_inode(inode, is_directory);
        }
    }
}

fn run_ops(image: &MemoryDevice, ops: &[Op]) {
    let volume = TestVolume::open(image);
    let mut model = Model::new(&volume);
    let before = volume.allocator.free_counts();
    for op in ops {
        model.apply(op);
        model.check_counts();
    }
    model.commit();
    model.check_counts();
    model.check_disk();
    model.free_all();
    model.commit();
    volume.assert_clean();
    assert_eq!(volume.allocator.free_counts(), before);
    assert_eq!(volume.allocator.pending_blocks(), 0);
}

fn check(image: &MemoryDevice) {
    let config = ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(10)
    };
    proptest!(config, |(ops in prop::collection::vec(op(), 1..250))| run_ops(image, &ops));
}

#[test]
fn blocks_of_1k_uninitialised_groups() {
    let image = make_image("64M", &["-t", "ext4", "-b", "1024", "-I", "256"]);
    let before = TestVolume::open(&image).dump();
    assert!(before.uninit[0] > 2 && before.uninit[1] > 2);
    check(&image);
}

#[test]
fn blocks_of_4k() {
    check(&make_image("260M", &["-t", "ext4", "-b", "4096"]));
}

#[test]
fn descriptors_of_32_bytes() {
    check(&make_image(
        "64M",
        &["-t", "ext4", "-b", "1024", "-O", "^64bit,^resize_inode"],
    ));
}

#[test]
fn crc16_of_uninit_bg() {
    check(&make_image(
        "64M",
        &["-t", "ext4", "-b", "1024", "-O", "^metadata_csum,uninit_bg"],
    ));
}

#[test]
fn ext2_without_checksums() {
    check(&make_image("40M", &["-t", "ext2", "-b", "2048"]));
}

#[test]
fn no_flex_bg_and_small_groups() {
    let options = [
        "-t", "ext4", "-b", "1024", "-g", "1024", "-N", "2000", "-O", "^flex_bg",
    ];
    check(&make_image("20M", &options));
}

#[test]
fn meta_bg_and_a_short_last_group() {
    let options = ["-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode"];
    check(&make_image("30700k", &options));
}

#[test]
fn garbage_in_inode_tables_is_zeroed() {
    let garbage = vec![0xa5; 40 << 20];
    let options = [
        "-t",
        "ext4",
        "-b",
        "1024",
        "-E",
        "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
    ];
    let image = make_image_over(&garbage, "40M", &options);
    let volume = TestVolume::open(&image);
    // Without garbage this would prove nothing.
    let (table, _) = volume
        .allocator
        .inode_block(InodeNr(volume.geometry.inodes_count()))
        .unwrap();
    assert_eq!(volume.cache.get(table).unwrap().read()[..4], [0xa5; 4]);
    check(&image);
}

#[test]
fn uninitialised_groups_are_initialised_on_use() {
    let image = make_image("64M", &["-t", "ext4", "-b", "1024", "-I", "256"]);
    let volume = TestVolume::open(&image);
    let before = volume.dump();
    let mut model = Model::new(&volume);
    // A block in one group, an inode in another.
    model.apply(&Op::Reserve {
        goal: 3 * 8192 + 4000,
        len: 5,
        privileged: true,
    });
    model.apply(&Op::Allocate { which: 0, len: 5 });
    let parent = volume.geometry.inodes_per_group * 5 + 1;
    model.apply(&Op::ReserveInode {
        parent,
        is_directory: false,
    });
    model.apply(&Op::AllocateInode { which: 0 });
    assert_eq!(model.taken_inodes[0].0, InodeNr(parent));
    model.commit();
    model.check_disk();
    let after = volume.dump();
    assert_eq!(after.uninit, [before.uninit[0] - 1, before.uninit[1] - 2]);
}
