//! The control protocol, both ends: lines for the daemon's server, and a daemon's answers.

use crate::input::Input;
use crate::served;
use kfsctl::line::{LineStream, MAX_LINE_BYTES, Patience};
use kfsctl::protocol::{Envelope, Hello, Reply, Request, RequestError};
use kfsctl::status::Status;
use kfsd::control::{ControlListener, ControlServer, Handler};
use kfsd::volume::Volume;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Answers as a daemon does that serves an image.
struct Answers(kfsctl::status::VolumeStatus);

impl Handler for Answers {
    fn handle(
        &self,
        _: Request,
        _: &mut kfsctl::Watch<'_>,
    ) -> Result<serde_json::Value, RequestError> {
        let status = Status {
            volume: self.0.clone(),
            ..Status::default()
        };
        Ok(serde_json::to_value(status).expect("a status is JSON"))
    }
}

/// One client that says what the input says.
pub fn control(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    let text = expand(&mut input);
    parse_all(&text);
    if how & 3 == 0 {
        read_lines(&text);
    }
    // A connection costs a hundred times what parsing does.
    if how & 15 == 0 {
        talk(&text);
    }
}

fn serve() -> (PathBuf, ControlServer) {
    static STATUS: OnceLock<kfsctl::status::VolumeStatus> = OnceLock::new();
    let status = STATUS.get_or_init(|| served::image(0).0.status());
    let path = std::env::temp_dir().join(format!("kfs-fuzz-{}.sock", std::process::id()));
    let listener = ControlListener::new(&path).expect("a directory for temporary files");
    let server = listener.serve(Arc::new(Answers(status.clone())));
    (path, server.expect("a thread"))
}

/// Text out of few bytes: long and deep lines, too.
fn expand(input: &mut Input<'_>) -> Vec<u8> {
    const PIECES: [&str; 16] = [
        "{\"command\":\"status\"}\n",
        "{\"command\":\"",
        "\"id\":",
        "\"command\":\"status\"",
        "{",
        "}",
        "[",
        "]",
        "\n",
        "\r\n",
        "\"",
        ",",
        "null",
        "1e999",
        "\\u0000",
        "{\"id\":7,\"ok\":{\"volume\":{}}}\n",
    ];
    let mut text = Vec::new();
    while !input.is_empty() && text.len() < 2 * MAX_LINE_BYTES {
        match input.u8() {
            0xff => {
                let (count, byte) = (usize::from(input.u16()) * 32, input.u8());
                // Every line is answered: more of them take time, and show nothing.
                let most = if byte == b'\n' { 100 } else { MAX_LINE_BYTES };
                text.resize(text.len() + count.min(most), byte);
            }
            kind if kind >= 0xf0 => {
                text.extend_from_slice(PIECES[usize::from(kind & 15)].as_bytes());
            }
            byte => text.push(byte),
        }
    }
    text
}

fn parse_all(text: &[u8]) {
    for line in text.split(|&byte| byte == b'\n').take(64) {
        let Ok(line) = str::from_utf8(line) else {
            continue;
        };
        let (Envelope { id, .. }, request) = Request::parse(line);
        let outcome = request.map(|_| serde_json::Value::Null);
        let reply = serde_json::to_string(&Reply::new(id, outcome)).expect("a reply is JSON");
        let again: Reply = serde_json::from_str(&reply).expect("what we wrote can be read");
        assert_eq!(serde_json::to_string(&again).ok().as_ref(), Some(&reply));
        let _ = serde_json::from_str::<Hello>(line);
        let _ = serde_json::from_str::<Status>(line);
        let _ = serde_json::from_str::<Reply>(line);
    }
}

/// What comes in over a socket, as either end reads it.
fn read_lines(text: &[u8]) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let patience = Patience {
        first_byte: PATIENCE,
        rest: PATIENCE,
    };
    let mut lines = LineStream::new(theirs, PATIENCE).expect("a connected socket");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // The reader gives up on a line that is too long.
            let _ = (&ours).write_all(text);
            let _ = ours.shutdown(Shutdown::Write);
        });
        while let Ok(Some(line)) = lines.read_line(patience) {
            assert!(line.len() < MAX_LINE_BYTES);
        }
        let _ = lines.stream().shutdown(Shutdown::Both);
    });
}

fn talk(text: &[u8]) {
    let (path, _server) = serve();
    let stream = UnixStream::connect(&path).expect("the server listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("a connected socket");
    let mut answers = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let _ = (&stream).write_all(text);
            let _ = stream.shutdown(Shutdown::Write);
        });
        match (&stream).read_to_end(&mut answers) {
            Ok(_) => {}
            // It has hung up with something unread.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
            Err(error) => panic!("the server does not answer: {error}"),
        }
        let _ = stream.shutdown(Shutdown::Both);
    });
    let mut lines = answers
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty());
    let hello = lines.next().expect("a greeting");
    let hello: Hello = serde_json::from_slice(hello).expect("a greeting");
    assert_eq!(hello.pid, std::process::id());
    for line in lines {
        serde_json::from_slice::<Reply>(line).expect("an answer");
    }
}
