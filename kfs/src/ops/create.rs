//! New files, directories, links and nodes.

use super::{acl::NewAcls, file_type};
use crate::allocator::{ALLOCATE_CREDITS, ALLOCATE_INODE_CREDITS, BlockRequest, Reservation};
use crate::dir::{CHANGE_CREDITS, FileName};
use crate::error::{Error, Result};
use crate::extent::{Extent, STEP_CREDITS_MAX};
use crate::fs::Filesystem;
use crate::ids::LogicalBlock;
use crate::inode::{CREDITS_INODE, CREDITS_ORPHAN, Inode, NewInode, PlannedInode};
use crate::layout::FileType;
use crate::layout::inode::{BLOCK_AREA_SIZE, DeviceNumber, InodeFlags, S_IFDIR, S_IFLNK, S_IFMT};
use crate::storage::Handle;
use crate::xattr::{self, SetMode, XattrName};
use std::io::IoSlice;
use std::sync::Arc;

/// What is to be made.
#[derive(Clone, Copy, Debug, Default)]
pub struct NewNode<'a> {
    /// Type and permissions. A missing type means a regular file.
    pub mode: u16,
    /// Permission bits to leave out unless the directory has a default ACL.
    pub umask: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of a device node.
    pub device: DeviceNumber,
    /// Target of a symbolic link.
    pub target: &'a [u8],
    /// A security label to set in the same transaction: name and value.
    pub label: Option<(&'a [u8], &'a [u8])>,
}

/// A long target of a symbolic link, written to a block that is not part of an inode yet.
struct WrittenTarget {
    reservation: Reservation,
}

/// All that was read and reserved before a new inode is made.
pub(super) struct Plan {
    inode: PlannedInode,
    new: NewInode,
    attributes: Vec<(XattrName, Vec<u8>)>,
    target: Option<WrittenTarget>,
}

impl Filesystem {
    /// Makes a new inode with a name.
    ///
    /// # Errors
    /// `Exists`, `NotFound` for a removed directory, `NameTooLong`, `Invalid`, `NotPermitted`,
    /// `NoSpace`, `ReadOnly`, `Corrupt`, `Io`. Nothing was made then.
    pub fn create(&self, directory: &Inode, name: &[u8], node: &NewNode<'_>) -> Result<Arc<Inode>> {
        let name = self.new_name(directory, name)?;
        self.create_entry(directory, name, node)
    }

    /// As [`Filesystem::create`], for any name.
    pub(crate) fn create_entry(
        &self,
        directory: &Inode,
        name: FileName<'_>,
        node: &NewNode<'_>,
    ) -> Result<Arc<Inode>> {
        check_node(node, self.volume.block_size())?;
        let _io = directory.io.write();
        self.check_entries_changeable(directory, false)?;
        if name.is_dot() || self.directory(directory).lookup(name)?.is_some() {
            return Err(Error::Exists);
        }
        if node.mode & S_IFMT == S_IFDIR {
            self.check_links(directory)?;
        }
        self.with_space(|| {
            let plan = self.plan_new(directory, node)?;
            let credits = self.entry_credits(directory)? + new_credits();
            self.volume.transact(credits, |handle| {
                self.create_named(handle, directory, name, plan, node)
            })
        })
    }

    /// Makes a regular file without a name (O_TMPFILE). It goes when its last client lets it go,
    /// unless it gets a name by [`Filesystem::link`].
    ///
    /// # Errors
    /// As [`Filesystem::create`].
    pub fn create_unnamed(&self, directory: &Inode, node: &NewNode<'_>) -> Result<Arc<Inode>> {
        check_node(node, self.volume.block_size())?;
        let _io = directory.io.read();
        self.check_entries_changeable(directory, false)?;
        self.with_space(|| {
            let plan = self.plan_new(directory, node)?;
            self.volume
                .transact(new_credits() + CREDITS_ORPHAN, |handle| {
                    let inode = self.make(handle, directory, plan, node)?;
                    self.orphans.add(&self.volume, handle, &inode);
                    Ok(inode)
                })
        })
    }

    /// Credits for adding, removing or replacing one name of a directory.
    pub(super) fn entry_credits(&self, directory: &Inode) -> Result<u32> {
        let appends = crate::dir::APPENDS_MAX;
        // The tree of extents may grow by a level on the way.
        let step = directory.insert_credits(&self.volume)? + 4;
        Ok(CHANGE_CREDITS + 2 * CREDITS_INODE + appends * (ALLOCATE_CREDITS + step))
    }

    pub(super) fn plan_new(&self, directory: &Inode, node: &NewNode<'_>) -> Result<Plan> {
        let is_directory = node.mode & S_IFMT == S_IFDIR;
        let acls = NewAcls::inherit(self, directory, node.mode, node.umask)?;
        let new = NewInode {
            mode: acls.mode,
            uid: node.uid,
            gid: node.gid,
            device: node.device,
        };
        let mut attributes = acls.attributes;
        if let Some((name, value)) = node.label {
            attributes.push((XattrName::parse(name)?, value.to_vec()));
        }
        Ok(Plan {
            inode: PlannedInode::find(&self.volume, directory, is_directory)?,
            new: new.inherit(directory),
            attributes,
            target: self.write_target(directory, node)?,
        })
    }

    /// Writes the target of a symbolic link to a new block, if it is too long for the inode.
    fn write_target(&self, directory: &Inode, node: &NewNode<'_>) -> Result<Option<WrittenTarget>> {
        if node.mode & S_IFMT != S_IFLNK || node.target.len() < BLOCK_AREA_SIZE {
            return Ok(None);
        }
        let goal = self.volume.allocator.data_goal(directory.nr(), false);
        let request = BlockRequest {
            goal,
            len: 1,
            privileged: node.uid == 0,
        };
        let reservation = self.volume.allocator.reserve(request)?;
        let mut block = vec![0; self.volume.block_size() as usize];
        block[..node.target.len()].copy_from_slice(node.target);
        self.volume
            .write_data(reservation.run().start, 0, &[IoSlice::new(&block)])?;
        Ok(Some(WrittenTarget { reservation }))
    }

    fn create_named(
        &self,
        handle: &mut Handle<'_>,
        directory: &Inode,
        name: FileName<'_>,
        plan: Plan,
        node: &NewNode<'_>,
    ) -> Result<Arc<Inode>> {
        let mode = plan.new.mode;
        let nr = plan.inode.nr();
        // The name first: it is what fails most easily, and then nothing has changed.
        self.directory(directory)
            .add(handle, name, nr, file_type(mode))?;
        let made = self.make(handle, directory, plan, node).and_then(|inode| {
            if mode & S_IFMT == S_IFDIR {
                let filled = self.directory(&inode).init(handle, directory.nr());
                filled.or_else(|error| {
                    self.discard(handle, &inode)?;
                    Err(error)
                })?;
            }
            Ok(inode)
        });
        let inode = match made {
            Ok(inode) => inode,
            Err(error) => {
                self.directory(directory).remove(handle, name)?;
                return Err(error);
            }
        };
        let links = if mode & S_IFMT == S_IFDIR { 2 } else { 1 };
        inode.update(&self.volume, handle, |state, _| {
            state.fields_mut().set_links_count(links);
        });
        self.touch_directory(directory, handle, i32::from(links) - 1);
        Ok(inode)
    }

    /// Makes the inode with its attributes and target; undoes that when it fails.
    pub(super) fn make(
        &self,
        handle: &mut Handle<'_>,
        directory: &Inode,
        plan: Plan,
        node: &NewNode<'_>,
    ) -> Result<Arc<Inode>> {
        let inode = plan
            .inode
            .create(&self.volume, &self.inodes, handle, directory, &plan.new);
        let result = self.fill_new(handle, &inode, plan.attributes, plan.target, node);
        if let Err(error) = result {
            self.discard(handle, &inode)?;
            return Err(error);
        }
        Ok(inode)
    }

    fn fill_new(
        &self,
        handle: &mut Handle<'_>,
        inode: &Arc<Inode>,
        attributes: Vec<(XattrName, Vec<u8>)>,
        target: Option<WrittenTarget>,
        node: &NewNode<'_>,
    ) -> Result<()> {
        for (name, value) in attributes {
            self.change_xattr(handle, inode, &name, Some(&value), SetMode::Any)?;
        }
        if node.mode & S_IFMT != S_IFLNK {
            return Ok(());
        }
        inode.update(&self.volume, handle, |state, handle| {
            state.fields_mut().set_size_bytes(node.target.len() as u64);
            match target {
                Some(mut target) => {
                    let physical = target.reservation.run().start;
                    let logical = LogicalBlock(0);
                    let extent = Extent {
                        logical,
                        physical,
                        len: 1,
                        unwritten: false,
                    };
                    state.insert_extent(&self.volume, inode, handle, extent)?;
                    self.volume
                        .allocator
                        .allocate(handle, &mut target.reservation, 1);
                }
                None => {
                    let flags = state.fields().flags() - InodeFlags::EXTENTS;
                    state.fields_mut().set_flags(flags);
                    let area = state.fields_mut().block_area_mut();
                    area.fill(0);
                    area[..node.target.len()].copy_from_slice(node.target);
                }
            }
            Ok(())
        })
    }
}

/// Credits for a new inode with attributes and a first block.
pub(super) fn new_credits() -> u32 {
    const ROOT_STEP: u32 = 8;
    const { assert!(ROOT_STEP < STEP_CREDITS_MAX) };
    ALLOCATE_INODE_CREDITS + CREDITS_INODE + 2 * (ALLOCATE_CREDITS + ROOT_STEP) + xattr::CREDITS + 2
}

fn check_node(node: &NewNode<'_>, block_size: u64) -> Result<()> {
    if file_type(node.mode) == FileType::Unknown {
        return Err(Error::Invalid);
    }
    if node.mode & S_IFMT == S_IFLNK {
        if node.target.is_empty() || node.target.contains(&0) {
            return Err(Error::Invalid);
        }
        // A reader expects an end behind the target within its block.
        if node.target.len() as u64 >= block_size {
            return Err(Error::NameTooLong);
        }
    }
    Ok(())
}
