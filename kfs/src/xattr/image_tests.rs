//! Attributes on images of e2fsprogs: read what debugfs wrote, and let e2fsck and debugfs judge
//! what kfs writes.

use super::{CREDITS, SetMode, XattrBlock, XattrName, XattrSet, XattrValue};
use crate::e2fsprogs::Image;
use crate::error::Error;
use crate::ids::{BlockNr, InodeNr};
use crate::layout::{Geometry, InodeBytes};
use crate::storage::{BufferCache, Journal};
use kfs_disk::{BlockDevice, MemoryDevice};
use std::sync::Arc;

/// An inode of an image in memory.
struct Opened {
    geometry: Geometry,
    device: Arc<MemoryDevice>,
    inode: InodeNr,
    record: Vec<u8>,
    record_at: u64,
}

impl Opened {
    fn open(image: &Image, path: &str) -> Self {
        let device = Arc::new(MemoryDevice::from_file(image.path()).unwrap());
        let geometry = image.geometry();
        let text = image.debugfs(&format!("imap {path}"));
        let text = text.split("Inode ").nth(1).unwrap();
        let hex = text.split("0x").nth(1).unwrap().trim();
        let numbers = Image::numbers(text);
        let (inode, block) = (InodeNr(numbers[0] as u32), numbers[2]);
        let record_at = geometry.offset_of(BlockNr(block)) + u64::from_str_radix(hex, 16).unwrap();
        let mut record = vec![0; geometry.inode_size as usize];
        device.read_at(record_at, &mut record).unwrap();
        Self {
            geometry,
            device,
            inode,
            record,
            record_at,
        }
    }

    fn block(&self) -> Option<BlockNr> {
        match InodeBytes::new(&self.record[..]).file_acl() {
            0 => None,
            block => Some(BlockNr(block)),
        }
    }

    /// Sets or removes an attribute; the inode has a block already if it is to have one after.
    fn change(&mut self, name: &str, value: Option<&[u8]>) {
        let device: Arc<dyn BlockDevice> = Arc::clone(&self.device) as _;
        let (size, count) = (self.geometry.block_size, self.geometry.blocks_count());
        let cache = Arc::new(BufferCache::new(Arc::clone(&device), size, count, 1 << 20));
        let journal = Journal::open(device, Arc::clone(&cache), None);
        let name = XattrName::parse(name.as_bytes()).unwrap();
        let open = |nr| XattrBlock::open(&cache, &self.geometry, nr).unwrap();
        let block = self.block().map(open);
        let plan = {
            let bytes = block.as_ref().map(|block| (block.nr(), block.read()));
            let content = bytes.as_ref().map(|(nr, bytes)| (*nr, &bytes[..]));
            let record = InodeBytes::new(&self.record[..]);
            let set = XattrSet::parse(self.inode, record.xattr_area(), content, size).unwrap();
            match value {
                Some(value) => set.plan_set(&name, value, SetMode::Any).unwrap(),
                None => set.plan_remove(&name).unwrap(),
            }
        };
        if let Some(area) = plan.area {
            let mut bytes = InodeBytes::new(&mut self.record[..]);
            bytes.xattr_area_mut().copy_from_slice(&area);
            bytes.update_checksum(&self.geometry, self.inode);
        }
        assert!(
            !plan.block.needs_block(),
            "the test has a block where it needs one"
        );
        let mut handle = journal.start(CREDITS).unwrap();
        let applied = plan.block.apply(&mut handle, &self.geometry, block, None);
        drop(handle);
        assert_eq!((applied.block, applied.freed), (self.block(), None));
        journal.commit_all().unwrap();
        journal.checkpoint().unwrap();
        self.device.write_at(self.record_at, &self.record).unwrap();
    }

    fn get(&self, name: &str) -> Result<Vec<u8>, Error> {
        let content = self.block().map(|block| {
            let mut content = vec![0; self.geometry.block_size as usize];
            self.device
                .read_at(self.geometry.offset_of(block), &mut content)
                .unwrap();
            (block, content)
        });
        let content = content.as_ref().map(|(nr, content)| (*nr, &content[..]));
        let bytes = InodeBytes::new(&self.record[..]);
        let size = self.geometry.block_size;
        let set = XattrSet::parse(self.inode, bytes.xattr_area(), content, size)?;
        match set.get(&XattrName::parse(name.as_bytes())?)? {
            Some(XattrValue::Inline(value)) => Ok(value),
            other => panic!("{name}: {other:?}"),
        }
    }
}

const KINDS: [&[&str]; 4] = [
    &[],
    &["-b", "1024"],
    &["-O", "^metadata_csum,^64bit"],
    &["-I", "128", "-b", "1024", "-O", "^metadata_csum"],
];

fn image_with_file(options: &[&str]) -> Image {
    Image::make(options, "8M", |source| {
        std::fs::write(source.join("file"), "content").unwrap();
    })
}

#[test]
fn reads_what_debugfs_wrote() {
    for options in KINDS {
        let image = image_with_file(options);
        let values = [
            ("user.a", "1".repeat(5)),
            ("trusted.bc", "2".repeat(60)),
            ("user.long", "3".repeat(700)),
        ];
        for (name, value) in &values {
            image.debugfs(&format!("ea_set /file {name} {value}"));
        }
        let opened = Opened::open(&image, "/file");
        assert!(opened.block().is_some());
        for (name, value) in &values {
            assert_eq!(
                opened.get(name).unwrap(),
                value.as_bytes(),
                "{options:?} {name}"
            );
        }
    }
}

#[test]
fn e2fsck_accepts_what_kfs_writes() {
    for options in KINDS {
        let image = image_with_file(options);
        image.debugfs(&format!("ea_set /file user.first {}", "x".repeat(600)));
        let mut opened = Opened::open(&image, "/file");
        let acl: Vec<u8> = [[1_u8, 6], [4, 4], [0x20, 4]]
            .into_iter()
            .flat_map(|[tag, permissions]| [tag, 0, permissions, 0, 255, 255, 255, 255])
            .collect();
        let acl = [&[2, 0, 0, 0], &acl[..]].concat();
        opened.change("user.first", Some(&[b'y'; 300]));
        opened.change("security.selinux", Some(b"label\0"));
        opened.change("trusted.empty", Some(b""));
        opened.change("user.\u{e9}", Some(b"high"));
        let name = |number| format!("user.{number:0>width$}", width = 30 - number * 4);
        for number in 0..6 {
            opened.change(&name(number), Some(&vec![b'a'; number * 7]));
        }
        opened.change(&name(0), None);
        opened.change("system.posix_acl_access", Some(&acl));
        opened.device.write_to(image.path()).unwrap();
        image.check();
        let got = image.debugfs("ea_get /file user.first");
        assert!(
            got.contains(&"y".repeat(300)) && !got.contains('x'),
            "{options:?}: {got}"
        );
        let listed = image.debugfs("ea_list /file");
        for name in [
            "security.selinux",
            "trusted.empty",
            "posix_acl_access",
            "user.0000000005",
        ] {
            assert!(listed.contains(name), "{options:?}: {listed}");
        }
        let again = Opened::open(&image, "/file");
        assert_eq!(again.get("security.selinux").unwrap(), b"label\0");
    }
}
