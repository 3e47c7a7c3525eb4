//! What on disk contradicts the format: one variant per check, with the numbers that failed.

use crate::ids::{BlockNr, GroupNr, InodeNr, LogicalBlock, Tid};

/// A contradiction found in the image. Each variant is raised at one place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Corrupt {
    /// A block of the snapshot store is not what was written.
    #[error("snapshot store: block {block} has the wrong checksum")]
    PreImageChecksum {
        /// Block within the store.
        block: u32,
    },
    /// The image says that it has snapshots, and the store cannot be read.
    #[error("the snapshot store cannot be read: {what}")]
    SnapshotStore {
        /// What is wrong.
        what: &'static str,
    },
    /// Heads in the snapshot store are damaged: what they say is lost, and which blocks it was of.
    #[error("the snapshot store is damaged, and what '{name}' shows is lost; delete it")]
    SnapshotLost {
        /// The snapshot's name.
        name: Box<str>,
    },
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
    /// A number in a group descriptor cannot be.
    #[error("group {group}: descriptor field {field} has the impossible value {value}")]
    GroupField {
        /// The group.
        group: GroupNr,
        /// Kernel name of the field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A group's block bitmap does not match its checksum.
    #[error("group {group}: block bitmap checksum mismatch")]
    BlockBitmapChecksum {
        /// The group.
        group: GroupNr,
    },
    /// A group's block bitmap shows fixed metadata as free.
    #[error("group {group}: block bitmap shows metadata block {block} as free")]
    BlockBitmapMetadata {
        /// The group.
        group: GroupNr,
        /// First such block.
        block: BlockNr,
    },
    /// A group's block bitmap and descriptor disagree on the number of free blocks.
    #[error("group {group}: {bitmap} blocks free in the bitmap, {descriptor} in the descriptor")]
    BlockBitmapCount {
        /// The group.
        group: GroupNr,
        /// Clear bits.
        bitmap: u32,
        /// Count in the descriptor.
        descriptor: u32,
    },
    /// A group's inode bitmap does not match its checksum.
    #[error("group {group}: inode bitmap checksum mismatch")]
    InodeBitmapChecksum {
        /// The group.
        group: GroupNr,
    },
    /// A group's inode bitmap and descriptor disagree on the number of free inodes.
    #[error("group {group}: {bitmap} inodes free in the bitmap, {descriptor} in the descriptor")]
    InodeBitmapCount {
        /// The group.
        group: GroupNr,
        /// Clear bits.
        bitmap: u32,
        /// Count in the descriptor.
        descriptor: u32,
    },
    /// A run named by a file covers the volume's fixed metadata.
    #[error("blocks from {start}, {len} of them, cover fixed metadata")]
    RunInMetadata {
        /// First block of the run.
        start: BlockNr,
        /// Length in blocks.
        len: u32,
    },
    /// A run to be freed has blocks that are not in use.
    #[error("blocks from {start}, {len} of them, are to be freed but not all in use")]
    RunNotInUse {
        /// First block of the run.
        start: BlockNr,
        /// Length in blocks.
        len: u32,
    },
    /// An inode to be freed is free.
    #[error("inode {inode} is to be freed but not in use")]
    InodeNotInUse {
        /// The inode.
        inode: InodeNr,
    },
    /// An inode to be freed is one of the reserved ones.
    #[error("inode {inode} is reserved and cannot be freed")]
    InodeReserved {
        /// The inode.
        inode: InodeNr,
    },
    /// A directory is to be freed in a group that counts none.
    #[error("inode {inode} is a directory but its group counts none")]
    NoDirectoriesInGroup {
        /// The inode.
        inode: InodeNr,
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
    /// A block of attributes does not begin like one.
    #[error("attribute block {block}: wrong magic")]
    XattrBlockMagic {
        /// The block.
        block: BlockNr,
    },
    /// Attributes claim more or fewer blocks than one.
    #[error("attribute block {block}: has {blocks} blocks instead of one")]
    XattrBlockLength {
        /// The block.
        block: BlockNr,
        /// The length found.
        blocks: u32,
    },
    /// The count of inodes that share a block of attributes is impossible.
    #[error("attribute block {block}: impossible count of inodes {count}")]
    XattrBlockCount {
        /// The block.
        block: BlockNr,
        /// The count found.
        count: u32,
    },
    /// The checksum of a block of attributes does not match.
    #[error("attribute block {block}: checksum mismatch")]
    XattrBlockChecksum {
        /// The block.
        block: BlockNr,
    },
    /// An attribute's entry or name reaches beyond the end of its area or block.
    #[error("inode {inode}: attribute entry at {offset} is not terminated")]
    XattrEntryOutside {
        /// The inode.
        inode: InodeNr,
        /// Offset in the area or block.
        offset: usize,
    },
    /// An attribute's name contains a NUL.
    #[error("inode {inode}: attribute entry at {offset} has a NUL in its name")]
    XattrName {
        /// The inode.
        inode: InodeNr,
        /// Offset in the area or block.
        offset: usize,
    },
    /// An attribute's value lies among the entries or beyond the end.
    #[error("inode {inode}: attribute value of {size} bytes at {offset} is out of place")]
    XattrValueOutside {
        /// The inode.
        inode: InodeNr,
        /// Offset in the area or block.
        offset: usize,
        /// Length of the value.
        size: u32,
    },
    /// The stored hash of an attribute is not that of its name and value.
    #[error("inode {inode}: attribute '{name}' has a wrong hash")]
    XattrHash {
        /// The inode.
        inode: InodeNr,
        /// The name without its prefix, escaped.
        name: String,
    },
    /// Two attributes claim the same bytes for their values.
    #[error("inode {inode}: attribute values overlap at {offset}")]
    XattrValuesOverlap {
        /// The inode.
        inode: InodeNr,
        /// Offset in the area or block.
        offset: usize,
    },
    /// An attribute's value in an inode of its own is longer than any can be.
    #[error("inode {inode}: attribute value of {size} bytes")]
    XattrValueSize {
        /// The inode that has the attribute.
        inode: InodeNr,
        /// The length found.
        size: u32,
    },
    /// The stored ACL of an inode cannot be read.
    #[error("inode {inode}: damaged ACL")]
    XattrAcl {
        /// The inode.
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
    /// A directory has no blocks.
    #[error("directory {inode}: has no blocks")]
    DirectoryEmpty {
        /// The directory.
        inode: InodeNr,
    },
    /// The first block of a directory does not start with `.` and `..`.
    #[error("directory {inode}: does not start with . and ..")]
    DirectoryDots {
        /// The directory.
        inode: InodeNr,
    },
    /// A record of a directory block is too short, too long or misaligned.
    #[error("directory {inode}, block {block}: bad entry at offset {offset}")]
    DirectoryEntry {
        /// The directory.
        inode: InodeNr,
        /// Block within the directory.
        block: LogicalBlock,
        /// Offset of the record in the block.
        offset: u32,
    },
    /// A name in a directory has a slash or a NUL.
    #[error("directory {inode}, block {block}: impossible name at offset {offset}")]
    DirectoryName {
        /// The directory.
        inode: InodeNr,
        /// Block within the directory.
        block: LogicalBlock,
        /// Offset of the record in its block.
        offset: u32,
    },
    /// The checksum of a directory block, or of an index block, is wrong.
    #[error("directory {inode}, block {block}: checksum mismatch")]
    DirectoryChecksum {
        /// The directory.
        inode: InodeNr,
        /// Block within the directory.
        block: LogicalBlock,
    },
    /// The root of a hash tree has fields that cannot be.
    #[error("directory {inode}: bad root of the hash tree ({info_length} bytes, {levels} levels)")]
    HtreeRoot {
        /// The directory.
        inode: InodeNr,
        /// Stored length of the root's info.
        info_length: u8,
        /// Stored depth.
        levels: u8,
    },
    /// Limit or count of an index block cannot be.
    #[error("directory {inode}, index block {block}: {count} entries, limit {limit}")]
    HtreeCounts {
        /// The directory.
        inode: InodeNr,
        /// Block within the directory.
        block: LogicalBlock,
        /// Entries that the block claims to have room for.
        limit: u16,
        /// Entries in use.
        count: u16,
    },
    /// The entries of an index block are not sorted by hash.
    #[error("directory {inode}, index block {block}: hashes out of order")]
    HtreeOrder {
        /// The directory.
        inode: InodeNr,
        /// Block within the directory.
        block: LogicalBlock,
    },
    /// An index entry leads to the root or behind the directory's end.
    #[error("directory {inode}, index block {block}: leads to block {child}")]
    HtreeChild {
        /// The directory.
        inode: InodeNr,
        /// Block within the directory.
        block: LogicalBlock,
        /// The block that it leads to.
        child: u32,
    },
    /// A name lies in a leaf that its hash does not lead to.
    #[error("directory {inode}, block {block}: a name of hash {hash:#010x} is in the wrong leaf")]
    HtreeHash {
        /// The directory.
        inode: InodeNr,
        /// Block within the directory.
        block: LogicalBlock,
        /// Hash of the name.
        hash: u32,
    },
    /// An extent node does not begin with the magic number.
    #[error("inode {inode}: extent node {block} has magic {found:#06x}")]
    ExtentMagic {
        /// The inode.
        inode: InodeNr,
        /// The node's block, 0 for the root.
        block: BlockNr,
        /// The 16 bits found.
        found: u16,
    },
    /// An extent node has another depth than its parent makes expect, or too great a one.
    #[error("inode {inode}: extent node {block} has depth {found}, expected {expected}")]
    ExtentDepth {
        /// The inode.
        inode: InodeNr,
        /// The node's block, 0 for the root.
        block: BlockNr,
        /// Depth found.
        found: u16,
        /// Depth expected; the greatest allowed for a root.
        expected: u16,
    },
    /// An extent node claims room for more or fewer entries than it has.
    #[error("inode {inode}: extent node {block} claims room for {found} entries, not {capacity}")]
    ExtentMax {
        /// The inode.
        inode: InodeNr,
        /// The node's block, 0 for the root.
        block: BlockNr,
        /// Room claimed.
        found: u16,
        /// Entries that fit.
        capacity: u16,
    },
    /// An extent node has more entries than fit.
    #[error("inode {inode}: extent node {block} has {entries} entries, room for {max}")]
    ExtentEntries {
        /// The inode.
        inode: InodeNr,
        /// The node's block, 0 for the root.
        block: BlockNr,
        /// Entries claimed.
        entries: u16,
        /// Entries that fit.
        max: u16,
    },
    /// An extent node that must have entries has none.
    #[error("inode {inode}: extent node {block} is empty")]
    ExtentNodeEmpty {
        /// The inode.
        inode: InodeNr,
        /// The node's block, 0 for the root.
        block: BlockNr,
    },
    /// An extent node's checksum does not match.
    #[error("inode {inode}: extent node {block}: checksum mismatch")]
    ExtentChecksum {
        /// The inode.
        inode: InodeNr,
        /// The node's block, 0 for the root.
        block: BlockNr,
    },
    /// Entries of an extent node are not sorted, or overlap.
    #[error("inode {inode}: extent node {block}: the entry for block {logical} is out of order")]
    ExtentOrder {
        /// The inode.
        inode: InodeNr,
        /// The node's block, 0 for the root.
        block: BlockNr,
        /// First logical block of the entry.
        logical: LogicalBlock,
    },
    /// An extent node lies outside the range that its parent gives it.
    #[error("inode {inode}: extent node {block} leaves its parent's range with block {logical}")]
    ExtentRange {
        /// The inode.
        inode: InodeNr,
        /// The node's block, 0 for the root.
        block: BlockNr,
        /// First logical block of the entry.
        logical: LogicalBlock,
    },
    /// An extent has no length or ends beyond the last block of any file.
    #[error("inode {inode}: the extent at block {logical} has the impossible length {len}")]
    ExtentLength {
        /// The inode.
        inode: InodeNr,
        /// First logical block of the entry.
        logical: LogicalBlock,
        /// Length in blocks.
        len: u32,
    },
    /// An extent's blocks are not all within the volume.
    #[error("inode {inode}: the extent at block {logical} claims {len} blocks at {physical}")]
    ExtentBlocks {
        /// The inode.
        inode: InodeNr,
        /// First logical block of the entry.
        logical: LogicalBlock,
        /// First block claimed.
        physical: BlockNr,
        /// Length in blocks.
        len: u32,
    },
    /// An index entry's child is not within the volume.
    #[error("inode {inode}: extent node {block} is outside the volume")]
    ExtentChild {
        /// The inode.
        inode: InodeNr,
        /// The child's block.
        block: BlockNr,
    },
    /// A block map points outside the volume.
    #[error("inode {inode}: block map points to {block}, outside the volume")]
    IndirectBlock {
        /// The inode.
        inode: InodeNr,
        /// The block number.
        block: BlockNr,
    },
    /// A block map has more blocks than the volume.
    #[error("inode {inode}: block map has more blocks than the volume")]
    IndirectTooLarge {
        /// The inode.
        inode: InodeNr,
    },
    /// The size of a symbolic link is more than can be its target.
    #[error("inode {inode}: a symbolic link cannot have {size} bytes")]
    SymlinkSize {
        /// The link.
        inode: InodeNr,
        /// Its size in bytes.
        size: u64,
    },
    /// Content that lies in its inode is shorter than the size says, or is no list of entries.
    #[error("inode {inode}: content of {size} bytes in the inode is damaged")]
    InlineSize {
        /// The file or directory.
        inode: InodeNr,
        /// Its size in bytes.
        size: u64,
    },
    /// The orphan list has a loop, or names an inode that cannot be an orphan.
    #[error("the orphan list is damaged at inode {inode}")]
    OrphanList {
        /// Where.
        inode: InodeNr,
    },
    /// A block of the orphan file has no magic number or a wrong checksum.
    #[error("block {block} is no block of an orphan file")]
    OrphanBlock {
        /// The block.
        block: BlockNr,
    },
    /// A block of a directory, or of another file that must have none, is a hole.
    #[error("inode {inode}: block {block} is a hole")]
    DirectoryHole {
        /// The directory.
        inode: InodeNr,
        /// Block within it.
        block: u32,
    },
    /// Inode 2 is not a directory.
    #[error("the root inode is not a directory")]
    RootNotDirectory,
    /// An inode that holds the value of an attribute is too short.
    #[error("inode {inode}: shorter than the attribute value it holds")]
    XattrInode {
        /// The inode of the value.
        inode: InodeNr,
    },
    /// The device ends before the volume does.
    #[error("the image is truncated: the file system has {wanted} bytes, the device {found}")]
    Truncated {
        /// Size of the volume in bytes.
        wanted: u64,
        /// Size of the device in bytes.
        found: u64,
    },
    /// The device has no room for a superblock.
    #[error("too small for a file system: {bytes} bytes")]
    TooSmall {
        /// Size of the device in bytes.
        bytes: u64,
    },
    /// A directory entry names an inode that is not in use.
    #[error("directory {directory}: an entry names inode {inode}, which is free")]
    EntryOfFreeInode {
        /// The directory.
        directory: InodeNr,
        /// The inode named.
        inode: InodeNr,
    },
    /// A directory is among its own ancestors.
    #[error("directory {inode} is above itself")]
    DirectoryLoop {
        /// The directory.
        inode: InodeNr,
    },
    /// A transaction of the journal was committed, but its blocks do not match their checksums.
    #[error("the journal's transaction {tid} is damaged: run e2fsck on the image")]
    JournalTransaction {
        /// The transaction.
        tid: Tid,
    },
    /// A directory is an entry of itself.
    #[error("directory {inode} is an entry of itself")]
    DirectoryInItself {
        /// The directory.
        inode: InodeNr,
    },
}
