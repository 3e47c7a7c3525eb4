//! `States`: what is known of each inode in use, eight bytes a piece.

use crate::ids::InodeNr;
use crate::layout::{FileType, Geometry};

/// An inode that is in use.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct InodeState {
    /// Names found.
    pub(super) names: u32,
    /// `i_links_count`.
    pub(super) links: u16,
    /// [`FileType`] as directory entries hold it.
    pub(super) file_type: u8,
    flags: u8,
}

const USED: u8 = 1;
const NO_NAME_NEEDED: u8 = 2;
const INDEXED: u8 = 4;

impl InodeState {
    pub(super) fn new(links: u16, file_type: FileType) -> Self {
        Self {
            names: 0,
            links,
            file_type: file_type as u8,
            flags: USED,
        }
    }

    /// One that no directory names: reserved, the journal, an orphan.
    pub(super) fn nameless(mut self) -> Self {
        self.flags |= NO_NAME_NEEDED;
        self
    }

    /// A directory with a hash tree.
    pub(super) fn indexed(mut self) -> Self {
        self.flags |= INDEXED;
        self
    }

    fn is_used(self) -> bool {
        self.flags & USED != 0
    }

    pub(super) fn is_nameless(self) -> bool {
        self.flags & NO_NAME_NEEDED != 0
    }

    pub(super) fn is_indexed(self) -> bool {
        self.flags & INDEXED != 0
    }

    pub(super) fn is_directory(self) -> bool {
        self.file_type == FileType::Directory as u8
    }
}

/// The states, by group as far as the last inode in use.
pub(super) struct States {
    groups: Vec<Vec<InodeState>>,
    per_group: u32,
}

impl States {
    pub(super) fn new(geometry: &Geometry) -> Self {
        Self {
            groups: vec![Vec::new(); geometry.groups_count() as usize],
            per_group: geometry.inodes_per_group,
        }
    }

    fn place(&self, nr: InodeNr) -> Option<(usize, usize)> {
        let index = nr.0.checked_sub(1)?;
        Some((
            (index / self.per_group) as usize,
            (index % self.per_group) as usize,
        ))
    }

    /// The state of an inode in use.
    pub(super) fn get(&self, nr: InodeNr) -> Option<InodeState> {
        let (group, index) = self.place(nr)?;
        let state = *self.groups.get(group)?.get(index)?;
        state.is_used().then_some(state)
    }

    /// The state of an inode in use, to be changed.
    pub(super) fn get_mut(&mut self, nr: InodeNr) -> Option<&mut InodeState> {
        let (group, index) = self.place(nr)?;
        let state = self.groups.get_mut(group)?.get_mut(index)?;
        state.is_used().then_some(state)
    }

    /// Notes an inode in use; to be called with rising numbers.
    pub(super) fn insert(&mut self, nr: InodeNr, state: InodeState) {
        let (group, index) = self.place(nr).expect("inodes are counted from 1");
        let states = &mut self.groups[group];
        states.resize(index, InodeState::default());
        states.push(state);
    }

    /// The states of a group, unused ones among them.
    pub(super) fn of_group(&self, group: u32) -> impl Iterator<Item = (u32, InodeState)> + '_ {
        self.groups[group as usize]
            .iter()
            .enumerate()
            .filter(|(_, state)| state.is_used())
            .map(|(index, state)| (index as u32, *state))
    }
}
