//! Listing directories.

use crate::dir::ListedEntry;
use crate::error::{Error, Result};
use crate::fs::Filesystem;
use crate::inode::Inode;
use std::ops::ControlFlow;

impl Filesystem {
    /// Tells the entries of a directory from `cookie` on (0, or the cookie of an earlier entry),
    /// `.` and `..` included, until `visit` breaks. The directory does not change meanwhile.
    ///
    /// # Errors
    /// `NotADirectory`, `Corrupt`, `Io`.
    pub fn list(
        &self,
        directory: &Inode,
        cookie: u64,
        visit: &mut dyn FnMut(&ListedEntry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        if !directory.is_directory() {
            return Err(Error::NotADirectory);
        }
        let _io = directory.io.read();
        if directory.state().fields().links_count() == 0 {
            return Ok(());
        }
        self.directory(directory)
            .entries_from(cookie, &mut |entry| {
                if self.is_hidden(directory, entry.name) {
                    ControlFlow::Continue(())
                } else {
                    visit(entry)
                }
            })
    }
}
