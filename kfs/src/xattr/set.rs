//! `XattrSet`: all attributes of an inode, parsed from the bytes that hold them.

use super::name::XattrName;
use super::region::{Entry, EntryValue};
use super::{block, inline_area};
use crate::error::Result;
use crate::ids::{BlockNr, InodeNr};

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum XattrValue {
    /// Its bytes, in the form that users get.
    Inline(Vec<u8>),
    /// The content of an inode of its own (feature ea_inode), in the form of the disk: see
    /// [`XattrName::value_from_disk`].
    Inode {
        /// The inode. Not checked.
        inode: InodeNr,
        /// Length of the value.
        size_bytes: u32,
    },
}

/// Attributes of an inode.
#[derive(Clone, Debug)]
pub struct XattrSet<'a> {
    pub(super) inode: InodeNr,
    pub(super) area: &'a [u8],
    pub(super) block_size: usize,
    pub(super) block: Option<BlockNr>,
    /// Other inodes use the block, too.
    pub(super) is_shared: bool,
    pub(super) in_inode: Vec<Entry<'a>>,
    pub(super) in_block: Vec<Entry<'a>>,
}

impl<'a> XattrSet<'a> {
    /// The attributes in an inode's area and in its block, if it has one.
    ///
    /// # Errors
    /// [`Corrupt`](crate::Corrupt) variants named `Xattr…`.
    pub fn parse(
        inode: InodeNr,
        area: &'a [u8],
        block: Option<(BlockNr, &'a [u8])>,
        block_size: u32,
    ) -> Result<Self> {
        let (in_block, is_shared) = match block {
            Some((nr, bytes)) => block::parse(inode, nr, bytes)?,
            None => (Vec::new(), false),
        };
        Ok(Self {
            inode,
            area,
            block_size: block.map_or(block_size as usize, |(_, bytes)| bytes.len()),
            block: block.map(|(nr, _)| nr),
            is_shared,
            in_inode: inline_area::parse(inode, area)?,
            in_block,
        })
    }

    pub(super) fn find(&self, name: &XattrName) -> Option<&Entry<'a>> {
        self.entries().find(|entry| entry.has_name(name.key()))
    }

    /// Entries in the order in which Linux looks at them.
    pub(super) fn entries(&self) -> impl Iterator<Item = &Entry<'a>> {
        self.in_inode.iter().chain(&self.in_block)
    }

    /// The value of an attribute; `None` when there is none.
    ///
    /// # Errors
    /// [`Corrupt::XattrAcl`](crate::Corrupt::XattrAcl).
    pub fn get(&self, name: &XattrName) -> Result<Option<XattrValue>> {
        let Some(entry) = self.find(name) else {
            return Ok(None);
        };
        Ok(Some(match entry.value {
            EntryValue::Bytes(bytes) => {
                XattrValue::Inline(name.value_from_disk(self.inode, bytes)?)
            }
            EntryValue::Inode { inode, size_bytes } => XattrValue::Inode { inode, size_bytes },
        }))
    }

    /// Whether there is any attribute, also one that users do not see.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.in_inode.is_empty() && self.in_block.is_empty()
    }

    /// Names that users see.
    pub fn names(&self) -> impl Iterator<Item = XattrName> {
        self.entries()
            .filter_map(|entry| XattrName::from_disk(entry.index, entry.name))
    }

    /// The answer to a list call: full names, each with a NUL after it; those of `trusted.` only for
    /// the privileged.
    #[must_use]
    pub fn list(&self, is_privileged: bool) -> Vec<u8> {
        let mut list = Vec::new();
        for name in self.names() {
            if is_privileged || !name.is_trusted() {
                list.extend_from_slice(&name.full());
                list.push(0);
            }
        }
        list
    }
}
