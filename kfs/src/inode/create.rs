//! New inodes: their first bytes, and what they inherit.

use super::{Inode, InodePlace, InodeTable};
use crate::allocator::InodeReservation;
use crate::error::Result;
use crate::extent::ExtentTree;
use crate::ids::InodeNr;
use crate::layout::inode::{
    DeviceNumber, InodeBytes, InodeFlags, S_IFBLK, S_IFCHR, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG,
};
use crate::storage::Handle;
use crate::volume::Volume;
use std::sync::Arc;

/// Set-group-id bit.
const S_ISGID: u16 = 0o2000;

/// What a new inode is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewInode {
    /// Type and permissions.
    pub(crate) mode: u16,
    /// Owner.
    pub(crate) uid: u32,
    /// Group; a directory with the set-group-id bit gives its own instead.
    pub(crate) gid: u32,
    /// Number of a device node.
    pub(crate) device: DeviceNumber,
}

impl NewInode {
    /// Takes over what a parent directory passes on: its group and, to directories, its
    /// set-group-id bit.
    #[must_use]
    pub(crate) fn inherit(mut self, parent: &Inode) -> Self {
        let state = parent.state();
        if state.fields().mode() & S_ISGID != 0 {
            self.gid = state.fields().gid();
            if self.mode & S_IFMT == S_IFDIR {
                self.mode |= S_ISGID;
            }
        }
        self
    }

    /// Flags that a new inode takes from its parent: only those that make sense for its type.
    fn flags(&self, volume: &Volume, parent: &Inode) -> InodeFlags {
        let kind = self.mode & S_IFMT;
        let inherited = parent.state().fields().flags() & InodeFlags::INHERITED;
        let mut flags = match kind {
            S_IFDIR => inherited,
            S_IFREG => inherited - (InodeFlags::DIRSYNC | InodeFlags::TOPDIR),
            _ => inherited & (InodeFlags::NODUMP | InodeFlags::NOATIME),
        };
        let has_blocks = matches!(kind, S_IFDIR | S_IFREG | S_IFLNK);
        if has_blocks
            && volume
                .geometry
                .incompat
                .contains(crate::layout::Incompat::EXTENTS)
        {
            flags |= InodeFlags::EXTENTS;
        }
        flags
    }
}

/// An inode number that nobody else will get, and everything read that making the inode needs.
pub(crate) struct PlannedInode {
    reservation: InodeReservation,
    place: InodePlace,
}

impl PlannedInode {
    /// Finds a free inode near `parent`; directories are spread, files stay close.
    ///
    /// # Errors
    /// `NoSpace` when no inode is left, `Io`, `Corrupt`.
    pub(crate) fn find(volume: &Volume, parent: &Inode, is_directory: bool) -> Result<Self> {
        let reservation = volume.allocator.reserve_inode(parent.nr(), is_directory)?;
        let place = InodePlace::find(volume, reservation.inode())?;
        Ok(Self { reservation, place })
    }

    /// The number that the inode will have.
    #[must_use]
    pub(crate) fn nr(&self) -> InodeNr {
        self.reservation.inode()
    }

    /// Makes the inode, with no names yet.
    pub(crate) fn create(
        self,
        volume: &Volume,
        inodes: &InodeTable,
        handle: &mut Handle<'_>,
        parent: &Inode,
        new: &NewInode,
    ) -> Arc<Inode> {
        let geometry = &volume.geometry;
        let nr = volume.allocator.allocate_inode(handle, self.reservation);
        let mut bytes = InodeBytes::new(vec![0; geometry.inode_size as usize].into_boxed_slice());
        bytes.clear(geometry.want_extra_isize);
        bytes.set_mode(new.mode);
        bytes.set_uid(new.uid);
        bytes.set_gid(new.gid);
        bytes.set_generation(volume.new_generation());
        let now = volume.now();
        bytes.set_atime(now);
        bytes.set_mtime(now);
        bytes.set_ctime(now);
        bytes.set_crtime(now);
        let flags = new.flags(volume, parent);
        bytes.set_flags(flags);
        if flags.contains(InodeFlags::EXTENTS) {
            *bytes.block_area_mut() = ExtentTree::empty_root();
        }
        if matches!(new.mode & S_IFMT, S_IFCHR | S_IFBLK) {
            bytes.set_rdev(new.device);
        }
        let inode = Arc::new(Inode::new(nr, self.place, bytes));
        inodes.insert(&inode);
        inode.update(volume, handle, |state, handle| {
            state.mark_data_changed(handle);
        });
        inode
    }
}
