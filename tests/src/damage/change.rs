//! Changes of metadata that a seed decides: flipped bits, fields with likely and unlikely values,
//! pieces exchanged for others.

use super::map::{Map, Object, ObjectKind};
use kfs_disk::testing::SplitMix64;
use std::fmt;

/// A change that was made.
#[derive(Clone, Debug)]
pub struct Change {
    /// Of what.
    pub object: ObjectKind,
    /// Where in it.
    pub offset: usize,
    /// What was done.
    pub what: String,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:#x}: {}", self.object, self.offset, self.what)
    }
}

/// Whether a kind is one of some.
type Fits = fn(ObjectKind) -> bool;

/// Kinds of pieces, each to be hit as often as its weight says, however many there are.
const WEIGHTS: &[(u64, Fits)] = &[
    (10, |kind| kind == ObjectKind::Superblock),
    (10, |kind| matches!(kind, ObjectKind::Desc(_))),
    (4, |kind| matches!(kind, ObjectKind::BlockBitmap(_))),
    (4, |kind| matches!(kind, ObjectKind::InodeBitmap(_))),
    (30, |kind| matches!(kind, ObjectKind::Inode(_))),
    (3, |kind| matches!(kind, ObjectKind::FreeInode(_))),
    (8, |kind| matches!(kind, ObjectKind::ExtentNode(_))),
    (6, |kind| matches!(kind, ObjectKind::MapBlock(_))),
    (20, |kind| matches!(kind, ObjectKind::Leaf(_))),
    (6, |kind| matches!(kind, ObjectKind::TreeRoot(_))),
    (5, |kind| matches!(kind, ObjectKind::TreeNode(_))),
    (8, |kind| kind == ObjectKind::Xattr),
    (2, |kind| kind == ObjectKind::Target),
    (4, |kind| kind == ObjectKind::Journal),
    (3, |kind| matches!(kind, ObjectKind::Orphans(_))),
];

struct Random(SplitMix64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0.below(bound.max(1) as u64) as usize
    }

    fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.below(from.len())]
    }
}

/// Changes an image as `seed` has it, and says what was done.
pub fn damage(image: &mut [u8], map: &Map, seed: u64) -> Vec<Change> {
    let mut random = Random(SplitMix64::new(seed));
    let count = match random.below(10) {
        0..=6 => 1,
        7 | 8 => 2,
        _ => 3,
    };
    change(image, map, count, &mut random)
}

/// Changes an image in `count` places as `seed` has it.
pub fn damage_heavily(image: &mut [u8], map: &Map, seed: u64, count: u32) {
    change(image, map, count, &mut Random(SplitMix64::new(seed)));
}

fn change(image: &mut [u8], map: &Map, count: u32, random: &mut Random) -> Vec<Change> {
    (0..count).map(|_| change_one(image, map, random)).collect()
}

fn choose(map: &Map, random: &mut Random) -> Object {
    let total: u64 = WEIGHTS.iter().map(|(weight, _)| weight).sum();
    loop {
        let mut at = random.0.below(total);
        let fits = WEIGHTS
            .iter()
            .find(|(weight, _)| {
                let is_here = at < *weight;
                at = at.saturating_sub(*weight);
                is_here
            })
            .map(|(_, fits)| fits)
            .expect("below the total");
        let objects: Vec<&Object> = map
            .objects
            .iter()
            .filter(|object| fits(object.kind))
            .collect();
        if !objects.is_empty() {
            return **random.pick(&objects);
        }
    }
}

fn change_one(image: &mut [u8], map: &Map, random: &mut Random) -> Change {
    let object = choose(map, random);
    if random.below(25) == 0 {
        return replace(image, map, object, random);
    }
    let offset = place(object.of(image), object.kind, random);
    let width = *random.pick(&[1, 2, 2, 4, 4, 4]);
    let offset = offset / width * width;
    let others = other_values(map, random);
    let field = &mut object.of_mut(image)[offset..];
    let width = width.min(field.len());
    let mut value = 0u32;
    for (index, byte) in field[..width].iter().enumerate() {
        value |= u32::from(*byte) << (index * 8);
    }
    let new = new_value(value, width, &others, random);
    field[..width].copy_from_slice(&new.to_le_bytes()[..width]);
    Change {
        object: object.kind,
        offset,
        what: format!("{width} bytes from {value:#x} to {new:#x}"),
    }
}

/// Numbers that mean something elsewhere in the image: inodes, blocks.
fn other_values(map: &Map, random: &mut Random) -> [u32; 3] {
    let geometry = &map.geometry;
    let object = random.pick(&map.objects);
    [
        random.below(geometry.blocks_count() as usize + 1) as u32,
        (object.offset >> geometry.block_size_bits) as u32,
        random.below(geometry.inodes_count() as usize + 2) as u32,
    ]
}

fn new_value(value: u32, width: usize, others: &[u32; 3], random: &mut Random) -> u32 {
    let mask = u32::MAX >> (32 - width * 8);
    let new = match random.below(12) {
        0..=4 => value ^ 1 << random.below(width * 8),
        5 => value.wrapping_add(1),
        6 => value.wrapping_sub(1),
        7 => 0,
        8 => u32::MAX,
        9 => random.0.next_u64() as u32,
        10 => random.below(70) as u32,
        _ => *random.pick(others),
    };
    new & mask
}

/// A place in the piece, rather where something is.
fn place(bytes: &[u8], kind: ObjectKind, random: &mut Random) -> usize {
    let anywhere = random.below(bytes.len());
    match kind {
        ObjectKind::Leaf(_) | ObjectKind::TreeRoot(_) if random.below(4) > 0 => {
            directory_place(bytes, random)
        }
        ObjectKind::Superblock => random.below(0x290),
        ObjectKind::Inode(_) | ObjectKind::FreeInode(_) if random.below(4) > 0 => {
            random.below(bytes.len().min(164))
        }
        ObjectKind::Journal => random.below(0x60),
        ObjectKind::BlockBitmap(_) | ObjectKind::InodeBitmap(_) => anywhere,
        _ => {
            // Most blocks are used at their beginnings or their ends.
            let used = bytes.iter().rposition(|&byte| byte != 0).unwrap_or(0) + 1;
            match random.below(4) {
                0 => random.below(used.min(64)),
                1 => random.below(used),
                2 => {
                    let nonzero: Vec<usize> = (0..used).filter(|&at| bytes[at] != 0).collect();
                    nonzero
                        .get(random.below(nonzero.len()))
                        .copied()
                        .unwrap_or(0)
                }
                _ => anywhere,
            }
        }
    }
}

/// In an entry of a directory, found along the lengths of records.
fn directory_place(bytes: &[u8], random: &mut Random) -> usize {
    let mut entries = vec![0];
    let mut at = 0;
    while at + 8 <= bytes.len() {
        entries.push(at);
        let len = usize::from(u16::from_le_bytes([bytes[at + 4], bytes[at + 5]]));
        if len < 8 {
            break;
        }
        at += len;
    }
    let entry = *random.pick(&entries);
    let within = *random.pick(&[0, 1, 4, 5, 6, 6, 7, 8, 9, 10]);
    (entry + within).min(bytes.len() - 1)
}

/// Puts another piece of the kind in its place, or zeros.
fn replace(image: &mut [u8], map: &Map, object: Object, random: &mut Random) -> Change {
    let same = |other: &&Object| {
        std::mem::discriminant(&other.kind) == std::mem::discriminant(&object.kind)
            && other.len == object.len
    };
    let others: Vec<&Object> = map.objects.iter().filter(same).collect();
    let other = **random.pick(&others);
    let what = if random.below(3) == 0 || other.offset == object.offset {
        object.of_mut(image).fill(0);
        "zeroed".to_string()
    } else {
        image.copy_within(other.offset..other.offset + other.len, object.offset);
        format!("replaced by {:?}", other.kind)
    };
    Change {
        object: object.kind,
        offset: 0,
        what,
    }
}
