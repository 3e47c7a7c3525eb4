//! An image that nobody serves: its superblock says what there is to know.

use anyhow::Context;
use kfs::layout::superblock::{RawSuperblock, SUPERBLOCK_OFFSET, SUPERBLOCK_SIZE};
use kfs::layout::{Incompat, features};
use kfs::{Access, Geometry};
use kfs_disk::{BlockDevice, FileDevice, Holder, OpenError};
use kfsctl::Status;
use kfsctl::client;
use kfsctl::status::{Features, Inodes, Journal, Source, Space, VolumeState, VolumeStatus};
use std::path::{Path, PathBuf};
use zerocopy::FromBytes;

/// Bits of `s_state`.
const STATE_VALID: u16 = 1;
const STATE_ERRORS: u16 = 2;
/// `s_jnl_backup_type` that says that `s_jnl_blocks` ends with the size of the journal.
const JOURNAL_BACKUP_BLOCKS: u8 = 1;

/// What is known of an image.
pub(crate) enum ImageStatus {
    /// Nobody writes it; this is what is on disk.
    Idle(Box<Status>),
    /// A kfsd serves it, and answers here.
    ServedBy(PathBuf),
}

/// Looks at the image at `path`.
pub(crate) fn status(path: &Path) -> anyhow::Result<ImageStatus> {
    let device = match FileDevice::open_read_only(path) {
        Ok(device) => device,
        Err(error) => {
            if let OpenError::InUse {
                holder: Holder::Process { pid, .. },
                ..
            } = &error
                && let Some(socket) = socket_of(*pid)
            {
                return Ok(ImageStatus::ServedBy(socket));
            }
            return Err(error.into());
        }
    };
    let volume = read(&device, path).with_context(|| path.display().to_string())?;
    let status = Status {
        volume,
        ..Status::default()
    };
    Ok(ImageStatus::Idle(Box::new(status)))
}

/// The control socket of the kfsd with this process id, if it has one in the usual place.
pub(crate) fn socket_of(pid: u32) -> Option<PathBuf> {
    let name = client::socket_name(pid);
    client::socket_dirs()
        .into_iter()
        .map(|dir| dir.join(&name))
        .find(|path| path.exists())
}

fn read(device: &dyn BlockDevice, path: &Path) -> anyhow::Result<VolumeStatus> {
    anyhow::ensure!(
        device.size_bytes() >= SUPERBLOCK_OFFSET + SUPERBLOCK_SIZE as u64,
        "too small to be a file system"
    );
    let mut bytes = [0; SUPERBLOCK_SIZE];
    device.read_at(SUPERBLOCK_OFFSET, &mut bytes)?;
    let superblock = RawSuperblock::ref_from_bytes(&bytes)
        .map_err(|_| anyhow::anyhow!("the superblock cannot be read"))?;
    // Checks every number that is used below.
    let geometry = Geometry::try_from(superblock)?;
    let is_writable = features::check(superblock)? == Access::Write;
    let total = superblock.blocks_count();
    let overhead = u64::from(superblock.s_overhead_clusters.get())
        .saturating_mul(geometry.cluster_blocks.into());
    let free = superblock.free_blocks_count().min(total);
    Ok(VolumeStatus {
        source: Source::Image {
            path: path.to_owned(),
        },
        read_only: !is_writable,
        read_only_reason: (!is_writable).then(|| {
            let names = features::read_only_names(superblock).join(", ");
            format!("kfs can only read volumes with {names}")
        }),
        state: Some(state(superblock)),
        errors_found: Some(superblock.s_error_count.get().into()),
        label: Some(text(&superblock.s_volume_name)),
        uuid: Some(uuid::Uuid::from_bytes(superblock.s_uuid).to_string()),
        space: Some(Space {
            block_size_bytes: u64::from(geometry.block_size),
            total_blocks: total.saturating_sub(overhead),
            free_blocks: free,
            available_blocks: free.saturating_sub(superblock.reserved_blocks_count()),
        }),
        inodes: Some(Inodes {
            total: superblock.s_inodes_count.get().into(),
            free: superblock.s_free_inodes_count.get().into(),
        }),
        features: Some(feature_names(superblock)),
        journal: journal(superblock),
        ..VolumeStatus::default()
    })
}

fn state(superblock: &RawSuperblock) -> VolumeState {
    let bits = superblock.s_state.get();
    if bits & STATE_ERRORS != 0 {
        VolumeState::HasErrors
    } else if superblock.incompat().contains(Incompat::RECOVER) {
        VolumeState::NeedsRecovery
    } else if bits & STATE_VALID == 0 {
        VolumeState::NotClean
    } else {
        VolumeState::Clean
    }
}

/// The journal as far as the superblock knows it: its size, and whether it is empty.
fn journal(superblock: &RawSuperblock) -> Option<Journal> {
    if superblock.s_journal_inum.get() == 0 {
        return None;
    }
    let [.., size_high, size_low] = superblock.s_jnl_blocks;
    let is_known = superblock.s_jnl_backup_type == JOURNAL_BACKUP_BLOCKS;
    let size = u64::from(size_high.get()) << 32 | u64::from(size_low.get());
    Some(Journal {
        size_bytes: if is_known { size } else { 0 },
        needs_recovery: superblock.incompat().contains(Incompat::RECOVER),
        ..Journal::default()
    })
}

/// The names of each of the three sets.
fn feature_names(superblock: &RawSuperblock) -> Features {
    let only = |keep: fn(&mut RawSuperblock, &RawSuperblock)| {
        let mut bare = superblock.clone();
        bare.s_feature_compat = 0.into();
        bare.s_feature_incompat = 0.into();
        bare.s_feature_ro_compat = 0.into();
        keep(&mut bare, superblock);
        features::names(&bare)
    };
    Features {
        compat: only(|bare, all| bare.s_feature_compat = all.s_feature_compat),
        incompat: only(|bare, all| bare.s_feature_incompat = all.s_feature_incompat),
        ro_compat: only(|bare, all| bare.s_feature_ro_compat = all.s_feature_ro_compat),
    }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}
