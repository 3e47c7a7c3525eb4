//! The control server: answers kfsctl on a Unix socket.
//!
//! Whatever a client sends, it gets an answer or is sent away, and nobody else notices: lines are
//! bounded and must arrive in time, clients are counted, each has a thread of its own. The socket
//! is for the user of the daemon only.

use crate::socket_file::SocketFile;
use kfsctl::line::{LineError, LineStream, Patience};
use kfsctl::progress::{Progress, Watch};
use kfsctl::protocol::{
    Envelope, ErrorCode, Hello, Outcome, PROTOCOL_NAME, PROTOCOL_VERSION, Reply, Request,
    RequestError,
};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde_json::Value;
use std::io;
use std::ops::ControlFlow;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Clients at a time.
const MAX_CLIENTS: usize = 16;
/// How long a client may be silent, and how long a line may take.
const PATIENCE: Patience = Patience {
    first_byte: Duration::from_secs(300),
    rest: Duration::from_secs(10),
};
/// How long sending an answer may take.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a client hears how far its request is.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(100);
/// How long the end of the daemon waits for requests that can be given up.
const END_PATIENCE: Duration = Duration::from_secs(3);
/// How often the handler is told that time goes by.
const TICK: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};

/// What the server asks to do the work.
pub trait Handler: Send + Sync {
    /// Carries a request out, and tells how far it is.
    fn handle(&self, request: Request, watch: &mut Watch<'_>) -> Result<Value, RequestError>;

    /// Called about every second.
    fn tick(&self) {}
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
#[error("cannot make the control socket {}{}", .path.display(), in_use(.source))]
pub struct ControlError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

fn in_use(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::AddrInUse => " (another process listens there)",
        io::ErrorKind::AlreadyExists => " (something else is there)",
        _ => "",
    }
}

/// A socket that nobody answers yet. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct ControlListener {
    listener: UnixListener,
    file: SocketFile,
}

impl ControlListener {
    /// Listens in the directory of this user.
    pub fn in_default_place() -> Result<Self, ControlError> {
        let directory = kfsctl::client::default_socket_dir();
        let path = directory.join(kfsctl::client::socket_name(std::process::id()));
        let made = std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory);
        match made {
            Ok(()) => Self::new(&path),
            Err(source) => Err(ControlError { path, source }),
        }
    }

    /// Listens at `path`. A socket that was left behind there is replaced.
    pub fn new(path: &Path) -> Result<Self, ControlError> {
        Self::bind(path).map_err(|source| ControlError {
            path: path.to_owned(),
            source,
        })
    }

    fn bind(path: &Path) -> io::Result<Self> {
        let (listener, file) = SocketFile::listen(path)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
        listener.set_nonblocking(true)?;
        Ok(Self { listener, file })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// Begins to answer.
    pub fn serve(self, handler: Arc<dyn Handler>) -> io::Result<ControlServer> {
        let (stop, stopped) = UnixStream::pair()?;
        let server = Server {
            handler,
            clients: Arc::new(AtomicUsize::new(0)),
            watched: Arc::new(AtomicUsize::new(0)),
            is_ending: Arc::new(AtomicBool::new(false)),
        };
        let (watched, is_ending) = (server.watched.clone(), server.is_ending.clone());
        let thread = std::thread::Builder::new()
            .name("control".into())
            .spawn(move || server.accept_until(&self, &stopped))?;
        Ok(ControlServer {
            stop: Some(stop),
            thread: Some(thread),
            watched,
            is_ending,
        })
    }
}

/// The running server; it ends when this is dropped. Clients in the middle of a request do not
/// hold that up, but for those who watch it: their requests are given up, and put away what is half done.
#[derive(Debug)]
pub struct ControlServer {
    stop: Option<UnixStream>,
    thread: Option<JoinHandle<()>>,
    watched: Arc<AtomicUsize>,
    is_ending: Arc<AtomicBool>,
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            log::error!("the control server has failed");
        }
        self.is_ending.store(true, Ordering::Release);
        let end = Instant::now() + END_PATIENCE;
        while self.watched.load(Ordering::Acquire) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

#[derive(Clone)]
struct Server {
    handler: Arc<dyn Handler>,
    clients: Arc<AtomicUsize>,
    /// Requests whose clients hear how far they are.
    watched: Arc<AtomicUsize>,
    is_ending: Arc<AtomicBool>,
}

/// Tells a client how far its request is, and notices when it hangs up.
struct Teller<'l> {
    lines: &'l mut LineStream,
    id: Value,
    next: Instant,
    is_gone: bool,
    is_ending: &'l AtomicBool,
}

impl Teller<'_> {
    fn tell(&mut self, progress: &Progress) -> ControlFlow<()> {
        let now = Instant::now();
        if !self.is_gone && now >= self.next {
            self.next = now + PROGRESS_INTERVAL;
            self.is_gone = self.look_and_send(progress).is_err();
        }
        match self.is_gone || self.is_ending.load(Ordering::Acquire) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    /// Never waits: a client that does not read misses some.
    fn look_and_send(&mut self, progress: &Progress) -> io::Result<()> {
        let interest = PollFlags::OUT | PollFlags::RDHUP;
        let mut fds = [PollFd::new(self.lines.stream(), interest)];
        rustix::event::poll(&mut fds, Some(&Timespec::default()))?;
        let events = fds[0].revents();
        if events.intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR) {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        if !events.contains(PollFlags::OUT) {
            return Ok(());
        }
        let reply = Reply {
            id: self.id.clone(),
            outcome: Outcome::Progress(progress.clone()),
        };
        send(self.lines, &reply)
    }
}

/// Counts a client for as long as it lives.
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Server {
    fn accept_until(&self, listener: &ControlListener, stopped: &UnixStream) {
        loop {
            let mut fds = [
                PollFd::new(&listener.listener, PollFlags::IN),
                PollFd::new(stopped, PollFlags::IN),
            ];
            match rustix::event::poll(&mut fds, Some(&TICK)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(errno) => {
                    log::error!("the control server ends: waiting failed: {errno}");
                    return;
                }
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            let is_ready = !fds[0].revents().is_empty();
            self.handler.tick();
            if !is_ready {
                continue;
            }
            match listener.listener.accept() {
                Ok((stream, _)) => self.take_in(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    log::warn!("a control client was lost: {error}");
                    // No descriptor is free: trying again at once would not free one.
                    std::thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }

    fn take_in(&self, stream: UnixStream) {
        let place = Place(Arc::clone(&self.clients));
        let is_full = place.0.fetch_add(1, Ordering::AcqRel) >= MAX_CLIENTS;
        let lines = stream
            .set_nonblocking(false)
            .and_then(|()| LineStream::new(stream, WRITE_TIMEOUT));
        let mut lines = match lines {
            Ok(lines) => lines,
            Err(error) => {
                log::debug!("a control client was lost: {error}");
                return;
            }
        };
        if is_full {
            let error = RequestError::new(
                ErrorCode::Busy,
                format!("{MAX_CLIENTS} clients are connected already"),
                "try again later",
            );
            // The line fits the socket's buffer, so this does not wait.
            let _ = send(&mut lines, &Reply::new(Value::Null, Err(error)));
            return;
        }
        let server = self.clone();
        let spawned = std::thread::Builder::new()
            .name("control client".into())
            .spawn(move || {
                let _place = place;
                if let Err(error) = server.converse(&mut lines) {
                    log::debug!("a control client was lost: {error}");
                }
            });
        if let Err(error) = spawned {
            log::warn!("no thread for a control client: {error}");
        }
    }

    fn converse(&self, lines: &mut LineStream) -> io::Result<()> {
        send(lines, &hello())?;
        loop {
            let (error, goes_on) = match lines.read_line(PATIENCE) {
                Ok(Some(line)) => {
                    let reply = self.answer(&line, lines);
                    send(lines, &reply)?;
                    continue;
                }
                Ok(None) | Err(LineError::Cut) => return Ok(()),
                Err(LineError::Io(error)) => return Err(error),
                Err(error @ LineError::NotUtf8) => (bad_line(&error), true),
                Err(error @ LineError::TooLong) => (bad_line(&error), false),
                Err(LineError::TimedOut) => (
                    RequestError::new(ErrorCode::TimedOut, "no request arrived in time", ""),
                    false,
                ),
            };
            send(lines, &Reply::new(Value::Null, Err(error)))?;
            if !goes_on {
                return Ok(());
            }
        }
    }

    fn answer(&self, line: &str, lines: &mut LineStream) -> Reply {
        let (Envelope { id, wants_progress }, request) = Request::parse(line);
        let outcome = request.and_then(|request| {
            log::debug!("control: {request:?}");
            if !wants_progress {
                return self.handler.handle(request, &mut kfsctl::unwatched);
            }
            self.watched.fetch_add(1, Ordering::AcqRel);
            let _watched = Place(Arc::clone(&self.watched));
            let mut teller = Teller {
                lines,
                id: id.clone(),
                next: Instant::now() + PROGRESS_INTERVAL,
                is_gone: false,
                is_ending: &self.is_ending,
            };
            let mut watch = |progress: &Progress| teller.tell(progress);
            self.handler.handle(request, &mut watch)
        });
        Reply::new(id, outcome)
    }
}

fn bad_line(error: &LineError) -> RequestError {
    let hint = "send one JSON object a line, such as {\"command\":\"status\"}";
    RequestError::new(ErrorCode::BadRequest, error.to_string(), hint)
}

fn hello() -> Hello {
    Hello {
        protocol: PROTOCOL_NAME.into(),
        protocol_version: PROTOCOL_VERSION,
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        commands: Request::COMMANDS.iter().map(|&name| name.into()).collect(),
        progress: true,
    }
}

fn send(lines: &mut LineStream, message: &impl serde::Serialize) -> io::Result<()> {
    lines.write_line(&serde_json::to_string(message)?)
}

#[cfg(test)]
mod tests;
