//! `Plan`: what a change of an attribute makes of the inode's area and of the block.
//!
//! A new value goes where Linux would put it: into the inode if there is room, else into the block.
//! What permission checks and writes need (ACLs, `security.`) pushes other attributes out of the
//! inode. When nothing fits so, everything is placed anew, the largest first into the block, before
//! the answer is that there is no space.

use super::block::{self, BlockChange};
use super::inline_area;
use super::name::XattrName;
use super::region::{Entry, EntryValue};
use super::set::XattrSet;
use crate::error::{Error, Result};
use crate::layout::xattr::XATTR_SIZE_MAX;

/// What setting an attribute may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetMode {
    /// Make it or give it a new value.
    Any,
    /// Only make it (XATTR_CREATE).
    Create,
    /// Only give it a new value (XATTR_REPLACE).
    Replace,
    /// Both at once, which always fails: `Exists` or `NoAttribute`.
    Neither,
}

impl SetMode {
    fn creates(self) -> bool {
        matches!(self, Self::Any | Self::Create)
    }

    fn replaces(self) -> bool {
        matches!(self, Self::Any | Self::Replace)
    }
}

/// A change of an inode's attributes, ready to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// New bytes of the in-inode area, all of it; `None` leaves it.
    pub area: Option<Vec<u8>>,
    /// What becomes of the block.
    pub block: BlockChange,
}

impl Plan {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.area.is_none() && self.block == BlockChange::Unchanged
    }
}

/// Where the entries go.
struct Placement<'a> {
    in_inode: Vec<Entry<'a>>,
    in_block: Vec<Entry<'a>>,
}

impl XattrSet<'_> {
    /// Plans to set an attribute. The mode does not count for ACLs, as in Linux; one without entries
    /// is removed.
    ///
    /// # Errors
    /// [`Error::Exists`] and [`Error::NoAttribute`] by the mode; [`Error::OutOfRange`] for a value
    /// longer than Linux allows, [`Error::NoSpace`] for one that does not fit beside the others;
    /// [`Error::Invalid`] for a malformed ACL; [`Error::NotSupported`] where a value has an inode.
    pub fn plan_set(&self, name: &XattrName, value: &[u8], mode: SetMode) -> Result<Plan> {
        if value.len() > XATTR_SIZE_MAX {
            return Err(Error::OutOfRange);
        }
        let Some(value) = name.value_to_disk(value)? else {
            return self.plan_remove(name);
        };
        let found = self.find(name);
        if !name.is_acl() {
            match found {
                Some(_) if !mode.replaces() => return Err(Error::Exists),
                None if !mode.creates() => return Err(Error::NoAttribute),
                _ => {}
            }
        }
        let (index, rest) = name.key();
        let entry = Entry {
            index,
            name: rest,
            value: EntryValue::Bytes(&value),
        };
        if found == Some(&entry) {
            return Ok(Plan {
                area: None,
                block: BlockChange::Unchanged,
            });
        }
        self.check_changeable()?;
        let placement = self.place(entry).ok_or(Error::NoSpace)?;
        Ok(self.plan(placement))
    }

    /// Plans to remove an attribute. Removing an ACL that is not there is no error, as in Linux.
    ///
    /// # Errors
    /// [`Error::NoAttribute`]; [`Error::NotSupported`] where a value has an inode.
    pub fn plan_remove(&self, name: &XattrName) -> Result<Plan> {
        if self.find(name).is_none() && !name.is_acl() {
            return Err(Error::NoAttribute);
        }
        self.check_changeable()?;
        Ok(self.plan(self.without(name.key())))
    }

    /// Values in inodes of their own have counts that only the feature's writer could keep.
    fn check_changeable(&self) -> Result<()> {
        let has_inode = |entry: &Entry<'_>| matches!(entry.value, EntryValue::Inode { .. });
        if self.entries().any(has_inode) {
            return Err(Error::NotSupported);
        }
        Ok(())
    }

    fn without(&self, name: (u8, &[u8])) -> Placement<'_> {
        Placement {
            in_inode: without(&self.in_inode, name),
            in_block: without(&self.in_block, name),
        }
    }

    fn fits(&self, placement: &Placement<'_>) -> bool {
        inline_area::fits(&placement.in_inode, self.area.len())
            && block::fits(&placement.in_block, self.block_size)
    }

    /// A place for an entry that replaces those of its name; `None` when there is none.
    fn place<'e>(&'e self, entry: Entry<'e>) -> Option<Placement<'e>> {
        let base = || self.without((entry.index, entry.name));
        let mut attempt = base();
        attempt.in_inode.push(entry);
        if self.fits(&attempt) {
            return Some(attempt);
        }
        if entry.is_hot() && self.evict(&mut attempt) {
            return Some(attempt);
        }
        let mut attempt = base();
        attempt.in_block.push(entry);
        if self.fits(&attempt) {
            return Some(attempt);
        }
        let mut attempt = base();
        attempt.in_inode.push(entry);
        self.repack(attempt)
    }

    /// Moves attributes that are not hot from the inode to the block until the rest fits, the largest
    /// first. Whether that succeeded.
    fn evict(&self, placement: &mut Placement<'_>) -> bool {
        while !inline_area::fits(&placement.in_inode, self.area.len()) {
            let cold = placement.in_inode.iter().enumerate();
            let cold = cold.filter(|(_, entry)| entry.is_movable() && !entry.is_hot());
            let Some((at, _)) = cold.max_by_key(|(_, entry)| entry.size_bytes()) else {
                return false;
            };
            placement.in_block.push(placement.in_inode.remove(at));
        }
        self.fits(placement)
    }

    /// Places all movable entries anew, the largest first, in the block where possible.
    fn repack<'e>(&self, placement: Placement<'e>) -> Option<Placement<'e>> {
        let all = placement.in_inode.into_iter().chain(placement.in_block);
        let (mut movable, in_inode): (Vec<_>, Vec<_>) = all.partition(Entry::is_movable);
        movable.sort_by_key(|entry| std::cmp::Reverse(entry.size_bytes()));
        let mut packed = Placement {
            in_inode,
            in_block: Vec::new(),
        };
        for entry in movable {
            packed.in_block.push(entry);
            if !block::fits(&packed.in_block, self.block_size) {
                packed.in_inode.extend(packed.in_block.pop());
            }
        }
        self.fits(&packed).then_some(packed)
    }

    fn plan(&self, placement: Placement<'_>) -> Plan {
        let Placement { in_inode, in_block } = placement;
        let is_area_changed = in_inode != self.in_inode;
        let block = if in_block.is_empty() {
            match self.block {
                Some(_) => BlockChange::Release,
                None => BlockChange::Unchanged,
            }
        } else if in_block == self.in_block {
            BlockChange::Unchanged
        } else {
            let content = block::encode(in_block, self.block_size);
            match self.block {
                Some(_) if !self.is_shared => BlockChange::Overwrite(content),
                _ => BlockChange::Create(content),
            }
        };
        Plan {
            area: is_area_changed.then(|| inline_area::encode(&in_inode, self.area.len())),
            block,
        }
    }
}

fn without<'a>(entries: &[Entry<'a>], name: (u8, &[u8])) -> Vec<Entry<'a>> {
    let kept = entries.iter().filter(|entry| !entry.has_name(name));
    kept.copied().collect()
}
