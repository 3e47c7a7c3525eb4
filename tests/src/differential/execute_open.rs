//! The system calls on open files: bytes, holes, maps, flags.

use super::answer::bytes;
use super::execute::{FLAGS, Hands, Outcome, done, no_cache};
use super::operation::Action;
use rustix::fs::{AtFlags, FallocateFlags, FileType, IFlags, SeekFrom, StatxFlags};
use rustix::io::{Errno, Result};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};
use std::os::fd::BorrowedFd;

const PAGE: u64 = 4096;

impl Hands {
    pub(super) fn use_open(&self, action: &Action) -> Outcome {
        match action {
            Action::CopyRange {
                from,
                to,
                offsets,
                len,
            } => match (self.slot(*from), self.slot(*to)) {
                (Some(from), Some(to)) => copy_range(from, to, *offsets, *len).map(Some),
                _ => Ok(None),
            },
            Action::Read { slot, .. }
            | Action::ReadAt { slot, .. }
            | Action::Write { slot, .. }
            | Action::WriteAt { slot, .. }
            | Action::MapRead { slot, .. }
            | Action::MapWrite { slot, .. }
            | Action::Allocate { slot, .. }
            | Action::Seek { slot, .. }
            | Action::SeekData { slot, .. }
            | Action::Sync { slot, .. }
            | Action::SetFlags { slot, .. }
            | Action::GetFlags { slot } => self.with(*slot, |file| on_open(file, action)),
            other => unreachable!("{other:?} is about no open file"),
        }
    }
}

fn on_open(file: BorrowedFd<'_>, action: &Action) -> Outcome {
    match action {
        Action::Read { len, .. } => {
            let mut buffer = vec![0; *len];
            let len = rustix::io::read(file, &mut buffer[..])?;
            Ok(Some(bytes(&buffer[..len])))
        }
        Action::ReadAt { offset, len, .. } => {
            let mut buffer = vec![0; *len];
            let len = rustix::io::pread(file, &mut buffer[..], *offset)?;
            Ok(Some(bytes(&buffer[..len])))
        }
        Action::Write { len, seed, .. } => {
            let written = rustix::io::write(file, &pattern(*len, *seed))?;
            Ok(Some(format!("{written} bytes")))
        }
        Action::WriteAt {
            offset, len, seed, ..
        } => {
            let written = rustix::io::pwrite(file, &pattern(*len, *seed), *offset)?;
            Ok(Some(format!("{written} bytes")))
        }
        Action::MapRead { offset, len, .. } => map(file, *offset, *len, None),
        Action::MapWrite {
            offset, len, seed, ..
        } => map(file, *offset, *len, Some(*seed)),
        Action::Allocate {
            mode, offset, len, ..
        } => {
            let mode = FallocateFlags::from_bits_retain(*mode);
            done(rustix::fs::fallocate(file, mode, *offset, *len))
        }
        Action::Seek {
            offset, from_end, ..
        } => {
            // In directories positions are what the file system likes.
            if !is_regular(file)? {
                return Ok(None);
            }
            let from = if *from_end {
                SeekFrom::End(*offset)
            } else {
                SeekFrom::Start(offset.cast_unsigned())
            };
            Ok(Some(format!("at {}", rustix::fs::seek(file, from)?)))
        }
        Action::SeekData { offset, hole, .. } => {
            if !is_regular(file)? {
                return Ok(None);
            }
            no_cache(file)?;
            let from = if *hole {
                SeekFrom::Hole(*offset)
            } else {
                SeekFrom::Data(*offset)
            };
            Ok(Some(format!("at {}", rustix::fs::seek(file, from)?)))
        }
        Action::Sync { data_only, .. } => {
            if *data_only {
                done(rustix::fs::fdatasync(file))
            } else {
                done(rustix::fs::fsync(file))
            }
        }
        Action::SetFlags { flags, .. } => {
            // As chattr does: the flags that are not ours stay.
            let others = rustix::fs::ioctl_getflags(file)?.bits() & !FLAGS;
            let flags = IFlags::from_bits_retain(others | flags);
            let set = rustix::fs::ioctl_setflags(file, flags);
            // FUSE would show the old time of change for a second.
            rustix::fs::statx(
                file,
                "",
                AtFlags::EMPTY_PATH | AtFlags::STATX_FORCE_SYNC,
                StatxFlags::BASIC_STATS,
            )?;
            done(set)
        }
        Action::GetFlags { .. } => {
            let flags = rustix::fs::ioctl_getflags(file)?;
            Ok(Some(format!("{:x}", flags.bits() & FLAGS)))
        }
        other => unreachable!("{other:?} is about no open file"),
    }
}

/// Bytes that tell writes and places apart; a few of them zero.
fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| (i as u8).wrapping_mul(seed | 1) ^ (i >> 8) as u8 ^ seed)
        .collect()
}

fn is_regular(file: BorrowedFd<'_>) -> Result<bool> {
    let stat = rustix::fs::fstat(file)?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile)
}

/// Reads or writes a part of a file through a shared map; only what is within the file, where a map has
/// no surprises. Written pages are synced.
fn map(file: BorrowedFd<'_>, offset: u64, len: usize, write: Option<u8>) -> Outcome {
    if !is_regular(file)? {
        return Ok(None);
    }
    let size = rustix::fs::fstat(file)?.st_size.cast_unsigned();
    let start = offset - offset % PAGE;
    let skip = usize::try_from(offset - start).expect("less than a page");
    let end = size.min(offset.saturating_add(len as u64));
    if end <= offset {
        return Ok(Some("beyond the end".into()));
    }
    let len = usize::try_from(end - start).map_err(|_| Errno::OVERFLOW)?;
    let protection = match write {
        Some(_) => ProtFlags::READ | ProtFlags::WRITE,
        None => ProtFlags::READ,
    };
    // SAFETY: a new map where the kernel likes; nobody else changes the file's size while it is there.
    let memory = unsafe {
        rustix::mm::mmap(
            std::ptr::null_mut(),
            len,
            protection,
            MapFlags::SHARED,
            file,
            start,
        )
    }?;
    let answer = match write {
        Some(seed) => {
            // SAFETY: the map is `len` bytes long, writable, and nobody else's.
            let slice = unsafe { std::slice::from_raw_parts_mut(memory.cast::<u8>(), len) };
            slice[skip..].copy_from_slice(&pattern(len - skip, seed));
            // SAFETY: the range is the map.
            unsafe { rustix::mm::msync(memory, len, MsyncFlags::SYNC) }
                .map(|()| format!("{} bytes", len - skip))
        }
        None => {
            // SAFETY: the map is `len` bytes long and readable.
            let slice = unsafe { std::slice::from_raw_parts(memory.cast::<u8>(), len) };
            Ok(bytes(&slice[skip..]))
        }
    };
    // SAFETY: the map that was made above, whose slices are no longer used.
    unsafe { rustix::mm::munmap(memory, len) }?;
    answer.map(Some)
}

/// All of the range, in as many calls as it takes.
fn copy_range(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    offsets: (u64, u64),
    len: usize,
) -> Result<String> {
    let (mut source, mut target) = offsets;
    let mut copied = 0;
    while copied < len {
        let step = rustix::fs::copy_file_range(
            from,
            Some(&mut source),
            to,
            Some(&mut target),
            len - copied,
        );
        match step {
            Ok(0) => break,
            Ok(step) => copied += step,
            Err(errno) if copied == 0 => return Err(errno),
            Err(errno) => return Ok(format!("{copied} bytes, then {errno:?}")),
        }
    }
    Ok(format!("{copied} bytes"))
}
