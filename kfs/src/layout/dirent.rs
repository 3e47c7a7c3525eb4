//! Directory entries of linear blocks, and the checksum tail of such blocks.
//!
//! A block is a chain of entries; the last one reaches to the end, or to the tail where metadata
//! has checksums. Kernel page: filesystems/ext4/directory.

use super::inode::{S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK};
use crate::checksum::crc32c;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest name in bytes.
pub const NAME_MAX: usize = 255;
/// Bytes before the name of an entry.
pub const DIRENT_HEADER_SIZE: usize = 8;
/// `det_reserved_ft` of a tail.
pub const DIR_TAIL_TYPE: u8 = 0xde;

/// Entry of a directory, without the name that follows.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawDirent {
    pub inode: U32,
    pub rec_len: U16,
    pub name_len: u8,
    pub file_type: u8,
}
const _: () = assert!(size_of::<RawDirent>() == DIRENT_HEADER_SIZE);

/// Checksum at the end of a directory block, in the shape of an unused entry.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawDirTail {
    pub det_reserved_zero1: U32,
    pub det_rec_len: U16,
    pub det_reserved_zero2: u8,
    pub det_reserved_ft: u8,
    pub det_checksum: U32,
}
/// Bytes of a tail.
pub const DIR_TAIL_SIZE: usize = 12;
const _: () = assert!(size_of::<RawDirTail>() == DIR_TAIL_SIZE);

/// Type of a file as an entry holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileType {
    /// Not recorded: the inode tells.
    Unknown = 0,
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Character device.
    CharDevice = 3,
    /// Block device.
    BlockDevice = 4,
    /// Named pipe.
    Fifo = 5,
    /// Socket.
    Socket = 6,
    /// Symbolic link.
    Symlink = 7,
}

impl FileType {
    /// Decodes the byte of an entry; values that are none of the format's are unknown.
    #[must_use]
    pub fn from_raw(value: u8) -> Self {
        match value {
            1 => Self::Regular,
            2 => Self::Directory,
            3 => Self::CharDevice,
            4 => Self::BlockDevice,
            5 => Self::Fifo,
            6 => Self::Socket,
            7 => Self::Symlink,
            _ => Self::Unknown,
        }
    }

    /// The type in a mode.
    #[must_use]
    pub fn from_mode(mode: u16) -> Self {
        match mode & S_IFMT {
            S_IFREG => Self::Regular,
            S_IFDIR => Self::Directory,
            S_IFCHR => Self::CharDevice,
            S_IFBLK => Self::BlockDevice,
            S_IFIFO => Self::Fifo,
            S_IFSOCK => Self::Socket,
            S_IFLNK => Self::Symlink,
            _ => Self::Unknown,
        }
    }

    /// The bits of the type in a mode; 0 for unknown.
    #[must_use]
    pub fn mode_bits(self) -> u16 {
        match self {
            Self::Unknown => 0,
            Self::Regular => S_IFREG,
            Self::Directory => S_IFDIR,
            Self::CharDevice => S_IFCHR,
            Self::BlockDevice => S_IFBLK,
            Self::Fifo => S_IFIFO,
            Self::Socket => S_IFSOCK,
            Self::Symlink => S_IFLNK,
        }
    }
}

/// Bytes an entry needs for a name of that length.
#[must_use]
pub const fn dirent_size(name_len: usize) -> usize {
    (DIRENT_HEADER_SIZE + name_len + 3) & !3
}

/// Decodes `rec_len`: in blocks of 64 KiB the full length does not fit 16 bits.
#[must_use]
pub fn decode_rec_len(stored: u16, block_size: u32) -> usize {
    let stored = u32::from(stored);
    let len = if block_size < 65536 {
        stored
    } else if stored == 65535 || stored == 0 {
        block_size
    } else {
        stored & 65532 | (stored & 3) << 16
    };
    len as usize
}

/// Encodes a length of at most the block size.
///
/// # Panics
/// When the length is not a multiple of 4 or above the block size.
#[must_use]
pub fn encode_rec_len(len: usize, block_size: u32) -> u16 {
    assert!(
        len.is_multiple_of(4) && len <= block_size as usize,
        "length of a directory entry"
    );
    if len == 65536 { 65535 } else { len as u16 }
}

impl RawDirTail {
    /// A tail with no checksum yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            det_reserved_zero1: U32::new(0),
            det_rec_len: U16::new(DIR_TAIL_SIZE as u16),
            det_reserved_zero2: 0,
            det_reserved_ft: DIR_TAIL_TYPE,
            det_checksum: U32::new(0),
        }
    }

    /// The tail of a block, where it has one.
    #[must_use]
    pub fn of_block(block: &[u8]) -> Option<&Self> {
        let (_, tail) = Self::ref_from_suffix(block).ok()?;
        let ok = tail.det_reserved_zero1.get() == 0
            && usize::from(tail.det_rec_len.get()) == DIR_TAIL_SIZE
            && tail.det_reserved_zero2 == 0
            && tail.det_reserved_ft == DIR_TAIL_TYPE;
        ok.then_some(tail)
    }
}

impl Default for RawDirTail {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a linear block has a tail with the right checksum. `seed` is the directory inode's;
/// without one there is no checksum.
#[must_use]
pub fn verify_checksum(seed: Option<u32>, block: &[u8]) -> bool {
    let Some(seed) = seed else { return true };
    let Some(tail) = RawDirTail::of_block(block) else {
        return false;
    };
    tail.det_checksum.get() == crc32c(seed, &block[..block.len() - DIR_TAIL_SIZE])
}

/// Writes the tail of a linear block with its checksum.
///
/// # Panics
/// When the block is shorter than a tail.
pub fn update_checksum(seed: Option<u32>, block: &mut [u8]) {
    let Some(seed) = seed else { return };
    let end = block.len() - DIR_TAIL_SIZE;
    let mut tail = RawDirTail::new();
    tail.det_checksum = U32::new(crc32c(seed, &block[..end]));
    tail.write_to(&mut block[end..]).expect("length of a tail");
}

const _: () = assert!(offset_of!(RawDirTail, det_checksum) == 8);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_lengths() {
        assert_eq!(dirent_size(1), 12);
        assert_eq!(dirent_size(4), 12);
        assert_eq!(dirent_size(5), 16);
        assert_eq!(dirent_size(255), 264);
        for len in [12, 1000, 65532, 65536] {
            assert_eq!(decode_rec_len(encode_rec_len(len, 65536), 65536), len);
        }
        assert_eq!(decode_rec_len(65535, 4096), 65535);
        assert_eq!(decode_rec_len(0, 65536), 65536);
    }

    #[test]
    fn types_round_trip() {
        for raw in 1..=7 {
            let file_type = FileType::from_raw(raw);
            assert_eq!(
                FileType::from_mode(file_type.mode_bits() | 0o644),
                file_type
            );
            assert_eq!(file_type as u8, raw);
        }
        assert_eq!(FileType::from_raw(0xde), FileType::Unknown);
    }
}
