//! The side that asks: finds a daemon, greets it, sends requests.
//!
//! A daemon's socket is `kfsd-PID.sock` in a directory of its user: `$XDG_RUNTIME_DIR/kfs`, or
//! `/run/kfs` for root, or `/tmp/kfs-UID`. Sockets that nobody listens on any more are passed over.

use crate::line::{LineError, LineStream, Patience};
use crate::progress::{Progress, Watch, unwatched};
use crate::protocol::{ErrorCode, RequestError};
use crate::protocol::{Hello, Outcome, PROTOCOL_NAME, PROTOCOL_VERSION, Reply, Request};
use crate::status::Status;
use serde_json::Value;
use std::io;
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Time a daemon has to greet and to answer; a commit may have to end first.
const PATIENCE: Patience = Patience {
    first_byte: Duration::from_secs(30),
    rest: Duration::from_secs(10),
};

/// How often whoever watches is asked whether to go on.
const TICK: Duration = Duration::from_millis(100);

/// Time a daemon has when it is only asked who it is.
const SHORT_PATIENCE: Patience = Patience {
    first_byte: Duration::from_secs(2),
    rest: Duration::from_secs(2),
};

/// Why a daemon could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens.
    #[error("no running kfsd was found; looked in {}; --image IMAGE asks an image itself", list(.looked_in))]
    NoneRunning {
        /// The directories that were searched.
        looked_in: Vec<PathBuf>,
    },
    /// There are several daemons, and none was named.
    #[error("several kfsd are running; name one with --socket:{}", choices(.0))]
    Several(Vec<Choice>),
    /// The socket cannot be reached.
    #[error("cannot connect to {}{}", .path.display(), why_not(.source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Sending failed.
    #[error("cannot send to {}", .path.display())]
    Send {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// No usable line came back.
    #[error("no answer from {}", .path.display())]
    Receive {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: LineError,
    },
    /// The daemon closed the connection.
    #[error("{} closed the connection", .path.display())]
    Closed {
        /// The socket.
        path: PathBuf,
    },
    /// Something other than kfsd listens there.
    #[error("{} does not speak the kfs control protocol", .path.display())]
    NotKfsd {
        /// The socket.
        path: PathBuf,
    },
    /// The daemon is too new or too old.
    #[error(
        "{} speaks version {found} of the control protocol, this kfsctl {PROTOCOL_VERSION}; \
         use the kfsctl that came with that kfsd", .path.display()
    )]
    Version {
        /// The socket.
        path: PathBuf,
        /// The daemon's version.
        found: u32,
    },
    /// The daemon's answer makes no sense.
    #[error("the answer of {} cannot be read", .path.display())]
    Answer {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The daemon refused.
    #[error(transparent)]
    Refused(#[from] RequestError),
}

/// A running daemon, to be chosen from several.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Its control socket.
    pub socket: PathBuf,
    /// What it serves, if it said so.
    pub source: Option<PathBuf>,
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<_> = paths
        .iter()
        .map(|path| path.display().to_string())
        .collect();
    paths.join(", ")
}

fn choices(choices: &[Choice]) -> String {
    let mut text = String::new();
    for choice in choices {
        text.push_str(&format!("\n  {}", choice.socket.display()));
        if let Some(source) = &choice.source {
            text.push_str(&format!("  serves {}", source.display()));
        }
    }
    text
}

fn why_not(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::NotFound => " (is kfsd running?)",
        io::ErrorKind::ConnectionRefused => " (the kfsd that made it is gone)",
        io::ErrorKind::PermissionDenied => " (kfsd runs as another user)",
        _ => "",
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    lines: LineStream,
    patience: Patience,
    hello: Hello,
    next_id: u64,
}

impl Client {
    /// Connects to the socket at `path` and reads the greeting.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::connect_with(path, PATIENCE)
    }

    /// Connects to the only daemon there is.
    pub fn find() -> Result<Self, ClientError> {
        Self::find_in(&socket_dirs())
    }

    /// Connects to the only daemon that has its socket in one of `dirs`.
    pub fn find_in(dirs: &[PathBuf]) -> Result<Self, ClientError> {
        let mut found: Vec<(PathBuf, UnixStream)> = Vec::new();
        let mut unreachable = None;
        for path in dirs.iter().flat_map(|dir| sockets_in(dir)) {
            match UnixStream::connect(&path) {
                Ok(stream) => found.push((path, stream)),
                // Left behind by a daemon that was killed.
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {}
                Err(source) => unreachable = Some(ClientError::Connect { path, source }),
            }
        }
        match found.len() {
            0 => Err(unreachable.unwrap_or_else(|| ClientError::NoneRunning {
                looked_in: dirs.to_vec(),
            })),
            1 => {
                let (path, stream) = found.remove(0);
                Self::greet(path, stream, PATIENCE)
            }
            _ => Err(ClientError::Several(
                found.into_iter().map(describe).collect(),
            )),
        }
    }

    fn connect_with(path: &Path, patience: Patience) -> Result<Self, ClientError> {
        let stream = UnixStream::connect(path).map_err(|source| ClientError::Connect {
            path: path.to_owned(),
            source,
        })?;
        Self::greet(path.to_owned(), stream, patience)
    }

    fn greet(path: PathBuf, stream: UnixStream, patience: Patience) -> Result<Self, ClientError> {
        let mut lines = match LineStream::new(stream, patience.rest) {
            Ok(lines) => lines,
            Err(source) => return Err(ClientError::Connect { path, source }),
        };
        let line = receive(&mut lines, &path, patience)?;
        let hello: Hello = match serde_json::from_str(&line) {
            Ok(hello) => hello,
            // A daemon that refuses the client says so in place of its greeting.
            Err(_) => match serde_json::from_str(&line) {
                Ok(Reply {
                    outcome: Outcome::Error(error),
                    ..
                }) => return Err(error.into()),
                _ => return Err(ClientError::NotKfsd { path }),
            },
        };
        if hello.protocol != PROTOCOL_NAME {
            return Err(ClientError::NotKfsd { path });
        }
        if hello.protocol_version != PROTOCOL_VERSION {
            return Err(ClientError::Version {
                path,
                found: hello.protocol_version,
            });
        }
        Ok(Self {
            path,
            lines,
            patience,
            hello,
            next_id: 1,
        })
    }

    /// The daemon's greeting.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// The socket it is connected to.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a request and waits for its result.
    pub fn request(&mut self, request: &Request) -> Result<Value, ClientError> {
        self.send(request, false)?;
        self.answer(&mut unwatched, self.patience.first_byte)
    }

    /// Sends a request and waits for its result; meanwhile `watch` is told how far it is, and may end it: then
    /// the daemon is told, whose answer is still waited for. This was the last request of the connection then.
    ///
    /// # Errors
    /// `Refused` with the code `Cancelled` where the daemon has given it up.
    pub fn request_watched(
        &mut self,
        request: &Request,
        watch: &mut Watch<'_>,
    ) -> Result<Value, ClientError> {
        self.send(request, self.hello.progress)?;
        self.answer(watch, TICK)
    }

    fn send(&mut self, request: &Request, wants_progress: bool) -> Result<(), ClientError> {
        let id = Value::from(self.next_id);
        self.next_id += 1;
        let mut message =
            serde_json::to_value(request).expect("requests have string keys and finite numbers");
        message["id"] = id;
        if wants_progress {
            message["progress"] = true.into();
        }
        self.lines
            .write_line(&message.to_string())
            .map_err(|source| ClientError::Send {
                path: self.path.clone(),
                source,
            })
    }

    /// The answer to the last request. `watch` is asked after each `tick` without a line.
    fn answer(&mut self, watch: &mut Watch<'_>, tick: Duration) -> Result<Value, ClientError> {
        let id = Value::from(self.next_id - 1);
        let end = Instant::now() + self.patience.first_byte;
        let mut last = Progress::default();
        let mut is_wanted = true;
        loop {
            if watch(&last).is_break() && is_wanted {
                is_wanted = false;
                // The daemon may be gone by now: then the next line says so.
                let _ = self.lines.stream().shutdown(Shutdown::Write);
            }
            let patience = Patience {
                first_byte: tick,
                ..self.patience
            };
            let line = match receive(&mut self.lines, &self.path, patience) {
                Err(ClientError::Receive {
                    source: LineError::TimedOut,
                    ..
                }) if self.lines.is_between_lines() && Instant::now() < end => continue,
                line => line?,
            };
            let reply: Reply =
                serde_json::from_str(&line).map_err(|source| ClientError::Answer {
                    path: self.path.clone(),
                    source,
                })?;
            // An error without id is about the connection as a whole.
            match reply.outcome {
                Outcome::Error(error) if reply.id == id || reply.id.is_null() => {
                    return Err(error.into());
                }
                Outcome::Ok(value) if reply.id == id => return Ok(value),
                Outcome::Progress(progress) if reply.id == id => last = progress,
                // The late answer to a request that was given up.
                _ => {}
            }
        }
    }

    /// Waits as long as it takes for answers from now on: for requests that read all of a volume.
    pub fn be_patient(&mut self) {
        self.patience.first_byte = Duration::from_secs(86_400);
    }

    /// Asks for the status.
    pub fn status(&mut self) -> Result<Status, ClientError> {
        let value = self.request(&Request::Status {})?;
        serde_json::from_value(value).map_err(|source| ClientError::Answer {
            path: self.path.clone(),
            source,
        })
    }
}

fn receive(lines: &mut LineStream, path: &Path, patience: Patience) -> Result<String, ClientError> {
    match lines.read_line(patience) {
        Ok(Some(line)) => Ok(line),
        Ok(None) => Err(ClientError::Closed {
            path: path.to_owned(),
        }),
        Err(source) => Err(ClientError::Receive {
            path: path.to_owned(),
            source,
        }),
    }
}

fn describe((socket, stream): (PathBuf, UnixStream)) -> Choice {
    let source = Client::greet(socket.clone(), stream, SHORT_PATIENCE)
        .and_then(|mut client| client.status())
        .ok()
        .map(|status| status.volume.source.path().to_owned());
    Choice { socket, source }
}

/// Whether `error` says that the daemon does not know the command.
pub fn is_unknown_command(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused(refused) if refused.code == ErrorCode::UnknownCommand)
}

/// The directory in which a daemon of this user puts its control socket.
pub fn default_socket_dir() -> PathBuf {
    let uid = rustix::process::geteuid().as_raw();
    match std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| Path::new(dir).is_absolute()) {
        Some(dir) => Path::new(&dir).join("kfs"),
        None if uid == 0 => PathBuf::from("/run/kfs"),
        None => PathBuf::from(format!("/tmp/kfs-{uid}")),
    }
}

/// The directories in which this user may find control sockets, the own one first.
pub fn socket_dirs() -> Vec<PathBuf> {
    let mut dirs = vec![default_socket_dir()];
    let uid = rustix::process::geteuid().as_raw();
    for dir in [
        PathBuf::from("/run/kfs"),
        PathBuf::from(format!("/tmp/kfs-{uid}")),
    ] {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    dirs
}

/// Name of the socket of the daemon with this process id.
pub fn socket_name(pid: u32) -> String {
    format!("kfsd-{pid}.sock")
}

fn sockets_in(dir: &Path) -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    // /tmp is everybody's: a directory that a stranger made there is not believed.
    let trusted = std::fs::symlink_metadata(dir)
        .is_ok_and(|meta| meta.is_dir() && (meta.uid() == uid || meta.uid() == 0));
    let Some(entries) = trusted.then(|| std::fs::read_dir(dir).ok()).flatten() else {
        return Vec::new();
    };
    let mut sockets: Vec<PathBuf> = entries
        .filter_map(Result::ok)
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with("kfsd-")
                && name.ends_with(".sock")
                && entry.file_type().is_ok_and(|kind| kind.is_socket())
        })
        .map(|entry| entry.path())
        .collect();
    sockets.sort();
    sockets
}
