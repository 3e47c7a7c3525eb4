//! Confinement: a host directory is served with a root of its own, few capabilities and no network,
//! an image without any capability.
//!
//! To be entered before any thread is started (all of this belongs to the calling thread and is
//! inherited by those it starts) and after every path has been opened.

use crate::config::{ConfigError, Sandbox, SharedDirOptions};
use crate::shared_dir::SharedDir;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, UnmountFlags};
use rustix::thread::{CapabilitySet, UnshareFlags};
use std::path::Path;

/// Why the process could not be confined.
#[derive(Debug, thiserror::Error)]
#[error("cannot enter the sandbox: {what} failed")]
pub struct SandboxError {
    what: &'static str,
    #[source]
    source: Errno,
}

fn failed(what: &'static str) -> impl FnOnce(Errno) -> SandboxError {
    move |source| SandboxError { what, source }
}

/// What serving files takes: ownership, permissions, special files.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);

/// Enters the sandbox that `options` ask for.
pub fn enter(options: &SharedDirOptions, directory: &mut SharedDir) -> Result<(), SandboxError> {
    match options.sandbox {
        Sandbox::None => return Ok(()),
        Sandbox::Chroot => {
            rustix::process::chroot(directory.path()).map_err(failed("chroot"))?;
        }
        Sandbox::Namespace => enter_namespaces(directory.path())?,
    }
    let root = rustix::fs::open("/", OPEN_FLAGS, Mode::empty()).map_err(failed("opening /"))?;
    directory
        .move_to_new_root(root)
        .map_err(failed("entering /proc/self/fd"))?;
    if rustix::process::geteuid().is_root() {
        rustix::thread::set_thread_groups(&[]).map_err(failed("dropping groups"))?;
    }
    keep_only((KEPT | options.keep_capabilities) - options.drop_capabilities)
}

const OPEN_FLAGS: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A mount namespace in which the directory is the root and nothing else is mounted, and a network
/// namespace without networks. Sockets that are open stay usable.
fn enter_namespaces(path: &Path) -> Result<(), SandboxError> {
    let flags = UnshareFlags::NEWNS | UnshareFlags::NEWNET | UnshareFlags::NEWIPC;
    crate::sys::unshare(flags).map_err(failed("making namespaces"))?;
    // Mounts that the host makes below the directory are still to be seen.
    let receiving = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", receiving).map_err(failed("cutting mount propagation"))?;
    // pivot_root(2) wants a mount point: the directory becomes one, with all that is mounted below.
    rustix::mount::mount_bind_recursive(path, path).map_err(failed("binding the directory"))?;
    let open = |path: &Path| rustix::fs::open(path, OPEN_FLAGS, Mode::empty());
    let new_root = open(path).map_err(failed("opening the directory"))?;
    let old_root = open(Path::new("/")).map_err(failed("opening the old root"))?;
    rustix::process::fchdir(&new_root).map_err(failed("entering the directory"))?;
    rustix::process::pivot_root(".", ".").map_err(failed("pivot_root"))?;
    // The old root lies over the new one until it is detached.
    rustix::process::fchdir(&old_root).map_err(failed("entering the old root"))?;
    rustix::mount::mount_change(".", receiving).map_err(failed("cutting mount propagation"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).map_err(failed("detaching the old root"))?;
    rustix::process::fchdir(&new_root).map_err(failed("entering the directory"))
}

/// Gives up every capability of the calling thread, and of those it starts, for good.
pub fn drop_all_capabilities() -> Result<(), SandboxError> {
    keep_only(CapabilitySet::empty())?;
    // Programs with suid bits or file capabilities would not give them back either.
    rustix::thread::set_no_new_privs(true).map_err(failed("renouncing new privileges"))
}

fn keep_only(kept: CapabilitySet) -> Result<(), SandboxError> {
    let mut sets = rustix::thread::capabilities(None).map_err(failed("reading capabilities"))?;
    // The bounding set matters only to those who could gain capabilities, and only they may
    // change it.
    let may_shrink = sets.effective.contains(CapabilitySet::SETPCAP);
    for capability in CapabilitySet::all().iter().filter(|_| may_shrink) {
        if !kept.contains(capability) && capability.bits().is_power_of_two() {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // A capability this kernel does not know.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(failed("shrinking the bounding set")(errno)),
            }
        }
    }
    sets.permitted &= kept;
    sets.effective &= kept;
    sets.inheritable = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, sets).map_err(failed("dropping capabilities"))
}

/// Reads a list such as `+sys_admin:-chown`: what to keep, what to drop.
pub(crate) fn parse_modcaps(list: &str) -> Result<(CapabilitySet, CapabilitySet), ConfigError> {
    let (mut keep, mut drop) = (CapabilitySet::empty(), CapabilitySet::empty());
    for word in list.split(':').filter(|word| !word.is_empty()) {
        let wrong = |expected| ConfigError::Value {
            option: "--modcaps".into(),
            value: word.into(),
            expected,
        };
        let (set, name) = match (word.strip_prefix('+'), word.strip_prefix('-')) {
            (Some(name), _) => (&mut keep, name),
            (_, Some(name)) => (&mut drop, name),
            _ => return Err(wrong("+NAME or -NAME")),
        };
        let name = name.to_ascii_uppercase();
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        *set |= CapabilitySet::from_name(name).ok_or_else(|| wrong("a capability"))?;
    }
    Ok((keep, drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capability_lists_are_read() {
        let (keep, drop) = parse_modcaps("+sys_admin:-CAP_CHOWN:+fowner").unwrap();
        assert_eq!(keep, CapabilitySet::SYS_ADMIN | CapabilitySet::FOWNER);
        assert_eq!(drop, CapabilitySet::CHOWN);
        assert_eq!(
            parse_modcaps("").unwrap(),
            (CapabilitySet::empty(), CapabilitySet::empty())
        );
        for wrong in ["sys_admin", "+fly", "-"] {
            assert!(parse_modcaps(wrong).is_err(), "{wrong}");
        }
    }
}
