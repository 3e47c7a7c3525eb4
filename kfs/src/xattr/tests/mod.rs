//! Attributes against a map, and hostile bytes.
//!
//! A holder stands for the inode and its block: plans are put into it and the next step parses what
//! they have made.

mod image;

use super::*;
use crate::corrupt::Corrupt;
use crate::error::{Error, Result};
use crate::ids::{BlockNr, InodeNr};
use proptest::prelude::*;
use std::collections::BTreeMap;

const INODE: InodeNr = InodeNr(12);
const NR: BlockNr = BlockNr(77);
const BLOCK_SIZE: u32 = 1024;

struct Holder {
    area: Vec<u8>,
    block: Option<Vec<u8>>,
}

impl Holder {
    fn new(area_len: usize) -> Self {
        Self {
            area: vec![0; area_len],
            block: None,
        }
    }

    fn set(&self) -> Result<XattrSet<'_>> {
        let block = self.block.as_deref().map(|bytes| (NR, bytes));
        XattrSet::parse(INODE, &self.area, block, BLOCK_SIZE)
    }

    /// Another inode uses the block, too.
    fn share(&mut self) {
        if let Some(block) = &mut self.block {
            block[4] = 2;
        }
    }

    fn apply(&mut self, plan: Plan) {
        if let Some(area) = plan.area {
            assert_eq!(area.len(), self.area.len());
            self.area = area;
        }
        match plan.block {
            BlockChange::Unchanged => {}
            BlockChange::Overwrite(content) => {
                let count = self.block.as_ref().map(|block| block[4]);
                assert_eq!(count, Some(1), "a shared block is never changed");
                self.block = Some(content);
            }
            BlockChange::Create(content) => self.block = Some(content),
            BlockChange::Release => assert!(self.block.take().is_some()),
        }
    }

    fn change(&mut self, name: &str, value: Option<&[u8]>, mode: SetMode) -> Result<()> {
        let name = name_of(name);
        let plan = match value {
            Some(value) => self.set()?.plan_set(&name, value, mode),
            None => self.set()?.plan_remove(&name),
        }?;
        self.apply(plan);
        Ok(())
    }

    fn content(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let set = self.set().unwrap();
        set.names()
            .map(|name| match set.get(&name).unwrap() {
                Some(XattrValue::Inline(value)) => (name.full(), value),
                other => panic!("{other:?}"),
            })
            .collect()
    }
}

fn name_of(full: &str) -> XattrName {
    XattrName::parse(full.as_bytes()).unwrap()
}

/// An ACL for the owner and `users` others.
fn acl(users: u32) -> Vec<u8> {
    let mut acl = vec![2, 0, 0, 0];
    let named = (0..users).map(|id| (2u16, id));
    let entries = [(1, u32::MAX)].into_iter().chain(named);
    for (tag, id) in entries.chain([(4, u32::MAX), (0x10, u32::MAX), (0x20, u32::MAX)]) {
        acl.extend_from_slice(&tag.to_le_bytes());
        acl.extend_from_slice(&[5, 0]);
        acl.extend_from_slice(&id.to_le_bytes());
    }
    acl
}

#[derive(Clone, Debug)]
enum Op {
    Set(&'static str, Vec<u8>, SetMode),
    Remove(&'static str),
    Share,
}

const NAMES: [&str; 9] = [
    "user.a",
    "user.b",
    "user.a longer name than the others have",
    "user.\u{fc}",
    "trusted.a",
    "security.capability",
    "security.selinux",
    "system.posix_acl_access",
    "system.posix_acl_default",
];

fn op() -> impl Strategy<Value = Op> {
    let name = prop::sample::select(&NAMES[..]);
    let mode = prop_oneof![
        4 => Just(SetMode::Any),
        1 => Just(SetMode::Create),
        1 => Just(SetMode::Replace)
    ];
    let len = prop_oneof![3 => 0..40usize, 2 => 0..400usize, 1 => 0..1100usize];
    let set = (name.clone(), len, any::<u8>(), mode).prop_map(|(name, len, byte, mode)| {
        let is_acl = name.starts_with("system.");
        let value = if is_acl {
            acl(len as u32 / 8)
        } else {
            (0..len).map(|n| byte.wrapping_add(n as u8)).collect()
        };
        Op::Set(name, value, mode)
    });
    prop_oneof![6 => set, 3 => name.prop_map(Op::Remove), 1 => Just(Op::Share)]
}

/// What a step must answer by the model, and the model after it. `None`: only for want of space.
fn expect(model: &BTreeMap<Vec<u8>, Vec<u8>>, op: &Op) -> Option<Error> {
    match op {
        Op::Set(name, _, mode) if !name.starts_with("system.") => {
            match (mode, model.contains_key(name.as_bytes())) {
                (SetMode::Create, true) => Some(Error::Exists),
                (SetMode::Replace, false) => Some(Error::NoAttribute),
                _ => None,
            }
        }
        Op::Remove(name) if !name.starts_with("system.") => {
            (!model.contains_key(name.as_bytes())).then_some(Error::NoAttribute)
        }
        _ => None,
    }
}

/// Bytes that the attributes take at the most in one region.
fn total(model: &BTreeMap<Vec<u8>, Vec<u8>>) -> usize {
    model
        .iter()
        .map(|(name, value)| 24 + name.len() + value.len())
        .sum()
}

fn step(holder: &mut Holder, model: &mut BTreeMap<Vec<u8>, Vec<u8>>, op: &Op) {
    let expected = expect(model, op);
    let mut wanted = model.clone();
    let result = match op {
        Op::Set(name, value, mode) => {
            wanted.insert(name.as_bytes().to_vec(), value.clone());
            holder.change(name, Some(value), *mode)
        }
        Op::Remove(name) => {
            wanted.remove(name.as_bytes());
            holder.change(name, None, SetMode::Any)
        }
        Op::Share => {
            holder.share();
            Ok(())
        }
    };
    match (result, expected) {
        (Ok(()), None) => *model = wanted,
        (Err(Error::NoSpace), None) => {
            assert!(total(&wanted) + 36 > BLOCK_SIZE as usize, "{op:?}");
        }
        (Err(found), Some(expected)) => {
            assert_eq!(found.to_string(), expected.to_string());
        }
        other => panic!("{op:?}: {other:?}"),
    }
}

proptest! {
    #[test]
    fn equals_a_map(
        area in prop::sample::select(vec![0usize, 4, 92, 96, 352]),
        ops in prop::collection::vec(op(), 1..40),
    ) {
        let mut holder = Holder::new(area);
        let mut model = BTreeMap::new();
        for op in &ops {
            step(&mut holder, &mut model, op);
            prop_assert_eq!(&holder.content(), &model);
        }
        for name in model.keys().cloned().collect::<Vec<_>>() {
            holder.change(std::str::from_utf8(&name).unwrap(), None, SetMode::Any).unwrap();
        }
        prop_assert!(holder.block.is_none());
        prop_assert!(holder.area.iter().all(|&b| b == 0));
    }

    #[test]
    fn hostile_bytes_give_errors(
        ops in prop::collection::vec(op(), 1..12),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        in_block in any::<bool>(),
        cut in prop::option::weighted(0.2, any::<prop::sample::Index>()),
    ) {
        let mut holder = Holder::new(96);
        let mut model = BTreeMap::new();
        for op in &ops {
            step(&mut holder, &mut model, op);
        }
        let bytes = match &mut holder.block {
            Some(block) if in_block => block,
            _ => &mut holder.area,
        };
        for (at, byte) in damage {
            // The first bytes matter most: header and entries.
            let len = bytes.len();
            bytes[at.index(len) * at.index(8) / 8] = byte;
        }
        if let Some(cut) = cut {
            let len = cut.index(bytes.len());
            bytes.truncate(len);
        }
        match holder.set() {
            Err(error) => prop_assert!(matches!(error, Error::Corrupt(_))),
            Ok(set) => {
                let _ = set.list(true);
                for name in NAMES {
                    let _ = set.get(&name_of(name));
                    let _ = set.plan_remove(&name_of(name));
                    let _ = set.plan_set(&name_of(name), &acl(3), SetMode::Any);
                }
            }
        }
    }
}

#[test]
fn hot_attributes_push_others_out_of_the_inode() {
    let mut holder = Holder::new(96);
    holder
        .change("user.a", Some(&[1; 40]), SetMode::Any)
        .unwrap();
    assert!(holder.block.is_none());
    holder
        .change("system.posix_acl_access", Some(&acl(1)), SetMode::Any)
        .unwrap();
    let set = holder.set().unwrap();
    assert!(set.in_inode.iter().all(region::Entry::is_hot));
    assert_eq!((set.in_inode.len(), set.in_block.len()), (1, 1));
    assert_eq!(
        set.list(true),
        b"system.posix_acl_access\0user.a\0".to_vec()
    );
}

#[test]
fn everything_is_packed_before_space_is_denied() {
    let mut holder = Holder::new(96);
    let mut set = |name, len| holder.change(name, Some(&vec![1; len]), SetMode::Any);
    // Taking 36 bytes of 88 in the inode, 700 and 60 of 988 in the block.
    set("user.a", 16).unwrap();
    set("user.b", 680).unwrap();
    set("user.d", 40).unwrap();
    // 252 bytes, for which user.d has to change its place with user.a.
    set("user.c", 230).unwrap();
    let names = |entries: &[region::Entry<'_>]| entries.iter().map(|e| e.name[0]).collect();
    let parsed = holder.set().unwrap();
    let found: (Vec<u8>, Vec<u8>) = (names(&parsed.in_inode), names(&parsed.in_block));
    assert_eq!(found, (b"d".to_vec(), b"abc".to_vec()));
    let before = (holder.area.clone(), holder.block.clone());
    for (len, error) in [(30, Error::NoSpace), (65537, Error::OutOfRange)] {
        let result = holder.change("user.e", Some(&vec![1; len]), SetMode::Any);
        assert_eq!(result.unwrap_err().to_string(), error.to_string());
    }
    assert_eq!(before, (holder.area, holder.block));
}

#[test]
fn the_same_value_is_no_change() {
    let mut holder = Holder::new(96);
    holder.change("user.a", Some(b"x"), SetMode::Any).unwrap();
    let set = holder.set().unwrap();
    let plan = set.plan_set(&name_of("user.a"), b"x", SetMode::Replace);
    assert!(plan.unwrap().is_nothing());
}

#[test]
fn trusted_names_are_for_the_privileged() {
    let mut holder = Holder::new(96);
    holder.change("trusted.a", Some(b""), SetMode::Any).unwrap();
    holder.change("user.b", Some(b""), SetMode::Any).unwrap();
    assert_eq!(holder.set().unwrap().list(false), b"user.b\0");
    assert_eq!(holder.set().unwrap().list(true), b"trusted.a\0user.b\0");
}

#[test]
fn an_acl_without_entries_removes_it() {
    let mut holder = Holder::new(96);
    let name = "system.posix_acl_default";
    holder.change(name, Some(&acl(0)), SetMode::Any).unwrap();
    holder
        .change(name, Some(&[2, 0, 0, 0]), SetMode::Any)
        .unwrap();
    assert!(holder.content().is_empty());
    holder.change(name, None, SetMode::Any).unwrap();
}

/// A block with `user.a` and `user.b`, to be damaged.
fn block() -> Vec<u8> {
    let mut holder = Holder::new(0);
    holder
        .change("user.a", Some(b"12345678"), SetMode::Any)
        .unwrap();
    holder
        .change("user.b", Some(b"1234"), SetMode::Any)
        .unwrap();
    holder.block.unwrap()
}

fn corrupt(damage: impl FnOnce(&mut Vec<u8>)) -> Corrupt {
    let mut block = block();
    damage(&mut block);
    match XattrSet::parse(INODE, &[], Some((NR, &block)), BLOCK_SIZE) {
        Err(Error::Corrupt(corrupt)) => corrupt,
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_contradiction_has_its_variant() {
    assert!(matches!(
        corrupt(|b| b[0] = 1),
        Corrupt::XattrBlockMagic { block: NR }
    ));
    assert!(matches!(
        corrupt(|b| b.truncate(31)),
        Corrupt::XattrBlockMagic { .. }
    ));
    assert!(matches!(
        corrupt(|b| b[8] = 2),
        Corrupt::XattrBlockLength { blocks: 2, .. }
    ));
    assert!(matches!(
        corrupt(|b| b[4] = 0),
        Corrupt::XattrBlockCount { count: 0, .. }
    ));
    assert!(matches!(
        corrupt(|b| b[4..8].copy_from_slice(&1025u32.to_le_bytes())),
        Corrupt::XattrBlockCount { count: 1025, .. }
    ));
    assert!(matches!(
        corrupt(|b| b.truncate(60)),
        Corrupt::XattrEntryOutside { offset: 52, .. }
    ));
    assert!(matches!(
        corrupt(|b| b[48] = 0),
        Corrupt::XattrName { offset: 32, .. }
    ));
    // Entries: 32 and 52, terminator at 72; values from 1012.
    assert!(matches!(
        corrupt(|b| b[34..36].copy_from_slice(&72u16.to_le_bytes())),
        Corrupt::XattrValueOutside {
            offset: 72,
            size: 8,
            ..
        }
    ));
    assert!(matches!(
        corrupt(|b| b[34..36].copy_from_slice(&1017u16.to_le_bytes())),
        Corrupt::XattrValueOutside { offset: 1017, .. }
    ));
    assert!(matches!(
        corrupt(|b| b[40..44].fill(0xff)),
        Corrupt::XattrValueOutside { size: u32::MAX, .. }
    ));
    assert!(matches!(
        corrupt(|b| b[34..36].copy_from_slice(&1008u16.to_le_bytes())),
        Corrupt::XattrValuesOverlap { .. }
    ));
    assert!(matches!(
        corrupt(|b| b[36..44].fill(9)),
        Corrupt::XattrValueSize {
            size: 0x0909_0909,
            ..
        }
    ));
}

#[test]
fn values_in_inodes_are_told_and_not_changed() {
    let mut block = block();
    block[36] = 15;
    let set = XattrSet::parse(INODE, &[], Some((NR, &block)), BLOCK_SIZE).unwrap();
    assert_eq!(
        set.get(&name_of("user.a")).unwrap(),
        Some(XattrValue::Inode {
            inode: InodeNr(15),
            size_bytes: 8
        })
    );
    assert!(matches!(
        set.plan_remove(&name_of("user.b")),
        Err(Error::NotSupported)
    ));
}

#[test]
fn a_damaged_acl_is_told() {
    let mut holder = Holder::new(96);
    holder
        .change("system.posix_acl_access", Some(&acl(0)), SetMode::Any)
        .unwrap();
    let last = holder.area.len() - 20;
    holder.area[last] = 9;
    let set = holder.set().unwrap();
    assert!(matches!(
        set.get(&XattrName::acl_access()),
        Err(Error::Corrupt(Corrupt::XattrAcl { inode: INODE }))
    ));
}
