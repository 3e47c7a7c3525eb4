//! Directories against a `BTreeMap`.

use super::super::{Directory, DirectoryFormat};
use super::fake::{Fake, format_for_tests};
use super::{list, name};
use crate::error::Error;
use crate::ids::InodeNr;
use crate::layout::FileType;
use proptest::prelude::*;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

type Model = BTreeMap<Vec<u8>, u32>;

/// The name of that number: numbers near each other give lengths from 1 to 255.
fn name_of(number: u32) -> Vec<u8> {
    let mut name = format!("{number}").into_bytes();
    let length = match number % 7 {
        0 => name.len(),
        1 => 255,
        n => name.len() + n as usize * 9,
    };
    name.resize(length, b'a' + (number % 23) as u8);
    name
}

fn check(directory: &Directory<Fake>, model: &Model, batch: usize) {
    let listed = list(directory, 0, batch);
    let mut expected: BTreeMap<Vec<u8>, u32> = model.clone();
    expected.insert(b".".to_vec(), 12);
    expected.insert(b"..".to_vec(), 2);
    let got: BTreeMap<Vec<u8>, u32> = listed.iter().map(|e| (e.0.clone(), e.1.0)).collect();
    assert_eq!(listed.len(), got.len(), "an entry was told twice");
    assert_eq!(got, expected);
    assert_eq!(directory.is_empty().unwrap(), model.is_empty());
    for (key, &inode) in model {
        assert_eq!(
            directory.lookup(name(key)).unwrap().unwrap().inode,
            InodeNr(inode)
        );
    }
    assert_eq!(directory.parent().unwrap(), InodeNr(2));
    assert_eq!(
        directory.lookup(name(b".")).unwrap().unwrap().inode,
        InodeNr(12)
    );
    let expected = match directory.format.has_file_type {
        true => FileType::Directory,
        false => FileType::Unknown,
    };
    assert_eq!(
        directory.lookup(name(b"..")).unwrap().unwrap().file_type,
        expected
    );
}

/// The content again as somebody reads it who opens the volume anew.
fn reopened(directory: Directory<Fake>) -> Directory<Fake> {
    let fake = directory.into_blocks();
    fake.journal.commit_all().unwrap();
    fake.journal.checkpoint().unwrap();
    fake.cache.drop_clean();
    Directory::new(fake)
}

#[derive(Clone, Debug)]
enum Op {
    Add(u32),
    Remove(u32),
    Replace(u32, u32),
    Lookup(u32),
}

fn op(names: u32) -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..names).prop_map(Op::Add),
        3 => (0..names).prop_map(Op::Remove),
        1 => (0..names, 13..1000_u32).prop_map(|(name, inode)| Op::Replace(name, inode)),
        1 => (0..names).prop_map(Op::Lookup),
    ]
}

fn format() -> impl Strategy<Value = DirectoryFormat> {
    let sizes = prop_oneof![Just(1024_u32), Just(1024), Just(2048), Just(4096)];
    (
        sizes,
        any::<bool>(),
        any::<bool>(),
        0..3_u8,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(
            |(block_size, checksums, dir_index, version, unsigned, file_types)| DirectoryFormat {
                dir_index: dir_index || version == 1,
                default_hash_version: version,
                hash_unsigned: unsigned,
                has_file_type: file_types,
                ..format_for_tests(block_size, checksums)
            },
        )
}

fn apply(directory: &mut Directory<Fake>, model: &mut Model, op: &Op) {
    match *op {
        Op::Add(number) => {
            let (key, inode) = (name_of(number), number + 13);
            let added = directory.add_now(&key, inode);
            match model.entry(key) {
                Entry::Occupied(_) => assert!(matches!(added, Err(Error::Exists))),
                Entry::Vacant(vacant) => {
                    added.unwrap();
                    vacant.insert(inode);
                }
            }
        }
        Op::Remove(number) => {
            let key = name_of(number);
            match (directory.remove_now(&key), model.remove(&key)) {
                (Ok(inode), Some(expected)) => assert_eq!(inode.0, expected),
                (Err(Error::NotFound), None) => {}
                other => panic!("remove {number}: {other:?}"),
            }
        }
        Op::Replace(number, inode) => {
            let key = name_of(number);
            match (directory.replace_now(&key, inode), model.get_mut(&key)) {
                (Ok(old), Some(expected)) => {
                    assert_eq!(old.0, *expected);
                    *expected = inode;
                }
                (Err(Error::NotFound), None) => {}
                other => panic!("replace {number}: {other:?}"),
            }
        }
        Op::Lookup(number) => {
            let key = name_of(number);
            let found = directory
                .lookup(name(&key))
                .unwrap()
                .map(|entry| entry.inode.0);
            assert_eq!(found, model.get(&key).copied());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_map(
        format in format(),
        ops in prop::collection::vec(op(300), 1..700),
        batch in 1..40_usize,
    ) {
        let mut directory = Directory::new_in_memory(format, 400);
        let mut model = Model::new();
        for op in &ops {
            apply(&mut directory, &mut model, op);
        }
        check(&directory, &model, batch);
        check(&reopened(directory), &model, 1000);
    }

    /// What is there all the time is told once, what comes and goes at most once, while the
    /// directory grows from one block to a tree under the walk.
    #[test]
    fn walks_survive_changes(
        format in format(),
        first in prop::collection::vec(op(500), 1..200),
        changes in prop::collection::vec(prop::collection::vec(op(500), 0..60), 1..30),
        batch in 1..20_usize,
    ) {
        let mut directory = Directory::new_in_memory(format, 600);
        let mut model = Model::new();
        for op in &first {
            apply(&mut directory, &mut model, op);
        }
        let mut staying: BTreeSet<Vec<u8>> = model.keys().cloned().collect();
        let mut told = BTreeMap::<Vec<u8>, u32>::new();
        let mut cookie = 0;
        // A linear directory that is not to become a tree gives offsets as cookies, under which a
        // name that was removed and added again may be told twice.
        let mut gone = BTreeSet::new();
        for round in 0.. {
            let mut taken = 0;
            directory.entries_from(cookie, &mut |entry| {
                if taken == batch {
                    return ControlFlow::Break(());
                }
                taken += 1;
                cookie = entry.cookie;
                *told.entry(entry.name.to_vec()).or_default() += 1;
                ControlFlow::Continue(())
            }).unwrap();
            if taken < batch {
                break;
            }
            for op in changes.get(round).into_iter().flatten() {
                apply(&mut directory, &mut model, op);
                if let Op::Remove(number) = op {
                    gone.insert(name_of(*number));
                }
            }
            staying.retain(|name| model.contains_key(name) && !gone.contains(name));
        }
        for name in &staying {
            prop_assert_eq!(told.get(name), Some(&1));
        }
        for (name, times) in &told {
            prop_assert!(*times == 1 || gone.contains(name));
        }
    }
}

/// Adds names until there is no room; tells how many.
fn fill(directory: &mut Directory<Fake>, name_of: impl Fn(u32) -> Vec<u8>) -> u32 {
    for number in 0.. {
        match directory.add_now(&name_of(number), number + 13) {
            Ok(()) => {}
            Err(Error::NoSpace) => return number,
            Err(error) => panic!("{error}"),
        }
    }
    unreachable!("the range has no end");
}

fn long_name(number: u32) -> Vec<u8> {
    format!("{number:0>250}").into_bytes()
}

fn levels(directory: &Directory<Fake>) -> u8 {
    directory
        .blocks
        .cache
        .get(directory.blocks.blocks[0])
        .unwrap()
        .read()[30]
}

#[test]
fn a_tree_grows_to_its_limit_and_then_says_so() {
    for checksums in [false, true] {
        let format = format_for_tests(1024, checksums);
        let mut directory = Directory::new_in_memory(format, 40_000);
        let count = fill(&mut directory, long_name);
        assert_eq!(levels(&directory), 1);
        // 123 nodes of 126 leaves, most of them at least half full of three names.
        assert!(count > 12_000, "only {count} names");
        assert!(
            directory.blocks.spare.len() > 10_000,
            "it was not the device that was full"
        );
        let model: Model = (0..count)
            .map(|number| (long_name(number), number + 13))
            .collect();
        check(&directory, &model, 100);
        let directory = reopened(directory);
        check(&directory, &model, 1000);
    }
}

#[test]
fn large_dir_gives_a_third_level() {
    let format = DirectoryFormat {
        large_dir: true,
        ..format_for_tests(1024, true)
    };
    let mut directory = Directory::new_in_memory(format, 30_000);
    let count = fill(&mut directory, long_name);
    assert_eq!(levels(&directory), 2);
    let model: Model = (0..count)
        .map(|number| (long_name(number), number + 13))
        .collect();
    check(&directory, &model, 1000);
}

#[test]
fn no_room_on_the_device_changes_nothing() {
    for dir_index in [false, true] {
        let format = DirectoryFormat {
            dir_index,
            ..format_for_tests(1024, true)
        };
        let mut directory = Directory::new_in_memory(format, 30);
        let count = fill(&mut directory, name_of);
        let model: Model = (0..count)
            .map(|number| (name_of(number), number + 13))
            .collect();
        check(&directory, &model, 7);
    }
}

/// Long names of one legacy hash. Of each prefix the state before the last character tells which
/// character, if any, leads to the wanted hash: the factor of the character has an inverse.
fn colliding_names(count: usize) -> Vec<Vec<u8>> {
    const FACTOR: u32 = 7_152_373;
    const WANTED: u32 = 0x0123_4567;
    let inverse = (0..5).fold(1_u32, |x, _| {
        x.wrapping_mul(2_u32.wrapping_sub(FACTOR.wrapping_mul(x)))
    });
    let step = |(last, before): (u32, u32), c: u8| {
        let mixed = last ^ u32::from(c).wrapping_mul(FACTOR);
        let hash = before.wrapping_add(mixed);
        (
            if hash >> 31 == 1 {
                hash.wrapping_sub(0x7fff_ffff)
            } else {
                hash
            },
            last,
        )
    };
    let common = vec![b'x'; 245];
    let start = common
        .iter()
        .fold((0x12a3_fe2d, 0x37ab_e8f9), |state, &c| step(state, c));
    let letters = |number: u32| [0, 6, 12].map(|shift| (number >> shift) as u8 & 0x3f | 0x40);
    let mut names = Vec::new();
    for outer in 0..1 << 18 {
        let outer_state = letters(outer)
            .iter()
            .fold(start, |state, &c| step(state, c));
        for inner in 0..1 << 12 {
            let middle = &letters(inner)[..2];
            let (last, before) = middle.iter().fold(outer_state, |state, &c| step(state, c));
            for sum in [WANTED, WANTED + 0x7fff_ffff] {
                let c = (sum.wrapping_sub(before) ^ last).wrapping_mul(inverse);
                if (1..128).contains(&c) && c != u32::from(b'/') {
                    names.push([&common[..], &letters(outer), middle, &[c as u8]].concat());
                }
            }
        }
        if names.len() >= count {
            break;
        }
    }
    names
}

#[test]
fn names_of_equal_hash_span_leaves() {
    let names = colliding_names(8);
    let format = DirectoryFormat {
        default_hash_version: 0,
        ..format_for_tests(1024, true)
    };
    let hasher = format.hasher(0).unwrap();
    assert!(
        names
            .iter()
            .all(|name| hasher.hash(name).major == 0x0123_4567 << 1)
    );
    let mut directory = Directory::new_in_memory(format, 400);
    let mut model = Model::new();
    for number in 0..100 {
        model.insert(name_of(number), number + 13);
    }
    for (number, name) in names.iter().enumerate() {
        model.insert(name.clone(), number as u32 + 1000);
    }
    for (name, inode) in &model {
        directory.add_now(name, *inode).unwrap();
        assert!(matches!(directory.add_now(name, 5), Err(Error::Exists)));
    }
    check(&directory, &model, 1);
    for name in names.iter().step_by(2) {
        directory.remove_now(name).unwrap();
        model.remove(name);
    }
    check(&directory, &model, 3);
    for (number, name) in names.iter().enumerate().rev().step_by(2) {
        directory.remove_now(name).unwrap();
        directory.add_now(name, number as u32 + 1000).unwrap();
    }
    check(&directory, &model, 2);
}

#[test]
fn dots_are_protected() {
    let mut directory = Directory::new_in_memory(format_for_tests(1024, true), 10);
    for dot in [&b"."[..], b".."] {
        assert!(matches!(directory.add_now(dot, 13), Err(Error::Exists)));
        assert!(matches!(directory.remove_now(dot), Err(Error::Invalid)));
        assert!(matches!(
            directory.replace_now(dot, 13),
            Err(Error::Invalid)
        ));
    }
    assert!(directory.is_empty().unwrap());
}

#[test]
fn a_directory_moves_to_another_parent() {
    for count in [0, 200] {
        let mut directory = Directory::new_in_memory(format_for_tests(1024, true), 100);
        for number in 0..count {
            directory.add_now(&name_of(number), number + 13).unwrap();
        }
        directory
            .with_handle(|d, handle| {
                let entry = d.parent_entry()?;
                d.set_parent(handle, &entry, InodeNr(77));
                Ok(())
            })
            .unwrap();
        let directory = reopened(directory);
        assert_eq!(directory.parent().unwrap(), InodeNr(77));
        assert_eq!(list(&directory, 0, 10).len() as u32, count + 2);
    }
}

#[test]
fn a_cookie_beyond_the_end_lists_nothing() {
    for dir_index in [false, true] {
        let format = DirectoryFormat {
            dir_index,
            ..format_for_tests(1024, true)
        };
        let mut directory = Directory::new_in_memory(format, 100);
        for number in 0..50 {
            directory.add_now(&name_of(number), number + 13).unwrap();
        }
        for cookie in [u64::MAX, 1 << 63, (1 << 63) - 1] {
            assert_eq!(list(&directory, cookie, 10), []);
        }
    }
}

/// The cost of a listing is that of its leaves, and of one way down for each call.
#[test]
fn listing_reads_each_leaf_about_once() {
    let mut directory = Directory::new_in_memory(format_for_tests(4096, true), 3000);
    for number in 0..100_000 {
        directory
            .add_now(format!("file-{number:0>12}").as_bytes(), number + 13)
            .unwrap();
    }
    let leaves = directory.blocks.blocks.len();
    directory.blocks.reads.set(0);
    assert_eq!(list(&directory, 0, 500).len(), 100_002);
    let (reads, calls) = (directory.blocks.reads.get(), 100_002 / 500 + 1);
    assert!(
        reads <= leaves + calls * 6,
        "{reads} reads of {leaves} blocks in {calls} calls"
    );
}
