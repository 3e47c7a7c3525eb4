//! The lock order, and in debug builds a witness that it is kept.
//!
//! A thread may wait for a lock only while all it holds come before it. The order of [`Rank`]'s
//! variants is that order; md-docs/design/inodes-and-locks.md says why it is as it is. Starting a
//! handle waits for a commit, which waits for all open handles: so an open handle has a rank of its
//! own, and whoever has one takes no lock before it.

#[cfg(debug_assertions)]
use std::cell::RefCell;
#[cfg(debug_assertions)]
use std::panic::Location;

/// Classes of locks, the outermost first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Rank {
    /// A snapshot is taken or deleted.
    Snapshot,
    /// Renames between directories.
    Rename,
    /// `io` of a directory. Several under the rename lock, and below a locked parent with patience.
    Directory,
    /// `io` of anything else. Several by number.
    File,
    /// File data is written; alone: the volume stands still for a snapshot.
    DataWrites,
    /// A file gets new blocks.
    Allocation,
    /// The snapshot store gets new blocks.
    StoreGrowth,
    /// The log: one commit at a time.
    Commit,
    /// One checkpoint at a time.
    Checkpoint,
    /// A batch of blocks is written to its places.
    Home,
    /// The journal's superblock.
    LogSuperblock,
    /// Not a lock: an open handle.
    #[cfg_attr(
        not(debug_assertions),
        expect(dead_code, reason = "release builds have no witness")
    )]
    Handle,
    /// The list of orphans.
    Orphans,
    /// The attributes of an inode.
    Xattrs,
    /// The state of an inode.
    State,
    /// A block group. Several in ascending order.
    Group,
    /// A shard of the inodes in memory.
    InodeTable,
    /// What has committed and not reached its place.
    Pending,
    /// The journal's state.
    Journal,
    /// A shard of the buffer cache.
    CacheShard,
    /// The content of a block. Who has several at a time has exclusive access to what they belong to.
    Buffer,
}

impl Rank {
    /// Whether a thread that holds the lock with key `held` may wait for the one with key `wanted`.
    #[cfg(debug_assertions)]
    fn allows_another(self, held: u32, wanted: u32, has_rename: bool) -> bool {
        match self {
            Self::Directory => held != wanted && has_rename,
            Self::File | Self::Group => held < wanted,
            Self::Buffer => true,
            _ => false,
        }
    }
}

/// How a lock is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// As long as it takes.
    Ordered,
    /// With patience that ends: among locks of its rank the order does not matter.
    Patient,
    /// Not at all.
    Unordered,
}

/// Where a lock stands. Nothing in release builds.
pub(super) struct Place {
    #[cfg(debug_assertions)]
    rank: Rank,
    #[cfg(debug_assertions)]
    key: u32,
}

impl Place {
    #[cfg_attr(
        not(debug_assertions),
        expect(unused_variables, reason = "release builds have no witness")
    )]
    pub(super) const fn new(rank: Rank, key: u32) -> Self {
        Self {
            #[cfg(debug_assertions)]
            rank,
            #[cfg(debug_assertions)]
            key,
        }
    }

    #[cfg(debug_assertions)]
    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    /// Notes that the thread takes the lock.
    #[cfg(not(debug_assertions))]
    #[inline(always)]
    pub(super) fn enter(&self, _mode: Mode) -> Held {
        Held {}
    }

    /// Notes that the thread takes the lock, in the order that `mode` asks for.
    #[cfg(debug_assertions)]
    #[track_caller]
    pub(super) fn enter(&self, mode: Mode) -> Held {
        if mode != Mode::Unordered {
            check(self.rank, self.key, mode);
        }
        Held::new(self.rank, self.key, self.address())
    }
}

/// That the thread holds something that has a rank.
pub(crate) struct Held {
    #[cfg(debug_assertions)]
    serial: u64,
    #[cfg(debug_assertions)]
    address: usize,
}

impl Held {
    /// An open handle. Who asked for it has called [`may_wait_for_handles`].
    #[track_caller]
    pub(crate) fn handle() -> Self {
        #[cfg(debug_assertions)]
        return Self::new(Rank::Handle, 0, 0);
        #[cfg(not(debug_assertions))]
        Self {}
    }
}

/// Panics in debug builds when the thread holds what others may take with a handle open.
#[track_caller]
pub(crate) fn may_wait_for_handles() {
    #[cfg(debug_assertions)]
    check(Rank::Commit, 0, Mode::Ordered);
}

#[cfg(debug_assertions)]
#[derive(Clone, Copy)]
struct Entry {
    rank: Rank,
    key: u32,
    serial: u64,
    at: &'static Location<'static>,
}

#[cfg(debug_assertions)]
thread_local! {
    static ENTRIES: RefCell<(u64, Vec<Entry>)> = const { RefCell::new((0, Vec::new())) };
}

#[cfg(debug_assertions)]
impl Held {
    #[track_caller]
    fn new(rank: Rank, key: u32, address: usize) -> Self {
        let at = Location::caller();
        let serial = ENTRIES.with_borrow_mut(|(last, entries)| {
            *last += 1;
            let serial = *last;
            entries.push(Entry {
                rank,
                key,
                serial,
                at,
            });
            serial
        });
        Self { serial, address }
    }

    pub(super) fn address(&self) -> usize {
        self.address
    }
}

#[cfg(debug_assertions)]
impl Drop for Held {
    fn drop(&mut self) {
        // Guards may outlive the thread's own variables when the thread ends in a panic.
        let _ = ENTRIES.try_with(|held| {
            let entries = &mut held.borrow_mut().1;
            if let Some(index) = entries.iter().rposition(|held| held.serial == self.serial) {
                entries.remove(index);
            }
        });
        super::schedule::wake(self.address);
        super::schedule::preempt();
    }
}

#[cfg(debug_assertions)]
#[track_caller]
fn check(rank: Rank, key: u32, mode: Mode) {
    if std::thread::panicking() {
        return;
    }
    let wrong = ENTRIES.with_borrow(|(_, entries)| {
        let has_rename = entries.iter().any(|held| held.rank == Rank::Rename);
        let is_wrong = |held: &&Entry| match held.rank.cmp(&rank) {
            std::cmp::Ordering::Less => false,
            std::cmp::Ordering::Equal if mode == Mode::Patient => held.key == key,
            std::cmp::Ordering::Equal => !rank.allows_another(held.key, key, has_rename),
            std::cmp::Ordering::Greater => true,
        };
        entries.iter().rev().find(is_wrong).copied()
    });
    if let Some(held) = wrong {
        panic!(
            "lock order: {rank:?} {key} is wanted with {:?} {} held since {}",
            held.rank, held.key, held.at
        );
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::super::{Mutex, RwLock};
    use super::*;
    use std::time::Duration;

    fn panics(act: impl FnOnce() + Send) -> bool {
        std::thread::scope(|scope| scope.spawn(act).join().is_err())
    }

    #[test]
    fn locks_are_taken_in_order() {
        let (outer, inner) = (Mutex::new(Rank::Rename, ()), Mutex::new(Rank::State, ()));
        drop((outer.lock(), inner.lock()));
        assert!(panics(|| drop((inner.lock(), outer.lock()))));
        assert!(panics(|| drop((inner.lock(), inner.lock()))));
        assert!(!panics(|| drop((inner.lock(), outer.try_lock()))));
    }

    #[test]
    fn locks_of_one_rank_are_taken_by_key() {
        let groups = [1, 2].map(|key| Mutex::keyed(Rank::Group, key, ()));
        drop((groups[0].lock(), groups[1].lock()));
        assert!(panics(|| drop((groups[1].lock(), groups[0].lock()))));
    }

    #[test]
    fn several_directories_need_the_rename_lock_or_patience() {
        let rename = Mutex::new(Rank::Rename, ());
        let [a, b] = [1, 2].map(|key| RwLock::keyed(Rank::Directory, key, ()));
        drop((rename.lock(), b.write(), a.write()));
        drop((b.write(), a.try_write_for(Duration::ZERO)));
        assert!(panics(|| drop((a.write(), b.write()))));
        assert!(panics(|| drop((a.read(), a.read()))));
    }

    #[test]
    fn a_handle_is_started_before_inner_locks() {
        let (outer, inner) = (Mutex::new(Rank::File, ()), Mutex::new(Rank::State, ()));
        let start = || {
            may_wait_for_handles();
            Held::handle()
        };
        drop((outer.lock(), start(), inner.lock()));
        assert!(panics(|| drop((start(), outer.lock()))));
        assert!(panics(|| drop((inner.lock(), start()))));
        assert!(panics(|| drop((start(), start()))));
    }
}
