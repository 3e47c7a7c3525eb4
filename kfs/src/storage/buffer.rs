//! `Buffer`: one metadata block in memory.
//!
//! The content is an `Arc<[u8]>` that is copied on write: a commit takes a reference to it and
//! handles may go on changing the buffer, which copies the block only when a commit or a checkpoint
//! still holds the old content. Write access is given by [`Handle::get_write_access`] alone, so a
//! change of metadata outside a transaction does not compile.
//!
//! [`Handle::get_write_access`]: super::Handle::get_write_access

use crate::ids::BlockNr;
use crate::sync::{Guard, Rank, RwLock, WriteGuard};
use parking_lot::MappedRwLockReadGuard;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A metadata block. Shared by reference; two buffers of one block never exist at a time.
pub struct Buffer {
    nr: BlockNr,
    /// `None` until the block was read or created.
    content: RwLock<Option<Arc<[u8]>>>,
    /// Serial number of the running transaction that the buffer belongs to, 0 for none.
    transaction: AtomicU64,
    /// Whether its owner has verified the content's checksum since it was read.
    verified: AtomicBool,
}

impl Buffer {
    pub(super) fn new(nr: BlockNr) -> Self {
        Self {
            nr,
            content: RwLock::new(Rank::Buffer, None),
            transaction: AtomicU64::new(0),
            verified: AtomicBool::new(false),
        }
    }

    /// A block that is on no device: put together from elsewhere, for reading.
    pub(crate) fn detached(content: Arc<[u8]>) -> Self {
        Self {
            nr: BlockNr(0),
            content: RwLock::new(Rank::Buffer, Some(content)),
            transaction: AtomicU64::new(0),
            verified: AtomicBool::new(true),
        }
    }

    /// The block that this buffer holds.
    #[must_use]
    pub fn nr(&self) -> BlockNr {
        self.nr
    }

    /// The content, locked against change while the guard lives.
    pub fn read(&self) -> Guard<MappedRwLockReadGuard<'_, [u8]>> {
        self.content.read().map(|content| {
            content
                .as_deref()
                .expect("a buffer leaves the cache only when loaded")
        })
    }

    /// The content as it is now, unaffected by later changes.
    #[must_use]
    pub fn freeze(&self) -> Arc<[u8]> {
        let content = self.content.read();
        content
            .clone()
            .expect("a buffer leaves the cache only when loaded")
    }

    /// Whether [`Buffer::set_verified`] was called since the block was read or created.
    #[must_use]
    pub fn is_verified(&self) -> bool {
        self.verified.load(Ordering::Acquire)
    }

    /// Notes that the checksum was found right, so that it is computed once a read.
    pub fn set_verified(&self) {
        self.verified.store(true, Ordering::Release);
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.content.read().is_some()
    }

    /// Loads the content unless it is there: `read` fills it. Concurrent callers wait.
    pub(super) fn load<E>(&self, read: impl FnOnce() -> Result<Arc<[u8]>, E>) -> Result<bool, E> {
        let mut content = self.content.write();
        if content.is_some() {
            return Ok(false);
        }
        *content = Some(read()?);
        Ok(true)
    }

    pub(super) fn transaction(&self) -> u64 {
        self.transaction.load(Ordering::Acquire)
    }

    pub(super) fn set_transaction(&self, serial: u64) {
        self.transaction.store(serial, Ordering::Release);
    }

    pub(super) fn write(&self) -> BufferWrite<'_> {
        BufferWrite {
            content: self.content.write(),
        }
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({})", self.nr)
    }
}

/// Exclusive access to a buffer's bytes. The block belongs to the handle's transaction.
pub struct BufferWrite<'b> {
    content: WriteGuard<'b, Option<Arc<[u8]>>>,
}

impl Deref for BufferWrite<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.content
            .as_deref()
            .expect("write access is given to loaded buffers")
    }
}

impl DerefMut for BufferWrite<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let content = self
            .content
            .as_mut()
            .expect("write access is given to loaded buffers");
        Arc::make_mut(content)
    }
}
