//! Goal: no bytes in a node make a use of the tree panic or loop, and with checksums none is believed.
//! Method: bits flipped in the root, an index node and a leaf; every tree is then used in all ways.

use super::*;

/// Flips every bit of a root, a node and a leaf in turn: each read and change ends with an answer.
#[test]
fn damaged_nodes_are_reported() {
    let volume = Volume::new(true);
    let root = sparse(&volume, 84 * 6);
    let mut blocks = Vec::new();
    volume
        .tree()
        .for_each_node(&root, |nr| {
            blocks.push(nr);
            Ok(())
        })
        .expect("sound");
    let device = MemoryDevice::new(BLOCKS * 1024);
    for nr in &blocks {
        device
            .write_at(nr.0 * 1024, &volume.buffer(*nr).read())
            .expect("memory");
    }
    for csum in [true, false] {
        let geometry = geometry(csum);
        for nr in [blocks[0], blocks[1]] {
            for at in (0..60).chain(1000..1024) {
                for bit in [0, 7] {
                    let copy: Arc<dyn BlockDevice> = Arc::new(device.snapshot());
                    let mut byte = [0];
                    copy.read_at(nr.0 * 1024 + at, &mut byte).expect("memory");
                    copy.write_at(nr.0 * 1024 + at, &[byte[0] ^ 1 << bit])
                        .expect("memory");
                    let seen = use_damaged(copy, &geometry, root);
                    // eh_generation is not looked at; the tail is 4 bytes behind the entries.
                    assert!(!csum || seen, "byte {at} bit {bit} of {nr} went unnoticed");
                }
            }
        }
        for at in 0..60 {
            for bit in 0..8 {
                let mut root = root;
                root[at] ^= 1 << bit;
                use_damaged(Arc::new(device.snapshot()), &geometry, root);
            }
        }
    }
}

/// Uses a tree in all ways; answers whether some use reported damage.
fn use_damaged(device: Arc<dyn BlockDevice>, geometry: &Geometry, mut root: Root) -> bool {
    let cache = Arc::new(BufferCache::new(Arc::clone(&device), 1024, BLOCKS, 1 << 20));
    let journal = Journal::open(device, Arc::clone(&cache), None);
    let tree = ExtentTree::new(&cache, geometry, InodeNr(12), 77);
    let volume = Volume::new(true);
    let nodes = &LenientAllocator(volume.nodes.clone());
    let is_damage = |error: &Error| matches!(error, Error::Corrupt(_));
    let mut seen = false;
    let walked = tree.for_each(&root, LogicalBlock(0), |_| Ok(ControlFlow::Continue(())));
    seen |= walked.as_ref().is_err_and(is_damage);
    for at in [0, 5, 167, 168, 169, 1000, u32::MAX] {
        seen |= tree
            .map(&root, LogicalBlock(at), u32::MAX)
            .as_ref()
            .is_err_and(is_damage);
    }
    let Ok(mut handle) = journal.start(1000) else {
        return seen;
    };
    for at in [1, 169, 2001] {
        let one = extent(at, 4000, 1);
        let _ = tree.insert(&mut root, &mut handle, nodes, one, BlockNr(0));
    }
    let _ = tree.mark_unwritten(&mut root, &mut handle, nodes, LogicalBlock(3), 500);
    let (first, last) = (LogicalBlock(2), LogicalBlock(u32::MAX));
    let _ = tree.remove(&mut root, &mut handle, nodes, first, last);
    seen
}

/// Lets nodes be freed that it does not know, as in damaged trees.
struct LenientAllocator(FakeAllocator);

impl NodeAllocator for LenientAllocator {
    type Reservation = FakeReservation;

    fn reserve_nodes(&self, count: u32, goal: BlockNr) -> Result<FakeReservation> {
        self.0.reserve_nodes(count, goal)
    }

    fn allocate_node(&self, handle: &mut Handle<'_>, left: &mut FakeReservation) -> BlockNr {
        self.0.allocate_node(handle, left)
    }

    fn check_free(&self, _: Run) -> Result<()> {
        Ok(())
    }

    fn free_node(&self, _: &mut Handle<'_>, _: BlockNr) -> Result<()> {
        Ok(())
    }
}
