//! Copies of whole files that share their blocks, where the host's file system can do that (ioctl_ficlone(2)).

use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Makes a new file that shares all blocks of `source`. False, and no file, where that cannot be: on another
/// file system, or on one without shared blocks.
///
/// # Errors
/// When the file exists or cannot be made.
pub fn reflink(source: &File, path: &Path) -> io::Result<bool> {
    let target = OpenOptions::new()
        .write(true)
        .create_new(true)
        // What is in it may not be for everybody.
        .mode(0o600)
        .open(path)?;
    let cloned = rustix::fs::ioctl_ficlone(&target, source);
    drop(target);
    match cloned {
        Ok(()) => Ok(true),
        Err(errno) => {
            // It is of no use as it is.
            let _ = std::fs::remove_file(path);
            match errno {
                Errno::OPNOTSUPP | Errno::XDEV | Errno::INVAL | Errno::NOTTY | Errno::NOSYS => {
                    Ok(false)
                }
                errno => Err(errno.into()),
            }
        }
    }
}
