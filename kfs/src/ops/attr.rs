//! Attributes: stat(2), chmod(2), chown(2), truncate(2), utimensat(2), and flags.

use crate::error::{Error, Result};
use crate::file::WriteOptions;
use crate::fs::Filesystem;
use crate::ids::InodeNr;
use crate::inode::{Attr, CREDITS_INODE, Inode, InodeState, SetAttr, TimeChange};
use crate::layout::inode::{InodeFlags, S_IFDIR, S_IFMT};
use crate::time::Timestamp;
use crate::xattr;
use std::sync::Arc;

impl Filesystem {
    /// Attributes as they are now.
    #[must_use]
    pub fn attr(&self, inode: &Inode) -> Attr {
        let mut attr = inode.attr(&self.volume);
        // The directory of the snapshot store is a link to the root that nobody sees.
        if inode.nr() == InodeNr::ROOT && attr.links > 2 && self.hides_store() {
            attr.links -= 1;
        }
        attr
    }

    /// Changes attributes and returns the new ones. An empty change is what FUSE makes
    /// of chown(2) without any id: the time of change moves.
    ///
    /// # Errors
    /// `NotPermitted` for immutable inodes, `Invalid` for the size of anything but a regular file,
    /// `IsADirectory`, `FileTooLarge`, `ReadOnly`, `Stale`, `Corrupt`, `Io`.
    pub fn set_attr(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result<Attr> {
        if let Some(reason) = self.volume.read_only() {
            return Err(Error::ReadOnly { reason });
        }
        if inode.is_deleted() {
            return Err(Error::Stale);
        }
        self.check_attr_change(inode, change)?;
        if let Some(size) = change.size_bytes {
            self.set_size(inode, size, change.kill_privileges)?;
        }
        let rest = SetAttr {
            size_bytes: None,
            ..*change
        };
        if rest != SetAttr::default() || change.size_bytes.is_none() {
            self.set_fields(inode, &rest)?;
        }
        Ok(self.attr(inode))
    }

    fn check_attr_change(&self, inode: &Inode, change: &SetAttr) -> Result<()> {
        let flags = inode.state().fields().flags();
        if flags.contains(InodeFlags::IMMUTABLE) {
            return Err(Error::NotPermitted);
        }
        let only_now = SetAttr {
            atime: change.atime.filter(|time| *time != TimeChange::Now),
            mtime: change.mtime.filter(|time| *time != TimeChange::Now),
            ..*change
        };
        if flags.contains(InodeFlags::APPEND) && only_now != SetAttr::default() {
            return Err(Error::NotPermitted);
        }
        Ok(())
    }

    fn set_size(&self, inode: &Arc<Inode>, size: u64, kill_privileges: bool) -> Result<()> {
        if inode.is_directory() {
            return Err(Error::IsADirectory);
        }
        if !inode.is_regular() {
            return Err(Error::Invalid);
        }
        let options = WriteOptions {
            kill_privileges,
            ..WriteOptions::default()
        };
        self.file(inode).set_size(size, options)?;
        self.remove_capabilities(inode)
    }

    fn set_fields(&self, inode: &Arc<Inode>, change: &SetAttr) -> Result<()> {
        let alive = inode.io.read();
        if inode.is_deleted() {
            return Err(Error::Stale);
        }
        let now = self.volume.now();
        let acl = match change.mode {
            Some(mode) => self.acl_after_chmod(inode, mode)?,
            None => None,
        };
        self.with_space(|| {
            self.volume
                .transact(CREDITS_INODE + xattr::CREDITS + 4, |handle| {
                    if let Some((name, value)) = &acl {
                        let mode = xattr::SetMode::Any;
                        self.change_xattr(handle, inode, name, Some(value), mode)?;
                    }
                    inode.update(&self.volume, handle, |state, _| apply(state, change, now));
                    Ok(())
                })
        })?;
        drop(alive);
        if changes_owner(change) && !inode.is_directory() {
            self.remove_capabilities(inode)?;
        }
        Ok(())
    }

    /// Sets the flags that users may set, as chattr(1).
    ///
    /// # Errors
    /// `NotSupported` for flags that change how the inode is stored, `ReadOnly`, `Io`.
    pub fn set_flags(&self, inode: &Inode, flags: InodeFlags) -> Result<()> {
        let settable = settable_flags(inode);
        let before = inode.state().fields().flags();
        if (flags ^ before).intersects(InodeFlags::USER_VISIBLE - settable) {
            return Err(Error::NotSupported);
        }
        let now = self.volume.now();
        self.volume.transact(CREDITS_INODE, |handle| {
            inode.update(&self.volume, handle, |state, _| {
                let flags = (state.fields().flags() - settable) | (flags & settable);
                state.fields_mut().set_flags(flags);
                state.fields_mut().set_ctime(now);
            });
            Ok(())
        })
    }
}

/// What chattr(1) may change, as Linux has it: e2fsck takes other flags of special files for damage.
fn settable_flags(inode: &Inode) -> InodeFlags {
    let all = InodeFlags::NODUMP | InodeFlags::NOATIME;
    let file = all | InodeFlags::IMMUTABLE | InodeFlags::APPEND | InodeFlags::SYNC;
    if inode.is_directory() {
        file | InodeFlags::DIRSYNC | InodeFlags::TOPDIR
    } else if inode.is_regular() {
        file
    } else {
        all
    }
}

/// Whether this is what chown(2) asks for, if only to set the same owner.
fn changes_owner(change: &SetAttr) -> bool {
    change.uid.is_some() || change.gid.is_some()
}

fn apply(state: &mut InodeState, change: &SetAttr, now: Timestamp) {
    let at = |time| match time {
        TimeChange::Now => now,
        TimeChange::To(time) => time,
    };
    // Kernels that have left it to us (HANDLE_KILLPRIV_V2) do not say so for a change of owner.
    let is_directory = state.fields().mode() & S_IFMT == S_IFDIR;
    if change.kill_privileges || (changes_owner(change) && !is_directory) {
        state.kill_suid_sgid();
    }
    let fields = state.fields_mut();
    if let Some(mode) = change.mode {
        fields.set_mode((fields.mode() & S_IFMT) | (mode & !S_IFMT));
    }
    if let Some(uid) = change.uid {
        fields.set_uid(uid);
    }
    if let Some(gid) = change.gid {
        fields.set_gid(gid);
    }
    if let Some(time) = change.atime {
        fields.set_atime(at(time));
    }
    if let Some(time) = change.mtime {
        fields.set_mtime(at(time));
    }
    fields.set_ctime(change.ctime.unwrap_or(now));
}
