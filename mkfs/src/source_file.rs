//! What the host knows of a file to be copied besides its metadata: data ranges and attributes.

use rustix::fs::{SeekFrom, lgetxattr, llistxattr, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

/// An extended attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Attribute {
    /// The full name.
    pub(crate) name: Vec<u8>,
    /// The value.
    pub(crate) value: Vec<u8>,
}

/// The first range of data at or after `from`, in a file of `size` bytes.
pub(crate) fn next_data(file: &File, from: u64, size: u64) -> io::Result<Option<Range<u64>>> {
    if from >= size {
        return Ok(None);
    }
    let start = match seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that knows no holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..size)),
        Err(error) => return Err(error.into()),
    };
    let end = seek(file, SeekFrom::Hole(start))?;
    let range = start..end.min(size);
    Ok((!range.is_empty()).then_some(range))
}

/// Most bytes of a list of names and of a value: the kernel allows no more.
const ATTRIBUTE_MAX: usize = 65536;

/// Calls `read` with a buffer that is large enough for any answer.
fn read_all(read: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; ATTRIBUTE_MAX];
    let len = read(&mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

/// All attributes of a file, by name; none where the host's file system has none.
pub(crate) fn attributes(path: &Path) -> io::Result<Vec<Attribute>> {
    let list = match read_all(|buffer| llistxattr(path, buffer)) {
        Err(error) if error.raw_os_error() == Some(Errno::OPNOTSUPP.raw_os_error()) => Vec::new(),
        list => list?,
    };
    let mut names: Vec<&[u8]> = list
        .split(|&b| b == 0)
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    let read = |name: &[u8]| -> io::Result<Option<Attribute>> {
        match read_all(|buffer| lgetxattr(path, name, buffer)) {
            Ok(value) => Ok(Some(Attribute {
                name: name.to_vec(),
                value,
            })),
            // Gone since it was listed.
            Err(error) if error.raw_os_error() == Some(Errno::NODATA.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    };
    names
        .into_iter()
        .filter_map(|name| read(name).transpose())
        .collect()
}
