//! Where stretches begin and end, and what moving them gains: against a file that is laid out anew.

use super::layout::{FileLayout, Stretch, Stretches};
use crate::extent::Extent;
use crate::ids::{BlockNr, LogicalBlock};
use proptest::prelude::*;

const WINDOW: u32 = 8;

fn extent(logical: u32, physical: u64, len: u32) -> Extent {
    Extent {
        logical: LogicalBlock(logical),
        physical: BlockNr(physical),
        len,
        unwritten: false,
    }
}

fn look(extents: &[Extent], blocks_max: u64) -> (Vec<Stretch>, FileLayout) {
    let all = extents.iter().copied().map(Ok);
    let mut stretches = Stretches::new(all, WINDOW, None, blocks_max, |_| Ok(false));
    let mut found = Vec::new();
    while let Some(stretch) = stretches.next().expect("nothing can fail") {
        found.push(stretch);
    }
    (found, stretches.layout)
}

/// The measure that every move lessens.
fn measure(layout: FileLayout) -> i64 {
    layout.fragments as i64 - 2 * (layout.aligned_blocks / u64::from(WINDOW)) as i64
}

/// The file after a stretch was moved.
fn moved(extents: &[Extent], stretch: &Stretch, start: u64) -> Vec<Extent> {
    let mut blocks: Vec<(u32, u64)> = Vec::new();
    for extent in extents {
        for at in 0..extent.len {
            blocks.push((extent.logical.0 + at, extent.physical.0 + u64::from(at)));
        }
    }
    let mut next = start;
    for piece in &stretch.pieces {
        for at in 0..piece.len {
            let logical = piece.logical.0 + at;
            let index = blocks.binary_search_by_key(&logical, |(logical, _)| *logical);
            blocks[index.expect("a piece of the file")].1 = next;
            next += 1;
        }
    }
    blocks
        .into_iter()
        .map(|(logical, physical)| extent(logical, physical, 1))
        .collect()
}

/// Extents with holes, somewhere on the volume.
fn extents() -> impl Strategy<Value = Vec<Extent>> {
    let piece = (0u32..4, 1u32..20, 0u8..4, 0u64..40);
    prop::collection::vec(piece, 1..30).prop_map(|pieces| {
        let (mut logical, mut physical) = (0, 1000);
        let mut all = Vec::new();
        for (number, (hole, len, where_to, jump)) in pieces.into_iter().enumerate() {
            // Often without a hole, often behind the one before, often aligned.
            logical += if hole == 3 { 3 } else { 0 };
            match where_to {
                0 => {}
                1 => physical = (number as u64 + 10) * 1000 + jump,
                _ => physical = (number as u64 + 10) * 1000 + u64::from(logical % WINDOW),
            }
            all.push(extent(logical, physical, len));
            logical += len;
            physical += u64::from(len);
        }
        all
    })
}

proptest! {
    #[test]
    fn what_a_move_gains_is_what_was_said(
        extents in extents(), most in 1u64..60, at in 0u64..3, cuts in any::<bool>()
    ) {
        let (stretches, before) = look(&extents, most);
        for stretch in stretches {
            let halves = if cuts { stretch.clone().halves(WINDOW) } else { None };
            let parts = match halves {
                Some((left, right)) => {
                    let both = [left.pieces.clone(), right.pieces.clone()].concat();
                    let blocks: u32 = both.iter().map(|piece| piece.len).sum();
                    prop_assert_eq!(u64::from(blocks), stretch.blocks());
                    vec![left, right]
                }
                None => vec![stretch],
            };
            for part in parts {
                let start = match (at, part.prev_end) {
                    (0, Some(end)) => end,
                    (1, _) => 800_000 + u64::from(part.phase(WINDOW).unwrap_or(0)),
                    _ => 800_001,
                };
                let (_, after) = look(&moved(&extents, &part, start), most);
                let gain = part.gain_at(start, WINDOW);
                let said = gain.fragments + 2 * gain.windows;
                let got = measure(before) - measure(after);
                // Half a window may happen to make a whole one with the other half.
                prop_assert!(got == said || (cuts && got > said), "{got}, and {said} was said");
                prop_assert_eq!(gain.is_worth_it(), said > 0);
            }
        }
    }

    #[test]
    fn moving_what_can_be_moved_comes_to_an_end(extents in extents(), most in 8u64..60) {
        let mut extents = extents;
        let mut free = 800_000;
        for _ in 0..200 {
            let (stretches, layout) = look(&extents, most);
            let better = stretches.into_iter().find_map(|stretch| {
                let phase = u64::from(stretch.phase(WINDOW).unwrap_or(0));
                let start = free + phase;
                stretch.gain_at(start, WINDOW).is_worth_it().then_some((stretch, start))
            });
            let Some((stretch, start)) = better else {
                return Ok(());
            };
            free += 10_000 * u64::from(WINDOW);
            extents = moved(&extents, &stretch, start);
            let (_, after) = look(&extents, most);
            prop_assert!(measure(after) < measure(layout));
        }
        prop_assert!(false, "there is no end");
    }
}

#[test]
fn stretches_are_what_could_lie_better() {
    // Aligned; not aligned; a tail in two pieces.
    let file = [
        extent(0, 800, 8),
        extent(8, 1001, 8),
        extent(16, 50, 2),
        extent(18, 70, 1),
    ];
    let (found, layout) = look(&file, 100);
    assert_eq!(found.len(), 1);
    assert_eq!((found[0].prev_end, found[0].next_start), (Some(808), None));
    assert_eq!(found[0].blocks(), 11);
    assert_eq!(found[0].phase(WINDOW), Some(0));
    assert_eq!((layout.fragments, layout.aligned_blocks), (4, 8));
    // Behind the first window: aligned, and the whole file is one fragment.
    let gain = found[0].gain_at(808, WINDOW);
    assert_eq!((gain.fragments, gain.windows), (3, 1));
    // What a snapshot sees is left alone.
    let all = file.iter().copied().map(Ok);
    let mut kept = Stretches::new(all, WINDOW, None, 100, |_| Ok(true));
    assert_eq!(kept.next().expect("nothing can fail"), None);
    assert_eq!((kept.kept_blocks, kept.layout.gain), (11, 0));
}

#[test]
fn a_file_that_lies_well_has_no_stretch() {
    for file in [
        vec![],
        vec![extent(0, 77, 3)],
        vec![extent(0, 80, 40)],
        vec![extent(0, 80, 16), extent(24, 96, 8)],
    ] {
        let (found, layout) = look(&file, 100);
        assert_eq!((found, layout.gain), (vec![], 0), "{file:?}");
    }
}
