//! Damaged blocks give errors, and never a panic, a loop or a wrong entry.

use super::super::Directory;
use super::fake::{Fake, format_for_tests};
use super::name;
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::InodeNr;
use crate::layout::FileType;
use proptest::prelude::*;
use std::ops::ControlFlow;

fn filled(count: u32, checksums: bool) -> Directory<Fake> {
    let mut directory = Directory::new_in_memory(format_for_tests(1024, checksums), 400);
    for number in 0..count {
        directory
            .add_now(format!("name-{number:0>60}").as_bytes(), number + 13)
            .unwrap();
    }
    directory
}

/// Overwrites bytes of a block behind the directory's back, as if the device had returned them.
fn damage(
    directory: Directory<Fake>,
    block: usize,
    offset: usize,
    bytes: &[u8],
) -> Directory<Fake> {
    let mut fake = directory.into_blocks();
    let buffer = fake.cache.get(fake.blocks[block]).unwrap();
    let mut handle = fake.journal.start(1).unwrap();
    handle.get_write_access(&buffer)[offset..offset + bytes.len()].copy_from_slice(bytes);
    drop((handle, buffer));
    fake.journal.commit_all().unwrap();
    fake.journal.checkpoint().unwrap();
    fake.cache.drop_clean();
    fake.prepared = 0;
    Directory::new(fake)
}

/// Offset in the root, bytes put there, and what must be found.
type Case = (usize, &'static [u8], fn(&Corrupt) -> bool);

fn walk(directory: &Directory<Fake>) -> Result<u32> {
    let mut count = 0;
    directory.entries_from(0, &mut |_| {
        count += 1;
        ControlFlow::Continue(())
    })?;
    Ok(count)
}

fn corrupt(directory: &Directory<Fake>) -> Corrupt {
    match walk(directory) {
        Err(Error::Corrupt(corrupt)) => corrupt,
        other => panic!("not found out: {other:?}"),
    }
}

#[test]
fn checksums_are_verified() {
    for (count, block) in [(2, 0), (100, 0), (100, 1)] {
        let directory = damage(filled(count, true), block, 40, &[0xff]);
        assert!(matches!(
            corrupt(&directory),
            Corrupt::DirectoryChecksum { .. }
        ));
    }
}

#[test]
fn each_contradiction_has_its_name() {
    let tree = || filled(100, false);
    let cases: [Case; 8] = [
        (0, &[0; 4], |c| matches!(c, Corrupt::DirectoryDots { .. })),
        (29, &[9], |c| {
            matches!(c, Corrupt::HtreeRoot { info_length: 9, .. })
        }),
        (30, &[2], |c| {
            matches!(c, Corrupt::HtreeRoot { levels: 2, .. })
        }),
        (32, &[1], |c| {
            matches!(c, Corrupt::HtreeCounts { limit: 1, .. })
        }),
        (34, &[0], |c| {
            matches!(c, Corrupt::HtreeCounts { count: 0, .. })
        }),
        (36, &[0], |c| {
            matches!(c, Corrupt::HtreeChild { child: 0, .. })
        }),
        (36, &[0, 4], |c| {
            matches!(c, Corrupt::HtreeChild { child: 0x400, .. })
        }),
        (40, &[0xff; 4], |c| matches!(c, Corrupt::HtreeOrder { .. })),
    ];
    for (offset, bytes, expected) in cases {
        let found = corrupt(&damage(tree(), 0, offset, bytes));
        assert!(expected(&found), "offset {offset}: {found}");
    }
    let found = corrupt(&damage(tree(), 1, 4, &[3]));
    assert!(matches!(found, Corrupt::DirectoryEntry { offset: 0, .. }));
    let found = corrupt(&damage(tree(), 1, 8, b"N"));
    assert!(
        matches!(
            found,
            Corrupt::HtreeHash { .. } | Corrupt::DirectoryName { .. }
        ),
        "{found}"
    );
    let found = corrupt(&damage(filled(3, false), 0, 24 + 8, b"/"));
    assert!(matches!(found, Corrupt::DirectoryName { .. }));
    let empty = Directory::new(Fake::in_memory(format_for_tests(1024, true), 4));
    assert!(matches!(corrupt(&empty), Corrupt::DirectoryEmpty { .. }));
    let unknown = damage(tree(), 0, 28, &[6]);
    assert!(matches!(walk(&unknown), Err(Error::Unsupported { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn noise_is_survived(
        count in prop_oneof![Just(5_u32), Just(100), Just(1900)],
        noise in prop::collection::vec((any::<prop::sample::Index>(), 0..1000_usize, any::<[u8; 3]>()), 1..6),
    ) {
        let mut directory = filled(count, false);
        for (block, offset, bytes) in noise {
            // The first blocks matter most.
            let block = block.index(directory.blocks.blocks.len().min(8));
            directory = damage(directory, block, offset, &bytes);
        }
        let _ = walk(&directory);
        let _ = directory.is_empty();
        let _ = directory.parent();
        for number in 0..50_u32 {
            let bytes = format!("name-{number:0>60}").into_bytes();
            let _ = directory.lookup(name(&bytes));
            let _ = directory.remove_now(&bytes);
            let _ = directory.with_handle(|d, handle| {
                let result = d.add(handle, name(&bytes[3..]), InodeNr(13), FileType::Fifo);
                d.blocks.prepared = 0;
                result
            });
        }
    }
}
