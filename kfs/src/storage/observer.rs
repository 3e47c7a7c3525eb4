//! What the storage layer tells the layers above, through traits that it owns.

use super::Buffer;
use crate::ids::Tid;

/// Told of the life of transactions. All calls come without any journal lock that a handle needs.
pub trait CommitObserver: Send + Sync {
    /// `tid` is durable: what it freed may be used again.
    fn committed(&self, tid: Tid);
}

/// What a handle wants room in the snapshot store for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StorePurpose {
    /// A change of the volume.
    Operation,
    /// The growth of the store itself, which may use what is held back for it.
    Growth,
}

/// Keeps the old content of blocks for snapshots. Called with the journal's lock held, but for
/// [`PreImageSink::write_out`].
pub trait PreImageSink: Send + Sync {
    /// Promises room for the old content of `blocks` blocks. Returns whether there is.
    fn reserve(&self, blocks: u32, purpose: StorePurpose) -> bool;

    /// Takes back a promise that was not used.
    fn release(&self, blocks: u32);

    /// A block joins transaction `tid`, whose handle has reserved room: the buffer still has what the
    /// last transaction left, or, if the block is new, nothing that counts.
    fn join(&self, tid: Tid, buffer: &Buffer, is_new: bool);

    /// Makes what was kept for `tid` reach the device; the flush that follows makes it durable,
    /// before the commit block is written.
    ///
    /// # Errors
    /// When the device fails: the commit fails with it.
    fn write_out(&self, tid: Tid) -> crate::Result<()>;
}
