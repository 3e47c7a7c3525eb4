//! Serves the virtqueues: takes chains, lets the session answer them, gives them back used.
//!
//! A queue has one thread, which serves what is short at once. What may take long goes to a few
//! more threads (`offload.rs`), so that nobody's reads wait behind somebody's fsync. No lock of a
//! queue is held while a request is served, and none of the locks here is one that changing the
//! memory map needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use vhost_user_backend::{VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::guest_buffers::{Chain, GuestBuffers, Memory};
use super::offload::{Offload, may_take_long};
use crate::fuse::{Scratch, Session};

/// Bad chains of a connection that are logged; a hostile guest could fill the disk with more.
const MAX_WARNINGS: u32 = 10;
/// Chains that are served in one go. A guest that offers more and more, or whose rings lie upon each other, so
/// that each reply is a request, would keep the thread from ever hearing that the monitor has gone.
const CHAINS_AT_ONCE: usize = 256;
/// How long stopping a queue waits for the requests that are being served.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// What is left of a queue that was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Nothing; it will notify us again.
    All,
    /// There may be more, and nothing notifies us.
    Some,
}

/// The thread of one queue.
pub struct QueueWorker {
    memory: Memory,
    offload: Offload,
    /// Held while the queue is drained. Only this queue's thread and `wait_idle` take it.
    state: Mutex<State>,
    queue: Arc<Queue>,
}

#[derive(Default)]
struct State {
    buffers: GuestBuffers,
    scratch: Scratch,
}

/// What the threads that serve a queue share.
struct Queue {
    session: Arc<Session>,
    warnings: Arc<AtomicU32>,
    /// Which life of the queue this is. A request that was taken in an earlier one is not given
    /// back: the guest's memory may hold something else by now.
    life: AtomicU32,
    /// Requests on other threads.
    offloaded: Mutex<usize>,
    none_offloaded: Condvar,
}

impl QueueWorker {
    /// For one queue of a device; `warnings` counts the bad chains of all its queues.
    pub fn new(
        session: Arc<Session>,
        memory: Memory,
        offload: Offload,
        warnings: Arc<AtomicU32>,
    ) -> Self {
        Self {
            memory,
            offload,
            state: Mutex::default(),
            queue: Arc::new(Queue {
                session,
                warnings,
                life: AtomicU32::new(0),
                offloaded: Mutex::default(),
                none_offloaded: Condvar::new(),
            }),
        }
    }

    /// Serves what a queue holds, up to a bound.
    pub fn drain(&self, vring: &VringMutex) -> Drained {
        let mut state = self.state.lock();
        let unusable = |error| {
            self.queue
                .warn(&format!("the queue cannot be used: {error}"));
            Drained::All
        };
        let mut left = CHAINS_AT_ONCE;
        loop {
            if let Err(error) = vring.disable_notification() {
                return unusable(error);
            }
            let before = left;
            while let Some(chain) = self.pop(vring) {
                self.serve(&mut state, vring, chain);
                left -= 1;
                if left == 0 {
                    return Drained::Some;
                }
            }
            match vring.enable_notification() {
                // More came before notifications were on.
                Ok(true) if left < before => {}
                Ok(false) => return Drained::All,
                // The queue says that it holds something and gives nothing: its index lies, or it
                // was stopped.
                Ok(true) => return Drained::All,
                Err(error) => return unusable(error),
            }
        }
    }

    /// The monitor stops the queue: waits until the requests that are being served have been given
    /// back, as a guest that goes on later waits for them.
    pub fn wait_idle(&self) {
        let deadline = Instant::now() + STOP_PATIENCE;
        let mut is_idle = self.state.try_lock_until(deadline).is_some();
        let mut offloaded = self.queue.offloaded.lock();
        while is_idle && *offloaded > 0 {
            let wait = &self.queue.none_offloaded;
            is_idle = !wait.wait_until(&mut offloaded, deadline).timed_out();
        }
        if !is_idle {
            self.queue.life.fetch_add(1, Ordering::Relaxed);
            log::warn!("a queue was stopped while a request on it takes long");
        }
    }

    fn pop(&self, vring: &VringMutex) -> Option<Chain> {
        let guard = self.memory.memory();
        let descriptors = {
            let mut vring = vring.get_mut();
            let queue = vring.get_queue_mut();
            if !queue.ready() {
                return None;
            }
            queue.pop_descriptor_chain(guard.clone())?
        };
        Some(Chain { guard, descriptors })
    }

    fn serve(&self, state: &mut State, vring: &VringMutex, chain: Chain) {
        let head = chain.descriptors.head_index();
        let State { buffers, scratch } = state;
        if let Err(error) = buffers.load(chain) {
            // There is nothing to answer on; the guest sees an empty reply and fails the request.
            buffers.clear();
            self.queue.warn(&format!("bad descriptor chain: {error}"));
            let life = self.queue.life.load(Ordering::Relaxed);
            return self.queue.give_back(vring, head, 0, life);
        }
        if may_take_long(buffers.opcode()) {
            return self.serve_elsewhere(std::mem::take(buffers), vring, head, scratch);
        }
        self.queue.serve(buffers, scratch, vring, head);
    }

    fn serve_elsewhere(
        &self,
        mut buffers: GuestBuffers,
        vring: &VringMutex,
        head: u16,
        scratch: &mut Scratch,
    ) {
        let (queue, vring) = (Arc::clone(&self.queue), vring.clone());
        *queue.offloaded.lock() += 1;
        let job = Box::new(move |scratch: &mut Scratch| {
            queue.serve(&mut buffers, scratch, &vring, head);
            *queue.offloaded.lock() -= 1;
            queue.none_offloaded.notify_all();
        });
        if let Err(job) = self.offload.run(job) {
            job(scratch);
        }
    }
}

impl Queue {
    fn serve(
        &self,
        buffers: &mut GuestBuffers,
        scratch: &mut Scratch,
        vring: &VringMutex,
        head: u16,
    ) {
        let life = self.life.load(Ordering::Relaxed);
        let (source, sink) = buffers.cursors();
        let len = self.session.handle(source, sink, scratch);
        buffers.clear();
        self.give_back(vring, head, u32::try_from(len).unwrap_or(u32::MAX), life);
    }

    fn give_back(&self, vring: &VringMutex, head: u16, len: u32, life: u32) {
        if self.life.load(Ordering::Relaxed) != life {
            return;
        }
        if let Err(error) = try_give_back(vring, head, len) {
            self.warn(&format!("descriptor {head} cannot be given back: {error}"));
        }
    }

    fn warn(&self, text: &str) {
        let count = self.warnings.fetch_add(1, Ordering::Relaxed);
        if count < MAX_WARNINGS {
            log::warn!("{text}");
        } else {
            log::debug!("{text}");
        }
    }
}

fn try_give_back(vring: &VringMutex, head: u16, len: u32) -> Result<(), VringError> {
    let mut vring = vring.get_mut();
    vring.add_used(head, len)?;
    if vring.needs_notification()? {
        vring.signal_used_queue()?;
    }
    Ok(())
}

/// Why a chain could not be given back.
#[derive(Debug, thiserror::Error)]
enum VringError {
    #[error(transparent)]
    Queue(#[from] virtio_queue::Error),
    #[error("notification: {0}")]
    Notify(#[from] std::io::Error),
}
