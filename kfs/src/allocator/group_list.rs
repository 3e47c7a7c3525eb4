//! `GroupList`: the groups of a volume, which get more while others look at them.
//!
//! Those that were there when the volume was opened are one slice; each segment after it is twice as long as
//! the one before, so that a group never moves.

use super::groups::Group;
use std::sync::OnceLock;

/// Groups of the first segment behind the slice.
const SEGMENT_FIRST: usize = 64;
/// Segments: more groups than a number of 32 bits can count.
const SEGMENTS: usize = 27;

type Segment = Box<[OnceLock<Group>]>;

pub(super) struct GroupList {
    first: Box<[Group]>,
    segments: [OnceLock<Segment>; SEGMENTS],
}

impl GroupList {
    pub(super) fn new(first: Box<[Group]>) -> Self {
        Self {
            first,
            segments: [const { OnceLock::new() }; SEGMENTS],
        }
    }

    /// The group with this number.
    ///
    /// # Panics
    /// When there is none.
    pub(super) fn get(&self, index: usize) -> &Group {
        if let Some(group) = self.first.get(index) {
            return group;
        }
        let (segment, at) = place(index - self.first.len());
        let segment = self.segments[segment].get();
        let group = segment.and_then(|segment| segment[at].get());
        group.expect("groups are added before they are counted")
    }

    /// Adds the group with this number, the next one.
    pub(super) fn add(&self, index: usize, group: Group) {
        let (segment, at) = place(index - self.first.len());
        let len = SEGMENT_FIRST << segment;
        let segment =
            self.segments[segment].get_or_init(|| (0..len).map(|_| OnceLock::new()).collect());
        let is_new = segment[at].set(group).is_ok();
        debug_assert!(is_new, "one group has one number");
    }
}

/// Segment and index in it of the group so many places behind the slice.
fn place(behind: usize) -> (usize, usize) {
    let unit = behind / SEGMENT_FIRST + 1;
    let segment = unit.ilog2() as usize;
    let start = ((1 << segment) - 1) * SEGMENT_FIRST;
    (segment, behind - start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_taken_once() {
        let mut next = (0, 0);
        for behind in 0..100_000 {
            assert_eq!(place(behind), next);
            next.1 += 1;
            if next.1 == SEGMENT_FIRST << next.0 {
                next = (next.0 + 1, 0);
            }
        }
        assert!(place(u32::MAX as usize).0 < SEGMENTS);
    }
}
