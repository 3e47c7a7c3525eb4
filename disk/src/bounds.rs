//! Checks that every device makes on a request before it touches a byte.

use std::io;

use rustix::io::Errno;

/// Fails unless `len` bytes from `offset` lie within a device of `size` bytes.
pub(crate) fn check_bounds(offset: u64, len: u64, size: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= size => Ok(()),
        _ => Err(beyond_end(offset, len, size)),
    }
}

/// Bytes in all of `bufs`.
pub(crate) fn total_len<B: std::ops::Deref<Target = [u8]>>(bufs: &[B]) -> u64 {
    bufs.iter().map(|buf| buf.len() as u64).sum()
}

/// The error of a write to a device that may not be written.
pub(crate) fn read_only_error() -> io::Error {
    Errno::ROFS.into()
}

#[cold]
fn beyond_end(offset: u64, len: u64, size: u64) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{len} bytes at byte {offset} reach beyond the end of the device ({size} bytes)"),
    )
}
