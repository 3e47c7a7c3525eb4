//! The images that fuzzed ones are made of: small, of several formats, with one of everything, and
//! a map of where everything lies.
//!
//! Made by mkfs and kfs in the process, once, without anything random: an input means the same
//! image everywhere.

mod checksums;
mod edit;
mod inline;
mod make;
mod places;
mod store;

pub use checksums::fix_log;
pub use edit::Editor;
pub use places::{Kind, Place};

use kfs::{ErrorsPolicy, FixedClock, Geometry, MountOptions};
use kfs_disk::MemoryDevice;
use std::sync::{Arc, OnceLock};

/// An image to start from.
#[derive(Debug)]
pub struct Base {
    /// The image as it is when nobody uses it.
    pub clean: MemoryDevice,
    /// The image as a power cut leaves it: a log to replay, orphans to delete.
    pub dirty: MemoryDevice,
    /// Facts of both.
    pub geometry: Geometry,
    /// What lies where.
    pub places: Vec<Place>,
    /// Indexes of the places of each class.
    pub by_class: [Vec<usize>; Kind::CLASSES],
    /// Blocks of the log.
    pub log: Vec<u64>,
    /// Blocks of the snapshot store; none without snapshots.
    pub store: Vec<u64>,
}

/// How an image is made.
struct Recipe {
    block_size: u32,
    size_bytes: u64,
    features: &'static str,
    inode_size: u32,
    blocks_per_group: u32,
    inodes_count: u64,
    /// Names in a directory with a hash tree: 1300 need two levels of index blocks.
    names: u32,
    /// Whether some content lies in inodes. kfs reads such images only.
    inline_data: bool,
}

const RECIPES: [Recipe; 6] = [
    Recipe {
        block_size: 1024,
        size_bytes: 6 << 20,
        features: "",
        inode_size: 256,
        blocks_per_group: 2048,
        inodes_count: 384,
        names: 1300,
        inline_data: false,
    },
    Recipe {
        block_size: 4096,
        size_bytes: 14 << 20,
        features: "metadata_csum_seed,large_dir",
        inode_size: 256,
        blocks_per_group: 2048,
        inodes_count: 384,
        names: 300,
        inline_data: false,
    },
    Recipe {
        block_size: 1024,
        size_bytes: 6 << 20,
        features: "^metadata_csum,^64bit,^orphan_file",
        inode_size: 256,
        blocks_per_group: 2048,
        inodes_count: 384,
        names: 250,
        inline_data: false,
    },
    Recipe {
        block_size: 4096,
        size_bytes: 14 << 20,
        features: "^metadata_csum",
        inode_size: 512,
        blocks_per_group: 32768,
        inodes_count: 384,
        names: 250,
        inline_data: false,
    },
    Recipe {
        block_size: 1024,
        size_bytes: 6 << 20,
        features: "",
        inode_size: 256,
        blocks_per_group: 8192,
        inodes_count: 384,
        names: 250,
        inline_data: true,
    },
    Recipe {
        block_size: 1024,
        size_bytes: 4 << 20,
        features: "^has_journal,^metadata_csum,uninit_bg,meta_bg,^64bit",
        inode_size: 128,
        blocks_per_group: 1024,
        inodes_count: 384,
        names: 250,
        inline_data: false,
    },
];

/// Those with two snapshots.
const WITH_SNAPSHOTS: [Recipe; 2] = [
    Recipe {
        block_size: 1024,
        size_bytes: 8 << 20,
        features: "",
        inode_size: 256,
        blocks_per_group: 2048,
        inodes_count: 384,
        names: 100,
        inline_data: false,
    },
    Recipe {
        block_size: 4096,
        size_bytes: 20 << 20,
        features: "^metadata_csum",
        inode_size: 256,
        blocks_per_group: 2048,
        inodes_count: 384,
        names: 100,
        inline_data: false,
    },
];

/// How many there are, those with snapshots aside.
pub const COUNT: usize = RECIPES.len();
/// Those with a journal.
pub const WITH_JOURNAL: usize = 5;

static BASES: [OnceLock<Base>; COUNT] = [const { OnceLock::new() }; COUNT];

/// An image by number, modulo the count.
pub fn get(number: usize) -> &'static Base {
    let number = number % COUNT;
    BASES[number].get_or_init(|| make::base(&RECIPES[number], false))
}

static BASES_WITH_SNAPSHOTS: [OnceLock<Base>; 2] = [const { OnceLock::new() }; 2];

/// An image with two snapshots by number, modulo their count.
pub fn with_snapshots(number: usize) -> &'static Base {
    let number = number % WITH_SNAPSHOTS.len();
    BASES_WITH_SNAPSHOTS[number].get_or_init(|| make::base(&WITH_SNAPSHOTS[number], true))
}

/// Options under which all that a volume does follows from what it is asked to.
#[must_use]
pub fn options() -> MountOptions {
    MountOptions {
        read_only: false,
        clock: Arc::new(FixedClock::new(1_700_000_000)),
        generation_seed: Some(1),
        commit_interval: None,
        errors: ErrorsPolicy::Continue,
        cache_bytes: 1 << 20,
        is_snapshot: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfs::{Filesystem, SliceSink};
    use std::ops::ControlFlow;

    /// Both states have their snapshots, and what mutations aim at is there.
    #[test]
    fn snapshots_are_there() {
        for number in 0..2 {
            let base = with_snapshots(number);
            for image in [&base.clean, &base.dirty] {
                let fs = Filesystem::open(Arc::new(image.snapshot()), options()).unwrap();
                let names: Vec<String> = fs.snapshots().into_iter().map(|s| s.name).collect();
                assert_eq!(names, ["first", "second"]);
                for (name, len) in [("first", 20_000), ("second", 9_000)] {
                    let view = fs.open_snapshot(name).unwrap();
                    let file = view.lookup(&view.root().unwrap(), b"plain").unwrap();
                    assert_eq!(view.attr(&file).size_bytes, len);
                }
            }
            for class in 14..Kind::CLASSES {
                assert!(!base.by_class[class].is_empty(), "class {class}");
            }
            // Made right, what is right stays as it is.
            let image = base.dirty.snapshot();
            store::fix_store(&image, &base.geometry, &base.store);
            assert!(image.to_vec() == base.dirty.to_vec());
        }
    }

    /// What lies in inodes is read: the image is as its recipe says.
    #[test]
    fn inline_content_is_there() {
        let base = RECIPES.iter().position(|recipe| recipe.inline_data);
        let image = get(base.expect("there is one")).clean.snapshot();
        let fs = Filesystem::open(Arc::new(image), options()).unwrap();
        let root = fs.root().unwrap();
        let file = fs.lookup(&root, b"inline").unwrap();
        let mut content = [0; 200];
        let mut sink = SliceSink::new(&mut content);
        assert_eq!(fs.read(&file, 0, 200, &mut sink).unwrap(), 100);
        assert_eq!(&content[..100], [b'c'; 100]);
        let directory = fs.lookup(&root, b"inline-directory").unwrap();
        let mut names = Vec::new();
        fs.list(&directory, 0, &mut |entry| {
            names.push(entry.name.to_vec());
            ControlFlow::Continue(())
        })
        .unwrap();
        names.sort();
        assert_eq!(names, [&b"."[..], b"..", b"one", b"three", b"two"]);
    }
}
