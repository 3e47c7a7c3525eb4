//! Is a concurrent history linearisable? The search of Wing and Gong, with the memory of Lowe.
//!
//! Of the calls not placed yet, one that began before any of them ended may come next, if the model
//! answers it as the system did. What was tried in vain, the calls placed and the state reached, is
//! remembered.

use std::collections::HashSet;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a system does when it is called by one at a time.
pub trait Model {
    /// All that later answers depend on.
    type State: Clone + Eq + Hash;
    /// A call with its answer.
    type Call;

    /// The state after the call, the history's `index`-th; `None` if the answer would be another one.
    fn step(&self, state: &Self::State, index: usize, call: &Self::Call) -> Option<Self::State>;
}

/// A call that began and ended at these ticks of a [`Clock`].
#[derive(Clone, Debug)]
pub struct Timed<C> {
    /// Before the system was called.
    pub began: u64,
    /// After it had answered.
    pub ended: u64,
    /// The call and its answer.
    pub call: C,
}

/// Orders the beginnings and ends of calls.
#[derive(Default)]
pub struct Clock(AtomicU64);

impl Clock {
    /// A tick later than all before.
    pub fn tick(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst)
    }

    /// Runs a call and notes when.
    pub fn time<C>(&self, call: impl FnOnce() -> C) -> Timed<C> {
        let began = self.tick();
        let call = call();
        Timed {
            began,
            ended: self.tick(),
            call,
        }
    }
}

/// An order of the calls in which the model answers like the system.
///
/// # Errors
/// The longest order found when there is none for all.
///
/// # Panics
/// For histories of more than 128 calls.
pub fn linearise<M: Model>(
    model: &M,
    start: M::State,
    history: &[Timed<M::Call>],
) -> Result<Vec<usize>, Vec<usize>> {
    assert!(history.len() <= 128, "histories are small");
    let mut search = Search {
        model,
        history,
        tried: HashSet::new(),
        order: Vec::new(),
        longest: Vec::new(),
    };
    if search.place_rest(0, start) {
        Ok(search.order)
    } else {
        Err(search.longest)
    }
}

struct Search<'h, M: Model> {
    model: &'h M,
    history: &'h [Timed<M::Call>],
    tried: HashSet<(u128, M::State)>,
    order: Vec<usize>,
    longest: Vec<usize>,
}

impl<M: Model> Search<'_, M> {
    fn place_rest(&mut self, placed: u128, state: M::State) -> bool {
        if self.order.len() > self.longest.len() {
            self.longest.clone_from(&self.order);
        }
        let left = (0..self.history.len()).filter(|index| placed & 1 << index == 0);
        let Some(first_end) = left.clone().map(|index| self.history[index].ended).min() else {
            return true;
        };
        for index in left {
            let timed = &self.history[index];
            if timed.began > first_end {
                continue;
            }
            let Some(next) = self.model.step(&state, index, &timed.call) else {
                continue;
            };
            let now_placed = placed | 1 << index;
            if !self.tried.insert((now_placed, next.clone())) {
                continue;
            }
            self.order.push(index);
            if self.place_rest(now_placed, next) {
                return true;
            }
            self.order.pop();
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register that starts with 0.
    struct Register;

    #[derive(Clone, Debug)]
    enum Call {
        Write(u32),
        Read(u32),
    }

    impl Model for Register {
        type State = u32;
        type Call = Call;

        fn step(&self, state: &u32, _: usize, call: &Call) -> Option<u32> {
            match *call {
                Call::Write(value) => Some(value),
                Call::Read(value) => (value == *state).then_some(value),
            }
        }
    }

    fn order(calls: &[(u64, u64, Call)]) -> Result<Vec<usize>, Vec<usize>> {
        let timed = |(began, ended, call): &(u64, u64, Call)| Timed {
            began: *began,
            ended: *ended,
            call: call.clone(),
        };
        let history: Vec<_> = calls.iter().map(timed).collect();
        linearise(&Register, 0, &history)
    }

    #[test]
    fn calls_that_overlap_may_come_in_any_order() {
        let history = [
            (0, 5, Call::Write(1)),
            (1, 2, Call::Read(0)),
            (3, 4, Call::Read(1)),
        ];
        assert_eq!(order(&history), Ok(vec![1, 0, 2]));
    }

    #[test]
    fn time_is_respected() {
        let late = [(0, 1, Call::Write(1)), (2, 3, Call::Read(0))];
        assert_eq!(order(&late), Err(vec![0]));
        let early = [(0, 1, Call::Read(1)), (2, 3, Call::Write(1))];
        assert_eq!(order(&early), Err(vec![]));
    }

    #[test]
    fn what_was_seen_stays_seen() {
        let history = [
            (0, 9, Call::Write(1)),
            (1, 2, Call::Read(1)),
            (3, 4, Call::Read(0)),
        ];
        assert!(order(&history).is_err());
        let unwritten = [(0, 9, Call::Write(1)), (1, 2, Call::Read(2))];
        assert!(order(&unwritten).is_err());
    }
}
