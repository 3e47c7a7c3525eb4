//! Extended attributes of inodes.

use crate::allocator::{ALLOCATE_CREDITS, BlockRequest};
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::file::SliceSink;
use crate::fs::Filesystem;
use crate::ids::{BlockNr, Run};
use crate::inode::{CREDITS_INODE, Inode};
use crate::layout::inode::{InodeFlags, S_IFMT};
use crate::storage::Handle;
use crate::xattr::{self, Plan, SetMode, XattrBlock, XattrName, XattrSet, XattrValue};
use std::sync::Arc;

/// Attribute that gives a program capabilities.
const CAPABILITY: &[u8] = b"security.capability";

impl Filesystem {
    /// The value of an attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `NotSupported` for classes ext4 does not store, `Corrupt`, `Io`.
    pub fn get_xattr(&self, inode: &Inode, name: &[u8]) -> Result<Vec<u8>> {
        let name = XattrName::parse(name)?;
        self.xattr_value(inode, &name)?.ok_or(Error::NoAttribute)
    }

    pub(super) fn xattr_value(&self, inode: &Inode, name: &XattrName) -> Result<Option<Vec<u8>>> {
        let found = self.with_xattrs(inode, |set| set.get(name))?;
        match found {
            None => Ok(None),
            Some(XattrValue::Inline(value)) => Ok(Some(value)),
            Some(XattrValue::Inode {
                inode: nr,
                size_bytes,
            }) => {
                let holder = self.inodes.get(&self.volume, nr)?;
                let flags = holder.state().fields().flags();
                // Anything else named here may be locked by this very thread.
                if nr == inode.nr() || !holder.is_regular() || !flags.contains(InodeFlags::EA_INODE)
                {
                    return Err(Corrupt::XattrInode { inode: nr }.into());
                }
                let mut value = vec![0; size_bytes as usize];
                let read =
                    self.file(&holder)
                        .read(0, value.len(), &mut SliceSink::new(&mut value))?;
                if read < value.len() {
                    return Err(Corrupt::XattrInode { inode: nr }.into());
                }
                name.value_from_disk(inode.nr(), &value).map(Some)
            }
        }
    }

    /// Names of all attributes.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn list_xattrs(&self, inode: &Inode) -> Result<Vec<XattrName>> {
        self.with_xattrs(inode, |set| Ok(set.names().collect()))
    }

    /// Sets an attribute. Setting the access ACL sets the permission bits that it stands for.
    ///
    /// # Errors
    /// `Exists`, `NoAttribute` (by the mode), `NotPermitted`, `NotSupported`, `NoSpace`, `OutOfRange`,
    /// `Invalid` for a malformed ACL, `ReadOnly`, `Corrupt`, `Io`.
    pub fn set_xattr(
        &self,
        inode: &Arc<Inode>,
        name: &[u8],
        value: &[u8],
        mode: SetMode,
        kill_sgid: bool,
    ) -> Result<()> {
        let name = XattrName::parse(name)?;
        let (permissions, value) = self.acl_to_set(inode, &name, value)?;
        let now = self.volume.now();
        let _alive = inode.io.read();
        self.with_space(|| {
            self.volume.transact(change_credits(), |handle| {
                self.change_xattr(handle, inode, &name, value.as_deref(), mode)?;
                inode.update(&self.volume, handle, |state, _| {
                    let fields = state.fields_mut();
                    if let Some(permissions) = permissions {
                        // The list itself may be no change, when the bits say it all.
                        fields.set_ctime(now);
                        let rest = fields.mode() & (S_IFMT | 0o7000);
                        let kept = if kill_sgid { rest & !0o2000 } else { rest };
                        fields.set_mode(kept | permissions);
                    }
                });
                Ok(())
            })
        })
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `NotPermitted`, `NotSupported`, `ReadOnly`, `Corrupt`, `Io`.
    pub fn remove_xattr(&self, inode: &Arc<Inode>, name: &[u8]) -> Result<()> {
        let name = XattrName::parse(name)?;
        let _alive = inode.io.read();
        self.volume.transact(change_credits(), |handle| {
            self.change_xattr(handle, inode, &name, None, SetMode::Any)
        })
    }

    /// Takes away what gives a program capabilities, as every change of its content or owner must.
    pub(super) fn remove_capabilities(&self, inode: &Arc<Inode>) -> Result<()> {
        if !inode.may_have_capabilities() {
            return Ok(());
        }
        let name = XattrName::parse(CAPABILITY)?;
        // Before the look: whoever sets one meanwhile notes it again.
        inode.set_may_have_capabilities(false);
        let removed = match self.xattr_value(inode, &name) {
            Ok(None) => return Ok(()),
            Ok(Some(_)) => self.remove_xattr(inode, CAPABILITY),
            Err(error) => Err(error),
        };
        match removed {
            Err(Error::NoAttribute) => Ok(()),
            other => other.inspect_err(|_| inode.set_may_have_capabilities(true)),
        }
    }

    /// Sets (`Some`) or removes an attribute within a handle. Fails before it has changed anything,
    /// except when the device does.
    pub(super) fn change_xattr(
        &self,
        handle: &mut Handle<'_>,
        inode: &Arc<Inode>,
        name: &XattrName,
        value: Option<&[u8]>,
        mode: SetMode,
    ) -> Result<()> {
        if inode.is_deleted() {
            return Err(Error::Stale);
        }
        inode.check_changeable()?;
        // One change at a time: a plan holds only for what it was made from.
        let _changes = inode.xattrs.write();
        if value.is_some() {
            inode.set_may_have_capabilities(true);
        }
        let plan = self.with_locked_xattrs(inode, |set| match value {
            Some(value) => set.plan_set(name, value, mode),
            None => set.plan_remove(name),
        })?;
        self.apply_xattrs(handle, inode, plan)
    }

    fn apply_xattrs(&self, handle: &mut Handle<'_>, inode: &Inode, plan: Plan) -> Result<()> {
        if plan.is_nothing() {
            return Ok(());
        }
        let volume = &self.volume;
        let current = self.open_xattr_block(inode)?;
        let had_block = current.is_some();
        let mut reservation = None;
        let mut new = None;
        if plan.block.needs_block() {
            let goal = volume.allocator.data_goal(inode.nr(), inode.is_directory());
            let reserved = volume.allocator.reserve(BlockRequest {
                goal,
                len: 1,
                privileged: true,
            })?;
            new = Some(volume.cache.get_zeroed(reserved.run().start)?);
            reservation = Some(reserved);
        }
        if let Some(reservation) = &mut reservation {
            volume.allocator.allocate(handle, reservation, 1);
        }
        let applied = plan
            .block
            .apply(handle, &volume.geometry, current, new.as_ref());
        if let Some(start) = applied.freed {
            volume.allocator.free(handle, Run { start, len: 1 })?;
        }
        let now = volume.now();
        inode.update(volume, handle, |state, _| {
            if let Some(area) = &plan.area {
                state.fields_mut().xattr_area_mut().copy_from_slice(area);
            }
            let block = applied.block.map_or(0, |nr| nr.0);
            state.fields_mut().set_file_acl(block);
            state.fields_mut().set_ctime(now);
            let change = i64::from(applied.block.is_some()) - i64::from(had_block);
            state.add_blocks(volume, change)
        })
    }

    fn open_xattr_block(&self, inode: &Inode) -> Result<Option<XattrBlock>> {
        match inode.state().fields().file_acl() {
            0 => Ok(None),
            nr => {
                let volume = &self.volume;
                XattrBlock::open(&volume.cache, &volume.geometry, BlockNr(nr)).map(Some)
            }
        }
    }

    /// Runs `use_set` with the inode's attributes.
    fn with_xattrs<R>(
        &self,
        inode: &Inode,
        use_set: impl FnOnce(&XattrSet<'_>) -> Result<R>,
    ) -> Result<R> {
        let _shared = inode.xattrs.read();
        self.with_locked_xattrs(inode, use_set)
    }

    /// Like `with_xattrs`, with the lock over the attributes held by who calls.
    fn with_locked_xattrs<R>(
        &self,
        inode: &Inode,
        use_set: impl FnOnce(&XattrSet<'_>) -> Result<R>,
    ) -> Result<R> {
        let block = self.open_xattr_block(inode)?;
        let state = inode.state();
        let bytes = block.as_ref().map(|block| block.read());
        let set = XattrSet::parse(
            inode.nr(),
            state.fields().xattr_area(),
            block.as_ref().map(XattrBlock::nr).zip(bytes.as_deref()),
            self.volume.geometry.block_size,
        )?;
        use_set(&set)
    }
}

/// Credits for changing one attribute and the inode.
fn change_credits() -> u32 {
    xattr::CREDITS + CREDITS_INODE + 2 * ALLOCATE_CREDITS
}
