//! `Orphans`: inodes without names that are still open, and inodes whose truncation is not finished.
//!
//! They are noted on disk so that recovery can finish what a crash interrupted: in the orphan file
//! (feature orphan_file) while it has free places, else in the list that starts in the superblock
//! and goes on through `i_dtime`. The journal makes the note atomic with what makes it necessary; the
//! lock over all notes makes it so for threads: links change and are looked at with it held.
//!
//! Source: kernel documentation, ext4, "Orphan file".

use super::{CREDITS_INODE, Inode, InodeTable};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::InodeNr;
use crate::layout::inode::InodeBytes;
use crate::layout::{RoCompat, orphan};
use crate::storage::{Buffer, Handle};
use crate::sync::{Mutex, Rank};
use crate::volume::Volume;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Metadata blocks that adding or removing an orphan touches: its inode, and a block of the orphan
/// file, the superblock, or the inode before it in the list.
pub(crate) const CREDITS_ORPHAN: u32 = CREDITS_INODE + 2;

/// The on-disk fields of an inode in memory.
type InodeFields = InodeBytes<Box<[u8]>>;

/// The orphans of a volume.
pub(crate) struct Orphans {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: HashMap<InodeNr, Entry>,
    /// Inodes on the list, oldest first: the superblock names the last one.
    list: Vec<InodeNr>,
    file: Option<OrphanFile>,
    /// Entries that are in the file.
    in_file: i64,
}

struct Entry {
    inode: Arc<Inode>,
    place: Place,
}

#[derive(Clone, Copy)]
enum Place {
    List,
    File { block: usize, slot: usize },
}

/// The blocks of the orphan file, kept in memory so that adding an orphan cannot fail.
struct OrphanFile {
    blocks: Vec<Arc<Buffer>>,
    checksum_seed: Option<u32>,
    /// Free places, the next one last.
    free: Vec<(usize, usize)>,
}

impl Default for Orphans {
    fn default() -> Self {
        Self {
            state: Mutex::new(Rank::Orphans, State::default()),
        }
    }
}

impl Orphans {
    /// Reads the orphan file's blocks and returns the inodes that they name.
    ///
    /// # Errors
    /// `Corrupt` for a block that is not one of an orphan file.
    pub(crate) fn load_file(
        &self,
        volume: &Volume,
        blocks: Vec<Arc<Buffer>>,
        checksum_seed: Option<u32>,
    ) -> Result<Vec<(InodeNr, OrphanSlot)>> {
        let mut found = Vec::new();
        let mut free = Vec::new();
        let per_block = orphan::entries_per_block(volume.geometry.block_size);
        for (index, buffer) in blocks.iter().enumerate() {
            let block = buffer.read();
            if !orphan::has_magic(&block)
                || !orphan::verify_checksum(checksum_seed, buffer.nr(), &block)
            {
                return Err(Corrupt::OrphanBlock { block: buffer.nr() }.into());
            }
            for (slot, entry) in block.chunks_exact(4).take(per_block).enumerate() {
                let nr = entry
                    .iter()
                    .rev()
                    .fold(0, |value, byte| value << 8 | u32::from(*byte));
                if nr == 0 {
                    free.push((index, slot));
                } else {
                    found.push((InodeNr(nr), OrphanSlot { block: index, slot }));
                }
            }
        }
        free.reverse();
        let mut state = self.state.lock();
        state.in_file = i64::try_from(found.len()).unwrap_or(i64::MAX);
        state.file = Some(OrphanFile {
            blocks,
            checksum_seed,
            free,
        });
        drop(state);
        Ok(found)
    }

    /// Notes what recovery found in the orphan file.
    pub(crate) fn adopt_from_file(&self, inode: Arc<Inode>, slot: OrphanSlot) {
        let place = Place::File {
            block: slot.block,
            slot: slot.slot,
        };
        let mut state = self.state.lock();
        state.entries.insert(inode.nr(), Entry { inode, place });
    }

    /// Notes what recovery found in the list; to be called from the list's end to its head.
    pub(crate) fn adopt_from_list(&self, inode: Arc<Inode>) {
        let mut state = self.state.lock();
        state.list.push(inode.nr());
        state.entries.insert(
            inode.nr(),
            Entry {
                inode,
                place: Place::List,
            },
        );
    }

    /// Notes an inode on disk. Does nothing when it is noted already.
    pub(crate) fn add(&self, volume: &Volume, handle: &mut Handle<'_>, inode: &Arc<Inode>) {
        self.state.lock().add(volume, handle, inode);
    }

    /// Takes an inode's note away. Does nothing when there is none. `i_dtime` is 0 afterwards.
    pub(crate) fn remove(&self, volume: &Volume, handle: &mut Handle<'_>, inode: &Inode) {
        self.state.lock().remove(volume, handle, inode);
    }

    /// Takes names away by `change`. If none are left, the inode is noted.
    pub(crate) fn lose_names(
        &self,
        volume: &Volume,
        handle: &mut Handle<'_>,
        inode: &Arc<Inode>,
        change: impl FnOnce(&mut InodeFields),
    ) {
        let mut orphans = self.state.lock();
        let links = inode.update(volume, handle, |state, _| {
            change(state.fields_mut());
            state.fields().links_count()
        });
        if links == 0 {
            orphans.add(volume, handle, inode);
        }
    }

    /// Gives an inode a name by `change`. It is no orphan from then on, unless a truncation of it waits to go
    /// on. Its `io` lock is held.
    pub(crate) fn gain_name(
        &self,
        volume: &Volume,
        handle: &mut Handle<'_>,
        inode: &Inode,
        change: impl FnOnce(&mut InodeFields),
    ) {
        let mut orphans = self.state.lock();
        if !inode.is_being_cut() {
            orphans.remove(volume, handle, inode);
        }
        inode.update(volume, handle, |state, _| change(state.fields_mut()));
    }

    /// Takes the note away that a truncation has made, unless the inode has lost its names meanwhile.
    pub(crate) fn end_truncation(&self, volume: &Volume, handle: &mut Handle<'_>, inode: &Inode) {
        let mut orphans = self.state.lock();
        if inode.state().fields().links_count() > 0 {
            orphans.remove(volume, handle, inode);
        }
    }

    /// The links of an inode, `None` for one that can have none any more.
    #[must_use]
    pub(crate) fn links(&self, inode: &Inode) -> Option<u16> {
        let orphans = self.state.lock();
        let links = inode.state().fields().links_count();
        let is_alive = links > 0 || orphans.entries.contains_key(&inode.nr());
        (is_alive && !inode.is_deleted()).then_some(links)
    }

    /// Whether there is an orphan file that was read and has no entries.
    pub(crate) fn have_empty_file(&self) -> bool {
        let state = self.state.lock();
        state.file.is_some() && state.in_file == 0
    }

    /// All orphans.
    #[must_use]
    pub(crate) fn all(&self) -> Vec<Arc<Inode>> {
        self.state
            .lock()
            .entries
            .values()
            .map(|entry| Arc::clone(&entry.inode))
            .collect()
    }
}

/// A place in the orphan file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OrphanSlot {
    block: usize,
    slot: usize,
}

impl State {
    fn add(&mut self, volume: &Volume, handle: &mut Handle<'_>, inode: &Arc<Inode>) {
        if self.entries.contains_key(&inode.nr()) {
            return;
        }
        let place = match self.file.as_mut().and_then(|file| file.free.pop()) {
            Some((block, slot)) => {
                self.write_slot(handle, block, slot, inode.nr().0);
                self.count_in_file(volume, handle, 1);
                Place::File { block, slot }
            }
            None => {
                let next = self.list.last().map_or(0, |nr| nr.0);
                inode.update(volume, handle, |state, _| {
                    state.fields_mut().set_dtime(next);
                });
                volume.update_superblock(handle, |raw| raw.s_last_orphan.set(inode.nr().0));
                self.list.push(inode.nr());
                Place::List
            }
        };
        let inode = Arc::clone(inode);
        self.entries.insert(inode.nr(), Entry { inode, place });
    }

    fn remove(&mut self, volume: &Volume, handle: &mut Handle<'_>, inode: &Inode) {
        let Some(entry) = self.entries.remove(&inode.nr()) else {
            return;
        };
        match entry.place {
            Place::File { block, slot } => {
                self.write_slot(handle, block, slot, 0);
                self.count_in_file(volume, handle, -1);
                if let Some(file) = self.file.as_mut() {
                    file.free.push((block, slot));
                }
            }
            Place::List => self.unlink(volume, handle, inode),
        }
    }

    fn write_slot(&mut self, handle: &mut Handle<'_>, block: usize, slot: usize, value: u32) {
        let Some(file) = &self.file else { return };
        let buffer = &file.blocks[block];
        let mut bytes = handle.get_write_access(buffer);
        bytes[slot * 4..slot * 4 + 4].copy_from_slice(&value.to_le_bytes());
        orphan::update_tail(file.checksum_seed, buffer.nr(), &mut bytes);
    }

    /// Keeps the feature flag that says whether the file has entries: e2fsck and Linux look into the
    /// file only when it is set, and e2fsck wants it clear when there are none.
    fn count_in_file(&mut self, volume: &Volume, handle: &mut Handle<'_>, change: i64) {
        let had = self.in_file > 0;
        self.in_file += change;
        let has = self.in_file > 0;
        if had != has {
            volume.update_superblock(handle, |raw| {
                let mut features = raw.ro_compat();
                features.set(RoCompat::ORPHAN_PRESENT, has);
                raw.s_feature_ro_compat.set(features.bits());
            });
        }
    }

    /// Takes an inode out of the list: whoever pointed to it points to its successor.
    fn unlink(&mut self, volume: &Volume, handle: &mut Handle<'_>, inode: &Inode) {
        let Some(index) = self.list.iter().position(|nr| *nr == inode.nr()) else {
            return;
        };
        let next = index.checked_sub(1).map_or(0, |older| self.list[older].0);
        match self
            .list
            .get(index + 1)
            .and_then(|newer| self.entries.get(newer))
        {
            Some(newer) => {
                newer.inode.update(volume, handle, |state, _| {
                    state.fields_mut().set_dtime(next);
                });
            }
            None => volume.update_superblock(handle, |raw| raw.s_last_orphan.set(next)),
        }
        self.list.remove(index);
        inode.update(volume, handle, |state, _| state.fields_mut().set_dtime(0));
    }
}

/// The inodes on the list that starts at `first`, from the head on.
///
/// # Errors
/// `Corrupt` when the list has a loop or names an inode that cannot be an orphan, `Io`.
pub(crate) fn read_list(
    volume: &Volume,
    inodes: &InodeTable,
    first: InodeNr,
) -> Result<Vec<Arc<Inode>>> {
    let mut found: Vec<Arc<Inode>> = Vec::new();
    let mut known = HashSet::new();
    let mut next = first;
    while next.0 != 0 {
        if !known.insert(next) || next < volume.geometry.first_inode {
            return Err(Corrupt::OrphanList { inode: next }.into());
        }
        let inode = inodes.get_orphan(volume, next)?;
        next = InodeNr(inode.state().fields().dtime());
        found.push(inode);
    }
    Ok(found)
}
