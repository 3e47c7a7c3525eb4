//! Attributes of files in words, and what changed between two looks.

use rustix::fs::{AtFlags, FileType, Stat, statat};
use rustix::io::Errno;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

/// Type, mode, owner, links, device and size. The size of a directory is its file system's business.
pub(super) fn attributes(stat: &Stat) -> String {
    let mut text = format!(
        "mode {:o} owner {}:{} links {} device {:x}",
        shared_mode(stat),
        stat.st_uid,
        stat.st_gid,
        stat.st_nlink,
        stat.st_rdev
    );
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        write!(text, " size {}", stat.st_size).expect("strings take all");
    }
    text
}

/// The mode, of files that their group cannot execute without the set-group-id bit, which means nothing
/// there. When another writes the file, Linux takes it away if that user is not in the group; FUSE
/// does not say who is, and has it stay.
fn shared_mode(stat: &Stat) -> u32 {
    let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
    if is_file && stat.st_mode & 0o010 == 0 {
        stat.st_mode & !0o2000
    } else {
        stat.st_mode
    }
}

/// A time as seconds and nanoseconds, or "now" if it was made by a clock in the last hours.
pub(super) fn time(seconds: i64, nanoseconds: i64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| since.as_secs().cast_signed());
    if (now - 100_000..=now + 2).contains(&seconds) {
        "now".into()
    } else {
        format!("{seconds}.{nanoseconds:09}")
    }
}

/// Times of last access and modification; of a FIFO, nothing: what is written to one leaves no mark
/// where FUSE serves it.
pub(super) fn times(stat: &Stat) -> String {
    if is_fifo(stat) {
        return "times of a FIFO".into();
    }
    format!(
        "accessed {} modified {}",
        time(stat.st_atime, stat.st_atime_nsec.cast_signed()),
        time(stat.st_mtime, stat.st_mtime_nsec.cast_signed())
    )
}

fn is_fifo(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Fifo
}

/// What of a file is compared before and after an operation.
#[derive(Debug)]
pub(super) struct Times(Result<Stat, Errno>);

impl Times {
    pub(super) fn of(path: &str) -> Self {
        Self(statat(rustix::fs::CWD, path, AtFlags::SYMLINK_NOFOLLOW))
    }

    /// Which of its times and numbers are others in `new`.
    pub(super) fn changes(&self, new: &Self) -> String {
        let (old, new) = match (&self.0, &new.0) {
            (Ok(old), Ok(new)) => (old, new),
            (old, new) => return format!("was there {}, is {}", old.is_ok(), new.is_ok()),
        };
        let mut text = String::new();
        let mut say = |name, differs| {
            if differs && !is_fifo(new) {
                write!(text, " {name}").expect("strings take all");
            }
        };
        say("another file", old.st_ino != new.st_ino);
        say(
            "atime",
            (old.st_atime, old.st_atime_nsec) != (new.st_atime, new.st_atime_nsec),
        );
        say(
            "mtime",
            (old.st_mtime, old.st_mtime_nsec) != (new.st_mtime, new.st_mtime_nsec),
        );
        say(
            "ctime",
            (old.st_ctime, old.st_ctime_nsec) != (new.st_ctime, new.st_ctime_nsec),
        );
        let (old, new) = (attributes(old), attributes(new));
        if old != new {
            write!(text, " {old} to {new}").expect("strings take all");
        }
        text
    }
}
