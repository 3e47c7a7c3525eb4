//! POSIX ACLs: what they pass on to new inodes, and how they and permission bits follow each other.
//!
//! The kernel of the client decides about access; keeping ACL and mode in step is the file system's
//! part, as acl(5) describes it. Values are in the form of xattr calls (version 2).

use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::inode::Inode;
use crate::layout::inode::{S_IFDIR, S_IFLNK, S_IFMT};
use crate::xattr::XattrName;

const VERSION: u32 = 2;
const ENTRY_BYTES: usize = 8;

const USER_OBJ: u16 = 0x01;
const USER: u16 = 0x02;
const GROUP_OBJ: u16 = 0x04;
const GROUP: u16 = 0x08;
const MASK: u16 = 0x10;
const OTHER: u16 = 0x20;

/// One entry of an ACL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    tag: u16,
    permissions: u16,
    id: u32,
}

/// An ACL, its entries in the order of acl(5).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Acl(Vec<Entry>);

impl Acl {
    fn parse(value: &[u8]) -> Result<Self> {
        let (version, entries) = value.split_first_chunk::<4>().ok_or(Error::Invalid)?;
        if u32::from_le_bytes(*version) != VERSION || entries.len() % ENTRY_BYTES != 0 {
            return Err(Error::Invalid);
        }
        let entry = |bytes: &[u8]| Entry {
            tag: u16::from_le_bytes([bytes[0], bytes[1]]),
            permissions: u16::from_le_bytes([bytes[2], bytes[3]]) & 7,
            id: u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
        };
        Ok(Self(entries.chunks_exact(ENTRY_BYTES).map(entry).collect()))
    }

    fn encode(&self) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for entry in &self.0 {
            value.extend(entry.tag.to_le_bytes());
            value.extend(entry.permissions.to_le_bytes());
            value.extend(entry.id.to_le_bytes());
        }
        value
    }

    fn get(&self, tag: u16) -> Option<u16> {
        self.0
            .iter()
            .find(|entry| entry.tag == tag)
            .map(|entry| entry.permissions)
    }

    fn set(&mut self, tag: u16, permissions: u16) {
        for entry in self.0.iter_mut().filter(|entry| entry.tag == tag) {
            entry.permissions = permissions & 7;
        }
    }

    /// The tag whose permissions the group bits of the mode are.
    fn group_class(&self) -> u16 {
        if self.get(MASK).is_some() {
            MASK
        } else {
            GROUP_OBJ
        }
    }

    /// Whether permission bits say all that it says.
    fn is_minimal(&self) -> bool {
        !self
            .0
            .iter()
            .any(|entry| matches!(entry.tag, USER | GROUP | MASK))
    }

    /// The permission bits that stand for it.
    fn permissions(&self) -> u16 {
        let of = |tag| self.get(tag).unwrap_or(0);
        of(USER_OBJ) << 6 | of(self.group_class()) << 3 | of(OTHER)
    }

    /// As chmod(2) changes it.
    fn chmod(&mut self, mode: u16) {
        self.set(USER_OBJ, mode >> 6);
        self.set(self.group_class(), mode >> 3);
        self.set(OTHER, mode);
    }
}

/// What a new inode takes from its directory's default ACL.
pub(super) struct NewAcls {
    /// Type and permissions of the new inode.
    pub(super) mode: u16,
    /// ACLs to set on it.
    pub(super) attributes: Vec<(XattrName, Vec<u8>)>,
}

impl NewAcls {
    /// Applies a default ACL where the directory has one, else the umask.
    pub(super) fn inherit(
        fs: &Filesystem,
        directory: &Inode,
        mode: u16,
        umask: u16,
    ) -> Result<Self> {
        let kind = mode & S_IFMT;
        if kind == S_IFLNK {
            return Ok(Self {
                mode,
                attributes: Vec::new(),
            });
        }
        let Some(value) = fs.xattr_value(directory, &XattrName::acl_default())? else {
            return Ok(Self {
                mode: mode & !(umask & 0o777),
                attributes: Vec::new(),
            });
        };
        let mut acl = Acl::parse(&value)?;
        let mut attributes = Vec::new();
        if kind == S_IFDIR {
            attributes.push((XattrName::acl_default(), value));
        }
        // What the creator did not ask for is not given.
        let permissions = acl.permissions() & mode;
        acl.chmod(permissions);
        if !acl.is_minimal() {
            attributes.push((XattrName::acl_access(), acl.encode()));
        }
        Ok(Self {
            mode: (mode & !0o777) | permissions,
            attributes,
        })
    }
}

impl Filesystem {
    /// The access ACL as it has to become when the mode is set, `None` without one.
    pub(super) fn acl_after_chmod(
        &self,
        inode: &Inode,
        mode: u16,
    ) -> Result<Option<(XattrName, Vec<u8>)>> {
        let name = XattrName::acl_access();
        let Some(value) = self.xattr_value(inode, &name)? else {
            return Ok(None);
        };
        let mut acl = Acl::parse(&value)?;
        acl.chmod(mode);
        Ok(Some((name, acl.encode())))
    }

    /// For the access ACL: the permission bits to set with it, and the value to store, `None` when
    /// the bits say it all. Other attributes are stored as they are.
    pub(super) fn acl_to_set(
        &self,
        inode: &Inode,
        name: &XattrName,
        value: &[u8],
    ) -> Result<(Option<u16>, Option<Vec<u8>>)> {
        if !name.is_acl() {
            return Ok((None, Some(value.to_vec())));
        }
        if inode.is_symlink() {
            return Err(Error::NotSupported);
        }
        if *name == XattrName::acl_default() {
            if !inode.is_directory() {
                return Err(Error::AccessDenied);
            }
            return Ok((None, Some(value.to_vec())));
        }
        let acl = Acl::parse(value)?;
        if acl.0.is_empty() {
            return Ok((None, None));
        }
        let stored = (!acl.is_minimal()).then(|| value.to_vec());
        Ok((Some(acl.permissions()), stored))
    }
}
