//! Finds out from `/proc` and `/sys` who uses an image or a block device.
//!
//! Runs only when an opening was refused (and, for [`loop_holder`], once for each opening), so
//! scanning `/proc` is affordable. All of it is best effort: what cannot be seen is
//! [`Holder::Unknown`].

use std::fs::{self, Metadata};
use std::os::linux::fs::MetadataExt;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use rustix::fs::{major, minor};

use crate::open_error::Holder;

/// Who holds the `flock` lock of the file with this metadata.
pub(crate) fn lock_holder(file: &Metadata) -> Holder {
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    pids_in_lock_table(&table, file.st_dev(), file.st_ino())
        .into_iter()
        .find_map(process)
        .or_else(|| process_with_lock(file))
        .unwrap_or(Holder::Unknown)
}

/// Who keeps the block device with this metadata busy.
pub(crate) fn block_device_holder(file: &Metadata) -> Holder {
    let table = fs::read("/proc/self/mountinfo").unwrap_or_default();
    match mount_point_of(&table, file.st_rdev()) {
        Some(mount_point) => Holder::Mount { mount_point },
        None => lock_holder(file),
    }
}

/// Whether the kernel refuses to write the block device with this metadata.
pub(crate) fn is_write_protected(file: &Metadata) -> bool {
    let (major, minor) = (major(file.st_rdev()), minor(file.st_rdev()));
    fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/ro"))
        .is_ok_and(|ro| ro.trim() == "1")
}

/// The writable loop device that the file with this metadata is attached to, if any.
pub(crate) fn loop_holder(file: &Metadata) -> Option<Holder> {
    for entry in fs::read_dir("/sys/block").ok()?.flatten() {
        let dir = entry.path();
        let Ok(backing) = fs::read_to_string(dir.join("loop/backing_file")) else {
            continue;
        };
        let Ok(metadata) = fs::metadata(backing.trim_end_matches('\n')) else {
            continue;
        };
        let same = metadata.st_dev() == file.st_dev() && metadata.st_ino() == file.st_ino();
        let read_only = fs::read_to_string(dir.join("ro")).is_ok_and(|ro| ro.trim() == "1");
        if same && !read_only {
            let device = PathBuf::from("/dev").join(entry.file_name());
            return Some(Holder::Loop { device });
        }
    }
    None
}

/// Pids that hold a `flock` on the inode, by `/proc/locks`; those on the same device number first,
/// as some file systems (btrfs, overlayfs) show another device there than `stat` does.
///
/// A line: `12: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF`; one with `->` only waits.
fn pids_in_lock_table(table: &str, dev: u64, ino: u64) -> Vec<u32> {
    let wanted_dev = format!("{:02x}:{:02x}", major(dev), minor(dev));
    let mut found: Vec<(bool, u32)> = Vec::new();
    for line in table.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "FLOCK", _, _, pid, place, ..] = fields[..] else {
            continue;
        };
        let Some((place_dev, place_ino)) = place.rsplit_once(':') else {
            continue;
        };
        if place_ino.parse() == Ok(ino)
            && let Ok(pid) = pid.parse()
        {
            found.push((place_dev != wanted_dev, pid));
        }
    }
    found.sort_unstable();
    found.into_iter().map(|(_, pid)| pid).collect()
}

fn process(pid: u32) -> Option<Holder> {
    let command = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    Some(Holder::Process {
        pid,
        command: command.trim_end().to_owned(),
    })
}

/// Looks through all open files: the taker of a lock may have ended and left it to its child.
fn process_with_lock(file: &Metadata) -> Option<Holder> {
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<u32>().ok())
        else {
            continue;
        };
        let Ok(fds) = fs::read_dir(entry.path().join("fd")) else {
            continue;
        };
        for fd in fds.flatten() {
            let same = fs::metadata(fd.path()).is_ok_and(|metadata| {
                metadata.st_dev() == file.st_dev() && metadata.st_ino() == file.st_ino()
            });
            let info = entry.path().join("fdinfo").join(fd.file_name());
            if same && fs::read_to_string(info).is_ok_and(|info| info.contains("FLOCK")) {
                return process(pid);
            }
        }
    }
    None
}

/// Where a block device is mounted, by `mountinfo`: `36 35 98:0 / /mnt rw ... - ext4 /dev/x rw`.
fn mount_point_of(table: &[u8], rdev: u64) -> Option<PathBuf> {
    let wanted = format!("{}:{}", major(rdev), minor(rdev));
    table.split(|&byte| byte == b'\n').find_map(|line| {
        let mut fields = line.split(|&byte| byte == b' ');
        let device = fields.nth(2)?;
        let mount_point = fields.nth(1)?;
        (device == wanted.as_bytes()).then(|| PathBuf::from(unescape(mount_point)))
    })
}

/// Undoes the kernel's `\040` escapes for space, tab, newline and backslash.
fn unescape(field: &[u8]) -> std::ffi::OsString {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let code = tail
            .get(..3)
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(code) if byte == b'\\' => {
                out.push(code);
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use rustix::fs::makedev;

    use super::*;

    #[test]
    fn lock_table_prefers_the_same_device() {
        let table = "1: POSIX  ADVISORY  WRITE 9 08:01:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 11 00:2a:77 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 12 08:01:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 13 08:01:77 0 EOF\n\
                     4: FLOCK  ADVISORY  READ 14 08:01:78 0 EOF\n";
        assert_eq!(pids_in_lock_table(table, makedev(8, 1), 77), [12, 11]);
        assert_eq!(
            pids_in_lock_table("garbage\n5: FLOCK\n", makedev(8, 1), 77),
            []
        );
    }

    #[test]
    fn mount_point_is_unescaped() {
        let table = b"22 1 8:2 / / rw - ext4 /dev/sda2 rw\n\
                      23 22 7:3 / /mnt/my\\040disk\\134x rw - ext4 /dev/loop3 rw\n";
        assert_eq!(
            mount_point_of(table, makedev(7, 3)),
            Some(PathBuf::from("/mnt/my disk\\x"))
        );
        assert_eq!(mount_point_of(table, makedev(7, 4)), None);
    }
}
