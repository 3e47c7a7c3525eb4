//! `LazyBits`: a bitmap for a number per block or inode, whose parts take memory once a bit is set.

use std::ops::Range;

/// Bytes of a part.
const CHUNK_BYTES: usize = 8192;
const CHUNK_BITS: u64 = CHUNK_BYTES as u64 * 8;

/// A bitmap of a fixed length, all zeros at first.
#[derive(Debug)]
pub(super) struct LazyBits {
    chunks: Vec<Option<Box<[u8; CHUNK_BYTES]>>>,
}

impl LazyBits {
    pub(super) fn new(len: u64) -> Self {
        let chunks = usize::try_from(len.div_ceil(CHUNK_BITS)).unwrap_or(usize::MAX);
        Self {
            chunks: vec![None; chunks],
        }
    }

    fn chunk_mut(&mut self, index: usize) -> &mut [u8; CHUNK_BYTES] {
        self.chunks[index].get_or_insert_with(|| Box::new([0; CHUNK_BYTES]))
    }

    /// Sets a bit and gives what it was.
    pub(super) fn set(&mut self, bit: u64) -> bool {
        let (chunk, within) = split(bit);
        let byte = &mut self.chunk_mut(chunk)[within / 8];
        let mask = 1 << (within % 8);
        let was = *byte & mask != 0;
        *byte |= mask;
        was
    }

    /// Sets a range, and tells of each part of it that was set before.
    pub(super) fn set_range(&mut self, range: Range<u64>, mut was_set: impl FnMut(Range<u64>)) {
        let mut at = range.start;
        let mut overlap: Option<Range<u64>> = None;
        while at < range.end {
            let (chunk, within) = split(at);
            let bits = (8 - at % 8).min(range.end - at);
            let mask = (0xff_u16 >> (8 - bits) << (within % 8)) as u8;
            let byte = &mut self.chunk_mut(chunk)[within / 8];
            let before = *byte & mask;
            *byte |= mask;
            if before != 0 {
                for bit in at..at + bits {
                    if before & (1 << (bit % 8)) == 0 {
                        continue;
                    }
                    match &mut overlap {
                        Some(run) if run.end == bit => run.end += 1,
                        other => {
                            if let Some(run) = other.replace(bit..bit + 1) {
                                was_set(run);
                            }
                        }
                    }
                }
            }
            at += bits;
        }
        if let Some(run) = overlap {
            was_set(run);
        }
    }

    /// Copies bits out, from one that is a multiple of 8 on; those beyond the end are zeros.
    pub(super) fn copy_bytes(&self, first_bit: u64, out: &mut [u8]) {
        let first = first_bit / 8;
        let mut done = 0;
        while done < out.len() {
            let at = first + done as u64;
            let (chunk, within) = (
                (at / CHUNK_BYTES as u64) as usize,
                (at % CHUNK_BYTES as u64) as usize,
            );
            let len = (CHUNK_BYTES - within).min(out.len() - done);
            let target = &mut out[done..done + len];
            match self.chunks.get(chunk).and_then(Option::as_ref) {
                Some(bytes) => target.copy_from_slice(&bytes[within..within + len]),
                None => target.fill(0),
            }
            done += len;
        }
    }
}

fn split(bit: u64) -> (usize, usize) {
    ((bit / CHUNK_BITS) as usize, (bit % CHUNK_BITS) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn overlaps(bits: &mut LazyBits, range: Range<u64>) -> Vec<Range<u64>> {
        let mut found = Vec::new();
        bits.set_range(range, |run| found.push(run));
        found
    }

    #[test]
    fn ranges_report_what_was_set() {
        let mut bits = LazyBits::new(3 * CHUNK_BITS);
        assert!(overlaps(&mut bits, 5..20).is_empty());
        assert!(overlaps(&mut bits, 30..31).is_empty());
        assert_eq!(overlaps(&mut bits, 0..40), [5..20, 30..31]);
        let edge = CHUNK_BITS - 3..CHUNK_BITS + 9;
        assert!(overlaps(&mut bits, edge.clone()).is_empty());
        assert_eq!(overlaps(&mut bits, edge.clone()), [edge]);
        assert!(bits.set(39) && !bits.set(40) && bits.set(40));
    }

    #[test]
    fn bytes_are_copied_over_missing_parts() {
        let mut bits = LazyBits::new(3 * CHUNK_BITS);
        bits.set(2 * CHUNK_BITS + 1);
        let mut out = [0xff; 4];
        bits.copy_bytes(2 * CHUNK_BITS - 16, &mut out);
        assert_eq!(out, [0, 0, 2, 0]);
        bits.copy_bytes(3 * CHUNK_BITS - 16, &mut out);
        assert_eq!(out, [0; 4]);
    }
}
