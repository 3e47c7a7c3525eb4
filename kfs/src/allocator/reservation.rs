//! `Reservation`: blocks promised to somebody, in memory only.
//!
//! They are busy for everyone else and not in use on disk until
//! [`Allocator::allocate`](super::Allocator::allocate) takes them. What is left when the reservation
//! is dropped may be handed out again.

use super::groups::GroupTable;
use crate::ids::{BlockNr, GroupNr, Run};
use std::sync::Arc;

/// A run of promised blocks, all in one group. While it lives the group's bitmap stays in memory.
pub struct Reservation {
    pub(super) table: Arc<GroupTable>,
    pub(super) group: GroupNr,
    /// Index of the first block in the group.
    pub(super) start: u32,
    pub(super) len: u32,
}

impl Reservation {
    /// The promised blocks.
    #[must_use]
    pub fn run(&self) -> Run {
        Run {
            start: self.start_block(),
            len: self.len,
        }
    }

    /// Number of promised blocks.
    #[must_use]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `at` blocks and returns the others.
    ///
    /// # Panics
    /// When there are fewer than `at`.
    #[must_use]
    pub fn split_off(&mut self, at: u32) -> Self {
        assert!(at <= self.len, "a split lies within the reservation");
        let rest = Self {
            table: Arc::clone(&self.table),
            group: self.group,
            start: self.start + at,
            len: self.len - at,
        };
        self.len = at;
        rest
    }

    /// Keeps the first `len` blocks, if there are more, and gives the others back.
    pub fn truncate(&mut self, len: u32) {
        if len < self.len {
            drop(self.split_off(len));
        }
    }

    /// Takes the first `len` blocks out of the promise.
    pub(super) fn take(&mut self, len: u32) -> Run {
        assert!(
            0 < len && len <= self.len,
            "an allocation lies within the reservation"
        );
        let run = Run {
            start: self.start_block(),
            len,
        };
        self.start += len;
        self.len -= len;
        run
    }

    fn start_block(&self) -> BlockNr {
        self.table
            .geometry
            .group_first_block(self.group)
            .plus(self.start.into())
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.len > 0 {
            self.table
                .give_back(self.group, self.start..self.start + self.len);
        }
    }
}

impl std::fmt::Debug for Reservation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Reservation").field(&self.run()).finish()
    }
}
