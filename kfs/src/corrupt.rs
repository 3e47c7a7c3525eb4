//! What on disk contradicts the format: one variant per check, with the numbers that failed.

use crate::ids::{BlockNr, GroupNr, InodeNr};

/// A contradiction found in the image. Each variant is raised at one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corrupt {
    /// The bytes at offset 1024 are not an ext4 superblock.
    #[error("not an ext2/3/4 file system: superblock magic is {found:#06x}, not 0xef53")]
    SuperblockMagic {
        /// The 16 bits found.
        found: u16,
    },
    /// The superblock's checksum does not match its content.
    #[error("superblock checksum is {found:#010x}, computed {expected:#010x}")]
    SuperblockChecksum {
        /// Stored value.
        found: u32,
        /// Computed value.
        expected: u32,
    },
    /// A superblock field has a value that no file system can have.
    #[error("superblock field {field} has the impossible value {value}")]
    SuperblockField {
        /// Kernel name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A group descriptor's checksum does not match.
    #[error("group {group}: descriptor checksum mismatch")]
    GroupChecksum {
        /// The group.
        group: GroupNr,
    },
    /// An inode's checksum does not match.
    #[error("inode {inode}: checksum mismatch")]
    InodeChecksum {
        /// The inode.
        inode: InodeNr,
    },
    /// A block number points outside the volume or into its fixed metadata.
    #[error("block {block} is outside the volume")]
    BlockOutside {
        /// The block number.
        block: BlockNr,
    },
    /// An inode number is 0 or beyond the volume's inode count.
    #[error("inode number {inode} is outside the volume")]
    InodeOutside {
        /// The inode number.
        inode: InodeNr,
    },
    /// A field of the journal's superblock has a value that no journal can have.
    #[error("journal superblock field {field} has the impossible value {value:#x}")]
    JournalSuperblockField {
        /// Kernel name of the field.
        field: &'static str,
        /// Its value.
        value: u32,
    },
    /// The journal refers to a block beyond its own end.
    #[error("journal block {block} is beyond the journal's {len} blocks")]
    JournalBlockOutside {
        /// Block of the log.
        block: u32,
        /// Blocks in the journal inode.
        len: u32,
    },
}
