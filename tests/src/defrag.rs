//! Files in pieces, and the defragmentation of all of a volume, for tests.

use kfs::{
    Defrag, DefragOptions, Error, FileLayout, Filesystem, Inode, LogicalBlock, NewNode, Result,
    SeekTarget, SliceSource, Survey, WriteOptions,
};
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Far away.
#[must_use]
pub fn never() -> Instant {
    Instant::now() + Duration::from_secs(86_400)
}

/// Walks over all files in parts that each end as early as they can.
///
/// # Errors
/// What the file system reports.
pub fn survey(fs: &Filesystem, moves_kept: bool) -> Result<Survey> {
    let mut all = Survey::default();
    let mut part = fs.survey(b"/", moves_kept, Instant::now())?;
    loop {
        all.files += part.files;
        all.layout += part.layout;
        all.kept_blocks += part.kept_blocks;
        all.candidates.extend(part.candidates);
        match part.next {
            Some(next) => part = fs.survey_from(next, moves_kept, Instant::now())?,
            None => return Ok(all),
        }
    }
}

/// What a defragmentation of all files did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Defragged {
    /// Bytes moved.
    pub moved_bytes: u64,
    /// Parts for which there was no better place.
    pub no_room: u64,
}

/// Defragments all files, a stretch at a time.
///
/// # Errors
/// What the file system reports; not that a file is gone.
pub fn defrag_all(fs: &Arc<Filesystem>, moves_kept: bool) -> Result<Defragged> {
    let mut done = Defragged::default();
    for candidate in survey(fs, moves_kept)?.candidates {
        let mut from = Some(LogicalBlock(0));
        while let Some(at) = from {
            let options = DefragOptions {
                moves_kept,
                bytes_max: 1 << 20,
                until: never(),
            };
            let inode = match fs.inode(candidate.inode, candidate.generation) {
                Err(Error::Stale) => break,
                found => found?,
            };
            let progress = match Defrag::new(fs, options).file(&inode, at) {
                Err(Error::Stale) => break,
                progress => progress?,
            };
            done.moved_bytes += progress.moved_bytes;
            done.no_room += progress.no_room;
            from = progress.next;
        }
    }
    Ok(done)
}

/// Where a file has data and where holes, its times, and all blocks that are its: what a move of its
/// data leaves alone.
///
/// # Errors
/// What the file system reports.
pub fn shape(fs: &Filesystem, inode: &Arc<Inode>) -> Result<String> {
    let attr = fs.attr(inode);
    let mut text = format!("{:?} {:?} {:?} at", attr.mtime, attr.ctime, attr.atime);
    let mut at = 0;
    while let Ok(start) = fs.seek(inode, at, SeekTarget::Data) {
        at = fs.seek(inode, start, SeekTarget::Hole)?;
        let _ = write!(text, " {start}..{at}");
    }
    let layout: FileLayout = fs.file_layout(inode, true)?;
    let _ = write!(text, ", {} blocks", layout.blocks);
    Ok(text)
}

/// Makes files of `blocks` blocks each whose blocks lie in turns, backwards.
///
/// # Errors
/// What the file system reports.
pub fn make_fragmented(
    fs: &Arc<Filesystem>,
    names: &[&str],
    blocks: u64,
) -> Result<Vec<Arc<Inode>>> {
    let root = fs.root()?;
    let node = NewNode {
        mode: 0o100_644,
        ..NewNode::default()
    };
    let files: Vec<Arc<Inode>> = names
        .iter()
        .map(|name| fs.create(&root, name.as_bytes(), &node))
        .collect::<Result<_>>()?;
    let size = u64::from(fs.space().block_size);
    for block in (0..blocks).rev() {
        for (number, file) in files.iter().enumerate() {
            let byte = (block as u8).wrapping_mul(31).wrapping_add(number as u8) | 1;
            let content = vec![byte; size as usize];
            let source = &mut SliceSource::new(&content);
            let options = WriteOptions::default();
            fs.write(file, block * size, content.len(), source, options)?;
            fs.finish_writing(file);
        }
    }
    Ok(files)
}
