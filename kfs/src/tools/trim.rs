//! Holes in the image where blocks are free and no snapshot keeps them.

use super::{Watch, tell};
use crate::error::{Error, IoOp, ReadOnlyReason, Result};
use crate::fs::Filesystem;
use crate::ids::GroupNr;

/// Shortest run that is worth a hole, in bytes.
const RUN_BYTES_MIN: u64 = 64 << 10;

/// Bytes that nobody else gets at a time: a volume that is nearly full has few others.
const PIECE_BYTES: u64 = 16 << 20;

impl Filesystem {
    /// Tells the device which blocks are free, and returns how many bytes that are. `watch` is told
    /// the groups done and the number of all; the volume is used meanwhile.
    ///
    /// # Errors
    /// `ReadOnly`, `Corrupt`, `Interrupted`, and `Io` when the device cannot.
    pub fn trim(&self, watch: &mut Watch<'_>) -> Result<u64> {
        let volume = &self.volume;
        match volume.read_only() {
            Some(reason @ (ReadOnlyReason::Error | ReadOnlyReason::Closed)) => {
                return Err(Error::ReadOnly { reason });
            }
            Some(reason) => return Err(Error::ReadOnly { reason }),
            None => {}
        }
        // What was freed is free when the transaction that did it is durable.
        volume.journal.commit_all()?;
        let groups = volume.geometry.groups_count();
        let mut bytes = 0;
        for group in 0..groups {
            let _change = self.begin_change();
            bytes += self.trim_group(GroupNr(group))?;
            tell(watch, (group + 1).into(), groups.into())?;
        }
        Ok(bytes)
    }
    fn trim_group(&self, group: GroupNr) -> Result<u64> {
        let volume = &self.volume;
        let size = volume.block_size();
        let blocks = |bytes: u64| u32::try_from(bytes / size).unwrap_or(u32::MAX).max(1);
        let lengths = (blocks(RUN_BYTES_MIN), blocks(PIECE_BYTES));
        let first = volume.geometry.group_first_block(group).0;
        let (mut from, mut bytes) = (0, 0);
        // Nobody gets these blocks before the device has heard of them.
        while let Some(run) = volume.allocator.reserve_free_run(group, from, lengths)? {
            let (start, len) = (run.run().start, u64::from(run.len()) * size);
            let told = volume
                .device()
                .discard(volume.geometry.offset_of(start), len);
            told.map_err(|source| Error::Io {
                op: IoOp::Write,
                block: start,
                source,
            })?;
            bytes += len;
            from = u32::try_from(run.run().end().0 - first).expect("a group is that small");
        }
        Ok(bytes)
    }
}
