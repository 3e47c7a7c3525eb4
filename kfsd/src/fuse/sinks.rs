//! Replies that are made of many pieces: directory entries and extended attributes.
//!
//! Both write straight into the reply and know its limits, so a file system only says what there
//! is.

use rustix::io::Errno;
use zerocopy::IntoBytes;

use super::abi::{Dirent, EntryOut};
use super::buffers::DataSink;
use super::file_system::{Entry, Result};

/// Takes the entries of a READDIR or READDIRPLUS.
#[derive(Debug)]
pub struct DirSink<'s, 'a> {
    data: &'s mut DataSink<'a>,
    entries: bool,
}

impl<'s, 'a> DirSink<'s, 'a> {
    /// A sink that fills `data`; `entries` says that each name comes with its [`Entry`].
    pub fn new(data: &'s mut DataSink<'a>, entries: bool) -> Self {
        Self { data, entries }
    }

    /// Whether entries with attributes are asked for (READDIRPLUS): use
    /// [`add_entry`](Self::add_entry) then, else [`add`](Self::add).
    pub fn wants_entries(&self) -> bool {
        self.entries
    }

    /// Whether an entry with such a name still fits. Ask before you take a lookup count.
    pub fn fits(&self, name: &[u8]) -> bool {
        self.size_of(name) <= self.data.remaining()
    }

    /// Adds a name; false when the sink is full. `kind` is the d_type of getdents(2);
    /// `next_offset` is where to go on behind this entry.
    pub fn add(&mut self, ino: u64, next_offset: u64, kind: u8, name: &[u8]) -> bool {
        self.put(EntryOut::default(), ino, next_offset, kind, name)
    }

    /// Adds a name with its entry; false when the sink is full: the lookup does not count then.
    pub fn add_entry(&mut self, entry: &Entry, next_offset: u64, kind: u8, name: &[u8]) -> bool {
        self.put(entry.encode(), entry.attr.ino, next_offset, kind, name)
    }

    fn size_of(&self, name: &[u8]) -> usize {
        let head = if self.entries {
            size_of::<EntryOut>()
        } else {
            0
        };
        head + (size_of::<Dirent>() + name.len()).next_multiple_of(8)
    }

    fn put(&mut self, entry: EntryOut, ino: u64, off: u64, kind: u8, name: &[u8]) -> bool {
        let Ok(namelen) = u32::try_from(name.len()) else {
            return false;
        };
        if !self.fits(name) {
            // Nothing behind this entry may slip into the gap: the offset would skip this one.
            self.data.truncate(0);
            return false;
        }
        let head = Dirent {
            ino,
            off,
            namelen,
            kind: u32::from(kind),
        };
        let padding = name.len().next_multiple_of(8) - name.len();
        let plus = if self.entries { entry.as_bytes() } else { &[] };
        [plus, head.as_bytes(), name, &[0; 8][..padding]]
            .iter()
            .all(|part| self.data.write(part).is_ok())
    }
}

/// Takes the value of a GETXATTR or the names of a LISTXATTR, or only counts their bytes when the
/// caller asked for the size.
#[derive(Debug)]
pub struct XattrSink<'s, 'a> {
    data: &'s mut DataSink<'a>,
    asked: usize,
    total: usize,
}

impl<'s, 'a> XattrSink<'s, 'a> {
    /// A sink for a caller with room for `asked` bytes; 0 asks for the size.
    pub fn new(data: &'s mut DataSink<'a>, asked: u32) -> Self {
        Self {
            data,
            asked: asked as usize,
            total: 0,
        }
    }

    /// Whether only the size is asked for; [`count`](Self::count) is enough then.
    pub fn wants_size(&self) -> bool {
        self.asked == 0
    }

    /// Adds bytes; fails with ERANGE when the caller has less room.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.count(bytes.len());
        if self.asked == 0 {
            return Ok(());
        }
        if self.total > self.asked {
            return Err(Errno::RANGE);
        }
        self.data.write(bytes).map_err(|_| Errno::RANGE)
    }

    /// Adds a name of a list, with its NUL.
    pub fn put_name(&mut self, name: &[u8]) -> Result<()> {
        self.put(name)?;
        self.put(&[0])
    }

    /// Counts bytes without having them.
    pub fn count(&mut self, bytes: usize) {
        self.total = self.total.saturating_add(bytes);
    }

    /// Room of the caller in bytes, for a call that fills a buffer itself; 0 asks for the size.
    pub fn capacity(&self) -> usize {
        self.asked
    }

    /// Bytes put or counted so far.
    pub fn total(&self) -> usize {
        self.total
    }
}
