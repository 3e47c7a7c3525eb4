//! Locks that know their place in the lock order, and can be scheduled by a test.
//!
//! They are `parking_lot`'s. In debug builds each has a [`Rank`], and a thread that takes one out of
//! order panics, whether or not another thread made that a deadlock this time. In debug builds, too,
//! threads of a [`schedule`] run one at a time, and every lock is a point where another may go on: a
//! seed decides, so that a run can be repeated. In release builds nothing of this is left.
//!
//! Locks that are held for a few lines without taking another need no rank.

mod order;
#[cfg(debug_assertions)]
pub mod schedule;

pub(crate) use order::{Held, Rank, may_wait_for_handles};
use order::{Mode, Place};
use std::ops::{Deref, DerefMut};
use std::time::Duration;

/// A lock that is held. Gives it back when dropped.
pub struct Guard<G> {
    // Dropped first: others are told of a lock that is free.
    inner: G,
    _held: Held,
}

impl<G: Deref> Deref for Guard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.inner
    }
}

impl<G: DerefMut> DerefMut for Guard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.inner
    }
}

pub(crate) type MutexGuard<'a, T> = Guard<parking_lot::MutexGuard<'a, T>>;
pub(crate) type ReadGuard<'a, T> = Guard<parking_lot::RwLockReadGuard<'a, T>>;
pub(crate) type WriteGuard<'a, T> = Guard<parking_lot::RwLockWriteGuard<'a, T>>;
pub(crate) type MappedReadGuard<'a, T> = Guard<parking_lot::MappedRwLockReadGuard<'a, T>>;

/// A lock for one at a time.
pub(crate) struct Mutex<T> {
    inner: parking_lot::Mutex<T>,
    place: Place,
}

impl<T> Mutex<T> {
    pub(crate) const fn new(rank: Rank, value: T) -> Self {
        Self::keyed(rank, 0, value)
    }

    /// One of several that a thread may hold at a time, in the order of their keys.
    pub(crate) const fn keyed(rank: Rank, key: u32, value: T) -> Self {
        Self {
            inner: parking_lot::Mutex::new(value),
            place: Place::new(rank, key),
        }
    }

    #[track_caller]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        let held = self.place.enter(Mode::Ordered);
        let inner = acquire(&self.place, || self.inner.try_lock(), || self.inner.lock());
        Guard { inner, _held: held }
    }

    /// Never waits, so it may come out of order.
    #[track_caller]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        preempt();
        let inner = self.inner.try_lock()?;
        let held = self.place.enter(Mode::Unordered);
        Some(Guard { inner, _held: held })
    }
}

/// A lock for one writer or many readers.
pub(crate) struct RwLock<T> {
    inner: parking_lot::RwLock<T>,
    place: Place,
}

impl<T> RwLock<T> {
    pub(crate) const fn new(rank: Rank, value: T) -> Self {
        Self::keyed(rank, 0, value)
    }

    /// One of several that a thread may hold at a time, in the order of their keys.
    pub(crate) const fn keyed(rank: Rank, key: u32, value: T) -> Self {
        Self {
            inner: parking_lot::RwLock::new(value),
            place: Place::new(rank, key),
        }
    }

    /// The value, where nobody else can have the lock.
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut()
    }

    #[track_caller]
    pub(crate) fn read(&self) -> ReadGuard<'_, T> {
        let held = self.place.enter(Mode::Ordered);
        let inner = acquire(&self.place, || self.inner.try_read(), || self.inner.read());
        Guard { inner, _held: held }
    }

    #[track_caller]
    pub(crate) fn write(&self) -> WriteGuard<'_, T> {
        let held = self.place.enter(Mode::Ordered);
        let inner = acquire(
            &self.place,
            || self.inner.try_write(),
            || self.inner.write(),
        );
        Guard { inner, _held: held }
    }

    /// Gives up after `patience`, so it may come out of order among locks of its rank.
    #[track_caller]
    pub(crate) fn try_write_for(&self, patience: Duration) -> Option<WriteGuard<'_, T>> {
        let held = self.place.enter(Mode::Patient);
        let lock = || self.inner.try_write_for(patience);
        let inner = acquire(&self.place, || self.inner.try_write().map(Some), lock)?;
        Some(Guard { inner, _held: held })
    }
}

impl<'a, T> ReadGuard<'a, T> {
    /// Narrows what is seen of the value.
    pub(crate) fn map<U: ?Sized>(self, part: impl FnOnce(&T) -> &U) -> MappedReadGuard<'a, U> {
        Guard {
            inner: parking_lot::RwLockReadGuard::map(self.inner, part),
            _held: self._held,
        }
    }
}

/// Where threads wait for a change of what a [`Mutex`] holds.
pub(crate) struct Condvar(parking_lot::Condvar);

impl Condvar {
    pub(crate) const fn new() -> Self {
        Self(parking_lot::Condvar::new())
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        #[cfg(debug_assertions)]
        if schedule::is_scheduled() {
            let mutex = guard._held.address();
            let lock = parking_lot::MutexGuard::mutex(&guard.inner);
            parking_lot::MutexGuard::unlocked(&mut guard.inner, || {
                schedule::wake(mutex);
                schedule::block(self.address());
                while lock.is_locked() {
                    schedule::block(mutex);
                }
            });
            return;
        }
        self.0.wait(&mut guard.inner);
    }

    pub(crate) fn notify_all(&self) {
        #[cfg(debug_assertions)]
        schedule::wake(self.address());
        self.0.notify_all();
    }

    #[cfg(debug_assertions)]
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

/// A point where another thread of the schedule may go on.
fn preempt() {
    #[cfg(debug_assertions)]
    schedule::preempt();
}

/// Takes a lock by `lock`, which may wait; in a schedule by `try_lock`, so that the schedule knows who
/// waits for what.
#[cfg_attr(not(debug_assertions), inline(always))]
fn acquire<G>(place: &Place, try_lock: impl Fn() -> Option<G>, lock: impl FnOnce() -> G) -> G {
    #[cfg(debug_assertions)]
    if schedule::is_scheduled() {
        schedule::preempt();
        while schedule::is_scheduled() {
            if let Some(guard) = try_lock() {
                return guard;
            }
            schedule::block(place.address());
        }
    }
    let _ = (place, try_lock);
    lock()
}
