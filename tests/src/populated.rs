//! A volume with all kinds of things on it, for tests that move them.

use kfs::{Error, Filesystem, Inode, NewNode, SetMode, SliceSource, SpaceChange, WriteOptions};
use kfs_disk::testing::SplitMix64;
use std::sync::Arc;

/// A volume with all kinds of things on it, most of them far behind its beginning.
pub struct Populated<'f> {
    fs: &'f Arc<Filesystem>,
    random: SplitMix64,
}

impl<'f> Populated<'f> {
    /// Puts things on a volume, the same for the same seed.
    #[must_use]
    pub fn new(fs: &'f Arc<Filesystem>, seed: u64) -> Self {
        Self {
            fs,
            random: SplitMix64::new(seed),
        }
    }

    /// Makes a file or directory.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn make(&self, directory: &Inode, name: &str, mode: u16) -> Arc<Inode> {
        let node = NewNode {
            mode,
            ..NewNode::default()
        };
        let made = self.fs.create(directory, name.as_bytes(), &node);
        made.unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// Writes bytes that no other place has. Returns whether there was room.
    ///
    /// # Panics
    /// When it fails otherwise.
    pub fn write(&mut self, inode: &Arc<Inode>, offset: u64, len: usize) -> bool {
        let byte = self.random.next_u64() as u8;
        let data: Vec<u8> = (0..len).map(|at| byte ^ (at / 7) as u8).collect();
        let options = WriteOptions::default();
        match self
            .fs
            .write(inode, offset, len, &mut SliceSource::new(&data), options)
        {
            Ok(_) => true,
            Err(Error::NoSpace) => false,
            Err(error) => panic!("{error}"),
        }
    }

    /// Fills the volume with files, then deletes all but some of a hundred: what stays is everywhere.
    ///
    /// # Panics
    /// When something fails.
    pub fn fill(&mut self, root: &Inode, keeps: u64) {
        let homes: Vec<Arc<Inode>> = (0..12)
            .map(|nr| self.make(root, &format!("home{nr}"), 0o040_755))
            .collect();
        let mut made = Vec::new();
        while self.fs.space().blocks_available > 600 && self.fs.space().inodes_free > 40 {
            let home = &homes[self.random.below(homes.len() as u64) as usize];
            let name = format!("file{}", made.len());
            let file = self.make(home, &name, 0o100_644);
            let len = match self.random.below(4) {
                0 => 1 + self.random.below(900),
                1 => 1 + self.random.below(400_000),
                _ => 1 + self.random.below(30_000),
            };
            if !self.write(&file, 0, len as usize) {
                break;
            }
            made.push((Arc::clone(home), name));
        }
        for (home, name) in made {
            if self.random.below(100) >= keeps {
                self.fs.unlink(&home, name.as_bytes()).expect("unlinks");
            }
        }
        self.fs.sync().expect("syncs");
    }

    /// Links, attributes, a directory with a tree, files in many pieces, holes and unwritten parts.
    ///
    /// # Panics
    /// When something fails.
    pub fn add_oddities(&mut self, root: &Inode) {
        let odd = self.make(root, "odd", 0o040_755);
        let many = self.make(&odd, "many", 0o040_755);
        let shared = self.make(&odd, "shared", 0o100_600);
        self.write(&shared, 0, 5000);
        for nr in 0..400 {
            let name = format!("a name that is long enough to need some blocks, number {nr}");
            if nr % 4 == 0 {
                self.fs
                    .link(&shared, &many, name.as_bytes())
                    .expect("links");
            } else {
                self.make(&many, &name, 0o100_644);
            }
        }
        for nr in 0..30 {
            let inside = self.make(&many, &format!("below{nr}"), 0o040_755);
            let value = vec![nr; 700];
            let set = self
                .fs
                .set_xattr(&inside, b"user.block", &value, SetMode::Any, false);
            set.expect("sets");
            let target = "x".repeat(10 + 17 * usize::from(nr));
            let node = NewNode {
                mode: 0o120_777,
                target: target.as_bytes(),
                ..NewNode::default()
            };
            self.fs.create(&inside, b"link", &node).expect("links");
        }
        let pieces = self.make(&odd, "pieces", 0o100_644);
        let between = self.make(&odd, "between", 0o100_644);
        for nr in 0..700 {
            self.write(&pieces, nr * 8192, 1000);
            self.write(&between, nr * 4096, 900);
        }
        self.fs.unlink(&odd, b"between").expect("unlinks");
        let space = SpaceChange::Allocate { keep_size: true };
        let options = WriteOptions::default();
        let unwritten = self.make(&odd, "unwritten", 0o100_644);
        self.write(&unwritten, 40_000, 3000);
        self.fs
            .change_space(&unwritten, 0, 100_000, space, options)
            .expect("has room");
        self.make(&odd, "pipe", 0o010_644);
    }
}
