//! System calls that Rust cannot vouch for.
#![expect(unsafe_code, reason = "each call says why it is safe")]

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::FdFlags;
use rustix::thread::UnshareFlags;

/// Moves the calling thread into namespaces of its own. The table of file descriptors stays
/// shared between threads, whatever `flags` say.
pub(crate) fn unshare(flags: UnshareFlags) -> rustix::io::Result<()> {
    // SAFETY: only FILES can make a descriptor of one thread invalid in another.
    unsafe { rustix::thread::unshare_unsafe(flags - UnshareFlags::FILES) }
}

/// Takes a descriptor that the process was started with. It is not passed on to children.
///
/// The caller may take each number once, and only numbers that it was told to.
pub(crate) fn inherited_fd(number: i32) -> io::Result<OwnedFd> {
    if number <= 2 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("file descriptor {number} is not one to take"),
        ));
    }
    // SAFETY: the number is not negative, and the borrow ends with the call, which only asks
    // whether the descriptor is open.
    let flags = unsafe { rustix::io::fcntl_getfd(BorrowedFd::borrow_raw(number)) };
    flags.map_err(|errno| io::Error::other(format!("file descriptor {number}: {errno}")))?;
    // SAFETY: it is open, and who started the process says that it is ours.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC)?;
    Ok(fd)
}
