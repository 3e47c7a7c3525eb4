//! A picture of a whole volume, to be compared with another.

use kfs::{Error, Filesystem, Inode, Result, SliceSink};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::ops::ControlFlow;
use std::sync::Arc;

const S_IFMT: u16 = 0o170_000;
const S_IFDIR: u16 = 0o040_000;
const S_IFREG: u16 = 0o100_000;
const S_IFLNK: u16 = 0o120_000;

/// Every path with what is there: type, mode, owner, links, size, content, attributes. Times are
/// left out.
///
/// # Errors
/// What the file system reports.
pub fn picture(fs: &Filesystem) -> Result<BTreeMap<String, String>> {
    picture_of(fs, "")
}

/// The same of one file or directory and what is below it; nothing when it is not there. `path`
/// begins with a slash, or is empty for all of the volume.
///
/// # Errors
/// What the file system reports.
pub fn picture_of(fs: &Filesystem, path: &str) -> Result<BTreeMap<String, String>> {
    let mut picture = BTreeMap::new();
    let mut inode = fs.root()?;
    for name in path.split('/').skip(1) {
        inode = match fs.lookup(&inode, name.as_bytes()) {
            Err(Error::NotFound) => return Ok(picture),
            found => found?,
        };
    }
    if !path.is_empty() {
        picture.insert(path.into(), describe(fs, &inode)?);
    }
    if inode.is_directory() {
        walk(fs, &inode, path, &mut picture)?;
    }
    Ok(picture)
}

fn walk(
    fs: &Filesystem,
    directory: &Arc<Inode>,
    path: &str,
    picture: &mut BTreeMap<String, String>,
) -> Result<()> {
    let mut names = Vec::new();
    fs.list(directory, 0, &mut |listed| {
        if !matches!(listed.name, b"." | b"..") {
            names.push(listed.name.to_vec());
        }
        ControlFlow::Continue(())
    })?;
    for name in names {
        let inode = fs.lookup(directory, &name)?;
        let path = format!("{path}/{}", String::from_utf8_lossy(&name));
        picture.insert(path.clone(), describe(fs, &inode)?);
        if inode.is_directory() {
            walk(fs, &inode, &path, picture)?;
        }
    }
    Ok(())
}

/// Up to three paths in which pictures differ, in words.
#[must_use]
pub fn difference(expected: &BTreeMap<String, String>, shown: &BTreeMap<String, String>) -> String {
    let differs = |path: &&String| expected.get(*path) != shown.get(*path);
    let mut paths: Vec<&String> = expected
        .keys()
        .chain(shown.keys())
        .filter(differs)
        .collect();
    paths.dedup();
    paths
        .iter()
        .take(3)
        .map(|path| {
            format!(
                "{path}: {:?} became {:?}\n",
                expected.get(*path),
                shown.get(*path)
            )
        })
        .collect()
}

fn describe(fs: &Filesystem, inode: &Arc<Inode>) -> Result<String> {
    let attr = fs.attr(inode);
    let mut text = format!(
        "{:o} {}:{} links {}",
        attr.mode, attr.uid, attr.gid, attr.links
    );
    match attr.mode & S_IFMT {
        S_IFREG => {
            let mut content = vec![0; usize::try_from(attr.size_bytes).unwrap_or(0)];
            let len = content.len();
            fs.read(inode, 0, len, &mut SliceSink::new(&mut content))?;
            let sum = kfs::checksum::crc32c(!0, &content);
            let _ = write!(text, " size {len} crc {sum:08x}");
        }
        S_IFLNK => {
            let _ = write!(
                text,
                " -> {}",
                String::from_utf8_lossy(&fs.read_link(inode)?)
            );
        }
        S_IFDIR => {}
        _ => {
            let _ = write!(text, " device {:?}", attr.device);
        }
    }
    let mut attributes = fs.list_xattrs(inode)?;
    attributes.sort_by_key(|name| name.full());
    for name in attributes {
        let full = name.full();
        let value = fs.get_xattr(inode, &full)?;
        let _ = write!(text, " {}={value:02x?}", String::from_utf8_lossy(&full));
    }
    Ok(text)
}
