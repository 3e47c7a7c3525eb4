//! The attributes within an inode: a magic, then a region.
//!
//! An area without the magic has no attributes, whatever else it holds, as in Linux. One too short
//! for anything (inodes of 128 bytes) has none either.

use super::region::{self, Entry};
use crate::error::Result;
use crate::ids::InodeNr;
use crate::layout::xattr::{RawXattrInodeHeader, XATTR_MAGIC};
use zerocopy::FromBytes;

const HEADER: usize = size_of::<RawXattrInodeHeader>();

/// The entries of an area.
pub(super) fn parse(inode: InodeNr, area: &[u8]) -> Result<Vec<Entry<'_>>> {
    match RawXattrInodeHeader::ref_from_prefix(area) {
        Ok((header, region)) if header.h_magic.get() == XATTR_MAGIC => {
            region::parse(inode, region, 0)
        }
        _ => Ok(Vec::new()),
    }
}

/// Whether the entries fit an area of `len` bytes. No entries always do.
pub(super) fn fits(entries: &[Entry<'_>], len: usize) -> bool {
    entries.is_empty() || (len > HEADER && region::fits(entries, 0, len - HEADER))
}

/// An area of `len` bytes with entries that fit it; zeros without any.
pub(super) fn encode(entries: &[Entry<'_>], len: usize) -> Vec<u8> {
    let mut area = vec![0; len];
    if !entries.is_empty() {
        area[..HEADER].copy_from_slice(&XATTR_MAGIC.to_le_bytes());
        region::encode(&mut area[HEADER..], 0, entries, false);
    }
    area
}
