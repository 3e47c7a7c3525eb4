//! The harness, and tests of single rules.
//! Goal: nodes are filled, split and freed as promised; a lack of space changes nothing; work stops
//! where credits end. Method: trees of one volume without files, with blocks of 1 KiB so that they
//! grow deep, and an allocator whose space can be limited.

mod damage;
mod images;
mod model;

use super::*;
use crate::corrupt::Corrupt;
use crate::error::Error;
use crate::ids::Run;
use crate::layout::RawSuperblock;
use crate::storage::{Buffer, Journal};
use kfs_disk::{BlockDevice, MemoryDevice};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::Arc;
use zerocopy::FromZeros;

const BLOCKS: u64 = 1 << 22;
/// Nodes come from here on; data from below.
const NODES_START: u64 = 3 << 20;

fn geometry(csum: bool) -> Geometry {
    let mut raw = RawSuperblock::new_zeroed();
    raw.s_magic.set(0xef53);
    raw.s_rev_level.set(1);
    raw.s_inode_size.set(256);
    raw.s_first_data_block.set(1);
    raw.s_first_ino.set(11);
    raw.s_blocks_per_group.set(8192);
    raw.s_inodes_per_group.set(8);
    raw.s_blocks_count_lo.set(BLOCKS as u32);
    raw.s_inodes_count
        .set(8 * (BLOCKS - 1).div_ceil(8192) as u32);
    let mut geometry = Geometry::try_from(&raw).expect("a valid superblock");
    geometry.csum_seed = csum.then_some(0x1234_5678);
    geometry
}

/// A volume of nothing but one tree.
struct Volume {
    device: Arc<dyn BlockDevice>,
    cache: Arc<BufferCache>,
    journal: Journal,
    geometry: Geometry,
    nodes: FakeAllocator,
    generation: u32,
}

#[derive(Default)]
struct FakeState {
    next: u64,
    used: BTreeSet<u64>,
    promised: u64,
    limit: u64,
}

#[derive(Default, Clone)]
struct FakeAllocator(Arc<Mutex<FakeState>>);

struct FakeReservation {
    state: Arc<Mutex<FakeState>>,
    left: u64,
}

impl Drop for FakeReservation {
    fn drop(&mut self) {
        self.state.lock().promised -= self.left;
    }
}

impl NodeAllocator for FakeAllocator {
    type Reservation = FakeReservation;

    fn reserve_nodes(&self, count: u32, _goal: BlockNr) -> Result<FakeReservation> {
        assert!(count > 0);
        let mut state = self.0.lock();
        if state.used.len() as u64 + state.promised + u64::from(count) > state.limit {
            return Err(Error::NoSpace);
        }
        state.promised += u64::from(count);
        Ok(FakeReservation {
            state: Arc::clone(&self.0),
            left: u64::from(count),
        })
    }

    fn allocate_node(&self, _: &mut Handle<'_>, reservation: &mut FakeReservation) -> BlockNr {
        let mut state = self.0.lock();
        reservation.left = reservation.left.checked_sub(1).expect("promised");
        state.promised -= 1;
        state.next += 1;
        let nr = state.next;
        assert!(state.used.insert(nr));
        BlockNr(nr)
    }

    fn check_free(&self, _: Run) -> Result<()> {
        Ok(())
    }

    fn free_node(&self, _: &mut Handle<'_>, block: BlockNr) -> Result<()> {
        assert!(self.0.lock().used.remove(&block.0), "freed twice: {block}");
        Ok(())
    }
}

impl Volume {
    fn new(csum: bool) -> Self {
        let device = Arc::new(MemoryDevice::new(BLOCKS * 1024));
        Self::open(device, geometry(csum), NODES_START)
    }

    /// Nodes are allocated from `nodes_start` on.
    fn open(device: Arc<MemoryDevice>, geometry: Geometry, nodes_start: u64) -> Self {
        let device: Arc<dyn BlockDevice> = device;
        let (block_size, blocks) = (geometry.block_size, geometry.blocks_count());
        let cache = BufferCache::new(Arc::clone(&device), block_size, blocks, 1 << 24);
        let cache = Arc::new(cache);
        let journal = Journal::open(Arc::clone(&device), Arc::clone(&cache), None);
        let nodes = FakeAllocator::default();
        nodes.0.lock().limit = u64::MAX;
        nodes.0.lock().next = nodes_start;
        Self {
            device,
            cache,
            journal,
            geometry,
            nodes,
            generation: 77,
        }
    }

    fn commit(&self) {
        let tid = self.journal.running_tid();
        self.journal.commit(tid).expect("memory");
    }

    fn tree(&self) -> ExtentTree<'_> {
        ExtentTree::new(&self.cache, &self.geometry, InodeNr(12), self.generation)
    }

    fn insert(&self, root: &mut Root, extent: Extent) -> Result<NodeChange> {
        let mut handle = self.journal.start(self.tree().step_credits(root)?)?;
        self.tree()
            .insert(root, &mut handle, &self.nodes, extent, BlockNr(0))
    }

    fn buffer(&self, nr: BlockNr) -> Arc<Buffer> {
        self.cache.get(nr).expect("in memory")
    }

    fn extents(&self, root: &Root) -> Vec<Extent> {
        let mut all = Vec::new();
        self.tree()
            .for_each(root, LogicalBlock(0), |extent| {
                all.push(extent);
                Ok(ControlFlow::Continue(()))
            })
            .expect("a sound tree");
        all
    }

    /// Checks all nodes as from disk, keys strictly, and that they are exactly the allocated ones.
    fn check(&self, root: &Root) {
        let mut found = BTreeSet::new();
        let node = self.tree().root_node(root).expect("a sound root");
        if node.depth() > 0 {
            assert!(
                node.len() > 1 || self.only_child_len(node) > 4,
                "could be shorter"
            );
        }
        let mut stack: Vec<(BlockNr, u16, u32)> = Vec::new();
        let mut push_children = |node: node::Node<'_>, stack: &mut Vec<(BlockNr, u16, u32)>| {
            if node.depth() > 0 {
                for entry in node.entries() {
                    assert!(found.insert(entry.child().0));
                    stack.push((entry.child(), node.depth() - 1, entry.key()));
                }
            }
        };
        push_children(node, &mut stack);
        while let Some((nr, depth, key)) = stack.pop() {
            let buffer = self.buffer(nr);
            let bytes = buffer.read();
            let tree = self.tree();
            assert!(crate::layout::extent::verify_checksum(tree.seed, &bytes));
            let span = check::Span {
                low: key,
                high: LOGICAL_END,
            };
            let node = tree
                .block_node(&buffer, &bytes, depth, span, true)
                .expect("a sound node");
            assert_eq!(
                node.entry(0).key(),
                key,
                "an index key is its child's first block"
            );
            push_children(node, &mut stack);
        }
        let state = self.nodes.0.lock();
        assert_eq!(found, state.used, "nodes leaked or lost");
        assert_eq!(state.promised, 0);
    }

    fn only_child_len(&self, node: node::Node<'_>) -> usize {
        let buffer = self.buffer(node.entry(0).child());
        let bytes = buffer.read();
        node::Node::new(&bytes).expect("sound").len()
    }
}

fn extent(logical: u32, physical: u64, len: u32) -> Extent {
    Extent {
        logical: LogicalBlock(logical),
        physical: BlockNr(physical),
        len,
        unwritten: false,
    }
}

/// A root with `count` extents of one block with holes between them.
fn sparse(volume: &Volume, count: u32) -> Root {
    let mut root = ExtentTree::empty_root();
    for i in 0..count {
        volume
            .insert(&mut root, extent(2 * i, 10 + 2 * u64::from(i), 1))
            .expect("space");
    }
    root
}

#[test]
fn appending_leaves_full_nodes_behind() {
    let volume = Volume::new(true);
    let root = sparse(&volume, 84 * 20);
    volume.check(&root);
    assert_eq!(volume.tree().root_node(&root).expect("sound").depth(), 2);
    // 20 full leaves and one node above them.
    assert_eq!(volume.nodes.0.lock().used.len(), 21);
}

#[test]
fn a_stream_is_one_extent_after_another() {
    let volume = Volume::new(true);
    let mut root = ExtentTree::empty_root();
    for i in 0..33 {
        let next = extent(2000 * i, 5000 + 2000 * u64::from(i), 2000);
        assert_eq!(
            volume.insert(&mut root, next).expect("space"),
            NodeChange::default()
        );
    }
    let all = volume.extents(&root);
    assert_eq!(
        all,
        [
            extent(0, 5000, 32768),
            extent(32768, 5000 + 32768, 32768),
            extent(65536, 5000 + 65536, 66000 - 65536)
        ]
    );
    assert_eq!(volume.tree().last(&root).expect("sound"), Some(all[2]));
}

#[test]
fn a_written_extent_of_greatest_length_becomes_two() {
    let volume = Volume::new(true);
    let mut root = ExtentTree::empty_root();
    volume
        .insert(&mut root, extent(7, 5000, 32768))
        .expect("space");
    let mut handle = volume.journal.start(REWRITE_CREDITS_MIN).expect("starts");
    let tree = volume.tree();
    let all = (LogicalBlock(0), 100_000);
    tree.mark_unwritten(&mut root, &mut handle, &volume.nodes, all.0, all.1)
        .expect("space");
    let lens: Vec<_> = volume
        .extents(&root)
        .iter()
        .map(|e| (e.len, e.unwritten))
        .collect();
    assert_eq!(lens, [(32767, true), (1, true)]);
    tree.mark_written(&mut root, &mut handle, &volume.nodes, all.0, all.1)
        .expect("space");
    assert_eq!(volume.extents(&root), [extent(7, 5000, 32768)]);
}

/// Every entry of full leaves becomes two.
#[test]
fn a_full_leaf_of_greatest_extents_doubles() {
    let volume = Volume::new(true);
    let mut root = ExtentTree::empty_root();
    for i in 0..90 {
        let next = extent(32768 * i, 10 + 32769 * u64::from(i), 32768);
        volume.insert(&mut root, next).expect("space");
    }
    let mut handle = volume.journal.start(200).expect("starts");
    let (tree, nodes) = (volume.tree(), &volume.nodes);
    let all = LogicalBlock(0);
    let done = tree.mark_unwritten(&mut root, &mut handle, nodes, all, 32768 * 90);
    assert_eq!(done.expect("space").next, None);
    let found = volume.extents(&root);
    assert_eq!(found.len(), 180);
    assert!(found.iter().all(|extent| extent.unwritten));
    volume.check(&root);
    let done = tree.mark_written(&mut root, &mut handle, nodes, all, 32768 * 90);
    assert_eq!(done.expect("space").next, None);
    assert_eq!(volume.extents(&root).len(), 90);
    volume.check(&root);
}

/// A freed node may hold file data at once: its transaction must not write it any more.
#[test]
fn freed_nodes_are_forgotten() {
    let volume = Volume::new(true);
    let mut root = sparse(&volume, 84 + 6);
    volume.commit();
    let freed = |first: u32, last: u32, root: &mut Root| {
        let before = volume.nodes.0.lock().used.clone();
        let (first, last) = (LogicalBlock(first), LogicalBlock(last));
        let mut handle = volume.journal.start(REWRITE_CREDITS_MIN).expect("starts");
        let tree = volume.tree();
        tree.remove(root, &mut handle, &volume.nodes, first, last)
            .expect("sound");
        let after = volume.nodes.0.lock().used.clone();
        before.difference(&after).copied().collect::<Vec<u64>>()
    };
    // The second leaf is changed, then freed; the first one is changed and moves into the root.
    assert_eq!(freed(2 * 85, 2 * 86, &mut root), Vec::<u64>::new());
    let second = freed(2 * 84, 2 * 100, &mut root);
    let first = freed(2 * 3, 2 * 84, &mut root);
    assert_eq!((second.len(), first.len()), (1, 1));
    let data = [0xda; 1024];
    for nr in [second[0], first[0]] {
        volume.device.write_at(nr * 1024, &data).expect("memory");
    }
    volume.commit();
    for nr in [second[0], first[0]] {
        let mut found = [0; 1024];
        volume
            .device
            .read_at(nr * 1024, &mut found)
            .expect("memory");
        assert_eq!(found, data, "the journal wrote a freed node");
    }
}

#[test]
fn overlaps_and_impossible_extents_are_refused() {
    let volume = Volume::new(true);
    let mut root = sparse(&volume, 200);
    for (bad, want) in [
        (extent(10, 100, 1), "already exists"),
        (extent(11, 100, 2), "already exists"),
        (extent(167, 100, 2), "already exists"),
        (extent(1001, 100, 0), "invalid argument"),
        (extent(1001, 100, 32769), "invalid argument"),
        (extent(1001, 0, 1), "invalid argument"),
        (extent(1001, BLOCKS, 1), "invalid argument"),
        (extent(u32::MAX, 100, 1), "file too large"),
    ] {
        assert_eq!(
            volume
                .insert(&mut root, bad)
                .expect_err("refused")
                .to_string(),
            want
        );
    }
    volume
        .insert(&mut root, extent(u32::MAX - 1, 100, 1))
        .expect("the last block");
    assert_eq!(volume.extents(&root).len(), 201);
}

#[test]
fn no_space_changes_nothing() {
    let volume = Volume::new(true);
    let mut root = sparse(&volume, 84 * 4);
    let used = volume.nodes.0.lock().used.len() as u64;
    volume.nodes.0.lock().limit = used;
    let before = (root, volume.extents(&root));
    let mut handle = volume.journal.start(REWRITE_CREDITS_MIN).expect("starts");
    let tree = volume.tree();
    let more = extent(3001, 9, 1);
    let refused = tree.insert(&mut root, &mut handle, &volume.nodes, more, BlockNr(0));
    assert!(matches!(refused, Err(Error::NoSpace)));
    assert!(!handle.is_modified());
    assert_eq!(before, (root, volume.extents(&root)));
    volume.nodes.0.lock().limit = used + 1;
    let refused = tree.insert(&mut root, &mut handle, &volume.nodes, more, BlockNr(0));
    assert!(
        matches!(refused, Err(Error::NoSpace)),
        "a leaf and the root's content move"
    );
    volume.nodes.0.lock().limit = used + 2;
    tree.insert(&mut root, &mut handle, &volume.nodes, more, BlockNr(0))
        .expect("space");
}

#[test]
fn marking_across_leaves_reserves_for_its_end_first() {
    let volume = Volume::new(true);
    let mut root = ExtentTree::empty_root();
    for i in 0..84 * 2 {
        let one = Extent {
            unwritten: true,
            ..extent(10 * i, 50 + 10 * u64::from(i), 4)
        };
        volume.insert(&mut root, one).expect("space");
    }
    let used = volume.nodes.0.lock().used.len() as u64;
    let before = (root, volume.extents(&root));
    // Begins and ends inside extents of two full leaves.
    let (first, len) = (LogicalBlock(10 * 83 + 1), 10 * 84 + 1);
    let tree = volume.tree();
    for spare in 0..10 {
        volume.nodes.0.lock().limit = used + spare;
        let mut handle = volume.journal.start(200).expect("starts");
        match tree.mark_written(&mut root, &mut handle, &volume.nodes, first, len) {
            Err(error) => {
                assert!(matches!(error, Error::NoSpace));
                assert_eq!(
                    before,
                    (root, volume.extents(&root)),
                    "with {spare} nodes to spare"
                );
            }
            Ok(progress) => {
                assert!(spare >= 2);
                assert_eq!(progress.next, None);
                assert_eq!(progress.nodes.added, 2);
                volume.check(&root);
                return;
            }
        }
    }
    panic!("never enough space");
}

#[test]
fn removal_goes_on_where_credits_ended() {
    let volume = Volume::new(true);
    let mut root = ExtentTree::empty_root();
    // Each in a group of its own.
    for i in 0..300 {
        volume
            .insert(&mut root, extent(3 * i, 100 + 8192 * u64::from(i), 2))
            .expect("space");
    }
    let (mut calls, mut next, mut runs) = (0, Some(LogicalBlock(0)), Vec::new());
    while let Some(first) = next {
        let mut handle = volume
            .journal
            .start(REWRITE_CREDITS_MIN + 40)
            .expect("starts");
        let last = LogicalBlock(u32::MAX);
        let removed = volume
            .tree()
            .remove(&mut root, &mut handle, &volume.nodes, first, last)
            .expect("ok");
        assert!(!removed.runs.is_empty());
        assert!(handle.credits() >= removed.runs.len() as u32 * NODE_CREDITS);
        runs.extend(removed.runs);
        next = removed.progress.next;
        calls += 1;
    }
    assert!(calls > 2);
    let want: Vec<Run> = (0..300)
        .map(|i| Run {
            start: BlockNr(100 + 8192 * i),
            len: 2,
        })
        .collect();
    assert_eq!(runs, want);
    assert_eq!(root, ExtentTree::empty_root());
    volume.check(&root);
}

#[test]
fn a_long_extent_is_freed_group_by_group() {
    let volume = Volume::new(true);
    let mut root = ExtentTree::empty_root();
    volume
        .insert(&mut root, extent(0, 8000, 32768))
        .expect("space");
    let (mut next, mut freed) = (Some(LogicalBlock(0)), 0);
    while let Some(first) = next {
        let credits = step_credits(0) + KEPT_CREDITS + NODE_CREDITS;
        let mut handle = volume.journal.start(credits).expect("starts");
        let last = LogicalBlock(u32::MAX);
        let removed = volume
            .tree()
            .remove(&mut root, &mut handle, &volume.nodes, first, last)
            .expect("ok");
        assert_eq!(removed.runs.len(), 1);
        assert!(removed.runs[0].len <= 8192);
        freed += removed.runs[0].len;
        next = removed.progress.next;
    }
    assert_eq!(freed, 32768);
    assert_eq!(root, ExtentTree::empty_root());
}

#[test]
fn replace_needs_a_mapped_range() {
    let volume = Volume::new(true);
    let mut root = sparse(&volume, 3);
    let mut handle = volume.journal.start(REWRITE_CREDITS_MIN).expect("starts");
    let mut replace = |root: &mut Root, first, len, to| {
        let first = LogicalBlock(first);
        volume.tree().replace(
            root,
            &mut handle,
            &volume.nodes,
            first,
            len,
            BlockNr(to),
            false,
        )
    };
    assert!(matches!(replace(&mut root, 2, 2, 500), Err(Error::Invalid)));
    assert!(matches!(
        replace(&mut root, 2, 1, BLOCKS),
        Err(Error::Invalid)
    ));
    let replaced = replace(&mut root, 2, 1, 500).expect("mapped");
    assert_eq!(
        replaced.old.as_slice(),
        [Run {
            start: BlockNr(12),
            len: 1
        }]
    );
    let map = volume.tree().map(&root, LogicalBlock(2), 9).expect("sound");
    assert_eq!(
        map,
        Mapping::Mapped {
            physical: BlockNr(500),
            len: 1
        }
    );
}

/// Random single blocks over the whole range of logical blocks, in, and out again in another order.
#[test]
fn deep_trees_grow_and_shrink() {
    let volume = Volume::new(true);
    let mut root = ExtentTree::empty_root();
    let count = 40_000u32;
    // An odd multiplier visits all residues of a power of two once.
    let place = |i: u32| i.wrapping_mul(2_654_435_761) >> 1;
    let mut model = BTreeMap::new();
    for i in 0..count {
        let physical = 10 + 2 * u64::from(i);
        volume
            .insert(&mut root, extent(place(i), physical, 1))
            .expect("space");
        model.insert(place(i), physical);
    }
    volume.check(&root);
    assert_eq!(volume.tree().root_node(&root).expect("sound").depth(), 3);
    let found: BTreeMap<_, _> = volume
        .extents(&root)
        .iter()
        .map(|e| (e.logical.0, e.physical.0))
        .collect();
    assert_eq!(found, model);
    for i in (0..count)
        .map(|i| i.wrapping_mul(7919) % count)
        .collect::<BTreeSet<_>>()
    {
        let block = LogicalBlock(place(i));
        let mut handle = volume.journal.start(REWRITE_CREDITS_MIN).expect("starts");
        let removed = volume
            .tree()
            .remove(&mut root, &mut handle, &volume.nodes, block, block)
            .expect("no space needed");
        assert_eq!(removed.runs.len(), 1);
        if i % 5000 == 0 {
            volume.check(&root);
        }
    }
    assert_eq!(root, ExtentTree::empty_root());
    volume.check(&root);
}
