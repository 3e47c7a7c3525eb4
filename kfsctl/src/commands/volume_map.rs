//! The map of a volume: for a terminal in characters and colours, or as a picture.

use super::defrag::percent;
use super::picture::{Colour, Picture};
use kfs_disk::{Bytes, Count};
use kfsctl::fragmap::{Cell, VolumeMapInfo};
use std::fmt::Write;

/// Snapshots that have a letter or colour of their own.
const SNAPSHOTS_MAX: usize = 26;

/// Width and height of a cell in a picture, and cells in a row.
const CELL: u32 = 12;
pub(super) const PICTURE_COLUMNS: u32 = 64;
const MARGIN: u32 = 10;
const LINE: u32 = 18;

/// What can be in a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Used,
    Metadata,
    Journal,
    Store,
    /// By the snapshot at this place.
    Alone(Option<usize>),
    Shared,
    Free,
}

/// How a map is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Style {
    /// Characters in a row.
    pub(super) columns: usize,
    /// Others than ASCII.
    pub(super) unicode: bool,
    pub(super) colours: bool,
}

fn parts(cell: &Cell) -> [(Part, u64); 7] {
    [
        (Part::Used, cell.used),
        (Part::Metadata, cell.metadata),
        (Part::Journal, cell.journal),
        (Part::Store, cell.store),
        (Part::Alone(cell.pinned_by), cell.pinned_alone),
        (Part::Shared, cell.pinned_shared),
        (Part::Free, cell.free),
    ]
}

impl Part {
    fn colour(self) -> Colour {
        /// Told apart from each other and from the rest.
        const ALONE: [Colour; 6] = [
            [230, 159, 0],
            [213, 94, 0],
            [204, 121, 167],
            [240, 190, 60],
            [170, 70, 20],
            [230, 130, 190],
        ];
        match self {
            Self::Used => [0, 114, 178],
            Self::Metadata => [90, 90, 90],
            Self::Journal => [0, 158, 115],
            Self::Store => [86, 180, 233],
            Self::Alone(at) => ALONE[at.unwrap_or(0) % ALONE.len()],
            Self::Shared => [140, 20, 60],
            Self::Free => [230, 230, 230],
        }
    }

    fn letter(self) -> char {
        match self {
            Self::Used => '#',
            Self::Metadata => 'M',
            Self::Journal => 'J',
            Self::Store => 'S',
            Self::Alone(Some(at)) if at < SNAPSHOTS_MAX => char::from(b'a' + at as u8),
            Self::Alone(_) => '?',
            Self::Shared => '+',
            Self::Free => '.',
        }
    }
}

/// A shade for the part of a cell that is in use.
pub(super) fn shade(part: u64, whole: u64, unicode: bool) -> char {
    let quarter = if part == 0 {
        0
    } else {
        1 + (part - 1).saturating_mul(4) / whole.max(1)
    };
    let shades = if unicode {
        ['\u{b7}', '\u{2591}', '\u{2592}', '\u{2593}', '\u{2588}']
    } else {
        ['.', ':', '-', '=', '#']
    };
    shades[quarter.min(4) as usize]
}

fn character(cell: &Cell, style: Style) -> (char, Part) {
    let parts = parts(cell);
    let whole: u64 = parts.iter().map(|(_, blocks)| blocks).sum();
    let busy = parts.iter().filter(|(part, _)| *part != Part::Free);
    let most = busy.copied().max_by_key(|(_, blocks)| *blocks);
    match most {
        None | Some((_, 0)) => (shade(0, 1, style.unicode), Part::Free),
        Some((Part::Used, _)) => {
            let character = shade(whole - cell.free, whole, style.unicode);
            (character, Part::Used)
        }
        Some((part, _)) => (part.letter(), part),
    }
}

/// Text in a colour, if colours are wanted.
pub(super) fn painted(text: &str, [red, green, blue]: Colour, style: Style) -> String {
    if style.colours {
        format!("\x1b[38;2;{red};{green};{blue}m{text}\x1b[0m")
    } else {
        text.into()
    }
}

/// The map in rows of characters, with a legend.
pub(super) fn to_text(map: &VolumeMapInfo, style: Style) -> String {
    let mut text = String::new();
    for row in map.cells.chunks(style.columns.max(1)) {
        let characters: Vec<(char, Part)> = row.iter().map(|cell| character(cell, style)).collect();
        for run in characters.chunk_by(|a, b| a.1 == b.1) {
            let run_text: String = run.iter().map(|(character, _)| character).collect();
            // What is free needs no colour.
            if run[0].1 == Part::Free {
                text.push_str(&run_text);
            } else {
                text.push_str(&painted(&run_text, run[0].1.colour(), style));
            }
        }
        text.push('\n');
    }
    text.push('\n');
    text + &legend(map, style)
}

fn total(map: &VolumeMapInfo) -> Cell {
    let cells = map.cells.iter().copied();
    cells.fold(Cell::default(), Cell::plus)
}

/// Snapshots that alone keep something, by their places.
fn holders(map: &VolumeMapInfo) -> Vec<usize> {
    let mut holders: Vec<usize> = map.cells.iter().filter_map(|cell| cell.pinned_by).collect();
    holders.sort_unstable();
    holders.dedup();
    holders
}

/// What each sign means, and how much there is of it.
fn entries(map: &VolumeMapInfo) -> Vec<(Part, String)> {
    let total = total(map);
    let amount = |blocks: u64| {
        let bytes = blocks.saturating_mul(map.block_size_bytes);
        format!("{} ({})", Bytes(bytes), percent(blocks, map.blocks))
    };
    let mut entries = vec![
        (Part::Used, format!("used: {}", amount(total.used))),
        (
            Part::Free,
            format!(
                "free: {}, in {}, the longest {}",
                amount(total.free),
                Count(map.free_runs, "run"),
                Bytes(map.free_run_max_blocks.saturating_mul(map.block_size_bytes))
            ),
        ),
        (
            Part::Metadata,
            format!("metadata: {}", amount(total.metadata)),
        ),
        (Part::Journal, format!("journal: {}", amount(total.journal))),
    ];
    if total.store > 0 {
        let text = format!("snapshot store: {}", amount(total.store));
        entries.push((Part::Store, text));
    }
    for at in holders(map) {
        let name = map.snapshots.get(at).map_or("?", String::as_str);
        let text = format!("mostly kept by snapshot '{}' alone", name.escape_debug());
        entries.push((Part::Alone(Some(at)), text));
    }
    if total.pinned_alone > 0 {
        let text = format!("kept by one snapshot: {}", amount(total.pinned_alone));
        entries.push((Part::Alone(None), text));
    }
    if total.pinned_shared > 0 {
        let text = format!("kept by several snapshots: {}", amount(total.pinned_shared));
        entries.push((Part::Shared, text));
    }
    entries
}

/// What each sign of a map means.
pub(super) fn legend(map: &VolumeMapInfo, style: Style) -> String {
    let mut text = format!(
        "each sign is {}\n",
        Bytes(map.cell_blocks.saturating_mul(map.block_size_bytes))
    );
    for (part, what) in entries(map) {
        let sign = match part {
            Part::Used => shade(4, 4, style.unicode),
            Part::Free => shade(0, 1, style.unicode),
            // All of their letters.
            Part::Alone(None) => ' ',
            part => part.letter(),
        };
        let sign = painted(&sign.to_string(), part.colour(), style);
        let _ = writeln!(text, "{sign} {what}");
    }
    text
}

/// The map as a picture: each cell shows its parts in proportion.
pub(super) fn to_picture(map: &VolumeMapInfo) -> Picture {
    let rows = (map.cells.len() as u32).div_ceil(PICTURE_COLUMNS);
    let entries = entries(map);
    let legend_top = MARGIN * 2 + rows * CELL;
    let height = legend_top + LINE * (entries.len() as u32 + 1) + MARGIN;
    let mut picture = Picture::new(PICTURE_COLUMNS * CELL + 2 * MARGIN, height);
    for (at, cell) in map.cells.iter().enumerate() {
        let (column, row) = (at as u32 % PICTURE_COLUMNS, at as u32 / PICTURE_COLUMNS);
        let corner = (MARGIN + column * CELL, MARGIN + row * CELL);
        draw_cell(&mut picture, cell, corner);
    }
    let cell_bytes = map.cell_blocks.saturating_mul(map.block_size_bytes);
    let title = format!("each square is {}", Bytes(cell_bytes));
    picture.text(MARGIN, legend_top + LINE - 5, title);
    for (at, (part, what)) in entries.iter().enumerate() {
        let top = legend_top + LINE * (at as u32 + 1);
        if *part != Part::Alone(None) {
            picture.fill((MARGIN, top + 2), (CELL, CELL), part.colour());
        }
        picture.text(MARGIN + CELL + 8, top + LINE - 6, what);
    }
    picture
}

fn draw_cell(picture: &mut Picture, cell: &Cell, (x, y): (u32, u32)) {
    let inside = CELL - 1;
    picture.fill((x, y), (inside, inside), Part::Free.colour());
    let parts = parts(cell);
    let whole: u64 = parts.iter().map(|(_, blocks)| blocks).sum();
    let mut left = x;
    for (part, blocks) in parts {
        if part == Part::Free || blocks == 0 {
            continue;
        }
        // What is there is seen, however little it is.
        let width = (blocks.saturating_mul(inside.into()) / whole.max(1)).max(1) as u32;
        let width = width.min(x + inside - left.min(x + inside));
        picture.fill((left, y), (width, inside), part.colour());
        left += width;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map() -> VolumeMapInfo {
        let cell = |used, free| Cell {
            used,
            free,
            ..Cell::default()
        };
        VolumeMapInfo {
            block_size_bytes: 4096,
            blocks: 500,
            cell_blocks: 100,
            cells: vec![
                Cell {
                    metadata: 90,
                    free: 10,
                    ..Cell::default()
                },
                cell(100, 0),
                cell(30, 70),
                Cell {
                    pinned_alone: 60,
                    pinned_by: Some(1),
                    free: 40,
                    ..Cell::default()
                },
                cell(0, 100),
            ],
            free_runs: 4,
            free_run_max_blocks: 100,
            snapshots: vec!["old".into(), "new\x1b".into()],
        }
    }

    #[test]
    fn a_terminal_without_anything_gets_ascii() {
        let style = Style {
            columns: 3,
            unicode: false,
            colours: false,
        };
        let text = to_text(&map(), style);
        assert!(text.is_ascii(), "{text}");
        assert!(text.starts_with("M#-\nb.\n"), "{text}");
        assert!(text.contains("snapshot 'new\\u{1b}' alone"), "{text}");
    }

    #[test]
    fn colours_and_blocks_where_they_can_be_seen() {
        let style = Style {
            columns: 80,
            unicode: true,
            colours: true,
        };
        let text = to_text(&map(), style);
        assert!(text.contains("\u{2588}") && text.contains("\x1b[38;2;"));
        assert_eq!(text.matches('\x1b').count() % 2, 0, "colours end");
    }

    #[test]
    fn a_picture_of_nothing_and_of_nonsense() {
        to_picture(&VolumeMapInfo::default());
        let mut nonsense = map();
        nonsense.cells[0].used = u64::MAX / 16;
        nonsense.cell_blocks = u64::MAX;
        nonsense.cells[3].pinned_by = Some(usize::MAX);
        to_picture(&nonsense);
        to_text(
            &nonsense,
            Style {
                columns: 0,
                unicode: true,
                colours: false,
            },
        );
    }
}
