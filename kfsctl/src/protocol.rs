//! The messages: greeting, requests, answers, errors.
//!
//! A request is `{"command": NAME, ...its arguments, "id": ANY}`; `id` is optional and comes back
//! with the answer. With `"progress": true`, lines `{"id": ANY, "progress": {...}}` tell how far it is until
//! then. An answer is `{"id": ANY, "ok": RESULT}` or `{"id": ANY, "error": {...}}`.
//! Within one protocol version fields are only added, never changed or removed, so readers ignore
//! fields they do not know; requests, in contrast, are read strictly, since an argument that is
//! ignored would be a wish that is not fulfilled.

use crate::defrag::{DefragFile, SurveyLevel};
use crate::progress::Progress;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::PathBuf;

/// Version that both ends must agree on.
pub const PROTOCOL_VERSION: u32 = 1;

/// Name by which the greeting is recognised.
pub const PROTOCOL_NAME: &str = "kfs-control";

/// First line that the daemon sends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Always [`PROTOCOL_NAME`].
    pub protocol: String,
    /// [`PROTOCOL_VERSION`] of the daemon.
    pub protocol_version: u32,
    /// Version of the daemon.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Commands the daemon serves.
    pub commands: Vec<String>,
    /// Whether it tells how far requests are.
    #[serde(default)]
    pub progress: bool,
}

/// What comes with a request of any kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope {
    /// Comes back with the answer; null when there was none or it could not be read.
    pub id: Value,
    /// Whether to tell how far the request is, and to give it up when who asked hangs up.
    pub wants_progress: bool,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case", deny_unknown_fields)]
#[non_exhaustive]
pub enum Request {
    /// What is served to whom, and how it fares; answered with [`Status`](crate::Status).
    Status {},
    /// Takes a snapshot; answered with its [`SnapshotInfo`](crate::snapshot::SnapshotInfo).
    SnapshotCreate {
        /// Its name; the time of day where none is given.
        #[serde(default)]
        name: Option<String>,
        /// What to remember of it.
        #[serde(default)]
        comment: String,
    },
    /// All snapshots, oldest first, as [`SnapshotInfo`](crate::snapshot::SnapshotInfo).
    SnapshotList {},
    /// Deletes snapshots; answered with those deleted.
    SnapshotDelete {
        /// Their names.
        names: Vec<String>,
    },
    /// What differs between a snapshot and a later one or the volume as it is; answered with
    /// [`DiffEntry`](crate::snapshot::DiffEntry).
    SnapshotDiff {
        /// The earlier one.
        from: String,
        /// The later one; the volume where it is missing.
        #[serde(default)]
        to: Option<String>,
    },
    /// Writes a snapshot to a new image.
    SnapshotExport {
        /// Its name.
        name: String,
        /// The new file, for the daemon's eyes: an absolute path.
        path: PathBuf,
    },
    /// Makes a new image of a snapshot that shares its blocks with the volume's image where the host can do
    /// that, and else is a copy.
    SnapshotClone {
        /// Its name.
        name: String,
        /// The new file, for the daemon's eyes: an absolute path.
        path: PathBuf,
    },
    /// The versions of a file; answered with [`VersionInfo`](crate::snapshot::VersionInfo), oldest first.
    FileLog {
        /// Path in the volume.
        path: String,
    },
    /// Brings a file or directory of a snapshot back, or sets the whole volume back.
    Restore {
        /// Name of the snapshot.
        snapshot: String,
        /// Path in the volume; the whole volume where it is missing.
        #[serde(default)]
        path: Option<String>,
        /// Path in the volume to restore it to; the same where it is missing.
        #[serde(default)]
        to: Option<String>,
        /// Set the volume back though somebody uses it.
        #[serde(default)]
        force: bool,
    },
    /// How files lie; answered with [`SurveyInfo`](crate::defrag::SurveyInfo), a part at a time.
    DefragSurvey {
        /// A file, or a directory with all below; the root where it is missing.
        #[serde(default)]
        path: Option<String>,
        /// Where the last answer ended.
        #[serde(default)]
        cursor: Option<Vec<SurveyLevel>>,
        /// Whether blocks that snapshots see may be moved, too.
        #[serde(default)]
        all: bool,
    },
    /// Moves files to better places; answered with [`DefragInfo`](crate::defrag::DefragInfo), after
    /// about a second.
    Defrag {
        /// The files, in the order in which they are moved.
        files: Vec<DefragFile>,
        /// Whether blocks that snapshots see are moved, too.
        #[serde(default)]
        all: bool,
        /// Bytes to move at the most, about.
        #[serde(default)]
        bytes: Option<u64>,
    },
    /// What is where: answered with [`VolumeMapInfo`](crate::fragmap::VolumeMapInfo), for a path with
    /// [`FileMapInfo`](crate::fragmap::FileMapInfo).
    Fragmap {
        /// A file; the whole volume where it is missing.
        #[serde(default)]
        path: Option<String>,
        /// Parts that the volume is shown in.
        #[serde(default)]
        cells: Option<u32>,
        /// The block of the file to begin with.
        #[serde(default)]
        from: u32,
    },
    /// Makes everything durable.
    Sync {},
    /// Gives free blocks back to the host.
    Trim {},
    /// Forgets metadata that can be read again.
    DropCaches {},
    /// Makes the volume stand still, so that the image can be copied.
    Freeze {
        /// After how long it goes on by itself.
        timeout_seconds: u64,
    },
    /// Ends a freeze.
    Thaw {},
    /// Makes the volume larger, for about a second; to be sent again with what is answered until that has no
    /// `next`.
    Resize {
        /// Its new size; 0 for all of the device.
        size_bytes: u64,
        /// The size is to be added to what there is.
        #[serde(default)]
        is_added: bool,
        /// What was answered as `next`.
        #[serde(default)]
        cursor: u32,
    },
    /// Changes what the daemon logs.
    SetLogLevel {
        /// `off`, `error`, `warn`, `info`, `debug` or `trace`.
        level: String,
    },
    /// Checks the volume as a snapshot sees it; answered as `kfsctl check --json` prints it.
    Check {
        /// Name of the snapshot; where none is given, one is taken for the check and deleted again.
        #[serde(default)]
        snapshot: Option<String>,
    },
}

impl Request {
    /// Names of all commands, as they are written in a request.
    pub const COMMANDS: &[&str] = &[
        "status",
        "snapshot-create",
        "snapshot-list",
        "snapshot-delete",
        "snapshot-diff",
        "snapshot-export",
        "snapshot-clone",
        "file-log",
        "restore",
        "defrag-survey",
        "defrag",
        "fragmap",
        "sync",
        "trim",
        "drop-caches",
        "freeze",
        "thaw",
        "resize",
        "set-log-level",
        "check",
    ];

    /// Reads a request line. The id comes back even with an error, wherever it could be read.
    pub fn parse(line: &str) -> (Envelope, Result<Self, RequestError>) {
        let mut envelope = Envelope::default();
        let mut object: Map<String, Value> = match serde_json::from_str(line) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return (envelope, Err(RequestError::not_an_object())),
            Err(error) => return (envelope, Err(RequestError::not_json(&error))),
        };
        let id = object.remove("id").unwrap_or(Value::Null);
        if id.is_object() || id.is_array() {
            let error = RequestError::new(
                ErrorCode::InvalidArgument,
                "the id must be a string or a number",
                "leave it out, or count requests",
            );
            return (envelope, Err(error));
        }
        envelope.id = id;
        match object.remove("progress") {
            None => {}
            Some(Value::Bool(wanted)) => envelope.wants_progress = wanted,
            Some(_) => {
                let error = RequestError::new(
                    ErrorCode::InvalidArgument,
                    "\"progress\" is neither true nor false",
                    "leave it out",
                );
                return (envelope, Err(error));
            }
        }
        let result = Self::from_object(object);
        (envelope, result)
    }

    fn from_object(object: Map<String, Value>) -> Result<Self, RequestError> {
        let command = match object.get("command") {
            Some(Value::String(command)) => command.clone(),
            Some(_) => {
                return Err(RequestError::new(
                    ErrorCode::InvalidArgument,
                    "\"command\" is not a string",
                    commands_hint(),
                ));
            }
            None => {
                return Err(RequestError::new(
                    ErrorCode::InvalidArgument,
                    "the request has no \"command\"",
                    commands_hint(),
                ));
            }
        };
        if !Self::COMMANDS.contains(&command.as_str()) {
            return Err(RequestError::new(
                ErrorCode::UnknownCommand,
                format!("there is no command {:?}", shortened(&command)),
                commands_hint(),
            ));
        }
        serde_json::from_value(Value::Object(object)).map_err(|error| {
            RequestError::new(
                ErrorCode::InvalidArgument,
                format!(
                    "wrong arguments for {command:?}: {}",
                    shortened(&error.to_string())
                ),
                "md-docs/control-protocol.md lists the arguments of each command",
            )
        })
    }
}

fn commands_hint() -> String {
    format!("supported commands: {}", Request::COMMANDS.join(", "))
}

/// Cuts foreign text, so that an error never echoes a whole hostile line.
fn shortened(text: &str) -> &str {
    const MAX_BYTES: usize = 200;
    let mut end = text.len().min(MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The kind of an error, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The line is too long, not UTF-8 or not a JSON object.
    BadRequest,
    /// No such command.
    UnknownCommand,
    /// An argument is missing, unknown, or has a wrong value.
    InvalidArgument,
    /// The command makes no sense for what is served.
    NotSupported,
    /// As many clients are connected as the daemon allows.
    Busy,
    /// The line did not arrive in time.
    TimedOut,
    /// The daemon is ending.
    ShuttingDown,
    /// The command failed.
    Failed,
    /// Who asked did not want it any more.
    Cancelled,
    /// A code of a newer daemon.
    #[serde(other)]
    Unknown,
}

/// Why a request was refused or failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct RequestError {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what is wrong.
    pub message: String,
    /// For people: what to do about it; may be empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hint: String,
}

impl RequestError {
    /// An error with all its parts.
    pub fn new(code: ErrorCode, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: hint.into(),
        }
    }

    fn not_json(error: &serde_json::Error) -> Self {
        Self::new(
            ErrorCode::BadRequest,
            format!("the line is not JSON: {error}"),
            "send one JSON object a line, such as {\"command\":\"status\"}",
        )
    }

    fn not_an_object() -> Self {
        Self::new(
            ErrorCode::BadRequest,
            "the line is not a JSON object",
            "send one JSON object a line, such as {\"command\":\"status\"}",
        )
    }
}

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The request's id; null when it had none or could not be read.
    #[serde(default)]
    pub id: Value,
    /// Result or error.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// How far it is: the answer is still to come.
    Progress(Progress),
    /// The command's result.
    Ok(Value),
    /// Why there is none.
    Error(RequestError),
}

impl Reply {
    /// A reply to the request with this id.
    pub fn new(id: Value, outcome: Result<Value, RequestError>) -> Self {
        let outcome = match outcome {
            Ok(value) => Outcome::Ok(value),
            Err(error) => Outcome::Error(error),
        };
        Self { id, outcome }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> RequestError {
        Request::parse(line).1.unwrap_err()
    }

    #[test]
    fn requests_round_trip() {
        let text = serde_json::to_string(&Request::Status {}).unwrap();
        assert_eq!(text, r#"{"command":"status"}"#);
        assert_eq!(
            Request::parse(&text),
            (Envelope::default(), Ok(Request::Status {}))
        );
        let (Envelope { id, .. }, request) = Request::parse(r#"{"id":7,"command":"status"}"#);
        assert_eq!((id, request), (Value::from(7), Ok(Request::Status {})));
    }

    #[test]
    fn replies_round_trip() {
        let replies = [
            Reply::new(Value::from("a"), Ok(Value::from(1))),
            Reply::new(Value::Null, Err(refused(r#"{"command":"dance"}"#))),
        ];
        for reply in replies {
            let text = serde_json::to_string(&reply).unwrap();
            assert_eq!(serde_json::from_str::<Reply>(&text).unwrap(), reply);
        }
    }

    #[test]
    fn an_unknown_command_names_the_known_ones() {
        let error = refused(r#"{"command":"dance"}"#);
        assert_eq!(error.code, ErrorCode::UnknownCommand);
        assert!(error.message.contains("dance"));
        assert!(error.hint.contains("status"));
    }

    #[test]
    fn a_wrong_request_keeps_its_id() {
        let (Envelope { id, .. }, request) =
            Request::parse(r#"{"id":"x","command":"status","verbose":true}"#);
        assert_eq!(id, Value::from("x"));
        let error = request.unwrap_err();
        assert_eq!(error.code, ErrorCode::InvalidArgument);
        assert!(error.message.contains("verbose"), "{error:?}");
    }

    #[test]
    fn progress_is_told_where_wanted() {
        let (envelope, request) = Request::parse(r#"{"command":"trim","progress":true,"id":3}"#);
        assert!(envelope.wants_progress && envelope.id == 3);
        assert_eq!(request, Ok(Request::Trim {}));
        let error = refused(r#"{"command":"trim","progress":1}"#);
        assert_eq!(error.code, ErrorCode::InvalidArgument);
    }

    #[test]
    fn hostile_lines_are_errors() {
        let deep = "[".repeat(100_000);
        let long_name = format!(r#"{{"command":"{}"}}"#, "\u{e9}".repeat(100_000));
        let lines = [
            ("", ErrorCode::BadRequest),
            ("status", ErrorCode::BadRequest),
            ("null", ErrorCode::BadRequest),
            ("[]", ErrorCode::BadRequest),
            ("{\"command\":\"status\"", ErrorCode::BadRequest),
            ("{\"command\":\"status\"} x", ErrorCode::BadRequest),
            (&deep, ErrorCode::BadRequest),
            ("{}", ErrorCode::InvalidArgument),
            ("{\"command\":7}", ErrorCode::InvalidArgument),
            (
                "{\"command\":\"status\",\"id\":{\"a\":1}}",
                ErrorCode::InvalidArgument,
            ),
            ("{\"command\":\"STATUS\"}", ErrorCode::UnknownCommand),
            (&long_name, ErrorCode::UnknownCommand),
        ];
        for (line, code) in lines {
            let error = refused(line);
            assert_eq!(error.code, code, "{error:?}");
            assert!(error.message.len() < 1000, "echoes too much");
        }
    }

    #[test]
    fn a_code_of_a_newer_daemon_is_read() {
        let error: RequestError =
            serde_json::from_str(r#"{"code":"on-fire","message":"m"}"#).unwrap();
        assert_eq!(error.code, ErrorCode::Unknown);
    }
}
