//! The table of snapshots, written anew with each change: what is not in the newest one is deleted.

use crate::error::Error;
use crate::time::Timestamp;

/// Bytes of a name.
pub const NAME_MAX: usize = 255;
/// Bytes of a comment.
pub const COMMENT_MAX: usize = 1024;

/// Why a name or a comment cannot be a snapshot's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// What cannot be a file's name.
    #[error("a name is not empty, and neither . nor ..")]
    NoName,
    /// What cannot be in one, or breaks a list.
    #[error("a name has no slashes and no control characters")]
    Characters,
    /// Longer than [`NAME_MAX`].
    #[error("a name has at most {NAME_MAX} bytes")]
    NameTooLong,
    /// Longer than [`COMMENT_MAX`].
    #[error("a comment has at most {COMMENT_MAX} bytes")]
    CommentTooLong,
}

/// Checks the name of a new snapshot.
///
/// # Errors
/// What is wrong with it.
pub fn check_name(name: &str) -> Result<(), NameError> {
    match name {
        "" | "." | ".." => Err(NameError::NoName),
        name if name.contains('/') || name.chars().any(char::is_control) => {
            Err(NameError::Characters)
        }
        name if name.len() > NAME_MAX => Err(NameError::NameTooLong),
        _ => Ok(()),
    }
}

/// Checks the comment of a new snapshot.
///
/// # Errors
/// What is wrong with it.
pub fn check_comment(comment: &str) -> Result<(), NameError> {
    match comment.len() {
        ..=COMMENT_MAX => Ok(()),
        _ => Err(NameError::CommentTooLong),
    }
}

impl From<NameError> for Error {
    fn from(error: NameError) -> Self {
        match error {
            NameError::NoName | NameError::Characters => Self::Invalid,
            NameError::NameTooLong | NameError::CommentTooLong => Self::NameTooLong,
        }
    }
}

/// A snapshot as its table names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotRecord {
    /// Grows with each snapshot, and is never used again.
    pub id: u32,
    /// Its name, unique among the snapshots of the volume.
    pub name: String,
    /// What its maker had to say.
    pub comment: String,
    /// When it was taken.
    pub time: Timestamp,
}

/// All snapshots, oldest first, and what is being done with them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) snapshots: Vec<SnapshotRecord>,
    /// The next snapshot's id.
    pub(super) next_id: u32,
    /// The snapshot that the volume is being set back to, if an interrupted restore has to go on.
    pub(super) restoring: Option<u32>,
}

impl Table {
    pub(super) fn find(&self, name: &str) -> Option<&SnapshotRecord> {
        self.snapshots.iter().find(|record| record.name == name)
    }

    /// The ids of all snapshots, oldest first.
    pub(super) fn ids(&self) -> Vec<u32> {
        self.snapshots.iter().map(|record| record.id).collect()
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((self.snapshots.len() as u32).to_le_bytes());
        bytes.extend(self.next_id.to_le_bytes());
        bytes.extend(self.restoring.unwrap_or(0).to_le_bytes());
        for record in &self.snapshots {
            bytes.extend(record.id.to_le_bytes());
            bytes.extend(record.time.seconds.to_le_bytes());
            bytes.extend(record.time.nanoseconds.to_le_bytes());
            bytes.extend((record.name.len() as u16).to_le_bytes());
            bytes.extend((record.comment.len() as u16).to_le_bytes());
            bytes.extend(record.name.as_bytes());
            bytes.extend(record.comment.as_bytes());
        }
        bytes
    }

    /// `None` for what is no table.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader(bytes);
        let count = reader.u32()?;
        let next_id = reader.u32()?;
        let restoring = Some(reader.u32()?).filter(|id| *id != 0);
        let mut snapshots: Vec<SnapshotRecord> = Vec::new();
        for _ in 0..count {
            let id = reader.u32()?;
            let seconds = i64::from_le_bytes(reader.take(8)?.try_into().ok()?);
            let nanoseconds = reader.u32()?;
            let (name, comment) = (reader.u16()?, reader.u16()?);
            if snapshots.last().is_some_and(|last| last.id >= id) || id >= next_id {
                return None;
            }
            snapshots.push(SnapshotRecord {
                id,
                name: reader.text(name)?,
                comment: reader.text(comment)?,
                time: Timestamp {
                    seconds,
                    nanoseconds,
                },
            });
        }
        Some(Self {
            snapshots,
            next_id,
            restoring,
        })
    }
}

struct Reader<'b>(&'b [u8]);

impl<'b> Reader<'b> {
    fn take(&mut self, len: usize) -> Option<&'b [u8]> {
        let (now, later) = self.0.split_at_checked(len)?;
        self.0 = later;
        Some(now)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn text(&mut self, len: u16) -> Option<String> {
        String::from_utf8(self.take(usize::from(len))?.to_vec()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_survive_and_garbage_does_not() {
        let record = |id, name: &str| SnapshotRecord {
            id,
            name: name.into(),
            comment: "before the upgrade".into(),
            time: Timestamp::from_seconds(-5),
        };
        let table = Table {
            snapshots: vec![record(3, "a"), record(9, "b")],
            next_id: 10,
            restoring: Some(3),
        };
        let bytes = table.encode();
        assert_eq!(Table::decode(&bytes), Some(table.clone()));
        assert_eq!(table.find("b").map(|record| record.id), Some(9));
        for len in 0..bytes.len() {
            assert_eq!(Table::decode(&bytes[..len]), None);
        }
        let reversed = Table {
            snapshots: vec![record(9, "b"), record(3, "a")],
            ..table
        };
        assert_eq!(Table::decode(&reversed.encode()), None);
    }
}
