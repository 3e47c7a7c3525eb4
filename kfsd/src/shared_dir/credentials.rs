//! Acting for a guest's user: new files must belong to whom they would belong to on the host.
//!
//! Ids and capabilities are those of the calling thread only, and the guards give them back when
//! they are dropped. The guest's kernel has checked the permissions (it always does on virtio-fs,
//! and mounts get default_permissions), and it knows groups and capabilities that the daemon does
//! not; so the thread keeps the right to override the host's check while it acts for a user.

use crate::fuse::Result;
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use rustix::thread::{
    capabilities, set_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

/// The thread acts for a user while this lives.
#[must_use]
#[derive(Debug)]
pub(super) struct ActingUser {
    changed_groups: bool,
    changed_gid: bool,
    changed_uid: bool,
}

impl ActingUser {
    /// Takes on the ids. A daemon that is not root cannot, and acts as itself.
    pub(super) fn new(uid: u32, gid: u32, supplementary_group: Option<u32>) -> Result<Self> {
        let mut acting = Self {
            changed_groups: false,
            changed_gid: false,
            changed_uid: false,
        };
        // All ones mean "unchanged" to the host: the file would be root's.
        if [uid, gid, supplementary_group.unwrap_or(0)].contains(&u32::MAX) {
            return Err(Errno::INVAL);
        }
        if !rustix::process::geteuid().is_root() {
            return Ok(acting);
        }
        if let Some(group) = supplementary_group {
            set_thread_groups(&[Gid::from_raw(group)])?;
            acting.changed_groups = true;
        }
        if gid != 0 {
            set_thread_res_gid(None, Gid::from_raw(gid), None)?;
            acting.changed_gid = true;
        }
        if uid != 0 {
            set_thread_res_uid(None, Uid::from_raw(uid), None)?;
            acting.changed_uid = true;
            // The change of the user id has taken all effective capabilities away.
            let mut sets = capabilities(None)?;
            let wanted = CapabilitySet::DAC_OVERRIDE | CapabilitySet::MKNOD;
            sets.effective |= wanted & sets.permitted;
            set_capabilities(None, sets)?;
        }
        Ok(acting)
    }
}

impl Drop for ActingUser {
    fn drop(&mut self) {
        // A thread that stayed somebody else would do other guests' work under a wrong name.
        if self.changed_uid {
            set_thread_res_uid(None, Uid::ROOT, None).expect("the saved user id is root");
        }
        if self.changed_gid {
            set_thread_res_gid(None, Gid::ROOT, None).expect("root may set any group id");
        }
        if self.changed_groups {
            set_thread_groups(&[]).expect("root may set any groups");
        }
    }
}

/// While this lives, the host drops suid and sgid bits on writes, as it does for plain users.
#[must_use]
#[derive(Debug)]
pub(super) struct WithoutFsetid(Option<CapabilitySets>);

impl WithoutFsetid {
    /// Gives CAP_FSETID up for a while, if `wanted` and if the thread has it.
    pub(super) fn new(wanted: bool) -> Result<Self> {
        if !wanted {
            return Ok(Self(None));
        }
        let before = capabilities(None)?;
        if !before.effective.contains(CapabilitySet::FSETID) {
            return Ok(Self(None));
        }
        let mut without = before;
        without.effective -= CapabilitySet::FSETID;
        set_capabilities(None, without)?;
        Ok(Self(Some(before)))
    }
}

impl Drop for WithoutFsetid {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            set_capabilities(None, before).expect("permitted capabilities can be made effective");
        }
    }
}
