//! The virtio-fs device: a vhost-user back end for QEMU and other monitors.
//!
//! One socket serves one guest at a time, with one session. When the monitor goes, the session
//! ends and the socket waits for the next one.
#![allow(unsafe_code, reason = "closes descriptors that a library leaks")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use thiserror::Error;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost_user_backend::{ShutdownHandle, VhostUserBackend, VhostUserDaemon, VringMutex};
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::event::{
    EventConsumer, EventFlag, EventNotifier, new_event_consumer_and_notifier,
};

use super::guest_buffers::Memory;
use super::offload::Offload;
use super::socket::Socket;
use super::worker::{Drained, QueueWorker};
use crate::fuse::{FileSystem, Session};

/// Most entries of a queue.
const MAX_QUEUE_SIZE: usize = 1024;
/// Most bytes of a tag.
pub const MAX_TAG: usize = 36;
/// Most request queues: with the hiprio queue as many as `queues_per_thread` has bits.
pub const MAX_REQUEST_QUEUES: u16 = 63;

/// How long the end of a connection waits for requests that take long.
const END_PATIENCE: Duration = Duration::from_secs(5);

/// What the device says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceOptions {
    /// The name that the guest mounts, for monitors that ask the device for it. Without one the
    /// device has no configuration space: QEMU's vhost-user-fs has a tag of its own, and warns of
    /// a second one.
    pub tag: Option<String>,
    /// Request queues that the device offers; a monitor may use fewer.
    pub request_queues: u16,
    /// Whether [`VhostUserServer::run`] returns when the monitor goes.
    pub once: bool,
}

/// Why a device cannot be served.
#[derive(Debug, Error)]
pub enum DeviceError {
    /// The tag does not fit.
    #[error("tag '{0}': 1 to {MAX_TAG} bytes are needed")]
    Tag(String),
    /// No such number of queues.
    #[error("{0} request queues: 1 to {MAX_REQUEST_QUEUES} are possible")]
    Queues(u16),
    /// The socket or an event cannot be used.
    #[error("vhost-user: {0}")]
    Io(#[from] io::Error),
    /// The talk with the monitor failed.
    #[error("vhost-user: {0}")]
    Protocol(String),
}

/// `struct virtio_fs_config`: the tag, padded with NULs, the number of request queues and the size
/// of notification buffers.
type ConfigSpace = [u8; MAX_TAG + 8];

fn config_space(options: &DeviceOptions) -> Option<ConfigSpace> {
    let tag = options.tag.as_ref()?;
    let mut config = [0; MAX_TAG + 8];
    config[..tag.len()].copy_from_slice(tag.as_bytes());
    let queues = u32::from(options.request_queues).to_le_bytes();
    config[MAX_TAG..MAX_TAG + 4].copy_from_slice(&queues);
    Some(config)
}

/// The device of one connection.
struct Device {
    config: Option<ConfigSpace>,
    session: Arc<Session>,
    workers: Vec<QueueWorker>,
    offload: Offload,
    exits: Vec<(EventConsumer, EventNotifier)>,
    /// For each queue: it holds more than was served in one go.
    more: Vec<(EventConsumer, EventNotifier)>,
    /// Descriptors that the library takes and does not close, see `close_leaked`.
    leaked: Mutex<Vec<RawFd>>,
}

impl Device {
    fn new(options: &DeviceOptions, session: Arc<Session>, memory: &Memory) -> io::Result<Self> {
        let queues = usize::from(options.request_queues) + 1;
        let warnings = Arc::new(AtomicU32::new(0));
        let offload = Offload::default();
        let worker = |_| {
            let (memory, offload) = (memory.clone(), offload.clone());
            QueueWorker::new(session.clone(), memory, offload, warnings.clone())
        };
        let flags = EventFlag::NONBLOCK | EventFlag::CLOEXEC;
        let events = || (0..queues).map(|_| new_event_consumer_and_notifier(flags));
        Ok(Self {
            config: config_space(options),
            workers: (0..queues).map(worker).collect(),
            exits: events().collect::<io::Result<_>>()?,
            more: events().collect::<io::Result<_>>()?,
            leaked: Mutex::default(),
            offload,
            session,
        })
    }

    /// The number that the library gives the events of `more`: those below are its own.
    fn more_event(&self) -> u16 {
        self.workers.len() as u16 + 1
    }

    /// Has the threads of the queues listen for what we tell ourselves.
    fn listen_for_more(&self, daemon: &VhostUserDaemon<DeviceRef>) -> io::Result<()> {
        for (handler, (consumer, _)) in daemon.get_epoll_handlers().iter().zip(&self.more) {
            let event = self.more_event().into();
            handler.register_listener(consumer.as_raw_fd(), EventSet::IN, event)?;
        }
        Ok(())
    }

    /// Serves a queue. What is left waits until the thread has looked whether it is to end.
    fn drain(&self, event: u16, queue: usize, vring: &VringMutex) -> io::Result<()> {
        let (Some(worker), Some((consumer, notifier))) =
            (self.workers.get(queue), self.more.get(queue))
        else {
            return Ok(());
        };
        if event == self.more_event() {
            consumer.consume()?;
        }
        match worker.drain(vring) {
            Drained::All => Ok(()),
            Drained::Some => notifier.notify(),
        }
    }

    /// Closes the exit events that the library turned into bare descriptors. To be called when its
    /// threads have ended.
    fn close_leaked(&self) {
        for fd in self.leaked.lock().drain(..) {
            // SAFETY: the descriptor came from `into_raw_fd` in the library, whose threads are
            // gone, and nobody else knows it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
}

/// The device as the library wants it: cheap to clone, all state behind it.
#[derive(Clone)]
struct DeviceRef(Arc<Device>);

impl VhostUserBackend for DeviceRef {
    type Bitmap = ();
    type Vring = VringMutex;

    fn num_queues(&self) -> usize {
        self.0.workers.len()
    }

    fn max_queue_size(&self) -> usize {
        MAX_QUEUE_SIZE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_F_VERSION_1
            | 1 << VIRTIO_RING_F_INDIRECT_DESC
            | 1 << VIRTIO_RING_F_EVENT_IDX
            | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
    }

    fn protocol_features(&self) -> VhostUserProtocolFeatures {
        let mut features = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        features.set(VhostUserProtocolFeatures::CONFIG, self.0.config.is_some());
        features
    }

    fn set_event_idx(&self, _: bool) {
        // Each queue knows for itself.
    }

    fn reset_device(&self) {
        self.0.session.end();
    }

    fn get_config(&self, offset: u32, size: u32) -> Vec<u8> {
        let range = offset as usize..(offset as usize).saturating_add(size as usize);
        let config = self.0.config.as_ref().and_then(|config| config.get(range));
        config.unwrap_or_default().to_vec()
    }

    fn update_memory(&self, _: Memory) -> io::Result<()> {
        // The workers hold the map that the library has just changed.
        Ok(())
    }

    fn queues_per_thread(&self) -> Vec<u64> {
        (0..self.num_queues()).map(|queue| 1 << queue).collect()
    }

    fn exit_event(&self, thread_index: usize) -> Option<(EventConsumer, EventNotifier)> {
        let (consumer, notifier) = self.0.exits.get(thread_index)?;
        let event = (consumer.try_clone().ok()?, notifier.try_clone().ok()?);
        self.0.leaked.lock().push(event.0.as_raw_fd());
        Some(event)
    }

    fn stop_vring(&self, queue_index: u32) -> io::Result<()> {
        if let Some(worker) = self.0.workers.get(queue_index as usize) {
            worker.wait_idle();
        }
        Ok(())
    }

    fn handle_event(
        &self,
        event: u16,
        _events: EventSet,
        vrings: &[VringMutex],
        thread_id: usize,
    ) -> io::Result<()> {
        // Each thread has one queue. An error here would end the thread for good.
        if let Some(vring) = vrings.first()
            && let Err(error) = self.0.drain(event, thread_id, vring)
        {
            log::error!("queue {thread_id}: an event cannot be used: {error}");
        }
        Ok(())
    }
}

/// Serves a socket.
pub struct VhostUserServer {
    socket: Socket,
    session: Arc<Session>,
    options: DeviceOptions,
    stop: Arc<Stop>,
}

/// Ends a server from another thread.
#[derive(Clone)]
pub struct VhostUserStopper(Arc<Stop>);

struct Stop {
    event: OwnedFd,
    state: Mutex<StopState>,
}

#[derive(Default)]
struct StopState {
    stopped: bool,
    connection: Option<ShutdownHandle>,
}

impl VhostUserStopper {
    /// Makes [`VhostUserServer::run`] hang up and return.
    pub fn stop(&self) {
        let mut state = self.0.state.lock();
        state.stopped = true;
        if let Some(connection) = &state.connection {
            connection.shutdown();
        }
        // It cannot fail but for an overflow, and then it is readable anyway.
        let _ = rustix::io::write(&self.0.event, &1u64.to_ne_bytes());
    }
}

impl VhostUserServer {
    /// A server for a file system on a socket that listens.
    pub fn new(
        file_system: Arc<dyn FileSystem>,
        socket: Socket,
        options: DeviceOptions,
    ) -> Result<Self, DeviceError> {
        let fits = |tag: &String| !tag.is_empty() && tag.len() <= MAX_TAG && !tag.contains('\0');
        if let Some(tag) = options.tag.as_ref().filter(|tag| !fits(tag)) {
            return Err(DeviceError::Tag(tag.clone()));
        }
        if !(1..=MAX_REQUEST_QUEUES).contains(&options.request_queues) {
            return Err(DeviceError::Queues(options.request_queues));
        }
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK);
        Ok(Self {
            socket,
            session: Arc::new(Session::new(file_system)),
            options,
            stop: Arc::new(Stop {
                event: event.map_err(io::Error::from)?,
                state: Mutex::default(),
            }),
        })
    }

    /// The session, for its numbers.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// For a thread that ends the server.
    pub fn stopper(&self) -> VhostUserStopper {
        VhostUserStopper(self.stop.clone())
    }

    /// Serves one monitor after the other, until it is stopped (or, with `once`, until the first
    /// one goes). A monitor that talks nonsense loses its connection, and that is all.
    pub fn run(&self) -> Result<(), DeviceError> {
        while self.wait_for_connection()? {
            match self.serve_connection() {
                Ok(()) => log::info!("{}: the monitor has gone", self.socket),
                Err(DeviceError::Protocol(error)) if !self.options.once => {
                    log::error!("{}: {error}", self.socket);
                }
                Err(error) => return Err(error),
            }
            if self.options.once {
                break;
            }
        }
        Ok(())
    }

    /// Waits for a monitor. False when the server was stopped.
    fn wait_for_connection(&self) -> io::Result<bool> {
        loop {
            let mut fds = [
                PollFd::new(&self.stop.event, PollFlags::IN),
                PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) if !fds[0].revents().is_empty() => return Ok(false),
                Ok(_) if !fds[1].revents().is_empty() => return Ok(true),
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn serve_connection(&self) -> Result<(), DeviceError> {
        let protocol = |error: vhost_user_backend::Error| DeviceError::Protocol(error.to_string());
        let memory = Memory::new(GuestMemoryMmap::new());
        let device = Arc::new(Device::new(&self.options, self.session.clone(), &memory)?);
        let device_ref = DeviceRef(device.clone());
        let mut daemon =
            VhostUserDaemon::new("vhost-user".into(), device_ref, memory).map_err(protocol)?;
        device.listen_for_more(&daemon)?;
        let started = self.socket.listener().map_err(DeviceError::Io);
        let result = started.and_then(|mut listener| {
            daemon.start(&mut listener).map_err(protocol)?;
            log::info!("{}: a monitor has connected", self.socket);
            self.begin(daemon.shutdown_handle());
            daemon.wait().or_else(hang_up).map_err(protocol)
        });
        self.stop.state.lock().connection = None;
        // Waits for the queues' threads.
        drop(daemon);
        device.close_leaked();
        if !device.offload.close(END_PATIENCE) {
            log::warn!("{}: a request of the last monitor takes long", self.socket);
        }
        self.session.end();
        result
    }

    fn begin(&self, connection: Option<ShutdownHandle>) {
        let mut state = self.stop.state.lock();
        if let Some(connection) = &connection
            && state.stopped
        {
            connection.shutdown();
        }
        state.connection = connection;
    }
}

/// A monitor that goes, even in the middle of a message, is no error.
fn hang_up(error: vhost_user_backend::Error) -> Result<(), vhost_user_backend::Error> {
    use vhost::vhost_user::Error as Protocol;
    use vhost_user_backend::Error;
    match error {
        Error::HandleRequest(
            Protocol::Disconnected | Protocol::PartialMessage | Protocol::SocketBroken(_),
        ) => Ok(()),
        error => Err(error),
    }
}

#[cfg(test)]
#[path = "vhost_user_tests.rs"]
mod tests;
