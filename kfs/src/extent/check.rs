//! Checks of a node before anything in it is believed.
//!
//! Every visit of a node checks its header and that it lies in the range of the parent's entry, at a
//! cost that does not grow with its entries. The checksum and all entries are checked when the
//! buffer was not verified since it was read, and all entries again before a change.

use super::node::{ENTRY_SIZE, Node, ROOT_ENTRIES};
use super::{ExtentTree, LOGICAL_END, Root};
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::ids::{BlockNr, InodeNr, LogicalBlock};
use crate::layout::Geometry;
use crate::layout::extent::{EXTENT_MAGIC, MAX_DEPTH, RawExtentHeader, verify_checksum};
use crate::storage::Buffer;
use zerocopy::FromBytes;

/// The logical blocks that the parent's entry gives to a node: its key, and one beyond the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First logical block.
    pub low: u32,
    /// One beyond the last.
    pub high: u64,
}

impl Span {
    /// The span of the root.
    pub const ALL: Self = Self {
        low: 0,
        high: LOGICAL_END,
    };

    /// Whether nothing comes after it in the tree.
    #[must_use]
    pub fn is_last(self) -> bool {
        self.high == LOGICAL_END
    }
}

/// Where a node is, for its checks and for error messages.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Whose tree.
    pub inode: InodeNr,
    /// The node's block, 0 for the root in the inode.
    pub block: BlockNr,
}

/// Checks a node's header: magic, depth, and that its entries fit. `capacity` is how many fit.
///
/// # Errors
/// A `Corrupt` variant for each check.
fn check_header<'b>(
    place: Place,
    bytes: &'b [u8],
    depth: Option<u16>,
    capacity: u16,
) -> std::result::Result<Node<'b>, Corrupt> {
    let Place { inode, block } = place;
    let Ok((header, _)) = RawExtentHeader::ref_from_prefix(bytes) else {
        return Err(Corrupt::ExtentMagic {
            inode,
            block,
            found: 0,
        });
    };
    let found = header.eh_magic.get();
    if found != EXTENT_MAGIC {
        return Err(Corrupt::ExtentMagic {
            inode,
            block,
            found,
        });
    }
    let found = header.eh_depth.get();
    if found != depth.unwrap_or(found) || found > MAX_DEPTH {
        let expected = depth.unwrap_or(MAX_DEPTH);
        return Err(Corrupt::ExtentDepth {
            inode,
            block,
            found,
            expected,
        });
    }
    // The two entries of slack are those that e2fsprogs grants, too.
    let max = header.eh_max.get();
    if max > capacity || max < capacity - 2 {
        return Err(Corrupt::ExtentMax {
            inode,
            block,
            found: max,
            capacity,
        });
    }
    let entries = header.eh_entries.get();
    if entries > max {
        return Err(Corrupt::ExtentEntries {
            inode,
            block,
            entries,
            max,
        });
    }
    let is_root = block == BlockNr(0);
    if entries == 0 && (!is_root || header.eh_depth.get() > 0) {
        return Err(Corrupt::ExtentNodeEmpty { inode, block });
    }
    Node::new(bytes).ok_or(Corrupt::ExtentEntries {
        inode,
        block,
        entries,
        max,
    })
}

/// Checks that a node lies in its parent's span, by its first and last entry.
fn check_span(place: Place, node: Node<'_>, span: Span) -> std::result::Result<(), Corrupt> {
    let Place { inode, block } = place;
    let (Some(first), Some(last)) = (node.entries().next(), node.entries().next_back()) else {
        return Ok(());
    };
    let end = if node.depth() == 0 {
        last.as_extent().end()
    } else {
        u64::from(last.key()) + 1
    };
    if first.key() < span.low || end > span.high {
        let logical = LogicalBlock(if first.key() < span.low {
            first.key()
        } else {
            last.key()
        });
        return Err(Corrupt::ExtentRange {
            inode,
            block,
            logical,
        });
    }
    Ok(())
}

/// Checks all entries of a node: sorted, not overlapping, and pointing into the volume.
fn check_entries(
    place: Place,
    node: Node<'_>,
    geometry: &Geometry,
) -> std::result::Result<(), Corrupt> {
    let Place { inode, block } = place;
    let mut free_from = 0;
    for entry in node.entries() {
        let logical = LogicalBlock(entry.key());
        if u64::from(logical.0) < free_from {
            return Err(Corrupt::ExtentOrder {
                inode,
                block,
                logical,
            });
        }
        if node.depth() > 0 {
            check_child(inode, entry.child(), geometry)?;
            free_from = u64::from(logical.0) + 1;
        } else {
            let extent = entry.as_extent();
            check_extent(inode, extent, geometry)?;
            free_from = extent.end();
        }
    }
    Ok(())
}

/// Checks that a node's block lies within the volume.
pub(super) fn check_child(
    inode: InodeNr,
    child: BlockNr,
    geometry: &Geometry,
) -> std::result::Result<(), Corrupt> {
    // Block 0 stands for the root in `Place`, and holds the superblock or the boot sector.
    if child == BlockNr(0) || !geometry.contains_block(child) {
        return Err(Corrupt::ExtentChild {
            inode,
            block: child,
        });
    }
    Ok(())
}

/// Checks one extent by itself.
pub(super) fn check_extent(
    inode: InodeNr,
    extent: super::Extent,
    geometry: &Geometry,
) -> std::result::Result<(), Corrupt> {
    let super::Extent {
        logical,
        physical,
        len,
        ..
    } = extent;
    if len == 0 || extent.end() > LOGICAL_END {
        return Err(Corrupt::ExtentLength {
            inode,
            logical,
            len,
        });
    }
    if physical == BlockNr(0) || !geometry.contains_run(physical, u64::from(len)) {
        return Err(Corrupt::ExtentBlocks {
            inode,
            logical,
            physical,
            len,
        });
    }
    Ok(())
}

/// Checks all that can be checked of a node by itself, other than its checksum: for readers of
/// damaged trees. `depth` is what the parent makes expect, `None` for a root.
///
/// # Errors
/// A `Corrupt` variant for each check.
pub fn check_node(
    place: Place,
    bytes: &[u8],
    depth: Option<u16>,
    span: Span,
    geometry: &Geometry,
) -> std::result::Result<(), Corrupt> {
    let capacity = if place.block == BlockNr(0) {
        ROOT_ENTRIES
    } else {
        RawExtentHeader::block_entries(geometry.block_size)
    };
    let node = check_header(place, bytes, depth, capacity)?;
    check_span(place, node, span)?;
    check_entries(place, node, geometry)
}

impl ExtentTree<'_> {
    /// The root, all of it checked.
    pub(super) fn root_node<'b>(&self, root: &'b Root) -> Result<Node<'b>> {
        let place = Place {
            inode: self.inode,
            block: BlockNr(0),
        };
        let node = check_header(place, root, None, ROOT_ENTRIES)?;
        check_span(place, node, Span::ALL)?;
        check_entries(place, node, self.geometry)?;
        Ok(node)
    }

    /// The node in a buffer, whose `bytes` the caller has locked. All entries are checked if
    /// `thorough` or if the buffer was just read.
    pub(super) fn block_node<'b>(
        &self,
        buffer: &Buffer,
        bytes: &'b [u8],
        depth: u16,
        span: Span,
        thorough: bool,
    ) -> Result<Node<'b>> {
        let place = Place {
            inode: self.inode,
            block: buffer.nr(),
        };
        let capacity = ((bytes.len() - ENTRY_SIZE) / ENTRY_SIZE) as u16;
        let node = check_header(place, bytes, Some(depth), capacity)?;
        let verified = buffer.is_verified();
        if !verified && !verify_checksum(self.seed, bytes) {
            let Place { inode, block } = place;
            return Err(Corrupt::ExtentChecksum { inode, block }.into());
        }
        check_span(place, node, span)?;
        if thorough || !verified {
            check_entries(place, node, self.geometry)?;
        }
        if !verified {
            buffer.set_verified();
        }
        Ok(node)
    }
}
