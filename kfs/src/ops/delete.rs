//! Deleting inodes that have no names left.

use crate::allocator::FREE_INODE_CREDITS;
use crate::error::{Error, Result};
use crate::extent::LOGICAL_END;
use crate::fs::Filesystem;
use crate::ids::{BlockNr, Run};
use crate::inode::{CREDITS_INODE, CREDITS_ORPHAN, Inode};
use crate::layout::inode::{InodeFlags, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG};
use crate::storage::Handle;
use crate::xattr::{self, XattrBlock};
use std::sync::Arc;

impl Filesystem {
    /// Deletes an inode that has lost its last name, unless a client still holds it.
    pub(crate) fn delete_unreferenced(&self, inode: &Arc<Inode>) -> Result<()> {
        let _io = inode.io.write();
        // Somebody may have taken a reference, or given the inode a name, before the lock was ours.
        if inode.references() > 0 || inode.state().fields().links_count() > 0 {
            return Ok(());
        }
        self.delete_locked(inode)
    }

    /// Deletes an orphan without names: its blocks, its attributes, itself.
    pub(crate) fn delete(&self, inode: &Arc<Inode>) -> Result<()> {
        let _io = inode.io.write();
        self.delete_locked(inode)
    }

    fn delete_locked(&self, inode: &Arc<Inode>) -> Result<()> {
        if inode.is_deleted() {
            return Ok(());
        }
        let deleted = self.delete_now(inode);
        if matches!(deleted, Err(Error::NoSpace | Error::SnapshotStoreFull)) {
            inode.set_deletion_due();
        }
        deleted
    }

    fn delete_now(&self, inode: &Arc<Inode>) -> Result<()> {
        if has_blocks(inode) {
            self.file(inode).free_all()?;
        }
        let xattr_block = self.xattr_block(inode)?;
        self.volume.allocator.check_free_inode(inode.nr())?;
        let credits = CREDITS_INODE + CREDITS_ORPHAN + FREE_INODE_CREDITS + xattr::CREDITS + 2;
        self.volume.transact(credits, |handle| {
            self.release_xattr_block(handle, xattr_block)?;
            self.orphans.remove(&self.volume, handle, inode);
            self.free_inode(handle, inode)
        })
    }

    /// Undoes the making of an inode within the handle that made it.
    pub(super) fn discard(&self, handle: &mut Handle<'_>, inode: &Arc<Inode>) -> Result<()> {
        if has_blocks(inode) {
            inode.remove_blocks(&self.volume, handle, 0, LOGICAL_END)?;
        }
        let xattr_block = self.xattr_block(inode)?;
        self.release_xattr_block(handle, xattr_block)?;
        self.free_inode(handle, inode)
    }

    fn free_inode(&self, handle: &mut Handle<'_>, inode: &Arc<Inode>) -> Result<()> {
        let is_directory = inode.is_directory();
        let now = self.volume.now();
        inode.update(&self.volume, handle, |state, _| {
            let fields = state.fields_mut();
            fields.set_links_count(0);
            fields.set_size_bytes(0);
            fields.set_file_acl(0);
            // Not 0, which in an inode without links would mean that it is an orphan.
            fields.set_dtime(u32::try_from(now.seconds.max(1)).unwrap_or(u32::MAX));
        });
        inode.set_deleted();
        // Last: from here on the number may be somebody else's.
        self.volume
            .allocator
            .free_inode(handle, inode.nr(), is_directory)
    }

    fn xattr_block(&self, inode: &Inode) -> Result<Option<XattrBlock>> {
        match inode.state().fields().file_acl() {
            0 => Ok(None),
            nr => {
                let volume = &self.volume;
                // What frees it later must not fail.
                volume.allocator.check_free(Run {
                    start: BlockNr(nr),
                    len: 1,
                })?;
                XattrBlock::open(&volume.cache, &volume.geometry, BlockNr(nr)).map(Some)
            }
        }
    }

    fn release_xattr_block(
        &self,
        handle: &mut Handle<'_>,
        block: Option<XattrBlock>,
    ) -> Result<()> {
        let freed = block.and_then(|block| block.release(handle, &self.volume.geometry));
        match freed {
            Some(start) => self.volume.allocator.free(handle, Run { start, len: 1 }),
            None => Ok(()),
        }
    }
}

/// Whether the inode's block area maps blocks, rather than holding a short target or a device.
fn has_blocks(inode: &Inode) -> bool {
    let state = inode.state();
    let fields = state.fields();
    if fields.flags().contains(InodeFlags::INLINE_DATA) {
        return false;
    }
    match fields.mode() & S_IFMT {
        S_IFREG | S_IFDIR => true,
        S_IFLNK => !super::link::is_fast_symlink(fields),
        _ => false,
    }
}
