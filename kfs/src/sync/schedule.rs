//! A deterministic scheduler for tests: threads that run one at a time, and take turns as a seed says.
//!
//! Threads given to [`run`] may be preempted at every lock and wherever [`preempt`] is called; who goes
//! on is drawn from the seed, so that a seed replays an interleaving exactly. A thread that has to wait
//! for a lock or a condition is not chosen until that changes; when all wait, that is a deadlock, and
//! all panic. Debug builds only.
//!
//! Even seeds switch at random; odd ones give the threads priorities and lower that of the running one
//! at a few random points ("A Randomized Scheduler with Probabilistic Guarantees of Finding Bugs",
//! ASPLOS 2010), which finds what needs few but far switches.
//!
//! Locks that the scheduler does not know must not be held at a point where it may switch.

use std::cell::RefCell;
use std::panic::resume_unwind;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Points after which a run counts as one that never ends.
const POINTS_MAX: u64 = 5_000_000;
/// Among how many points those are drawn where priorities change.
const CHANGES_WITHIN: u64 = 4000;
/// How many such points there are.
const CHANGES: usize = 4;
/// A thread is preempted at random at one of so many points.
const SWITCH_ONE_OF: u64 = 4;

/// What a thread does in a schedule.
pub type Task<'a> = Box<dyn FnOnce() + Send + 'a>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Ready,
    /// Waits for the lock or condition at this address.
    Blocked(usize),
    Done,
}

struct State {
    standings: Vec<Standing>,
    running: usize,
    random: u64,
    /// Empty in runs that switch at random; else the highest runs.
    priorities: Vec<u64>,
    /// Points at which the running thread falls behind all others.
    changes: Vec<u64>,
    points: u64,
    failure: Option<String>,
}

struct Schedule {
    state: Mutex<State>,
    /// One for each thread: it is its turn, or all is lost.
    turns: Vec<Condvar>,
}

thread_local! {
    static CURRENT: RefCell<Option<(Arc<Schedule>, usize)>> = const { RefCell::new(None) };
}

/// Runs the tasks, each as a thread, interleaved as the seed says. Returns at how many points another
/// might have gone on.
///
/// # Panics
/// When a task does, when all wait for each other, or when they never end.
pub fn run(seed: u64, tasks: Vec<Task<'_>>) -> u64 {
    let schedule = Arc::new(Schedule {
        turns: tasks.iter().map(|_| Condvar::new()).collect(),
        state: Mutex::new(State::new(seed, tasks.len())),
    });
    let panics: Vec<_> = std::thread::scope(|scope| {
        let start = |(index, task): (usize, _)| {
            let schedule = Arc::clone(&schedule);
            scope.spawn(move || schedule.take_part(index, task))
        };
        let threads: Vec<_> = tasks.into_iter().enumerate().map(start).collect();
        threads
            .into_iter()
            .filter_map(|thread| thread.join().err())
            .collect()
    });
    let state = schedule.lock();
    if let Some(failure) = &state.failure {
        panic!("{failure}");
    }
    if let Some(panic) = panics.into_iter().next() {
        drop(state);
        resume_unwind(panic);
    }
    state.points
}

/// Whether this thread belongs to a schedule that goes on.
#[must_use]
pub fn is_scheduled() -> bool {
    current().is_some_and(|(schedule, _)| schedule.lock().failure.is_none())
}

/// Another thread of the schedule may go on here.
pub fn preempt() {
    if let Some((schedule, me)) = current()
        && !std::thread::panicking()
    {
        let state = schedule.lock();
        schedule.switch(state, me);
    }
}

/// The thread waits until the lock or condition at `address` is released.
pub(super) fn block(address: usize) {
    if let Some((schedule, me)) = current() {
        let mut state = schedule.lock();
        state.standings[me] = Standing::Blocked(address);
        schedule.switch(state, me);
    }
}

/// Whoever waits for `address` may look again.
pub(super) fn wake(address: usize) {
    if let Some((schedule, _)) = current() {
        for standing in &mut schedule.lock().standings {
            if *standing == Standing::Blocked(address) {
                *standing = Standing::Ready;
            }
        }
    }
}

fn current() -> Option<(Arc<Schedule>, usize)> {
    // None, too, in a thread that is ending.
    CURRENT.try_with(|current| current.borrow().clone()).ok()?
}

impl Schedule {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_part(self: Arc<Self>, me: usize, task: Task<'_>) {
        CURRENT.set(Some((Arc::clone(&self), me)));
        // Gives the turn on, however the task ends.
        let _end = End(&self, me);
        self.wait_for_turn(self.lock(), me);
        task();
    }

    /// Chooses who goes on, and returns when it is `me`.
    fn switch(&self, mut state: MutexGuard<'_, State>, me: usize) {
        if state.failure.is_some() {
            return;
        }
        state.choose();
        if state.failure.is_some() {
            for turn in &self.turns {
                turn.notify_all();
            }
        } else {
            self.turns[state.running].notify_all();
        }
        if state.running != me || state.failure.is_some() {
            self.wait_for_turn(state, me);
        }
    }

    fn wait_for_turn(&self, mut state: MutexGuard<'_, State>, me: usize) {
        while state.running != me && state.failure.is_none() {
            state = self.turns[me]
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.failure.is_some() && !std::thread::panicking() {
            drop(state);
            // Not by panic!, whose message and backtrace each thread would print.
            resume_unwind(Box::new("the schedule has failed"));
        }
    }
}

/// The end of a thread.
struct End<'a>(&'a Schedule, usize);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let Self(schedule, me) = *self;
        CURRENT.set(None);
        let mut state = schedule.lock();
        state.standings[me] = Standing::Done;
        if state.standings.iter().all(|one| *one == Standing::Done) || state.failure.is_some() {
            return;
        }
        state.choose();
        for turn in &schedule.turns {
            turn.notify_all();
        }
    }
}

impl State {
    fn new(seed: u64, threads: usize) -> Self {
        let mut state = Self {
            standings: vec![Standing::Ready; threads],
            running: 0,
            random: seed.wrapping_mul(2).wrapping_add(1),
            priorities: Vec::new(),
            changes: Vec::new(),
            points: 0,
            failure: None,
        };
        if seed % 2 == 1 {
            state.priorities = (0..threads).map(|_| state.draw() | 1 << 32).collect();
            state.changes = (0..CHANGES)
                .map(|_| state.draw() % CHANGES_WITHIN)
                .collect();
        }
        state.running = (state.draw() % threads.max(1) as u64) as usize;
        state
    }

    /// SplitMix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn choose(&mut self) {
        self.points += 1;
        let ready: Vec<usize> = (0..self.standings.len())
            .filter(|index| self.standings[*index] == Standing::Ready)
            .collect();
        if ready.is_empty() {
            self.failure = Some("deadlock: every thread waits for another".into());
        } else if self.points > POINTS_MAX {
            self.failure = Some("the threads never end".into());
        } else if self.priorities.is_empty() {
            let draw = self.draw();
            let may_stay = ready.contains(&self.running) && !draw.is_multiple_of(SWITCH_ONE_OF);
            if !may_stay {
                self.running = ready[(draw >> 8) as usize % ready.len()];
            }
        } else {
            let points = self.points;
            if let Some(index) = self.changes.iter().position(|change| *change == points) {
                self.priorities[self.running] = index as u64;
            }
            let highest = ready.into_iter().max_by_key(|one| self.priorities[*one]);
            self.running = highest.unwrap_or(self.running);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Condvar, Mutex, Rank, RwLock};
    use super::*;
    use std::panic::catch_unwind;
    use std::time::Duration;

    /// Two threads that add without holding the lock in between.
    fn race(seed: u64) -> u32 {
        let sum = Mutex::new(Rank::State, 0);
        let add = || {
            let seen = *sum.lock();
            *sum.lock() = seen + 1;
        };
        run(seed, vec![Box::new(add), Box::new(add)]);
        *sum.lock()
    }

    #[test]
    fn a_seed_repeats_its_interleaving_and_seeds_differ() {
        let sums: Vec<u32> = (0..100).map(race).collect();
        assert!(sums.contains(&1) && sums.contains(&2), "{sums:?}");
        assert_eq!(sums, (0..100).map(race).collect::<Vec<_>>());
    }

    /// Two threads that take two locks, each the other's first; patience ends only without a schedule.
    fn cross(seed: u64) {
        let [a, b] = [1, 2].map(|key| RwLock::keyed(Rank::Directory, key, ()));
        let both = |first: &RwLock<()>, second: &RwLock<()>| {
            let _first = first.write();
            drop(second.try_write_for(Duration::ZERO));
        };
        run(
            seed,
            vec![Box::new(|| both(&a, &b)), Box::new(|| both(&b, &a))],
        );
    }

    #[test]
    fn a_deadlock_is_seen() {
        let count = (0..100)
            .filter(|seed| catch_unwind(|| cross(*seed)).is_err())
            .count();
        assert!(0 < count && count < 100, "{count} of 100");
    }

    #[test]
    fn waiting_for_a_condition() {
        for seed in 0..100 {
            let (is_done, changed) = (Mutex::new(Rank::Journal, false), Condvar::new());
            let wait = || {
                let mut guard = is_done.lock();
                while !*guard {
                    changed.wait(&mut guard);
                }
            };
            let signal = || {
                *is_done.lock() = true;
                changed.notify_all();
            };
            run(seed, vec![Box::new(wait), Box::new(signal), Box::new(wait)]);
        }
    }

    #[test]
    fn a_panic_of_a_thread_is_that_of_the_run() {
        for seed in 0..10 {
            let lock = Mutex::new(Rank::State, ());
            let tasks: Vec<Task<'_>> = vec![
                Box::new(|| drop(lock.lock())),
                Box::new(|| resume_unwind(Box::new("ends"))),
            ];
            assert!(catch_unwind(std::panic::AssertUnwindSafe(|| run(seed, tasks))).is_err());
        }
    }
}
