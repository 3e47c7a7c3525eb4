//! Writes replies: the header last, when the length and the error are known.

use rustix::io::Errno;
use zerocopy::{Immutable, IntoBytes};

use super::abi::{Attr, AttrOut, OutHeader};
use super::buffers::{DataSink, Reserved};
use super::file_system::Result;
use std::time::Duration;

const HEADER: usize = size_of::<OutHeader>();

/// The header's place in a reply that is being made.
#[derive(Debug)]
pub(crate) struct Reply {
    header: Reserved<HEADER>,
    unique: u64,
}

impl Reply {
    /// Keeps room for the header; `None` when there is not even that.
    pub(crate) fn begin(sink: &mut DataSink<'_>, unique: u64) -> Option<Self> {
        let header = sink.reserve()?;
        Some(Self { header, unique })
    }

    /// Writes the header and returns the reply's length. After an error nothing but the header
    /// counts, whatever was written before.
    pub(crate) fn finish(self, sink: &mut DataSink<'_>, result: Result<()>) -> usize {
        let (len, error) = match result {
            Ok(()) => (HEADER + sink.written(), 0),
            Err(errno) => (HEADER, -wire_errno(errno)),
        };
        let header = OutHeader {
            len: u32::try_from(len).unwrap_or(u32::MAX),
            error,
            unique: self.unique,
        };
        let mut bytes = [0; HEADER];
        bytes.copy_from_slice(header.as_bytes());
        sink.fill(self.header, bytes);
        len
    }
}

/// The kernel refuses a reply with an error from 512 on, and its caller would wait for ever.
fn wire_errno(errno: Errno) -> i32 {
    match errno.raw_os_error() {
        raw @ 1..512 => raw,
        _ => Errno::IO.raw_os_error(),
    }
}

/// Fails unless a reply of this type fits. Asked before an operation changes anything.
pub(crate) fn check_room<T>(sink: &DataSink<'_>) -> Result<()> {
    if sink.remaining() < size_of::<T>() {
        return Err(Errno::INVAL);
    }
    Ok(())
}

/// Writes a structure.
pub(crate) fn put<T: IntoBytes + Immutable>(sink: &mut DataSink<'_>, value: &T) -> Result<()> {
    sink.write(value.as_bytes())
}

/// Writes attributes.
pub(crate) fn put_attr(sink: &mut DataSink<'_>, attr: Attr, timeout: Duration) -> Result<()> {
    let out = AttrOut {
        attr_valid: timeout.as_secs(),
        attr_valid_nsec: timeout.subsec_nanos(),
        dummy: 0,
        attr,
    };
    put(sink, &out)
}
