//! `Editor`: changes a copy of a base as the bytes of an input say.
//!
//! An edit chooses a kind of structure, one of that kind, an offset in it and a new content, so
//! that few bytes reach any field of any structure.

use super::checksums::{fix, fix_log};
use super::places::{Place, read};
use super::store::{fix_old, fix_store};
use super::{Base, Kind};
use crate::input::Input;
use kfs_disk::{BlockDevice, MemoryDevice};

/// Most edits of one input.
const EDITS_MAX: u8 = 24;

/// A copy of a base on its way to be a bad image.
pub struct Editor<'b> {
    base: &'b Base,
    device: MemoryDevice,
    touched: Vec<usize>,
    log_touched: bool,
}

impl<'b> Editor<'b> {
    /// A copy of one of the two states of a base.
    #[must_use]
    pub fn new(base: &'b Base, dirty: bool) -> Self {
        let image = if dirty { &base.dirty } else { &base.clean };
        Self {
            base,
            device: image.snapshot(),
            touched: Vec::new(),
            log_touched: false,
        }
    }

    /// Does the edits that an input asks for, of these kinds.
    pub fn edit(&mut self, input: &mut Input<'_>, classes: &[usize]) {
        let count = input.u8();
        // Few edits leave enough intact to come far.
        let most = if count & 0x80 == 0 { 3 } else { EDITS_MAX };
        for _ in 0..count % (most + 1) {
            self.edit_once(input, classes);
        }
    }

    fn edit_once(&mut self, input: &mut Input<'_>, classes: &[usize]) {
        let class = usize::from(input.u8());
        if class == 0xff {
            return self.edit_anywhere(input);
        }
        let class = classes[class % classes.len()];
        let Some(index) = self.choose(class, input.u16()) else {
            return;
        };
        let place = self.base.places[index];
        let mut bytes = read(&self.device, place.offset, place.len);
        self.change(input, &place, &mut bytes);
        self.device
            .write_at(place.offset, &bytes)
            .expect("places lie within the device");
        self.log_touched |= matches!(place.kind, Kind::Log | Kind::LogSuperblock);
        self.touched.push(index);
    }

    /// A few bytes anywhere on the device.
    fn edit_anywhere(&self, input: &mut Input<'_>) {
        let len = usize::from(input.u8() % 16) + 1;
        let room = self.device.size_bytes() - len as u64;
        let offset = u64::from(input.u32()) % room;
        let bytes = input.take(len);
        self.device
            .write_at(offset, bytes)
            .expect("within the device");
    }

    /// The index of a place of that class.
    fn choose(&self, class: usize, number: u16) -> Option<usize> {
        let places = &self.base.by_class[class];
        let nth = usize::from(number).checked_rem(places.len())?;
        Some(places[nth])
    }

    fn change(&self, input: &mut Input<'_>, place: &Place, bytes: &mut [u8]) {
        let at = input.index(bytes.len());
        let kind = input.u8();
        let width = [1, 2, 4, 8][usize::from(kind >> 6)];
        let room = bytes.len() - at;
        let target = &mut bytes[at..][..room.min(width)];
        match kind & 7 {
            0 => target[0] = input.u8(),
            1 => target[0] ^= 1 << (input.u8() & 7),
            2 => put(target, input.number()),
            3 => put(target, self.interesting(input)),
            4 => {
                let (delta, old) = (input.u8().cast_signed(), number(target));
                put(target, old.wrapping_add_signed(i64::from(delta)));
            }
            5 => {
                let len = usize::from(input.u8()).min(room);
                let value = input.u8();
                bytes[at..][..len].fill(value);
            }
            6 => {
                let len = usize::from(input.u8() % 65);
                let new = input.take(len.min(room));
                bytes[at..][..new.len()].copy_from_slice(new);
            }
            _ => self.copy_from_other(input, place, &mut bytes[at..]),
        }
    }

    /// A number that means something in this volume.
    fn interesting(&self, input: &mut Input<'_>) -> u64 {
        let geometry = &self.base.geometry;
        let delta = i64::from(input.u8() % 5) - 2;
        let number = match input.u8() % 10 {
            0 => geometry.blocks_count(),
            1 => u64::from(geometry.inodes_count()),
            2 => u64::from(geometry.block_size),
            3 => u64::from(geometry.blocks_per_group),
            4 => u64::from(geometry.inodes_per_group),
            5 => self.base.log.first().copied().unwrap_or(0),
            6 => geometry.first_inode.0.into(),
            7 => u64::from(geometry.inode_size),
            // A block or an inode that is there.
            8 => {
                let place = input.pick(&self.base.places);
                place.map_or(0, |place| place.offset >> geometry.block_size_bits)
            }
            _ => u64::from(input.u8()),
        };
        number.wrapping_add_signed(delta)
    }

    /// The content of a structure of the same kind, or of any.
    fn copy_from_other(&self, input: &mut Input<'_>, place: &Place, target: &mut [u8]) {
        let from = input.u16();
        let index = if from & 1 == 0 {
            self.choose(place.kind.class(), from >> 1)
        } else {
            self.choose(usize::from(from >> 1) % Kind::CLASSES, input.u16())
        };
        let Some(other) = index.map(|index| self.base.places[index]) else {
            return;
        };
        let len = target.len().min(other.len);
        let bytes = read(&self.device, other.offset, len);
        target[..len].copy_from_slice(&bytes);
    }

    /// Makes the checksums of what was edited right.
    pub fn fix_checksums(&self) {
        let geometry = &self.base.geometry;
        if self.log_touched {
            fix_log(&self.device, &self.base.log, geometry.block_size as usize);
        }
        let mut places: Vec<&Place> = self
            .touched
            .iter()
            .map(|&index| &self.base.places[index])
            .collect();
        // What others' checksums depend on comes first: inodes have generations, descriptors hold
        // the checksums of bitmaps.
        places.sort_by_key(|place| !matches!(place.kind, Kind::Inode(_)));
        let mut has_store = false;
        for place in places {
            has_store |= place.kind.class() >= Kind::StoreSegment.class();
            if let Kind::PreImage(block) = place.kind {
                let fixable = self.base.places.iter().filter(|p| self.is_fixable(p));
                fix_old(&self.device, geometry, fixable, (block, place.offset));
            } else if self.is_fixable(place) {
                fix(&self.device, geometry, place);
            }
        }
        if has_store {
            fix_store(&self.device, geometry, &self.base.store);
        }
    }

    /// Whether an edit of a descriptor has moved what the checksum would be computed from.
    fn is_fixable(&self, place: &Place) -> bool {
        let (base, device) = (&self.base.clean, &self.device);
        let geometry = &self.base.geometry;
        let (Kind::Directory(nr)
        | Kind::TreeRoot(nr)
        | Kind::TreeNode(nr)
        | Kind::Extents(nr)
        | Kind::Orphans(nr)) = place.kind
        else {
            return true;
        };
        let (group, _) = geometry.inode_location(nr).expect("an inode that is there");
        let table = |image| super::places::read_desc(image, geometry, group).inode_table();
        table(base) == table(device)
    }

    /// The image.
    #[must_use]
    pub fn into_device(self) -> MemoryDevice {
        self.device
    }
}

fn number(bytes: &[u8]) -> u64 {
    let mut whole = [0; 8];
    whole[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(whole)
}

fn put(target: &mut [u8], value: u64) {
    let len = target.len();
    target.copy_from_slice(&value.to_le_bytes()[..len]);
}
