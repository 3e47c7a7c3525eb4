//! Entries and values, the form that the in-inode area and the block have in common.
//!
//! A region is a slice in which value offsets count from its start: the whole block, or the area
//! after its magic. Entries start at `first`; their values are packed at the end. [`parse`] checks
//! every number before it is used, so that parsed entries can be encoded again without a check.

use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::InodeNr;
use crate::layout::xattr::{
    INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT, INDEX_SECURITY, INDEX_TRUSTED, INDEX_USER, RawXattrEntry,
    XATTR_ALIGN, XATTR_ENTRY_SIZE, entry_hash, entry_hash_signed, entry_size, value_size,
};
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of zeros that end the entries.
const TERMINATOR: usize = 4;
/// Longest value in bytes that an inode of its own may hold.
const VALUE_MAX: u32 = 1 << 24;

/// An attribute of a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry<'a> {
    pub(super) index: u8,
    pub(super) name: &'a [u8],
    pub(super) value: EntryValue<'a>,
}

/// Where the value of an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryValue<'a> {
    Bytes(&'a [u8]),
    Inode { inode: InodeNr, size_bytes: u32 },
}

impl<'a> Entry<'a> {
    /// Bytes that it takes in a region.
    pub(super) fn size_bytes(&self) -> usize {
        entry_size(self.name.len()) + value_size(self.bytes().len())
    }

    /// The value's bytes in the region.
    fn bytes(&self) -> &'a [u8] {
        match self.value {
            EntryValue::Bytes(bytes) => bytes,
            EntryValue::Inode { .. } => &[],
        }
    }

    pub(super) fn has_name(&self, (index, name): (u8, &[u8])) -> bool {
        self.index == index && self.name == name
    }

    /// The order of entries in a block.
    pub(super) fn sort_key(&self) -> (u8, usize, &'a [u8]) {
        (self.index, self.name.len(), self.name)
    }

    /// Whether permission checks and writes read it, so that it belongs into the inode.
    pub(super) fn is_hot(&self) -> bool {
        matches!(
            self.index,
            INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT | INDEX_SECURITY
        )
    }

    /// Whether it may move between inode and block: what users set may, `system.data` must not.
    pub(super) fn is_movable(&self) -> bool {
        self.is_hot() || matches!(self.index, INDEX_USER | INDEX_TRUSTED)
    }
}

/// Whether the entries fit a region of `len` bytes.
pub(super) fn fits(entries: &[Entry<'_>], first: usize, len: usize) -> bool {
    let needed: usize = entries.iter().map(Entry::size_bytes).sum();
    first + needed + TERMINATOR <= len & !(XATTR_ALIGN - 1)
}

/// The entries of a region, in its order.
///
/// # Errors
/// [`Corrupt`] variants named `Xattr…`.
pub(super) fn parse(inode: InodeNr, region: &[u8], first: usize) -> Result<Vec<Entry<'_>>> {
    let (raw, names_end) = walk(inode, region, first)?;
    let mut values = Vec::new();
    let entries = raw.into_iter().map(|(raw, name)| {
        let value = match raw.e_value_inum.get() {
            0 => EntryValue::Bytes(locate(inode, region, names_end, raw, &mut values)?),
            nr => EntryValue::Inode {
                inode: InodeNr(nr),
                size_bytes: separate_size(inode, raw)?,
            },
        };
        Ok(Entry {
            index: raw.e_name_index,
            name,
            value,
        })
    });
    let entries = entries.collect::<Result<Vec<_>>>()?;
    values.sort_unstable();
    if let Some(pair) = values.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        let offset = pair[1].0;
        return Err(Corrupt::XattrValuesOverlap { inode, offset }.into());
    }
    Ok(entries)
}

/// Checks a region as strictly as the format has it, beyond what reading needs: hashes, and places
/// also of empty values. `must_hash` says that every entry has a hash, as in blocks.
///
/// # Errors
/// [`Corrupt`] variants named `Xattr…`.
pub(crate) fn audit(inode: InodeNr, region: &[u8], first: usize, must_hash: bool) -> Result<()> {
    let entries = parse(inode, region, first)?;
    let (raw, _) = walk(inode, region, first)?;
    for (entry, (raw, name)) in entries.iter().zip(raw) {
        let size = raw.e_value_size.get();
        let offset = usize::from(raw.e_value_offs.get());
        if raw.e_name_index == 0 {
            return Err(Corrupt::XattrName { inode, offset }.into());
        }
        if raw.e_value_inum.get() != 0 || offset > region.len() {
            return Err(Corrupt::XattrValueOutside {
                inode,
                offset,
                size,
            }
            .into());
        }
        // The hash is over whole words.
        let value = match entry.bytes().len() {
            0 => &[],
            len => &region[offset..offset + value_size(len)],
        };
        let found = raw.e_hash.get();
        let is_right = found == entry_hash(name, value)
            || found == entry_hash_signed(name, value)
            || !must_hash && found == 0;
        if !is_right {
            let name = name.escape_ascii().to_string();
            return Err(Corrupt::XattrHash { inode, name }.into());
        }
    }
    Ok(())
}

/// Raw entries with their names, and the offset after the terminator.
#[expect(clippy::type_complexity, reason = "used once, just above")]
fn walk(
    inode: InodeNr,
    region: &[u8],
    first: usize,
) -> Result<(Vec<(&RawXattrEntry, &[u8])>, usize)> {
    let mut entries = Vec::new();
    let mut at = first;
    loop {
        let rest = region.get(at..).unwrap_or_default();
        if rest.starts_with(&[0; TERMINATOR]) {
            return Ok((entries, at + TERMINATOR));
        }
        let entry = RawXattrEntry::ref_from_prefix(rest).ok();
        let Some((raw, name)) =
            entry.and_then(|(raw, rest)| Some((raw, rest.get(..usize::from(raw.e_name_len))?)))
        else {
            return Err(Corrupt::XattrEntryOutside { inode, offset: at }.into());
        };
        if name.contains(&0) {
            return Err(Corrupt::XattrName { inode, offset: at }.into());
        }
        at += entry_size(name.len());
        entries.push((raw, name));
    }
}

/// Bytes of a value in the region; notes what range it takes.
fn locate<'a>(
    inode: InodeNr,
    region: &'a [u8],
    names_end: usize,
    raw: &RawXattrEntry,
    values: &mut Vec<(usize, usize)>,
) -> Result<&'a [u8]> {
    let start = usize::from(raw.e_value_offs.get());
    let size = raw.e_value_size.get();
    let len = usize::try_from(size).unwrap_or(usize::MAX);
    if len == 0 {
        return Ok(&[]);
    }
    let is_inside = start >= names_end
        && len <= region.len()
        && start.saturating_add(value_size(len)) <= region.len();
    if !is_inside {
        return Err(Corrupt::XattrValueOutside {
            inode,
            offset: start,
            size,
        }
        .into());
    }
    values.push((start, start + value_size(len)));
    Ok(&region[start..start + len])
}

fn separate_size(inode: InodeNr, raw: &RawXattrEntry) -> Result<u32> {
    let size = raw.e_value_size.get();
    if size > VALUE_MAX {
        return Err(Corrupt::XattrValueSize { inode, size }.into());
    }
    Ok(size)
}

/// Writes entries that fit, zeroing what they leave. Gives their hashes, which are stored only where
/// `is_hashed` (in blocks).
///
/// # Panics
/// When the entries do not fit, or one has its value in an inode: plans have none such.
pub(super) fn encode(
    region: &mut [u8],
    first: usize,
    entries: &[Entry<'_>],
    is_hashed: bool,
) -> Vec<u32> {
    assert!(fits(entries, first, region.len()), "the plan has checked");
    region[first..].fill(0);
    let mut at = first;
    let mut value_at = region.len() & !(XATTR_ALIGN - 1);
    let mut hashes = Vec::with_capacity(entries.len());
    for entry in entries {
        let EntryValue::Bytes(value) = entry.value else {
            panic!("the plan has checked");
        };
        value_at -= value_size(value.len());
        region[value_at..value_at + value.len()].copy_from_slice(value);
        let hash = entry_hash(entry.name, value);
        hashes.push(hash);
        // Linux gives empty values no place.
        let offset = if value.is_empty() { 0 } else { value_at };
        let raw = RawXattrEntry {
            e_name_len: entry.name.len() as u8,
            e_name_index: entry.index,
            e_value_offs: U16::new(offset as u16),
            e_value_inum: U32::new(0),
            e_value_size: U32::new(value.len() as u32),
            e_hash: U32::new(if is_hashed { hash } else { 0 }),
        };
        region[at..at + XATTR_ENTRY_SIZE].copy_from_slice(raw.as_bytes());
        let name_at = at + XATTR_ENTRY_SIZE;
        region[name_at..name_at + entry.name.len()].copy_from_slice(entry.name);
        at += entry_size(entry.name.len());
    }
    hashes
}
