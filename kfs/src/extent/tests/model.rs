//! Goal: a tree is what a map from blocks to blocks would be.
//! Method: random changes beside a `BTreeMap`, compared in full after each.

use super::*;
use proptest::prelude::*;

/// What a block is mapped to.
pub(super) type Model = BTreeMap<u32, (u64, bool)>;

#[derive(Clone, Debug)]
pub(super) enum Op {
    Insert {
        first: u32,
        len: u32,
        unwritten: bool,
        joined: bool,
    },
    Remove {
        first: u32,
        len: u32,
    },
    Mark {
        first: u32,
        len: u32,
        unwritten: bool,
    },
    Replace {
        pick: usize,
        unwritten: bool,
    },
    /// Every other block of a stretch, to make many entries.
    Comb {
        first: u32,
        teeth: u32,
    },
    DropCaches,
}

pub(super) const LOGICAL_RANGE: u32 = 6000;

fn op() -> impl Strategy<Value = Op> {
    let at = 0..LOGICAL_RANGE;
    prop_oneof![
        4 => (at.clone(), 1..40u32, any::<bool>(), any::<bool>()).prop_map(
            |(first, len, unwritten, joined)| Op::Insert { first, len, unwritten, joined }
        ),
        3 => (at.clone(), prop_oneof![1..30u32, 30..3000u32])
            .prop_map(|(first, len)| Op::Remove { first, len }),
        3 => (at.clone(), prop_oneof![1..30u32, 30..3000u32], any::<bool>())
            .prop_map(|(first, len, unwritten)| Op::Mark { first, len, unwritten }),
        2 => (any::<usize>(), any::<bool>())
            .prop_map(|(pick, unwritten)| Op::Replace { pick, unwritten }),
        3 => (at, 50..400u32).prop_map(|(first, teeth)| Op::Comb { first, teeth }),
        1 => Just(Op::DropCaches),
    ]
}

/// A tree and its model.
pub(super) struct Pair {
    pub(super) volume: Volume,
    pub(super) root: Root,
    pub(super) model: Model,
    pub(super) next_physical: u64,
    pub(super) node_blocks: i64,
}

impl Pair {
    /// An empty tree. Data blocks are taken from `physical` on.
    pub(super) fn new(volume: Volume, physical: u64) -> Self {
        Self {
            volume,
            root: ExtentTree::empty_root(),
            model: Model::new(),
            next_physical: physical,
            node_blocks: 0,
        }
    }

    fn physical(&mut self, len: u32) -> u64 {
        self.next_physical += u64::from(len) + 1;
        assert!(self.next_physical < NODES_START);
        self.next_physical - u64::from(len)
    }

    pub(super) fn insert(&mut self, first: u32, len: u32, unwritten: bool, joined: bool) {
        let taken = (first..first + len).any(|block| self.model.contains_key(&block));
        let before = first
            .checked_sub(1)
            .and_then(|block| self.model.get(&block));
        let physical = match before {
            Some((physical, _)) if joined => physical + 1,
            _ => self.physical(len),
        };
        let new = Extent {
            unwritten,
            ..extent(first, physical, len)
        };
        match self.volume.insert(&mut self.root, new) {
            Ok(change) => {
                assert!(!taken);
                self.node_blocks += change.net();
                for i in 0..len {
                    self.model
                        .insert(first + i, (physical + u64::from(i), unwritten));
                }
            }
            Err(error) => assert!(taken && matches!(error, Error::Exists)),
        }
    }

    /// Runs a change to its end, in as many handles as it takes.
    fn in_handles(
        &mut self,
        first: u32,
        len: u32,
        credits: u32,
        mut one: impl FnMut(&mut Root, &mut Handle<'_>, &Volume, LogicalBlock, u32) -> Progress,
    ) {
        let end = first + len;
        let mut next = Some(LogicalBlock(first));
        while let Some(at) = next {
            let mut handle = self.volume.journal.start(credits).expect("starts");
            let progress = one(&mut self.root, &mut handle, &self.volume, at, end - at.0);
            assert!(progress.next.is_none_or(|next| next > at && next.0 < end));
            next = progress.next;
            self.node_blocks += progress.nodes.net();
        }
    }

    pub(super) fn remove(&mut self, first: u32, len: u32) {
        let mut removed = BTreeSet::new();
        self.in_handles(
            first,
            len,
            REWRITE_CREDITS_MIN,
            |root, handle, volume, at, len| {
                let last = LogicalBlock(at.0 + len - 1);
                let done = volume
                    .tree()
                    .remove(root, handle, &volume.nodes, at, last)
                    .expect("space");
                for run in done.runs {
                    removed.extend(run.start.0..run.end().0);
                }
                done.progress
            },
        );
        let mut want = BTreeSet::new();
        for block in first..first + len {
            want.extend(self.model.remove(&block).map(|(physical, _)| physical));
        }
        assert_eq!(removed, want);
    }

    pub(super) fn mark(&mut self, first: u32, len: u32, unwritten: bool) {
        let credits = STEP_CREDITS_MAX + KEPT_CREDITS;
        self.in_handles(first, len, credits, |root, handle, volume, at, len| {
            let (tree, nodes) = (volume.tree(), &volume.nodes);
            if unwritten {
                tree.mark_unwritten(root, handle, nodes, at, len)
                    .expect("space")
            } else {
                tree.mark_written(root, handle, nodes, at, len)
                    .expect("space")
            }
        });
        for (_, state) in self.model.range_mut(first..first + len) {
            state.1 = unwritten;
        }
    }

    /// Moves a stretch around some mapped block.
    pub(super) fn replace(&mut self, pick: usize, unwritten: bool) {
        if self.model.is_empty() {
            return;
        }
        let first = *self
            .model
            .keys()
            .nth(pick % self.model.len())
            .expect("in range");
        let len = (first..)
            .take_while(|block| self.model.contains_key(block))
            .count();
        let len = (len as u32).min(1 + pick as u32 % 64);
        let physical = self.physical(len);
        let mut old = Vec::new();
        self.in_handles(
            first,
            len,
            REWRITE_CREDITS_MIN,
            |root, handle, volume, at, len| {
                let to = BlockNr(physical + u64::from(at.0 - first));
                let done = volume
                    .tree()
                    .replace(root, handle, &volume.nodes, at, len, to, unwritten)
                    .expect("space");
                old.extend(done.old.iter().flat_map(|run| run.start.0..run.end().0));
                done.progress
            },
        );
        let mut want = Vec::new();
        for i in 0..len {
            let new = (physical + u64::from(i), unwritten);
            want.extend(
                self.model
                    .insert(first + i, new)
                    .map(|(physical, _)| physical),
            );
        }
        assert_eq!(old, want);
    }

    pub(super) fn run(&mut self, op: &Op) {
        match *op {
            Op::Insert {
                first,
                len,
                unwritten,
                joined,
            } => {
                self.insert(first, len, unwritten, joined);
            }
            Op::Remove { first, len } => self.remove(first, len),
            Op::Mark {
                first,
                len,
                unwritten,
            } => self.mark(first, len, unwritten),
            Op::Replace { pick, unwritten } => self.replace(pick, unwritten),
            Op::Comb { first, teeth } => {
                for i in 0..teeth {
                    self.insert(first + 2 * i, 1, false, false);
                }
            }
            Op::DropCaches => {
                self.volume.commit();
                self.volume.cache.drop_clean();
            }
        }
    }

    pub(super) fn compare(&self) {
        self.volume.check(&self.root);
        assert_eq!(
            self.node_blocks,
            self.volume.nodes.0.lock().used.len() as i64
        );
        let mut found = Model::new();
        for extent in self.volume.extents(&self.root) {
            for i in 0..extent.len {
                let state = (extent.physical.0 + u64::from(i), extent.unwritten);
                assert_eq!(found.insert(extent.logical.0 + i, state), None);
            }
        }
        assert_eq!(found, self.model);
        self.compare_maps();
    }

    /// `map` at every block says what the model says, to the end of what it claims.
    fn compare_maps(&self) {
        let mut at = 0;
        while at < LOGICAL_RANGE {
            let answer = self
                .volume
                .tree()
                .map(&self.root, LogicalBlock(at), 50)
                .expect("sound");
            let (len, want): (u32, Option<(u64, bool)>) = match answer {
                Mapping::Mapped { physical, len } => (len, Some((physical.0, false))),
                Mapping::Unwritten { physical, len } => (len, Some((physical.0, true))),
                Mapping::Hole { len } => (len, None),
            };
            assert!((1..=50).contains(&len));
            for i in 0..len {
                let want = want.map(|(physical, state)| (physical + u64::from(i), state));
                assert_eq!(self.model.get(&(at + i)).copied(), want);
            }
            at += len;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_tree_is_a_map(ops in prop::collection::vec(op(), 1..60), csum: bool) {
        let mut pair = Pair::new(Volume::new(csum), 10);
        for op in &ops {
            pair.run(op);
            pair.compare();
        }
        pair.remove(0, 2 * LOGICAL_RANGE);
        prop_assert_eq!(pair.root, ExtentTree::empty_root());
        pair.compare();
    }
}
