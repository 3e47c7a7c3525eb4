//! Buffers of a request as the file system's source and sink: guest memory goes to `preadv` and
//! `pwritev` as it is.

use crate::fuse;
use kfs::{DataSink, DataSource, Error, Result};
use rustix::io::Errno;
use std::io::{IoSlice, IoSliceMut};

/// The room of a READ's reply.
pub(super) struct Sink<'s, 'a>(pub(super) &'s mut fuse::DataSink<'a>);

impl DataSink for Sink<'_, '_> {
    fn fill(
        &mut self,
        len: usize,
        read: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> Result<()>,
    ) -> Result<()> {
        let mut failure = None;
        let filled = self.0.fill_with(len, |bufs| match read(bufs) {
            Ok(()) => Ok(len),
            Err(error) => {
                failure = Some(error);
                Err(Errno::IO)
            }
        });
        match (failure, filled) {
            (Some(error), _) => Err(error),
            (None, Ok(count)) if count == len => Ok(()),
            // The kernel asked for less room than it has said.
            (None, _) => Err(Error::OutOfRange),
        }
    }

    fn zeros(&mut self, len: usize) -> Result<()> {
        self.0.write_zeros(len).map_err(|_| Error::OutOfRange)
    }
}

/// The data of a WRITE.
pub(super) struct Source<'s, 'a>(pub(super) &'s mut fuse::DataSource<'a>);

impl DataSource for Source<'_, '_> {
    fn take(
        &mut self,
        len: usize,
        write: &mut dyn FnMut(&[IoSlice<'_>]) -> Result<()>,
    ) -> Result<()> {
        if len > self.0.remaining() {
            return Err(Error::Invalid);
        }
        self.0.with_buffers(len, |bufs| write(bufs))?;
        self.0.advance(len);
        Ok(())
    }
}
