//! Where the bytes of a request come from and where the bytes of a reply go: lists of memory
//! ranges, in a guest or in our own buffer, read and filled in place.
//!
//! A [`Segment`] is one range. [`DataSource`] and [`DataSink`] are cursors over a list of them;
//! they hand out `IoSlice`s, so that a file system reads from its image straight into a guest's
//! pages and writes straight from them. The list is changed in place while the cursor moves: no
//! allocation, no copy.
//!
//! The memory may be shared with a guest that changes it at any time. Nothing here reads a byte
//! twice, and nobody should look into the slices: pass them on to `preadv` and `pwritev`.
#![allow(unsafe_code, reason = "the one place that turns ranges into slices")]

use std::io::{IoSlice, IoSliceMut};
use std::marker::PhantomData;

use rustix::io::Errno;

/// One range of memory that a request or a reply lies in. Laid out as `struct iovec`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Segment {
    base: *mut u8,
    len: usize,
}

// An `IoSlice` is guaranteed to be ABI compatible with `struct iovec`.
const _: () = assert!(size_of::<Segment>() == size_of::<IoSlice<'_>>());
const _: () = assert!(align_of::<Segment>() == align_of::<IoSlice<'_>>());
const _: () = assert!(size_of::<Segment>() == size_of::<IoSliceMut<'_>>());
const _: () = assert!(align_of::<Segment>() == align_of::<IoSliceMut<'_>>());

// SAFETY: a segment is an address and a length; whoever makes a cursor over it vouches for the
// memory (`DataSource::from_segments`, `DataSink::from_segments`).
unsafe impl Send for Segment {}

impl Segment {
    /// A segment for a list that a transport fills; harmless until a cursor is made over it.
    pub fn new(base: *mut u8, len: usize) -> Self {
        Self { base, len }
    }

    /// A range without bytes.
    pub const fn empty() -> Self {
        Self {
            base: std::ptr::dangling_mut(),
            len: 0,
        }
    }

    /// Bytes in the range.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn advance(&mut self, count: usize) {
        debug_assert!(count <= self.len);
        // A wrapping add: the cursor never moves beyond the range, so this is the plain sum.
        self.base = self.base.wrapping_add(count);
        self.len -= count;
    }
}

fn total(segments: &[Segment]) -> usize {
    segments.iter().fold(0, |sum, s| sum.saturating_add(s.len))
}

/// A cursor over a list of segments. Invariant: `remaining` is the sum of the lengths from
/// `first` on, and where it is not zero `segments[first]` is not empty.
#[derive(Debug)]
struct Cursor<'a> {
    segments: &'a mut [Segment],
    first: usize,
    remaining: usize,
}

impl<'a> Cursor<'a> {
    fn new(segments: &'a mut [Segment]) -> Self {
        let remaining = total(segments);
        let mut cursor = Self {
            segments,
            first: 0,
            remaining,
        };
        cursor.skip_empty();
        cursor
    }

    fn skip_empty(&mut self) {
        while self.segments.get(self.first).is_some_and(Segment::is_empty) {
            self.first += 1;
        }
    }

    fn advance(&mut self, count: usize) {
        assert!(count <= self.remaining, "advance beyond the end");
        self.remaining -= count;
        let mut left = count;
        while left > 0 {
            let segment = &mut self.segments[self.first];
            let step = left.min(segment.len);
            segment.advance(step);
            left -= step;
            self.skip_empty();
        }
    }

    /// Calls `f` for each piece of the next `count` bytes and moves behind them.
    fn consume(&mut self, count: usize, mut f: impl FnMut(*mut u8, usize, usize)) {
        assert!(count <= self.remaining, "consume beyond the end");
        let mut done = 0;
        while done < count {
            let segment = self.segments[self.first];
            let step = segment.len.min(count - done);
            f(segment.base, step, done);
            done += step;
            self.advance(step);
        }
    }

    /// Moves behind the next `len` bytes and returns their segments, with what is left of the last
    /// one; give that back with `put_back` when the segments are not needed any more.
    fn take_prefix(&mut self, len: usize) -> (&mut [Segment], Option<Segment>) {
        debug_assert!(len <= self.remaining);
        let (start, mut end, mut sum) = (self.first, self.first, 0);
        while sum < len {
            sum += self.segments[end].len;
            end += 1;
        }
        let mut surplus = None;
        if sum > len {
            let last = &mut self.segments[end - 1];
            let mut rest = *last;
            last.len -= sum - len;
            rest.advance(last.len);
            surplus = Some(rest);
        }
        self.remaining -= len;
        self.first = end;
        (&mut self.segments[start..end], surplus)
    }

    fn put_back(&mut self, surplus: Option<Segment>) {
        if let Some(rest) = surplus {
            self.first -= 1;
            self.segments[self.first] = rest;
        }
        self.skip_empty();
    }

    /// The segments of the next `len` bytes, the last one cut to fit while `f` runs.
    fn with_prefix<R>(&mut self, len: usize, f: impl FnOnce(&mut [Segment]) -> R) -> R {
        let len = len.min(self.remaining);
        let (mut end, mut sum) = (self.first, 0);
        while sum < len {
            sum += self.segments[end].len;
            end += 1;
        }
        let surplus = sum - len;
        if let Some(last) = end.checked_sub(1).filter(|_| surplus > 0) {
            self.segments[last].len -= surplus;
        }
        let result = f(&mut self.segments[self.first..end]);
        if let Some(last) = end.checked_sub(1).filter(|_| surplus > 0) {
            self.segments[last].len += surplus;
        }
        result
    }
}

/// The bytes of a request that have not been read yet; for WRITE, the data to be written.
#[derive(Debug)]
pub struct DataSource<'a> {
    cursor: Cursor<'a>,
    _memory: PhantomData<&'a [u8]>,
}

impl<'a> DataSource<'a> {
    /// A source over one buffer; `storage` is room for its segment.
    pub fn from_slice(bytes: &'a [u8], storage: &'a mut [Segment; 1]) -> Self {
        storage[0] = Segment::new(bytes.as_ptr().cast_mut(), bytes.len());
        // SAFETY: the memory is borrowed for 'a, and a source never writes.
        unsafe { Self::from_segments(storage) }
    }

    /// A source over a list of segments.
    ///
    /// # Safety
    /// Every segment must be readable for all of `'a`.
    pub unsafe fn from_segments(segments: &'a mut [Segment]) -> Self {
        Self {
            cursor: Cursor::new(segments),
            _memory: PhantomData,
        }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining
    }

    /// Fills `out` and moves on, or fails with EINVAL and stays where it is.
    pub fn read_exact(&mut self, out: &mut [u8]) -> Result<(), Errno> {
        if out.len() > self.remaining() {
            return Err(Errno::INVAL);
        }
        let target = out.as_mut_ptr();
        self.cursor.consume(out.len(), |base, len, at| {
            // SAFETY: the segment is readable (`from_segments`), `at + len <= out.len()`, and
            // `out` is ours alone.
            unsafe { std::ptr::copy_nonoverlapping(base, target.add(at), len) };
        });
        Ok(())
    }

    /// The first bytes without moving on, as many as there are. What is read later may differ:
    /// the memory can be a guest's.
    pub fn peek<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        let mut at = 0;
        for segment in &self.cursor.segments[self.cursor.first..] {
            let len = segment.len.min(N - at);
            // SAFETY: the segment is readable (`from_segments`), and `at + len <= N`.
            unsafe { std::ptr::copy_nonoverlapping(segment.base, out.as_mut_ptr().add(at), len) };
            at += len;
        }
        out
    }

    /// Lets `f` have the next `len` bytes (or what is left) as slices for one `pwritev`, without
    /// moving on: call [`advance`](Self::advance) with what was taken.
    pub fn with_buffers<R>(&mut self, len: usize, f: impl FnOnce(&[IoSlice<'_>]) -> R) -> R {
        self.cursor.with_prefix(len, |segments| {
            // SAFETY: the layouts are equal (checked above), the segments are readable for longer
            // than this call, and `f` cannot keep the slices.
            let slices =
                unsafe { std::slice::from_raw_parts(segments.as_ptr().cast(), segments.len()) };
            f(slices)
        })
    }

    /// Moves on by `count` bytes.
    ///
    /// # Panics
    /// When fewer remain.
    pub fn advance(&mut self, count: usize) {
        self.cursor.advance(count);
    }

    /// Forgets what is behind the next `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        truncate(&mut self.cursor, len);
    }
}

/// The room of a reply that has not been filled yet.
#[derive(Debug)]
pub struct DataSink<'a> {
    cursor: Cursor<'a>,
    written: usize,
    _memory: PhantomData<&'a mut [u8]>,
}

impl<'a> DataSink<'a> {
    /// A sink over one buffer; `storage` is room for its segment.
    pub fn from_slice(bytes: &'a mut [u8], storage: &'a mut [Segment; 1]) -> Self {
        storage[0] = Segment::new(bytes.as_mut_ptr(), bytes.len());
        // SAFETY: the memory is borrowed mutably for 'a.
        unsafe { Self::from_segments(storage) }
    }

    /// A sink over a list of segments.
    ///
    /// # Safety
    /// Every segment must be writable for all of `'a`, and be memory that no Rust reference sees.
    pub unsafe fn from_segments(segments: &'a mut [Segment]) -> Self {
        Self {
            cursor: Cursor::new(segments),
            written: 0,
            _memory: PhantomData,
        }
    }

    /// Room left, in bytes.
    pub fn remaining(&self) -> usize {
        self.cursor.remaining
    }

    /// Bytes filled.
    pub fn written(&self) -> usize {
        self.written
    }

    /// Copies `bytes` and moves on, or fails with EOVERFLOW and stays where it is.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.len() > self.remaining() {
            return Err(Errno::OVERFLOW);
        }
        let source = bytes.as_ptr();
        self.cursor.consume(bytes.len(), |base, len, at| {
            // SAFETY: the segment is writable (`from_segments`), `at + len <= bytes.len()`, and no
            // reference sees the target.
            unsafe { std::ptr::copy_nonoverlapping(source.add(at), base, len) };
        });
        self.written += bytes.len();
        Ok(())
    }

    /// Fills the next `count` bytes with zeros (a hole) and moves on, or fails with EOVERFLOW.
    pub fn write_zeros(&mut self, count: usize) -> Result<(), Errno> {
        if count > self.remaining() {
            return Err(Errno::OVERFLOW);
        }
        self.cursor.consume(count, |base, len, _| {
            // SAFETY: the segment is writable (`from_segments`).
            unsafe { std::ptr::write_bytes(base, 0, len) };
        });
        self.written += count;
        Ok(())
    }

    /// Lets `f` fill the next `len` bytes of room (or what is left) through slices for one
    /// `preadv`, and moves on. `f` returns how many bytes it filled, from the first on; a count
    /// below `len` ends the reply there, as no gap can follow. `f` may change the slices.
    pub fn fill_with(
        &mut self,
        len: usize,
        f: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<usize, Errno>,
    ) -> Result<usize, Errno> {
        let len = len.min(self.remaining());
        let (segments, surplus) = self.cursor.take_prefix(len);
        // SAFETY: the layouts are equal (checked above), the segments are writable for longer than
        // this call, `f` cannot keep the slices, and the cursor does not use the segments again.
        let slices =
            unsafe { std::slice::from_raw_parts_mut(segments.as_mut_ptr().cast(), segments.len()) };
        let result = f(slices);
        self.cursor.put_back(surplus);
        let count = result?.min(len);
        self.written += count;
        if count < len {
            self.truncate(0);
        }
        Ok(count)
    }

    /// Forgets the room behind the next `len` bytes.
    pub fn truncate(&mut self, len: usize) {
        truncate(&mut self.cursor, len);
    }

    /// Takes `N` bytes off the front, to be filled later; they do not count as written. `None` when
    /// there is less room.
    pub(crate) fn reserve<const N: usize>(&mut self) -> Option<Reserved<N>> {
        if self.remaining() < N {
            return None;
        }
        let mut reserved = Reserved {
            pieces: [Segment::empty(); N],
            count: 0,
        };
        self.cursor.consume(N, |base, len, _| {
            reserved.pieces[reserved.count] = Segment::new(base, len);
            reserved.count += 1;
        });
        Some(reserved)
    }

    /// Fills what `reserve` of this sink gave, and counts it as written.
    pub(crate) fn fill<const N: usize>(&mut self, reserved: Reserved<N>, bytes: [u8; N]) {
        let mut at = 0;
        for piece in &reserved.pieces[..reserved.count] {
            // SAFETY: the pieces come from the segments of this sink, which are still writable,
            // and their lengths add up to N.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr().add(at), piece.base, piece.len) };
            at += piece.len;
        }
        self.written += N;
    }
}

/// `N` bytes of a sink, in at most `N` pieces, kept for later.
#[derive(Debug)]
pub(crate) struct Reserved<const N: usize> {
    pieces: [Segment; N],
    count: usize,
}

fn truncate(cursor: &mut Cursor<'_>, len: usize) {
    if len >= cursor.remaining {
        return;
    }
    let mut left = len;
    for segment in &mut cursor.segments[cursor.first..] {
        segment.len = segment.len.min(left);
        left -= segment.len;
    }
    cursor.remaining = len;
    cursor.skip_empty();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(parts: &mut [Vec<u8>]) -> Vec<Segment> {
        parts
            .iter_mut()
            .map(|p| Segment::new(p.as_mut_ptr(), p.len()))
            .collect()
    }

    fn joined(slices: &[IoSlice<'_>]) -> Vec<u8> {
        slices.iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn source_reads_across_segments() {
        let mut parts = [
            b"ab".to_vec(),
            vec![],
            b"cde".to_vec(),
            b"f".to_vec(),
            vec![],
        ];
        let mut list = segments(&mut parts);
        // SAFETY: the parts outlive the source.
        let mut source = unsafe { DataSource::from_segments(&mut list) };
        assert_eq!(source.peek(), *b"abcd");
        assert_eq!(source.peek(), *b"abcdef\0");
        let mut out = [0; 3];
        source.read_exact(&mut out).unwrap();
        assert_eq!(&out, b"abc");
        let seen = source.with_buffers(2, joined);
        assert_eq!(seen, b"de");
        let seen = source.with_buffers(100, joined);
        assert_eq!(seen, b"def");
        source.advance(1);
        assert_eq!(source.read_exact(&mut [0; 3]), Err(Errno::INVAL));
        assert_eq!(source.remaining(), 2);
        source.truncate(1);
        let mut out = [0; 1];
        source.read_exact(&mut out).unwrap();
        assert_eq!((&out, source.remaining()), (b"e", 0));
    }

    #[test]
    fn sink_fills_across_segments_whatever_the_callee_does_to_the_slices() {
        let mut parts = [vec![0; 3], vec![], vec![0; 4], vec![0; 5]];
        let mut list = segments(&mut parts);
        // SAFETY: the parts outlive the sink and are not looked at before it is gone.
        let mut sink = unsafe { DataSink::from_segments(&mut list) };
        let reserved = sink.reserve::<4>().unwrap();
        let count = sink.fill_with(4, |mut slices| {
            assert_eq!(slices.iter().map(|s| s.len()).sum::<usize>(), 4);
            for byte in *b"5678" {
                slices[0][0] = byte;
                IoSliceMut::advance_slices(&mut slices, 1);
            }
            Ok(4)
        });
        assert_eq!((count, sink.written(), sink.remaining()), (Ok(4), 4, 4));
        sink.write(b"9").unwrap();
        sink.write_zeros(1).unwrap();
        assert_eq!(sink.write(b"abc"), Err(Errno::OVERFLOW));
        assert_eq!(sink.fill_with(2, |_| Ok(1)), Ok(1));
        assert_eq!(
            (sink.written(), sink.remaining()),
            (7, 0),
            "a short count ends it"
        );
        sink.fill(reserved, *b"1234");
        assert_eq!(sink.written(), 11);
        assert_eq!(parts.concat(), b"123456789\0\0\0");
    }

    #[test]
    fn empty_lists_are_harmless() {
        let mut sink_list = [Segment::empty(); 2];
        // SAFETY: empty segments name no memory.
        let mut sink = unsafe { DataSink::from_segments(&mut sink_list) };
        assert!(sink.reserve::<1>().is_none());
        assert_eq!(sink.fill_with(10, |slices| Ok(slices.len())), Ok(0));
        sink.write(b"").unwrap();
        let mut source_list = [];
        // SAFETY: there is no segment.
        let mut source = unsafe { DataSource::from_segments(&mut source_list) };
        source.advance(0);
        assert_eq!(source.with_buffers(1, |slices| slices.len()), 0);
    }
}
