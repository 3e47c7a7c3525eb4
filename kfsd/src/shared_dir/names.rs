//! Operations on names: making, removing, renaming, linking.

use super::attributes::decode_device;
use super::credentials::ActingUser;
use super::node::Node;
use super::session::Session;
use crate::fuse::{Context, Creation, Entry, Result};
use rustix::fs::{AtFlags, FileType, Mode, RawMode, RenameFlags, makedev};
use rustix::io::Errno;
use rustix::path::DecInt;

impl Session {
    pub(super) fn make_symlink(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        target: &[u8],
        creation: &Creation<'_>,
    ) -> Result<Entry> {
        self.make(ctx, parent, name, creation, |parent| {
            rustix::fs::symlinkat(target, &parent.fd, name)
        })
    }

    pub(super) fn make_node(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        mode: u32,
        rdev: u32,
        creation: &Creation<'_>,
    ) -> Result<Entry> {
        let (major, minor) = decode_device(rdev);
        let kind = FileType::from_raw_mode(mode);
        if kind == FileType::Directory || kind == FileType::Symlink {
            return Err(Errno::INVAL);
        }
        self.make(ctx, parent, name, creation, |parent| {
            let mode = self.mode_in(parent, mode, creation)?;
            rustix::fs::mknodat(&parent.fd, name, kind, mode, makedev(major, minor))
        })
    }

    pub(super) fn make_directory(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        mode: u32,
        creation: &Creation<'_>,
    ) -> Result<Entry> {
        self.make(ctx, parent, name, creation, |parent| {
            rustix::fs::mkdirat(&parent.fd, name, self.mode_in(parent, mode, creation)?)
        })
    }

    /// Runs `make` as the guest's user, then finds what it made.
    fn make(
        &self,
        ctx: &Context,
        parent: u64,
        name: &[u8],
        creation: &Creation<'_>,
        make: impl FnOnce(&Node) -> Result<()>,
    ) -> Result<Entry> {
        self.check_writable()?;
        let parent = self.nodes.get(parent)?;
        {
            let _acting = ActingUser::new(ctx.uid, ctx.gid, creation.supplementary_group)?;
            make(&parent)?;
        }
        let entry = self.find(&parent, name)?;
        if let Err(errno) = self.label(entry.nodeid, creation) {
            // A node without its label would be open to whom the label shuts out.
            self.nodes.forget(entry.nodeid, 1);
            let is_dir = FileType::from_raw_mode(entry.attr.mode) == FileType::Directory;
            let flags = if is_dir {
                AtFlags::REMOVEDIR
            } else {
                AtFlags::empty()
            };
            let _ = rustix::fs::unlinkat(&parent.fd, name, flags);
            return Err(errno);
        }
        Ok(entry)
    }

    /// The mode of a new node. With ACLs the umask comes separately, since the default ACL of the
    /// directory takes its place.
    pub(super) fn mode_in(
        &self,
        parent: &Node,
        mode: u32,
        creation: &Creation<'_>,
    ) -> Result<Mode> {
        let mut mode = mode & 0o7777;
        if self.rules.options.posix_acl && !self.has_default_acl(parent)? {
            mode &= !creation.umask;
        }
        Ok(Mode::from_raw_mode(RawMode::from(mode)))
    }

    pub(super) fn remove(&self, parent: u64, name: &[u8], flags: AtFlags) -> Result<()> {
        self.check_writable()?;
        rustix::fs::unlinkat(&self.nodes.get(parent)?.fd, name, flags)
    }

    pub(super) fn move_name(
        &self,
        (parent, name): (u64, &[u8]),
        (new_parent, new_name): (u64, &[u8]),
        flags: u32,
    ) -> Result<()> {
        self.check_writable()?;
        let (old, new) = (self.nodes.get(parent)?, self.nodes.get(new_parent)?);
        let flags = RenameFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::renameat_with(&old.fd, name, &new.fd, new_name, flags)
    }

    pub(super) fn make_link(&self, node: u64, new_parent: u64, new_name: &[u8]) -> Result<Entry> {
        self.check_writable()?;
        let (node, parent) = (self.nodes.get(node)?, self.nodes.get(new_parent)?);
        // By way of /proc, which needs no capability; the node itself is never followed.
        let old = DecInt::from_fd(&node.fd);
        let flags = AtFlags::SYMLINK_FOLLOW;
        rustix::fs::linkat(&self.host.proc_self_fd, old, &parent.fd, new_name, flags)?;
        self.find(&parent, new_name)
    }
}
