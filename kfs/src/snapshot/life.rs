//! Create and delete: one table written, whatever the size of the volume.
//!
//! Deleting is done when the table without the snapshot is durable. What it kept is then given to the
//! next older one or dropped, in memory and in steps; after a crash, reading the store comes to the
//! same.

use super::format::Kind;
use super::store::{Content, Location, Store};
use super::table::{SnapshotRecord, Table, check_comment, check_name};
use super::{Snapshots, State};
use crate::error::{Error, Result};
use crate::ids::BlockNr;
use crate::time::Timestamp;
use std::sync::atomic::Ordering;

/// Pre-images that find their new owner in one step.
const STEP: usize = 4096;

impl Snapshots {
    /// Checks a name and a comment for a new snapshot.
    ///
    /// # Errors
    /// `Exists`; `Invalid` for what cannot be a file's name; `NameTooLong`.
    pub fn check_new(&self, name: &str, comment: &str) -> Result<()> {
        check_name(name)?;
        check_comment(comment)?;
        if self.state.read().table.find(name).is_some() {
            return Err(Error::Exists);
        }
        let mut table = self.state.read().table.clone();
        table
            .snapshots
            .push(record(&table, name, comment, Timestamp::default()));
        let blocks = table
            .encode()
            .len()
            .div_ceil(self.geometry.block_size as usize);
        let most = Kind::Table { bytes: 0 }.entries_max(self.geometry.block_size as usize);
        let ids_are_used_up = table.next_id == u32::MAX;
        if ids_are_used_up || blocks > most {
            return Err(Error::SnapshotStoreFull);
        }
        Ok(())
    }

    /// Takes a snapshot of what is in place. `superblock` is the block that holds it, as the snapshot is
    /// to see it. Who calls has made the volume stand still, with everything in its place.
    ///
    /// # Errors
    /// What the device reports: nobody knows then whether there is a snapshot.
    pub(crate) fn create(
        &self,
        name: &str,
        comment: &str,
        time: Timestamp,
        superblock: (BlockNr, &[u8]),
    ) -> Result<SnapshotRecord> {
        let store = self.store()?;
        let mut table = self.state.read().table.clone();
        let record = record(&table, name, comment, time);
        table.next_id = record.id.saturating_add(1);
        table.snapshots.push(record.clone());
        let (block, content) = superblock;
        let kind = Kind::PreImages {
            snapshot: record.id,
        };
        let content = Content {
            block: block.0,
            taken: None,
            bytes: content,
        };
        let pre_image = store.append(kind, &[content])?;
        // The table that counts must not be durable without it.
        store.flush_appended()?;
        let written = self.write_table(&store, &table)?;
        let mut state = self.state.write();
        state.index.add(record.id);
        state.index.insert(record.id, block.0, pre_image[0]);
        state.fresh.clear();
        let old = self.replace_table(&mut state, table, written);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.set_active(true);
        drop(state);
        store.release(&old);
        Ok(record)
    }

    /// Deletes a snapshot. [`Snapshots::settle_some`] has to follow until it is done.
    ///
    /// # Errors
    /// `NotFound`, `Busy` while somebody looks at it, and what the device reports: nobody knows then
    /// whether the snapshot is there.
    pub(crate) fn delete(&self, name: &str) -> Result<SnapshotRecord> {
        let store = self.store().map_err(|_| Error::NotFound)?;
        let (record, table) = self.begin_deletion(name)?;
        let written = self.write_table(&store, &table);
        let mut state = self.state.write();
        state.deleting = None;
        // Where nothing was written it is there still.
        let written = written?;
        state.index.retire(&table.ids());
        let old = self.replace_table(&mut state, table, written);
        drop(state);
        store.release(&old);
        Ok(record)
    }

    /// The snapshot that the volume is being set back to.
    pub(crate) fn restoring(&self) -> Option<u32> {
        self.state.read().table.restoring
    }

    /// Notes that the volume is to be set back to a snapshot, or that it was.
    ///
    /// # Errors
    /// What the device reports: nobody knows then what is noted.
    pub(crate) fn set_restoring(&self, snapshot: Option<u32>) -> Result<()> {
        let store = self.store()?;
        let mut table = self.state.read().table.clone();
        table.restoring = snapshot;
        let written = self.write_table(&store, &table)?;
        let old = self.replace_table(&mut self.state.write(), table, written);
        store.release(&old);
        Ok(())
    }

    /// From now on nobody can look into a snapshot. Returns the table without it.
    fn begin_deletion(&self, name: &str) -> Result<(SnapshotRecord, Table)> {
        let mut state = self.state.write();
        let record = state.table.find(name).cloned().ok_or(Error::NotFound)?;
        if state.viewers.contains_key(&record.id) {
            return Err(Error::Busy);
        }
        state.deleting = Some(record.id);
        let mut table = state.table.clone();
        table.snapshots.retain(|other| other.id != record.id);
        Ok((record, table))
    }

    /// The last snapshot is gone. Who calls has made the volume stand still.
    pub(crate) fn deactivate(&self) {
        self.set_active(false);
        *self.reserved.lock() = 0;
    }

    /// Gives some of what a deleted snapshot kept to the next older one. Returns whether there is more.
    pub(crate) fn settle_some(&self, deleted: u32) -> bool {
        let unneeded = self.state.write().index.remove_some(deleted, STEP);
        match (unneeded, self.store()) {
            (Some(unneeded), Ok(store)) => {
                self.give_up(&store, &unneeded);
                true
            }
            _ => false,
        }
    }

    /// Writes a table and makes it durable.
    fn write_table(&self, store: &Store, table: &Table) -> Result<Vec<Location>> {
        let size = self.geometry.block_size as usize;
        let mut bytes = table.encode();
        let kind = Kind::Table {
            bytes: bytes.len() as u32,
        };
        bytes.resize(bytes.len().next_multiple_of(size), 0);
        let content = |bytes| Content {
            block: 0,
            taken: None,
            bytes,
        };
        let content: Vec<Content<'_>> = bytes.chunks_exact(size).map(content).collect();
        let locations = store.append(kind, &content)?;
        store.flush_appended()?;
        Ok(locations)
    }

    /// Returns the blocks of the table before.
    fn replace_table(
        &self,
        state: &mut State,
        table: Table,
        written: Vec<Location>,
    ) -> Vec<Location> {
        state.table = table;
        std::mem::replace(&mut state.table_blocks, written)
    }

    /// Ends the store with the volume: nothing is appended any more.
    ///
    /// # Errors
    /// When the device fails.
    pub(crate) fn close(&self) -> Result<()> {
        self.store().map_or(Ok(()), |store| store.seal_all())
    }
}

fn record(table: &Table, name: &str, comment: &str, time: Timestamp) -> SnapshotRecord {
    SnapshotRecord {
        id: table.next_id.max(1),
        name: name.into(),
        comment: comment.into(),
        time,
    }
}
