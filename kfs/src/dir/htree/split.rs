//! Divides the entries of a full leaf between two blocks. Pure.

use super::super::DirectoryFormat;
use super::super::block::{self, NewEntry};

/// Two leaves in the place of one.
pub(super) struct LeafSplit {
    /// Block with the lower hashes.
    pub(super) lower: Vec<u8>,
    /// Block with the upper hashes.
    pub(super) upper: Vec<u8>,
    /// Hash of the index entry for the upper block, with the bit of continuation.
    pub(super) hash: u32,
}

/// An entry and its major hash.
pub(super) type Hashed<'n> = (u32, NewEntry<'n>);

/// Divides entries that together exceed one block by at most one entry.
pub(super) fn split_leaf(format: &DirectoryFormat, mut entries: Vec<Hashed<'_>>) -> LeafSplit {
    entries.sort_by_key(|&(hash, _)| hash);
    let at = choose(format, &entries);
    let (lower, upper) = entries.split_at(at);
    let continued = lower.last().is_some_and(|&(hash, _)| hash == upper[0].0);
    LeafSplit {
        lower: block::pack(format, lower.iter().map(|&(_, entry)| entry)),
        upper: block::pack(format, upper.iter().map(|&(_, entry)| entry)),
        hash: upper[0].0 | u32::from(continued),
    }
}

/// Where to divide: in balance, and not within a group of equal hashes if that can be avoided.
fn choose(format: &DirectoryFormat, entries: &[Hashed<'_>]) -> usize {
    let total: usize = entries.iter().map(|(_, entry)| entry.size()).sum();
    let mut lower = 0;
    let mut best: Option<(bool, usize, usize)> = None;
    for at in 1..entries.len() {
        lower += entries[at - 1].1.size();
        let upper = total - lower;
        if lower > format.leaf_len() || upper > format.leaf_len() {
            continue;
        }
        let continued = entries[at - 1].0 == entries[at].0;
        let candidate = (continued, lower.abs_diff(upper), at);
        best = Some(best.map_or(candidate, |best| best.min(candidate)));
    }
    // No entry takes more than 264 bytes and no block has less than 1012, so that the most even
    // division leaves each side at most half of the two and a half of an entry.
    best.expect("a block and one entry divide into two blocks")
        .2
}

#[cfg(test)]
mod tests {
    use super::super::super::block::Entries;
    use super::*;
    use crate::dir::tests::format_for_tests;
    use crate::ids::{InodeNr, LogicalBlock};
    use crate::layout::dirent::FileType;

    fn names_in(format: &DirectoryFormat, bytes: &[u8]) -> Vec<Vec<u8>> {
        Entries::of_leaf(format, LogicalBlock(1), bytes)
            .map(|entry| entry.unwrap().name.to_vec())
            .collect()
    }

    fn split(hashes: &[u32], name_len: usize) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, u32) {
        let format = format_for_tests(1024, true);
        let names: Vec<Vec<u8>> = (0..hashes.len())
            .map(|i| vec![b'a' + i as u8; name_len])
            .collect();
        let entry = |name| NewEntry {
            inode: InodeNr(12),
            file_type: FileType::Regular,
            name,
        };
        let hashed = hashes
            .iter()
            .zip(&names)
            .map(|(&hash, name)| (hash, entry(name)))
            .collect();
        let split = split_leaf(&format, hashed);
        (
            names_in(&format, &split.lower),
            names_in(&format, &split.upper),
            split.hash,
        )
    }

    #[test]
    fn largest_entries_divide() {
        let (lower, upper, hash) = split(&[8, 2, 6, 4], 255);
        assert_eq!((lower.len(), upper.len(), hash), (2, 2, 6));
        assert_eq!(lower[0][0], b'b');
    }

    #[test]
    fn equal_hashes_stay_together() {
        let (lower, upper, hash) = split(&[2, 4, 4, 4], 100);
        assert_eq!((lower.len(), upper.len(), hash), (1, 3, 4));
    }

    #[test]
    fn equal_hashes_alone_are_continued() {
        let (lower, upper, hash) = split(&[4, 4, 4, 4, 4, 4], 200);
        assert_eq!((lower.len(), upper.len(), hash), (3, 3, 5));
    }
}
