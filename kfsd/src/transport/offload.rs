//! Threads for requests that may take long: waiting for a disk's flush, or for another's lock.
//!
//! A queue's own thread hands them over and goes on with the next request. Threads are made when
//! they are needed and stay until the connection ends.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::Builder;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::fuse::Scratch;
use crate::fuse::abi::Opcode;

/// Most threads. Requests beyond that wait for one.
const MAX_THREADS: usize = 16;

/// Whether an operation may wait for something that takes long.
pub(crate) fn may_take_long(opcode: u32) -> bool {
    matches!(
        Opcode::from_code(opcode),
        Some(
            Opcode::Fsync
                | Opcode::Fsyncdir
                | Opcode::Syncfs
                | Opcode::Setlkw
                | Opcode::CopyFileRange
                | Opcode::Fallocate
        )
    )
}

type Job = Box<dyn FnOnce(&mut Scratch) + Send>;

/// The threads and what waits for them.
#[derive(Clone, Default)]
pub struct Offload(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    idle: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: usize,
    busy: usize,
    closed: bool,
}

impl Offload {
    /// Runs `job` on another thread. Gives it back when there is no thread for it at all.
    pub(crate) fn run(&self, job: Job) -> Result<(), Job> {
        let mut state = self.0.state.lock();
        if state.closed {
            return Err(job);
        }
        let waiting = state.jobs.len() + 1;
        if waiting > state.threads - state.busy && state.threads < MAX_THREADS {
            let shared = Arc::clone(&self.0);
            let thread = Builder::new().name("fuse-slow".into());
            match thread.spawn(move || shared.work()) {
                Ok(_) => state.threads += 1,
                Err(error) if state.threads == 0 => {
                    log::warn!("no thread for slow requests: {error}");
                    return Err(job);
                }
                // Those that there are will do it.
                Err(_) => {}
            }
        }
        state.jobs.push_back(job);
        self.0.work.notify_one();
        Ok(())
    }

    /// Takes no more jobs, and waits until all are done or `patience` is at its end. Returns
    /// whether they are. A job that is still waiting for a lock goes on alone: it holds what it
    /// needs.
    pub fn close(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut state = self.0.state.lock();
        state.closed = true;
        self.0.work.notify_all();
        while state.busy > 0 || !state.jobs.is_empty() {
            if self.0.idle.wait_until(&mut state, deadline).timed_out() {
                return false;
            }
        }
        true
    }
}

impl Shared {
    fn work(&self) {
        let mut scratch = Scratch::new();
        let mut state = self.state.lock();
        loop {
            let Some(job) = state.jobs.pop_front() else {
                if state.closed {
                    state.threads -= 1;
                    return;
                }
                self.work.wait(&mut state);
                continue;
            };
            state.busy += 1;
            drop(state);
            job(&mut scratch);
            state = self.state.lock();
            state.busy -= 1;
            self.idle.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn jobs_run_beside_each_other_and_all_of_them() {
        let offload = Offload::default();
        let (started, wait_started) = channel();
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        for number in 0..40 {
            let (started, gate) = (started.clone(), gate.clone());
            let job = Box::new(move |_: &mut Scratch| {
                started.send(number).unwrap();
                drop(gate.lock());
            });
            assert!(offload.run(job).is_ok());
        }
        for _ in 0..MAX_THREADS {
            wait_started.recv_timeout(Duration::from_secs(10)).unwrap();
        }
        assert!(!offload.close(Duration::from_millis(20)), "they wait");
        assert!(offload.run(Box::new(|_| ())).is_err(), "closed");
        drop(closed);
        assert!(offload.close(Duration::from_secs(10)));
        assert_eq!(wait_started.try_iter().count(), 40 - MAX_THREADS);
    }
}
