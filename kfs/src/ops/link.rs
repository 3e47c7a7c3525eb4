//! Hard links, and targets of symbolic links.

use super::{LINKS_MAX, file_type};
use crate::corrupt::Corrupt;
use crate::dir::FileName;
use crate::error::{Error, Result};
use crate::file::SliceSink;
use crate::fs::Filesystem;
use crate::inode::{CREDITS_INODE, CREDITS_ORPHAN, Inode};
use crate::layout::inode::{BLOCK_AREA_SIZE, InodeBytes, InodeFlags};
use std::sync::Arc;

impl Filesystem {
    /// Makes another name for an inode.
    ///
    /// # Errors
    /// `NotPermitted` for directories and immutable inodes, `Exists`, `TooManyLinks`, `NotFound` for
    /// an inode that lost its last name, `NoSpace`, `ReadOnly`, `Corrupt`, `Io`.
    pub fn link(&self, inode: &Arc<Inode>, directory: &Inode, name: &[u8]) -> Result<()> {
        let name = self.new_name(directory, name)?;
        if inode.is_directory() {
            return Err(Error::NotPermitted);
        }
        inode.check_changeable()?;
        let _io = directory.io.write();
        self.check_entries_changeable(directory, false)?;
        // Whoever deletes the inode takes this lock exclusively.
        let _alive = inode.io.read();
        self.with_space(|| self.link_once(inode, directory, name))
    }

    fn link_once(&self, inode: &Arc<Inode>, directory: &Inode, name: FileName<'_>) -> Result<()> {
        let links = self.orphans.links(inode).ok_or(Error::NotFound)?;
        if links >= LINKS_MAX {
            return Err(Error::TooManyLinks);
        }
        let credits = self.entry_credits(directory)? + CREDITS_INODE + CREDITS_ORPHAN;
        self.volume.transact(credits, |handle| {
            let kind = file_type(inode.mode());
            self.directory(directory)
                .add(handle, name, inode.nr(), kind)?;
            self.touch_directory(directory, handle, 0);
            // A file made by O_TMPFILE gets its first name.
            let now = self.volume.now();
            self.orphans
                .gain_name(&self.volume, handle, inode, |fields| {
                    fields.set_links_count(fields.links_count() + 1);
                    fields.set_ctime(now);
                });
            Ok(())
        })
    }

    /// The target of a symbolic link.
    ///
    /// # Errors
    /// `Invalid` for anything else, `Corrupt`, `Io`.
    pub fn read_link(&self, inode: &Arc<Inode>) -> Result<Vec<u8>> {
        if !inode.is_symlink() {
            return Err(Error::Invalid);
        }
        let size = inode.size_bytes();
        {
            let state = inode.state();
            let fields = state.fields();
            if is_fast_symlink(fields) {
                let target = fields.block_area().get(..size as usize);
                let nr = inode.nr();
                let target = target.ok_or(Corrupt::SymlinkSize { inode: nr, size })?;
                return Ok(target.to_vec());
            }
        }
        if size > self.volume.block_size() {
            return Err(Corrupt::SymlinkSize {
                inode: inode.nr(),
                size,
            }
            .into());
        }
        let mut target = vec![0; size as usize];
        self.file(inode)
            .read(0, target.len(), &mut SliceSink::new(&mut target))?;
        Ok(target)
    }
}

/// Whether a symbolic link's target lies in the inode itself.
pub(super) fn is_fast_symlink(fields: &InodeBytes<Box<[u8]>>) -> bool {
    fields.size_bytes() < BLOCK_AREA_SIZE as u64 && !fields.flags().contains(InodeFlags::EXTENTS)
}
