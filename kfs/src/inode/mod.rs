//! `Inode`: a file, directory or other object of the volume in memory.
//!
//! Its state is the bytes of the on-disk inode: fields that kfs does not know survive. Every change
//! goes through [`Inode::update`], which copies the bytes into the inode table within a handle, so
//! memory and journal never differ.
//!
//! Locks, in the order in which they are taken:
//! - `io`, an outer lock (taken before a handle is started). Files: shared by reads and writes,
//!   exclusive for what takes blocks away (truncate, punch). Directories: shared by lookups,
//!   exclusive for changes of entries.
//! - `allocation`, an outer lock: one thread at a time gives a file new blocks. It holds the blocks
//!   reserved ahead for a growing file.
//! - the state, an inner lock, never held over data I/O.

mod attr;
mod blocks;
mod create;
mod inline;
pub(crate) mod orphan;
mod table;

use crate::allocator::Reservation;
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::{InodeNr, LogicalBlock, Tid};
use crate::layout::inode::{InodeBytes, InodeFlags, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::storage::{Buffer, Handle};
use crate::sync::{Guard, Mutex, Rank, RwLock, WriteGuard};
use crate::volume::Volume;
pub use attr::{Attr, SetAttr, TimeChange};
pub(crate) use blocks::Removal;
pub(crate) use create::{NewInode, PlannedInode};
pub(crate) use orphan::{CREDITS_ORPHAN, Orphans};
use parking_lot::RwLockReadGuard;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};
use std::time::Duration;
pub(crate) use table::InodeTable;

/// Metadata blocks that a change of an inode's fields touches.
pub(crate) const CREDITS_INODE: u32 = 1;

/// An inode in memory. One object per inode number at a time.
pub struct Inode {
    nr: InodeNr,
    generation: u32,
    place: InodePlace,
    /// See the module's description.
    pub(crate) io: RwLock<()>,
    /// See the module's description.
    pub(crate) allocation: Mutex<Preallocation>,
    state: RwLock<InodeState>,
    /// Lookups and open handles of all sessions: while there are any, an inode without names stays.
    references: AtomicU64,
    is_deleted: AtomicBool,
    /// Whether there are blocks behind the end that a truncation has not freed yet. The inode is an orphan
    /// until they are, so it stays in memory.
    is_being_cut: AtomicBool,
    /// Whether it would have been deleted, had there been room in the snapshot store.
    is_deletion_due: AtomicBool,
    /// Counts the moves of data that readers do not wait for: odd while one goes on.
    moves: AtomicU64,
    /// An inner lock over the extended attributes, which lie in the inode and in a block: shared by
    /// readers, exclusive for a change of both.
    pub(crate) xattrs: RwLock<()>,
    /// Whether `security.capability` may be among them; false once it was looked for in vain.
    may_have_capabilities: AtomicBool,
}

/// Where an inode lies: a block of the inode table, kept in memory so that an update cannot fail.
struct InodePlace {
    table: Arc<Buffer>,
    offset: usize,
}

impl InodePlace {
    fn find(volume: &Volume, nr: InodeNr) -> Result<Self> {
        let (block, offset) = volume.allocator.inode_block(nr)?;
        Ok(Self {
            table: volume.cache.get(block)?,
            offset,
        })
    }

    fn bytes(&self, volume: &Volume) -> Box<[u8]> {
        let end = self.offset + volume.geometry.inode_size as usize;
        self.table.read()[self.offset..end].into()
    }
}

/// What the bytes of an inode are expected to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum InodeBytesCheck {
    /// An inode with names, or a reserved one.
    InUse,
    /// Named by the orphan list: `i_dtime` is the next orphan.
    Orphan,
}

/// Blocks reserved in memory for a file that grows.
#[derive(Default)]
pub(crate) struct Preallocation {
    /// Where in the file the next block is expected.
    pub(crate) next: LogicalBlock,
    pub(crate) reservation: Option<Reservation>,
}

/// What changes of an inode.
pub struct InodeState {
    bytes: InodeBytes<Box<[u8]>>,
    /// The last transaction that changed anything.
    sync_tid: Option<Tid>,
    /// The last transaction that changed what is needed to read the data back.
    data_sync_tid: Option<Tid>,
}

impl InodeState {
    /// The on-disk fields.
    #[must_use]
    pub fn fields(&self) -> &InodeBytes<Box<[u8]>> {
        &self.bytes
    }

    /// The on-disk fields, to be changed within [`Inode::update`].
    pub fn fields_mut(&mut self) -> &mut InodeBytes<Box<[u8]>> {
        &mut self.bytes
    }

    /// Notes that the transaction changes size or block map, so fdatasync has to wait for it.
    pub fn mark_data_changed(&mut self, handle: &Handle<'_>) {
        self.data_sync_tid = Some(handle.tid());
    }

    /// The last transaction that fsync, or fdatasync, has to wait for.
    #[must_use]
    pub fn sync_tid(&self, data_only: bool) -> Option<Tid> {
        if data_only {
            self.data_sync_tid
        } else {
            self.sync_tid
        }
    }
}

/// How long [`Inode::lock_below`] waits.
const LOCK_BELOW_MAX: Duration = Duration::from_secs(30);

impl Inode {
    /// Locks a directory whose parent the caller has locked.
    ///
    /// On a damaged volume a directory may be above *and* below another, and two callers could each
    /// wait for the other for ever. Nobody holds such a lock for long, so one of them gives up.
    ///
    /// # Errors
    /// `Busy`.
    pub(crate) fn lock_below(&self) -> Result<WriteGuard<'_, ()>> {
        self.io.try_write_for(LOCK_BELOW_MAX).ok_or_else(|| {
            log::error!(
                "inode {}: its lock is not to be had; if the device is not very slow, the directories have a loop: run e2fsck",
                self.nr
            );
            Error::Busy
        })
    }

    /// Decodes an inode from the inode table.
    fn load(
        volume: &Volume,
        nr: InodeNr,
        place: InodePlace,
        check: InodeBytesCheck,
    ) -> Result<Self> {
        let bytes = InodeBytes::new(place.bytes(volume));
        let is_free = bytes.mode() == 0 || (bytes.links_count() == 0 && bytes.dtime() != 0);
        let is_reserved = nr < volume.geometry.first_inode;
        if check == InodeBytesCheck::InUse && is_free && !is_reserved {
            return Err(Error::Stale);
        }
        if !bytes.verify_checksum(&volume.geometry, nr) {
            return Err(Corrupt::InodeChecksum { inode: nr }.into());
        }
        let mut inode = Self::new(nr, place, bytes);
        // An earlier object of this inode may have changed it in the running transaction.
        let running = Some(volume.journal.running_tid());
        let state = inode.state.get_mut();
        (state.sync_tid, state.data_sync_tid) = (running, running);
        Ok(inode)
    }

    fn new(nr: InodeNr, place: InodePlace, bytes: InodeBytes<Box<[u8]>>) -> Self {
        let io_rank = if bytes.mode() & S_IFMT == S_IFDIR {
            Rank::Directory
        } else {
            Rank::File
        };
        let generation = bytes.generation();
        let state = InodeState {
            bytes,
            sync_tid: None,
            data_sync_tid: None,
        };
        Self {
            nr,
            generation,
            place,
            io: RwLock::keyed(io_rank, nr.0, ()),
            allocation: Mutex::new(Rank::Allocation, Preallocation::default()),
            state: RwLock::new(Rank::State, state),
            references: AtomicU64::new(0),
            is_deleted: AtomicBool::new(false),
            is_being_cut: AtomicBool::new(false),
            is_deletion_due: AtomicBool::new(false),
            moves: AtomicU64::new(0),
            xattrs: RwLock::new(Rank::Xattrs, ()),
            may_have_capabilities: AtomicBool::new(true),
        }
    }

    /// The inode as its table has it.
    pub(crate) fn place_bytes(&self, volume: &Volume) -> InodeBytes<Vec<u8>> {
        InodeBytes::new(self.place.bytes(volume).into_vec())
    }

    /// The inode's number.
    #[must_use]
    pub fn nr(&self) -> InodeNr {
        self.nr
    }

    /// Distinguishes the lives of an inode number.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// The state, locked against change while the guard lives. Keep it short.
    pub fn state(&self) -> Guard<RwLockReadGuard<'_, InodeState>> {
        self.state.read()
    }

    /// Changes the state and carries the change into the transaction.
    pub fn update<R>(
        &self,
        volume: &Volume,
        handle: &mut Handle<'_>,
        change: impl FnOnce(&mut InodeState, &mut Handle<'_>) -> R,
    ) -> R {
        let mut state = self.state.write();
        let result = change(&mut state, handle);
        self.write_back(volume, handle, &mut state);
        result
    }

    /// As [`Inode::update`] with a change that can fail. If it does and has changed nothing, neither has
    /// the handle: an operation that fails like this costs no more than itself.
    ///
    /// # Errors
    /// What `change` returns.
    pub(crate) fn try_update<R>(
        &self,
        volume: &Volume,
        handle: &mut Handle<'_>,
        change: impl FnOnce(&mut InodeState, &mut Handle<'_>) -> Result<R>,
    ) -> Result<R> {
        let mut state = self.state.write();
        let result = change(&mut state, handle);
        if result.is_ok() || *state.bytes.bytes() != *self.place.bytes(volume) {
            self.write_back(volume, handle, &mut state);
        }
        result
    }

    fn write_back(&self, volume: &Volume, handle: &mut Handle<'_>, state: &mut InodeState) {
        if self.is_deleted() {
            // The place in the table may be another inode's by now.
            return;
        }
        state.bytes.update_checksum(&volume.geometry, self.nr);
        state.sync_tid = Some(handle.tid());
        let bytes = state.bytes.bytes();
        let mut block = handle.get_write_access(&self.place.table);
        block[self.place.offset..self.place.offset + bytes.len()].copy_from_slice(bytes);
    }

    /// Type and permissions.
    #[must_use]
    pub fn mode(&self) -> u16 {
        self.state.read().bytes.mode()
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.mode() & S_IFMT == S_IFDIR
    }

    /// Whether it is a regular file.
    #[must_use]
    pub fn is_regular(&self) -> bool {
        self.mode() & S_IFMT == S_IFREG
    }

    /// Whether it is a symbolic link.
    #[must_use]
    pub fn is_symlink(&self) -> bool {
        self.mode() & S_IFMT == S_IFLNK
    }

    /// Size in bytes.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.state.read().bytes.size_bytes()
    }

    /// Fails unless content and attributes may change.
    ///
    /// # Errors
    /// `NotPermitted` for immutable and append-only inodes.
    pub fn check_changeable(&self) -> Result<()> {
        let flags = self.state.read().bytes.flags();
        if flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
            return Err(Error::NotPermitted);
        }
        Ok(())
    }

    /// Whether the inode was deleted while somebody still held this object.
    #[must_use]
    pub fn is_deleted(&self) -> bool {
        self.is_deleted.load(Ordering::Acquire)
    }

    pub(crate) fn set_deleted(&self) {
        self.is_deleted.store(true, Ordering::Release);
    }

    /// Whether a truncation has left blocks behind the end of the file. Changes with `io` held exclusively.
    #[must_use]
    pub(crate) fn is_being_cut(&self) -> bool {
        self.is_being_cut.load(Ordering::Acquire)
    }

    /// To be called before a mapping is looked up whose blocks are to be read.
    pub(crate) fn moves(&self) -> u64 {
        self.moves.load(Ordering::SeqCst)
    }

    /// Whether data was being moved when, or since, [`Inode::moves`] said that: what was read from where it
    /// was then may be somebody else's.
    pub(crate) fn has_moved_since(&self, moves: u64) -> bool {
        fence(Ordering::SeqCst);
        moves % 2 == 1 || self.moves() != moves
    }

    /// Data is about to have another place, with `io` shared and `allocation` held.
    pub(crate) fn begin_move(&self) {
        self.moves.fetch_add(1, Ordering::SeqCst);
    }

    /// The data has it.
    pub(crate) fn end_move(&self) {
        self.moves.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether its deletion waits for room in the snapshot store.
    #[must_use]
    pub(crate) fn is_deletion_due(&self) -> bool {
        self.is_deletion_due.load(Ordering::Acquire)
    }

    pub(crate) fn set_deletion_due(&self) {
        self.is_deletion_due.store(true, Ordering::Release);
    }

    pub(crate) fn set_being_cut(&self, is_being_cut: bool) {
        self.is_being_cut.store(is_being_cut, Ordering::Release);
    }

    /// Whether a capability attribute has to be looked for before content or owner change.
    pub(crate) fn may_have_capabilities(&self) -> bool {
        self.may_have_capabilities.load(Ordering::Acquire)
    }

    pub(crate) fn set_may_have_capabilities(&self, may: bool) {
        self.may_have_capabilities.store(may, Ordering::Release);
    }

    /// Lookups and open handles of all sessions.
    #[must_use]
    pub fn references(&self) -> u64 {
        self.references.load(Ordering::Acquire)
    }

    pub(crate) fn add_references(&self, count: u64) {
        self.references.fetch_add(count, Ordering::AcqRel);
    }

    /// Gives `count` references back and returns how many are left.
    pub(crate) fn drop_references(&self, count: u64) -> u64 {
        let drop = |have: u64| Some(have.saturating_sub(count));
        let before = self
            .references
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, drop)
            .unwrap_or_else(|have| have);
        before.saturating_sub(count)
    }

    /// Gives up blocks reserved ahead.
    pub(crate) fn drop_preallocation(&self) {
        self.allocation.lock().reservation = None;
    }
}

impl std::fmt::Debug for Inode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Inode({})", self.nr)
    }
}
