//! System calls that Rust cannot vouch for.
#![expect(unsafe_code, reason = "each call says why it is safe")]

use rustix::thread::UnshareFlags;

/// Moves the calling thread into namespaces of its own. The table of file descriptors stays
/// shared between threads, whatever `flags` say.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: only FILES can make a descriptor of one thread invalid in another.
    unsafe { rustix::thread::unshare_unsafe(flags - UnshareFlags::FILES) }
}
