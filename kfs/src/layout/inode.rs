//! Inodes: a fixed part of 128 bytes, and extra fields in larger ones.
//!
//! [`InodeBytes`] views the bytes of one inode in the table (or a copy of them) and knows which
//! extra fields exist: those that lie within both the inode and its `i_extra_isize`. Kernel page:
//! filesystems/ext4/inodes.

use super::features::RoCompat;
use super::geometry::Geometry;
use crate::checksum::crc32c;
use crate::error::{Error, Result};
use crate::ids::InodeNr;
use crate::time::Timestamp;
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use super::inode_flags::InodeFlags;

/// Bytes of the part that every inode has.
pub const INODE_FIXED_SIZE: usize = 128;
/// Bytes of `i_block`: root of the extent tree, block map, or a short symbolic link.
pub const BLOCK_AREA_SIZE: usize = 60;

/// Mask of the file type in a mode.
pub const S_IFMT: u16 = 0o170_000;
/// Mode: socket.
pub const S_IFSOCK: u16 = 0o140_000;
/// Mode: symbolic link.
pub const S_IFLNK: u16 = 0o120_000;
/// Mode: regular file.
pub const S_IFREG: u16 = 0o100_000;
/// Mode: block device.
pub const S_IFBLK: u16 = 0o060_000;
/// Mode: directory.
pub const S_IFDIR: u16 = 0o040_000;
/// Mode: character device.
pub const S_IFCHR: u16 = 0o020_000;
/// Mode: fifo.
pub const S_IFIFO: u16 = 0o010_000;

/// The fixed part of an inode as on disk. The last fields are those of `osd2` for Linux.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawInode {
    pub i_mode: U16,
    pub i_uid: U16,
    pub i_size_lo: U32,
    pub i_atime: U32,
    pub i_ctime: U32,
    pub i_mtime: U32,
    pub i_dtime: U32,
    pub i_gid: U16,
    pub i_links_count: U16,
    pub i_blocks_lo: U32,
    pub i_flags: U32,
    pub i_version_lo: U32,
    pub i_block: [u8; BLOCK_AREA_SIZE],
    pub i_generation: U32,
    pub i_file_acl_lo: U32,
    pub i_size_high: U32,
    pub i_obso_faddr: U32,
    pub i_blocks_high: U16,
    pub i_file_acl_high: U16,
    pub i_uid_high: U16,
    pub i_gid_high: U16,
    pub i_checksum_lo: U16,
    pub i_reserved: U16,
}
const _: () = assert!(size_of::<RawInode>() == INODE_FIXED_SIZE);
const _: () = assert!(offset_of!(RawInode, i_block) == 0x28);

/// The extra fields that follow the fixed part in inodes above 128 bytes.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawInodeExtra {
    pub i_extra_isize: U16,
    pub i_checksum_hi: U16,
    pub i_ctime_extra: U32,
    pub i_mtime_extra: U32,
    pub i_atime_extra: U32,
    pub i_crtime: U32,
    pub i_crtime_extra: U32,
    pub i_version_hi: U32,
    pub i_projid: U32,
}
const _: () = assert!(size_of::<RawInodeExtra>() == 32);

/// Where an extra field lies in the inode.
macro_rules! extra {
    ($field:ident) => {
        INODE_FIXED_SIZE + offset_of!(RawInodeExtra, $field)
    };
}

/// Number of a device node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

/// The bytes of one inode: `&[u8]`, `&mut [u8]` or an owned copy, of the volume's inode size.
#[derive(Clone, Debug)]
pub struct InodeBytes<B>(B);

impl<B: AsRef<[u8]>> InodeBytes<B> {
    /// Takes the bytes of an inode.
    ///
    /// # Panics
    /// With fewer than 128 bytes: `Geometry` has checked the inode size.
    #[must_use]
    pub fn new(bytes: B) -> Self {
        assert!(bytes.as_ref().len() >= INODE_FIXED_SIZE, "size of an inode");
        Self(bytes)
    }

    /// All bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.0.as_ref()
    }

    /// The fixed part.
    #[must_use]
    pub fn raw(&self) -> &RawInode {
        RawInode::ref_from_prefix(self.bytes())
            .expect("checked by new")
            .0
    }

    /// Length of the extra fields in use; 0 where there are none or the stored value is impossible.
    #[must_use]
    pub fn extra_isize(&self) -> usize {
        let size = self.extra_isize_raw();
        if INODE_FIXED_SIZE + size <= self.bytes().len() && size.is_multiple_of(4) {
            size
        } else {
            0
        }
    }

    /// `i_extra_isize` as stored, for checks; 0 in inodes of 128 bytes.
    #[must_use]
    pub fn extra_isize_raw(&self) -> usize {
        match self.bytes().get(INODE_FIXED_SIZE..INODE_FIXED_SIZE + 2) {
            Some(bytes) => usize::from(u16::from_le_bytes([bytes[0], bytes[1]])),
            None => 0,
        }
    }

    fn extra_u32(&self, offset: usize) -> Option<u32> {
        if offset + 4 > INODE_FIXED_SIZE + self.extra_isize() {
            return None;
        }
        Some(U32::ref_from_prefix(&self.bytes()[offset..]).ok()?.0.get())
    }

    fn has_checksum_hi(&self) -> bool {
        extra!(i_checksum_hi) + 2 <= INODE_FIXED_SIZE + self.extra_isize()
    }

    /// Type and permissions.
    #[must_use]
    pub fn mode(&self) -> u16 {
        self.raw().i_mode.get()
    }

    /// Owner.
    #[must_use]
    pub fn uid(&self) -> u32 {
        u32::from(self.raw().i_uid.get()) | u32::from(self.raw().i_uid_high.get()) << 16
    }

    /// Group.
    #[must_use]
    pub fn gid(&self) -> u32 {
        u32::from(self.raw().i_gid.get()) | u32::from(self.raw().i_gid_high.get()) << 16
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        let raw = self.raw();
        let high = match raw.i_mode.get() & S_IFMT {
            S_IFREG | S_IFDIR => raw.i_size_high.get(),
            _ => 0,
        };
        u64::from(raw.i_size_lo.get()) | u64::from(high) << 32
    }

    /// Names of the inode.
    #[must_use]
    pub fn links_count(&self) -> u16 {
        self.raw().i_links_count.get()
    }

    /// Space taken, in units of 512 bytes.
    #[must_use]
    pub fn blocks_512(&self, geometry: &Geometry) -> u64 {
        let raw = self.raw();
        let low = u64::from(raw.i_blocks_lo.get());
        if !geometry.ro_compat.contains(RoCompat::HUGE_FILE) {
            return low;
        }
        let count = low | u64::from(raw.i_blocks_high.get()) << 32;
        if self.flags().contains(InodeFlags::HUGE_FILE) {
            count << (geometry.block_size_bits - 9)
        } else {
            count
        }
    }

    /// Flags.
    #[must_use]
    pub fn flags(&self) -> InodeFlags {
        InodeFlags::from_bits_retain(self.raw().i_flags.get())
    }

    /// Generation: changes when the number is used again.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.raw().i_generation.get()
    }

    /// Block of the extended attributes; 0 is none.
    #[must_use]
    pub fn file_acl(&self) -> u64 {
        let raw = self.raw();
        u64::from(raw.i_file_acl_lo.get()) | u64::from(raw.i_file_acl_high.get()) << 32
    }

    /// Time of deletion in seconds, or the next inode of the orphan list.
    #[must_use]
    pub fn dtime(&self) -> u32 {
        self.raw().i_dtime.get()
    }

    /// Time of the last access.
    #[must_use]
    pub fn atime(&self) -> Timestamp {
        Timestamp::decode(
            self.raw().i_atime.get(),
            self.extra_u32(extra!(i_atime_extra)),
        )
    }

    /// Time of the last change of the content.
    #[must_use]
    pub fn mtime(&self) -> Timestamp {
        Timestamp::decode(
            self.raw().i_mtime.get(),
            self.extra_u32(extra!(i_mtime_extra)),
        )
    }

    /// Time of the last change of the inode.
    #[must_use]
    pub fn ctime(&self) -> Timestamp {
        Timestamp::decode(
            self.raw().i_ctime.get(),
            self.extra_u32(extra!(i_ctime_extra)),
        )
    }

    /// Time of creation, where the inode has the field.
    #[must_use]
    pub fn crtime(&self) -> Option<Timestamp> {
        let seconds = self.extra_u32(extra!(i_crtime))?;
        Some(Timestamp::decode(
            seconds,
            self.extra_u32(extra!(i_crtime_extra)),
        ))
    }

    /// Change counter.
    #[must_use]
    pub fn version(&self) -> u64 {
        let high = self.extra_u32(extra!(i_version_hi)).unwrap_or(0);
        u64::from(self.raw().i_version_lo.get()) | u64::from(high) << 32
    }

    /// Project, where the inode has the field.
    #[must_use]
    pub fn projid(&self) -> Option<u32> {
        self.extra_u32(extra!(i_projid))
    }

    /// The block area.
    #[must_use]
    pub fn block_area(&self) -> &[u8; BLOCK_AREA_SIZE] {
        &self.raw().i_block
    }

    /// Number of a device node.
    #[must_use]
    pub fn rdev(&self) -> DeviceNumber {
        let word = |n: usize| {
            let b = &self.raw().i_block[n * 4..];
            u32::from_le_bytes([b[0], b[1], b[2], b[3]])
        };
        let (old, new) = (word(0), word(1));
        if old != 0 {
            DeviceNumber {
                major: old >> 8 & 0xff,
                minor: old & 0xff,
            }
        } else {
            DeviceNumber {
                major: new >> 8 & 0xfff,
                minor: new & 0xff | new >> 12 & 0xf_ff00,
            }
        }
    }

    /// The attributes within the inode: what follows the extra fields. Empty where nothing does.
    #[must_use]
    pub fn xattr_area(&self) -> &[u8] {
        match self.extra_isize() {
            0 => &[],
            extra => &self.bytes()[INODE_FIXED_SIZE + extra..],
        }
    }

    /// The checksum of this content by its number and generation; 0 where the volume has none.
    /// All 32 bits, of which an inode without extra fields stores the lower half.
    #[must_use]
    pub fn checksum(&self, geometry: &Geometry, inode: InodeNr) -> u32 {
        let Some(seed) = geometry.inode_seed(inode, self.generation()) else {
            return 0;
        };
        let bytes = self.bytes();
        let low = offset_of!(RawInode, i_checksum_lo);
        let mut value = crc32c(seed, &bytes[..low]);
        value = crc32c(value, &[0, 0]);
        if self.has_checksum_hi() {
            let high = extra!(i_checksum_hi);
            value = crc32c(value, &bytes[low + 2..high]);
            value = crc32c(value, &[0, 0]);
            crc32c(value, &bytes[high + 2..])
        } else {
            crc32c(value, &bytes[low + 2..])
        }
    }

    /// Whether the stored checksum is right; always so where the volume has none.
    #[must_use]
    pub fn verify_checksum(&self, geometry: &Geometry, inode: InodeNr) -> bool {
        if geometry.csum_seed.is_none() {
            return true;
        }
        let expected = self.checksum(geometry, inode);
        let low = u32::from(self.raw().i_checksum_lo.get());
        if !self.has_checksum_hi() {
            return low == expected & 0xffff;
        }
        let b = &self.bytes()[extra!(i_checksum_hi)..];
        low | u32::from(u16::from_le_bytes([b[0], b[1]])) << 16 == expected
    }
}

impl<B: AsRef<[u8]> + AsMut<[u8]>> InodeBytes<B> {
    /// All bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.0.as_mut()
    }

    /// The fixed part.
    pub fn raw_mut(&mut self) -> &mut RawInode {
        RawInode::mut_from_prefix(self.0.as_mut())
            .expect("checked by new")
            .0
    }

    /// Zeros everything and sets the length of the extra fields (0 in inodes of 128 bytes).
    pub fn clear(&mut self, extra_isize: u16) {
        self.bytes_mut().fill(0);
        if self.bytes().len() > INODE_FIXED_SIZE {
            let at = INODE_FIXED_SIZE;
            self.bytes_mut()[at..at + 2].copy_from_slice(&extra_isize.to_le_bytes());
        }
    }

    fn set_extra_u32(&mut self, offset: usize, value: u32) -> bool {
        if offset + 4 > INODE_FIXED_SIZE + self.extra_isize() {
            return false;
        }
        self.bytes_mut()[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
        true
    }

    /// Writes the extra word of a time and gives the low one.
    fn encode_time(&mut self, offset: usize, time: Timestamp) -> U32 {
        let (low, extra) = time.encode();
        if self.set_extra_u32(offset, extra) {
            U32::new(low)
        } else {
            U32::new(time.encode_small())
        }
    }

    /// Sets type and permissions.
    pub fn set_mode(&mut self, mode: u16) {
        self.raw_mut().i_mode = U16::new(mode);
    }

    /// Sets the owner.
    pub fn set_uid(&mut self, uid: u32) {
        let raw = self.raw_mut();
        (raw.i_uid, raw.i_uid_high) = (U16::new(uid as u16), U16::new((uid >> 16) as u16));
    }

    /// Sets the group.
    pub fn set_gid(&mut self, gid: u32) {
        let raw = self.raw_mut();
        (raw.i_gid, raw.i_gid_high) = (U16::new(gid as u16), U16::new((gid >> 16) as u16));
    }

    /// Sets the size in bytes.
    pub fn set_size_bytes(&mut self, size: u64) {
        let raw = self.raw_mut();
        raw.i_size_lo = U32::new(size as u32);
        raw.i_size_high = U32::new((size >> 32) as u32);
    }

    /// Sets the count of names.
    pub fn set_links_count(&mut self, count: u16) {
        self.raw_mut().i_links_count = U16::new(count);
    }

    /// Sets the space taken, in units of 512 bytes.
    ///
    /// # Errors
    /// [`Error::FileTooLarge`] when the volume cannot hold the count.
    pub fn set_blocks_512(&mut self, geometry: &Geometry, count: u64) -> Result<()> {
        let huge = geometry.ro_compat.contains(RoCompat::HUGE_FILE);
        let mut flags = self.flags() - InodeFlags::HUGE_FILE;
        let mut stored = count;
        if count > u64::from(u32::MAX) && !huge {
            return Err(Error::FileTooLarge);
        }
        if count >= 1 << 48 {
            flags |= InodeFlags::HUGE_FILE;
            stored = count >> (geometry.block_size_bits - 9);
        }
        if stored >= 1 << 48 {
            return Err(Error::FileTooLarge);
        }
        self.set_flags(flags);
        let raw = self.raw_mut();
        raw.i_blocks_lo = U32::new(stored as u32);
        raw.i_blocks_high = U16::new((stored >> 32) as u16);
        Ok(())
    }

    /// Sets the flags.
    pub fn set_flags(&mut self, flags: InodeFlags) {
        self.raw_mut().i_flags = U32::new(flags.bits());
    }

    /// Sets the generation.
    pub fn set_generation(&mut self, generation: u32) {
        self.raw_mut().i_generation = U32::new(generation);
    }

    /// Sets the block of the extended attributes.
    pub fn set_file_acl(&mut self, block: u64) {
        let raw = self.raw_mut();
        raw.i_file_acl_lo = U32::new(block as u32);
        raw.i_file_acl_high = U16::new((block >> 32) as u16);
    }

    /// Sets the time of deletion, or the next inode of the orphan list.
    pub fn set_dtime(&mut self, value: u32) {
        self.raw_mut().i_dtime = U32::new(value);
    }

    /// Sets the time of the last access.
    pub fn set_atime(&mut self, time: Timestamp) {
        self.raw_mut().i_atime = self.encode_time(extra!(i_atime_extra), time);
    }

    /// Sets the time of the last change of the content.
    pub fn set_mtime(&mut self, time: Timestamp) {
        self.raw_mut().i_mtime = self.encode_time(extra!(i_mtime_extra), time);
    }

    /// Sets the time of the last change of the inode.
    pub fn set_ctime(&mut self, time: Timestamp) {
        self.raw_mut().i_ctime = self.encode_time(extra!(i_ctime_extra), time);
    }

    /// Sets the time of creation, where the inode has the field.
    pub fn set_crtime(&mut self, time: Timestamp) {
        let low = self.encode_time(extra!(i_crtime_extra), time);
        self.set_extra_u32(extra!(i_crtime), low.get());
    }

    /// Sets the change counter, as much of it as the inode holds.
    pub fn set_version(&mut self, version: u64) {
        self.raw_mut().i_version_lo = U32::new(version as u32);
        self.set_extra_u32(extra!(i_version_hi), (version >> 32) as u32);
    }

    /// Sets the project, where the inode has the field.
    pub fn set_projid(&mut self, projid: u32) {
        self.set_extra_u32(extra!(i_projid), projid);
    }

    /// The block area.
    pub fn block_area_mut(&mut self) -> &mut [u8; BLOCK_AREA_SIZE] {
        &mut self.raw_mut().i_block
    }

    /// Sets the number of a device node, in the old form where it fits, as Linux does.
    pub fn set_rdev(&mut self, device: DeviceNumber) {
        let DeviceNumber { major, minor } = device;
        let (old, new) = if major < 256 && minor < 256 {
            (major << 8 | minor, 0)
        } else {
            (
                0,
                minor & 0xff | (major & 0xfff) << 8 | (minor & 0xf_ff00) << 12,
            )
        };
        let area = self.block_area_mut();
        area.fill(0);
        area[..4].copy_from_slice(&old.to_le_bytes());
        area[4..8].copy_from_slice(&new.to_le_bytes());
    }

    /// The attributes within the inode. Empty where there is no room.
    pub fn xattr_area_mut(&mut self) -> &mut [u8] {
        match self.extra_isize() {
            0 => &mut [],
            extra => &mut self.bytes_mut()[INODE_FIXED_SIZE + extra..],
        }
    }

    /// Stores the checksum, where the volume has them.
    pub fn update_checksum(&mut self, geometry: &Geometry, inode: InodeNr) {
        if geometry.csum_seed.is_none() {
            return;
        }
        let value = self.checksum(geometry, inode);
        self.raw_mut().i_checksum_lo = U16::new(value as u16);
        if self.has_checksum_hi() {
            let at = extra!(i_checksum_hi);
            self.bytes_mut()[at..at + 2].copy_from_slice(&((value >> 16) as u16).to_le_bytes());
        }
    }
}

#[cfg(test)]
#[path = "inode_tests.rs"]
mod tests;
