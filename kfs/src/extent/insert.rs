//! Mapping blocks where there was a hole.

use super::node::Entry;
use super::split::{Edit, NodeBudget};
use super::{Extent, ExtentTree, LOGICAL_END, NodeAllocator, NodeChange, Root};
use crate::error::{Error, Result};
use crate::ids::BlockNr;
use crate::storage::Handle;
use smallvec::SmallVec;

/// Extents that replace others in a leaf.
pub(super) type Extents = SmallVec<[Extent; 8]>;

/// Appends an extent to a list: what continues the last one fills it up first.
pub(super) fn push_merged(list: &mut Extents, mut extent: Extent) {
    if let Some(last) = list.last_mut()
        && last.continues_in(extent)
    {
        let taken = extent.len.min(last.len_max() - last.len);
        last.len += taken;
        if taken == extent.len {
            return;
        }
        extent = extent.part(u64::from(extent.logical.0) + u64::from(taken), extent.end());
    }
    // Longer than an entry can be: a written extent of the greatest length that became unwritten.
    while extent.len > extent.len_max() {
        let cut = u64::from(extent.logical.0) + u64::from(extent.len_max());
        list.push(extent.part(0, cut));
        extent = extent.part(cut, extent.end());
    }
    list.push(extent);
}

/// `list` for the entries `at..at + remove` of a leaf, widened by the neighbours that it continues.
pub(super) fn with_neighbours(
    list: Extents,
    at: usize,
    remove: usize,
    neighbour: impl Fn(usize) -> Option<Extent>,
) -> (Extents, usize, usize) {
    let (Some(&first), Some(&last)) = (list.first(), list.last()) else {
        return (list, at, remove);
    };
    let joins = |left: Extent, right: Extent| left.continues_in(right) && left.len < left.len_max();
    let left = at
        .checked_sub(1)
        .and_then(&neighbour)
        .filter(|left| joins(*left, first));
    let right = neighbour(at + remove).filter(|right| joins(last, *right));
    let (at, remove) = (
        at - usize::from(left.is_some()),
        remove + usize::from(left.is_some()) + usize::from(right.is_some()),
    );
    let mut merged = Extents::new();
    for extent in left.into_iter().chain(list).chain(right) {
        push_merged(&mut merged, extent);
    }
    (merged, at, remove)
}

impl ExtentTree<'_> {
    /// Maps an extent of at most [`Extent::LEN_MAX`] blocks into a hole, merging it with the extents
    /// that it continues. Nodes are allocated near `goal`. Needs [`ExtentTree::step_credits`].
    ///
    /// # Errors
    /// `NoSpace` when there is none for nodes, `Exists` when a block is mapped already, `Invalid`
    /// for an extent that cannot be, `FileTooLarge` beyond the last logical block; `Corrupt`, `Io`.
    pub fn insert<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        extent: Extent,
        goal: BlockNr,
    ) -> Result<NodeChange> {
        if extent.end() > LOGICAL_END {
            return Err(Error::FileTooLarge);
        }
        let len = u64::from(extent.len);
        if !(1..=Extent::LEN_MAX).contains(&extent.len)
            || extent.physical == BlockNr(0)
            || !self.geometry.contains_run(extent.physical, len)
        {
            return Err(Error::Invalid);
        }
        let path = self.path(root, extent.logical.0)?;
        let leaf = path.leaf();
        if extent.end() > leaf.span.high {
            return Err(Error::Exists);
        }
        let edit = leaf.look(root, |node| {
            let at = node.rank(extent.logical.0);
            let neighbour =
                |index: usize| (index < node.len()).then(|| node.entry(index).as_extent());
            let previous = at.checked_sub(1).and_then(neighbour);
            let overlaps = previous.is_some_and(|left| left.end() > u64::from(extent.logical.0))
                || neighbour(at).is_some_and(|right| extent.end() > u64::from(right.logical.0));
            if overlaps {
                return Err(Error::Exists);
            }
            let mut list = Extents::new();
            push_merged(&mut list, extent);
            let (list, at, remove) = with_neighbours(list, at, 0, neighbour);
            Ok(Edit {
                at,
                remove,
                insert: list.into_iter().map(Entry::extent).collect(),
            })
        })?;
        let plan = self.plan(root, &path, edit)?;
        let mut budget = NodeBudget::new();
        budget.ensure(nodes, plan.nodes_needed, 0, goal)?;
        self.apply(root, handle, nodes, &path, plan, &mut budget)
    }
}
