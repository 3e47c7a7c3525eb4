//! Requests about where data lies, carried out on an open volume: defragmentation, maps.

use crate::defrag::{
    DefragFile, DefragFileInfo, DefragInfo, LayoutInfo, SkippedFiles, SurveyFile, SurveyInfo,
    SurveyLevel,
};
use crate::execute::failed;
use crate::fragmap::{Cell, ExtentInfo, FileMapInfo, VolumeMapInfo};
use crate::protocol::{ErrorCode, RequestError};
use kfs::{
    Defrag, DefragOptions, Error, FileLayout, FileType, Filesystem, InodeNr, LogicalBlock, Survey,
    TreeCursor,
};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Time that a request has: who asks is to see that it goes on, and may stop it.
const TIME: Duration = Duration::from_secs(1);

/// Bytes moved by a request that does not say.
const BYTES: u64 = 256 << 20;

/// Cells of a map that nobody gave a number for.
const CELLS: u32 = 1024;

/// Extents that one answer tells.
const EXTENTS_MAX: usize = 2000;

fn layout_info(layout: &FileLayout, block_size: u64) -> LayoutInfo {
    LayoutInfo {
        extents: layout.extents,
        fragments: layout.fragments,
        bytes: layout.blocks * block_size,
        aligned_bytes: layout.aligned_blocks * block_size,
        movable_bytes: layout.movable_blocks * block_size,
        gain: layout.gain,
    }
}

fn about(path: &str, error: Error) -> RequestError {
    let code = match error {
        Error::NotFound | Error::NotADirectory | Error::NotSupported => ErrorCode::InvalidArgument,
        _ => ErrorCode::Failed,
    };
    let text = format!("{path}: {}", failed(error).message);
    RequestError::new(code, text, "a path is one in the volume, from its root")
}

/// Refuses what has no data that lies anywhere.
fn refuse_special(fs: &Arc<Filesystem>, path: &str) -> Result<(), RequestError> {
    // What is not there is told by whoever needs it.
    let Ok(inode) = kfs::resolve(fs, path.as_bytes()) else {
        return Ok(());
    };
    let what = match FileType::from_mode(inode.mode()) {
        FileType::Unknown | FileType::Regular | FileType::Directory => return Ok(()),
        FileType::CharDevice => "a character device",
        FileType::BlockDevice => "a block device",
        FileType::Fifo => "a FIFO",
        FileType::Socket => "a socket",
        FileType::Symlink => "a symbolic link",
    };
    let hint = match fs.read_link(&inode) {
        Ok(target) => {
            let target = String::from_utf8_lossy(&target);
            format!("give the path that it leads to ({})", target.escape_debug())
        }
        Err(_) => "give a file or a directory".into(),
    };
    Err(RequestError::new(
        ErrorCode::InvalidArgument,
        format!("{path} is {what}, which has no data that lies anywhere"),
        hint,
    ))
}

/// Walks over files, for a while.
pub(crate) fn survey(
    fs: &Arc<Filesystem>,
    path: Option<&str>,
    cursor: Option<&[SurveyLevel]>,
    moves_kept: bool,
) -> Result<Value, RequestError> {
    let until = Instant::now() + TIME;
    let survey = match cursor {
        Some(levels) => {
            let levels = levels.iter().map(|level| {
                let name = level.name.clone().into_bytes();
                let SurveyLevel {
                    inode,
                    generation,
                    cookie,
                    ..
                } = level;
                (InodeNr(*inode), *generation, *cookie, name)
            });
            let cursor = TreeCursor {
                levels: levels.collect(),
            };
            fs.survey_from(cursor, moves_kept, until).map_err(failed)?
        }
        None => {
            let path = path.unwrap_or("/");
            refuse_special(fs, path)?;
            fs.survey(path.as_bytes(), moves_kept, until)
                .map_err(|error| about(path, error))?
        }
    };
    Ok(json!(survey_info(survey, fs.space().block_size.into())))
}

fn survey_info(survey: Survey, block_size: u64) -> SurveyInfo {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let candidates = survey.candidates.iter().map(|found| SurveyFile {
        inode: found.inode.0,
        generation: found.generation,
        path: text(&found.path),
        has_links: found.has_links,
        layout: layout_info(&found.layout, block_size),
    });
    let level = |(inode, generation, cookie, name): &(InodeNr, u32, u64, Vec<u8>)| SurveyLevel {
        inode: inode.0,
        generation: *generation,
        cookie: *cookie,
        name: text(name),
    };
    SurveyInfo {
        files: survey.files,
        layout: layout_info(&survey.layout, block_size),
        kept_bytes: survey.kept_blocks * block_size,
        skipped: SkippedFiles {
            block_mapped: survey.skipped.block_mapped,
            immutable: survey.skipped.immutable,
            damaged: survey.skipped.damaged,
            too_deep: survey.skipped.too_deep,
        },
        candidates: candidates.collect(),
        next: survey
            .next
            .map(|cursor| cursor.levels.iter().map(level).collect()),
    }
}

/// Moves files, for a while.
pub(crate) fn defrag(
    fs: &Arc<Filesystem>,
    files: &[DefragFile],
    moves_kept: bool,
    bytes: Option<u64>,
) -> Result<Value, RequestError> {
    let options = DefragOptions {
        moves_kept,
        bytes_max: bytes.unwrap_or(BYTES),
        until: Instant::now() + TIME,
    };
    let mut run = Defrag::new(fs, options);
    let mut done = DefragInfo::default();
    for file in files {
        done.files
            .push(defrag_one(fs, &mut run, *file, moves_kept)?);
        if run.is_over() {
            break;
        }
    }
    Ok(json!(done))
}

fn defrag_one(
    fs: &Arc<Filesystem>,
    run: &mut Defrag<'_>,
    file: DefragFile,
    moves_kept: bool,
) -> Result<DefragFileInfo, RequestError> {
    let mut info = DefragFileInfo {
        inode: file.inode,
        ..DefragFileInfo::default()
    };
    let moved = fs
        .inode(InodeNr(file.inode), file.generation)
        .and_then(|inode| {
            let progress = run.file(&inode, LogicalBlock(file.from))?;
            Ok((progress, fs.file_layout(&inode, moves_kept)?))
        });
    match moved {
        Ok((progress, layout)) => {
            info.moved_bytes = progress.moved_bytes;
            info.no_room = progress.no_room;
            info.changed = progress.changed;
            info.next = progress.next.map(|block| block.0);
            info.layout = layout_info(&layout, fs.space().block_size.into());
        }
        Err(Error::Stale | Error::NotSupported) => info.gone = true,
        Err(error) => return Err(failed(error)),
    }
    Ok(info)
}

/// A map of the volume, or of a file.
pub(crate) fn fragmap(
    fs: &Arc<Filesystem>,
    path: Option<&str>,
    cells: Option<u32>,
    from: u32,
) -> Result<Value, RequestError> {
    match path {
        Some(path) => {
            refuse_special(fs, path)?;
            file_map(fs, path, from).map_err(|error| about(path, error))
        }
        None => volume_map(fs, cells.unwrap_or(CELLS)).map_err(failed),
    }
}

fn volume_map(fs: &Arc<Filesystem>, cells: u32) -> kfs::Result<Value> {
    let map = fs.volume_map(cells)?;
    let snapshots = fs.snapshots();
    let cells = map.cells.iter().map(|cell| Cell {
        used: cell.used,
        free: cell.free,
        pinned_alone: cell.pinned_alone,
        pinned_shared: cell.pinned_shared,
        metadata: cell.metadata,
        journal: cell.journal,
        store: cell.store,
        pinned_by: cell
            .pinned_by
            .and_then(|id| snapshots.iter().position(|snapshot| snapshot.id == id)),
    });
    Ok(json!(VolumeMapInfo {
        block_size_bytes: fs.space().block_size.into(),
        blocks: map.blocks,
        cell_blocks: map.cell_blocks,
        cells: cells.collect(),
        free_runs: map.free_runs,
        free_run_max_blocks: map.free_run_max,
        snapshots: snapshots.into_iter().map(|s| s.name).collect(),
    }))
}

fn file_map(fs: &Arc<Filesystem>, path: &str, from: u32) -> kfs::Result<Value> {
    let inode = kfs::resolve(fs, path.as_bytes())?;
    let block_size = fs.space().block_size.into();
    let attr = fs.attr(&inode);
    // Directories have extents, but none that could be moved; a short link has not even blocks.
    let layout = match fs.file_layout(&inode, true) {
        Ok(layout) => Some(layout_info(&layout, block_size)),
        Err(Error::NotSupported) => None,
        Err(error) => return Err(error),
    };
    let extents = fs.file_map(&inode, from, EXTENTS_MAX)?;
    let next = extents
        .last()
        .filter(|_| extents.len() == EXTENTS_MAX)
        .and_then(|last| u32::try_from(last.logical + last.len).ok());
    let extents = extents.into_iter().map(|extent| ExtentInfo {
        logical: extent.logical,
        physical: extent.physical,
        blocks: extent.len,
        unwritten: extent.unwritten,
        kept_blocks: extent.kept,
    });
    Ok(json!(FileMapInfo {
        inode: attr.inode.0,
        size_bytes: attr.size_bytes,
        block_size_bytes: block_size,
        volume_blocks: fs.volume().geometry.blocks_count(),
        layout,
        extents: extents.collect(),
        next,
    }))
}
