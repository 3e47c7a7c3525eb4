//! The superblock on the device: read and written past the journal, when a volume is opened, closed, frozen, or found
//! damaged. What changes in between goes through the journal ([`crate::volume::Volume::update_superblock`]).

use super::MountOptions;
use crate::corrupt::Corrupt;
use crate::error::{Error, IoOp, Result};
use crate::ids::{BlockNr, GroupNr};
use crate::layout::superblock::{STATE_ERROR, STATE_VALID, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE};
use crate::layout::{Compat, Geometry, Incompat, RawSuperblock};
use crate::volume::Volume;
use kfs_disk::BlockDevice;
use zerocopy::{FromBytes, IntoBytes};

/// Reads the superblock and checks that it is one.
///
/// # Errors
/// `Corrupt::SuperblockMagic` for other content, `Corrupt::SuperblockChecksum`, `Io`.
pub fn read_superblock(device: &dyn BlockDevice) -> Result<RawSuperblock> {
    let mut bytes = [0; SUPERBLOCK_SIZE];
    if device.size_bytes() < SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64 {
        return Err(Corrupt::TooSmall {
            bytes: device.size_bytes(),
        }
        .into());
    }
    device
        .read_at(SUPERBLOCK_OFFSET, &mut bytes)
        .map_err(|source| Error::Io {
            op: IoOp::Read,
            block: BlockNr(0),
            source,
        })?;
    let raw = RawSuperblock::read_from_bytes(&bytes).expect("as many bytes as it has");
    let magic = raw.s_magic.get();
    if magic != crate::layout::superblock::EXT4_MAGIC {
        return Err(Corrupt::SuperblockMagic { found: magic }.into());
    }
    if !raw.verify_checksum() {
        let (found, expected) = (raw.s_checksum.get(), raw.checksum());
        return Err(Corrupt::SuperblockChecksum { found, expected }.into());
    }
    Ok(raw)
}

/// Notes in the superblock that the image is in use: recovery is needed from here on.
pub(super) fn mark_in_use(
    device: &dyn BlockDevice,
    superblock: &mut RawSuperblock,
    options: &MountOptions,
) -> Result<()> {
    let now = options.clock.now();
    superblock.set_mount_time(now.seconds);
    superblock.set_write_time(now.seconds);
    superblock
        .s_mnt_count
        .set(superblock.s_mnt_count.get().saturating_add(1));
    if superblock.compat().contains(Compat::HAS_JOURNAL) {
        let incompat = superblock.incompat() | Incompat::RECOVER;
        superblock.s_feature_incompat.set(incompat.bits());
    } else {
        // Without a journal only e2fsck can tell what an interrupted change has left.
        let state = superblock.s_state.get() & !STATE_VALID;
        superblock.s_state.set(state);
    }
    write_superblock(device, superblock)
}

/// The log was replayed, and nobody will close the volume: its superblock becomes that of a closed
/// one, with the counts that the replayed descriptors have.
pub(super) fn end_recovery(volume: &Volume) -> Result<()> {
    let device = &**volume.device();
    let mut superblock = read_superblock(device)?;
    let incompat = superblock.incompat() - Incompat::RECOVER;
    superblock.s_feature_incompat.set(incompat.bits());
    let counts = volume.allocator.free_counts();
    superblock.set_free_blocks_count(counts.blocks);
    superblock.s_free_inodes_count.set(counts.inodes);
    write_superblock(device, &mut superblock)
}

/// Notes that errors were found.
pub(super) fn mark_error(device: &dyn BlockDevice) -> Result<()> {
    let mut superblock = read_superblock(device)?;
    let state = superblock.s_state.get() | STATE_ERROR;
    superblock.s_state.set(state);
    write_superblock(device, &mut superblock)
}

/// Writes the superblock past the journal, in one piece, and makes it durable.
pub(crate) fn write_superblock(
    device: &dyn BlockDevice,
    superblock: &mut RawSuperblock,
) -> Result<()> {
    superblock.seal();
    write_part(device, superblock, 0)
}

/// Writes the second sector of the superblock, in which the checksum is, and makes it durable.
pub(crate) fn write_second_sector(
    device: &dyn BlockDevice,
    superblock: &RawSuperblock,
) -> Result<()> {
    write_part(device, superblock, SUPERBLOCK_SIZE / 2)
}

fn write_part(device: &dyn BlockDevice, superblock: &RawSuperblock, from: usize) -> Result<()> {
    device
        .write_at(
            SUPERBLOCK_OFFSET + from as u64,
            &superblock.as_bytes()[from..],
        )
        .map_err(|source| Error::Io {
            op: IoOp::Write,
            block: BlockNr(0),
            source,
        })?;
    device.flush().map_err(|source| Error::Device {
        op: IoOp::Flush,
        source,
    })
}

/// Blocks that statfs(2) does not count: of bitmaps, inode tables, superblocks, descriptors and the journal, if who
/// made the file system has noted them; else without the journal's.
pub(super) fn overhead_blocks(superblock: &RawSuperblock, geometry: &Geometry) -> u64 {
    let clusters = u64::from(superblock.s_overhead_clusters.get());
    let noted = clusters * u64::from(geometry.cluster_blocks);
    if noted != 0 && noted < geometry.blocks_count() {
        return noted;
    }
    let groups = u64::from(geometry.groups_count());
    let tables = groups * (2 + u64::from(geometry.inode_table_blocks));
    let base = |group| u64::from(geometry.base_metadata_blocks(GroupNr(group)));
    let bases: u64 = (0..geometry.groups_count()).map(base).sum();
    tables + bases + u64::from(geometry.first_data_block)
}
