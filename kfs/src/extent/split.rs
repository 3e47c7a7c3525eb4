//! Plan and application of a change in one leaf, with what follows for the nodes above: splitting,
//! growing in depth, merging with a sibling, freeing empty nodes, shrinking in depth.
//!
//! A change is an edit of a leaf: some entries are replaced by others. On every level an edit either
//! ends there or becomes an edit of the parent. The plan reads what it needs and counts the nodes to
//! be allocated; its application cannot fail but for the freeing of nodes, which comes first.

use super::check::{Span, check_child};
use super::node::{self, Entries, Entry, Node, ROOT_ENTRIES};
use super::path::{ExtentPath, PathLevel};
use super::search::child_span;
use super::{ExtentTree, NodeAllocator, NodeChange, Root};
use crate::error::{Error, Result};
use crate::ids::BlockNr;
use crate::layout::extent::{MAX_DEPTH, RawExtentHeader, update_checksum};
use crate::storage::{Buffer, Handle};
use smallvec::{SmallVec, smallvec};
use std::sync::Arc;

/// Replaces `remove` entries of a node from `at` on by `insert`.
#[derive(Debug)]
pub(super) struct Edit {
    pub(super) at: usize,
    pub(super) remove: usize,
    pub(super) insert: Entries,
}

/// How a node takes its edit.
#[derive(Debug)]
enum Action {
    InPlace,
    /// The first `left` entries stay, the others move to a new node.
    Split {
        left: usize,
    },
    /// The root's entries move to a new node, the tree becomes one level deeper.
    Grow,
    /// The node is empty.
    Free,
    /// The right one of the node and its sibling moves into the left one.
    Merge {
        sibling: Arc<Buffer>,
        sibling_is_left: bool,
    },
}

#[derive(Debug)]
struct LevelPlan {
    level: usize,
    edit: Edit,
    action: Action,
}

/// What a change does on each level, from the leaf up.
#[derive(Debug)]
pub(super) struct Plan {
    levels: SmallVec<[LevelPlan; 2]>,
    /// Nodes that will be allocated.
    pub(super) nodes_needed: u32,
    /// Whether some node loses entries, so that the tree may shrink.
    shrinks: bool,
}

impl LevelPlan {
    /// The node that goes away.
    fn freed(&self, path: &ExtentPath) -> Option<BlockNr> {
        let here = path.level(self.level);
        match &self.action {
            Action::Free
            | Action::Merge {
                sibling_is_left: true,
                ..
            } => Some(buffer_of(here).nr()),
            Action::Merge { sibling, .. } => Some(sibling.nr()),
            _ => None,
        }
    }
}

impl Plan {
    /// The nodes that go away.
    pub(super) fn freed<'p>(&'p self, path: &'p ExtentPath) -> impl Iterator<Item = BlockNr> + 'p {
        self.levels.iter().filter_map(|level| level.freed(path))
    }
}

/// The nodes reserved for a change of several steps.
pub(super) struct NodeBudget<R> {
    reservation: Option<R>,
    left: u32,
}

impl<R> NodeBudget<R> {
    pub(super) fn new() -> Self {
        Self {
            reservation: None,
            left: 0,
        }
    }

    /// Makes sure that `needed` nodes are there; if not, reserves them and `spare` ones.
    pub(super) fn ensure<A: NodeAllocator<Reservation = R>>(
        &mut self,
        nodes: &A,
        needed: u32,
        spare: u32,
        goal: BlockNr,
    ) -> Result<()> {
        if needed > self.left || spare > 0 {
            self.reservation = Some(nodes.reserve_nodes(needed + spare, goal)?);
            self.left = needed + spare;
        }
        Ok(())
    }

    fn allocate<A: NodeAllocator<Reservation = R>>(
        &mut self,
        nodes: &A,
        handle: &mut Handle<'_>,
    ) -> BlockNr {
        let reservation = self
            .reservation
            .as_mut()
            .expect("a plan's nodes are reserved");
        self.left -= 1;
        nodes.allocate_node(handle, reservation)
    }
}

/// The key of entry `index` after an edit.
fn key_after(node: Node<'_>, edit: &Edit, index: usize) -> u32 {
    if index < edit.at {
        node.entry(index).key()
    } else if let Some(entry) = edit.insert.get(index - edit.at) {
        entry.key()
    } else {
        node.entry(index - edit.insert.len() + edit.remove).key()
    }
}

fn buffer_of(level: &PathLevel) -> &Arc<Buffer> {
    level.buffer.as_ref().expect("only the root has no buffer")
}

impl ExtentTree<'_> {
    /// What an edit of the path's leaf does to the tree.
    pub(super) fn plan(&self, root: &Root, path: &ExtentPath, edit: Edit) -> Result<Plan> {
        let mut plan = Plan {
            levels: SmallVec::new(),
            nodes_needed: 0,
            shrinks: false,
        };
        let mut level = path.depth();
        let mut edit = Some(edit);
        while let Some(mine) = edit.take() {
            plan.shrinks |= mine.insert.len() < mine.remove;
            let action = if level == 0 {
                Self::plan_root(path, &mine)?
            } else {
                let (action, parent) = self.plan_node(root, path, level, &mine);
                edit = parent;
                action
            };
            if matches!(action, Action::Split { .. } | Action::Grow) {
                plan.nodes_needed += 1;
            }
            plan.levels.push(LevelPlan {
                level,
                edit: mine,
                action,
            });
            level = level.saturating_sub(1);
        }
        Ok(plan)
    }

    fn plan_root(path: &ExtentPath, edit: &Edit) -> Result<Action> {
        let root = path.level(0);
        if root.len - edit.remove + edit.insert.len() <= root.max {
            return Ok(Action::InPlace);
        }
        if path.depth() >= usize::from(MAX_DEPTH) {
            return Err(Error::FileTooLarge);
        }
        Ok(Action::Grow)
    }

    /// What the node on `level` does with `edit`, and what follows for its parent.
    fn plan_node(
        &self,
        root: &Root,
        path: &ExtentPath,
        level: usize,
        edit: &Edit,
    ) -> (Action, Option<Edit>) {
        let here = path.level(level);
        let parent = path.level(level - 1);
        let (nr, at) = (buffer_of(here).nr(), parent.position);
        let total = here.len - edit.remove + edit.insert.len();
        if total == 0 {
            return (
                Action::Free,
                Some(Edit {
                    at,
                    remove: 1,
                    insert: Entries::new(),
                }),
            );
        }
        let key = here.look(root, |node| key_after(node, edit, 0));
        if total > here.max {
            // A file that grows at its end never comes back to the left node: it stays full.
            let appends = here.span.is_last() && edit.at + edit.remove == here.len;
            let left = if appends { here.max } else { total / 2 };
            let right_key = here.look(root, |node| key_after(node, edit, left));
            // The new node's number is filled in when it is allocated.
            let insert = smallvec![Entry::index(key, nr), Entry::index(right_key, BlockNr(0))];
            return (
                Action::Split { left },
                Some(Edit {
                    at,
                    remove: 1,
                    insert,
                }),
            );
        }
        if edit.insert.len() < edit.remove
            && total <= here.max / 4
            && let Some(merge) = self.plan_merge(root, path, level, edit, total)
        {
            return merge;
        }
        let old_key = parent.look(root, |node| node.entry(at).key());
        let insert = smallvec![Entry::index(key, nr)];
        (
            Action::InPlace,
            (key != old_key).then_some(Edit {
                at,
                remove: 1,
                insert,
            }),
        )
    }

    /// Merging the node on `level`, left with `total` entries, with a neighbour below the same
    /// parent. A neighbour that cannot be read is left alone.
    fn plan_merge(
        &self,
        root: &Root,
        path: &ExtentPath,
        level: usize,
        edit: &Edit,
        total: usize,
    ) -> Option<(Action, Option<Edit>)> {
        let (here, parent) = (path.level(level), path.level(level - 1));
        let position = parent.position;
        let sibling_is_left = position > 0;
        let at = if sibling_is_left {
            position - 1
        } else {
            position + 1
        };
        if at >= parent.len {
            return None;
        }
        let depth = (path.depth() - level) as u16;
        let (nr, span) = parent.look(root, |node| {
            (node.entry(at).child(), child_span(node, at, parent.span))
        });
        check_child(self.inode, nr, self.geometry).ok()?;
        let sibling = self.cache.get(nr).ok()?;
        let (len, first_key) = {
            let bytes = sibling.read();
            let node = self.block_node(&sibling, &bytes, depth, span, true).ok()?;
            (node.len(), node.entry(0).key())
        };
        // Room stays, so that the next insert does not split the node again.
        if len + total > here.max * 3 / 4 {
            return None;
        }
        let left = if sibling_is_left {
            Entry::index(first_key, nr)
        } else {
            Entry::index(
                here.look(root, |node| key_after(node, edit, 0)),
                buffer_of(here).nr(),
            )
        };
        let parent_edit = Edit {
            at: position.min(at),
            remove: 2,
            insert: smallvec![left],
        };
        Some((
            Action::Merge {
                sibling,
                sibling_is_left,
            },
            Some(parent_edit),
        ))
    }

    /// Does what was planned. An error leaves everything unchanged, or the handle aborted.
    pub(super) fn apply<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        path: &ExtentPath,
        plan: Plan,
        budget: &mut NodeBudget<A::Reservation>,
    ) -> Result<NodeChange> {
        let mut change = NodeChange {
            added: plan.nodes_needed,
            freed: 0,
        };
        for level in &plan.levels {
            let Some(freed) = level.freed(path) else {
                continue;
            };
            if let Err(error) = nodes.free_node(handle, freed) {
                if change.freed > 0 {
                    handle.abort(&error);
                }
                return Err(error);
            }
            handle.forget(freed);
            change.freed += 1;
        }
        let mut new_child = None;
        for level in plan.levels {
            new_child = self.apply_level(root, handle, nodes, path, level, new_child, budget);
        }
        if plan.shrinks {
            self.shrink_root(root, handle, nodes, &mut change);
        }
        Ok(change)
    }

    /// Edits one node. `new_child` is the node that its child split off; the answer is the one that
    /// this node splits off.
    #[expect(
        clippy::too_many_arguments,
        reason = "the one place where a plan meets its means"
    )]
    fn apply_level<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        path: &ExtentPath,
        plan: LevelPlan,
        new_child: Option<BlockNr>,
        budget: &mut NodeBudget<A::Reservation>,
    ) -> Option<BlockNr> {
        let LevelPlan {
            level,
            mut edit,
            action,
        } = plan;
        if let Some(child) = new_child {
            edit.insert[1] = Entry::index(edit.insert[1].key(), child);
        }
        let here = path.level(level);
        let depth = (path.depth() - level) as u16;
        let spliced = |root: &Root, edit: &Edit| {
            here.look(root, |node| {
                node.spliced(edit.at, edit.remove, &edit.insert)
            })
        };
        match action {
            Action::Free => None,
            Action::InPlace => {
                self.splice(root, handle, here, &edit);
                None
            }
            Action::Split { left } => {
                let entries = spliced(root, &edit);
                self.write_node(handle, buffer_of(here), depth, &entries[..left]);
                Some(self.create_node(handle, nodes, budget, depth, &entries[left..]))
            }
            Action::Grow => {
                let entries = spliced(root, &edit);
                let nr = self.create_node(handle, nodes, budget, depth, &entries);
                let index = Entry::index(entries[0].key(), nr);
                node::write(root, depth + 1, ROOT_ENTRIES, &[index]);
                None
            }
            Action::Merge {
                sibling,
                sibling_is_left,
            } => {
                let mine = spliced(root, &edit);
                let theirs: Vec<Entry> = {
                    let bytes = sibling.read();
                    Node::new(&bytes)
                        .expect("checked by the plan")
                        .entries()
                        .collect()
                };
                if sibling_is_left {
                    self.write_node(handle, &sibling, depth, &[theirs, mine].concat());
                } else {
                    self.write_node(handle, buffer_of(here), depth, &[mine, theirs].concat());
                }
                None
            }
        }
    }

    /// Makes a tree less deep while all entries of the root's only child fit the root.
    ///
    /// That the child cannot be read or freed keeps the tree as it is: it is valid.
    fn shrink_root<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        change: &mut NodeChange,
    ) {
        loop {
            let node = Node::new(root).expect("checked by the plan or just written");
            if node.depth() == 0 || node.len() != 1 {
                return;
            }
            let (nr, span) = (node.entry(0).child(), child_span(node, 0, Span::ALL));
            let Ok(buffer) = self.cache.get(nr) else {
                return;
            };
            let (depth, entries) = {
                let bytes = buffer.read();
                match self.block_node(&buffer, &bytes, node.depth() - 1, span, true) {
                    Ok(child) if child.len() <= usize::from(ROOT_ENTRIES) => {
                        (child.depth(), child.entries().collect::<Entries>())
                    }
                    _ => return,
                }
            };
            if nodes.free_node(handle, nr).is_err() {
                return;
            }
            handle.forget(nr);
            change.freed += 1;
            node::write(root, depth, ROOT_ENTRIES, &entries);
        }
    }

    fn splice(&self, root: &mut Root, handle: &mut Handle<'_>, here: &PathLevel, edit: &Edit) {
        let Some(buffer) = &here.buffer else {
            let node = Node::new(root).expect("checked when the path was made");
            let entries = node.spliced(edit.at, edit.remove, &edit.insert);
            let depth = if entries.is_empty() { 0 } else { node.depth() };
            node::write(root, depth, ROOT_ENTRIES, &entries);
            return;
        };
        let mut bytes = handle.get_write_access(buffer);
        node::splice(&mut bytes, edit.at, edit.remove, &edit.insert);
        update_checksum(self.seed, &mut bytes);
    }

    fn write_node(
        &self,
        handle: &mut Handle<'_>,
        buffer: &Arc<Buffer>,
        depth: u16,
        entries: &[Entry],
    ) {
        let mut bytes = handle.get_write_access(buffer);
        let max = Node::new(&bytes).expect("checked by the plan").max() as u16;
        node::write(&mut bytes, depth, max, entries);
        update_checksum(self.seed, &mut bytes);
    }

    fn create_node<A: NodeAllocator>(
        &self,
        handle: &mut Handle<'_>,
        nodes: &A,
        budget: &mut NodeBudget<A::Reservation>,
        depth: u16,
        entries: &[Entry],
    ) -> BlockNr {
        let nr = budget.allocate(nodes, handle);
        let buffer = self
            .cache
            .get_zeroed(nr)
            .expect("allocated blocks lie within the volume");
        let mut bytes = handle.get_create_access(&buffer);
        let max = RawExtentHeader::block_entries(self.geometry.block_size);
        node::write(&mut bytes, depth, max, entries);
        update_checksum(self.seed, &mut bytes);
        nr
    }
}
