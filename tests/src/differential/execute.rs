//! The hands of an actor: its open files, and the system calls on names and attributes.

use super::answer::{Answer, bytes};
use super::operation::{Action, SLOTS, Target, When};
use super::values::{attributes, times};
use rustix::fs::{
    Advice, AtFlags, CWD, FileType, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid,
    XattrFlags,
};
use rustix::io::{Errno, Result};
use std::ffi::{CString, c_char, c_int};
use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

/// Flags of inodes that both sides keep: sync, immutable, append only, no dump, no atime, ...
pub(super) const FLAGS: u32 = 0x8 | 0x10 | 0x20 | 0x40 | 0x80;

const NOW: i64 = 0x3fff_ffff;
const OMIT: i64 = 0x3fff_fffe;

/// What an actor has in its hands.
#[derive(Default)]
pub(super) struct Hands {
    slots: [Option<OwnedFd>; SLOTS],
}

/// What a system call gave in words; nothing when there was no file to call it on.
pub(super) type Outcome = Result<Option<String>>;

pub(super) fn done<T>(result: Result<T>) -> Outcome {
    result.map(|_| Some(String::new()))
}

/// Has a file's data written, and the cached pages dropped: Linux takes cached pages of unwritten
/// extents for data.
pub(super) fn no_cache(file: impl AsFd) -> Result<()> {
    rustix::fs::fsync(&file)?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)
}

impl Hands {
    /// Does something.
    pub(super) fn act(&mut self, action: &Action) -> Answer {
        match self.perform(action) {
            Ok(Some(text)) => Answer::Done(text),
            Ok(None) => Answer::Nothing,
            Err(errno) => Answer::Failed(errno),
        }
    }

    pub(super) fn slot(&self, slot: usize) -> Option<BorrowedFd<'_>> {
        self.slots[slot].as_ref().map(AsFd::as_fd)
    }

    fn perform(&mut self, action: &Action) -> Outcome {
        match action {
            Action::Open {
                slot,
                at,
                path,
                flags,
                mode,
            } => {
                self.slots[*slot] = None;
                let Some(at) = self.place(*at) else {
                    return Ok(None);
                };
                let flags = OFlags::from_bits_retain(*flags) | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = rustix::fs::openat(at, path, flags, Mode::from_raw_mode(*mode))?;
                let stat = rustix::fs::fstat(&file)?;
                self.slots[*slot] = Some(file);
                Ok(Some(attributes(&stat)))
            }
            Action::Close { slot } => Ok(self.slots[*slot].take().map(|_| String::new())),
            Action::Mkdir { .. }
            | Action::Mknod { .. }
            | Action::Symlink { .. }
            | Action::Link { .. }
            | Action::LinkSlot { .. }
            | Action::Unlink { .. }
            | Action::Rmdir { .. }
            | Action::Rename { .. } => self.change_names(action),
            Action::ReadLink { path } => {
                let target = rustix::fs::readlink(path, Vec::new())?;
                Ok(Some(format!("{target:?}")))
            }
            Action::Access { path, mode } => {
                let access = rustix::fs::Access::from_bits_truncate(*mode);
                done(rustix::fs::accessat(CWD, path, access, AtFlags::empty()))
            }
            Action::List { path } => list(path).map(Some),
            Action::Populate { path, count } => populate(path, *count).map(Some),
            Action::Depopulate { path, count } => depopulate(path, *count).map(Some),
            Action::Umask { mode } => {
                let old = rustix::process::umask(Mode::from_raw_mode(*mode));
                Ok(Some(format!("was {:o}", old.bits())))
            }
            Action::Truncate { .. }
            | Action::Chmod { .. }
            | Action::Chown { .. }
            | Action::SetTimes { .. }
            | Action::Stat { .. } => self.attributes(action),
            Action::SetXattr { .. }
            | Action::GetXattr { .. }
            | Action::ListXattr { .. }
            | Action::RemoveXattr { .. } => self.xattrs(action),
            _ => self.use_open(action),
        }
    }

    /// The directory that a path is relative to.
    fn place(&self, at: Option<usize>) -> Option<BorrowedFd<'_>> {
        match at {
            None => Some(CWD),
            Some(slot) => self.slot(slot),
        }
    }

    fn change_names(&self, action: &Action) -> Outcome {
        let nothing = AtFlags::empty();
        match action {
            Action::Mkdir { at, path, mode } => match self.place(*at) {
                Some(at) => done(rustix::fs::mkdirat(at, path, Mode::from_raw_mode(*mode))),
                None => Ok(None),
            },
            Action::Mknod { path, mode, device } => {
                let kind = FileType::from_raw_mode(*mode);
                let device = rustix::fs::makedev(device.0, device.1);
                let mode = Mode::from_raw_mode(*mode);
                done(rustix::fs::mknodat(CWD, path, kind, mode, device))
            }
            Action::Symlink { target, path } => done(rustix::fs::symlinkat(target, CWD, path)),
            Action::Link { from, to, follow } => {
                let flags = if *follow {
                    AtFlags::SYMLINK_FOLLOW
                } else {
                    nothing
                };
                done(rustix::fs::linkat(CWD, from, CWD, to, flags))
            }
            Action::LinkSlot { slot, to } => match self.slot(*slot) {
                Some(file) => done(rustix::fs::linkat(file, "", CWD, to, AtFlags::EMPTY_PATH)),
                None => Ok(None),
            },
            Action::Unlink { at, path } => match self.place(*at) {
                Some(at) => done(rustix::fs::unlinkat(at, path, nothing)),
                None => Ok(None),
            },
            Action::Rmdir { path } => done(rustix::fs::unlinkat(CWD, path, AtFlags::REMOVEDIR)),
            Action::Rename { from, to, flags } => {
                let flags = RenameFlags::from_bits_retain(*flags);
                done(rustix::fs::renameat_with(CWD, from, CWD, to, flags))
            }
            other => unreachable!("{other:?} changes no names"),
        }
    }

    fn attributes(&self, action: &Action) -> Outcome {
        match action {
            Action::Truncate { target, size } => match target {
                Target::Path(path) | Target::Link(path) => done(truncate(path, *size)),
                Target::Slot(slot) => {
                    self.with(*slot, |file| done(rustix::fs::ftruncate(file, *size)))
                }
            },
            Action::Chmod { target, mode } => {
                let mode = Mode::from_raw_mode(*mode);
                match target {
                    Target::Path(path) | Target::Link(path) => done(rustix::fs::chmod(path, mode)),
                    Target::Slot(slot) => {
                        self.with(*slot, |file| done(rustix::fs::fchmod(file, mode)))
                    }
                }
            }
            Action::Chown { target, uid, gid } => {
                let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
                match target {
                    Target::Path(path) => {
                        done(rustix::fs::chownat(CWD, path, uid, gid, AtFlags::empty()))
                    }
                    Target::Link(path) => done(rustix::fs::chownat(
                        CWD,
                        path,
                        uid,
                        gid,
                        AtFlags::SYMLINK_NOFOLLOW,
                    )),
                    Target::Slot(slot) => {
                        self.with(*slot, |file| done(rustix::fs::fchown(file, uid, gid)))
                    }
                }
            }
            Action::SetTimes {
                target,
                accessed,
                modified,
            } => {
                let times = Timestamps {
                    last_access: timespec(*accessed),
                    last_modification: timespec(*modified),
                };
                let set = |path: &str, flags| done(rustix::fs::utimensat(CWD, path, &times, flags));
                match target {
                    Target::Path(path) => set(path, AtFlags::empty()),
                    Target::Link(path) => set(path, AtFlags::SYMLINK_NOFOLLOW),
                    Target::Slot(slot) => {
                        self.with(*slot, |file| done(rustix::fs::futimens(file, &times)))
                    }
                }
            }
            Action::Stat { target } => {
                let stat = match target {
                    Target::Path(path) => rustix::fs::stat(path)?,
                    Target::Link(path) => rustix::fs::lstat(path)?,
                    Target::Slot(slot) => match self.slot(*slot) {
                        Some(file) => rustix::fs::fstat(file)?,
                        None => return Ok(None),
                    },
                };
                Ok(Some(format!("{} {}", attributes(&stat), times(&stat))))
            }
            other => unreachable!("{other:?} is about no attributes"),
        }
    }

    fn xattrs(&self, action: &Action) -> Outcome {
        use rustix::fs as f;
        match action {
            Action::SetXattr {
                target,
                name,
                value,
                flags,
            } => {
                let (value, flags) = (&value.0, XattrFlags::from_bits_retain(*flags));
                match target {
                    Target::Path(path) => done(f::setxattr(path, name, value, flags)),
                    Target::Link(path) => done(f::lsetxattr(path, name, value, flags)),
                    Target::Slot(slot) => {
                        self.with(*slot, |file| done(f::fsetxattr(file, name, value, flags)))
                    }
                }
            }
            Action::GetXattr { target, name } => {
                let mut value = vec![0; 65536];
                let buffer = &mut value[..];
                let len = match target {
                    Target::Path(path) => f::getxattr(path, name, buffer)?,
                    Target::Link(path) => f::lgetxattr(path, name, buffer)?,
                    Target::Slot(slot) => match self.slot(*slot) {
                        Some(file) => f::fgetxattr(file, name, buffer)?,
                        None => return Ok(None),
                    },
                };
                Ok(Some(bytes(&value[..len])))
            }
            Action::ListXattr { target } => {
                let mut names = vec![0; 65536];
                let buffer = &mut names[..];
                let len = match target {
                    Target::Path(path) => f::listxattr(path, buffer)?,
                    Target::Link(path) => f::llistxattr(path, buffer)?,
                    Target::Slot(slot) => match self.slot(*slot) {
                        Some(file) => f::flistxattr(file, buffer)?,
                        None => return Ok(None),
                    },
                };
                let mut names: Vec<_> = names[..len].split(|byte| *byte == 0).collect();
                names.sort_unstable();
                let names = names.into_iter().map(String::from_utf8_lossy);
                Ok(Some(names.collect::<Vec<_>>().join(" ")))
            }
            Action::RemoveXattr { target, name } => match target {
                Target::Path(path) => done(f::removexattr(path, name)),
                Target::Link(path) => done(f::lremovexattr(path, name)),
                Target::Slot(slot) => self.with(*slot, |file| done(f::fremovexattr(file, name))),
            },
            other => unreachable!("{other:?} is about no attributes"),
        }
    }

    pub(super) fn with(
        &self,
        slot: usize,
        call: impl FnOnce(BorrowedFd<'_>) -> Outcome,
    ) -> Outcome {
        self.slot(slot).map_or(Ok(None), call)
    }
}

// SAFETY: as stdlib.h of glibc declares it.
unsafe extern "C" {
    #[link_name = "truncate64"]
    fn truncate_by_path(path: *const c_char, size: i64) -> c_int;
}

/// truncate(2), which neither std nor rustix has: both would open the file.
fn truncate(path: &str, size: u64) -> Result<()> {
    let path = CString::new(path).map_err(|_| Errno::INVAL)?;
    // SAFETY: the path is a string that ends with zero, and lives as long as the call.
    match unsafe { truncate_by_path(path.as_ptr(), size.cast_signed()) } {
        0 => Ok(()),
        _ => Err(system(&std::io::Error::last_os_error())),
    }
}

fn timespec(when: When) -> Timespec {
    let (tv_sec, tv_nsec) = match when {
        When::Now => (0, NOW),
        When::Omit => (0, OMIT),
        When::At(seconds, nanoseconds) => (seconds, nanoseconds),
    };
    Timespec { tv_sec, tv_nsec }
}

fn system(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}

fn list(path: &str) -> Result<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(|error| system(&error))? {
        let entry = entry.map_err(|error| system(&error))?;
        let kind = entry.file_type().map_err(|error| system(&error))?;
        names.push((entry.file_name(), kind));
    }
    names.sort_by(|one, other| one.0.cmp(&other.0));
    let mut text = format!("{} names", names.len());
    let mut all = Vec::new();
    for (name, kind) in names {
        all.extend_from_slice(name.as_bytes());
        all.extend_from_slice(format!("{kind:?}").as_bytes());
    }
    text += " ";
    text += &bytes(&all);
    Ok(text)
}

fn filler(path: &str, number: u32) -> String {
    format!(
        "{path}/{}-{number}",
        "filler".repeat(number as usize % 30 + 1)
    )
}

fn populate(path: &str, count: u32) -> Result<String> {
    let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::EXCL | OFlags::NONBLOCK;
    let mut made = 0;
    for number in 0..count {
        match rustix::fs::open(filler(path, number), flags, Mode::from_raw_mode(0o644)) {
            Ok(_) => made += 1,
            Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(format!("made {made}"))
}

fn depopulate(path: &str, count: u32) -> Result<String> {
    let mut gone = 0;
    for number in (0..count).filter(|number| !number.is_multiple_of(3)) {
        match rustix::fs::unlink(filler(path, number)) {
            Ok(()) => gone += 1,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(format!("removed {gone}"))
}
