//! Goal: e2fsprogs and kfs agree on attributes, both ways, and e2fsck has nothing to say.
//! Method: images of mke2fs; debugfs sets what kfs reads, and reads what kfs has written through a
//! journal and the allocator.

use super::{acl, name_of};
use crate::allocator::{ALLOCATE_CREDITS, Allocator, BlockRequest};
use crate::ids::{BlockNr, InodeNr, Run};
use crate::layout::{Geometry, InodeBytes, RawSuperblock};
use crate::storage::{BufferCache, Journal};
use crate::xattr::{BlockChange, CREDITS, Plan, SetMode, XattrBlock, XattrSet, XattrValue};
use crate::{Corrupt, Error, Result};
use kfs_disk::{BlockDevice, MemoryDevice};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;
use zerocopy::FromBytes;

/// Options of mke2fs: block size, inode size, checksums.
const FORMATS: [&[&str]; 5] = [
    &["-b", "1024", "-I", "256", "-O", "metadata_csum,64bit"],
    &["-b", "1024", "-I", "128", "-O", "metadata_csum"],
    &["-b", "4096", "-I", "256", "-O", "^metadata_csum"],
    &["-b", "1024", "-I", "128", "-O", "^metadata_csum,^64bit"],
    &["-b", "2048", "-I", "1024", "-O", "metadata_csum_seed,64bit"],
];

type Attributes = BTreeMap<String, Vec<u8>>;

struct Image {
    temp: TempDir,
    device: Arc<MemoryDevice>,
    geometry: Geometry,
    cache: Arc<BufferCache>,
    journal: Journal,
    allocator: Allocator,
}

fn run(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.expect(program);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{program} {arguments:?}: {text}");
    text
}

/// Makes an image with the files `f0` and `f1`, on which debugfs has run `commands`.
fn make(options: &[&str], commands: impl FnOnce(&Path) -> String) -> Image {
    let temp = tempfile::tempdir().unwrap();
    let (tree, image) = (temp.path().join("tree"), temp.path().join("image"));
    std::fs::create_dir(&tree).unwrap();
    for name in ["f0", "f1"] {
        std::fs::write(tree.join(name), name).unwrap();
    }
    let (tree, path) = (tree.to_str().unwrap(), image.to_str().unwrap());
    let fixed = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-d", tree];
    run("mke2fs", &[&fixed[..], options, &[path, "8M"]].concat());
    let commands = commands(temp.path());
    debugfs(temp.path(), &commands);
    Image::open(temp)
}

/// Runs commands on the image of a folder. debugfs tells errors by no more than its text.
fn debugfs(temp: &Path, commands: &str) -> String {
    let file = temp.join("commands");
    std::fs::write(&file, commands).unwrap();
    let (file, image) = (file.to_str().unwrap(), temp.join("image"));
    let text = run("debugfs", &["-w", "-f", file, image.to_str().unwrap()]);
    for line in text.lines() {
        let is_error =
            !line.starts_with("debugfs") && line.contains(": ") && line.contains("while");
        assert!(!is_error, "{text}");
    }
    text
}

/// debugfs lists names that are not ASCII as hexadecimal bytes.
fn plain(name: &str) -> String {
    let bytes: Option<Vec<u8>> = (name.split_whitespace())
        .map(|byte| u8::from_str_radix(byte, 16).ok())
        .collect();
    bytes.map_or(name.to_string(), |bytes| String::from_utf8(bytes).unwrap())
}

/// Where an entry of an ACL has no id, Linux gives -1 and debugfs 0.
fn fill_ids(acl: &mut [u8]) {
    for entry in acl[4..].chunks_exact_mut(8) {
        if ![2, 8].contains(&entry[0]) {
            assert_eq!(entry[4..], [0; 4]);
            entry[4..].fill(0xff);
        }
    }
}

impl Image {
    fn open(temp: TempDir) -> Self {
        let device = Arc::new(MemoryDevice::from_file(temp.path().join("image")).unwrap());
        let mut bytes = [0; 1024];
        device.read_at(1024, &mut bytes).unwrap();
        let geometry = Geometry::try_from(RawSuperblock::ref_from_bytes(&bytes).unwrap()).unwrap();
        let dynamic = Arc::clone(&device) as Arc<dyn BlockDevice>;
        let cache = Arc::new(BufferCache::new(
            Arc::clone(&dynamic),
            geometry.block_size,
            geometry.blocks_count(),
            1 << 20,
        ));
        let journal = Journal::open(dynamic, Arc::clone(&cache), None);
        let allocator = Allocator::open(Arc::clone(&cache), geometry.clone()).unwrap();
        journal.add_observer(allocator.observer());
        Self {
            temp,
            device,
            geometry,
            cache,
            journal,
            allocator,
        }
    }

    fn number_of(&self, file: &str) -> InodeNr {
        let text = debugfs(self.temp.path(), &format!("stat {file}\n"));
        let (_, rest) = text.split_once("Inode: ").expect("stat names the inode");
        let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
        InodeNr(digits.parse().unwrap())
    }

    fn inode(&self, nr: InodeNr) -> InodeBytes<Vec<u8>> {
        let (block, offset) = self.allocator.inode_block(nr).unwrap();
        let size = self.geometry.inode_size as usize;
        let buffer = self.cache.get(block).unwrap();
        InodeBytes::new(buffer.read()[offset..offset + size].to_vec())
    }

    fn block(&self, inode: &InodeBytes<Vec<u8>>) -> Result<Option<XattrBlock>> {
        let open = |nr| XattrBlock::open(&self.cache, &self.geometry, nr);
        match inode.file_acl() {
            0 => Ok(None),
            nr => open(BlockNr(nr)).map(Some),
        }
    }

    /// What `look` makes of the attributes of an inode.
    fn with<R>(&self, nr: InodeNr, look: impl FnOnce(XattrSet<'_>) -> Result<R>) -> Result<R> {
        let inode = self.inode(nr);
        let block = self.block(&inode)?;
        let bytes = block.as_ref().map(|block| (block.nr(), block.read()));
        look(XattrSet::parse(
            nr,
            inode.xattr_area(),
            bytes.as_ref().map(|(nr, bytes)| (*nr, &bytes[..])),
            self.geometry.block_size,
        )?)
    }

    fn attributes(&self, nr: InodeNr) -> Attributes {
        let collect = |set: XattrSet<'_>| {
            let pairs = set.names().map(|name| match set.get(&name)? {
                Some(XattrValue::Inline(value)) => {
                    Ok((String::from_utf8(name.full()).unwrap(), value))
                }
                other => panic!("{other:?}"),
            });
            pairs.collect()
        };
        self.with(nr, collect).unwrap()
    }

    fn set(&self, nr: InodeNr, name: &str, value: &[u8]) -> Result<()> {
        let name = name_of(name);
        let plan = self.with(nr, |set| set.plan_set(&name, value, SetMode::Any))?;
        self.apply(nr, plan);
        Ok(())
    }

    fn remove(&self, nr: InodeNr, name: &str) -> Result<()> {
        let plan = self.with(nr, |set| set.plan_remove(&name_of(name)))?;
        self.apply(nr, plan);
        Ok(())
    }

    fn apply(&self, nr: InodeNr, plan: Plan) {
        let mut inode = self.inode(nr);
        let current = self.block(&inode).unwrap();
        let mut reservation = plan.block.needs_block().then(|| {
            let request = BlockRequest {
                goal: self.allocator.data_goal(nr, false),
                len: 1,
                privileged: true,
            };
            self.allocator.reserve(request).unwrap()
        });
        let credits = 1 + CREDITS + ALLOCATE_CREDITS + self.allocator.free_credits(1);
        let mut handle = self.journal.start(credits).unwrap();
        let new = reservation.as_mut().map(|reservation| {
            let run = self.allocator.allocate(&mut handle, reservation, 1);
            self.cache.get_zeroed(run.start).unwrap()
        });
        let applied = plan
            .block
            .apply(&mut handle, &self.geometry, current, new.as_ref());
        if let Some(start) = applied.freed {
            let run = Run { start, len: 1 };
            self.allocator.free(&mut handle, run).unwrap();
        }
        if let Some(area) = plan.area {
            inode.xattr_area_mut().copy_from_slice(&area);
        }
        self.point(&mut inode, applied.block);
        self.put(&mut handle, nr, inode);
    }

    fn point(&self, inode: &mut InodeBytes<Vec<u8>>, block: Option<BlockNr>) {
        let sectors = u64::from(self.geometry.block_size / 512);
        let had = u64::from(inode.file_acl() != 0) * sectors;
        let has = u64::from(block.is_some()) * sectors;
        let count = inode.blocks_512(&self.geometry) - had + has;
        inode.set_blocks_512(&self.geometry, count).unwrap();
        inode.set_file_acl(block.map_or(0, |nr| nr.0));
    }

    fn put(
        &self,
        handle: &mut crate::storage::Handle<'_>,
        nr: InodeNr,
        mut inode: InodeBytes<Vec<u8>>,
    ) {
        inode.update_checksum(&self.geometry, nr);
        let (block, offset) = self.allocator.inode_block(nr).unwrap();
        let buffer = self.cache.get(block).unwrap();
        let mut bytes = handle.get_write_access(&buffer);
        bytes[offset..offset + inode.bytes().len()].copy_from_slice(inode.bytes());
    }

    /// Lets `to`, which has no block, use the block of `from`, too.
    fn share(&self, from: InodeNr, to: InodeNr) {
        let nr = BlockNr(self.inode(from).file_acl());
        let mut inode = self.inode(to);
        assert_eq!(inode.file_acl(), 0);
        let mut handle = self.journal.start(2).unwrap();
        self.point(&mut inode, Some(nr));
        self.put(&mut handle, to, inode);
        let buffer = self.cache.get(nr).unwrap();
        let mut bytes = handle.get_write_access(&buffer);
        bytes[4] += 1;
        crate::layout::xattr::update_checksum(self.geometry.csum_seed, nr, &mut bytes);
    }

    /// Commits, puts the image into its file, and asserts that e2fsck has nothing to say.
    fn check(&self) {
        let counts = self.allocator.free_counts();
        let size = u64::from(self.geometry.block_size);
        let buffer = self.cache.get(BlockNr(1024 / size)).unwrap();
        let mut handle = self.journal.start(1).unwrap();
        let mut bytes = handle.get_write_access(&buffer);
        let (raw, _) =
            RawSuperblock::mut_from_prefix(&mut bytes[(1024 % size) as usize..]).unwrap();
        raw.set_free_blocks_count(counts.blocks);
        raw.update_checksum();
        drop(bytes);
        drop(handle);
        self.journal.commit_all().unwrap();
        let path = self.temp.path().join("image");
        self.device.write_to(&path).unwrap();
        run("e2fsck", &["-fn", path.to_str().unwrap()]);
    }

    /// The attributes of a file as debugfs sees them on the image as last checked.
    fn seen(&self, file: &str) -> Attributes {
        let folder = self.temp.path();
        let list = debugfs(folder, &format!("ea_list {file}\n"));
        let names: Vec<String> = list
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split_once(" ("))
            .map(|(name, _)| plain(name))
            .collect();
        let out = |n: usize| folder.join(format!("value{n}"));
        let commands: Vec<String> = (names.iter().enumerate())
            .map(|(n, name)| format!("ea_get -f {} {file} \"{name}\"\n", out(n).display()))
            .collect();
        debugfs(folder, &commands.concat());
        let values = names.iter().enumerate().map(|(n, name)| {
            let mut value = std::fs::read(out(n)).unwrap();
            if name.starts_with("system.") {
                fill_ids(&mut value);
            }
            value
        });
        names.iter().cloned().zip(values).collect()
    }
}

#[test]
fn reads_what_debugfs_sets() {
    let expected: Attributes = [
        ("user.short", b"1".to_vec()),
        ("user.long", (0..300u32).map(|n| n as u8).collect()),
        ("user.other", vec![0; 57]),
        ("trusted.t", b"trusted".to_vec()),
        ("security.selinux", b"label".to_vec()),
        ("system.posix_acl_access", acl(3)),
    ]
    .map(|(name, value)| (name.to_string(), value))
    .into();
    for options in FORMATS {
        let image = make(options, |folder| {
            let set = |(n, (name, value)): (usize, (&String, &Vec<u8>))| {
                let file = folder.join(format!("in{n}"));
                std::fs::write(&file, value).unwrap();
                format!("ea_set -f {} f0 {name}\n", file.display())
            };
            expected.iter().enumerate().map(set).collect()
        });
        let inode = image.number_of("f0");
        assert_eq!(image.attributes(inode), expected, "{options:?}");
        assert!(image.attributes(image.number_of("f1")).is_empty());
        image.check();
    }
}

fn step(image: &Image, model: &mut Attributes, nr: InodeNr, name: &str, value: Option<Vec<u8>>) {
    match value {
        Some(value) => match image.set(nr, name, &value) {
            Ok(()) => {
                model.insert(name.to_string(), value);
            }
            Err(Error::NoSpace) => {}
            Err(error) => panic!("{error}"),
        },
        None => match image.remove(nr, name) {
            Ok(()) => {
                model.remove(name);
            }
            Err(Error::NoAttribute) => assert!(!model.contains_key(name)),
            Err(error) => panic!("{error}"),
        },
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    #[test]
    fn debugfs_reads_what_kfs_sets(
        ops in prop::collection::vec(
            (0..2usize, prop::sample::select(&super::NAMES[..]), prop::option::weighted(0.7, 0..500usize)),
            10..60,
        ),
    ) {
        for options in FORMATS {
            let image = make(options, |_| "ea_set f1 user.a first\n".to_string());
            let files = ["f0", "f1"];
            let numbers = files.map(|file| image.number_of(file));
            let mut models = numbers.map(|nr| image.attributes(nr));
            for (n, (file, name, len)) in ops.iter().enumerate() {
                let value = len.map(|len| match name.starts_with("system.") {
                    true => acl(len as u32 / 16),
                    false => (0..len).map(|at| (at + n) as u8).collect(),
                });
                step(&image, &mut models[*file], numbers[*file], name, value);
            }
            image.check();
            for n in 0..2 {
                prop_assert_eq!(&image.attributes(numbers[n]), &models[n]);
                prop_assert_eq!(&image.seen(files[n]), &models[n]);
            }
            for (model, nr) in models.iter().zip(numbers) {
                for name in model.keys() {
                    image.remove(nr, name).unwrap();
                }
                prop_assert_eq!(image.inode(nr).file_acl(), 0);
            }
            image.check();
        }
    }
}

#[test]
fn shared_blocks_are_copied_and_counted() {
    for options in FORMATS {
        let image = make(options, |_| String::new());
        let [f0, f1] = ["f0", "f1"].map(|file| image.number_of(file));
        let count = |nr: InodeNr| image.block(&image.inode(nr)).unwrap().unwrap().read()[4];
        image.set(f0, "user.long", &[7; 900]).unwrap();
        image.share(f0, f1);
        image.check();
        assert_eq!(image.seen("f1"), image.attributes(f0));
        assert_eq!(count(f0), 2);
        image.set(f1, "user.long", &[8; 901]).unwrap();
        image.check();
        assert_ne!(image.inode(f0).file_acl(), image.inode(f1).file_acl());
        assert_eq!((count(f0), count(f1)), (1, 1));
        assert_eq!(image.seen("f0")["user.long"], [7; 900]);
        assert_eq!(image.seen("f1")["user.long"], [8; 901]);
        image.remove(f1, "user.long").unwrap();
        image.share(f0, f1);
        // Both leave: the first lowers the count, the second frees.
        for nr in [f1, f0] {
            image.remove(nr, "user.long").unwrap();
            image.check();
            assert_eq!(image.inode(nr).file_acl(), 0);
        }
    }
}

/// Two inodes plan while they share a block; the one that applies last frees it.
#[test]
fn plans_made_while_shared_free_the_block_once() {
    let image = make(FORMATS[0], |_| String::new());
    let [f0, f1] = ["f0", "f1"].map(|file| image.number_of(file));
    image.set(f0, "user.long", &[7; 900]).unwrap();
    image.share(f0, f1);
    let old = BlockNr(image.inode(f0).file_acl());
    let plan = |nr| {
        let name = name_of("user.long");
        let plan = image.with(nr, |set| set.plan_set(&name, &[9; 901], SetMode::Any));
        plan.unwrap()
    };
    let plans = [(f0, plan(f0)), (f1, plan(f1))];
    for (nr, plan) in plans {
        assert!(matches!(plan.block, BlockChange::Create(_)));
        image.apply(nr, plan);
    }
    image.check();
    assert!(
        !image
            .allocator
            .is_allocated(Run { start: old, len: 1 })
            .unwrap()
    );
}

#[test]
fn a_wrong_checksum_is_told() {
    let image = make(FORMATS[0], |_| String::new());
    let nr = image.number_of("f0");
    image.set(nr, "user.long", &[7; 900]).unwrap();
    image.check();
    let block = image.inode(nr).file_acl();
    let at = block * u64::from(image.geometry.block_size) + 1000;
    image.device.write_at(at, &[1]).unwrap();
    image.cache.drop_clean();
    let result = XattrBlock::open(&image.cache, &image.geometry, BlockNr(block));
    assert!(matches!(
        result,
        Err(Error::Corrupt(Corrupt::XattrBlockChecksum { block: nr })) if nr.0 == block
    ));
}
