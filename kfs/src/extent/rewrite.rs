//! Changing what a range is mapped to: its state, its place, or that it is mapped at all.
//!
//! A range is rewritten in steps, each within one leaf and each leaving a valid tree. Steps stop when
//! the handle's credits would not do for another one and for freeing what was taken out of the tree.

use super::insert::{Extents, push_merged, with_neighbours};
use super::node::{Entry, Node};
use super::split::{Edit, NodeBudget};
use super::{Extent, ExtentTree, LOGICAL_END, Mapping, NodeAllocator, NodeChange, Root};
use super::{NODE_CREDITS, STEP_CREDITS_MAX, step_credits};
use crate::error::{Error, Result};
use crate::ids::{BlockNr, LogicalBlock, Run};
use crate::layout::Geometry;
use crate::storage::Handle;
use smallvec::SmallVec;

/// Credits that are left to the caller, for the inode and the like.
pub const KEPT_CREDITS: u32 = 8;

/// Credits with which removing and rewriting make progress in any tree: one step, the caller's own,
/// and those for freeing blocks in one group. With more, one call does more.
pub const REWRITE_CREDITS_MIN: u32 = STEP_CREDITS_MAX + KEPT_CREDITS + NODE_CREDITS;

/// How far a change came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Where to go on in another handle; `None` when all is done.
    pub next: Option<LogicalBlock>,
    /// Blocks of nodes allocated and freed.
    pub nodes: NodeChange,
}

/// What [`ExtentTree::replace`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// How far it came.
    pub progress: Progress,
    /// The blocks that the range was mapped to, in logical order.
    pub old: SmallVec<[Run; 4]>,
}

/// What becomes of each mapped piece of the range.
#[derive(Clone, Copy, Debug)]
pub(super) enum Change {
    Remove,
    State {
        unwritten: bool,
    },
    /// To blocks of which `physical` is for logical block `from`.
    Place {
        from: u64,
        physical: BlockNr,
        unwritten: bool,
    },
}

impl Change {
    fn of(self, piece: Extent) -> Option<Extent> {
        match self {
            Self::Remove => None,
            Self::State { unwritten } => Some(Extent { unwritten, ..piece }),
            Self::Place {
                from,
                physical,
                unwritten,
            } => {
                let physical = physical.plus(u64::from(piece.logical.0) - from);
                Some(Extent {
                    physical,
                    unwritten,
                    ..piece
                })
            }
        }
    }

    /// Whether the caller will free the blocks that pieces were mapped to.
    fn frees(self) -> bool {
        !matches!(self, Self::State { .. })
    }
}

/// A change of a range, and how much of it is done.
struct Rewrite<R> {
    change: Change,
    end: u64,
    goal: BlockNr,
    budget: NodeBudget<R>,
    /// Groups of the blocks taken out so far, sorted.
    groups: SmallVec<[u32; 16]>,
    /// Pieces as they were mapped.
    old: Vec<Extent>,
    nodes: NodeChange,
}

/// What a step would do to a leaf.
struct StepPlan {
    edit: Option<Edit>,
    old: SmallVec<[Extent; 8]>,
    groups: SmallVec<[u32; 16]>,
    /// Where the next step begins.
    next: u64,
    /// Credits allow no further step.
    stop: bool,
}

/// What a step did.
struct StepDone {
    next: u64,
    stop: bool,
    edited: bool,
}

/// What a rewrite did.
pub(super) struct Rewritten {
    pub(super) progress: Progress,
    pub(super) old: Vec<Extent>,
}

/// How many blocks of `piece` can be freed when `spare` credits are left; adds their groups.
/// At least those in the first group if `forced`.
fn afford(
    geometry: &Geometry,
    groups: &mut SmallVec<[u32; 16]>,
    piece: Extent,
    spare: u32,
    forced: bool,
) -> u32 {
    let mut taken = 0;
    while taken < piece.len {
        let (group, index) = geometry.group_of(piece.physical.plus(u64::from(taken)));
        if let Err(at) = groups.binary_search(&group.0) {
            let must = forced && taken == 0;
            if !must && (groups.len() as u32 + 1) * NODE_CREDITS > spare {
                break;
            }
            groups.insert(at, group.0);
        }
        taken += (geometry.blocks_per_group - index).min(piece.len - taken);
    }
    taken
}

impl ExtentTree<'_> {
    /// Makes the unwritten extents in a range written, as after a write into them; holes stay.
    /// Needs [`ExtentTree::step_credits`] plus [`KEPT_CREDITS`] and does as much as credits allow.
    ///
    /// # Errors
    /// `NoSpace` when there is none for nodes, `FileTooLarge` for an impossible range, `Corrupt`,
    /// `Io`. Nothing has changed then.
    pub fn mark_written<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        first: LogicalBlock,
        len: u32,
    ) -> Result<Progress> {
        let change = Change::State { unwritten: false };
        Ok(self
            .rewrite(root, handle, nodes, first, len, change)?
            .progress)
    }

    /// Makes the extents in a range unwritten, so that they read as zeros; holes stay.
    ///
    /// # Errors
    /// As [`ExtentTree::mark_written`].
    pub fn mark_unwritten<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        first: LogicalBlock,
        len: u32,
    ) -> Result<Progress> {
        let change = Change::State { unwritten: true };
        Ok(self
            .rewrite(root, handle, nodes, first, len, change)?
            .progress)
    }

    /// Maps a range, all of which must be mapped, to other blocks: as many as the range is long,
    /// from `physical` on. Needs [`REWRITE_CREDITS_MIN`] credits; hands the old blocks to the caller,
    /// leaving the credits to free them.
    ///
    /// # Errors
    /// `Invalid` when the range has a hole or the blocks lie outside the volume; otherwise as
    /// [`ExtentTree::mark_written`].
    #[expect(
        clippy::too_many_arguments,
        reason = "a range, its new place, and the means"
    )]
    pub fn replace<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        first: LogicalBlock,
        len: u32,
        physical: BlockNr,
        unwritten: bool,
    ) -> Result<Replaced> {
        if physical == BlockNr(0) || !self.geometry.contains_run(physical, u64::from(len)) {
            return Err(Error::Invalid);
        }
        let from = u64::from(first.0);
        let end = (from + u64::from(len)).min(LOGICAL_END);
        let mut at = from;
        while at < end {
            match self.map(root, LogicalBlock(at as u32), (end - at) as u32)? {
                Mapping::Hole { .. } => return Err(Error::Invalid),
                Mapping::Mapped { len, .. } | Mapping::Unwritten { len, .. } => {
                    at += u64::from(len);
                }
            }
        }
        let change = Change::Place {
            from,
            physical,
            unwritten,
        };
        let Rewritten { progress, old } = self.rewrite(root, handle, nodes, first, len, change)?;
        let old = old.iter().map(|extent| Run {
            start: extent.physical,
            len: extent.len,
        });
        Ok(Replaced {
            progress,
            old: old.collect(),
        })
    }

    /// Applies `change` to what is mapped in the range, step by step. An error means that nothing has
    /// changed; one that meets a later step ends the call there, and the next call reports it.
    pub(super) fn rewrite<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        first: LogicalBlock,
        len: u32,
        change: Change,
    ) -> Result<Rewritten> {
        let mut at = u64::from(first.0);
        let end = at + u64::from(len);
        if end > LOGICAL_END {
            return Err(Error::FileTooLarge);
        }
        let mut rewrite = Rewrite {
            change,
            end,
            goal: self
                .nearest_before(root, first)?
                .map_or(BlockNr(0), |extent| extent.physical),
            budget: NodeBudget::new(),
            groups: SmallVec::new(),
            old: Vec::new(),
            nodes: NodeChange::default(),
        };
        let mut changed = false;
        while at < end {
            match self.step_in_leaf(root, handle, nodes, &mut rewrite, at, changed) {
                Ok(step) => {
                    changed |= step.edited;
                    at = step.next;
                    if step.stop {
                        break;
                    }
                }
                Err(error) if !changed => return Err(error),
                Err(_) => break,
            }
        }
        let next = (at < end).then_some(LogicalBlock(at as u32));
        let progress = Progress {
            next,
            nodes: rewrite.nodes,
        };
        Ok(Rewritten {
            progress,
            old: rewrite.old,
        })
    }

    /// Does what is to be done in the leaf where `at` belongs.
    fn step_in_leaf<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        rewrite: &mut Rewrite<A::Reservation>,
        at: u64,
        changed: bool,
    ) -> Result<StepDone> {
        let path = self.path(root, at as u32)?;
        let leaf = path.leaf();
        let step = step_credits(path.depth() as u16);
        let owed = rewrite.groups.len() as u32 * NODE_CREDITS;
        let spare = handle.credits().saturating_sub(step + KEPT_CREDITS);
        if changed && (handle.credits() < step + KEPT_CREDITS || spare < owed) {
            return Ok(StepDone {
                next: at,
                stop: true,
                edited: false,
            });
        }
        let end = rewrite.end.min(leaf.span.high);
        let groups = rewrite.groups.clone();
        let plan = leaf.look(root, |node| {
            self.plan_step(node, rewrite.change, at..end, groups, spare, !changed)
        });
        let edited = plan.edit.is_some();
        if let Some(edit) = plan.edit {
            let later = self.later_nodes(root, rewrite, leaf.span.high, changed)?;
            let tree = self.plan(root, &path, edit)?;
            if rewrite.change.frees() {
                for piece in &plan.old {
                    nodes.check_free(Run {
                        start: piece.physical,
                        len: piece.len,
                    })?;
                }
            }
            for start in tree.freed(&path) {
                nodes.check_free(Run { start, len: 1 })?;
            }
            rewrite
                .budget
                .ensure(nodes, tree.nodes_needed, later, rewrite.goal)?;
            rewrite.nodes += self.apply(root, handle, nodes, &path, tree, &mut rewrite.budget)?;
        }
        rewrite.old.extend(plan.old);
        rewrite.groups = plan.groups;
        Ok(StepDone {
            next: plan.next,
            stop: plan.stop,
            edited,
        })
    }

    /// Nodes that splitting an extent at the end of the range may need in a later step: they are
    /// reserved with the first step, so that a lack of space leaves everything unchanged.
    fn later_nodes<R>(
        &self,
        root: &Root,
        rewrite: &Rewrite<R>,
        leaf_end: u64,
        changed: bool,
    ) -> Result<u32> {
        if changed || matches!(rewrite.change, Change::Remove) || rewrite.end <= leaf_end {
            return Ok(0);
        }
        let last = self.path(root, (rewrite.end - 1) as u32)?;
        let splits = last.leaf().look(root, |node| {
            let index = node.rank((rewrite.end - 1) as u32).checked_sub(1);
            index.is_some_and(|index| node.entry(index).as_extent().end() > rewrite.end)
        });
        let full = last.leaf().len + 2 > last.leaf().max;
        Ok(if splits && full {
            last.depth() as u32 + 2
        } else {
            0
        })
    }

    /// What `change` does to the entries of a leaf in `range`.
    fn plan_step(
        &self,
        node: Node<'_>,
        change: Change,
        range: std::ops::Range<u64>,
        groups: SmallVec<[u32; 16]>,
        spare: u32,
        forced: bool,
    ) -> StepPlan {
        let (first, end) = (range.start, range.end);
        let neighbour = |index: usize| (index < node.len()).then(|| node.entry(index).as_extent());
        let rank = node.rank(first as u32);
        let inside = rank
            .checked_sub(1)
            .and_then(neighbour)
            .is_some_and(|e| e.end() > first);
        let at = rank - usize::from(inside);
        let mut plan = StepPlan {
            edit: None,
            old: SmallVec::new(),
            groups,
            next: end,
            stop: false,
        };
        // An entry becomes two at the most, a lone one in the middle of which the range lies three: two
        // leaves always hold the result.
        let mut list = Extents::new();
        let mut index = at;
        while let Some(extent) = neighbour(index).filter(|e| u64::from(e.logical.0) < end) {
            let whole = extent.part(first, end);
            let mut taken = whole.len;
            if change.frees() {
                let forced = forced && index == at;
                taken = afford(self.geometry, &mut plan.groups, whole, spare, forced);
            }
            let start = u64::from(whole.logical.0);
            if taken == 0 {
                (plan.next, plan.stop) = (start, true);
                break;
            }
            let piece = whole.part(start, start + u64::from(taken));
            if u64::from(extent.logical.0) < start {
                push_merged(&mut list, extent.part(0, start));
            }
            if let Some(new) = change.of(piece) {
                push_merged(&mut list, new);
            }
            if piece.end() < extent.end() {
                push_merged(&mut list, extent.part(piece.end(), extent.end()));
            }
            plan.old.push(piece);
            index += 1;
            if taken < whole.len {
                (plan.next, plan.stop) = (piece.end(), true);
                break;
            }
        }
        let (list, at, remove) = with_neighbours(list, at, index - at, neighbour);
        let same = list.len() == remove
            && list
                .iter()
                .enumerate()
                .all(|(i, new)| neighbour(at + i) == Some(*new));
        if !same {
            let insert = list.into_iter().map(Entry::extent).collect();
            plan.edit = Some(Edit { at, remove, insert });
        }
        plan
    }
}
