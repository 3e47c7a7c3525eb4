//! Turns a descriptor chain of a guest into the segments of a request and of its reply.
//!
//! This is where guest memory becomes memory that `preadv` and `pwritev` use. A chain comes from a
//! guest, so every descriptor is looked up in the guest's memory map; one that lies outside makes
//! the whole chain bad. Loops are cut by the chain's iterator, which never yields more descriptors
//! than its table has.
#![allow(
    unsafe_code,
    reason = "vouches for the memory behind the segments of a chain"
)]

use thiserror::Error;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddressSpace, GuestMemory, GuestMemoryAtomic, GuestMemoryMmap, Permissions};

use crate::fuse::{DataSink, DataSource, Segment};

/// A guest's memory map, which changes while the guest runs.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;
/// One state of the map; the memory stays mapped while this is held.
pub(crate) type MemoryGuard = <Memory as GuestAddressSpace>::T;

/// A chain and the memory map that its descriptors mean.
pub(crate) struct Chain {
    /// The map; the same that `descriptors` reads its table from.
    pub(crate) guard: MemoryGuard,
    /// What the guest offers.
    pub(crate) descriptors: DescriptorChain<MemoryGuard>,
}

/// Most segments of either direction. `preadv` and `pwritev` take as many, and a request of 1 MiB
/// in single pages has 258.
const MAX_SEGMENTS: usize = 1024;

/// Why a chain is not a request.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum ChainError {
    /// A descriptor points outside the guest's memory.
    #[error("descriptor outside of memory ({len} bytes at {address:#x})")]
    OutsideMemory { address: u64, len: u32 },
    /// It has too many pieces.
    #[error("more than {MAX_SEGMENTS} segments")]
    TooMany,
    /// A descriptor for us to read comes after one for us to write.
    #[error("readable descriptor behind a writable one")]
    Order,
    /// It loops, or goes on outside its table.
    #[error("chain without an end")]
    Endless,
}

/// The segments of one request and its reply. Made once for a worker and used for one chain after
/// the other, so that no request allocates.
#[derive(Debug, Default)]
pub(crate) struct GuestBuffers {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    /// Keeps the memory behind the segments mapped.
    memory: Option<MemoryGuard>,
}

impl GuestBuffers {
    /// Takes a chain, and lets go of the one before.
    pub(crate) fn load(&mut self, chain: Chain) -> Result<(), ChainError> {
        self.clear();
        let memory = self.memory.insert(chain.guard);
        let mut ended = false;
        for descriptor in chain.descriptors {
            ended = !descriptor.has_next();
            let list = if descriptor.is_write_only() {
                &mut self.writable
            } else if self.writable.is_empty() {
                &mut self.readable
            } else {
                return Err(ChainError::Order);
            };
            let (address, len) = (descriptor.addr(), descriptor.len());
            if len == 0 {
                continue;
            }
            let outside = ChainError::OutsideMemory {
                address: address.0,
                len,
            };
            let access = Permissions::ReadWrite;
            let slices = memory
                .get_slices(address, len as usize, access)
                .map_err(|_| outside)?;
            for slice in slices {
                let slice = slice.map_err(|_| outside)?;
                if list.len() == MAX_SEGMENTS {
                    return Err(ChainError::TooMany);
                }
                list.push(Segment::new(slice.ptr_guard_mut().as_ptr(), slice.len()));
            }
        }
        if !ended {
            return Err(ChainError::Endless);
        }
        Ok(())
    }

    /// Lets go of the guest's memory.
    pub(crate) fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.memory = None;
    }

    /// What the request asks for, as far as one can say before it is parsed.
    pub(crate) fn opcode(&mut self) -> u32 {
        let (source, _) = self.cursors();
        let [_, _, _, _, opcode @ ..] = source.peek::<8>();
        u32::from_ne_bytes(opcode)
    }

    /// The cursors over the chain that was loaded.
    pub(crate) fn cursors(&mut self) -> (DataSource<'_>, DataSink<'_>) {
        // SAFETY: each segment is a slice of the guest's memory that `load` looked up, and
        // `self.memory` keeps that mapped, readable and writable, while the cursors borrow `self`.
        // No Rust reference sees guest memory; that the guest may change it meanwhile is what the
        // cursors are made for.
        unsafe {
            (
                DataSource::from_segments(&mut self.readable),
                DataSink::from_segments(&mut self.writable),
            )
        }
    }
}
