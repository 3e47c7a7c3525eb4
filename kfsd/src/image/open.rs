//! Opening files: what is refused, and what a handle says.

use super::session::Session;
use super::tree::Node;
use crate::config::CachePolicy;
use crate::fuse::flags::{FopenFlags, OpenRequestFlags};
use crate::fuse::{Context, Opened, Result};
use kfs::{InodeFlags, WriteOptions};
use rustix::io::Errno;

const O_ACCMODE: u32 = 0o3;
const O_APPEND: u32 = 0o2000;
pub(super) const O_TRUNC: u32 = 0o1000;
pub(super) const O_EXCL: u32 = 0o200;

/// What a file handle says: no state is behind it, so a restarted daemon understands it.
const FH_APPEND: u64 = 1;
pub(super) const FH_WRITE: u64 = 2;

fn check_open_for_write(inode: &Node, flags: u32) -> Result<()> {
    if inode.fs().volume().read_only().is_some() {
        return Err(Errno::ROFS);
    }
    let has = inode.fs().attr(inode).flags;
    let appends = flags & O_APPEND != 0 && flags & O_TRUNC == 0;
    if has.contains(InodeFlags::IMMUTABLE) || (has.contains(InodeFlags::APPEND) && !appends) {
        return Err(Errno::PERM);
    }
    Ok(())
}

impl Session {
    /// Opens a file that exists.
    pub(super) fn open_inode(
        &self,
        inode: &Node,
        flags: u32,
        request_flags: OpenRequestFlags,
    ) -> Result<Opened> {
        let writes = flags & O_ACCMODE != 0;
        if writes || flags & O_TRUNC != 0 {
            check_open_for_write(inode, flags)?;
        }
        if flags & O_TRUNC != 0 {
            let change = kfs::SetAttr {
                size_bytes: Some(0),
                kill_privileges: request_flags.contains(OpenRequestFlags::KILL_SUIDGID),
                ..kfs::SetAttr::default()
            };
            inode.fs().set_attr(inode, &change).map_err(inode.errno())?;
        }
        let mut fh = 0;
        if flags & O_APPEND != 0 && !self.rules.writeback {
            fh |= FH_APPEND;
        }
        if writes {
            fh |= FH_WRITE;
        }
        Ok(Opened {
            fh,
            flags: self.open_flags(),
        })
    }

    pub(super) fn open_flags(&self) -> FopenFlags {
        match self.rules.cache {
            CachePolicy::Always => FopenFlags::KEEP_CACHE,
            CachePolicy::Never | CachePolicy::Metadata => FopenFlags::DIRECT_IO,
            CachePolicy::Auto => FopenFlags::empty(),
        }
    }

    pub(super) fn write_options(ctx: &Context, kills: bool, fh: u64) -> WriteOptions {
        WriteOptions {
            kill_privileges: kills,
            privileged: ctx.uid == 0,
            append: fh & FH_APPEND != 0,
            delayed: false,
        }
    }
}
