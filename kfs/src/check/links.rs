//! Whether every directory can be reached from the root, and every inode has as many names as it
//! says.

use super::Checker;
use super::report::{Finding, FindingKind};
use crate::corrupt::Corrupt;
use crate::ids::InodeNr;
use crate::layout::RoCompat;

/// Names that `i_links_count` can count; a directory with more says 1.
const LINKS_MAX: u32 = 65000;

/// A directory, and who is above it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Directory {
    pub(super) inode: InodeNr,
    /// The directory with its name; 0 while none was found.
    pub(super) parent: InodeNr,
    /// What its `..` names; 0 while none was found.
    pub(super) dot_dot: InodeNr,
}

impl Directory {
    pub(super) fn new(inode: InodeNr) -> Self {
        Self {
            inode,
            parent: InodeNr(0),
            dot_dot: InodeNr(0),
        }
    }
}

/// What is known of a directory's way up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Unknown,
    /// On the way that is being followed.
    OnTheWay,
    Reached,
    Lost,
}

impl Checker<'_> {
    pub(super) fn directory_mut(&mut self, nr: InodeNr) -> Option<&mut Directory> {
        let index = self.directory_index(nr)?;
        self.directories.get_mut(index)
    }

    fn directory_index(&self, nr: InodeNr) -> Option<usize> {
        // They were found in the order of their numbers.
        self.directories
            .binary_search_by_key(&nr, |directory| directory.inode)
            .ok()
    }

    /// Checks that the directories form one tree.
    pub(super) fn check_connectivity(&mut self) {
        if self.directory_index(InodeNr::ROOT).is_none() {
            let damage = Corrupt::RootNotDirectory;
            let finding = Finding::corrupt(FindingKind::Connectivity, &damage);
            self.findings.add(finding.inode(InodeNr::ROOT));
        }
        let mut reach = vec![Reach::Unknown; self.directories.len()];
        for start in 0..self.directories.len() {
            self.follow(start, &mut reach);
        }
        for (directory, reach) in self.directories.iter().zip(&reach) {
            let nr = directory.inode;
            if *reach == Reach::Lost && !self.orphans.contains(nr) {
                let text = "a directory that cannot be reached from the root";
                self.findings.inode(FindingKind::Connectivity, nr, text);
            }
            let parent = if nr == InodeNr::ROOT {
                nr
            } else {
                directory.parent
            };
            if parent != InodeNr(0) && directory.dot_dot != parent {
                let text = format!(
                    "'..' names inode {}, the parent is {parent}",
                    directory.dot_dot
                );
                self.findings.inode(FindingKind::Connectivity, nr, text);
            }
        }
        if !self.has_lost_found {
            let text = "there is no directory lost+found";
            self.findings
                .add(Finding::warning(FindingKind::Connectivity, text));
        }
    }

    /// Follows the names of a directory upwards as far as the outcome is not known, and notes it for
    /// all on the way.
    fn follow(&self, start: usize, reach: &mut [Reach]) {
        let mut way = Vec::new();
        let mut at = Some(start);
        let outcome = loop {
            let Some(index) = at else { break Reach::Lost };
            match reach[index] {
                Reach::Unknown => {}
                // A loop has no way up.
                Reach::OnTheWay => break Reach::Lost,
                known => break known,
            }
            reach[index] = Reach::OnTheWay;
            way.push(index);
            let directory = self.directories[index];
            if directory.inode == InodeNr::ROOT {
                break Reach::Reached;
            }
            at = self.directory_index(directory.parent);
        };
        for index in way {
            reach[index] = outcome;
        }
    }

    /// Compares the names found with those that inodes count.
    pub(super) fn check_links(&mut self) {
        let geometry = self.image.geometry.clone();
        let counts_one = geometry.ro_compat.contains(RoCompat::DIR_NLINK);
        for group in 0..geometry.groups_count() {
            for (index, state) in self.states.of_group(group) {
                let nr = geometry.inode_nr(crate::ids::GroupNr(group), index);
                let findings = &mut self.findings;
                if state.is_nameless() {
                    if state.names > 0 && self.orphans.contains(nr) {
                        findings.inode(FindingKind::LinkCount, nr, "an orphan that has a name");
                    }
                    continue;
                }
                if state.names == 0 {
                    findings.inode(FindingKind::LinkCount, nr, "in use, but has no name");
                    continue;
                }
                // It keeps saying 1 when there are fewer again.
                let may_say_one = counts_one && state.is_directory() && state.is_indexed();
                let is_right = match state.links {
                    1 => state.names == 1 || may_say_one,
                    links => u32::from(links) == state.names && state.names <= LINKS_MAX,
                };
                if !is_right {
                    let text = format!("{} links counted, {} found", state.links, state.names);
                    findings.inode(FindingKind::LinkCount, nr, text);
                }
            }
        }
    }
}
