//! Files are opened, read, written, mapped, cut, allocated, copied.

use super::{Generator, Kind};
use crate::differential::operation::{Action, SLOTS, Target};
use rustix::fs::OFlags;

/// The largest offset of a file with blocks of 4 KiB and extents: 16 TiB less a block.
const LARGEST: u64 = (1 << 44) - 4096;

const KEEP_SIZE: u32 = 1;
const PUNCH_HOLE: u32 = 2;
const ZERO_RANGE: u32 = 16;

impl Generator {
    pub(super) fn data(&mut self, actor: usize) -> Action {
        // A slot in use is better than another.
        let slot = (0..3)
            .map(|_| self.random.index(SLOTS))
            .find(|slot| self.open[actor][*slot].is_some());
        let slot = match slot {
            Some(slot) => slot,
            None if self.random.one_in(4) => self.random.index(SLOTS),
            None => {
                let slot = self.random.index(SLOTS);
                return self.open(slot);
            }
        };
        let (offset, len) = (self.offset(), self.len());
        let seed = self.random.next() as u8;
        match self.random.below(40) {
            0..9 => self.open(slot),
            9 => Action::Close { slot },
            10..12 => Action::Read { slot, len },
            12..15 => Action::ReadAt { slot, offset, len },
            15..18 => Action::Write { slot, len, seed },
            18..23 => Action::WriteAt {
                slot,
                offset,
                len,
                seed,
            },
            23 => Action::MapRead { slot, offset, len },
            24..26 if self.rules.maps => Action::MapWrite {
                slot,
                offset,
                len,
                seed,
            },
            26..31 => self.allocate(slot, offset),
            31 => Action::Seek {
                slot,
                offset: if self.random.one_in(4) {
                    -(self.random.below(5000).cast_signed())
                } else {
                    self.random.below(100_000).cast_signed()
                },
                from_end: self.random.one_in(2),
            },
            32..34 if !self.rules.maps => Action::SeekData {
                slot,
                offset,
                hole: self.random.one_in(2),
            },
            34 => Action::Sync {
                slot,
                data_only: self.random.one_in(2),
            },
            35..37 => Action::CopyRange {
                from: slot,
                to: self.random.index(SLOTS),
                // Linux looks at the limit of the target before the end of the source, and knows no
                // limit of FUSE: beyond it answers differ when there is nothing to copy.
                offsets: (offset, self.offset() % (LARGEST - (1 << 20))),
                len,
            },
            _ => Action::Truncate {
                target: if self.random.one_in(2) {
                    Target::Slot(slot)
                } else {
                    Target::Path(self.file())
                },
                size: self.offset(),
            },
        }
    }

    fn open(&mut self, slot: usize) -> Action {
        let access = [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR, OFlags::RDWR];
        let mut flags = access[self.random.index(4)];
        for (flag, one_in) in [
            (OFlags::CREATE, 2),
            (OFlags::EXCL, 10),
            (OFlags::TRUNC, 8),
            (OFlags::APPEND, 6),
            (OFlags::NOFOLLOW, 10),
            (OFlags::DIRECTORY, 15),
            (OFlags::SYNC, 20),
            (OFlags::DSYNC, 20),
        ] {
            flags.set(flag, self.random.one_in(one_in));
        }
        let at = self.at();
        let path = match self.random.below(10) {
            0 => {
                flags = OFlags::TMPFILE | OFlags::RDWR;
                flags.set(OFlags::EXCL, self.random.one_in(4));
                self.directory() + "/"
            }
            1..3 => {
                flags = OFlags::RDONLY | OFlags::DIRECTORY;
                self.directory() + "/"
            }
            3..7 if self.known.values().any(|kind| *kind == Kind::File) => self.file(),
            _ => self.new_path(),
        };
        Action::Open {
            slot,
            at,
            path: if at.is_some() { self.name() } else { path },
            flags: flags.bits(),
            mode: self.mode(),
        }
    }

    /// At or near the edge of a block, mostly within the first MiB.
    fn offset(&mut self) -> u64 {
        let near = [0, 0, 0, 1, self.random.below(4096), 4095, 1024][self.random.index(7)];
        let choices = if self.rules.beyond_limits { 60 } else { 58 };
        match 59 - self.random.below(choices) {
            0 => LARGEST - self.random.below(3) * 4096 + self.random.below(3),
            1 => [LARGEST + 4096, 1 << 45, 1 << 62, i64::MAX.cast_unsigned()][self.random.index(4)],
            2 => self.random.below(1 << 32) * 1024 + near,
            3..10 => self.random.below(4 << 20),
            10..20 => self.random.below(100),
            _ => self.random.below(200) * 4096 + near,
        }
    }

    fn len(&mut self) -> usize {
        match self.random.below(20) {
            0 => 0,
            1..7 => 1 + self.random.index(200),
            7..12 => self.random.index(20) * 1024 + self.random.index(3),
            12..19 => 1 + self.random.index(20_000),
            _ => self.random.index(200_000),
        }
    }

    /// Where holes are compared, zeroed ranges have whole blocks: of others Linux may write the ends, and
    /// may leave them unwritten.
    fn allocate(&mut self, slot: usize, offset: u64) -> Action {
        let mode = self.allocate_mode();
        let (mut offset, mut len) = (offset, self.allocate_len(mode));
        if mode & ZERO_RANGE != 0 && !self.rules.maps {
            offset -= offset % 4096;
            len -= len % 4096;
        }
        Action::Allocate {
            slot,
            mode,
            offset,
            len,
        }
    }

    /// All of a file, or too much; never more than the disk has, of which Linux gives what there is and
    /// says that it could not.
    fn allocate_len(&mut self, mode: u32) -> u64 {
        match self.random.below(30) {
            0 => 0,
            1 if mode & PUNCH_HOLE != 0 => LARGEST,
            // Linux takes capabilities away before it asks FUSE for what cannot be.
            1 if !self.rules.capabilities => 1 << 45,
            2..6 => self.random.below(2 << 20),
            6..18 => self.random.below(40) * 4096,
            _ => 1 + self.random.below(60_000),
        }
    }

    fn allocate_mode(&mut self) -> u32 {
        let kinds = if self.rules.capabilities { 6 } else { 11 };
        [
            0,
            0,
            KEEP_SIZE,
            ZERO_RANGE,
            ZERO_RANGE | KEEP_SIZE,
            ZERO_RANGE | PUNCH_HOLE | KEEP_SIZE,
            ZERO_RANGE,
            PUNCH_HOLE | KEEP_SIZE,
            PUNCH_HOLE | KEEP_SIZE,
            PUNCH_HOLE | KEEP_SIZE,
            PUNCH_HOLE,
        ][self.random.index(kinds)]
    }
}
