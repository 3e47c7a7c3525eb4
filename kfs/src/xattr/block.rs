//! `XattrBlock`: the block of attributes in the cache, and how it changes within a handle.

use super::region::{self, Entry};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::{BlockNr, InodeNr};
use crate::layout::Geometry;
use crate::layout::xattr::{
    RawXattrHeader, XATTR_MAGIC, XATTR_REFCOUNT_MAX, block_hash, update_checksum, verify_checksum,
};
use crate::storage::{Buffer, BufferCache, Handle};
use crate::sync::Guard;
use parking_lot::MappedRwLockReadGuard;
use std::sync::Arc;
use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

/// Blocks of attributes that a change may touch: an old one and a new one.
pub const CREDITS: u32 = 2;

const HEADER: usize = size_of::<RawXattrHeader>();

/// Checks a block's header and gives the count of inodes that share the block.
fn check_header(nr: BlockNr, block: &[u8]) -> Result<u32> {
    let header = RawXattrHeader::ref_from_prefix(block).ok();
    let Some((header, _)) = header.filter(|(header, _)| header.h_magic.get() == XATTR_MAGIC) else {
        return Err(Corrupt::XattrBlockMagic { block: nr }.into());
    };
    if header.h_blocks.get() != 1 {
        return Err(Corrupt::XattrBlockLength {
            block: nr,
            blocks: header.h_blocks.get(),
        }
        .into());
    }
    let count = header.h_refcount.get();
    if !(1..=XATTR_REFCOUNT_MAX).contains(&count) {
        return Err(Corrupt::XattrBlockCount { block: nr, count }.into());
    }
    Ok(count)
}

/// The entries of a block, and whether other inodes share it.
pub(super) fn parse(inode: InodeNr, nr: BlockNr, block: &[u8]) -> Result<(Vec<Entry<'_>>, bool)> {
    let count = check_header(nr, block)?;
    Ok((region::parse(inode, block, HEADER)?, count > 1))
}

/// Whether the entries fit a block of `len` bytes.
pub(super) fn fits(entries: &[Entry<'_>], len: usize) -> bool {
    region::fits(entries, HEADER, len)
}

/// A block of `len` bytes for one inode with entries that fit it, without checksum.
pub(super) fn encode(mut entries: Vec<Entry<'_>>, len: usize) -> Vec<u8> {
    entries.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
    let mut block = vec![0; len];
    let hashes = region::encode(&mut block, HEADER, &entries, true);
    let mut header = RawXattrHeader::new_zeroed();
    header.h_magic = U32::new(XATTR_MAGIC);
    header.h_refcount = U32::new(1);
    header.h_blocks = U32::new(1);
    header.h_hash = U32::new(block_hash(hashes));
    block[..HEADER].copy_from_slice(header.as_bytes());
    block
}

/// The block that holds an inode's attributes, checked.
#[derive(Clone, Debug)]
pub struct XattrBlock {
    buffer: Arc<Buffer>,
}

impl XattrBlock {
    /// Reads the block and checks header and checksum.
    ///
    /// # Errors
    /// `Io`; [`Corrupt`] variants.
    pub fn open(cache: &BufferCache, geometry: &Geometry, nr: BlockNr) -> Result<Self> {
        let buffer = cache.get(nr)?;
        {
            let bytes = buffer.read();
            check_header(nr, &bytes)?;
            if !buffer.is_verified() {
                if !verify_checksum(geometry.csum_seed, nr, &bytes) {
                    return Err(Corrupt::XattrBlockChecksum { block: nr }.into());
                }
                buffer.set_verified();
            }
        }
        Ok(Self { buffer })
    }

    /// Its number.
    #[must_use]
    pub fn nr(&self) -> BlockNr {
        self.buffer.nr()
    }

    /// Its bytes, to parse a set from. Not to be held when a handle changes the block.
    pub fn read(&self) -> Guard<MappedRwLockReadGuard<'_, [u8]>> {
        self.buffer.read()
    }

    /// One inode more uses the block.
    pub(crate) fn share(&self, handle: &mut Handle<'_>, geometry: &Geometry) {
        let mut bytes = handle.get_write_access(&self.buffer);
        let (header, _) = RawXattrHeader::mut_from_prefix(&mut bytes).expect("checked by open");
        header.h_refcount = U32::new(header.h_refcount.get() + 1);
        update_checksum(geometry.csum_seed, self.buffer.nr(), &mut bytes);
    }

    /// The content of a block for one inode with the same attributes, without checksum.
    pub(crate) fn content_for_one(&self) -> Vec<u8> {
        let mut content = self.read().to_vec();
        let (header, _) = RawXattrHeader::mut_from_prefix(&mut content).expect("checked by open");
        header.h_refcount = U32::new(1);
        content
    }

    /// One inode less uses the block. When that was the last, gives the block for the caller to
    /// free in the same handle; its revoke is done.
    #[must_use = "a block that nobody uses must be freed"]
    pub fn release(self, handle: &mut Handle<'_>, geometry: &Geometry) -> Option<BlockNr> {
        let nr = self.nr();
        if !self.is_shared() || !self.lower_count(handle, geometry) {
            handle.forget(nr);
            return Some(nr);
        }
        None
    }

    fn is_shared(&self) -> bool {
        refcount(&self.read()) > 1
    }

    /// Whether others are left. The count may have sunk to one since it was looked at.
    fn lower_count(&self, handle: &mut Handle<'_>, geometry: &Geometry) -> bool {
        let mut bytes = handle.get_write_access(&self.buffer);
        let count = refcount(&bytes);
        if count <= 1 {
            return false;
        }
        let (header, _) = RawXattrHeader::mut_from_prefix(&mut bytes).expect("checked by open");
        header.h_refcount = U32::new(count - 1);
        update_checksum(geometry.csum_seed, self.buffer.nr(), &mut bytes);
        true
    }
}

fn refcount(block: &[u8]) -> u32 {
    let (header, _) = RawXattrHeader::ref_from_prefix(block).expect("checked by open");
    header.h_refcount.get()
}

/// What becomes of the block by a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockChange {
    /// Nothing.
    Unchanged,
    /// New content for the inode's own block.
    Overwrite(Vec<u8>),
    /// Content for a new block; an old one is shared and loses this inode.
    Create(Vec<u8>),
    /// The inode has no block any more.
    Release,
}

/// What the caller has to do after [`BlockChange::apply`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Applied {
    /// The block of the inode from here on.
    pub block: Option<BlockNr>,
    /// A block to be freed in the same handle.
    pub freed: Option<BlockNr>,
}

impl BlockChange {
    /// Whether [`BlockChange::apply`] wants a newly allocated block.
    #[must_use]
    pub fn needs_block(&self) -> bool {
        matches!(self, Self::Create(_))
    }

    /// Makes the change. `current` is the block that the plan was made from; `new` the buffer of an
    /// allocated block ([`BufferCache::get_zeroed`]) when [`BlockChange::needs_block`].
    ///
    /// # Panics
    /// When `current` or `new` is missing where the change needs it.
    pub fn apply(
        self,
        handle: &mut Handle<'_>,
        geometry: &Geometry,
        current: Option<XattrBlock>,
        new: Option<&Arc<Buffer>>,
    ) -> Applied {
        let nr = current.as_ref().map(XattrBlock::nr);
        match self {
            Self::Unchanged => Applied {
                block: nr,
                freed: None,
            },
            Self::Overwrite(content) => {
                let current = current.expect("the plan was made from a block");
                let mut bytes = handle.get_write_access(&current.buffer);
                bytes.copy_from_slice(&content);
                update_checksum(geometry.csum_seed, current.nr(), &mut bytes);
                Applied {
                    block: nr,
                    freed: None,
                }
            }
            Self::Create(content) => {
                let new = new.expect("the caller was told that a block is needed");
                let mut bytes = handle.get_create_access(new);
                bytes.copy_from_slice(&content);
                update_checksum(geometry.csum_seed, new.nr(), &mut bytes);
                drop(bytes);
                Applied {
                    block: Some(new.nr()),
                    freed: current.and_then(|block| block.release(handle, geometry)),
                }
            }
            Self::Release => Applied {
                block: None,
                freed: current.and_then(|block| block.release(handle, geometry)),
            },
        }
    }
}
