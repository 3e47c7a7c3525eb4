//! Nodes from the allocator: blocks reserved one run after the other until there are enough.

use super::NodeAllocator;
use crate::allocator::{Allocator, BlockRequest, Reservation};
use crate::error::Result;
use crate::ids::{BlockNr, Run};
use crate::storage::Handle;
use smallvec::SmallVec;

impl NodeAllocator for Allocator {
    type Reservation = SmallVec<[Reservation; 1]>;

    fn reserve_nodes(&self, count: u32, goal: BlockNr) -> Result<Self::Reservation> {
        let mut reservations = SmallVec::new();
        let mut missing = count;
        while missing > 0 {
            // Metadata may use the blocks kept for root: a file that could not be changed for want
            // of a node could not even be truncated.
            let request = BlockRequest {
                goal,
                len: missing,
                privileged: true,
            };
            let reservation = self.reserve(request)?;
            missing -= reservation.len().min(missing);
            reservations.push(reservation);
        }
        Ok(reservations)
    }

    fn allocate_node(
        &self,
        handle: &mut Handle<'_>,
        reservations: &mut Self::Reservation,
    ) -> BlockNr {
        let with_blocks = reservations
            .iter_mut()
            .find(|reservation| !reservation.is_empty());
        let reservation = with_blocks.expect("as many blocks were reserved as are allocated");
        self.allocate(handle, reservation, 1).start
    }

    fn check_free(&self, run: Run) -> Result<()> {
        Allocator::check_free(self, run)
    }

    fn free_node(&self, handle: &mut Handle<'_>, block: BlockNr) -> Result<()> {
        self.free(
            handle,
            Run {
                start: block,
                len: 1,
            },
        )
    }
}
