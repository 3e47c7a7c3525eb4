//! A picture of a tree: one line for each fact of each file, sorted, to be compared with another.
//!
//! A line is the path, ": ", a word for the kind of fact, and the fact.

use super::answer::{bytes, hash};
use super::execute::{FLAGS, no_cache};
use super::values::{attributes, times};
use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, SeekFrom, Stat, ioctl_getflags, lgetxattr, llistxattr,
    open, seek, statat,
};
use rustix::io::{Errno, pread};
use std::fs;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Everything below the thread's root directory.
pub(super) fn of_root() -> Result<Vec<String>> {
    let mut lines = Vec::new();
    describe(Path::new("/"), &mut lines)?;
    lines.sort();
    Ok(lines)
}

fn describe(path: &Path, lines: &mut Vec<String>) -> Result<()> {
    let stat = statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)
        .with_context(|| format!("stat {}", path.display()))?;
    let mut say = |fact: &str| lines.push(format!("{}: {fact}", name_of(path)));
    say(&attributes(&stat));
    say(&times(&stat));
    for attribute in xattrs(path)? {
        say(&attribute);
    }
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Symlink => say(&format!("to {:?}", fs::read_link(path)?)),
        FileType::RegularFile => {
            let file = open(path, OFlags::RDONLY | OFlags::NOATIME, Mode::empty())?;
            for fact in content(&file, &stat)? {
                say(&fact);
            }
            say(&flags(&file)?);
        }
        FileType::Directory => {
            let file = open(path, OFlags::RDONLY | OFlags::NOATIME, Mode::empty())?;
            say(&flags(&file)?);
            drop(file);
            let entries = fs::read_dir(path)?.collect::<std::io::Result<Vec<_>>>()?;
            for entry in entries {
                describe(&entry.path(), lines)?;
            }
        }
        _ => {}
    }
    Ok(())
}

/// Long names are cut: their hash tells them apart.
fn name_of(path: &Path) -> String {
    let text = path.to_string_lossy();
    if text.len() <= 100 {
        text.into_owned()
    } else {
        format!(
            "{}...{:016x}",
            &text[..60],
            hash(path.as_os_str().as_bytes())
        )
    }
}

fn flags(file: &OwnedFd) -> Result<String> {
    let flags = ioctl_getflags(file).context("FS_IOC_GETFLAGS")?;
    Ok(format!("flags {:x}", flags.bits() & FLAGS))
}

fn xattrs(path: &Path) -> Result<Vec<String>> {
    let mut names = vec![0; 65536];
    let len = llistxattr(path, &mut names[..]).context("listxattr")?;
    let mut lines = Vec::new();
    for name in names[..len].split(|byte| *byte == 0) {
        if name.is_empty() {
            continue;
        }
        let mut value = vec![0; 65536];
        let len = lgetxattr(path, name, &mut value[..])
            .with_context(|| format!("getxattr {}", String::from_utf8_lossy(name)))?;
        lines.push(format!(
            "attribute {} is {}",
            String::from_utf8_lossy(name),
            bytes(&value[..len])
        ));
    }
    Ok(lines)
}

/// The parts that are no holes, and a hash of the blocks that are not zero.
fn content(file: &OwnedFd, stat: &Stat) -> Result<Vec<String>> {
    no_cache(file)?;
    // First all parts: reading fills the cache with more than was asked for.
    let parts = parts(file, stat)?;
    let mut data = (0u64, 0u64);
    for part in &parts {
        hash_range(file, part.clone(), &mut data)?;
    }
    let mut parts: String = parts
        .iter()
        .map(|part| format!(" {}..{}", part.start, part.end))
        .collect();
    if parts.len() > 200 {
        parts = format!("{}... {:016x}", &parts[..160], hash(parts.as_bytes()));
    }
    Ok(vec![
        format!("data in{parts}"),
        format!("{} blocks are not zero, hash {:016x}", data.0, data.1),
    ])
}

/// What of a file is no hole.
fn parts(file: &OwnedFd, stat: &Stat) -> Result<Vec<Range<u64>>> {
    let mut parts = Vec::new();
    let mut at = 0;
    while at < stat.st_size.cast_unsigned() {
        let start = match seek(file, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            start => start.context("SEEK_DATA")?,
        };
        at = seek(file, SeekFrom::Hole(start)).context("SEEK_HOLE")?;
        parts.push(start..at);
    }
    Ok(parts)
}

/// Adds blocks of 1 KiB that are not zero to their count and hash.
fn hash_range(file: &OwnedFd, range: Range<u64>, data: &mut (u64, u64)) -> Result<()> {
    let mut buffer = vec![0; 65536];
    let mut at = range.start;
    while at < range.end {
        let want =
            usize::try_from(range.end - at).map_or(buffer.len(), |len| len.min(buffer.len()));
        let len = pread(file, &mut buffer[..want], at).context("reading")?;
        anyhow::ensure!(len > 0, "the file ends at {at}, in its data");
        let mut offset = at;
        // Blocks lie where they lie in the file, also when a read was short.
        let mut rest = &buffer[..len];
        while !rest.is_empty() {
            let step = usize::try_from(1024 - offset % 1024)?.min(rest.len());
            let (block, others) = rest.split_at(step);
            if block.iter().any(|byte| *byte != 0) {
                data.0 += u64::from(offset.is_multiple_of(1024));
                data.1 ^= hash(block) ^ offset.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            }
            offset += step as u64;
            rest = others;
        }
        at += len as u64;
    }
    Ok(())
}
