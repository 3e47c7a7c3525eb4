//! `XattrName`: the name of an attribute as users write it, split as the disk holds it.

use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::InodeNr;
use crate::layout::acl;
use crate::layout::xattr::{
    INDEX_ACL_ACCESS, INDEX_ACL_DEFAULT, INDEX_SECURITY, INDEX_SYSTEM, INDEX_TRUSTED, INDEX_USER,
    name_prefix, split_name,
};
use std::borrow::Cow;

/// Longest name in bytes, prefix included, as Linux allows it.
const NAME_MAX: usize = 255;

/// Prefixes of names that need more than themselves.
const CLASSES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// Name of an attribute that users may read and set.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct XattrName {
    index: u8,
    rest: Vec<u8>,
}

impl XattrName {
    /// Reads a full name, such as `user.comment`.
    ///
    /// # Errors
    /// [`Error::OutOfRange`] for an empty name or one above 255 bytes, [`Error::Invalid`] for a bare
    /// prefix or a name with a NUL, [`Error::NotSupported`] for a class that ext4 does not store
    /// for users.
    pub fn parse(full: &[u8]) -> Result<Self> {
        if full.is_empty() || full.len() > NAME_MAX {
            return Err(Error::OutOfRange);
        }
        if CLASSES.contains(&full) || full.contains(&0) {
            return Err(Error::Invalid);
        }
        let (index, rest) = split_name(full).ok_or(Error::NotSupported)?;
        Self::from_disk(index, rest).ok_or(Error::NotSupported)
    }

    /// The name of an entry on disk; `None` where it has none that users see.
    pub(super) fn from_disk(index: u8, rest: &[u8]) -> Option<Self> {
        let is_visible = match index {
            INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT => rest.is_empty(),
            INDEX_USER | INDEX_TRUSTED | INDEX_SECURITY => !rest.is_empty(),
            _ => false,
        };
        is_visible.then(|| Self {
            index,
            rest: rest.to_vec(),
        })
    }

    /// `system.posix_acl_access`.
    #[must_use]
    pub fn acl_access() -> Self {
        Self {
            index: INDEX_ACL_ACCESS,
            rest: Vec::new(),
        }
    }

    /// `system.posix_acl_default`.
    #[must_use]
    pub fn acl_default() -> Self {
        Self {
            index: INDEX_ACL_DEFAULT,
            rest: Vec::new(),
        }
    }

    /// `system.data`: the rest of content that lies in the inode. Users do not see it.
    pub(crate) fn inline_data() -> Self {
        Self {
            index: INDEX_SYSTEM,
            rest: b"data".to_vec(),
        }
    }

    /// The full name.
    #[must_use]
    pub fn full(&self) -> Vec<u8> {
        let prefix = name_prefix(self.index).expect("only indexes with a prefix are taken");
        [prefix, &self.rest].concat()
    }

    /// Whether it is one of the two ACLs.
    #[must_use]
    pub fn is_acl(&self) -> bool {
        matches!(self.index, INDEX_ACL_ACCESS | INDEX_ACL_DEFAULT)
    }

    /// Whether it is for the privileged only, who alone get it listed.
    #[must_use]
    pub fn is_trusted(&self) -> bool {
        self.index == INDEX_TRUSTED
    }

    /// Index and rest, as an entry holds them.
    pub(super) fn key(&self) -> (u8, &[u8]) {
        (self.index, &self.rest)
    }

    /// A value as users give it, in the form of the disk. `None` for an ACL of no entries, which is
    /// no ACL.
    ///
    /// # Errors
    /// Those of [`acl::encode`].
    pub(super) fn value_to_disk<'v>(&self, value: &'v [u8]) -> Result<Option<Cow<'v, [u8]>>> {
        if !self.is_acl() {
            return Ok(Some(Cow::Borrowed(value)));
        }
        if value.is_empty() {
            return Ok(None);
        }
        let disk = acl::encode(value)?;
        let is_empty = disk.len() == size_of::<u32>();
        Ok((!is_empty).then_some(Cow::Owned(disk)))
    }

    /// A value from disk in the form that users get. For values read from an inode of their own;
    /// others leave the set in this form.
    ///
    /// # Errors
    /// [`Corrupt::XattrAcl`].
    pub fn value_from_disk(&self, inode: InodeNr, disk: &[u8]) -> Result<Vec<u8>> {
        if !self.is_acl() {
            return Ok(disk.to_vec());
        }
        acl::decode(disk).ok_or_else(|| Corrupt::XattrAcl { inode }.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_refused_as_linux_does() {
        let long = [&b"user."[..], &[b'x'; 251]].concat();
        assert!(matches!(XattrName::parse(&long), Err(Error::OutOfRange)));
        assert!(XattrName::parse(&long[..255]).is_ok());
        assert!(matches!(XattrName::parse(b""), Err(Error::OutOfRange)));
        for bare in [&b"user."[..], b"trusted.", b"security.", b"user.a\0b"] {
            assert!(matches!(XattrName::parse(bare), Err(Error::Invalid)));
        }
        for other in [
            &b"system.data"[..],
            b"system.richacl",
            b"lustre.lov",
            b"os2.a",
            b"user",
            b"system.posix_acl_accessx",
        ] {
            assert!(matches!(XattrName::parse(other), Err(Error::NotSupported)));
        }
    }

    #[test]
    fn full_names_round_trip() {
        for full in [
            &b"user.a"[..],
            b"trusted.overlay.opaque",
            b"security.capability",
            b"system.posix_acl_access",
            b"system.posix_acl_default",
        ] {
            assert_eq!(XattrName::parse(full).unwrap().full(), full);
        }
        assert_eq!(
            XattrName::acl_default(),
            XattrName::parse(b"system.posix_acl_default").unwrap()
        );
        assert!(XattrName::parse(b"trusted.a").unwrap().is_trusted());
    }

    #[test]
    fn an_acl_without_entries_is_none() {
        let name = XattrName::acl_access();
        assert_eq!(name.value_to_disk(&[2, 0, 0, 0]).unwrap(), None);
        assert_eq!(name.value_to_disk(&[]).unwrap(), None);
        assert!(matches!(name.value_to_disk(&[2, 0]), Err(Error::Invalid)));
    }
}
