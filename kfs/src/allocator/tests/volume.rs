//! `TestVolume`: an allocator with a journal on a copy of an image in memory.

use crate::allocator::{Allocator, BlockRequest, Reservation};
use crate::ids::BlockNr;
use crate::layout::superblock::SUPERBLOCK_OFFSET;
use crate::layout::{Geometry, RawSuperblock};
use crate::storage::{BufferCache, Journal};
use kfs_disk::{BlockDevice, MemoryDevice};
use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;
use tempfile::NamedTempFile;
use zerocopy::{FromBytes, IntoBytes};

/// In memory where there is such a directory: mke2fs waits for its disk.
fn temp_file() -> NamedTempFile {
    let memory = Path::new("/dev/shm");
    let file = if memory.is_dir() {
        NamedTempFile::new_in(memory)
    } else {
        NamedTempFile::new()
    };
    file.unwrap()
}

/// An image as mke2fs makes it.
pub(super) fn make_image(size: &str, options: &[&str]) -> MemoryDevice {
    make_image_over(&[], size, options)
}

/// An image made over a file with the given content, which is not discarded.
pub(super) fn make_image_over(content: &[u8], size: &str, options: &[&str]) -> MemoryDevice {
    let file = temp_file();
    std::fs::write(file.path(), content).unwrap();
    let path = file.path().to_str().unwrap();
    let arguments = [&["-q", "-F"], options, &[path, size]].concat();
    let output = Command::new("mke2fs")
        .args(&arguments)
        .output()
        .expect("mke2fs is installed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "mke2fs {arguments:?}: {errors}");
    MemoryDevice::from_file(file.path()).unwrap()
}

pub(super) struct TestVolume {
    pub(super) device: Arc<MemoryDevice>,
    pub(super) geometry: Geometry,
    pub(super) cache: Arc<BufferCache>,
    pub(super) journal: Journal,
    pub(super) allocator: Allocator,
}

impl TestVolume {
    /// Opens a copy of an image. There is no log: a commit writes to the places.
    pub(super) fn open(image: &MemoryDevice) -> Self {
        let device = Arc::new(image.snapshot());
        let mut bytes = [0; 1024];
        device.read_at(SUPERBLOCK_OFFSET, &mut bytes).unwrap();
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
            device,
            geometry,
            cache,
            journal,
            allocator,
        }
    }

    pub(super) fn reserve(&self, goal: u64, len: u32) -> crate::Result<Reservation> {
        self.allocator.reserve(BlockRequest {
            goal: BlockNr(goal),
            len,
            privileged: true,
        })
    }

    /// Commits, with the superblock's figures brought up to date first.
    pub(super) fn commit(&self) {
        let counts = self.allocator.free_counts();
        let block_size = u64::from(self.geometry.block_size);
        let buffer = self
            .cache
            .get(BlockNr(SUPERBLOCK_OFFSET / block_size))
            .unwrap();
        let mut handle = self.journal.start(1).unwrap();
        let mut bytes = handle.get_write_access(&buffer);
        let at = (SUPERBLOCK_OFFSET % block_size) as usize;
        let (raw, _) = RawSuperblock::mut_from_prefix(&mut bytes[at..]).unwrap();
        raw.set_free_blocks_count(counts.blocks);
        raw.s_free_inodes_count.set(counts.inodes);
        raw.update_checksum();
        assert_eq!(raw.as_bytes().len(), 1024);
        drop(bytes);
        drop(handle);
        self.journal.commit_all().unwrap();
    }

    fn with_file<R>(&self, look: impl FnOnce(&Path) -> R) -> R {
        let file = temp_file();
        self.device.write_to(file.path()).unwrap();
        look(file.path())
    }

    /// What e2fsprogs sees on the device.
    pub(super) fn dump(&self) -> Dump {
        let mut dump = self.with_file(|path| {
            let output = Command::new("dumpe2fs")
                .arg(path)
                .output()
                .expect("dumpe2fs is installed");
            Dump::parse(&text_of(&output))
        });
        dump.free_blocks
            .resize(self.geometry.blocks_count() as usize, false);
        dump.free_inodes
            .resize(self.geometry.inodes_count() as usize + 1, false);
        dump
    }

    /// Asserts that e2fsck has nothing to say.
    pub(super) fn assert_clean(&self) {
        let output = self.e2fsck();
        assert_eq!(output.status.code(), Some(0), "{}", text_of(&output));
    }

    pub(super) fn e2fsck(&self) -> Output {
        self.with_file(|path| {
            Command::new("e2fsck")
                .args(["-f", "-n"])
                .arg(path)
                .output()
                .expect("e2fsck is installed")
        })
    }
}

pub(super) fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// Free blocks and inodes by number, as dumpe2fs lists them.
#[derive(Default)]
pub(super) struct Dump {
    pub(super) free_blocks: Vec<bool>,
    pub(super) free_inodes: Vec<bool>,
    /// Sums of the groups' counters: free blocks, free inodes, directories.
    pub(super) sums: [u64; 3],
    /// Groups whose bitmaps are not initialised: of inodes, of blocks.
    pub(super) uninit: [u32; 2],
    /// Directories by group.
    pub(super) directories: Vec<u64>,
}

impl Dump {
    fn parse(text: &str) -> Self {
        assert!(!text.contains("checksum does not match"), "{text}");
        assert!(text.contains("\nGroup 0: "), "{text}");
        let mut dump = Self::default();
        for line in text.lines() {
            if line.starts_with("Group ") {
                dump.uninit[0] += u32::from(line.contains("INODE_UNINIT"));
                dump.uninit[1] += u32::from(line.contains("BLOCK_UNINIT"));
            } else if let Some(list) = line.strip_prefix("  Free blocks: ") {
                mark(&mut dump.free_blocks, list);
            } else if let Some(list) = line.strip_prefix("  Free inodes: ") {
                mark(&mut dump.free_inodes, list);
            } else if line.contains(" free blocks, ") {
                let mut figures = line
                    .trim()
                    .split(", ")
                    .map(|part| part.split(' ').next().unwrap().parse::<u64>().unwrap());
                for sum in &mut dump.sums {
                    *sum += figures.next().unwrap();
                }
                let directories = line.trim().split(", ").nth(2).unwrap();
                dump.directories
                    .push(directories.split(' ').next().unwrap().parse().unwrap());
            }
        }
        dump
    }
}

fn mark(bits: &mut Vec<bool>, list: &str) {
    for part in list.split(", ").filter(|part| !part.trim().is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        if bits.len() <= last {
            bits.resize(last + 1, false);
        }
        bits[first..=last].fill(true);
    }
}
