//! Unmapping a range: truncation, hole punching, deletion.

use super::rewrite::{Change, Progress, Rewritten};
use super::{ExtentTree, LOGICAL_END, NodeAllocator, Root};
use crate::error::{Error, Result};
use crate::ids::{LogicalBlock, Run};
use crate::storage::Handle;
use smallvec::SmallVec;

/// What [`ExtentTree::remove`] took out of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// How far it came.
    pub progress: Progress,
    /// Data blocks that are not mapped any more, for the caller to free in the same handle: the
    /// credits for that are left.
    pub runs: SmallVec<[Run; 4]>,
}

impl ExtentTree<'_> {
    /// Unmaps the blocks from `first` to `last`, both included, and frees the nodes that become
    /// empty. Does as much as the handle's credits allow, at least one extent's blocks in one group:
    /// [`REWRITE_CREDITS_MIN`](super::REWRITE_CREDITS_MIN) are needed.
    ///
    /// # Errors
    /// `NoSpace` when a hole splits an extent and there is no space for a node; `Corrupt`, `Io`.
    /// Nothing has changed then.
    pub fn remove<A: NodeAllocator>(
        &self,
        root: &mut Root,
        handle: &mut Handle<'_>,
        nodes: &A,
        first: LogicalBlock,
        last: LogicalBlock,
    ) -> Result<Removed> {
        if last < first {
            return Err(Error::Invalid);
        }
        let end = (u64::from(last.0) + 1).min(LOGICAL_END);
        let len = end.saturating_sub(u64::from(first.0)) as u32;
        let Rewritten { progress, old } =
            self.rewrite(root, handle, nodes, first, len, Change::Remove)?;
        let mut runs: SmallVec<[Run; 4]> = SmallVec::new();
        for extent in old {
            match runs.last_mut() {
                Some(run) if run.end() == extent.physical && run.len <= u32::MAX - extent.len => {
                    run.len += extent.len;
                }
                _ => runs.push(Run {
                    start: extent.physical,
                    len: extent.len,
                }),
            }
        }
        Ok(Removed { progress, runs })
    }
}
