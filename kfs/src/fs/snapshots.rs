//! Snapshots as the volume's clients see them: taken, listed, deleted, looked into. And the store's
//! file, which nobody sees.
//!
//! The store is `/.kfs/snapshots`, there while there are snapshots. The superblock's feature is set
//! before it is made and cleared after it is gone: what a crash leaves in between is put away by the
//! next open.

use super::mount::data_runs;
use super::{Filesystem, MountOptions};
use crate::corrupt::Corrupt;
use crate::dir::FileName;
use crate::error::{Error, Result};
use crate::ids::InodeNr;
use crate::inode::Inode;
use crate::layout::inode::{S_IFDIR, S_IFREG};
use crate::layout::superblock::{STATE_VALID, SUPERBLOCK_OFFSET};
use crate::layout::{Compat, Incompat, RawSuperblock, RoCompat};
use crate::ops::NewNode;
use crate::snapshot::{SnapshotDevice, SnapshotRecord, SnapshotUsage};
use crate::tools::{Watch, unwatched};
use crate::volume::superblock_offset;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zerocopy::FromBytes;

/// The hidden directory in the root.
const DIRECTORY: &[u8] = b".kfs";
/// The store in it.
const STORE: &[u8] = b"snapshots";
/// Metadata blocks to keep in memory for one who looks into a snapshot, in bytes.
const VIEW_CACHE_BYTES: u64 = 32 << 20;

/// The hidden directory, and the store in it unless it is still to be made or gone already.
type StoreInodes = (Arc<Inode>, Option<Arc<Inode>>);

impl Filesystem {
    /// Takes a snapshot: instantly, whatever the size of the volume. What has not been written to the
    /// volume (the page cache of a guest) is not in it.
    ///
    /// # Errors
    /// `Exists`; `Invalid` and `NameTooLong` for what cannot be a name; `SnapshotStoreFull`;
    /// `ReadOnly`, `Io`.
    pub fn create_snapshot(&self, name: &str, comment: &str) -> Result<SnapshotRecord> {
        let _one = self.snapshot_operation.lock();
        if let Some(reason) = self.volume.read_only() {
            return Err(Error::ReadOnly { reason });
        }
        let snapshots = &self.volume.snapshots;
        snapshots.check_sound()?;
        snapshots.check_new(name, comment)?;
        if snapshots.store_inode().is_none() {
            self.make_store()?;
        }
        self.volume.grow_store(0)?;
        // What has to be written is written while others still work.
        self.volume.journal.commit_all()?;
        self.volume.journal.checkpoint()?;
        let _still = self.volume.stop_data_writes();
        self.volume.journal.quiesce(|| {
            let (block, content) = self.superblock_for_snapshot()?;
            let now = self.volume.now();
            snapshots.create(name, comment, now, (block, &content))
        })
    }

    /// Deletes a snapshot, and gives back what only it kept.
    ///
    /// # Errors
    /// `NotFound`; `Busy` while somebody looks into it; `ReadOnly`, `Corrupt`, `Io`.
    pub fn delete_snapshot(&self, name: &str) -> Result<SnapshotRecord> {
        self.delete_snapshot_watched(name, &mut unwatched)
    }

    /// As [`Filesystem::delete_snapshot`], and tells how far it is. It goes on to its end, whatever `watch` says.
    ///
    /// # Errors
    /// The same.
    pub fn delete_snapshot_watched(
        &self,
        name: &str,
        watch: &mut Watch<'_>,
    ) -> Result<SnapshotRecord> {
        let _change = self.begin_change();
        if let Some(reason) = self.volume.read_only() {
            return Err(Error::ReadOnly { reason });
        }
        let deleted = self.delete_one(name, watch)?;
        self.finish_waiting_orphans();
        Ok(deleted)
    }

    fn delete_one(&self, name: &str, watch: &mut Watch<'_>) -> Result<SnapshotRecord> {
        let _one = self.snapshot_operation.lock();
        let snapshots = &self.volume.snapshots;
        let _loaded = self.volume.allocator.keep_loaded();
        // Who writes now may have looked at a group that has been forgotten since.
        drop(self.volume.stop_data_writes());
        let deleted = snapshots.delete(name).inspect_err(|error| {
            if matches!(error, Error::Io { .. } | Error::Device { .. }) {
                self.volume.journal.abort(error);
            }
        })?;
        while snapshots.settle_some(deleted.id) {}
        self.review_kept(watch)?;
        if snapshots.list().is_empty() {
            self.volume.journal.quiesce(|| {
                snapshots.deactivate();
                Ok(())
            })?;
            // What was freed in between may have been pinned.
            self.review_kept(&mut unwatched)?;
            self.remove_store()?;
        }
        Ok(deleted)
    }

    /// Gives back what no snapshot keeps any more. What is kept stays so while data is being written: who
    /// writes has looked at it before, and has chosen by it where to.
    fn review_kept(&self, watch: &mut Watch<'_>) -> Result<()> {
        let groups = self.volume.allocator.groups_with_kept();
        for (done, group) in groups.iter().enumerate() {
            let _ = watch(done as u64, groups.len() as u64);
            let _stopped = self.volume.stop_data_writes();
            // One that is damaged gives nothing back.
            pass_by_damage(self.volume.allocator.review_kept(*group))?;
        }
        Ok(())
    }

    /// All snapshots, oldest first.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotRecord> {
        self.volume.snapshots.list()
    }

    /// What each snapshot holds, in the order of [`Filesystem::snapshots`].
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn snapshot_usage(&self) -> Result<Vec<SnapshotUsage>> {
        self.volume.snapshots.usage(&self.volume.allocator)
    }

    /// Bytes of the file with old metadata, and bytes of content in it that some snapshot needs.
    #[must_use]
    pub fn snapshot_store_bytes(&self) -> (u64, u64) {
        self.volume.snapshots.store_bytes()
    }

    /// The volume as a snapshot sees it, to be read like any other. While it is open the snapshot cannot
    /// be deleted.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub fn open_snapshot(&self, name: &str) -> Result<Arc<Self>> {
        let device = SnapshotDevice::open(&self.volume.snapshots, name)?;
        let options = MountOptions {
            read_only: true,
            is_snapshot: true,
            commit_interval: None,
            cache_bytes: VIEW_CACHE_BYTES,
            ..MountOptions::default()
        };
        Self::open(Arc::new(device), options)
    }

    /// The volume is full: if snapshots have a part in that, says which, once in a while.
    pub(super) fn note_full(&self) {
        const INTERVAL_SECONDS: i64 = 60;
        if self.volume.allocator.pinned_blocks() == 0 {
            return;
        }
        let now = self.volume.now().seconds;
        let last = self.full_noted.swap(now, Ordering::AcqRel);
        if now - last < INTERVAL_SECONDS && last != 0 {
            self.full_noted.store(last, Ordering::Release);
            return;
        }
        let Ok(usage) = self.snapshot_usage() else {
            return;
        };
        let snapshots = self.snapshots();
        let most = snapshots.iter().zip(&usage);
        let most = most.max_by_key(|(_, usage)| usage.unique_bytes);
        if let Some((snapshot, usage)) = most {
            log::warn!(
                "the volume is full, and its snapshots keep {} MiB: deleting '{}' frees the most, {} MiB",
                (self.volume.allocator.pinned_blocks() * self.volume.block_size()) >> 20,
                snapshot.name,
                usage.unique_bytes >> 20
            );
        }
    }

    /// The block of the superblock, as a snapshot is to see it: of a volume that was closed.
    fn superblock_for_snapshot(&self) -> Result<(crate::ids::BlockNr, Vec<u8>)> {
        let geometry = &self.volume.geometry;
        let block = crate::ids::BlockNr(SUPERBLOCK_OFFSET / u64::from(geometry.block_size));
        let mut content = self.volume.cache.get(block)?.freeze().to_vec();
        let bytes = &mut content[superblock_offset(geometry)..];
        let (raw, _) = RawSuperblock::mut_from_prefix(bytes).expect("a block holds a superblock");
        let counts = self.volume.allocator.free_counts();
        raw.set_free_blocks_count(counts.blocks);
        raw.s_free_inodes_count.set(counts.inodes);
        let incompat = raw.incompat() - Incompat::RECOVER;
        raw.s_feature_incompat.set(incompat.bits());
        raw.s_snapshot_inum.set(0);
        let ro_compat = raw.ro_compat() - RoCompat::HAS_SNAPSHOT;
        raw.s_feature_ro_compat.set(ro_compat.bits());
        if !raw.compat().contains(Compat::HAS_JOURNAL) && self.was_clean {
            raw.s_state.set(raw.s_state.get() | STATE_VALID);
        }
        raw.seal();
        Ok((block, content))
    }

    /// Finds the snapshots of a volume that is being opened. Returns whether there is a store without any,
    /// to be put away when orphans are known: a file that is deleted is one of them.
    pub(super) fn open_snapshots(&self, options: &MountOptions, was_closed: bool) -> Result<bool> {
        let superblock = self.volume.superblock();
        let has_feature = superblock.ro_compat().contains(RoCompat::HAS_SNAPSHOT);
        if !options.is_snapshot && !has_feature {
            return Ok(false);
        }
        if options.is_snapshot {
            let found = self.find_store()?;
            self.hides_store.store(found.is_some(), Ordering::Release);
            return Ok(false);
        }
        self.hides_store.store(true, Ordering::Release);
        let has_any = match superblock.s_snapshot_inum.get() {
            0 => false,
            nr => self.attach_store(InodeNr(nr), was_closed)?,
        };
        Ok(!has_any)
    }

    /// Reads the store, and what of each group is kept.
    fn attach_store(&self, nr: InodeNr, was_closed: bool) -> Result<bool> {
        let volume = &self.volume;
        let store = self.inodes.get(volume, nr)?;
        if !store.is_regular() {
            let what = "it is not a file";
            return Err(Corrupt::SnapshotStore { what }.into());
        }
        let runs = data_runs(
            &volume.cache,
            &volume.geometry,
            store.nr(),
            &store.place_bytes(volume),
        )?;
        if !volume.snapshots.attach(store.nr(), &runs, was_closed)? {
            return Ok(false);
        }
        // In the middle of a restore the bitmaps are neither the old nor the new ones.
        if volume.read_only().is_none() && volume.snapshots.restoring().is_none() {
            let bitmaps = volume.allocator.block_bitmaps();
            for group in volume.snapshots.groups_with_pins(&bitmaps) {
                // A damaged group is out of use: nothing that is kept in it is handed out.
                pass_by_damage(volume.allocator.load_kept(group))?;
            }
        }
        if volume.snapshots.restoring().is_none()
            && let Ok(Some((directory, _))) = self.find_store()
        {
            self.store_directory
                .store(directory.nr().0, Ordering::Release);
        }
        Ok(true)
    }

    fn find_store(&self) -> Result<Option<StoreInodes>> {
        let root = self.root()?;
        let find = |directory: &Inode, name: &[u8]| -> Result<Option<Arc<Inode>>> {
            let _io = directory.io.read();
            self.find(directory, FileName::new(name)?)
        };
        let Some(directory) = find(&root, DIRECTORY)? else {
            return Ok(None);
        };
        if !directory.is_directory() {
            return Err(Corrupt::SnapshotStore {
                what: "/.kfs is not a directory",
            }
            .into());
        }
        let store = find(&directory, STORE)?;
        if store.as_ref().is_some_and(|store| !store.is_regular()) {
            return Err(Corrupt::SnapshotStore {
                what: "/.kfs/snapshots is not a file",
            }
            .into());
        }
        Ok(Some((directory, store)))
    }

    fn make_store(&self) -> Result<()> {
        if self.find_store()?.is_some() {
            return Err(Error::StorePlaceTaken);
        }
        self.hides_store.store(true, Ordering::Release);
        self.make_store_file().inspect_err(|_| {
            // What is left, if anything, is put away by the next open.
            if let Err(error) = self.remove_store() {
                log::warn!("putting the unfinished snapshot store away: {error}");
            }
        })
    }

    fn make_store_file(&self) -> Result<()> {
        self.set_snapshot_feature(true)?;
        let root = self.root()?;
        let node = |mode| NewNode {
            mode,
            ..NewNode::default()
        };
        let directory =
            self.create_entry(&root, FileName::new(DIRECTORY)?, &node(S_IFDIR | 0o700))?;
        let store = self.create_entry(&directory, FileName::new(STORE)?, &node(S_IFREG | 0o600))?;
        let nr = store.nr();
        // From here on its inode is changed by the store alone.
        drop(store);
        self.store_directory
            .store(directory.nr().0, Ordering::Release);
        self.volume.transact(1, |handle| {
            self.volume
                .update_superblock(handle, |raw| raw.s_snapshot_inum.set(nr.0));
            Ok(())
        })?;
        self.volume
            .snapshots
            .make_store(&self.volume.growth_parts(), nr)
    }

    pub(super) fn remove_store(&self) -> Result<()> {
        self.volume.snapshots.drop_store();
        if let Some((directory, store)) = self.find_store()? {
            if store.is_some() {
                drop(store);
                self.unlink_entry(&directory, FileName::new(STORE)?)?;
            }
            drop(directory);
            self.rmdir_entry(&*self.root()?, FileName::new(DIRECTORY)?)?;
        }
        self.set_snapshot_feature(false)?;
        self.store_directory.store(0, Ordering::Release);
        self.hides_store.store(false, Ordering::Release);
        Ok(())
    }

    fn set_snapshot_feature(&self, is_set: bool) -> Result<()> {
        self.volume.transact(1, |handle| {
            self.volume.update_superblock(handle, |raw| {
                let mut features = raw.ro_compat();
                features.set(RoCompat::HAS_SNAPSHOT, is_set);
                raw.s_snapshot_inum.set(0);
                raw.s_feature_ro_compat.set(features.bits());
            });
            Ok(())
        })?;
        self.volume.journal.commit_all()
    }

    /// Whether a name is one that nobody is to see.
    pub(crate) fn is_hidden(&self, directory: &Inode, name: &[u8]) -> bool {
        name == DIRECTORY && directory.nr() == InodeNr::ROOT && self.hides_store()
    }

    /// Whether the root directory has the store.
    pub(crate) fn hides_store(&self) -> bool {
        self.hides_store.load(Ordering::Acquire)
    }

    /// A name to be found.
    pub(crate) fn visible_name<'n>(
        &self,
        directory: &Inode,
        name: &'n [u8],
    ) -> Result<FileName<'n>> {
        if self.is_hidden(directory, name) {
            return Err(Error::NotFound);
        }
        FileName::new(name)
    }

    /// A name to be made.
    pub(crate) fn new_name<'n>(&self, directory: &Inode, name: &'n [u8]) -> Result<FileName<'n>> {
        if self.is_hidden(directory, name) {
            return Err(Error::NotPermitted);
        }
        FileName::new(name)
    }
}

/// What a damaged group cannot do is no reason not to do it with others.
fn pass_by_damage(done: Result<()>) -> Result<()> {
    match done {
        Err(Error::Corrupt(_)) => Ok(()),
        done => done,
    }
}
