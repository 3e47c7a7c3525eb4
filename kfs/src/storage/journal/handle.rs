//! `Handle`: the right to change metadata blocks, bounded by credits.
//!
//! The rule for its users is *plan, then apply*: what can fail (reads, allocation, name checks) comes
//! before the first write access, for there is no rolling back. An operation that fails after it has
//! changed something must either undo its changes through the same handle or call
//! [`Handle::abort`], which makes the volume read-only before the half-made change can commit.
//!
//! Lock order: starting a handle may wait for a commit, which waits for all open handles. So no lock
//! that is held while a handle is started may be taken by anyone who has a handle open; debug builds
//! see to that (`crate::sync`).

use super::Journal;
use crate::ids::{BlockNr, Tid};
use crate::storage::buffer::{Buffer, BufferWrite};
use crate::sync::Held;
use std::sync::Arc;

/// An open update of the running transaction. Dropping it stops it.
pub struct Handle<'j> {
    pub(super) journal: &'j Journal,
    pub(super) tid: Tid,
    pub(super) serial: u64,
    /// Blocks that may still join the transaction on behalf of this handle.
    pub(super) credits: u32,
    pub(super) modified: bool,
    pub(super) _held: Held,
}

impl Handle<'_> {
    /// The transaction that the handle's changes belong to.
    #[must_use]
    pub fn tid(&self) -> Tid {
        self.tid
    }

    /// Whether the handle has changed anything.
    #[must_use]
    pub fn is_modified(&self) -> bool {
        self.modified
    }

    /// Blocks that the handle may still add to the transaction.
    #[must_use]
    pub fn credits(&self) -> u32 {
        self.credits
    }

    /// Exclusive access to a buffer's bytes, which become part of the transaction.
    ///
    /// Cannot fail: after a journal abort the change stays in memory and never reaches the device.
    pub fn get_write_access<'b>(&mut self, buffer: &'b Arc<Buffer>) -> BufferWrite<'b> {
        self.modified = true;
        if buffer.transaction() != self.serial {
            self.journal.join(self, buffer, false);
        }
        buffer.write()
    }

    /// Like [`Handle::get_write_access`] for a newly allocated block (see
    /// [`BufferCache::get_zeroed`](crate::storage::BufferCache::get_zeroed)): the content is zeroed,
    /// an earlier revoke in this transaction is cancelled, and no pre-image of it is of interest
    /// unless a snapshot sees the block.
    pub fn get_create_access<'b>(&mut self, buffer: &'b Arc<Buffer>) -> BufferWrite<'b> {
        self.modified = true;
        self.journal.join(self, buffer, true);
        let mut bytes = buffer.write();
        bytes.fill(0);
        buffer.set_verified();
        bytes
    }

    /// A metadata block was freed: its content needs no writing any more, and copies of it in the
    /// log must not be replayed over what the block may hold next.
    pub fn forget(&mut self, block: BlockNr) {
        self.modified = true;
        self.journal.revoke(self, block);
    }

    /// Gives up: the transaction will never commit, the volume takes no more changes.
    pub fn abort(&self, reason: &crate::Error) {
        self.journal.abort(reason);
    }
}

impl Drop for Handle<'_> {
    fn drop(&mut self) {
        self.journal.stop(self);
    }
}
