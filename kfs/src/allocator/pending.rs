//! `PendingFrees`: blocks freed by transactions that have not committed.
//!
//! On disk they are free with the transaction; handed out they may be only once it is durable, or a
//! crash that undoes the free would leave the old file with the new file's data.

use super::groups::GroupTable;
use crate::ids::{Run, Tid};
use crate::storage::CommitObserver;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Freed runs by transaction, oldest first.
#[derive(Default)]
pub(super) struct PendingFrees {
    transactions: Mutex<VecDeque<(Tid, Vec<Run>)>>,
    blocks: AtomicU64,
}

impl PendingFrees {
    /// Notes a run freed in the running transaction `tid`.
    pub(super) fn push(&self, tid: Tid, run: Run) {
        self.blocks.fetch_add(run.len.into(), Relaxed);
        let mut transactions = self.transactions.lock();
        if transactions.back().is_none_or(|(last, _)| *last != tid) {
            transactions.push_back((tid, Vec::new()));
        }
        let (_, runs) = transactions
            .back_mut()
            .expect("just made if there was none");
        if let Some(last) = runs.last_mut()
            && last.end() == run.start
            && let Some(len) = last.len.checked_add(run.len)
        {
            last.len = len;
        } else {
            runs.push(run);
        }
    }

    /// Takes out what transactions up to `tid` have freed.
    fn take(&self, tid: Tid) -> Vec<Run> {
        let mut taken = Vec::new();
        let mut transactions = self.transactions.lock();
        while let Some((_, runs)) = transactions.pop_front_if(|(first, _)| !first.is_after(tid)) {
            taken.extend(runs);
        }
        taken
    }

    /// Blocks that wait for a commit.
    pub(super) fn blocks(&self) -> u64 {
        self.blocks.load(Relaxed)
    }
}

impl CommitObserver for GroupTable {
    fn committed(&self, tid: Tid) {
        for run in self.pending.take(tid) {
            for (nr, range) in self.parts(run) {
                let mut state = self.lock(nr);
                self.free_or_pin(nr, &mut state, range);
            }
            self.pending.blocks.fetch_sub(run.len.into(), Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::BlockNr;

    #[test]
    fn only_what_is_durable_is_taken() {
        let pending = PendingFrees::default();
        let run = |start, len| Run {
            start: BlockNr(start),
            len,
        };
        pending.push(Tid(u32::MAX), run(10, 2));
        pending.push(Tid(u32::MAX), run(12, 3));
        pending.push(Tid(u32::MAX), run(20, 1));
        pending.push(Tid(0), run(21, 4));
        assert_eq!(pending.blocks(), 10);
        assert_eq!(pending.take(Tid(u32::MAX - 1)), []);
        assert_eq!(pending.take(Tid(u32::MAX)), [run(10, 5), run(20, 1)]);
        assert_eq!(pending.take(Tid(0)), [run(21, 4)]);
    }
}
