//! Goal: a volume that is full to the last block because of its snapshots says so and loses nothing, and
//! deleting a snapshot makes room again.
//!
//! Method: two snapshots, then data up to the last block, and then so many changes of metadata under ever
//! more snapshots that the snapshot store is full, too, and cannot grow. The tree and all snapshots show
//! what they did before, after the volume was opened again as well; then the oldest snapshot is deleted.

use kfs::{
    Error, Filesystem, NewNode, Result, SetAttr, SliceSource, TimeChange, Timestamp, WriteOptions,
};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::check;
use kfs_tests::power_cut::{Picture, formatted, open};
use kfs_tests::tree::picture;
use std::sync::Arc;

const FILES: usize = 60;
/// Those that only the first snapshot has. A part of what they leave is reserved for root.
const GONE: usize = 30;

/// A volume, and what its snapshots must show.
struct Full {
    device: Arc<MemoryDevice>,
    fs: Arc<Filesystem>,
    taken: Vec<(String, Picture)>,
    context: String,
}

fn is_full(error: &Error) -> bool {
    matches!(error, Error::NoSpace | Error::SnapshotStoreFull)
}

impl Full {
    fn new(block_size: u32) -> Self {
        let options = mkfs::Options {
            block_size: Some(block_size),
            blocks_per_group: Some(2048),
            ..mkfs::Options::default()
        };
        let device = Arc::new(formatted(u64::from(block_size) * 6000, &options));
        let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
        let mut full = Self {
            device,
            fs,
            taken: Vec::new(),
            context: format!("blocks of {block_size}"),
        };
        for number in 0..FILES {
            full.write(&format!("file-{number}"), 0, 20 * block_size as usize)
                .expect("there is room");
        }
        full.take("one").expect("there is room");
        for number in 0..GONE {
            full.remove(&format!("file-{number}"));
        }
        full.take("two").expect("there is room");
        full
    }

    fn block(&self) -> usize {
        self.fs.volume().geometry.block_size as usize
    }

    fn take(&mut self, name: &str) -> Result<()> {
        self.fs.create_snapshot(name, "")?;
        let shown = picture(&self.fs).expect("reads");
        self.taken.push((name.into(), shown));
        Ok(())
    }

    fn remove(&self, name: &str) {
        let root = self.fs.root().expect("a root");
        self.fs.unlink(&root, name.as_bytes()).expect("removes");
    }

    /// Writes to a file, which is made if need be. Less than all is an error.
    fn write(&self, name: &str, offset: u64, len: usize) -> Result<()> {
        let root = self.fs.root()?;
        let node = NewNode {
            mode: 0o100_644,
            ..NewNode::default()
        };
        let file = match self.fs.lookup(&root, name.as_bytes()) {
            Err(Error::NotFound) => self.fs.create(&root, name.as_bytes(), &node)?,
            found => found?,
        };
        let bytes = vec![len as u8 | 1; len];
        let options = WriteOptions::default();
        let source = &mut SliceSource::new(&bytes);
        let written = self.fs.write(&file, offset, len, source, options)?;
        if written < len {
            return Err(Error::NoSpace);
        }
        Ok(())
    }

    /// Runs until there is no room.
    fn until_full(&self, mut step: impl FnMut(u64) -> Result<()>) {
        for number in 0..1_000_000 {
            match step(number) {
                Ok(()) => {}
                Err(error) if is_full(&error) => return,
                Err(error) => panic!("{}: {error:?}", self.context),
            }
        }
        panic!("{}: it never gets full", self.context);
    }

    /// Data up to the last block, over what snapshots keep, too.
    fn fill(&self) {
        let block = self.block();
        self.until_full(|number| self.write("big", number * 64 * block as u64, 64 * block));
        self.until_full(|number| {
            let name = format!("small-{}", number / 100);
            self.write(&name, number % 100 * block as u64, block)
        });
        let name = format!("file-{}", FILES - 1);
        let over = self.write(&name, 3, 10 * block);
        let error = over.expect_err("what a snapshot keeps needs another place");
        assert!(is_full(&error), "{}: {error:?}", self.context);
    }

    /// Changes all inodes under ever more snapshots, until the store has no room for what they were.
    fn fill_store(&mut self) {
        for round in 0..10_000 {
            match self.take(&format!("more-{round}")) {
                Ok(()) => {}
                Err(error) if is_full(&error) => return,
                Err(error) => panic!("{}: {error:?}", self.context),
            }
            match self.touch_all(round) {
                Ok(()) => {}
                Err(Error::SnapshotStoreFull) => return,
                Err(error) => panic!("{}: {error:?}", self.context),
            }
        }
        panic!("{}: the store never gets full", self.context);
    }

    fn touch_all(&self, round: i64) -> Result<()> {
        let root = self.fs.root()?;
        let stamp = Timestamp {
            seconds: round,
            nanoseconds: 0,
        };
        let change = SetAttr {
            mtime: Some(TimeChange::To(stamp)),
            uid: Some(round as u32),
            ..SetAttr::default()
        };
        for number in GONE..FILES {
            let name = format!("file-{number}");
            let file = self.fs.lookup(&root, name.as_bytes())?;
            self.fs.set_attr(&file, &change)?;
        }
        self.fs.sync()
    }

    fn assert_snapshots(&self, when: &str) {
        for (name, expected) in &self.taken {
            let context = format!("{}, {when}, {name}", self.context);
            let view = self.fs.open_snapshot(name);
            let view = view.unwrap_or_else(|error| panic!("{context}: {error:?}"));
            let shown = picture(&view).unwrap_or_else(|error| panic!("{context}: {error:?}"));
            assert!(shown == *expected, "{context}: shows something else");
        }
    }

    /// Closes the volume and opens it again: nothing has changed.
    fn reopen(&mut self, when: &str) {
        self.assert_snapshots(when);
        let before = picture(&self.fs).expect("reads");
        let closed = self.fs.close();
        closed.unwrap_or_else(|error| panic!("{}, {when}: {error:?}", self.context));
        let device = || Arc::clone(&self.device) as Arc<dyn BlockDevice>;
        check::assert_clean(device(), &format!("{}, {when}", self.context));
        self.fs = open(device()).expect("opens again");
        assert!(before == picture(&self.fs).expect("reads"), "{when}");
        self.assert_snapshots(when);
    }

    fn delete_oldest(&mut self) {
        let (name, _) = self.taken.remove(0);
        let deleted = self.fs.delete_snapshot(&name);
        deleted.unwrap_or_else(|error| panic!("{}: {name}: {error:?}", self.context));
    }

    /// The oldest snapshot goes, and there is room again; then all others.
    fn make_room(mut self) {
        self.delete_oldest();
        let block = self.block();
        let written = self.write("afterwards", 0, 3 * block);
        written.unwrap_or_else(|error| panic!("{}: {error:?}", self.context));
        self.touch_all(77)
            .unwrap_or_else(|error| panic!("{}: {error:?}", self.context));
        self.reopen("after one was deleted");
        while !self.taken.is_empty() {
            self.delete_oldest();
        }
        self.write("last", 0, 10 * block).expect("there is room");
        let pinned = self.fs.volume().allocator.pinned_blocks();
        assert_eq!(pinned, 0, "{}", self.context);
        self.reopen("without snapshots");
    }
}

#[test]
fn data_fills_the_volume() {
    for block_size in [1024, 2048, 4096] {
        let mut full = Full::new(block_size);
        full.fill();
        full.reopen("full");
        full.fill();
        full.make_room();
    }
}

#[test]
fn the_store_cannot_grow() {
    for block_size in [1024, 2048, 4096] {
        let mut full = Full::new(block_size);
        full.fill();
        full.fill_store();
        assert!(full.taken.len() > 3, "{}", full.context);
        full.reopen("store full");
        full.make_room();
    }
}
