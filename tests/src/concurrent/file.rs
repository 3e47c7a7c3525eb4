//! Random calls on one shared file, block by block, and the model that says what they read.
//!
//! Each write fills one block with a stamp of its own. Reads and writes of a block are atomic, so the
//! file is a row of blocks that calls take turns with; what spans blocks need not be atomic, and is
//! not done.

use super::linear::{Model, Timed, linearise};
use kfs::{Filesystem, Inode, SetAttr, SliceSink, SliceSource, SpaceChange, WriteOptions};
use kfs_disk::testing::SplitMix64;
use std::sync::Arc;

/// Blocks that calls work on.
const BLOCKS: u64 = 6;

/// A call on the file, in blocks.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Fills a block with the stamp.
    Write(u64, u16),
    /// Adds a block with the stamp at the end.
    Append(u16),
    /// Reads a block.
    Read(u64),
    /// Sets the size.
    Resize(u64),
    /// Makes a hole from a block on, so many blocks long.
    Punch(u64, u64),
    /// Zeros blocks, which the file has then.
    Zero(u64, u64),
    /// Gives blocks to the file, which has them then.
    Allocate(u64, u64),
    /// Makes it durable: wholly, or what is needed to read the data.
    Sync(bool),
}

/// A call, and for a read the stamp that was found, `None` beyond the end.
#[derive(Clone, Copy, Debug)]
pub struct Recorded {
    op: Op,
    stamp: Option<u16>,
}

impl Recorded {
    /// The same with another stamp found, if it is a read.
    #[must_use]
    pub fn falsified(self) -> Option<Self> {
        let stamp = Some(self.stamp.map_or(7, |stamp| stamp ^ 0x4000));
        matches!(self.op, Op::Read(_)).then_some(Self { stamp, ..self })
    }
}

/// A random call. `stamp` is in no other.
pub fn random_op(random: &mut SplitMix64, stamp: u16) -> Op {
    let mut below = |bound: u64| random.next_u64() % bound;
    let (kind, block) = (below(20), below(BLOCKS));
    match kind {
        0..=5 => Op::Write(block, stamp),
        6 | 7 => Op::Append(stamp),
        8..=12 => Op::Read(block),
        13 | 14 => Op::Resize(block),
        15 => Op::Punch(block, 1 + below(3)),
        16 => Op::Zero(block, 1 + below(3)),
        17 => Op::Allocate(block, 1 + below(3)),
        _ => Op::Sync(kind == 18),
    }
}

/// Does a call and records it.
///
/// # Panics
/// When it fails, or a block holds more than one stamp.
pub fn call(fs: &Filesystem, file: &Arc<Inode>, op: Op) -> Recorded {
    let block_size = u64::from(fs.space().block_size);
    let options = WriteOptions::default();
    let write = |block: u64, stamp: u16, append: bool| {
        let content: Vec<u8> = stamp.to_le_bytes().repeat(block_size as usize / 2);
        let options = WriteOptions { append, ..options };
        let (offset, len) = (block * block_size, content.len());
        let mut source = SliceSource::new(&content);
        assert_eq!(fs.write(file, offset, len, &mut source, options)?, len);
        Ok(None)
    };
    let change = |block: u64, blocks: u64, change| {
        let (offset, len) = (block * block_size, blocks * block_size);
        fs.change_space(file, offset, len, change, options)?;
        Ok(None)
    };
    let keep_size = false;
    let done: kfs::Result<Option<u16>> = match op {
        Op::Write(block, stamp) => write(block, stamp, false),
        Op::Append(stamp) => write(0, stamp, true),
        Op::Read(block) => read(fs, file, block, block_size),
        Op::Resize(blocks) => {
            let size = SetAttr {
                size_bytes: Some(blocks * block_size),
                ..SetAttr::default()
            };
            fs.set_attr(file, &size).map(|_| None)
        }
        Op::Punch(block, blocks) => change(block, blocks, SpaceChange::PunchHole),
        Op::Zero(block, blocks) => change(block, blocks, SpaceChange::ZeroRange { keep_size }),
        Op::Allocate(block, blocks) => change(block, blocks, SpaceChange::Allocate { keep_size }),
        Op::Sync(data_only) => fs.fsync(file, data_only).map(|()| None),
    };
    let stamp = done.unwrap_or_else(|error| panic!("{op:?}: {error}"));
    Recorded { op, stamp }
}

fn read(
    fs: &Filesystem,
    file: &Arc<Inode>,
    block: u64,
    block_size: u64,
) -> kfs::Result<Option<u16>> {
    let mut content = vec![0xff; block_size as usize];
    let len = content.len();
    let mut sink = SliceSink::new(&mut content);
    let read = fs.read(file, block * block_size, len, &mut sink)?;
    if read == 0 {
        return Ok(None);
    }
    assert_eq!(read, len, "block {block} is cut");
    let stamp = [content[0], content[1]];
    let is_whole = content.chunks(2).all(|pair| pair == stamp);
    assert!(is_whole, "block {block} is torn");
    Ok(Some(u16::from_le_bytes(stamp)))
}

/// What all blocks of the file hold.
///
/// # Panics
/// As [`call`].
pub fn read_all(fs: &Filesystem, file: &Arc<Inode>) -> Vec<Recorded> {
    let blocks = file.size_bytes().div_ceil(fs.space().block_size.into());
    // One beyond the end, to see that it is the end.
    (0..=blocks)
        .map(|block| call(fs, file, Op::Read(block)))
        .collect()
}

/// A file of blocks.
struct File;

impl Model for File {
    /// The stamps of all blocks up to the end.
    type State = Vec<u16>;
    type Call = Recorded;

    fn step(&self, state: &Vec<u16>, _: usize, call: &Recorded) -> Option<Vec<u16>> {
        let mut next = state.clone();
        let reach = |next: &mut Vec<u16>, end: u64| {
            if next.len() < end as usize {
                next.resize(end as usize, 0);
            }
        };
        match call.op {
            Op::Write(block, stamp) => {
                reach(&mut next, block + 1);
                next[block as usize] = stamp;
            }
            Op::Append(stamp) => next.push(stamp),
            Op::Read(block) => {
                return (state.get(block as usize).copied() == call.stamp).then_some(next);
            }
            Op::Resize(blocks) => next.resize(blocks as usize, 0),
            Op::Punch(block, blocks) => {
                let punched = next.iter_mut().skip(block as usize).take(blocks as usize);
                punched.for_each(|stamp| *stamp = 0);
            }
            Op::Zero(block, blocks) => {
                reach(&mut next, block + blocks);
                next[block as usize..(block + blocks) as usize].fill(0);
            }
            Op::Allocate(block, blocks) => reach(&mut next, block + blocks),
            Op::Sync(_) => {}
        }
        Some(next)
    }
}

/// Whether some order of calls on a file that was empty explains what was read.
///
/// # Errors
/// The history, with the longest order that explains what it has.
pub fn check(history: &[Timed<Recorded>]) -> Result<(), String> {
    let Err(longest) = linearise(&File, Vec::new(), history) else {
        return Ok(());
    };
    let line = |(index, timed): (usize, &Timed<Recorded>)| {
        let place = longest.iter().position(|placed| *placed == index);
        format!("{place:?} {timed:?}\n")
    };
    Err(history.iter().enumerate().map(line).collect())
}
