//! Attributes of an inode as stat(2) gives them, and changes of them.

use super::{Inode, InodeState};
use crate::ids::InodeNr;
use crate::layout::inode::{DeviceNumber, InodeFlags, S_IFBLK, S_IFCHR, S_IFMT, S_IFREG};
use crate::time::Timestamp;
use crate::volume::Volume;

/// What stat(2) and statx(2) tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub inode: InodeNr,
    /// Distinguishes the lives of an inode number.
    pub generation: u32,
    /// Type and permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Names, or 1 for a directory with more subdirectories than can be counted.
    pub links: u32,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks_512: u64,
    /// Device number of a device node, else 0:0.
    pub device: DeviceNumber,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of the content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation, where the inode has the field.
    pub crtime: Option<Timestamp>,
    /// Flags as lsattr(1) shows them.
    pub flags: InodeFlags,
}

/// How a time stamp changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeChange {
    /// To the time of the operation.
    Now,
    /// To this.
    To(Timestamp),
}

/// A change of attributes: `None` leaves a field as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits; the type does not change.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size_bytes: Option<u64>,
    /// Last access.
    pub atime: Option<TimeChange>,
    /// Last change of the content.
    pub mtime: Option<TimeChange>,
    /// Last change of the inode; the time of the operation where `None`.
    pub ctime: Option<Timestamp>,
    /// Clear set-user-id and set-group-id bits and capabilities, as a change by an unprivileged
    /// user does.
    pub kill_privileges: bool,
}

impl InodeState {
    /// Clears the set-user-id bit, and the set-group-id bit where the group may execute.
    pub fn kill_suid_sgid(&mut self) {
        let mode = self.fields().mode();
        let mut cleared = mode & !0o4000;
        if mode & 0o010 != 0 {
            cleared &= !0o2000;
        }
        if cleared != mode {
            self.fields_mut().set_mode(cleared);
        }
    }
}

impl Inode {
    /// Attributes as they are now.
    #[must_use]
    pub fn attr(&self, volume: &Volume) -> Attr {
        let state = self.state();
        let fields = state.fields();
        let kind = fields.mode() & S_IFMT;
        let is_device = kind == S_IFCHR || kind == S_IFBLK;
        // A file in its inode has no blocks, but programs take a file without any for a hole.
        let is_inline = fields.flags().contains(InodeFlags::INLINE_DATA);
        let inline_blocks = match kind {
            S_IFREG if is_inline => fields.size_bytes().div_ceil(512),
            _ => 0,
        };
        Attr {
            inode: self.nr(),
            generation: self.generation(),
            mode: fields.mode(),
            uid: fields.uid(),
            gid: fields.gid(),
            links: u32::from(fields.links_count()),
            size_bytes: fields.size_bytes(),
            blocks_512: fields.blocks_512(&volume.geometry) + inline_blocks,
            device: if is_device {
                fields.rdev()
            } else {
                DeviceNumber::default()
            },
            atime: fields.atime(),
            mtime: fields.mtime(),
            ctime: fields.ctime(),
            crtime: fields.crtime(),
            flags: fields.flags(),
        }
    }
}
