//! `Size`: what growing a volume changes of its geometry, shared by all who hold it.
//!
//! Read everywhere and changed hardly ever: each number is an atomic. A reader in the middle of a change may
//! see some old and some new ones, which is as good as reading before it: numbers only grow, groups that
//! there were stay where they were, and nobody knows a block or inode of the new part before the change is
//! over.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// First meta block group of a volume that has none.
const NO_META_BG: u32 = u32::MAX;

/// What growing changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeFacts {
    /// Blocks of the volume.
    pub blocks_count: u64,
    /// Block groups.
    pub groups_count: u32,
    /// Blocks kept after the descriptor table for its growth.
    pub reserved_gdt_blocks: u32,
    /// First meta block group, counted in descriptor blocks; `None` without meta block groups.
    pub first_meta_bg: Option<u32>,
}

/// The same, shared.
#[derive(Debug)]
pub(super) struct Size {
    blocks_count: AtomicU64,
    groups_count: AtomicU32,
    reserved_gdt_blocks: AtomicU32,
    first_meta_bg: AtomicU32,
}

impl Size {
    pub(super) fn new(facts: SizeFacts) -> Self {
        let size = Self {
            blocks_count: AtomicU64::new(0),
            groups_count: AtomicU32::new(0),
            reserved_gdt_blocks: AtomicU32::new(0),
            first_meta_bg: AtomicU32::new(NO_META_BG),
        };
        size.store(facts);
        size
    }

    pub(super) fn store(&self, facts: SizeFacts) {
        let first = facts.first_meta_bg.unwrap_or(NO_META_BG);
        self.first_meta_bg.store(first, Ordering::Release);
        let reserved = facts.reserved_gdt_blocks;
        self.reserved_gdt_blocks.store(reserved, Ordering::Release);
        // Whoever sees a group sees its blocks.
        self.blocks_count
            .store(facts.blocks_count, Ordering::Release);
        self.groups_count
            .store(facts.groups_count, Ordering::Release);
    }

    pub(super) fn load(&self) -> SizeFacts {
        let groups_count = self.groups_count();
        SizeFacts {
            blocks_count: self.blocks_count(),
            groups_count,
            reserved_gdt_blocks: self.reserved_gdt_blocks.load(Ordering::Acquire),
            first_meta_bg: self.first_meta_bg(),
        }
    }

    #[inline]
    pub(super) fn blocks_count(&self) -> u64 {
        self.blocks_count.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn groups_count(&self) -> u32 {
        self.groups_count.load(Ordering::Acquire)
    }

    #[inline]
    pub(super) fn first_meta_bg(&self) -> Option<u32> {
        let first = self.first_meta_bg.load(Ordering::Acquire);
        (first != NO_META_BG).then_some(first)
    }
}

impl PartialEq for Size {
    fn eq(&self, other: &Self) -> bool {
        self.load() == other.load()
    }
}

impl Eq for Size {}
