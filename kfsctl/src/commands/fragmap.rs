//! `kfsctl fragmap`: what is where on the volume, or where a file lies.

use super::defrag::percent;
use super::picture::{self, Picture};
use super::volume_map::{self, PICTURE_COLUMNS, Style, painted, shade};
use crate::args::Target;
use crate::target::Executor;
use anyhow::Context;
use clap::Args;
use kfs_disk::{Bytes, Count};
use kfsctl::Request;
use kfsctl::fragmap::{ExtentInfo, FileMapInfo, VolumeMapInfo};
use std::fmt::Write;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Rows of a map on a terminal, and characters in a row where nobody says how many fit.
const ROWS: usize = 24;
const COLUMNS: usize = 72;

/// Bytes of a window of a mapping.
const WINDOW_BYTES: u64 = 2 << 20;

/// Side of the picture of a file.
const SIDE: u32 = 640;
const MARGIN: u32 = 10;

/// What `kfsctl fragmap` is told.
#[derive(Debug, Args)]
pub(crate) struct FragmapArgs {
    /// A file in the volume, from its root; the whole volume where none is given
    path: Option<String>,

    /// Write a picture, an .svg or a .png
    #[arg(short, long, value_name = "FILE", value_parser = parse_picture_path)]
    output: Option<PathBuf>,
}

/// The path of a picture, whose format its ending tells.
fn parse_picture_path(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    match picture::Format::of(&path) {
        Some(_) => Ok(path),
        None => Err("a picture ends in .svg or .png".into()),
    }
}

/// Shows a map.
pub(crate) fn run(target: &Target, args: &FragmapArgs, as_json: bool) -> anyhow::Result<ExitCode> {
    let mut executor = Executor::find(target, true)?;
    let shown = show(&mut executor, args, as_json);
    let finished = executor.finish();
    let text = shown?;
    finished?;
    crate::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn show(executor: &mut Executor, args: &FragmapArgs, as_json: bool) -> anyhow::Result<String> {
    match &args.path {
        Some(path) => show_file(executor, path, args, as_json),
        None => show_volume(executor, args, as_json),
    }
}

/// How much fits, and what can be shown.
fn style() -> Style {
    let is_terminal = std::io::stdout().is_terminal();
    let width = rustix::termios::tcgetwinsize(std::io::stdout())
        .ok()
        .map(|size| usize::from(size.ws_col))
        .filter(|width| is_terminal && *width > 0);
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
        .unwrap_or_default()
        .to_ascii_lowercase();
    let is_utf8 = locale.contains("utf-8") || locale.contains("utf8");
    Style {
        columns: width.unwrap_or(COLUMNS).clamp(16, 160),
        unicode: is_terminal && is_utf8,
        colours: is_terminal && std::env::var_os("NO_COLOR").is_none(),
    }
}

fn show_volume(
    executor: &mut Executor,
    args: &FragmapArgs,
    as_json: bool,
) -> anyhow::Result<String> {
    let style = style();
    let cells = match &args.output {
        Some(_) => PICTURE_COLUMNS * PICTURE_COLUMNS,
        None if as_json => 1024,
        None => (style.columns * ROWS) as u32,
    };
    let value = executor.request(&Request::Fragmap {
        path: None,
        cells: Some(cells),
        from: 0,
    })?;
    if as_json && args.output.is_none() {
        return Ok(format!("{value}\n"));
    }
    let map: VolumeMapInfo =
        serde_json::from_value(value.clone()).context("the answer cannot be read")?;
    let Some(output) = &args.output else {
        return Ok(volume_map::to_text(&map, style));
    };
    volume_map::to_picture(&map).save(output)?;
    Ok(if as_json {
        format!("{value}\n")
    } else {
        // A PNG has no text.
        written(output) + &volume_map::legend(&map, style)
    })
}

fn written(path: &Path) -> String {
    format!("{} is written\n", path.display())
}

/// All of a file's map, which comes in parts.
fn file_map(executor: &mut Executor, path: &str) -> anyhow::Result<FileMapInfo> {
    let mut whole: Option<FileMapInfo> = None;
    let mut from = 0;
    loop {
        let value = executor.request(&Request::Fragmap {
            path: Some(path.to_owned()),
            cells: None,
            from,
        })?;
        let part: FileMapInfo =
            serde_json::from_value(value).context("the answer cannot be read")?;
        let next = part.next.filter(|next| *next > from);
        match &mut whole {
            Some(whole) => whole.extents.extend(part.extents),
            None => whole = Some(part),
        }
        match next {
            Some(next) => from = next,
            None => break,
        }
    }
    let mut map = whole.unwrap_or_default();
    map.next = None;
    Ok(map)
}

fn show_file(
    executor: &mut Executor,
    path: &str,
    args: &FragmapArgs,
    as_json: bool,
) -> anyhow::Result<String> {
    let map = file_map(executor, path)?;
    if let Some(output) = &args.output {
        file_picture(&map, path).save(output)?;
    }
    if as_json {
        return Ok(format!("{}\n", serde_json::to_string(&map)?));
    }
    Ok(match &args.output {
        Some(output) => written(output),
        None => file_text(&map, style()),
    })
}

fn file_text(map: &FileMapInfo, style: Style) -> String {
    let mut text = String::new();
    let cells = (style.columns * 4) as u64;
    let cell = map.volume_blocks.div_ceil(cells).max(1);
    let mut used = vec![0u64; map.volume_blocks.div_ceil(cell).min(cells) as usize];
    for extent in &map.extents {
        let mut at = extent.physical;
        let end = at.saturating_add(extent.blocks).min(map.volume_blocks);
        while at < end {
            let upto = (at / cell + 1).saturating_mul(cell).min(end);
            if let Some(used) = used.get_mut((at / cell) as usize) {
                *used += upto - at;
            }
            at = upto;
        }
    }
    for row in used.chunks(style.columns) {
        let row: String = row
            .iter()
            .map(|used| shade(*used, cell, style.unicode))
            .collect();
        let _ = writeln!(text, "{}", painted(&row, [0, 114, 178], style));
    }
    let cell_bytes = cell.saturating_mul(map.block_size_bytes);
    let _ = writeln!(text, "each sign is {} of the volume\n", Bytes(cell_bytes));
    text.push_str(&file_summary(map));
    let _ = writeln!(
        text,
        "{:>12} {:>14} {:>10}  FLAGS",
        "LOGICAL", "PHYSICAL", "BLOCKS"
    );
    for extent in &map.extents {
        let _ = writeln!(
            text,
            "{:>12} {:>14} {:>10}  {}",
            extent.logical,
            extent.physical,
            extent.blocks,
            flags(extent, map.block_size_bytes)
        );
    }
    text
}

fn file_summary(map: &FileMapInfo) -> String {
    let mut text = format!(
        "inode {}, {}, blocks of {}\n",
        map.inode,
        Bytes(map.size_bytes),
        Bytes(map.block_size_bytes)
    );
    if let Some(layout) = &map.layout {
        let _ = writeln!(
            text,
            "{}, {}, {} in aligned 2 MiB",
            Count(layout.fragments, "fragment"),
            Count(layout.extents, "extent"),
            percent(layout.aligned_bytes, layout.bytes),
        );
    }
    text
}

/// What is to be said of an extent.
fn flags(extent: &ExtentInfo, block_size: u64) -> String {
    let mut flags = Vec::new();
    let window = (WINDOW_BYTES / block_size.max(1)).max(1);
    // Some window of the file lies in it as it should.
    let next = extent.logical.checked_next_multiple_of(window);
    let first = next.unwrap_or(u64::MAX);
    let is_whole = first.saturating_add(window) <= extent.logical.saturating_add(extent.blocks);
    let lies_at = extent.physical.saturating_add(first - extent.logical);
    if is_whole && lies_at.is_multiple_of(window) {
        flags.push("aligned".to_string());
    }
    if extent.unwritten {
        flags.push("unwritten".into());
    }
    match extent.kept_blocks {
        0 => {}
        kept if kept == extent.blocks => flags.push("kept".into()),
        kept => flags.push(format!("kept:{kept}")),
    }
    flags.join(" ")
}

/// Each extent as a line: to the right the file goes on, downwards the volume.
fn file_picture(map: &FileMapInfo, path: &str) -> Picture {
    let mut picture = Picture::new(SIDE + 2 * MARGIN, SIDE + 2 * MARGIN + 60);
    picture.fill((MARGIN, MARGIN), (SIDE, SIDE), [240, 240, 240]);
    let end = map.extents.last();
    let file_blocks = end
        .map_or(1, |last| last.logical.saturating_add(last.blocks))
        .max(1);
    let scale =
        |at: u64, whole: u64| (u128::from(at) * u128::from(SIDE) / u128::from(whole)) as u32;
    for extent in &map.extents {
        let last = extent.logical.saturating_add(extent.blocks);
        let (left, right) = (
            scale(extent.logical, file_blocks),
            scale(last, file_blocks).max(scale(extent.logical, file_blocks) + 1),
        );
        let volume = map.volume_blocks.max(1);
        let top = scale(extent.physical.min(volume - 1), volume);
        let bottom = extent.physical.saturating_add(extent.blocks).min(volume);
        let height = scale(bottom, volume).saturating_sub(top).max(2);
        let colour = match (extent.unwritten, extent.kept_blocks > 0) {
            (true, _) => [160, 160, 160],
            (_, true) => [213, 94, 0],
            _ => [0, 114, 178],
        };
        picture.fill(
            (MARGIN + left, MARGIN + top),
            (right - left, height),
            colour,
        );
    }
    let below = SIDE + 2 * MARGIN + 12;
    picture.text(MARGIN, below, path);
    for (at, line) in file_summary(map).lines().enumerate() {
        picture.text(MARGIN, below + 18 * (at as u32 + 1), line);
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(logical: u64, physical: u64, blocks: u64) -> ExtentInfo {
        ExtentInfo {
            logical,
            physical,
            blocks,
            ..ExtentInfo::default()
        }
    }

    #[test]
    fn an_extent_says_whether_it_can_be_mapped() {
        assert_eq!(flags(&extent(0, 1024, 512), 4096), "aligned");
        assert_eq!(flags(&extent(0, 1024, 511), 4096), "");
        assert_eq!(flags(&extent(500, 1012, 600), 4096), "aligned");
        assert_eq!(flags(&extent(500, 1013, 600), 4096), "");
        let kept = ExtentInfo {
            kept_blocks: 3,
            unwritten: true,
            ..extent(1, 2, 4)
        };
        assert_eq!(flags(&kept, 4096), "unwritten kept:3");
    }

    #[test]
    fn nonsense_does_not_panic() {
        let mut map = FileMapInfo {
            extents: vec![
                extent(u64::MAX - 1, u64::MAX - 1, 7),
                extent(0, 5, u64::MAX),
            ],
            block_size_bytes: 0,
            volume_blocks: 0,
            ..FileMapInfo::default()
        };
        let style = Style {
            columns: 16,
            unicode: false,
            colours: false,
        };
        for volume_blocks in [0, 1, 1000, u64::MAX] {
            map.volume_blocks = volume_blocks;
            file_text(&map, style);
            file_picture(&map, "/a");
        }
    }
}
