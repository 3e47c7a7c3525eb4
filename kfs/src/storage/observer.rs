//! What the storage layer tells the layers above, through traits that it owns.

use crate::ids::{BlockNr, Tid};
use std::sync::Arc;

/// Told of the life of transactions. All calls come without any journal lock that a handle needs.
pub trait CommitObserver: Send + Sync {
    /// `tid` is durable: what it freed may be used again.
    fn committed(&self, tid: Tid);
}

/// Keeps the old content of blocks for snapshots.
pub trait PreImageSink: Send + Sync {
    /// `content` is what block `nr` held at the end of the last transaction; it is about to be
    /// changed for the first time in transaction `tid`.
    fn pre_image(&self, tid: Tid, nr: BlockNr, content: &Arc<[u8]>);

    /// Makes what was kept for `tid` reach the device; the flush that follows makes it durable,
    /// before the commit block is written.
    ///
    /// # Errors
    /// When the device fails: the commit fails with it.
    fn write_out(&self, tid: Tid) -> crate::Result<()>;
}
