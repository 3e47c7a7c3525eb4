//! `FileName`: what may stand in a directory entry.

use crate::error::{Error, Result};
use crate::layout::dirent::NAME_MAX;

/// A name of 1 to 255 bytes without `/` and NUL. `.` and `..` are names: they can be looked up, but
/// not added, removed or replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FileName<'n>(&'n [u8]);

impl<'n> FileName<'n> {
    /// Checks a name that came from outside.
    ///
    /// # Errors
    /// `NameTooLong` beyond 255 bytes; `Invalid` when empty or with a forbidden byte.
    pub fn new(bytes: &'n [u8]) -> Result<Self> {
        if bytes.len() > NAME_MAX {
            return Err(Error::NameTooLong);
        }
        if bytes.is_empty() || has_forbidden_byte(bytes) {
            return Err(Error::Invalid);
        }
        Ok(Self(bytes))
    }

    /// The bytes of the name.
    #[must_use]
    pub fn as_bytes(self) -> &'n [u8] {
        self.0
    }

    /// Whether it is `.` or `..`.
    #[must_use]
    pub fn is_dot(self) -> bool {
        is_dot(self.0)
    }
}

impl<'n> TryFrom<&'n [u8]> for FileName<'n> {
    type Error = Error;

    fn try_from(bytes: &'n [u8]) -> Result<Self> {
        Self::new(bytes)
    }
}

/// Whether a name is `.` or `..`.
pub(super) fn is_dot(name: &[u8]) -> bool {
    matches!(name, b"." | b"..")
}

/// Whether a name has a `/` or a NUL.
pub(super) fn has_forbidden_byte(name: &[u8]) -> bool {
    name.iter().any(|byte| matches!(byte, b'/' | 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits() {
        assert!(FileName::new(&[b'a'; 255]).is_ok());
        assert!(matches!(
            FileName::new(&[b'a'; 256]),
            Err(Error::NameTooLong)
        ));
        for bad in [&b""[..], b"a/b", b"a\0"] {
            assert!(matches!(FileName::new(bad), Err(Error::Invalid)));
        }
        assert!(FileName::new(b"..").is_ok_and(FileName::is_dot));
        assert!(!FileName::new(b"...").is_ok_and(FileName::is_dot));
    }
}
