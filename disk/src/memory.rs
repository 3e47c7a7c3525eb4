//! `MemoryDevice`: a sparse disk in memory with cheap snapshots.
//!
//! Two levels: chunks of 1 MiB, each with its own lock so that threads at different places do not
//! wait for each other, and in a chunk pages of 4 KiB. Both are counted references that are copied
//! when a shared one is written, so a snapshot costs one reference per chunk. A missing chunk or
//! page is zeros.

use std::fs::File;
use std::io::{self, IoSlice, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::bounds::check_bounds;
use crate::device::BlockDevice;

const PAGE_SIZE: usize = 4096;
const PAGES_PER_CHUNK: usize = 256;
const CHUNK_SIZE: usize = PAGE_SIZE * PAGES_PER_CHUNK;

type Page = [u8; PAGE_SIZE];

#[derive(Clone)]
struct Chunk {
    pages: [Option<Arc<Page>>; PAGES_PER_CHUNK],
}

impl Chunk {
    fn new() -> Self {
        Chunk {
            pages: [const { None }; PAGES_PER_CHUNK],
        }
    }
}

/// A disk in memory. Pages that were never written take no memory.
pub struct MemoryDevice {
    chunks: Box<[RwLock<Option<Arc<Chunk>>>]>,
    size: u64,
}

impl MemoryDevice {
    /// A disk of `size` zero bytes.
    pub fn new(size: u64) -> Self {
        let count = size.div_ceil(CHUNK_SIZE as u64);
        let chunks = (0..count).map(|_| RwLock::new(None)).collect();
        MemoryDevice { chunks, size }
    }

    /// A disk with the given content.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let device = MemoryDevice::new(bytes.len() as u64);
        for (index, page) in bytes.chunks(PAGE_SIZE).enumerate() {
            if page.iter().any(|&byte| byte != 0) {
                device
                    .write_at((index * PAGE_SIZE) as u64, page)
                    .expect("the device was made as large as the bytes");
            }
        }
        device
    }

    /// A disk with the content of an image file; its holes and zeros take no memory.
    pub fn from_file(path: impl AsRef<Path>) -> io::Result<Self> {
        let mut file = File::open(path)?;
        let size = file.metadata()?.len();
        let device = MemoryDevice::new(size);
        let mut buf = vec![0; CHUNK_SIZE];
        let mut offset = 0;
        while offset < size {
            let len = (size - offset).min(CHUNK_SIZE as u64) as usize;
            file.read_exact(&mut buf[..len])?;
            for (index, page) in buf[..len].chunks(PAGE_SIZE).enumerate() {
                if page.iter().any(|&byte| byte != 0) {
                    device.write_at(offset + (index * PAGE_SIZE) as u64, page)?;
                }
            }
            offset += len as u64;
        }
        Ok(device)
    }

    /// An independent copy that shares all pages until one side writes them.
    ///
    /// A write that runs at the same time may be in it in part, as on a disk whose power goes.
    pub fn snapshot(&self) -> MemoryDevice {
        let chunks = self
            .chunks
            .iter()
            .map(|chunk| RwLock::new(chunk.read().clone()))
            .collect();
        MemoryDevice {
            chunks,
            size: self.size,
        }
    }

    /// Writes the content to an image file, with holes where there are only zeros.
    pub fn write_to(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let file = File::create(path)?;
        for (index, chunk) in self.chunks.iter().enumerate() {
            // Cloned so that no lock is held over file I/O.
            let Some(chunk) = chunk.read().clone() else {
                continue;
            };
            for (page_index, page) in chunk.pages.iter().enumerate() {
                if let Some(page) = page
                    && page.iter().any(|&byte| byte != 0)
                {
                    let offset = (index * CHUNK_SIZE + page_index * PAGE_SIZE) as u64;
                    file.write_all_at(&page[..], offset)?;
                }
            }
        }
        // After the writes: the last page may reach beyond the end.
        file.set_len(self.size)
    }

    /// The whole content; for small disks.
    pub fn to_vec(&self) -> Vec<u8> {
        let len = usize::try_from(self.size).expect("a disk to be copied fits in memory");
        let mut bytes = vec![0; len];
        self.read_at(0, &mut bytes)
            .expect("the range is the whole device");
        bytes
    }

    /// Bytes of memory that the content takes, shared pages counted in full.
    pub fn allocated_bytes(&self) -> u64 {
        let pages = |chunk: &RwLock<Option<Arc<Chunk>>>| {
            chunk
                .read()
                .as_ref()
                .map_or(0, |chunk| chunk.pages.iter().flatten().count())
        };
        self.chunks.iter().map(pages).sum::<usize>() as u64 * PAGE_SIZE as u64
    }

    /// Fills a range of one chunk from `buf`.
    fn write_in_chunk(&self, index: usize, start: usize, buf: &[u8]) {
        let mut guard = self.chunks[index].write();
        let chunk = Arc::make_mut(guard.get_or_insert_with(|| Arc::new(Chunk::new())));
        let mut done = 0;
        for piece in pieces(start as u64, buf.len() as u64, PAGE_SIZE) {
            let source = &buf[done..done + piece.len];
            let page = &mut chunk.pages[piece.index];
            match page {
                Some(page) => {
                    Arc::make_mut(page)[piece.start..][..piece.len].copy_from_slice(source);
                }
                None => {
                    let mut bytes = [0; PAGE_SIZE];
                    bytes[piece.start..][..piece.len].copy_from_slice(source);
                    *page = Some(Arc::new(bytes));
                }
            }
            done += piece.len;
        }
    }

    fn zero_in_chunk(&self, index: usize, start: usize, len: usize) {
        let mut guard = self.chunks[index].write();
        let Some(shared) = guard.as_mut() else { return };
        if len == CHUNK_SIZE {
            *guard = None;
            return;
        }
        let chunk = Arc::make_mut(shared);
        for piece in pieces(start as u64, len as u64, PAGE_SIZE) {
            let page = &mut chunk.pages[piece.index];
            if piece.len == PAGE_SIZE {
                *page = None;
            } else if let Some(page) = page {
                Arc::make_mut(page)[piece.start..][..piece.len].fill(0);
            }
        }
    }
}

impl BlockDevice for MemoryDevice {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        let mut rest = buf;
        for in_device in pieces(offset, rest.len() as u64, CHUNK_SIZE) {
            let (mut target, tail) = rest.split_at_mut(in_device.len);
            rest = tail;
            let guard = self.chunks[in_device.index].read();
            let Some(chunk) = guard.as_ref() else {
                target.fill(0);
                continue;
            };
            for piece in pieces(in_device.start as u64, in_device.len as u64, PAGE_SIZE) {
                let (head, tail) = target.split_at_mut(piece.len);
                target = tail;
                match &chunk.pages[piece.index] {
                    Some(page) => head.copy_from_slice(&page[piece.start..][..piece.len]),
                    None => head.fill(0),
                }
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        check_bounds(offset, buf.len() as u64, self.size)?;
        let mut done = 0;
        for piece in pieces(offset, buf.len() as u64, CHUNK_SIZE) {
            self.write_in_chunk(piece.index, piece.start, &buf[done..done + piece.len]);
            done += piece.len;
        }
        Ok(())
    }

    fn write_vectored_at(&self, offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        // Checked as a whole, so that a request beyond the end changes nothing.
        check_bounds(offset, crate::bounds::total_len(bufs), self.size)?;
        let mut offset = offset;
        for buf in bufs {
            self.write_at(offset, buf)?;
            offset += buf.len() as u64;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.write_zeroes(offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        check_bounds(offset, len, self.size)?;
        for piece in pieces(offset, len, CHUNK_SIZE) {
            self.zero_in_chunk(piece.index, piece.start, piece.len);
        }
        Ok(())
    }

    fn size_bytes(&self) -> u64 {
        self.size
    }
}

impl std::fmt::Debug for MemoryDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryDevice")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// The part of a range that lies in one unit (chunk or page).
struct Piece {
    index: usize,
    start: usize,
    len: usize,
}

/// Cuts a range at the boundaries of units of `unit` bytes.
fn pieces(offset: u64, len: u64, unit: usize) -> impl Iterator<Item = Piece> {
    let end = offset + len;
    let mut next = offset;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let index = (next / unit as u64) as usize;
        let start = (next % unit as u64) as usize;
        let len = (end - next).min((unit - start) as u64) as usize;
        next += len as u64;
        Some(Piece { index, start, len })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SIZE: usize = 2 * CHUNK_SIZE + 3 * PAGE_SIZE + 100;

    #[derive(Clone, Debug)]
    enum Op {
        Write { offset: usize, len: usize, byte: u8 },
        Zero { offset: usize, len: usize },
        Snapshot,
    }

    fn range() -> impl Strategy<Value = (usize, usize)> {
        let len = prop_oneof![1..40usize, 1..10_000usize, 1..SIZE];
        (0..SIZE, len).prop_map(|(offset, len)| (offset, len.min(SIZE - offset)))
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (range(), 1..=255u8)
                .prop_map(|((offset, len), byte)| Op::Write { offset, len, byte }),
            2 => range().prop_map(|(offset, len)| Op::Zero { offset, len }),
            1 => Just(Op::Snapshot),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn equals_a_vector_and_snapshots_stay(ops in prop::collection::vec(op(), 1..20)) {
            let device = MemoryDevice::new(SIZE as u64);
            let mut model = vec![0u8; SIZE];
            let mut snapshots = Vec::new();
            for op in ops {
                match op {
                    Op::Write { offset, len, byte } => {
                        device.write_at(offset as u64, &vec![byte; len]).unwrap();
                        model[offset..offset + len].fill(byte);
                    }
                    Op::Zero { offset, len } => {
                        device.write_zeroes(offset as u64, len as u64).unwrap();
                        model[offset..offset + len].fill(0);
                    }
                    Op::Snapshot => snapshots.push((device.snapshot(), model.clone())),
                }
            }
            prop_assert!(device.to_vec() == model);
            prop_assert!(MemoryDevice::from_bytes(&model).to_vec() == model);
            for (snapshot, model) in snapshots {
                prop_assert!(snapshot.to_vec() == model);
            }
        }
    }

    #[test]
    fn beyond_the_end_changes_nothing() {
        let device = MemoryDevice::new(100);
        assert!(device.write_at(90, &[1; 11]).is_err());
        assert!(device.read_at(101, &mut []).is_err());
        assert!(device.write_zeroes(u64::MAX, 2).is_err());
        let bufs = [IoSlice::new(&[1; 60]), IoSlice::new(&[1; 60])];
        assert!(device.write_vectored_at(0, &bufs).is_err());
        assert_eq!(device.allocated_bytes(), 0);
        device.write_at(90, &[1; 10]).unwrap();
        device.read_at(100, &mut []).unwrap();
    }

    #[test]
    fn a_snapshot_is_cheap_and_independent() {
        let device = MemoryDevice::new(1 << 40);
        device.write_at(123 << 30, b"old").unwrap();
        let snapshot = device.snapshot();
        device.write_at(123 << 30, b"new").unwrap();
        let mut buf = [0; 3];
        snapshot.read_at(123 << 30, &mut buf).unwrap();
        assert_eq!(&buf, b"old");
        assert_eq!(device.allocated_bytes(), PAGE_SIZE as u64);
    }

    #[test]
    fn file_round_trip_keeps_holes() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let device = MemoryDevice::new((64 << 20) + 10);
        device.write_at(5 << 20, b"hello").unwrap();
        device.write_at((64 << 20) + 8, b"zz").unwrap();
        device.write_to(&path).unwrap();
        let metadata = std::fs::metadata(&path).unwrap();
        assert_eq!(metadata.len(), (64 << 20) + 10);
        assert!(metadata.blocks() * 512 < 1 << 20);
        let copy = MemoryDevice::from_file(&path).unwrap();
        assert!(copy.to_vec() == device.to_vec());
        assert_eq!(copy.allocated_bytes(), 2 * PAGE_SIZE as u64);
    }

    #[test]
    fn threads_write_side_by_side() {
        let device = MemoryDevice::new(8 * CHUNK_SIZE as u64);
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let device = &device;
                scope.spawn(move || {
                    for page in (u64::from(thread)..2048).step_by(8) {
                        device.write_at(page * 4096, &[thread + 1; 4096]).unwrap();
                    }
                });
            }
        });
        for (page, bytes) in device.to_vec().chunks(4096).enumerate() {
            assert!(bytes.iter().all(|&byte| byte == (page % 8) as u8 + 1));
        }
    }
}
