//! Holes in the image where blocks are free and no snapshot keeps them.

use super::{Watch, tell};
use crate::error::{Error, IoOp, ReadOnlyReason, Result};
use crate::fs::Filesystem;
use crate::ids::GroupNr;

/// Shortest run that is worth a hole, in bytes.
const RUN_BYTES_MIN: u64 = 64 << 10;

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
        let size = volume.block_size();
        let least = u32::try_from(RUN_BYTES_MIN / size).unwrap_or(1).max(1);
        let groups = volume.geometry.groups_count();
        let mut bytes = 0;
        for group in 0..groups {
            let _change = self.begin_change();
            // Nobody gets these blocks before the device has heard of them.
            for run in volume.allocator.reserve_free_runs(GroupNr(group), least)? {
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
            }
            tell(watch, (group + 1).into(), groups.into())?;
        }
        Ok(bytes)
    }
}
