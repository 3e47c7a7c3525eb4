//! Where file data comes from and goes to: the caller's buffers, by reference.
//!
//! File data passes through no cache of ours: the device reads into, and writes from, whatever
//! slices the caller gives out, which may be the memory of a guest.

use crate::error::Result;
use std::io::{IoSlice, IoSliceMut};

/// Takes the bytes of a read, in order.
pub trait DataSink {
    /// Lets `read` fill the next `len` bytes.
    ///
    /// # Errors
    /// What `read` reports.
    fn fill(
        &mut self,
        len: usize,
        read: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> Result<()>,
    ) -> Result<()>;

    /// The next `len` bytes are zeros.
    ///
    /// # Errors
    /// When the sink cannot take them.
    fn zeros(&mut self, len: usize) -> Result<()>;
}

/// Gives the bytes of a write, in order.
pub trait DataSource {
    /// Lets `write` have the next `len` bytes, which are gone afterwards.
    ///
    /// # Errors
    /// What `write` reports; the bytes are not gone then.
    fn take(
        &mut self,
        len: usize,
        write: &mut dyn FnMut(&[IoSlice<'_>]) -> Result<()>,
    ) -> Result<()>;
}

/// A sink over one buffer.
pub struct SliceSink<'a> {
    rest: &'a mut [u8],
}

impl<'a> SliceSink<'a> {
    /// Fills `buffer` from its start.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { rest: buffer }
    }

    fn next(&mut self, len: usize) -> &'a mut [u8] {
        let (now, later) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = later;
        now
    }
}

impl DataSink for SliceSink<'_> {
    fn fill(
        &mut self,
        len: usize,
        read: &mut dyn FnMut(&mut [IoSliceMut<'_>]) -> Result<()>,
    ) -> Result<()> {
        read(&mut [IoSliceMut::new(self.next(len))])
    }

    fn zeros(&mut self, len: usize) -> Result<()> {
        self.next(len).fill(0);
        Ok(())
    }
}

/// A source over one buffer.
pub struct SliceSource<'a> {
    rest: &'a [u8],
}

impl<'a> SliceSource<'a> {
    /// Gives out `buffer` from its start.
    #[must_use]
    pub fn new(buffer: &'a [u8]) -> Self {
        Self { rest: buffer }
    }
}

impl DataSource for SliceSource<'_> {
    fn take(
        &mut self,
        len: usize,
        write: &mut dyn FnMut(&[IoSlice<'_>]) -> Result<()>,
    ) -> Result<()> {
        let (now, later) = self.rest.split_at(len);
        write(&[IoSlice::new(now)])?;
        self.rest = later;
        Ok(())
    }
}
