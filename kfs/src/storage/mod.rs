//! Metadata blocks in memory and their journal: the only layer that holds a device.
//!
//! What a handle promises to those above: all changes made through it become durable together with
//! all other handles of its transaction, or not at all; the changes are visible in the buffers at
//! once; they cannot fail.

mod buffer;
mod cache;
pub mod journal;
mod observer;

pub use buffer::{Buffer, BufferWrite};
pub use cache::{BufferCache, CacheStatistics};
pub use journal::{Handle, Journal, JournalStatistics};
pub use observer::{CommitObserver, PreImageSink, StorePurpose};
