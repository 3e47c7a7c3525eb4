//! Pictures of the volume and of files: what is where.

use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::fs::Filesystem;
use crate::ids::{GroupNr, LogicalBlock, Run};
use crate::inode::Inode;

/// Cells that a picture of the volume has at the most.
const CELLS_MAX: u32 = 4096;

/// Blocks by what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapCell {
    /// Of files and directories, nodes of their trees included.
    pub used: u64,
    /// Free, and anybody's.
    pub free: u64,
    /// Free, but a single snapshot keeps them.
    pub pinned_alone: u64,
    /// Free, but several snapshots keep them.
    pub pinned_shared: u64,
    /// Superblocks, descriptors, bitmaps, inode tables.
    pub metadata: u64,
    /// Of the journal.
    pub journal: u64,
    /// Of the snapshot store.
    pub store: u64,
    /// The snapshot that alone keeps the most of `pinned_alone`, by its id.
    pub pinned_by: Option<u32>,
}

/// A picture of the volume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeMap {
    /// Blocks of the volume.
    pub blocks: u64,
    /// Blocks in each cell; the last may have fewer.
    pub cell_blocks: u64,
    /// The cells, from the first block on.
    pub cells: Vec<MapCell>,
    /// Runs of blocks that are free, group by group.
    pub free_runs: u64,
    /// Blocks in the longest of them.
    pub free_run_max: u64,
}

/// An extent of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MappedExtent {
    /// First block within the file.
    pub logical: u64,
    /// First block on the volume.
    pub physical: u64,
    /// Blocks.
    pub len: u64,
    /// Allocated, but reads as zeros.
    pub unwritten: bool,
    /// Blocks of it that a snapshot sees.
    pub kept: u64,
}

/// What a block is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Free,
    Used,
    Metadata,
    Journal,
    Store,
    Alone(u32),
    Shared,
}

impl Filesystem {
    /// A picture of the volume in about so many cells, at most 4096.
    ///
    /// # Errors
    /// `Corrupt`, `Io`.
    pub fn volume_map(&self, cells: u32) -> Result<VolumeMap> {
        let geometry = &self.volume.geometry;
        let blocks = geometry.blocks_count();
        let cell_blocks = blocks.div_ceil(cells.clamp(1, CELLS_MAX).into()).max(1);
        let count = blocks.div_ceil(cell_blocks) as usize;
        let mut map = VolumeMap {
            blocks,
            cell_blocks,
            cells: vec![MapCell::default(); count],
            ..VolumeMap::default()
        };
        let own = self.own_files()?;
        let with_pins = {
            let bitmaps = self.volume.allocator.block_bitmaps();
            self.volume.snapshots.groups_with_pins(&bitmaps)
        };
        let mut alone = Alone::default();
        // In front of the first group there may be a block that belongs to none.
        for block in 0..u64::from(geometry.first_data_block) {
            map.count(block, Kind::Metadata, &mut alone);
        }
        for group in (0..geometry.groups_count()).map(GroupNr) {
            let has_pins = with_pins.binary_search(&group).is_ok();
            let kinds = self.kinds(group, has_pins, &own)?;
            let first = geometry.group_first_block(group).0;
            for (index, kind) in kinds.iter().enumerate() {
                map.count(first + index as u64, *kind, &mut alone);
            }
            map.count_free_runs(&kinds);
        }
        alone.settle(&mut map);
        Ok(map)
    }

    /// The blocks of the journal and of the snapshot store.
    fn own_files(&self) -> Result<Vec<(Kind, Run)>> {
        let mut own = Vec::new();
        let files = [
            (Kind::Journal, self.volume.geometry.journal_inode),
            (Kind::Store, self.volume.snapshots.store_inode()),
        ];
        for (kind, nr) in files {
            let Some(nr) = nr else {
                continue;
            };
            let runs = crate::fs::own_file_runs(&self.volume, nr)?;
            own.extend(runs.into_iter().map(|run| (kind, run)));
        }
        Ok(own)
    }

    /// What each block of a group is.
    fn kinds(&self, group: GroupNr, has_pins: bool, own: &[(Kind, Run)]) -> Result<Vec<Kind>> {
        let geometry = &self.volume.geometry;
        let mut kinds = vec![Kind::Free; geometry.blocks_in_group(group) as usize];
        let is_set = |bytes: &[u8], index: usize| bytes[index / 8] >> (index % 8) & 1 != 0;
        let fixed = self.volume.allocator.initial_block_bitmap(group);
        self.volume.allocator.with_live_bitmap(group, |live| {
            for (index, kind) in kinds.iter_mut().enumerate() {
                if is_set(&fixed, index) {
                    *kind = Kind::Metadata;
                } else if !live.is_uninit && is_set(live.bytes, index) {
                    *kind = Kind::Used;
                }
            }
            if !has_pins {
                return Ok(());
            }
            self.volume.snapshots.each_kept(group, live, |id, kept| {
                for (index, kind) in kinds.iter_mut().enumerate() {
                    if kept[index / 64] >> (index % 64) & 1 != 0 {
                        *kind = match *kind {
                            Kind::Free => Kind::Alone(id),
                            Kind::Alone(_) => Kind::Shared,
                            other => other,
                        };
                    }
                }
            })
        })?;
        let first = geometry.group_first_block(group).0;
        let end = first + kinds.len() as u64;
        for (kind, run) in own {
            for block in run.start.0.max(first)..run.end().0.min(end) {
                kinds[(block - first) as usize] = *kind;
            }
        }
        Ok(kinds)
    }

    /// The extents of a file or directory that end after a block, at most so many, and how many blocks
    /// of each a snapshot sees.
    ///
    /// # Errors
    /// `NotSupported` for what is neither, and for content in the inode itself; `Corrupt`, `Io`.
    pub fn file_map(&self, inode: &Inode, from: u32, most: usize) -> Result<Vec<MappedExtent>> {
        if !inode.is_regular() && !inode.is_directory() {
            return Err(Error::NotSupported);
        }
        let extents = inode.extents_from(&self.volume, LogicalBlock(from), most.max(1))?;
        let mapped = extents.into_iter().map(|extent| {
            Ok(MappedExtent {
                logical: extent.logical.0.into(),
                physical: extent.physical.0,
                len: extent.len.into(),
                unwritten: extent.unwritten,
                kept: self.kept_blocks(extent)?,
            })
        });
        mapped.collect()
    }

    fn kept_blocks(&self, extent: Extent) -> Result<u64> {
        let (mut done, mut kept) = (0, 0);
        while done < extent.len {
            let start = extent.physical.plus(done.into());
            let (is_kept, len) = self.volume.kept_run(start, extent.len - done)?;
            if is_kept {
                kept += u64::from(len);
            }
            done += len.max(1);
        }
        Ok(kept)
    }
}

impl VolumeMap {
    fn count(&mut self, block: u64, kind: Kind, alone: &mut Alone) {
        let at = (block / self.cell_blocks) as usize;
        let Some(cell) = self.cells.get_mut(at) else {
            return;
        };
        let counter = match kind {
            Kind::Free => &mut cell.free,
            Kind::Used => &mut cell.used,
            Kind::Metadata => &mut cell.metadata,
            Kind::Journal => &mut cell.journal,
            Kind::Store => &mut cell.store,
            Kind::Shared => &mut cell.pinned_shared,
            Kind::Alone(id) => {
                alone.add(at, id, &mut self.cells);
                return;
            }
        };
        *counter += 1;
    }

    fn count_free_runs(&mut self, kinds: &[Kind]) {
        let runs = kinds.chunk_by(|a, b| (*a == Kind::Free) == (*b == Kind::Free));
        for run in runs.filter(|run| run[0] == Kind::Free) {
            self.free_runs += 1;
            self.free_run_max = self.free_run_max.max(run.len() as u64);
        }
    }
}

/// Which snapshots alone keep how much of the cell that is being counted: blocks come in order.
#[derive(Default)]
struct Alone {
    cell: usize,
    blocks: Vec<(u32, u64)>,
}

impl Alone {
    fn add(&mut self, cell: usize, id: u32, cells: &mut [MapCell]) {
        if cell != self.cell {
            self.note(cells);
            self.cell = cell;
        }
        cells[cell].pinned_alone += 1;
        match self.blocks.iter_mut().find(|(other, _)| *other == id) {
            Some((_, blocks)) => *blocks += 1,
            None => self.blocks.push((id, 1)),
        }
    }

    fn note(&mut self, cells: &mut [MapCell]) {
        let most = self.blocks.iter().max_by_key(|(_, blocks)| *blocks);
        if let Some((id, _)) = most {
            cells[self.cell].pinned_by = Some(*id);
        }
        self.blocks.clear();
    }

    fn settle(mut self, map: &mut VolumeMap) {
        self.note(&mut map.cells);
    }
}
