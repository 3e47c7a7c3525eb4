//! Extended attributes, in the rest of an inode and in a block of their own.
//!
//! Entries grow upwards from the header, values downwards from the end. A value's offset counts from
//! the start of the block, in an inode from the first entry. Kernel page:
//! filesystems/ext4/attributes.

use crate::checksum::crc32c;
use crate::ids::BlockNr;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// `h_magic` of both headers.
pub const XATTR_MAGIC: u32 = 0xea02_0000;
/// Most inodes that may share a block.
pub const XATTR_REFCOUNT_MAX: u32 = 1024;
/// Longest value in bytes as Linux allows it.
pub const XATTR_SIZE_MAX: usize = 65536;
/// Alignment of entries and values in bytes.
pub const XATTR_ALIGN: usize = 4;

/// Header of an attribute block.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawXattrHeader {
    pub h_magic: U32,
    pub h_refcount: U32,
    pub h_blocks: U32,
    pub h_hash: U32,
    pub h_checksum: U32,
    pub h_reserved: [U32; 3],
}
const _: () = assert!(size_of::<RawXattrHeader>() == 32);

/// Header of the attributes within an inode.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawXattrInodeHeader {
    pub h_magic: U32,
}
const _: () = assert!(size_of::<RawXattrInodeHeader>() == 4);

/// Entry of an attribute, without the name that follows. Four zero bytes end the entries.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawXattrEntry {
    pub e_name_len: u8,
    pub e_name_index: u8,
    pub e_value_offs: U16,
    pub e_value_inum: U32,
    pub e_value_size: U32,
    pub e_hash: U32,
}
/// Bytes of an entry before its name.
pub const XATTR_ENTRY_SIZE: usize = 16;
const _: () = assert!(size_of::<RawXattrEntry>() == XATTR_ENTRY_SIZE);

/// Bytes an entry takes with its name.
#[must_use]
pub const fn entry_size(name_len: usize) -> usize {
    (XATTR_ENTRY_SIZE + name_len + 3) & !3
}

/// Bytes a value takes.
#[must_use]
pub const fn value_size(len: usize) -> usize {
    (len + 3) & !3
}

/// Name index of `user.`.
pub const INDEX_USER: u8 = 1;
/// Name index of `system.posix_acl_access`, which leaves no name.
pub const INDEX_ACL_ACCESS: u8 = 2;
/// Name index of `system.posix_acl_default`, which leaves no name.
pub const INDEX_ACL_DEFAULT: u8 = 3;
/// Name index of `trusted.`.
pub const INDEX_TRUSTED: u8 = 4;
/// Name index of `security.`.
pub const INDEX_SECURITY: u8 = 6;
/// Name index of `system.`.
pub const INDEX_SYSTEM: u8 = 7;

/// Index and prefix. Whole names come before prefixes of theirs.
const PREFIXES: &[(u8, &[u8])] = &[
    (INDEX_ACL_ACCESS, b"system.posix_acl_access"),
    (INDEX_ACL_DEFAULT, b"system.posix_acl_default"),
    (8, b"system.richacl"),
    (INDEX_USER, b"user."),
    (INDEX_TRUSTED, b"trusted."),
    (5, b"lustre."),
    (INDEX_SECURITY, b"security."),
    (INDEX_SYSTEM, b"system."),
];

/// Splits a name into index and rest; `None` for a name of no known class, with an empty rest
/// where one is needed, or with a rest above 255 bytes.
#[must_use]
pub fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let (index, rest) = PREFIXES.iter().find_map(|&(index, prefix)| {
        let rest = name.strip_prefix(prefix)?;
        let whole = !prefix.ends_with(b".");
        (whole == rest.is_empty()).then_some((index, rest))
    })?;
    (rest.len() <= 255).then_some((index, rest))
}

/// The prefix of an index; `None` for one that has no names for users (and index 0, which is
/// used for no attribute any more).
#[must_use]
pub fn name_prefix(index: u8) -> Option<&'static [u8]> {
    PREFIXES.iter().find(|p| p.0 == index).map(|p| p.1)
}

/// `e_hash` of an attribute in a block: over its name (without prefix) and value.
#[must_use]
pub fn entry_hash(name: &[u8], value: &[u8]) -> u32 {
    let hash = name
        .iter()
        .fold(0u32, |hash, &b| hash.rotate_left(5) ^ u32::from(b));
    value.chunks(4).fold(hash, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

/// [`entry_hash`] as kernels before 6.2 computed it where characters are signed: differs for names
/// with bytes above 127. To be accepted, not to be written.
#[must_use]
pub fn entry_hash_signed(name: &[u8], value: &[u8]) -> u32 {
    let hash = name.iter().fold(0u32, |hash, &b| {
        hash.rotate_left(5) ^ i32::from(b.cast_signed()).cast_unsigned()
    });
    value.chunks(4).fold(hash, |hash, chunk| {
        let mut word = [0; 4];
        word[..chunk.len()].copy_from_slice(chunk);
        hash.rotate_left(16) ^ u32::from_le_bytes(word)
    })
}

/// `h_hash` of a block from the hashes of its entries; one that is 0 forbids sharing, which the
/// result 0 says.
pub fn block_hash(entry_hashes: impl IntoIterator<Item = u32>) -> u32 {
    let mut hash = 0u32;
    for entry in entry_hashes {
        if entry == 0 {
            return 0;
        }
        hash = hash.rotate_left(16) ^ entry;
    }
    hash
}

fn checksum(seed: u32, nr: BlockNr, block: &[u8]) -> u32 {
    let field = offset_of!(RawXattrHeader, h_checksum);
    let value = crc32c(seed, &nr.0.to_le_bytes());
    let value = crc32c(value, &block[..field]);
    let value = crc32c(value, &[0; 4]);
    crc32c(value, &block[field + 4..])
}

/// Whether the checksum of an attribute block is right. `seed` is the *volume's*, as inodes may
/// share the block; without one there is no checksum.
#[must_use]
pub fn verify_checksum(seed: Option<u32>, nr: BlockNr, block: &[u8]) -> bool {
    let Some(seed) = seed else { return true };
    let Ok((header, _)) = RawXattrHeader::ref_from_prefix(block) else {
        return false;
    };
    header.h_checksum.get() == checksum(seed, nr, block)
}

/// Stores the checksum of an attribute block.
///
/// # Panics
/// When the block is shorter than a header.
pub fn update_checksum(seed: Option<u32>, nr: BlockNr, block: &mut [u8]) {
    let Some(seed) = seed else { return };
    let value = checksum(seed, nr, block);
    let field = offset_of!(RawXattrHeader, h_checksum);
    block[field..field + 4].copy_from_slice(&value.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(split_name(b"user.a"), Some((INDEX_USER, &b"a"[..])));
        assert_eq!(
            split_name(b"system.posix_acl_access"),
            Some((INDEX_ACL_ACCESS, &b""[..]))
        );
        assert_eq!(
            split_name(b"security.selinux"),
            Some((INDEX_SECURITY, &b"selinux"[..]))
        );
        assert_eq!(split_name(b"user."), None);
        assert_eq!(split_name(b"other.a"), None);
        assert_eq!(split_name(&[&b"user."[..], &[b'x'; 256]].concat()), None);
        assert_eq!(name_prefix(INDEX_TRUSTED), Some(&b"trusted."[..]));
        assert_eq!(name_prefix(0), None);
    }

    #[test]
    fn hashes() {
        assert_eq!(entry_hash(b"ab", b""), (0x61 << 5) ^ 0x62);
        assert_eq!(
            entry_hash(b"", b"12345"),
            0x3433_3231u32.rotate_left(16) ^ 0x35
        );
        assert_ne!(entry_hash(b"\xff", b""), entry_hash_signed(b"\xff", b""));
        assert_eq!(block_hash([1, 0, 2]), 0);
        assert_eq!(block_hash([1, 2]), 1 << 16 ^ 2);
    }
}
