//! Runs of bits: finding, setting and clearing. Pure functions.
//!
//! A bitmap in memory is a slice of `u64`, bit `i` being bit `i % 64` of word `i / 64`; on disk it is
//! the same in bytes. A set bit is in use. Positions and lengths are checked by the callers against
//! the bitmap; a range beyond the slice panics.

use std::ops::Range;

const BITS: u32 = u64::BITS;

/// A run of clear bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ClearRun {
    pub(super) start: u32,
    pub(super) len: u32,
}

impl ClearRun {
    pub(super) fn end(self) -> u32 {
        self.start + self.len
    }
}

/// The bits of word `word` that lie in `range`.
fn mask(word: u32, range: &Range<u32>) -> u64 {
    let first = word * BITS;
    let low = range.start.saturating_sub(first).min(BITS);
    let high = range.end.saturating_sub(first).min(BITS);
    if low >= high {
        return 0;
    }
    (u64::MAX >> (BITS - (high - low))) << low
}

fn words_of(range: &Range<u32>) -> Range<u32> {
    range.start / BITS..range.end.div_ceil(BITS)
}

/// The words that a range touches, by number, and the bits of each that lie in the range.
pub(super) fn masks(range: Range<u32>) -> impl Iterator<Item = (usize, u64)> {
    words_of(&range).map(move |word| (word as usize, mask(word, &range)))
}

/// Sets a range of bits.
pub(super) fn set(words: &mut [u64], range: Range<u32>) {
    for (word, mask) in masks(range) {
        words[word] |= mask;
    }
}

/// Clears a range of bits.
pub(super) fn clear(words: &mut [u64], range: Range<u32>) {
    for (word, mask) in masks(range) {
        words[word] &= !mask;
    }
}

/// Whether all bits of a range are set.
pub(super) fn all_set(words: &[u64], range: Range<u32>) -> bool {
    masks(range).all(|(word, mask)| words[word] & mask == mask)
}

/// Whether all bits of a range are clear.
pub(super) fn all_clear(words: &[u64], range: Range<u32>) -> bool {
    masks(range).all(|(word, mask)| words[word] & mask == 0)
}

/// Number of clear bits.
pub(super) fn count_clear(words: &[u64]) -> u32 {
    words.iter().map(|word| word.count_zeros()).sum()
}

/// The first bit of a range whose value, xor-ed with those of `flip`, is 1.
fn find_bit(words: &[u64], range: Range<u32>, flip: u64) -> Option<u32> {
    if range.is_empty() {
        return None;
    }
    let (first, last) = (range.start / BITS, (range.end - 1) / BITS);
    let mut hits = (words[first as usize] ^ flip) & (u64::MAX << (range.start % BITS));
    let mut at = first;
    if hits == 0 {
        // Most of a search passes whole words.
        let rest = &words[first as usize + 1..=last as usize];
        at = first + 1 + rest.iter().position(|word| word ^ flip != 0)? as u32;
        hits = words[at as usize] ^ flip;
    }
    let bit = at * BITS + hits.trailing_zeros();
    (bit < range.end).then_some(bit)
}

/// The first clear bit of a range.
pub(super) fn next_clear(words: &[u64], range: Range<u32>) -> Option<u32> {
    find_bit(words, range, u64::MAX)
}

/// The first set bit of a range, or its end.
pub(super) fn next_set(words: &[u64], range: Range<u32>) -> u32 {
    let end = range.end;
    find_bit(words, range, 0).unwrap_or(end)
}

/// The runs of clear bits in a range, in order; those at its edges are cut there.
pub(super) fn clear_runs(words: &[u64], range: Range<u32>) -> impl Iterator<Item = ClearRun> {
    let mut from = range.start;
    std::iter::from_fn(move || {
        let start = next_clear(words, from..range.end)?;
        let end = next_set(words, start..range.end);
        from = end;
        Some(ClearRun {
            start,
            len: end - start,
        })
    })
}

/// The first run of at least `enough` bits, else the longest run.
pub(super) fn find_run(words: &[u64], range: Range<u32>, enough: u32) -> Option<ClearRun> {
    let mut longest: Option<ClearRun> = None;
    for run in clear_runs(words, range) {
        if run.len >= enough {
            return Some(run);
        }
        if longest.is_none_or(|longest| longest.len < run.len) {
            longest = Some(run);
        }
    }
    longest
}

/// The first run of at least `enough` bits that starts where `(start + phase) % align == 0`.
pub(super) fn find_aligned_run(
    words: &[u64],
    range: Range<u32>,
    enough: u32,
    (align, phase): (u32, u32),
) -> Option<ClearRun> {
    clear_runs(words, range).find_map(|run| {
        let start = align_up(run.start, (align, phase))?;
        let fits = start.checked_add(enough)? <= run.end();
        fits.then(|| ClearRun {
            start,
            len: run.end() - start,
        })
    })
}

/// The first position from `start` on with `(position + phase) % align == 0`; `None` beyond `u32`.
pub(super) fn align_up(start: u32, (align, phase): (u32, u32)) -> Option<u32> {
    let rest = ((u64::from(start) + u64::from(phase)) % u64::from(align)) as u32;
    start.checked_add(if rest == 0 { 0 } else { align - rest })
}

/// The words of an on-disk bitmap.
pub(super) fn words_from_bytes(bytes: &[u8]) -> Box<[u64]> {
    let chunks = bytes.chunks_exact(8);
    assert!(
        chunks.remainder().is_empty(),
        "blocks are multiples of 8 bytes"
    );
    chunks
        .map(|chunk| u64::from_le_bytes(chunk.try_into().expect("chunks of 8")))
        .collect()
}

/// Sets (`true`) or clears a range of bits of an on-disk bitmap.
pub(super) fn fill_bytes(bytes: &mut [u8], range: Range<u32>, value: bool) {
    let mut at = range.start;
    while at < range.end {
        let byte = (at / 8) as usize;
        if at.is_multiple_of(8) && range.end - at >= 8 {
            let whole = ((range.end - at) / 8) as usize;
            bytes[byte..byte + whole].fill(if value { 0xff } else { 0 });
            at += whole as u32 * 8;
            continue;
        }
        let end = range.end.min((at / 8 + 1) * 8);
        let mask = (0xff_u8 >> (8 - (end - at))) << (at % 8);
        if value {
            bytes[byte] |= mask;
        } else {
            bytes[byte] &= !mask;
        }
        at = end;
    }
}

/// Whether all bits of a range of an on-disk bitmap have a value.
pub(super) fn bytes_are(bytes: &[u8], range: Range<u32>, value: bool) -> bool {
    let whole = if value { 0xff } else { 0 };
    let mut at = range.start;
    while at < range.end {
        let byte = (at / 8) as usize;
        if at.is_multiple_of(8) && range.end - at >= 8 {
            let count = ((range.end - at) / 8) as usize;
            if bytes[byte..byte + count].iter().any(|&b| b != whole) {
                return false;
            }
            at += count as u32 * 8;
            continue;
        }
        let end = range.end.min((at / 8 + 1) * 8);
        let mask = (0xff_u8 >> (8 - (end - at))) << (at % 8);
        if bytes[byte] & mask != whole & mask {
            return false;
        }
        at = end;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(words: &[u64]) -> Vec<bool> {
        (0..words.len() * 64)
            .map(|i| words[i / 64] >> (i % 64) & 1 == 1)
            .collect()
    }

    fn runs_of(model: &[bool], range: Range<u32>) -> Vec<ClearRun> {
        let mut runs: Vec<ClearRun> = Vec::new();
        for i in range {
            if model[i as usize] {
                continue;
            }
            match runs.last_mut() {
                Some(run) if run.end() == i => run.len += 1,
                _ => runs.push(ClearRun { start: i, len: 1 }),
            }
        }
        runs
    }

    /// Words with long runs and ragged edges.
    fn words() -> impl Strategy<Value = Vec<u64>> {
        let word = prop_oneof![
            Just(0),
            Just(u64::MAX),
            any::<u64>(),
            (0..64u32).prop_map(|s| 1 << s)
        ];
        prop::collection::vec(word, 1..8)
    }

    fn words_and_range() -> impl Strategy<Value = (Vec<u64>, Range<u32>)> {
        words().prop_flat_map(|words| {
            let bits = words.len() as u32 * 64;
            let range = (0..=bits, 0..=bits).prop_map(|(a, b)| a.min(b)..a.max(b));
            (Just(words), range)
        })
    }

    proptest! {
        #[test]
        fn words_agree_with_a_vec_of_bool((words, range) in words_and_range(), enough in 1..100u32) {
            let bits = model(&words);
            let part = &bits[range.start as usize..range.end as usize];
            let first = |value| part.iter().position(|&b| b == value).map(|i| i as u32 + range.start);
            prop_assert_eq!(next_clear(&words, range.clone()), first(false));
            prop_assert_eq!(next_set(&words, range.clone()), first(true).unwrap_or(range.end));
            prop_assert_eq!(all_set(&words, range.clone()), part.iter().all(|&b| b));
            prop_assert_eq!(all_clear(&words, range.clone()), part.iter().all(|&b| !b));
            prop_assert_eq!(count_clear(&words) as usize, bits.iter().filter(|&&b| !b).count());
            let runs = runs_of(&bits, range.clone());
            prop_assert_eq!(clear_runs(&words, range.clone()).collect::<Vec<_>>(), runs.clone());
            let found = find_run(&words, range.clone(), enough);
            let wanted = runs.iter().find(|run| run.len >= enough).copied();
            let longest = runs.iter().map(|run| run.len).max();
            match wanted {
                Some(run) => prop_assert_eq!(found, Some(run)),
                None => prop_assert_eq!(found.map(|run| run.len), longest),
            }
        }

        #[test]
        fn changes_agree_with_a_vec_of_bool((words, range) in words_and_range()) {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            for value in [true, false] {
                let mut bits = model(&words);
                bits[range.start as usize..range.end as usize].fill(value);
                let mut changed = words.clone();
                if value { set(&mut changed, range.clone()) } else { clear(&mut changed, range.clone()) }
                prop_assert_eq!(model(&changed), bits);
                let mut changed_bytes = bytes.clone();
                fill_bytes(&mut changed_bytes, range.clone(), value);
                prop_assert_eq!(&*words_from_bytes(&changed_bytes), &changed[..]);
                prop_assert!(bytes_are(&changed_bytes, range.clone(), value));
            }
            prop_assert_eq!(bytes_are(&bytes, range.clone(), true), all_set(&words, range.clone()));
            prop_assert_eq!(bytes_are(&bytes, range.clone(), false), all_clear(&words, range));
        }

        #[test]
        fn aligned_runs_are_free_and_aligned(
            (words, range) in words_and_range(), enough in 1..80u32, shift in 0..6u32, phase in 0..64u32
        ) {
            let align = (1 << shift, phase);
            let fits = |start: u32| {
                (start + phase).is_multiple_of(align.0)
                    && start + enough <= range.end
                    && all_clear(&words, start..start + enough)
            };
            let expected = range.clone().find(|&start| fits(start));
            let found = find_aligned_run(&words, range.clone(), enough, align);
            prop_assert_eq!(found.map(|run| run.start), expected);
            if let Some(run) = found {
                prop_assert!(run.len >= enough && all_clear(&words, run.start..run.end()));
            }
        }
    }

    #[test]
    fn alignment_beyond_the_numbers() {
        assert_eq!(align_up(5, (4, 0)), Some(8));
        assert_eq!(align_up(5, (4, 3)), Some(5));
        assert_eq!(align_up(u32::MAX, (4, 0)), None);
    }
}
