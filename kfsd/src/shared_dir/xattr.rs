//! Extended attributes. There is no call that takes an O_PATH descriptor for them, so they go
//! through its name in /proc/self/fd, which leads to the inode itself, a symbolic link included.

use super::credentials::WithoutFsetid;
use super::node::Node;
use super::session::Session;
use crate::fuse::flags::SetxattrFlags;
use crate::fuse::{Creation, Result, XattrSink};
use rustix::fs::XattrFlags;
use rustix::io::Errno;

/// Longest value the kernel takes.
const MAX_VALUE: usize = 64 << 10;

impl Session {
    fn check_served(&self, name: &[u8]) -> Result<()> {
        if !self.rules.options.xattr {
            // The guest does not ask again.
            return Err(Errno::NOSYS);
        }
        if !self.rules.options.posix_acl && name.starts_with(b"system.posix_acl_") {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(())
    }

    pub(super) fn set_attribute(
        &self,
        node: u64,
        name: &[u8],
        value: &[u8],
        flags: u32,
        request_flags: SetxattrFlags,
    ) -> Result<()> {
        self.check_served(name)?;
        self.check_writable()?;
        let node = self.nodes.get(node)?;
        let flags = XattrFlags::from_bits_retain(flags);
        let _kill = WithoutFsetid::new(request_flags.contains(SetxattrFlags::ACL_KILL_SGID))?;
        rustix::fs::setxattr(self.host.name_of(&node.fd), name, value, flags)
    }

    pub(super) fn get_attribute(
        &self,
        node: u64,
        name: &[u8],
        value: &mut XattrSink<'_, '_>,
    ) -> Result<()> {
        self.check_served(name)?;
        let node = self.nodes.get(node)?;
        let path = self.host.name_of(&node.fd);
        if value.wants_size() {
            value.count(rustix::fs::getxattr_query(path, name)?);
            return Ok(());
        }
        let mut buffer = vec![0; value.capacity().min(MAX_VALUE)];
        let len = rustix::fs::getxattr(path, name, &mut buffer[..])?;
        value.put(&buffer[..len])
    }

    pub(super) fn list_attributes(&self, node: u64, names: &mut XattrSink<'_, '_>) -> Result<()> {
        self.check_served(b"")?;
        let node = self.nodes.get(node)?;
        let path = self.host.name_of(&node.fd);
        let mut buffer = vec![0; MAX_VALUE];
        let len = rustix::fs::listxattr(path, &mut buffer[..])?;
        buffer[..len]
            .split(|&byte| byte == 0)
            .filter(|name| !name.is_empty() && self.check_served(name).is_ok())
            .try_for_each(|name| names.put_name(name))
    }

    pub(super) fn remove_attribute(&self, node: u64, name: &[u8]) -> Result<()> {
        self.check_served(name)?;
        self.check_writable()?;
        let node = self.nodes.get(node)?;
        rustix::fs::removexattr(self.host.name_of(&node.fd), name)
    }

    /// Whether new entries of a directory take their permissions from an ACL.
    pub(super) fn has_default_acl(&self, directory: &Node) -> Result<bool> {
        let path = self.host.name_of(&directory.fd);
        match rustix::fs::getxattr_query(path, c"system.posix_acl_default") {
            Ok(_) => Ok(true),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(false),
            Err(errno) => Err(errno),
        }
    }

    /// Puts the security label on a new node, where one came along.
    pub(super) fn label(&self, node: u64, creation: &Creation<'_>) -> Result<()> {
        let Some(security) = creation
            .security
            .filter(|_| self.rules.options.security_label)
        else {
            return Ok(());
        };
        if !security.name.starts_with(b"security.") {
            return Err(Errno::INVAL);
        }
        let node = self.nodes.get(node)?;
        let path = self.host.name_of(&node.fd);
        rustix::fs::setxattr(path, security.name, security.value, XattrFlags::empty())
    }
}
