//! The superblock: 1024 bytes at offset 1024 of the volume, with copies in some groups.
//!
//! Kernel page: filesystems/ext4/super. Counts of blocks are split in two halves; use the accessors.

use super::features::{Compat, Incompat, RoCompat};
use crate::checksum::{CRC32C_INIT, crc32c, crc32c_patch};
use std::mem::offset_of;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Offset of the primary superblock in bytes.
pub const SUPERBLOCK_OFFSET: u64 = 1024;
/// Size of a superblock in bytes.
pub const SUPERBLOCK_SIZE: usize = 1024;
/// `s_magic` of ext2, ext3 and ext4.
pub const EXT4_MAGIC: u16 = 0xef53;
/// `s_state`: cleanly unmounted.
pub const STATE_VALID: u16 = 1;
/// `s_state`: errors were found.
pub const STATE_ERROR: u16 = 2;
/// `s_state`: orphans are being recovered.
pub const STATE_ORPHANS: u16 = 4;
/// `s_flags`: directory hashes take characters as signed.
pub const FLAG_SIGNED_HASH: u32 = 1;
/// `s_flags`: directory hashes take characters as unsigned.
pub const FLAG_UNSIGNED_HASH: u32 = 2;
/// `s_checksum_type`: crc32c, the only one.
pub const CHECKSUM_CRC32C: u8 = 1;
/// `s_jnl_backup_type`: `s_jnl_blocks` holds `i_block` and the size of the journal inode.
pub const JOURNAL_BACKUP_BLOCKS: u8 = 1;

/// The superblock as on disk.
#[derive(Clone, Debug, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented by the kernel page"
)]
pub struct RawSuperblock {
    pub s_inodes_count: U32,
    pub s_blocks_count_lo: U32,
    pub s_r_blocks_count_lo: U32,
    pub s_free_blocks_count_lo: U32,
    pub s_free_inodes_count: U32,
    pub s_first_data_block: U32,
    pub s_log_block_size: U32,
    pub s_log_cluster_size: U32,
    pub s_blocks_per_group: U32,
    pub s_clusters_per_group: U32,
    pub s_inodes_per_group: U32,
    pub s_mtime: U32,
    pub s_wtime: U32,
    pub s_mnt_count: U16,
    pub s_max_mnt_count: U16,
    pub s_magic: U16,
    pub s_state: U16,
    pub s_errors: U16,
    pub s_minor_rev_level: U16,
    pub s_lastcheck: U32,
    pub s_checkinterval: U32,
    pub s_creator_os: U32,
    pub s_rev_level: U32,
    pub s_def_resuid: U16,
    pub s_def_resgid: U16,
    pub s_first_ino: U32,
    pub s_inode_size: U16,
    pub s_block_group_nr: U16,
    pub s_feature_compat: U32,
    pub s_feature_incompat: U32,
    pub s_feature_ro_compat: U32,
    pub s_uuid: [u8; 16],
    pub s_volume_name: [u8; 16],
    pub s_last_mounted: [u8; 64],
    pub s_algorithm_usage_bitmap: U32,
    pub s_prealloc_blocks: u8,
    pub s_prealloc_dir_blocks: u8,
    pub s_reserved_gdt_blocks: U16,
    pub s_journal_uuid: [u8; 16],
    pub s_journal_inum: U32,
    pub s_journal_dev: U32,
    pub s_last_orphan: U32,
    pub s_hash_seed: [U32; 4],
    pub s_def_hash_version: u8,
    pub s_jnl_backup_type: u8,
    pub s_desc_size: U16,
    pub s_default_mount_opts: U32,
    pub s_first_meta_bg: U32,
    pub s_mkfs_time: U32,
    pub s_jnl_blocks: [U32; 17],
    pub s_blocks_count_hi: U32,
    pub s_r_blocks_count_hi: U32,
    pub s_free_blocks_count_hi: U32,
    pub s_min_extra_isize: U16,
    pub s_want_extra_isize: U16,
    pub s_flags: U32,
    pub s_raid_stride: U16,
    pub s_mmp_update_interval: U16,
    pub s_mmp_block: U64,
    pub s_raid_stripe_width: U32,
    pub s_log_groups_per_flex: u8,
    pub s_checksum_type: u8,
    pub s_encryption_level: u8,
    pub s_reserved_pad: u8,
    pub s_kbytes_written: U64,
    pub s_snapshot_inum: U32,
    pub s_snapshot_id: U32,
    pub s_snapshot_r_blocks_count: U64,
    pub s_snapshot_list: U32,
    pub s_error_count: U32,
    pub s_first_error_time: U32,
    pub s_first_error_ino: U32,
    pub s_first_error_block: U64,
    pub s_first_error_func: [u8; 32],
    pub s_first_error_line: U32,
    pub s_last_error_time: U32,
    pub s_last_error_ino: U32,
    pub s_last_error_line: U32,
    pub s_last_error_block: U64,
    pub s_last_error_func: [u8; 32],
    pub s_mount_opts: [u8; 64],
    pub s_usr_quota_inum: U32,
    pub s_grp_quota_inum: U32,
    pub s_overhead_clusters: U32,
    pub s_backup_bgs: [U32; 2],
    pub s_encrypt_algos: [u8; 4],
    pub s_encrypt_pw_salt: [u8; 16],
    pub s_lpf_ino: U32,
    pub s_prj_quota_inum: U32,
    pub s_checksum_seed: U32,
    pub s_wtime_hi: u8,
    pub s_mtime_hi: u8,
    pub s_mkfs_time_hi: u8,
    pub s_lastcheck_hi: u8,
    pub s_first_error_time_hi: u8,
    pub s_last_error_time_hi: u8,
    pub s_first_error_errcode: u8,
    pub s_last_error_errcode: u8,
    pub s_encoding: U16,
    pub s_encoding_flags: U16,
    pub s_orphan_file_inum: U32,
    pub s_reserved: [U32; 94],
    pub s_checksum: U32,
}
const _: () = assert!(size_of::<RawSuperblock>() == SUPERBLOCK_SIZE);
const _: () = assert!(offset_of!(RawSuperblock, s_magic) == 0x38);
const _: () = assert!(offset_of!(RawSuperblock, s_checksum) == 0x3fc);

fn join(lo: U32, hi: U32) -> u64 {
    u64::from(lo.get()) | u64::from(hi.get()) << 32
}

fn halves(value: u64) -> (U32, U32) {
    (U32::new(value as u32), U32::new((value >> 32) as u32))
}

impl RawSuperblock {
    /// Features that old kernels may ignore.
    #[must_use]
    pub fn compat(&self) -> Compat {
        Compat::from_bits_retain(self.s_feature_compat.get())
    }

    /// Features that must be known to open the volume.
    #[must_use]
    pub fn incompat(&self) -> Incompat {
        Incompat::from_bits_retain(self.s_feature_incompat.get())
    }

    /// Features that must be known to change the volume.
    #[must_use]
    pub fn ro_compat(&self) -> RoCompat {
        RoCompat::from_bits_retain(self.s_feature_ro_compat.get())
    }

    fn is_64bit(&self) -> bool {
        self.incompat().contains(Incompat::BIT64)
    }

    fn count(&self, lo: U32, hi: U32) -> u64 {
        // Without the feature the upper halves are not part of the counts.
        if self.is_64bit() {
            join(lo, hi)
        } else {
            u64::from(lo.get())
        }
    }

    /// Blocks of the volume.
    #[must_use]
    pub fn blocks_count(&self) -> u64 {
        self.count(self.s_blocks_count_lo, self.s_blocks_count_hi)
    }

    /// Blocks only root may take.
    #[must_use]
    pub fn reserved_blocks_count(&self) -> u64 {
        self.count(self.s_r_blocks_count_lo, self.s_r_blocks_count_hi)
    }

    /// Free blocks.
    #[must_use]
    pub fn free_blocks_count(&self) -> u64 {
        self.count(self.s_free_blocks_count_lo, self.s_free_blocks_count_hi)
    }

    /// Sets the count of blocks.
    pub fn set_blocks_count(&mut self, count: u64) {
        (self.s_blocks_count_lo, self.s_blocks_count_hi) = halves(count);
    }

    /// Sets the count of blocks only root may take.
    pub fn set_reserved_blocks_count(&mut self, count: u64) {
        (self.s_r_blocks_count_lo, self.s_r_blocks_count_hi) = halves(count);
    }

    /// Sets the count of free blocks.
    pub fn set_free_blocks_count(&mut self, count: u64) {
        (self.s_free_blocks_count_lo, self.s_free_blocks_count_hi) = halves(count);
    }

    /// Seed of the metadata checksums, where the volume has them.
    #[must_use]
    pub fn checksum_seed(&self) -> Option<u32> {
        if !self.ro_compat().contains(RoCompat::METADATA_CSUM) {
            None
        } else if self.incompat().contains(Incompat::CSUM_SEED) {
            Some(self.s_checksum_seed.get())
        } else {
            Some(crc32c(CRC32C_INIT, &self.s_uuid))
        }
    }

    /// The checksum of this content, whatever the stored one.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        crc32c(
            CRC32C_INIT,
            &self.as_bytes()[..offset_of!(Self, s_checksum)],
        )
    }

    /// Whether the stored checksum is right; always so without metadata_csum.
    #[must_use]
    pub fn verify_checksum(&self) -> bool {
        !self.ro_compat().contains(RoCompat::METADATA_CSUM)
            || self.s_checksum.get() == self.checksum()
    }

    /// Stores the checksum; leaves the field alone without metadata_csum.
    pub fn update_checksum(&mut self) {
        if self.ro_compat().contains(RoCompat::METADATA_CSUM) {
            self.s_checksum = U32::new(self.checksum());
        }
    }

    /// Makes the content fit the stored checksum, so that a change of the first sector stays in it.
    ///
    /// The checksum lies in the last of the superblock's sectors, nearly all that changes in the first,
    /// and the one thing a disk promises is to write a sector as a whole: with a new checksum for each
    /// change, a power cut could leave the one without the other. So the checksum stays, and what fits
    /// the content to it are the last four bytes of `s_last_mounted`, behind the end of its string. The
    /// field belongs to who mounted the volume last: Linux, too, overwrites it.
    pub fn seal(&mut self) {
        if !self.ro_compat().contains(RoCompat::METADATA_CSUM) {
            return;
        }
        /// Where the four bytes are, and how many are between them and the checksum.
        const PATCH: usize = offset_of!(RawSuperblock, s_last_mounted) + 60;
        const AFTER: usize = offset_of!(RawSuperblock, s_checksum) - PATCH - 4;
        let wanted = self.s_checksum.get();
        let (before, rest) = self.as_mut_bytes().split_at_mut(PATCH);
        let (patch, rest) = rest.split_at_mut(size_of::<u32>());
        let after: &[u8; AFTER] = rest.first_chunk().expect("the checksum comes last");
        before[PATCH - 1] = 0;
        patch.copy_from_slice(&crc32c_patch(CRC32C_INIT, before, after, wanted));
    }

    /// Sets the time of the last write, all 40 bits of it.
    pub fn set_write_time(&mut self, seconds: i64) {
        (self.s_wtime, self.s_wtime_hi) = split_time(seconds);
    }

    /// Sets the time of the last mount.
    pub fn set_mount_time(&mut self, seconds: i64) {
        (self.s_mtime, self.s_mtime_hi) = split_time(seconds);
    }

    /// Sets the time of the last check.
    pub fn set_check_time(&mut self, seconds: i64) {
        (self.s_lastcheck, self.s_lastcheck_hi) = split_time(seconds);
    }

    /// Sets the time of creation.
    pub fn set_mkfs_time(&mut self, seconds: i64) {
        (self.s_mkfs_time, self.s_mkfs_time_hi) = split_time(seconds);
    }

    /// The volume label: up to the first NUL.
    #[must_use]
    pub fn label(&self) -> &[u8] {
        let len = self.s_volume_name.iter().position(|&b| b == 0);
        &self.s_volume_name[..len.unwrap_or(self.s_volume_name.len())]
    }
}

fn split_time(seconds: i64) -> (U32, u8) {
    let seconds = seconds.max(0);
    (U32::new(seconds as u32), (seconds >> 32) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_change_stays_in_its_sector() {
        let mut raw = RawSuperblock::read_from_bytes(&[0; SUPERBLOCK_SIZE]).expect("its size");
        raw.s_feature_ro_compat.set(RoCompat::METADATA_CSUM.bits());
        raw.s_last_mounted = [b'/'; 64];
        raw.update_checksum();
        let before = raw.clone();
        raw.s_state.set(STATE_VALID);
        raw.set_mount_time(1_900_000_000);
        assert!(!raw.verify_checksum());
        raw.seal();
        assert!(raw.verify_checksum());
        assert_eq!(before.as_bytes()[512..], raw.as_bytes()[512..]);
        assert!(
            raw.s_last_mounted[..60].ends_with(b"//\0"),
            "ends before the patch"
        );
    }
}
