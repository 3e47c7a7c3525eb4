//! Random operations, the same for the same seed and the same answers.
//!
//! The generator remembers which names were made, so that most operations meet something; the rest go
//! to names that are not there, through files, around links and beyond limits. Offsets and lengths are
//! likely to be at the edges of blocks.

use super::answer::Answer;
use super::operation::{Action, Operation, SLOTS, Target, USERS};
use super::random::Random;
use rustix::fs::OFlags;
use std::collections::BTreeMap;

mod attributes;
mod data;

/// One of so many operations is watched: which times of the file and its directory did it change?
const WATCH_EVERY: u64 = 6;

/// Names that files get: few, so that operations meet.
const NAMES: &str = "abcdefghij";

/// What a name was made as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Directory,
    File,
    Other,
}

/// What a generator does, or leaves out.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Offsets beyond the largest file, times that no inode holds: not where Linux delays writes for
    /// FUSE and keeps times itself, because it does not know these limits; nor where there are
    /// capabilities, which it takes away before it asks.
    pub beyond_limits: bool,
    /// Writing to mapped pages, which lets Linux allocate more than was written: holes are not
    /// compared then. Not with append-only files, which Linux lets be mapped where FUSE serves them.
    pub maps: bool,
    /// File capabilities. There are no punched holes then: beyond the end of a file they leave it
    /// alone in ext4, but Linux takes capabilities away before it asks FUSE.
    pub capabilities: bool,
    /// What changes times: not where times have whole seconds only, or Linux keeps them for FUSE.
    pub watches: bool,
    /// Immutable and append-only files, which make many operations fail: not where Linux delays writes
    /// for FUSE, because it does not know these flags.
    pub forbids_changes: bool,
}

/// Makes operations.
pub struct Generator {
    random: Random,
    rules: Rules,
    known: BTreeMap<String, Kind>,
    /// What each actor's slots were opened by, as far as is known.
    open: [[Option<String>; SLOTS]; USERS.len()],
}

impl Generator {
    /// Operations of a seed.
    pub fn new(seed: u64, rules: Rules) -> Self {
        Self {
            random: Random::new(seed),
            rules,
            known: BTreeMap::new(),
            open: Default::default(),
        }
    }

    /// The next operation.
    pub fn next_operation(&mut self) -> Operation {
        // Root can do more than others, so that they have something to work on.
        let actor = [0, 0, 0, 1, 2, 3][self.random.index(2 + USERS.len())];
        let action = match self.random.below(100) {
            0..44 => self.data(actor),
            44..72 => self.names(actor),
            72..97 => self.attributes(),
            _ => self.crowd(),
        };
        let mut watched = Vec::new();
        if self.rules.watches && self.random.one_in(WATCH_EVERY) {
            watched = action.paths();
            let opened = action
                .slot()
                .and_then(|slot| self.open[actor][slot].clone());
            watched.extend(opened.filter(|path| !path.is_empty()));
        }
        Operation {
            actor,
            action,
            watched,
        }
    }

    /// Learns what an operation did.
    pub fn learn(&mut self, operation: &Operation, answer: &Answer) {
        let done = answer.is_success();
        if let Action::Open { slot, path, at, .. } = &operation.action {
            self.open[operation.actor][*slot] = (done && at.is_none()).then(|| path.clone());
        }
        if !done {
            return;
        }
        match &operation.action {
            Action::Open {
                at: None,
                path,
                flags,
                ..
            } if flags & (OFlags::DIRECTORY | OFlags::TMPFILE).bits() == 0 => {
                self.insert(path, Kind::File);
            }
            Action::Mkdir { at: None, path, .. } => {
                self.known.insert(path.clone(), Kind::Directory);
            }
            Action::Mknod { path, .. } | Action::Symlink { path, .. } => {
                self.insert(path, Kind::Other);
            }
            Action::Link { to, .. } | Action::LinkSlot { to, .. } => self.insert(to, Kind::File),
            Action::Unlink { at: None, path } | Action::Rmdir { path } => {
                self.known.remove(path);
            }
            Action::Rename { from, to, flags } => self.rename(from, to, *flags),
            _ => {}
        }
    }

    fn insert(&mut self, path: &str, kind: Kind) {
        self.known.entry(path.into()).or_insert(kind);
    }

    fn rename(&mut self, from: &str, to: &str, flags: u32) {
        let moved = self.take_below(from);
        let replaced = self.take_below(to);
        if flags == EXCHANGE {
            for (rest, kind) in replaced {
                self.known.insert(format!("{from}{rest}"), kind);
            }
        }
        for (rest, kind) in moved {
            self.known.insert(format!("{to}{rest}"), kind);
        }
    }

    /// Forgets a path and what is below it; gives the ends of their paths.
    fn take_below(&mut self, path: &str) -> Vec<(String, Kind)> {
        let below = format!("{path}/");
        let taken: Vec<String> = self
            .known
            .keys()
            .filter(|known| *known == path || known.starts_with(&below))
            .cloned()
            .collect();
        taken
            .into_iter()
            .filter_map(|known| {
                let kind = self.known.remove(&known)?;
                Some((known[path.len()..].to_owned(), kind))
            })
            .collect()
    }

    fn known(&mut self, wanted: impl Fn(Kind) -> bool) -> Option<String> {
        let paths: Vec<&String> = self
            .known
            .iter()
            .filter(|(_, kind)| wanted(**kind))
            .map(|(path, _)| path)
            .collect();
        (!paths.is_empty()).then(|| paths[self.random.index(paths.len())].clone())
    }

    fn directory(&mut self) -> String {
        let directory = self.known(|kind| kind == Kind::Directory);
        // Not too deep, and the top often enough.
        match directory {
            Some(path) if path.matches('/').count() < 6 && !self.random.one_in(4) => path,
            _ => String::new(),
        }
    }

    fn name(&mut self) -> String {
        match self.random.below(60) {
            0 => "n".repeat(254 + self.random.index(3)),
            1 => "\u{e4}\u{1f980} \\\n\"".into(),
            2 => format!("{}-name", "long".repeat(1 + self.random.index(60))),
            _ => NAMES[self.random.index(NAMES.len())..][..1].into(),
        }
    }

    /// A path where something may be made.
    fn new_path(&mut self) -> String {
        if self.random.one_in(12) {
            return self.path();
        }
        let directory = self.directory();
        format!("{directory}/{}", self.name())
    }

    /// A path where something may be.
    fn path(&mut self) -> String {
        match self.random.below(40) {
            0..30 => self.known(|_| true).unwrap_or_else(|| "/".into()),
            30..34 => self.new_path_of(|_| true),
            34 => self.odd_path(),
            _ => {
                let directory = self.directory();
                format!("{directory}/{}", self.name())
            }
        }
    }

    fn file(&mut self) -> String {
        match self.random.below(10) {
            0 => self.path(),
            _ => self
                .known(|kind| kind == Kind::File)
                .unwrap_or_else(|| "/a".into()),
        }
    }

    /// A name in what may be a directory, or may not.
    fn new_path_of(&mut self, wanted: impl Fn(Kind) -> bool) -> String {
        let directory = self.known(wanted).unwrap_or_default();
        format!("{directory}/{}", self.name())
    }

    fn odd_path(&mut self) -> String {
        let known = self.known(|_| true).unwrap_or_default();
        match self.random.below(9) {
            0 => String::new(),
            1 => "/".into(),
            2 => format!("{known}/"),
            3 => format!("{known}/."),
            4 => format!("{known}/.."),
            5 => format!("{known}/../{}", self.name()),
            6 => format!("/missing/{}", self.name()),
            7 => format!("{known}//{}", self.name()),
            _ => format!("/{}", "deep/".repeat(900)),
        }
    }

    fn target(&mut self) -> Target {
        match self.random.below(10) {
            0..6 => Target::Path(self.path()),
            6..8 => Target::Link(self.path()),
            _ => Target::Slot(self.random.index(SLOTS)),
        }
    }

    /// Set-group-id bits come with the group's execution bit, without which they are not compared.
    fn mode(&mut self) -> u32 {
        let mode = self.any_mode();
        if mode & 0o2000 == 0 {
            mode
        } else {
            mode | 0o010
        }
    }

    fn any_mode(&mut self) -> u32 {
        // Mostly such that others can go on.
        match self.random.below(8) {
            0..4 => 0o777,
            4 => 0o644,
            5 => self.random.below(0o1000) as u32,
            6 => [0o2777, 0o1777, 0o4755, 0o2755, 0o6777][self.random.index(5)],
            _ => self.random.below(0o10000) as u32,
        }
    }

    fn at(&mut self) -> Option<usize> {
        self.random.one_in(8).then(|| self.random.index(SLOTS))
    }

    /// Names are made, changed and taken away.
    fn names(&mut self, actor: usize) -> Action {
        let at = self.at();
        let relative = |generator: &mut Self, path: String| match at {
            Some(_) => generator.name(),
            None => path,
        };
        match self.random.below(30) {
            0..6 => {
                let path = self.new_path();
                let path = relative(self, path);
                let mode = self.mode();
                Action::Mkdir { at, path, mode }
            }
            6..8 => self.special(actor),
            8..11 => Action::Symlink {
                target: self.link_target(),
                path: self.new_path(),
            },
            11..14 => Action::Link {
                from: self.path(),
                to: self.new_path(),
                follow: self.random.one_in(2),
            },
            14..16 => Action::LinkSlot {
                slot: self.random.index(SLOTS),
                to: self.new_path(),
            },
            16..19 => {
                let path = self.path();
                let path = relative(self, path);
                Action::Unlink { at, path }
            }
            19..22 => Action::Rmdir { path: self.path() },
            22..28 => {
                let to = if self.random.one_in(2) {
                    self.path()
                } else {
                    self.new_path()
                };
                Action::Rename {
                    from: self.path(),
                    to,
                    flags: [0, 0, 0, NOREPLACE, EXCHANGE, EXCHANGE, WHITEOUT, 3]
                        [self.random.index(8)],
                }
            }
            28 => Action::ReadLink { path: self.path() },
            _ => Action::List { path: self.path() },
        }
    }

    fn special(&mut self, actor: usize) -> Action {
        let kind = [
            0o010_000, 0o010_000, 0o140_000, 0o020_000, 0o060_000, 0o100_000, 0, 0o040_000,
        ][self.random.index(8)];
        // Devices that no driver serves; zero is what overlayfs marks whiteouts with.
        let device = [(0, 0), (4000, 7), (4001, 70_000), (4095, 1_048_575)][self.random.index(4)];
        let _ = actor;
        Action::Mknod {
            path: self.new_path(),
            mode: kind | self.mode(),
            device,
        }
    }

    fn link_target(&mut self) -> String {
        match self.random.below(8) {
            0 => "x".repeat(50 + self.random.index(20)),
            1 => format!("/{}", "0123456789/".repeat(self.random.index(400))),
            2 => ["..", ".", "../a", "b/../c"][self.random.index(4)].into(),
            _ => self.path(),
        }
    }

    /// Many names at once, which make hash trees.
    fn crowd(&mut self) -> Action {
        let path = self.directory();
        let path = if path.is_empty() { "/a".into() } else { path };
        let count = 1 + self.random.below(300) as u32;
        match self.random.below(10) {
            0..3 => Action::Populate { path, count },
            3..6 => Action::Depopulate { path, count },
            6 => Action::Umask {
                mode: [0, 0o022, 0o077, 0o027][self.random.index(4)],
            },
            _ => Action::List { path },
        }
    }
}

const NOREPLACE: u32 = 1;
const EXCHANGE: u32 = 2;
const WHITEOUT: u32 = 4;
