//! Opening a volume with snapshots: what the store says, what a crash has torn of it, what is damaged.

use super::format::{Kind, Taken};
use super::index::Index;
use super::store::{Contents, Found, Location, Order, Store};
use super::table::{SnapshotRecord, Table};
use super::{Snapshots, State, view};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::{BlockNr, InodeNr, Run};
use crate::layout::superblock::SUPERBLOCK_OFFSET;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

impl Snapshots {
    /// Reads the store, a file whose content lies in `runs`, of a volume that was closed or not. Returns
    /// whether there are snapshots.
    ///
    /// # Errors
    /// `Corrupt::SnapshotStore`, `Io`.
    pub fn attach(&self, inode: InodeNr, runs: &[Run], was_closed: bool) -> Result<bool> {
        let opened = Store::open(Arc::clone(&self.device), self.geometry.block_size, runs)?;
        let Some((store, contents)) = opened else {
            return Ok(false);
        };
        let Contents { mut found, lost } = contents;
        self.void_torn_pre_images(&store, &mut found, was_closed)?;
        self.void_torn_copies(&store, &mut found)?;
        self.void_torn_table(&store, &mut found, was_closed)?;
        let Some((table, locations)) = self.newest_table(&store, &found)? else {
            return Ok(false);
        };
        let mut state = State::default();
        for location in &locations {
            store.need(*location);
        }
        state.table_blocks = locations;
        for id in table.ids() {
            state.index.add(id);
        }
        enter_all(&store, &mut state.index, &found);
        let newest_used = found.iter().filter_map(Found::snapshot);
        self.note_lost(&store, &found, &lost, &table);
        tell_of_damage(&store, &found, &state.index);
        state.table = table;
        state.table.next_id = state
            .table
            .next_id
            .max(newest_used.max().map_or(1, |id| id.saturating_add(1)));
        let is_active = !state.table.snapshots.is_empty();
        *self.state.write() = state;
        *self.store.write() = Some(Arc::new(store));
        self.set_file(Some(inode));
        self.set_active(is_active);
        Ok(is_active)
    }

    /// What a crash has torn of pre-images is in their last commit. Then its transaction has not committed,
    /// and all of it is voided, in the store, too, as nobody could tell later.
    fn void_torn_pre_images(
        &self,
        store: &Store,
        found: &mut [Found],
        was_closed: bool,
    ) -> Result<()> {
        let last = last_commit(found, |found| found.snapshot().is_some());
        if self.are_whole(store, &last)? {
            return Ok(());
        }
        if self.are_in_place(&last, was_closed)? {
            self.void(store, last)?;
        }
        Ok(())
    }

    /// The last copies may be torn. Then what they are of has not been given up yet, and counts. Where it is gone,
    /// they were whole once: they are damaged, or nobody needs them.
    fn void_torn_copies(&self, store: &Store, found: &mut [Found]) -> Result<()> {
        let last = last_commit(found, Found::is_copy);
        let Some(commit) = last.first().map(|found| found.batch.commit) else {
            return Ok(());
        };
        let is_last = |found: &Found| found.is_copy() && found.batch.commit == commit;
        // What cannot be read is as good as torn, if it is elsewhere.
        let is_torn = |found: &Found| is_last(found) && !store.is_whole(found).unwrap_or(false);
        if !found.iter().any(is_torn) {
            return Ok(());
        }
        let others = found.iter().filter(|found| !is_last(found));
        let originals: HashMap<(u64, Taken), Location> = others
            .flat_map(Found::pre_images)
            .map(|(taken, block, at)| ((block, taken), at))
            .collect();
        for copies in found.iter_mut().filter(|found| is_torn(found)) {
            if are_there(store, copies, &originals) {
                self.void(store, vec![copies])?;
            }
        }
        Ok(())
    }

    /// The newest table may be torn, and then the one before counts. If the volume was closed it was whole
    /// once: which snapshots there are is not known then.
    fn void_torn_table(&self, store: &Store, found: &mut [Found], was_closed: bool) -> Result<()> {
        let last = last_commit(found, Found::is_table);
        if self.are_whole(store, &last)? {
            return Ok(());
        }
        if !was_closed {
            return self.void(store, last);
        }
        self.doubt_table();
        last.into_iter()
            .for_each(|found| found.batch.kind = Kind::Void);
        Ok(())
    }

    fn are_whole(&self, store: &Store, found: &[&mut Found]) -> Result<bool> {
        for found in found {
            if !store.is_whole(found)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether all blocks are in place as their pre-images say. So it is when the transaction that was to
    /// change them has not committed; and if it has, nothing is lost without them.
    fn are_in_place(&self, found: &[&mut Found], was_closed: bool) -> Result<bool> {
        let size = self.geometry.block_size as usize;
        let superblock = SUPERBLOCK_OFFSET / size as u64;
        let mut content = vec![0; size];
        for entry in found.iter().flat_map(|found| &found.batch.entries) {
            // Made for a snapshot whose table came to nothing: it never was in place.
            if entry.block == superblock && !was_closed {
                continue;
            }
            if !self.geometry.contains_block(BlockNr(entry.block)) {
                return Ok(false);
            }
            view::read_in_place(
                &*self.device,
                &self.geometry,
                BlockNr(entry.block),
                &mut content,
            )?;
            if crc32c::crc32c(&content) != entry.checksum {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn void(&self, store: &Store, found: Vec<&mut Found>) -> Result<()> {
        for found in found {
            if !self.device.is_read_only() {
                store.void(found)?;
            }
            found.batch.kind = Kind::Void;
        }
        Ok(())
    }

    /// What is missing from where heads are damaged is not known, only whose it may be: that of the snapshot
    /// that was the newest then, at the latest the one of the batch that follows.
    fn note_lost(&self, store: &Store, found: &[Found], lost: &[(u32, Order)], table: &Table) {
        let snapshot_after = |order: &Order| {
            let later = &found[found.partition_point(|found| found.order <= *order)..];
            let snapshot = later.iter().find_map(Found::snapshot);
            snapshot.filter(|_| order.0 != 0).unwrap_or(u32::MAX)
        };
        let Some(up_to) = lost.iter().map(|(_, order)| snapshot_after(order)).max() else {
            return;
        };
        let tables = found.iter().filter(|found| found.is_table());
        let newest = tables.map(|found| found.order).max();
        let table_is_lost = |(_, order): &(u32, Order)| order.0 == 0 || Some(*order) > newest;
        if lost.iter().any(table_is_lost) {
            self.doubt_table();
        }
        if table.ids().first().is_none_or(|oldest| *oldest > up_to) {
            return;
        }
        // The damage is to be found again, as long as it matters.
        lost.iter().for_each(|(nr, _)| store.keep_segment(*nr));
        self.lost_up_to.store(up_to, Ordering::Release);
        let mut names = table.snapshots.iter().filter(|record| record.id <= up_to);
        let newest = names.next_back().map_or("", |record| &record.name);
        log::error!(
            "the snapshot store is damaged: what '{newest}' and the snapshots before it show is lost; delete them"
        );
    }

    fn doubt_table(&self) {
        log::error!(
            "the newest table of snapshots is damaged: the one taken last may be missing, and one that was deleted may be there and show nonsense; delete all of them"
        );
        self.table_is_doubtful.store(true, Ordering::Release);
    }

    /// Fails where the store is not to be built on: its newest table is damaged, or old metadata is lost.
    ///
    /// # Errors
    /// `Corrupt::SnapshotStore`, `Corrupt::SnapshotLost`.
    pub(crate) fn check_sound(&self) -> Result<()> {
        if self.table_is_doubtful.load(Ordering::Acquire) {
            let what = "its newest table is damaged; delete all snapshots";
            return Err(Corrupt::SnapshotStore { what }.into());
        }
        let snapshots = self.list();
        let mut newest_first = snapshots.iter().rev();
        newest_first.try_for_each(|record| self.check_whole(record))
    }

    /// Fails for a snapshot that may need what is lost.
    ///
    /// # Errors
    /// `Corrupt::SnapshotLost`.
    pub(super) fn check_whole(&self, record: &SnapshotRecord) -> Result<()> {
        if record.id > self.lost_up_to.load(Ordering::Acquire) {
            return Ok(());
        }
        let name = record.name.as_str().into();
        Err(Corrupt::SnapshotLost { name }.into())
    }

    /// The newest table with the blocks that hold it; `None` where no snapshot was ever taken, or none is
    /// known any more.
    fn newest_table(
        &self,
        store: &Store,
        found: &[Found],
    ) -> Result<Option<(Table, Vec<Location>)>> {
        if let Some(newest) = found.iter().rev().find(|found| found.is_table()) {
            return self.read_table(store, newest).map(Some);
        }
        // The first one's superblock comes before the first table.
        let pre_images = found.iter().filter(|found| found.batch.kind != Kind::Void);
        if pre_images.count() > 1 {
            log::error!("the table of snapshots is damaged: there are none any more");
        }
        Ok(None)
    }

    fn read_table(&self, store: &Store, found: &Found) -> Result<(Table, Vec<Location>)> {
        let size = self.geometry.block_size as usize;
        let mut table = vec![0; found.batch.entries.len() * size];
        let mut locations = Vec::new();
        let blocks = (found.first..).zip(&found.batch.entries);
        for ((block, entry), content) in blocks.zip(table.chunks_exact_mut(size)) {
            let location = Location {
                block,
                checksum: entry.checksum,
            };
            store.read_content(location, content)?;
            locations.push(location);
        }
        let bytes = match found.batch.kind {
            Kind::Table { bytes } => bytes as usize,
            _ => 0,
        };
        let table = table.get(..bytes).and_then(Table::decode);
        let table = table.ok_or(Corrupt::SnapshotStore {
            what: "its table makes no sense",
        })?;
        Ok((table, locations))
    }
}

/// The batches of a kind that were written last, as one.
fn last_commit(found: &mut [Found], is_of_kind: impl Fn(&Found) -> bool) -> Vec<&mut Found> {
    let of_kind = || found.iter().filter(|found| is_of_kind(found));
    let Some(last) = of_kind().map(|found| found.batch.commit).max() else {
        return Vec::new();
    };
    let is_last = |found: &&mut Found| is_of_kind(found) && found.batch.commit == last;
    found.iter_mut().filter(is_last).collect()
}

/// Tells of what the last commit and the last copies have lost, if anybody needs it. Of others it is found when
/// they are read.
fn tell_of_damage(store: &Store, found: &[Found], index: &Index) {
    let last = |is_copy| {
        let of_kind = found.iter().filter(move |found| found.is_copy() == is_copy);
        let with_content = of_kind.filter(|found| found.pre_images().next().is_some());
        with_content.map(|found| found.batch.commit).max()
    };
    let last = [last(false), last(true)];
    let in_last = found
        .iter()
        .filter(|found| last.contains(&Some(found.batch.commit)));
    let mut needed = in_last
        .flat_map(Found::pre_images)
        .filter(|(taken, block, at)| index.needs(taken.snapshot, *block, *at));
    if needed.any(|(_, _, at)| !store.is_readable(at).unwrap_or(false)) {
        log::error!("the snapshot store is damaged: what its snapshots show cannot all be read");
    }
}

/// Whether what was copied is there, too.
fn are_there(store: &Store, copies: &Found, originals: &HashMap<(u64, Taken), Location>) -> bool {
    copies.pre_images().all(|(taken, block, copy)| {
        let original = originals.get(&(block, taken));
        let original = original.filter(|at| at.checksum == copy.checksum);
        original.is_some_and(|at| store.is_readable(*at).unwrap_or(false))
    })
}

/// Enters all pre-images in the order in which they were taken. Of those that were copied the last copy counts: what
/// is left of the others may have been written over.
fn enter_all(store: &Store, index: &mut Index, found: &[Found]) {
    let mut enter = |taken: Taken, block, at| {
        if index.insert(taken.snapshot, block, at) {
            store.need(at);
        }
    };
    let copies = found.iter().filter(|found| found.is_copy());
    let copies = copies.flat_map(Found::pre_images);
    let copies: BTreeMap<(u64, u64), (Taken, Location)> = copies
        .map(|(taken, block, at)| ((taken.commit, block), (taken, at)))
        .collect();
    let mut copies = copies.into_iter().peekable();
    for found in found.iter().filter(|found| !found.is_copy()) {
        let is_before = |((commit, _), _): &((u64, u64), _)| *commit <= found.batch.commit;
        while let Some(((_, block), (taken, at))) = copies.next_if(is_before) {
            enter(taken, block, at);
        }
        for (taken, block, at) in found.pre_images() {
            enter(taken, block, at);
        }
    }
    for ((_, block), (taken, at)) in copies {
        enter(taken, block, at);
    }
}
