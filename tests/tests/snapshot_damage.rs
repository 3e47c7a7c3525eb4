//! Goal: a damaged snapshot store costs what snapshots show, never the volume: it opens, shows the same as before
//! and takes changes, all snapshots can be deleted, and it is not set back to a snapshot that cannot be read. No
//! snapshot ever shows anything but what it did.
//!
//! Method: a volume with snapshots is closed; then each block of its store that holds something is damaged in
//! turn, in the middle (old content, tables) and at its beginning (heads).

use kfs::{Error, Filesystem};
use kfs_disk::{BlockDevice, MemoryDevice};
use kfs_tests::check;
use kfs_tests::power_cut::{Picture, formatted, open};
use kfs_tests::tree::{difference, picture};
use kfs_tests::workload::Workload;
use std::sync::Arc;

const BLOCK: usize = 1024;
/// What a segment of the store begins with, and how many blocks it has: md-docs/format/snapshots.md.
const SEGMENT_MAGIC: &[u8] = b"kfs-segm";
const SEGMENT_BLOCKS: usize = 128;
/// Operations after each snapshot.
const STEPS: u32 = 25;

/// A closed volume with snapshots.
struct Base {
    image: MemoryDevice,
    /// Snapshots, and what they show.
    shown: Vec<(String, Picture)>,
    present: Picture,
    /// Offsets of the blocks of its store that are not zeros.
    store: Vec<u64>,
}

impl Base {
    fn new(count: usize, steps: u32) -> Self {
        let options = mkfs::Options {
            block_size: Some(BLOCK as u32),
            blocks_per_group: Some(2048),
            ..mkfs::Options::default()
        };
        let device = Arc::new(formatted(32 << 20, &options));
        let fs = open(Arc::clone(&device) as Arc<dyn BlockDevice>).expect("opens");
        let mut workload = Workload::new(Arc::clone(&fs), 5);
        let mut shown = Vec::new();
        for name in &["one", "two", "three"][..count] {
            workload.operate_while_room(steps, name);
            fs.create_snapshot(name, "").expect("there is room");
            shown.push(((*name).to_owned(), picture(&fs).expect("reads")));
        }
        workload.operate_while_room(steps, "after");
        drop(workload);
        let present = picture(&fs).expect("reads");
        fs.close().expect("closes");
        drop(fs);
        let bytes = device.to_vec();
        Self {
            store: store_blocks(&bytes),
            image: device.snapshot(),
            shown,
            present,
        }
    }
}

/// A file that holds blocks of a store would be taken for one, but there is none here.
fn store_blocks(image: &[u8]) -> Vec<u64> {
    let blocks: Vec<&[u8]> = image.chunks_exact(BLOCK).collect();
    let heads = (0..blocks.len()).filter(|&nr| blocks[nr].starts_with(SEGMENT_MAGIC));
    let segments = heads.flat_map(|head| head..head + SEGMENT_BLOCKS);
    let used = segments.filter(|&nr| blocks[nr].iter().any(|byte| *byte != 0));
    used.map(|nr| (nr * BLOCK) as u64).collect()
}

fn assert_present(base: &Base, fs: &Filesystem, context: &str) {
    let now = picture(fs).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    let differ = difference(&base.present, &now);
    assert!(base.present == now, "{context}: {differ}");
}

fn reopen(device: &Arc<MemoryDevice>, context: &str) -> Arc<Filesystem> {
    let opened = open(Arc::clone(device) as Arc<dyn BlockDevice>);
    opened.unwrap_or_else(|error| panic!("{context}: does not open: {error:?}"))
}

/// What a snapshot shows, if all of it can be read.
fn look(fs: &Filesystem, name: &str) -> Option<Picture> {
    let view = fs.open_snapshot(name).ok()?;
    picture(&view).ok()
}

/// Returns how many snapshots cannot be read as a whole any more, or are gone.
fn judge(base: &Base, device: &Arc<MemoryDevice>, context: &str) -> usize {
    let fs = reopen(device, context);
    assert_present(base, &fs, context);
    let mut whole = 0;
    for (name, shown) in &base.shown {
        let Some(now) = look(&fs, name) else { continue };
        assert!(
            now == *shown,
            "{context}: '{name}' shows something else: {}",
            difference(shown, &now)
        );
        whole += 1;
    }
    fs.snapshot_usage()
        .unwrap_or_else(|error| panic!("{context}: usage: {error:?}"));
    let mut workload = Workload::new(Arc::clone(&fs), 6);
    workload.operate_while_room(10, context);
    drop(workload);
    match fs.create_snapshot("new", "") {
        // Where it is not known which there are, all have to go first.
        Ok(_) | Err(Error::Corrupt(_)) => {}
        Err(error) => panic!("{context}: {error:?}"),
    }
    let shown = picture(&fs).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    for record in fs.snapshots() {
        let deleted = fs.delete_snapshot(&record.name);
        deleted.unwrap_or_else(|error| panic!("{context}: {error:?}"));
    }
    assert_eq!(fs.volume().allocator.pinned_blocks(), 0, "{context}");
    let now = picture(&fs).unwrap_or_else(|error| panic!("{context}: {error:?}"));
    assert!(shown == now, "{context}: {}", difference(&shown, &now));
    fs.close()
        .unwrap_or_else(|error| panic!("{context}: {error:?}"));
    drop(fs);
    check::assert_clean(Arc::clone(device) as Arc<dyn BlockDevice>, context);
    base.shown.len() - whole
}

fn damaged(base: &Base, offset: u64) -> Arc<MemoryDevice> {
    let device = Arc::new(base.image.snapshot());
    let mut bytes = [0; 8];
    device.read_at(offset, &mut bytes).expect("memory");
    let turned = bytes.map(|byte| byte ^ 0x5a);
    device.write_at(offset, &turned).expect("memory");
    device
}

fn each_block_damaged((snapshots, steps): (usize, u32), at: u64) -> usize {
    let base = Base::new(snapshots, steps);
    assert!(base.store.len() > 10, "{} blocks", base.store.len());
    let mut lost = 0;
    for block in &base.store {
        let context = format!("block {} of the image", block / BLOCK as u64);
        lost += usize::from(judge(&base, &damaged(&base, block + at), &context) > 0);
    }
    println!(
        "{} blocks, {lost} of them needed by a snapshot",
        base.store.len()
    );
    lost
}

#[test]
fn old_content_is_damaged() {
    assert!(each_block_damaged((3, STEPS), BLOCK as u64 / 2) > 20);
    assert!(each_block_damaged((1, STEPS), BLOCK as u64 / 2) > 5);
}

#[test]
fn heads_are_damaged() {
    assert!(each_block_damaged((3, STEPS), 0) > 20);
    assert!(each_block_damaged((1, STEPS), 0) > 1);
    // Several segments.
    assert!(each_block_damaged((3, 12 * STEPS), 0) > 100);
}

/// Where it is not, it is set back; where the damage is in what would be needed, nothing happens.
#[test]
fn a_damaged_snapshot_is_not_gone_back_to() {
    let base = Base::new(3, STEPS);
    let mut refused = 0;
    for block in &base.store {
        let context = format!("block {} of the image", block / BLOCK as u64);
        let device = damaged(&base, block + BLOCK as u64 / 2);
        let fs = reopen(&device, &context);
        let Err(error) = fs.begin_restore("one", "undo") else {
            fs.close().expect("closes");
            drop(fs);
            let fs = reopen(&device, &context);
            let now = picture(&fs).unwrap_or_else(|error| panic!("{context}: {error:?}"));
            let shown = &base.shown[0].1;
            assert!(*shown == now, "{context}: {}", difference(shown, &now));
            fs.close().expect("closes");
            drop(fs);
            check::assert_clean(device, &context);
            continue;
        };
        let is_damage = matches!(error, Error::Corrupt(_) | Error::NotFound);
        assert!(is_damage, "{context}: {error:?}");
        refused += 1;
        assert_present(&base, &fs, &context);
        drop(fs);
        judge(&base, &device, &context);
    }
    println!("refused {refused} of {} times", base.store.len());
    assert!(refused > 10, "refused {refused} times");
    assert!(refused < base.store.len(), "always refused");
}

/// What keeps a group from being used keeps nobody from opening the volume, and no snapshot from being deleted.
#[test]
fn a_bitmap_in_use_is_damaged() {
    let base = Base::new(3, STEPS);
    let fs = open(Arc::new(base.image.snapshot()) as Arc<dyn BlockDevice>).expect("opens");
    let bitmaps = fs.volume().allocator.block_bitmaps();
    drop(fs);
    for (group, block) in bitmaps.into_iter().enumerate() {
        let context = format!("group {group}");
        let device = damaged(&base, block * BLOCK as u64);
        let fs = reopen(&device, &context);
        let now = picture(&fs).unwrap_or_else(|error| panic!("{context}: {error:?}"));
        assert!(
            base.present == now,
            "{context}: {}",
            difference(&base.present, &now)
        );
        let usage = fs.snapshot_usage().expect("of the other groups");
        assert_eq!(usage.len(), base.shown.len(), "{context}");
        for record in fs.snapshots() {
            let deleted = fs.delete_snapshot(&record.name);
            deleted.unwrap_or_else(|error| panic!("{context}: {error:?}"));
        }
        assert!(fs.snapshots().is_empty(), "{context}");
        fs.close()
            .unwrap_or_else(|error| panic!("{context}: {error:?}"));
    }
}
