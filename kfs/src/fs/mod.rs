//! `Filesystem`: the mounted volume as a whole.
//!
//! Opening reads the superblock, replays the journal, wires the layers and finishes what orphans
//! need; closing commits, checkpoints and marks the image clean. What a server calls in between is
//! in `ops`.

mod committer;
mod damage;
mod directory;
mod freeze;
mod grow;
mod mount;
mod options;
mod orphans;
mod resize_inode;
mod restore;
mod shrink;
mod shutdown;
mod snapshots;
mod status;
mod superblock;

pub use damage::ErrorsPolicy;
pub(crate) use directory::InodeBlocks;
pub use grow::GrowthProgress;
pub(crate) use mount::own_file_runs;
pub use options::MountOptions;
pub(crate) use shrink::{shortened, worthwhile};
pub use status::{RecoveryStatus, SpaceStatus, Status};
pub use superblock::read_superblock;
pub(crate) use superblock::write_superblock;

use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::file::File;
use crate::ids::InodeNr;
use crate::inode::{Inode, InodeTable, Orphans};
use crate::layout::inode::InodeFlags;
use crate::volume::Volume;
use committer::Committer;
use damage::Damage;
use freeze::Freezer;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

/// A mounted volume. Shared by all its clients.
pub struct Filesystem {
    pub(crate) volume: Arc<Volume>,
    pub(crate) inodes: InodeTable,
    pub(crate) orphans: Orphans,
    /// Held by renames between directories: while it is, the tree of directories keeps its shape.
    pub(crate) rename: crate::sync::Mutex<()>,
    committer: Mutex<Option<Committer>>,
    freezer: Freezer,
    label: Vec<u8>,
    /// Whether the image was marked clean when it was opened.
    was_clean: bool,
    recovery: RecoveryStatus,
    damage: Damage,
    errors_policy: ErrorsPolicy,
    /// Blocks of fixed metadata, now and when the volume was opened.
    overhead_blocks: AtomicU64,
    overhead_before: u64,
    /// Whether the volume has changed its size since the copies of superblock and descriptors were
    /// written.
    has_old_copies: AtomicBool,
    /// Whether the root directory has the snapshot store, which nobody is to see.
    hides_store: AtomicBool,
    /// The hidden directory, 0 where it is not known. No client is to name it.
    store_directory: AtomicU32,
    /// When the log was last told that the volume is full, in seconds since 1970.
    full_noted: AtomicI64,
    /// One snapshot is taken or deleted at a time.
    snapshot_operation: crate::sync::Mutex<()>,
}

impl Filesystem {
    /// The parts below the inodes.
    #[must_use]
    pub fn volume(&self) -> &Volume {
        &self.volume
    }

    /// The root directory.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn root(&self) -> Result<Arc<Inode>> {
        let root = self.inodes.get(&self.volume, InodeNr::ROOT)?;
        if root.is_directory() {
            Ok(root)
        } else {
            Err(Corrupt::RootNotDirectory.into())
        }
    }

    /// An inode by number and generation, as file handles name it.
    ///
    /// # Errors
    /// `Stale` when the inode is free, reserved, or lives another life; `Corrupt`, `Io`.
    pub fn inode(&self, nr: InodeNr, generation: u32) -> Result<Arc<Inode>> {
        if nr != InodeNr::ROOT && nr < self.volume.geometry.first_inode {
            return Err(Error::Stale);
        }
        let geometry = &self.volume.geometry;
        if self.volume.snapshots.store_inode() == Some(nr)
            || self.store_directory.load(Ordering::Acquire) == nr.0
        {
            return Err(Error::Stale);
        }
        if geometry.orphan_file_inode == Some(nr) || geometry.journal_inode == Some(nr) {
            return Err(Error::Stale);
        }
        let inode = self
            .inodes
            .get(&self.volume, nr)
            .map_err(|error| match error {
                Error::Corrupt(Corrupt::InodeOutside { .. }) => Error::Stale,
                other => other,
            })?;
        let is_internal = inode
            .state()
            .fields()
            .flags()
            .contains(InodeFlags::EA_INODE);
        if is_internal || (inode.generation() != generation && nr != InodeNr::ROOT) {
            return Err(Error::Stale);
        }
        Ok(inode)
    }

    /// The content of a regular file.
    #[must_use]
    pub(crate) fn file<'a>(&'a self, inode: &'a Arc<Inode>) -> File<'a> {
        File::new(&self.volume, &self.inodes, &self.orphans, inode)
    }

    /// Whether the image was marked clean when it was opened.
    pub(crate) fn was_clean(&self) -> bool {
        self.was_clean
    }

    /// Name of the volume, without trailing zeros.
    #[must_use]
    pub fn label(&self) -> &[u8] {
        &self.label
    }

    /// Runs an operation that may need space. If there is none, takes back what files keep ahead,
    /// commits so that what was freed can be used again, and tries once more.
    pub(crate) fn with_space<R>(&self, mut operation: impl FnMut() -> Result<R>) -> Result<R> {
        match operation() {
            Err(Error::NoSpace | Error::SnapshotStoreFull) => {
                self.inodes.drop_preallocations();
                self.volume.journal.commit_all()?;
                operation()
            }
            other => other,
        }
    }
}

impl Drop for Filesystem {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            log::error!("closing the volume: {error}");
        }
    }
}
