//! What an operation said: an error number or a value, in words that can be compared and shown.

use rustix::io::Errno;
use std::fmt;

/// The result of an operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It was done; what it gave.
    Done(String),
    /// The error.
    Failed(Errno),
    /// The actor has no such file open.
    Nothing,
}

impl Answer {
    /// Whether the operation was done.
    pub fn is_success(&self) -> bool {
        matches!(self, Self::Done(_))
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done(value) if value.is_empty() => f.write_str("done"),
            Self::Done(value) => f.write_str(value),
            Self::Failed(errno) => write!(f, "{}", std::io::Error::from(*errno)),
            Self::Nothing => f.write_str("nothing is open there"),
        }
    }
}

/// Short words for bytes: all of few, length and a hash of many.
pub(super) fn bytes(bytes: &[u8]) -> String {
    if bytes.len() <= 16 {
        format!("{} bytes {bytes:02x?}", bytes.len())
    } else {
        format!("{} bytes with hash {:016x}", bytes.len(), hash(bytes))
    }
}

/// FNV-1a of 64-bit words.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    words.chain(rest.iter().map(|byte| u64::from(*byte))).fold(
        0xcbf2_9ce4_8422_2325,
        |hash, word| {
            (hash ^ word)
                .wrapping_mul(0x0000_0100_0000_01b3)
                .rotate_left(29)
        },
    )
}
