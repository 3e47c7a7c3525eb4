//! SEEK_DATA and SEEK_HOLE.

use super::File;
use crate::error::{Error, Result};
use crate::extent::Mapping;

/// What to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeekTarget {
    /// The first byte that is stored.
    Data,
    /// The first byte that is not; there is a hole at the end of every file.
    Hole,
}

impl File<'_> {
    /// The first offset from `offset` on that lies in data or in a hole.
    ///
    /// # Errors
    /// `NoData` beyond the end of the file, or when no data follows; `Io`, `Corrupt`.
    pub(crate) fn seek(self, offset: u64, target: SeekTarget) -> Result<u64> {
        let _io = self.inode.io.read();
        self.check_alive()?;
        let size = self.inode.size_bytes();
        if offset >= size {
            return Err(Error::NoData);
        }
        if self.inode.has_inline_data() {
            return Ok(match target {
                SeekTarget::Data => offset,
                SeekTarget::Hole => size,
            });
        }
        let mut at = offset;
        while at < size {
            let logical = self.block_of(at)?;
            let mapping = self
                .inode
                .map(self.volume, logical, self.blocks_spanned(at, size))?;
            let (is_data, len) = match mapping {
                Mapping::Mapped { len, .. } => (true, len),
                // Reads as zeros, like a hole.
                Mapping::Unwritten { len, .. } | Mapping::Hole { len } => (false, len),
            };
            if is_data == (target == SeekTarget::Data) {
                return Ok(at);
            }
            let bits = self.volume.geometry.block_size_bits;
            at = (u64::from(logical.0) + u64::from(len)) << bits;
        }
        match target {
            SeekTarget::Hole => Ok(size),
            SeekTarget::Data => Err(Error::NoData),
        }
    }
}
