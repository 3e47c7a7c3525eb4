//! Framing: one message a line, with a bound on its length and on the time it may take.
//!
//! Both ends use it. The other end is not trusted: a line longer than [`MAX_LINE_BYTES`], a line
//! that trickles in too slowly and a line that is not UTF-8 are errors, and no more than one line
//! and one read's worth of bytes is ever held.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Longest line either side accepts, the newline included.
pub const MAX_LINE_BYTES: usize = 1 << 20;

/// Why no line could be read.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// The line is longer than [`MAX_LINE_BYTES`].
    #[error("a line is longer than {MAX_LINE_BYTES} bytes")]
    TooLong,
    /// The line is not UTF-8.
    #[error("a line is not UTF-8")]
    NotUtf8,
    /// The other end closed the connection in the middle of a line.
    #[error("the connection ended in the middle of a line")]
    Cut,
    /// No whole line arrived in time.
    #[error("no answer within the time allowed")]
    TimedOut,
    /// The socket failed.
    #[error("the socket failed")]
    Io(#[from] io::Error),
}

/// How long to wait for a line.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Until its first byte.
    pub first_byte: Duration,
    /// From the first byte to the newline.
    pub rest: Duration,
}

/// A connected socket that reads and writes lines.
#[derive(Debug)]
pub struct LineStream {
    stream: UnixStream,
    /// Bytes read and not yet handed out; may hold more than one line.
    pending: Vec<u8>,
    /// How much of `pending` is known to hold no newline.
    searched: usize,
}

impl LineStream {
    /// Wraps a connected socket. A write that blocks for `write_timeout` fails.
    pub fn new(stream: UnixStream, write_timeout: Duration) -> io::Result<Self> {
        stream.set_write_timeout(Some(write_timeout))?;
        Ok(Self {
            stream,
            pending: Vec::new(),
            searched: 0,
        })
    }

    /// The next line without its newline, or `None` when the other end is done.
    pub fn read_line(&mut self, patience: Patience) -> Result<Option<String>, LineError> {
        let begin = Instant::now();
        let mut deadline = if self.pending.is_empty() {
            begin + patience.first_byte
        } else {
            begin + patience.rest
        };
        loop {
            if let Some(line) = self.take_line()? {
                return Ok(Some(line));
            }
            let waited_for_first = self.pending.is_empty();
            if self.fill(deadline)? == 0 {
                return if self.pending.is_empty() {
                    Ok(None)
                } else {
                    Err(LineError::Cut)
                };
            }
            if waited_for_first {
                deadline = Instant::now() + patience.rest;
            }
        }
    }

    /// Whether no part of a line has arrived that was not handed out: after a time-out the next read goes on
    /// where this one ended.
    pub fn is_between_lines(&self) -> bool {
        self.pending.is_empty()
    }

    /// Sends one line; `line` must not contain a newline.
    pub fn write_line(&mut self, line: &str) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(line.len() + 1);
        bytes.extend_from_slice(line.as_bytes());
        bytes.push(b'\n');
        self.stream.write_all(&bytes)
    }

    /// The socket, to be shut down from another thread.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    fn take_line(&mut self) -> Result<Option<String>, LineError> {
        let Some(found) = self.pending[self.searched..]
            .iter()
            .position(|&byte| byte == b'\n')
        else {
            self.searched = self.pending.len();
            return if self.pending.len() >= MAX_LINE_BYTES {
                Err(LineError::TooLong)
            } else {
                Ok(None)
            };
        };
        let end = self.searched + found;
        if end >= MAX_LINE_BYTES {
            return Err(LineError::TooLong);
        }
        let rest = self.pending.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.pending, rest);
        self.searched = 0;
        line.pop();
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        String::from_utf8(line)
            .map(Some)
            .map_err(|_| LineError::NotUtf8)
    }

    fn fill(&mut self, deadline: Instant) -> Result<usize, LineError> {
        let mut chunk = [0; 16 << 10];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(LineError::TimedOut);
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(&mut chunk) {
                Ok(count) => {
                    self.pending.extend_from_slice(&chunk[..count]);
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(LineError::TimedOut);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Patience = Patience {
        first_byte: Duration::from_millis(200),
        rest: Duration::from_millis(200),
    };

    fn pair() -> (UnixStream, LineStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (
            ours,
            LineStream::new(theirs, Duration::from_secs(5)).unwrap(),
        )
    }

    #[test]
    fn lines_are_split_and_joined() {
        let (mut peer, mut lines) = pair();
        peer.write_all(b"one\ntwo\r\n\nthr").unwrap();
        assert_eq!(lines.read_line(SOON).unwrap().as_deref(), Some("one"));
        assert_eq!(lines.read_line(SOON).unwrap().as_deref(), Some("two"));
        assert_eq!(lines.read_line(SOON).unwrap().as_deref(), Some(""));
        peer.write_all(b"ee\n").unwrap();
        assert_eq!(lines.read_line(SOON).unwrap().as_deref(), Some("three"));
        drop(peer);
        assert_eq!(lines.read_line(SOON).unwrap(), None);
    }

    #[test]
    fn an_unfinished_line_is_cut_or_times_out() {
        let (mut peer, mut lines) = pair();
        peer.write_all(b"half").unwrap();
        assert!(matches!(lines.read_line(SOON), Err(LineError::TimedOut)));
        drop(peer);
        assert!(matches!(lines.read_line(SOON), Err(LineError::Cut)));
    }

    #[test]
    fn a_line_that_trickles_in_does_not_hold_the_reader() {
        let (mut peer, mut lines) = pair();
        let trickle = std::thread::spawn(move || {
            for _ in 0..40 {
                if peer.write_all(b"x").is_err() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        let begin = Instant::now();
        assert!(matches!(lines.read_line(SOON), Err(LineError::TimedOut)));
        assert!(begin.elapsed() < Duration::from_secs(1));
        drop(lines);
        trickle.join().unwrap();
    }

    #[test]
    fn too_long_and_not_utf8_are_refused() {
        let (mut peer, mut lines) = pair();
        let writer = std::thread::spawn(move || {
            // The reader gives up in the middle, so the write may fail.
            let _ = peer.write_all(&vec![b'a'; MAX_LINE_BYTES + 10]);
            peer
        });
        assert!(matches!(lines.read_line(SOON), Err(LineError::TooLong)));
        drop(lines);
        drop(writer.join().unwrap());
        let (mut peer, mut lines) = pair();
        peer.write_all(b"\xff\xfe\n").unwrap();
        assert!(matches!(lines.read_line(SOON), Err(LineError::NotUtf8)));
    }
}
