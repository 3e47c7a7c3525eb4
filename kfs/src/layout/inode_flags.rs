//! The flags of an inode (`i_flags`), and which of them users see, set and inherit.

use bitflags::bitflags;

bitflags! {
    /// Flags of an inode.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct InodeFlags: u32 {
        /// Overwrite with zeros on deletion (not done).
        const SECRM = 0x1;
        /// Keep for undeletion (not done).
        const UNRM = 0x2;
        /// Compress.
        const COMPR = 0x4;
        /// Write synchronously.
        const SYNC = 0x8;
        /// No change at all.
        const IMMUTABLE = 0x10;
        /// Appending only.
        const APPEND = 0x20;
        /// Left out by dump(8).
        const NODUMP = 0x40;
        /// Access time is not kept.
        const NOATIME = 0x80;
        /// Encrypted.
        const ENCRYPT = 0x800;
        /// The directory has a hash tree.
        const INDEX = 0x1000;
        /// AFS directory.
        const IMAGIC = 0x2000;
        /// Data goes through the journal.
        const JOURNAL_DATA = 0x4000;
        /// The tail is never merged.
        const NOTAIL = 0x8000;
        /// Directory changes are synchronous.
        const DIRSYNC = 0x1_0000;
        /// Top of a hierarchy for placement.
        const TOPDIR = 0x2_0000;
        /// `i_blocks` counts file system blocks.
        const HUGE_FILE = 0x4_0000;
        /// `i_block` is an extent tree.
        const EXTENTS = 0x8_0000;
        /// Has a verity tree.
        const VERITY = 0x10_0000;
        /// Holds the value of an attribute.
        const EA_INODE = 0x20_0000;
        /// Mapped with DAX.
        const DAX = 0x200_0000;
        /// Data lies in the inode.
        const INLINE_DATA = 0x1000_0000;
        /// New children inherit the project.
        const PROJINHERIT = 0x2000_0000;
        /// Names ignore case.
        const CASEFOLD = 0x4000_0000;
        const _ = !0;
    }
}

impl InodeFlags {
    /// Flags a user may see (`lsattr`).
    pub const USER_VISIBLE: Self = Self::from_bits_retain(0x705B_DFFF);
    /// Flags a user may change (`chattr`).
    pub const USER_MODIFIABLE: Self = Self::from_bits_retain(0x604B_C0FF);
    /// Flags a new inode takes from its directory.
    pub const INHERITED: Self = Self::from_bits_retain(
        0x1 | 0x2
            | 0x4
            | 0x8
            | 0x40
            | 0x80
            | 0x4000
            | 0x8000
            | 0x1_0000
            | 0x2000_0000
            | 0x4000_0000
            | 0x200_0000,
    );
}
