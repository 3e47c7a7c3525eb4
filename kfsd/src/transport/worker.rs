//! Serves the virtqueues: takes chains, lets the session answer them, gives them back used.
//!
//! A queue has one thread, which serves what is short at once. What may take long (waiting for a
//! disk's flush, or for another guest's lock) goes to a few more threads, so that nobody's reads
//! wait behind somebody's fsync. No lock of a queue is held while a request is served, and none of
//! the locks here is one that changing the memory map needs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use vhost_user_backend::{VringMutex, VringT};
use virtio_queue::QueueT;
use vm_memory::GuestAddressSpace;

use super::guest_buffers::{Chain, ChainError, GuestBuffers, Memory};
use crate::fuse::{Scratch, Session};

/// Bad chains of a connection that are logged; a hostile guest could fill the disk with more.
const MAX_WARNINGS: u32 = 10;
/// How long stopping a queue waits for the request that is being served.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// The thread of one queue.
pub(crate) struct QueueWorker {
    session: Arc<Session>,
    memory: Memory,
    /// Held while a request is served. Only this queue's thread and `wait_idle` take it.
    state: Mutex<State>,
    warnings: Arc<AtomicU32>,
}

#[derive(Default)]
struct State {
    buffers: GuestBuffers,
    scratch: Scratch,
}

impl QueueWorker {
    pub(crate) fn new(session: Arc<Session>, memory: Memory, warnings: Arc<AtomicU32>) -> Self {
        Self {
            session,
            memory,
            state: Mutex::default(),
            warnings,
        }
    }

    /// Serves all that a queue holds, until it is empty and will notify us again.
    pub(crate) fn drain(&self, vring: &VringMutex) {
        let mut state = self.state.lock();
        loop {
            if let Err(error) = vring.disable_notification() {
                return self.warn(&format!("the queue cannot be used: {error}"));
            }
            let mut served = false;
            while let Some(chain) = self.pop(vring) {
                served = true;
                let head = chain.descriptors.head_index();
                let len = self.serve(&mut state, chain);
                if let Err(error) = self.give_back(vring, head, len) {
                    self.warn(&format!("descriptor {head} cannot be given back: {error}"));
                }
            }
            match vring.enable_notification() {
                // More came before notifications were on.
                Ok(true) if served => {}
                Ok(false) => return,
                // The queue says that it holds something and gives nothing: its index lies, or it
                // was stopped.
                Ok(true) => return,
                Err(error) => return self.warn(&format!("the queue cannot be used: {error}")),
            }
        }
    }

    /// Waits until the request that is being served has been given back.
    pub(crate) fn wait_idle(&self) {
        if self.state.try_lock_for(STOP_PATIENCE).is_none() {
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

    /// Serves a chain and returns how many bytes of it were written.
    fn serve(&self, state: &mut State, chain: Chain) -> u32 {
        let State { buffers, scratch } = state;
        let len = match buffers.load(chain) {
            Ok(()) => {
                let (source, sink) = buffers.cursors();
                self.session.handle(source, sink, scratch)
            }
            // There is nothing to answer on; the guest sees an empty reply and fails the request.
            Err(error) => {
                self.warn_chain(error);
                0
            }
        };
        buffers.clear();
        u32::try_from(len).unwrap_or(u32::MAX)
    }

    fn give_back(&self, vring: &VringMutex, head: u16, len: u32) -> Result<(), VringError> {
        let mut vring = vring.get_mut();
        vring.add_used(head, len)?;
        if vring.needs_notification()? {
            vring.signal_used_queue()?;
        }
        Ok(())
    }

    fn warn_chain(&self, error: ChainError) {
        self.warn(&format!("bad descriptor chain: {error}"));
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

/// Why a chain could not be given back.
#[derive(Debug, thiserror::Error)]
enum VringError {
    #[error(transparent)]
    Queue(#[from] virtio_queue::Error),
    #[error("notification: {0}")]
    Notify(#[from] std::io::Error),
}
