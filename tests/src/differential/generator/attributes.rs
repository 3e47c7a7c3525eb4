//! Modes, owners, times, attributes, access control lists and flags are set and asked for.

use super::Generator;
use crate::differential::operation::{Action, SLOTS, Target, Value, When};

const CREATE: u32 = 1;
const REPLACE: u32 = 2;

const CAPABILITY_NAME: &str = "security.capability";

const NAMES: [&str; 13] = [
    "user.a",
    "user.b",
    "user.a-rather-long-name-for-an-attribute",
    "trusted.a",
    "trusted.overlay.opaque",
    "security.a",
    CAPABILITY_NAME,
    "system.posix_acl_access",
    "system.posix_acl_default",
    "system.unknown",
    "unknown.a",
    "user.",
    "nothing",
];

const ACCESS: usize = 7;
const DEFAULT: usize = 8;

/// A file capability, revision 2: net_raw, effective.
const CAPABILITY: [u8; 20] = [
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

impl Generator {
    pub(super) fn attributes(&mut self) -> Action {
        let target = self.target();
        match self.random.below(30) {
            0..4 => Action::Chmod {
                target,
                mode: self.mode(),
            },
            4..7 => self.chown(target),
            7..10 => Action::SetTimes {
                target,
                accessed: self.when(),
                modified: self.when(),
            },
            10..16 => self.set_xattr(target),
            16..18 => Action::GetXattr {
                target,
                name: self.xattr_name().1,
            },
            18 => Action::ListXattr { target },
            19..21 => Action::RemoveXattr {
                target,
                name: self.xattr_name().1,
            },
            21..24 => Action::Stat { target },
            24..26 => Action::Access {
                path: self.path(),
                mode: self.random.below(8) as u32,
            },
            26 => Action::GetFlags {
                slot: self.random.index(SLOTS),
            },
            27 => Action::SetFlags {
                slot: self.random.index(SLOTS),
                flags: self.flags(),
            },
            // What a privileged program leaves behind, for others to take away by writing.
            28 => Action::Chmod {
                target: Target::Path(self.file()),
                mode: [0o6777, 0o4777, 0o2777, 0o2767][self.random.index(4)],
            },
            _ => Action::SetXattr {
                target: Target::Path(self.file()),
                name: self.capability(),
                value: Value(CAPABILITY.into()),
                flags: 0,
            },
        }
    }

    /// Always sets something: chown(2) of nothing takes set-id bits away, but FUSE has the same request
    /// for it as for the removal of capabilities when root writes, which keeps them.
    fn chown(&mut self, target: Target) -> Action {
        let (uid, gid) = (self.id(), self.id());
        let gid = if uid.is_none() {
            gid.or(Some(3000))
        } else {
            gid
        };
        Action::Chown { target, uid, gid }
    }

    /// Those of chattr(1): immutable, append-only, no dump, no times of access, synchronous.
    fn flags(&mut self) -> u32 {
        let flags = [0, 0, 0, 0x10, 0x20, 0x40 | 0x80, 0x8, 0x30][self.random.index(8)];
        if self.rules.forbids_changes {
            flags
        } else {
            flags & !0x30
        }
    }

    fn capability(&self) -> String {
        let name = if self.rules.capabilities {
            CAPABILITY_NAME
        } else {
            "security.a"
        };
        name.into()
    }

    fn id(&mut self) -> Option<u32> {
        match self.random.below(10) {
            0..3 => None,
            3 => Some(0),
            4..6 => Some(1000),
            6 => Some(1001),
            7 => Some(1002),
            8 => Some(3000),
            _ => Some([65_534, 65_536, 0x7fff_ffff, 0xffff_fffe][self.random.index(4)]),
        }
    }

    fn when(&mut self) -> When {
        let choice = self.random.below(8);
        match choice {
            6 | 7 if !self.rules.beyond_limits => When::Now,
            0..2 => When::Now,
            2..4 => When::Omit,
            4 => When::At(self.random.below(1_000_000_000).cast_signed(), 123_456_789),
            5 => When::At(-(self.random.below(1 << 31).cast_signed()), 1),
            6 => {
                let edges = [
                    0,
                    0x7fff_ffff,
                    0x8000_0000,
                    0xffff_ffff,
                    0x1_0000_0000,
                    0x3_7fff_ffff,
                    0x3_8000_0000,
                    -0x8000_0000,
                    -0x8000_0001,
                    i64::MAX,
                    i64::MIN,
                ];
                let nanoseconds = [0, 999_999_999][self.random.index(2)];
                When::At(edges[self.random.index(edges.len())], nanoseconds)
            }
            _ => When::At(self.random.below(1 << 33).cast_signed(), 999_999_999),
        }
    }

    fn xattr_name(&mut self) -> (usize, String) {
        let index = match self.random.below(10) {
            0..5 => self.random.index(3),
            5..7 => ACCESS + self.random.index(2),
            _ => self.random.index(NAMES.len()),
        };
        let index = if NAMES[index] == CAPABILITY_NAME && !self.rules.capabilities {
            0
        } else {
            index
        };
        let name = match self.random.below(40) {
            0 => format!("user.{}", "n".repeat(200 + self.random.index(60))),
            1..8 => format!("user.{}", self.random.below(40)),
            _ => NAMES[index].to_owned(),
        };
        (index, name)
    }

    fn set_xattr(&mut self, target: Target) -> Action {
        let (index, name) = self.xattr_name();
        let value = match index {
            ACCESS | DEFAULT if name == NAMES[index] => self.acl(),
            _ if name == CAPABILITY_NAME => CAPABILITY.into(),
            _ => self.xattr_value(),
        };
        Action::SetXattr {
            target,
            name,
            value: Value(value),
            flags: [0, 0, 0, CREATE, REPLACE, CREATE | REPLACE][self.random.index(6)],
        }
    }

    fn xattr_value(&mut self) -> Vec<u8> {
        let len = match self.random.below(20) {
            0 => 0,
            1..10 => 1 + self.random.index(40),
            10..15 => self.random.index(300),
            15..18 => self.random.index(1200),
            18 => 900 + self.random.index(3400),
            _ => [65_536, 65_537, 10_000][self.random.index(3)],
        };
        vec![self.random.next() as u8; len]
    }

    /// An access control list as Linux takes it: valid ones, and some that are not.
    fn acl(&mut self) -> Vec<u8> {
        const NO_ID: u32 = 0xffff_ffff;
        let mut entries = vec![(1, NO_ID)];
        let users = self.random.index(3);
        let groups = self.random.index(3);
        entries.extend([1000, 1001, 1002][..users].iter().map(|uid| (2, *uid)));
        entries.push((4, NO_ID));
        entries.extend([1000, 3000][..groups].iter().map(|gid| (8, *gid)));
        if users + groups > 0 || self.random.one_in(4) {
            entries.push((16, NO_ID));
        }
        entries.push((32, NO_ID));
        match self.random.below(24) {
            0 => drop(entries.pop()),
            1 => entries.push((2, 5)),
            2 => entries.clear(),
            3 => entries.swap(0, 1),
            _ => {}
        }
        let version: u32 = if self.random.one_in(40) { 3 } else { 2 };
        let mut value = version.to_le_bytes().to_vec();
        for (tag, id) in entries {
            let permissions = match self.random.below(3) {
                0 => 7,
                _ => self.random.below(8) as u16,
            };
            value.extend((tag as u16).to_le_bytes());
            value.extend(permissions.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }
}
