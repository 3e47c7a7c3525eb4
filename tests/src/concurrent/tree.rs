//! Random calls on a few shared directories, and the model of a tree that says how they are answered.
//!
//! ```text
//!  root/a    a/c   directories that calls work in: by handle, wherever they are moved
//!  root/b    b/d
//!  a/x, b/x        files that get and lose names; open all the time, so never deleted
//! ```

use super::linear::{Clock, Model, Timed};
use kfs::{Error, Filesystem, Inode, InodeNr, NewNode, RenameMode, Result};
use kfs_disk::testing::SplitMix64;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::ControlFlow;
use std::sync::Arc;

/// Number of a file or directory in the model: those there are from the beginning, then each made by
/// a call, by the call's index.
type Id = usize;
/// A letter.
type Name = u8;
/// An inode, told from others that had its number before.
type Identity = (InodeNr, u32);

const ROOT: Id = 0;
/// Directories: root, a, b, a/c, b/d.
const DIRECTORIES: usize = 5;
/// Files: a/x, b/x.
const FILES: usize = 2;
/// What calls have made comes after what was there.
const MADE: usize = DIRECTORIES + FILES;
const NAMES: &[Name] = b"cdxy";

/// A call on the tree.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    /// Makes a file.
    Create(Id, Name),
    /// Makes a directory.
    MakeDirectory(Id, Name),
    /// Gives a file another name.
    Link(Id, Id, Name),
    /// Takes a name of a file away.
    Unlink(Id, Name),
    /// Removes a directory.
    RemoveDirectory(Id, Name),
    /// Renames.
    Rename(Id, Name, Id, Name, RenameMode),
    /// Looks a name up.
    Lookup(Id, Name),
    /// Lists a directory.
    List(Id),
    /// Commits; what is seen stays the same.
    Sync,
}

/// What a call can fail with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    NotFound,
    Exists,
    NotEmpty,
    IsADirectory,
    NotADirectory,
    IntoItself,
}

/// How a call was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Answer<I> {
    Done,
    Found(I),
    /// Names and what they stand for, without `.` and `..`; and what `..` stands for.
    Listed(BTreeMap<Name, InodeNr>, Option<InodeNr>),
    Failed(Failure),
}

/// A call with its answer, as it was recorded.
#[derive(Clone, Debug)]
pub struct Recorded {
    op: Op,
    answer: Answer<Identity>,
}

impl Recorded {
    /// The same call with an answer that nothing allows: for tests of the search itself.
    #[must_use]
    pub fn falsified(&self) -> Self {
        let answer = match &self.answer {
            Answer::Done | Answer::Found(_) => Answer::Failed(Failure::NotFound),
            Answer::Listed(..) => Answer::Listed(BTreeMap::from([(b'?', InodeNr(1))]), None),
            Answer::Failed(_) => Answer::Done,
        };
        Self {
            op: self.op,
            answer,
        }
    }
}

/// The inodes that calls work on, held open like a client does.
pub struct Handles {
    fs: Arc<Filesystem>,
    inodes: Vec<Arc<Inode>>,
}

fn node(mode: u16) -> NewNode<'static> {
    NewNode {
        mode,
        ..NewNode::default()
    }
}

fn identity(inode: &Inode) -> Identity {
    (inode.nr(), inode.generation())
}

impl Handles {
    /// Makes the tree on an empty volume.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn prepare(fs: Arc<Filesystem>) -> Result<Self> {
        let directory = node(0o040_755);
        let root = fs.root()?;
        let a = fs.create(&root, b"a", &directory)?;
        let b = fs.create(&root, b"b", &directory)?;
        let c = fs.create(&a, b"c", &directory)?;
        let d = fs.create(&b, b"d", &directory)?;
        let ax = fs.create(&a, b"x", &node(0o100_644))?;
        let bx = fs.create(&b, b"x", &node(0o100_644))?;
        let inodes = vec![root, a, b, c, d, ax, bx];
        for inode in &inodes {
            fs.acquire(inode, 1);
        }
        Ok(Self { fs, inodes })
    }

    /// Gives everything back.
    ///
    /// # Errors
    /// What deleting what has no names any more reports.
    pub fn release(self) -> Result<()> {
        let release = |inode| self.fs.release(inode, 1);
        self.inodes.iter().try_for_each(release)
    }

    /// Does a call and records it.
    ///
    /// # Panics
    /// When it fails with what no tree explains.
    pub fn call(&self, op: Op) -> Recorded {
        let answer = self.answer(op).unwrap_or_else(|error| {
            let failure = match error {
                Error::NotFound => Failure::NotFound,
                Error::Exists => Failure::Exists,
                Error::NotEmpty => Failure::NotEmpty,
                Error::IsADirectory => Failure::IsADirectory,
                Error::NotADirectory => Failure::NotADirectory,
                Error::IntoItself => Failure::IntoItself,
                other => panic!("{op:?}: {other}"),
            };
            Answer::Failed(failure)
        });
        Recorded { op, answer }
    }

    fn answer(&self, op: Op) -> Result<Answer<Identity>> {
        let (fs, inode) = (&self.fs, |id: Id| &self.inodes[id]);
        match op {
            Op::Create(directory, name) => {
                let made = fs.create(inode(directory), &[name], &node(0o100_644))?;
                Ok(Answer::Found(identity(&made)))
            }
            Op::MakeDirectory(directory, name) => {
                let made = fs.create(inode(directory), &[name], &node(0o040_755))?;
                Ok(Answer::Found(identity(&made)))
            }
            Op::Link(file, directory, name) => {
                fs.link(inode(file), inode(directory), &[name])?;
                Ok(Answer::Done)
            }
            Op::Unlink(directory, name) => {
                fs.unlink(inode(directory), &[name])?;
                Ok(Answer::Done)
            }
            Op::RemoveDirectory(directory, name) => {
                fs.rmdir(inode(directory), &[name])?;
                Ok(Answer::Done)
            }
            Op::Rename(old, old_name, new, new_name, mode) => {
                fs.rename(inode(old), &[old_name], inode(new), &[new_name], mode)?;
                Ok(Answer::Done)
            }
            Op::Lookup(directory, name) => {
                let found = fs.lookup(inode(directory), &[name])?;
                Ok(Answer::Found(identity(&found)))
            }
            Op::List(directory) => list(fs, inode(directory)),
            Op::Sync => {
                fs.sync()?;
                Ok(Answer::Done)
            }
        }
    }
}

fn list(fs: &Filesystem, directory: &Inode) -> Result<Answer<Identity>> {
    let (mut names, mut parent) = (BTreeMap::new(), None);
    fs.list(directory, 0, &mut |listed| {
        match listed.name {
            b"." => {}
            b".." => parent = Some(listed.entry.inode),
            name => {
                let before = names.insert(name[0], listed.entry.inode);
                assert!(before.is_none(), "{name:?} is listed twice");
            }
        }
        ControlFlow::Continue(())
    })?;
    names.remove(&b'l'); // lost+found
    Ok(Answer::Listed(names, parent))
}

/// A random call.
pub fn random_op(random: &mut SplitMix64) -> Op {
    let mut below = |bound: usize| (random.next_u64() % bound as u64) as usize;
    let kind = below(20);
    let directory = 1 + below(DIRECTORIES - 1);
    let name = NAMES[below(NAMES.len())];
    match kind {
        0..=2 => Op::Create(directory, name),
        3 | 4 => Op::MakeDirectory(directory, name),
        5 | 6 => Op::Link(DIRECTORIES + below(FILES), directory, name),
        7 | 8 => Op::Unlink(directory, name),
        9 | 10 => Op::RemoveDirectory(directory, name),
        11..=15 => {
            let mode = match below(6) {
                0 => RenameMode::NoReplace,
                1 | 2 => RenameMode::Exchange,
                _ => RenameMode::Replace,
            };
            let new = 1 + below(DIRECTORIES - 1);
            Op::Rename(directory, name, new, NAMES[below(NAMES.len())], mode)
        }
        16 | 17 => Op::Lookup(directory, name),
        18 => Op::List(directory),
        _ => Op::Sync,
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Directory {
    /// Itself for the root; `None` when it was removed.
    parent: Option<Id>,
    entries: BTreeMap<Name, Id>,
}

/// The directories of the tree. Whatever is not among them is a file.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tree(BTreeMap<Id, Directory>);

impl Tree {
    fn beginning() -> Self {
        let directory = |parent, entries: &[(Name, Id)]| Directory {
            parent: Some(parent),
            entries: entries.iter().copied().collect(),
        };
        Self(BTreeMap::from([
            (0, directory(ROOT, &[(b'a', 1), (b'b', 2)])),
            (1, directory(0, &[(b'c', 3), (b'x', 5)])),
            (2, directory(0, &[(b'd', 4), (b'x', 6)])),
            (3, directory(1, &[])),
            (4, directory(2, &[])),
        ]))
    }

    fn is_directory(&self, id: Id) -> bool {
        self.0.contains_key(&id)
    }

    fn get(&self, directory: Id, name: Name) -> Option<Id> {
        self.0[&directory].entries.get(&name).copied()
    }

    fn check_alive(&self, directory: Id) -> std::result::Result<(), Failure> {
        let is_alive = self.0[&directory].parent.is_some();
        is_alive.then_some(()).ok_or(Failure::NotFound)
    }

    fn set(&mut self, directory: Id, name: Name, id: Option<Id>) {
        let holder = self.0.get_mut(&directory).expect("a directory");
        match id {
            Some(id) => holder.entries.insert(name, id),
            None => holder.entries.remove(&name),
        };
        if let Some(moved) = id.and_then(|id| self.0.get_mut(&id)) {
            moved.parent = Some(directory);
        }
    }

    /// What is above a directory that was not removed.
    fn above(&self, directory: Id) -> BTreeSet<Id> {
        let mut above = BTreeSet::new();
        let mut at = directory;
        while at != ROOT
            && let Some(parent) = self.0[&at].parent
        {
            above.insert(parent);
            at = parent;
        }
        above
    }

    fn free(&self, directory: Id, name: Name) -> std::result::Result<(), Failure> {
        self.check_alive(directory)?;
        match self.get(directory, name) {
            Some(_) => Err(Failure::Exists),
            None => Ok(()),
        }
    }

    /// Does what changes the tree; `made` is what a call that makes something would make.
    fn change(&mut self, op: Op, made: Id) -> std::result::Result<Answer<Id>, Failure> {
        match op {
            Op::Create(directory, name) => {
                self.free(directory, name)?;
                self.set(directory, name, Some(made));
                return Ok(Answer::Found(made));
            }
            Op::MakeDirectory(directory, name) => {
                self.free(directory, name)?;
                let (parent, entries) = (Some(directory), BTreeMap::new());
                self.0.insert(made, Directory { parent, entries });
                self.set(directory, name, Some(made));
                return Ok(Answer::Found(made));
            }
            Op::Link(file, directory, name) => {
                self.free(directory, name)?;
                self.set(directory, name, Some(file));
            }
            Op::Unlink(directory, name) => {
                self.check_alive(directory)?;
                let id = self.get(directory, name).ok_or(Failure::NotFound)?;
                if self.is_directory(id) {
                    return Err(Failure::IsADirectory);
                }
                self.set(directory, name, None);
            }
            Op::RemoveDirectory(directory, name) => {
                self.check_alive(directory)?;
                let id = self.get(directory, name).ok_or(Failure::NotFound)?;
                self.remove_directory(id)?;
                self.set(directory, name, None);
            }
            Op::Rename(old, old_name, new, new_name, mode) => {
                self.rename((old, old_name), (new, new_name), mode)?;
            }
            Op::Lookup(directory, name) => {
                let found = self.get(directory, name).ok_or(Failure::NotFound)?;
                return Ok(Answer::Found(found));
            }
            Op::List(_) | Op::Sync => {}
        }
        Ok(Answer::Done)
    }

    fn remove_directory(&mut self, id: Id) -> std::result::Result<(), Failure> {
        let directory = self.0.get_mut(&id).ok_or(Failure::NotADirectory)?;
        if !directory.entries.is_empty() {
            return Err(Failure::NotEmpty);
        }
        directory.parent = None;
        Ok(())
    }

    fn rename(
        &mut self,
        old: (Id, Name),
        new: (Id, Name),
        mode: RenameMode,
    ) -> std::result::Result<(), Failure> {
        self.check_alive(old.0)?;
        self.check_alive(new.0)?;
        let moved = self.get(old.0, old.1).ok_or(Failure::NotFound)?;
        let target = self.get(new.0, new.1);
        if moved == new.0 || self.above(new.0).contains(&moved) {
            return Err(Failure::IntoItself);
        }
        let is_above_old = |id| id == old.0 || self.above(old.0).contains(&id);
        match (mode, target) {
            (RenameMode::NoReplace, Some(_)) => return Err(Failure::Exists),
            (RenameMode::Exchange, None) => return Err(Failure::NotFound),
            (_, Some(target)) if target == moved => return Ok(()),
            (RenameMode::Exchange, Some(target)) if is_above_old(target) => {
                return Err(Failure::IntoItself);
            }
            (RenameMode::Exchange, Some(target)) => {
                self.set(old.0, old.1, Some(target));
                self.set(new.0, new.1, Some(moved));
                return Ok(());
            }
            (_, Some(target)) if target == old.0 && !self.is_directory(moved) => {
                return Err(Failure::IsADirectory);
            }
            (_, Some(target)) if is_above_old(target) => return Err(Failure::NotEmpty),
            (_, Some(target)) => match (self.is_directory(moved), self.is_directory(target)) {
                (true, false) => return Err(Failure::NotADirectory),
                (false, true) => return Err(Failure::IsADirectory),
                (true, true) => self.remove_directory(target)?,
                (false, false) => {}
            },
            (_, None) => {}
        }
        self.set(old.0, old.1, None);
        self.set(new.0, new.1, Some(moved));
        Ok(())
    }
}

/// Who is who: inodes by their numbers in the model.
struct People {
    numbers: HashMap<Id, InodeNr>,
    ids: HashMap<Identity, Id>,
}

/// A history of calls on the tree, complete with what was found in the end.
pub struct History {
    people: People,
    calls: Vec<Timed<Recorded>>,
}

impl History {
    /// The history of these calls on what [`Handles::prepare`] made.
    #[must_use]
    pub fn new(handles: &Handles, calls: Vec<Timed<Recorded>>) -> Self {
        let mut people = People {
            numbers: HashMap::new(),
            ids: HashMap::new(),
        };
        for (id, inode) in handles.inodes.iter().enumerate() {
            people.numbers.insert(id, inode.nr());
            people.ids.insert(identity(inode), id);
        }
        for (index, timed) in calls.iter().enumerate() {
            let makes = matches!(timed.call.op, Op::Create(..) | Op::MakeDirectory(..));
            if let (true, Answer::Found(identity)) = (makes, &timed.call.answer) {
                people.numbers.insert(MADE + index, identity.0);
                people.ids.insert(*identity, MADE + index);
            }
        }
        Self { people, calls }
    }

    /// The recorded calls.
    #[must_use]
    pub fn calls(&self) -> &[Timed<Recorded>] {
        &self.calls
    }

    /// The history with the answer of one call falsified.
    #[must_use]
    pub fn falsified(mut self, index: usize) -> Self {
        self.calls[index].call = self.calls[index].call.falsified();
        self
    }

    /// Adds what the tree is after all calls, as it is found on the volume.
    ///
    /// # Errors
    /// What the file system reports.
    pub fn add_end(&mut self, fs: &Filesystem, clock: &Clock) -> Result<()> {
        let mut left = vec![fs.root()?];
        while let Some(directory) = left.pop() {
            let Some(id) = self.people.ids.get(&identity(&directory)).copied() else {
                panic!("{directory:?} was made by nobody");
            };
            let answer = list(fs, &directory)?;
            let Answer::Listed(names, _) = &answer else {
                continue;
            };
            for name in names.keys() {
                let inode = fs.lookup(&directory, &[*name])?;
                if inode.is_directory() {
                    left.push(inode);
                }
            }
            let op = Op::List(id);
            self.calls.push(clock.time(|| Recorded { op, answer }));
        }
        Ok(())
    }

    /// Whether some order of the calls explains all answers.
    ///
    /// # Errors
    /// The history, with the longest order that explains what it has.
    pub fn check(&self) -> std::result::Result<(), String> {
        let found = super::linear::linearise(&self.people, Tree::beginning(), &self.calls);
        let Err(longest) = found else {
            return Ok(());
        };
        let mut text = String::new();
        for (index, timed) in self.calls.iter().enumerate() {
            let place = longest.iter().position(|placed| *placed == index);
            let place = place.map_or("-".into(), |place| place.to_string());
            let (Recorded { op, answer }, began) = (&timed.call, timed.began);
            let ended = timed.ended;
            text += &format!("{place:>4}  {began:>3}..{ended:<3} {op:?} -> {answer:?}\n");
        }
        Err(text)
    }
}

impl Model for People {
    type State = Tree;
    type Call = Recorded;

    fn step(&self, state: &Tree, index: usize, call: &Recorded) -> Option<Tree> {
        let is_right = |answer: &Answer<Id>| match (answer, &call.answer) {
            (Answer::Found(id), Answer::Found(identity)) => self.ids.get(identity) == Some(id),
            (Answer::Done, Answer::Done) => true,
            (Answer::Failed(model), Answer::Failed(system)) => model == system,
            _ => false,
        };
        if let (Op::List(directory), Answer::Listed(names, parent)) = (call.op, &call.answer) {
            let directory = &state.0[&directory];
            let number = |id: &Id| self.numbers.get(id).copied();
            let model = directory.entries.iter();
            let same = model.clone().count() == names.len()
                && model
                    .into_iter()
                    .all(|(name, id)| names.get(name).copied() == number(id))
                && directory.parent.and_then(|id| number(&id)) == *parent;
            return same.then(|| state.clone());
        }
        let mut next = state.clone();
        let answer = match next.change(call.op, MADE + index) {
            Ok(answer) => answer,
            Err(failure) => {
                next = state.clone();
                Answer::Failed(failure)
            }
        };
        is_right(&answer).then_some(next)
    }
}
