//! A walk over the files of a tree that tells how they lie, a part at a time. Who asks keeps the place.

use super::layout::{FileLayout, Stretches, window_blocks};
use super::{Extents, STRETCH_BYTES_MAX};
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::extent::Extent;
use crate::fs::Filesystem;
use crate::ids::{InodeNr, LogicalBlock};
use crate::inode::Inode;
use crate::layout::FileType;
use crate::layout::inode::InodeFlags;
use crate::tools::{parts, resolve};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

/// Entries of a directory read at a time.
const ENTRIES_READ: usize = 256;

/// Longest path that is followed, in bytes.
const PATH_MAX: usize = 4096;

/// Bytes of paths that one part tells.
const PATHS_BYTES_MAX: usize = 96 << 10;

/// Files that one part tells.
const CANDIDATES_MAX: usize = 1000;

/// Where a walk is: the directories from its top down, and how far each was listed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TreeCursor {
    /// Inode, generation, cookie of the last entry that was looked at, name.
    pub levels: Vec<(InodeNr, u32, u64, Vec<u8>)>,
}

/// Files that were left out, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Skipped {
    /// They have the block maps of ext2 and ext3.
    pub block_mapped: u64,
    /// They are immutable.
    pub immutable: u64,
    /// Their extents or their inodes are damaged.
    pub damaged: u64,
    /// Their paths are too long.
    pub too_deep: u64,
}

/// A file worth the work, or one that has several names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its inode.
    pub inode: InodeNr,
    /// The life of the inode.
    pub generation: u32,
    /// One of its paths.
    pub path: Vec<u8>,
    /// Whether it has other names, so that the walk may meet it again.
    pub has_links: bool,
    /// How it lies.
    pub layout: FileLayout,
}

/// What part of a walk has seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Survey {
    /// Files with a single name.
    pub files: u64,
    /// The sum over these.
    pub layout: FileLayout,
    /// Blocks that could lie better and stay where they are, for snapshots see them.
    pub kept_blocks: u64,
    /// Files that cannot be moved.
    pub skipped: Skipped,
    /// Files worth the work, and all with several names.
    pub candidates: Vec<Candidate>,
    /// Where to go on; `None` at the end.
    pub next: Option<TreeCursor>,
}

impl std::ops::AddAssign for FileLayout {
    fn add_assign(&mut self, other: Self) {
        self.extents += other.extents;
        self.fragments += other.fragments;
        self.blocks += other.blocks;
        self.aligned_blocks += other.aligned_blocks;
        self.movable_blocks += other.movable_blocks;
        self.gain += other.gain;
    }
}

/// Why a file cannot be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// It has no blocks of its own, or they are metadata.
    NoData,
    BlockMapped,
    Immutable,
}

/// Why a file cannot be moved, if it cannot.
pub(super) fn obstacle(fs: &Filesystem, inode: &Inode) -> Option<Obstacle> {
    let flags = inode.state().fields().flags();
    let is_internal = inode.nr() < fs.volume.geometry.first_inode
        || fs.volume.snapshots.store_inode() == Some(inode.nr())
        || fs.volume.geometry.orphan_file_inode == Some(inode.nr())
        || fs.volume.geometry.journal_inode == Some(inode.nr())
        || flags.contains(InodeFlags::EA_INODE);
    if !inode.is_regular() || is_internal || flags.contains(InodeFlags::INLINE_DATA) {
        return Some(Obstacle::NoData);
    }
    if flags.contains(InodeFlags::IMMUTABLE) {
        return Some(Obstacle::Immutable);
    }
    if !flags.contains(InodeFlags::EXTENTS) {
        return Some(Obstacle::BlockMapped);
    }
    None
}

/// Tells of blocks of a file whether they are to stay for a snapshot.
pub(super) fn keeper<'f>(
    fs: &'f Filesystem,
    inode: &'f Arc<Inode>,
    moves_kept: bool,
) -> impl FnMut(&[Extent]) -> Result<bool> + use<'f> {
    move |pieces| {
        if moves_kept {
            return Ok(false);
        }
        fs.file(inode).keeps_any(pieces)
    }
}

/// How a file lies, and how many of its blocks stay for snapshots.
pub(super) fn layout(
    fs: &Filesystem,
    inode: &Arc<Inode>,
    moves_kept: bool,
) -> Result<(FileLayout, u64)> {
    let volume = &fs.volume;
    let window = window_blocks(volume.geometry.block_size);
    let extents = Extents::new(volume, inode, LogicalBlock(0));
    let most = STRETCH_BYTES_MAX / volume.block_size();
    let is_kept = keeper(fs, inode, moves_kept);
    let mut stretches = Stretches::new(extents, window, None, most, is_kept);
    while stretches.next()?.is_some() {}
    Ok((stretches.layout, stretches.kept_blocks))
}

impl Filesystem {
    /// How the data of a file lies.
    ///
    /// # Errors
    /// `NotSupported` for what has no data in blocks, `Corrupt`, `Io`.
    pub fn file_layout(&self, inode: &Arc<Inode>, moves_kept: bool) -> Result<FileLayout> {
        if !inode.is_regular() {
            return Err(Error::NotSupported);
        }
        Ok(layout(self, inode, moves_kept)?.0)
    }

    /// Looks at a file, or begins to walk over the files below a directory.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub fn survey(&self, path: &[u8], moves_kept: bool, until: Instant) -> Result<Survey> {
        let inode = resolve(self, path)?;
        let mut walk = Walk::new(self, moves_kept, until);
        let names: Vec<&[u8]> = parts(path).collect();
        if inode.is_directory() {
            let level = (inode.nr(), inode.generation(), 0, names.join(&b'/'));
            return walk.go_on(TreeCursor {
                levels: vec![level],
            });
        }
        walk.look_at(&inode, [b"/", &names.join(&b'/')[..]].concat())?;
        Ok(walk.seen)
    }

    /// Goes on with a walk.
    ///
    /// # Errors
    /// `Corrupt` for a directory that is below itself, `Io`.
    pub fn survey_from(
        &self,
        cursor: TreeCursor,
        moves_kept: bool,
        until: Instant,
    ) -> Result<Survey> {
        Walk::new(self, moves_kept, until).go_on(cursor)
    }
}

struct Walk<'f> {
    fs: &'f Filesystem,
    moves_kept: bool,
    until: Instant,
    seen: Survey,
    path_bytes: usize,
}

/// An entry of a directory that is worth a look.
struct Listed {
    name: Vec<u8>,
    inode: InodeNr,
    cookie: u64,
}

impl<'f> Walk<'f> {
    fn new(fs: &'f Filesystem, moves_kept: bool, until: Instant) -> Self {
        Self {
            fs,
            moves_kept,
            until,
            seen: Survey::default(),
            path_bytes: 0,
        }
    }

    fn is_over(&self) -> bool {
        self.path_bytes >= PATHS_BYTES_MAX
            || self.seen.candidates.len() >= CANDIDATES_MAX
            || Instant::now() >= self.until
    }

    fn go_on(mut self, mut cursor: TreeCursor) -> Result<Survey> {
        while let Some((nr, generation, cookie, _)) = cursor.levels.last().cloned() {
            let entries = match self.list(nr, generation, cookie) {
                Ok(entries) => entries,
                // Gone since its parent was listed.
                Err(Error::Stale | Error::NotADirectory) => Vec::new(),
                Err(error) => return Err(error),
            };
            if entries.is_empty() {
                cursor.levels.pop();
            }
            for entry in entries {
                let goes_down = self.visit(&mut cursor, entry)?;
                if self.is_over() {
                    self.seen.next = Some(cursor);
                    return Ok(self.seen);
                }
                if goes_down {
                    break;
                }
            }
        }
        Ok(self.seen)
    }

    /// Looks at an entry of the directory that the cursor is in. Returns whether it went down into it.
    fn visit(&mut self, cursor: &mut TreeCursor, entry: Listed) -> Result<bool> {
        if let Some(level) = cursor.levels.last_mut() {
            level.2 = entry.cookie;
        }
        let inode = match self.fs.inodes.get(&self.fs.volume, entry.inode) {
            Ok(inode) => inode,
            Err(Error::Stale) => return Ok(false),
            Err(Error::Corrupt(_)) => {
                self.seen.skipped.damaged += 1;
                return Ok(false);
            }
            Err(error) => return Err(error),
        };
        let path = path_of(cursor, &entry.name);
        if inode.is_directory() {
            return self.enter(cursor, &inode, path.len(), entry.name);
        }
        self.look_at(&inode, path)?;
        Ok(false)
    }

    /// Goes down into a directory, unless it lies too deep.
    fn enter(
        &mut self,
        cursor: &mut TreeCursor,
        directory: &Inode,
        path_len: usize,
        name: Vec<u8>,
    ) -> Result<bool> {
        let nr = directory.nr();
        if cursor.levels.iter().any(|level| level.0 == nr) {
            return Err(Corrupt::DirectoryLoop { inode: nr }.into());
        }
        if path_len > PATH_MAX {
            self.seen.skipped.too_deep += 1;
            return Ok(false);
        }
        let level = (nr, directory.generation(), 0, name);
        cursor.levels.push(level);
        Ok(true)
    }

    /// Files and directories among the next entries of a directory.
    fn list(&self, nr: InodeNr, generation: u32, cookie: u64) -> Result<Vec<Listed>> {
        let directory = self.fs.inode(nr, generation)?;
        let mut listed = Vec::new();
        self.fs.list(&directory, cookie, &mut |entry| {
            let is_worth_it = matches!(
                entry.entry.file_type,
                FileType::Regular | FileType::Directory | FileType::Unknown
            );
            if is_worth_it && !matches!(entry.name, b"." | b"..") {
                listed.push(Listed {
                    name: entry.name.to_vec(),
                    inode: entry.entry.inode,
                    cookie: entry.cookie,
                });
            }
            if listed.len() < ENTRIES_READ {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        Ok(listed)
    }

    fn look_at(&mut self, inode: &Arc<Inode>, path: Vec<u8>) -> Result<()> {
        let seen = &mut self.seen;
        match obstacle(self.fs, inode) {
            Some(Obstacle::NoData) => return Ok(()),
            Some(Obstacle::BlockMapped) => {
                seen.skipped.block_mapped += 1;
                return Ok(());
            }
            Some(Obstacle::Immutable) => {
                seen.skipped.immutable += 1;
                return Ok(());
            }
            None => {}
        }
        let (layout, kept) = match layout(self.fs, inode, self.moves_kept) {
            Ok(found) => found,
            Err(Error::Corrupt(_) | Error::NotSupported) => {
                seen.skipped.damaged += 1;
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let has_links = inode.state().fields().links_count() > 1;
        if !has_links {
            seen.files += 1;
            seen.layout += layout;
        }
        seen.kept_blocks += kept;
        if layout.gain > 0 || has_links {
            self.path_bytes += path.len() + 64;
            seen.candidates.push(Candidate {
                inode: inode.nr(),
                generation: inode.generation(),
                path,
                has_links,
                layout,
            });
        }
        Ok(())
    }
}

fn path_of(cursor: &TreeCursor, name: &[u8]) -> Vec<u8> {
    let mut path = Vec::new();
    for (_, _, _, name) in &cursor.levels {
        if !name.is_empty() {
            path.push(b'/');
            path.extend(name);
        }
    }
    path.push(b'/');
    path.extend(name);
    path
}
