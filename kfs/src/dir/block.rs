//! A block of entries: a chain of records that fills the block up to its checksum tail.
//!
//! Functions here work on the bytes of one block and know neither trees nor buffers. An entry that
//! is in use never moves, except where a block is packed anew (`pack`), which only hash trees and
//! directories of one block do: cookies of other directories are offsets.

use super::DirectoryFormat;
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::{InodeNr, LogicalBlock};
use crate::layout::dirent::{
    DIR_TAIL_SIZE, DIRENT_HEADER_SIZE, FileType, RawDirent, decode_rec_len, dirent_size,
    encode_rec_len, update_checksum,
};
use zerocopy::{FromBytes, IntoBytes};

/// An entry to be written.
#[derive(Clone, Copy, Debug)]
pub(super) struct NewEntry<'n> {
    pub(super) inode: InodeNr,
    pub(super) file_type: FileType,
    pub(super) name: &'n [u8],
}

impl NewEntry<'_> {
    /// Bytes that it needs.
    pub(super) fn size(&self) -> usize {
        dirent_size(self.name.len())
    }
}

/// An entry found in a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EntryRef<'b> {
    pub(crate) offset: usize,
    pub(crate) rec_len: usize,
    /// 0 for an unused record.
    pub(crate) inode: u32,
    pub(crate) file_type: u8,
    /// Empty for an unused record.
    pub(crate) name: &'b [u8],
}

impl<'b> EntryRef<'b> {
    pub(crate) fn is_used(&self) -> bool {
        self.inode != 0
    }

    /// Bytes that the entry itself takes, 0 when unused.
    pub(super) fn used_size(&self) -> usize {
        if self.is_used() {
            dirent_size(self.name.len())
        } else {
            0
        }
    }

    pub(super) fn to_new(self) -> NewEntry<'b> {
        let file_type = FileType::from_raw(self.file_type);
        NewEntry {
            inode: InodeNr(self.inode),
            file_type,
            name: self.name,
        }
    }
}

/// Walks the records of a block, checking each before it moves on.
pub(crate) struct Entries<'b> {
    bytes: &'b [u8],
    offset: usize,
    block_size: u32,
    directory: InodeNr,
    block: LogicalBlock,
}

impl<'b> Entries<'b> {
    /// The entries of a block of the directory that ends in a checksum tail if the volume has them.
    pub(crate) fn of_leaf(format: &DirectoryFormat, block: LogicalBlock, bytes: &'b [u8]) -> Self {
        Self::new(format, block, &bytes[..format.leaf_len().min(bytes.len())])
    }

    /// The entries of a hash tree's root, whose records span the whole block.
    pub(crate) fn of_root(format: &DirectoryFormat, bytes: &'b [u8]) -> Self {
        Self::new(format, LogicalBlock(0), bytes)
    }

    fn new(format: &DirectoryFormat, block: LogicalBlock, bytes: &'b [u8]) -> Self {
        let (block_size, directory) = (format.block_size, format.inode);
        Self {
            bytes,
            offset: 0,
            block_size,
            directory,
            block,
        }
    }

    fn parse(&self) -> Option<EntryRef<'b>> {
        let rest = &self.bytes[self.offset..];
        let (raw, after) = RawDirent::ref_from_prefix(rest).ok()?;
        let rec_len = decode_rec_len(raw.rec_len.get(), self.block_size);
        let name_len = usize::from(raw.name_len);
        let used = raw.inode.get() != 0;
        let needed = if used {
            dirent_size(name_len)
        } else {
            dirent_size(1)
        };
        let sound = rec_len >= needed
            && rec_len.is_multiple_of(4)
            && rec_len <= rest.len()
            && (!used || name_len > 0);
        sound.then(|| EntryRef {
            offset: self.offset,
            rec_len,
            inode: raw.inode.get(),
            file_type: raw.file_type,
            name: if used { &after[..name_len] } else { &[] },
        })
    }
}

impl<'b> Iterator for Entries<'b> {
    type Item = Result<EntryRef<'b>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset >= self.bytes.len() {
            return None;
        }
        let Some(entry) = self.parse() else {
            let (inode, block) = (self.directory, self.block);
            let offset = self.offset as u32;
            self.offset = self.bytes.len();
            return Some(Err(Corrupt::DirectoryEntry {
                inode,
                block,
                offset,
            }
            .into()));
        };
        self.offset += entry.rec_len;
        Some(Ok(entry))
    }
}

/// Where a name was found in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) offset: usize,
    /// Offset of the record before it in the block.
    pub(super) previous: Option<usize>,
    pub(super) inode: u32,
    pub(super) file_type: u8,
}

/// Looks for a name.
pub(super) fn find(entries: Entries<'_>, name: &[u8]) -> Result<Option<Position>> {
    let mut previous = None;
    for entry in entries {
        let entry = entry?;
        if entry.name == name {
            let EntryRef {
                offset,
                inode,
                file_type,
                ..
            } = entry;
            return Ok(Some(Position {
                offset,
                previous,
                inode,
                file_type,
            }));
        }
        previous = Some(entry.offset);
    }
    Ok(None)
}

/// What the search for a place in a block finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// The name is there already.
    Taken,
    /// The record at this offset has room.
    At(usize),
    /// No record has room.
    None,
}

/// Looks for room for a name, and for the name itself.
pub(super) fn find_place(entries: Entries<'_>, name: &[u8]) -> Result<Place> {
    let needed = dirent_size(name.len());
    let mut place = Place::None;
    for entry in entries {
        let entry = entry?;
        if entry.name == name {
            return Ok(Place::Taken);
        }
        if place == Place::None && entry.rec_len - entry.used_size() >= needed {
            place = Place::At(entry.offset);
        }
    }
    Ok(place)
}

/// Writes a record.
fn write_record(
    format: &DirectoryFormat,
    bytes: &mut [u8],
    offset: usize,
    rec_len: usize,
    entry: &NewEntry<'_>,
) {
    let raw = RawDirent {
        inode: entry.inode.0.into(),
        rec_len: encode_rec_len(rec_len, format.block_size).into(),
        name_len: entry.name.len() as u8,
        file_type: if format.has_file_type {
            entry.file_type as u8
        } else {
            0
        },
    };
    let bytes = &mut bytes[offset..];
    bytes[..DIRENT_HEADER_SIZE].copy_from_slice(raw.as_bytes());
    bytes[DIRENT_HEADER_SIZE..][..entry.name.len()].copy_from_slice(entry.name);
}

fn raw_at(bytes: &mut [u8], offset: usize) -> &mut RawDirent {
    let (raw, _) = RawDirent::mut_from_prefix(&mut bytes[offset..]).expect("a checked record");
    raw
}

/// Puts an entry into the record at `offset`, which [`find_place`] found.
pub(super) fn insert(
    format: &DirectoryFormat,
    bytes: &mut [u8],
    offset: usize,
    entry: &NewEntry<'_>,
) {
    let raw = raw_at(bytes, offset);
    let rec_len = decode_rec_len(raw.rec_len.get(), format.block_size);
    let used = match raw.inode.get() {
        0 => 0,
        _ => dirent_size(usize::from(raw.name_len)),
    };
    if used > 0 {
        raw.rec_len = encode_rec_len(used, format.block_size).into();
    }
    write_record(format, bytes, offset + used, rec_len - used, entry);
}

/// Removes an entry: its record goes to the one before; the first of a block becomes unused.
/// Nothing of the name stays behind.
pub(super) fn remove(format: &DirectoryFormat, bytes: &mut [u8], position: &Position) {
    let Position {
        offset, previous, ..
    } = *position;
    let rec_len = decode_rec_len(raw_at(bytes, offset).rec_len.get(), format.block_size);
    if let Some(previous) = previous {
        let raw = raw_at(bytes, previous);
        let merged = decode_rec_len(raw.rec_len.get(), format.block_size) + rec_len;
        raw.rec_len = encode_rec_len(merged, format.block_size).into();
        bytes[offset..offset + rec_len].fill(0);
    } else {
        bytes[offset..offset + rec_len].fill(0);
        raw_at(bytes, offset).rec_len = encode_rec_len(rec_len, format.block_size).into();
    }
}

/// Lets an entry name another inode.
pub(super) fn replace(
    format: &DirectoryFormat,
    bytes: &mut [u8],
    offset: usize,
    inode: InodeNr,
    file_type: FileType,
) {
    let raw = raw_at(bytes, offset);
    raw.inode = inode.0.into();
    if format.has_file_type {
        raw.file_type = file_type as u8;
    }
}

/// A whole block with these entries and its checksum. The caller has counted that they fit.
pub(super) fn pack<'n>(
    format: &DirectoryFormat,
    entries: impl IntoIterator<Item = NewEntry<'n>>,
) -> Vec<u8> {
    let mut bytes = vec![0; format.block_size as usize];
    let (mut last, mut end) = (0, 0);
    for entry in entries {
        last = end;
        end += entry.size();
        write_record(format, &mut bytes, last, end - last, &entry);
    }
    let rec_len = encode_rec_len(format.leaf_len() - last, format.block_size);
    raw_at(&mut bytes, last).rec_len = rec_len.into();
    update_checksum(format.checksum_seed, &mut bytes);
    bytes
}

/// Inodes of `.` and `..`, which must be the first records of a directory's first block; of a
/// linear one or of a root alike.
pub(crate) fn dots(format: &DirectoryFormat, bytes: &[u8]) -> Result<(InodeNr, InodeNr)> {
    let mut entries = Entries::of_root(format, bytes);
    let mut next = |name: &[u8]| match entries.next() {
        Some(Ok(entry)) if entry.name == name => Ok(InodeNr(entry.inode)),
        _ => Err(Error::from(Corrupt::DirectoryDots {
            inode: format.inode,
        })),
    };
    Ok((next(b".")?, next(b"..")?))
}

/// Offset of `..`, once [`dots`] has found it.
pub(super) fn dot_dot_offset(format: &DirectoryFormat, bytes: &[u8]) -> usize {
    let raw = RawDirent::ref_from_prefix(bytes)
        .expect("a block is longer than a record")
        .0;
    decode_rec_len(raw.rec_len.get(), format.block_size)
}

const _: () = assert!(DIR_TAIL_SIZE == dirent_size(1));
