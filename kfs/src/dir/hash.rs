//! The name hashes of hash trees: legacy, half MD4 and TEA, each on signed or unsigned characters.
//!
//! These are ext4's own functions; "half MD4" is a shortened transform that no MD4 library has.
//! The low bit of a hash is always 0: index entries use it for "continued from the block before".

use crate::error::{Error, Result};

/// The value that ends a walk in hash order; no name has it.
const END_OF_HASHES: u32 = 0x7fff_ffff << 1;

/// How a hash tree hashes names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HashAlgorithm {
    /// The hash of the first hash trees; has no minor hash.
    Legacy,
    /// A shortened MD4, the usual one.
    HalfMd4,
    /// The Tiny Encryption Algorithm as a hash.
    Tea,
}

/// A hash function with all that it depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameHasher {
    algorithm: HashAlgorithm,
    unsigned: bool,
    seed: [u32; 4],
}

/// Hash of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameHash {
    /// What the tree is sorted by; even.
    pub major: u32,
    /// More bits, to tell names of equal major hash apart; 0 with the legacy hash.
    pub minor: u32,
}

const INITIAL_STATE: [u32; 4] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

impl NameHasher {
    /// The hasher for `version` as in a tree's root or in the superblock: 0 to 2, or 3 to 5 for
    /// the same on unsigned characters, which `unsigned` (a superblock flag) turns 0 to 2 into.
    ///
    /// # Errors
    /// `Unsupported` for any other version (6 is SipHash, of encrypted and casefolded directories).
    pub fn new(version: u8, unsigned: bool, seed: [u32; 4]) -> Result<Self> {
        let algorithm = match version {
            0 | 3 => HashAlgorithm::Legacy,
            1 | 4 => HashAlgorithm::HalfMd4,
            2 | 5 => HashAlgorithm::Tea,
            _ => {
                let names = format!("directory hash version {version}");
                return Err(Error::Unsupported { names });
            }
        };
        let seed = if seed == [0; 4] { INITIAL_STATE } else { seed };
        Ok(Self {
            algorithm,
            unsigned: unsigned || version >= 3,
            seed,
        })
    }

    /// Hash of a name.
    #[must_use]
    pub fn hash(&self, name: &[u8]) -> NameHash {
        let (major, minor) = match self.algorithm {
            HashAlgorithm::Legacy => (self.legacy(name), 0),
            HashAlgorithm::HalfMd4 => self.half_md4(name),
            HashAlgorithm::Tea => self.tea(name),
        };
        let major = match major & !1 {
            END_OF_HASHES => END_OF_HASHES - 2,
            major => major,
        };
        NameHash { major, minor }
    }

    /// Whether hashes have minor bits.
    #[must_use]
    pub fn has_minor(&self) -> bool {
        self.algorithm != HashAlgorithm::Legacy
    }

    /// A character as the C type of the volume's origin widens it.
    fn widen(&self, byte: u8) -> u32 {
        if self.unsigned {
            u32::from(byte)
        } else {
            i32::from(byte.cast_signed()).cast_unsigned()
        }
    }

    fn legacy(&self, name: &[u8]) -> u32 {
        let (mut last, mut before) = (0x12a3_fe2d_u32, 0x37ab_e8f9_u32);
        for &byte in name {
            let mixed = last ^ self.widen(byte).wrapping_mul(7_152_373);
            let mut hash = before.wrapping_add(mixed);
            if hash & 0x8000_0000 != 0 {
                hash = hash.wrapping_sub(0x7fff_ffff);
            }
            before = last;
            last = hash;
        }
        last << 1
    }

    fn half_md4(&self, name: &[u8]) -> (u32, u32) {
        let mut state = self.seed;
        for start in (0..name.len()).step_by(32) {
            half_md4_transform(&mut state, &self.words(&name[start..]));
        }
        (state[1], state[2])
    }

    fn tea(&self, name: &[u8]) -> (u32, u32) {
        let mut state = self.seed;
        for start in (0..name.len()).step_by(16) {
            tea_transform(&mut state, &self.words(&name[start..]));
        }
        (state[0], state[1])
    }

    /// The rest of a name as words, filled up with its length.
    fn words<const N: usize>(&self, rest: &[u8]) -> [u32; N] {
        let length = rest.len() as u32;
        let mut pad = length | (length << 8);
        pad |= pad << 16;
        let mut words = [pad; N];
        for (word, bytes) in words.iter_mut().zip(rest.chunks(4)) {
            *word = bytes.iter().fold(pad, |value, &byte| {
                self.widen(byte).wrapping_add(value << 8)
            });
        }
        words
    }
}

fn half_md4_transform(state: &mut [u32; 4], input: &[u32; 8]) {
    const K2: u32 = 0x5a82_7999;
    const K3: u32 = 0x6ed9_eba1;
    let choose = |x: u32, y: u32, z: u32| z ^ (x & (y ^ z));
    let majority = |x: u32, y: u32, z: u32| (x & y).wrapping_add((x ^ y) & z);
    let parity = |x: u32, y: u32, z: u32| x ^ y ^ z;
    let mut s = *state;
    // The roles of the four words rotate: a step changes a, then d, c, b.
    let mut round =
        |f: &dyn Fn(u32, u32, u32) -> u32, k: u32, order: [usize; 8], shift: [u32; 4]| {
            for (step, &word) in order.iter().enumerate() {
                let a = (4 - step % 4) % 4;
                let (b, c, d) = ((a + 1) % 4, (a + 2) % 4, (a + 3) % 4);
                let sum = s[a]
                    .wrapping_add(f(s[b], s[c], s[d]))
                    .wrapping_add(input[word]);
                s[a] = sum.wrapping_add(k).rotate_left(shift[step % 4]);
            }
        };
    round(&choose, 0, [0, 1, 2, 3, 4, 5, 6, 7], [3, 7, 11, 19]);
    round(&majority, K2, [1, 3, 5, 7, 0, 2, 4, 6], [3, 5, 9, 13]);
    round(&parity, K3, [3, 7, 2, 6, 1, 5, 0, 4], [3, 9, 11, 15]);
    for (word, add) in state.iter_mut().zip(s) {
        *word = word.wrapping_add(add);
    }
}

fn tea_transform(state: &mut [u32; 4], input: &[u32; 4]) {
    let [a, b, c, d] = *input;
    let (mut b0, mut b1) = (state[0], state[1]);
    let mut sum = 0_u32;
    let mix = |x: u32, k1: u32, k2: u32, sum: u32| {
        (x << 4).wrapping_add(k1) ^ x.wrapping_add(sum) ^ (x >> 5).wrapping_add(k2)
    };
    for _ in 0..16 {
        sum = sum.wrapping_add(0x9e37_79b9);
        b0 = b0.wrapping_add(mix(b1, a, b, sum));
        b1 = b1.wrapping_add(mix(b0, c, d, sum));
    }
    state[0] = state[0].wrapping_add(b0);
    state[1] = state[1].wrapping_add(b1);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    /// What `debugfs` says of a name; its hashes take characters as signed.
    fn oracle(algorithm: &str, uuid: &str, name: &str) -> (u32, u32) {
        let request = format!("dx_hash -h {algorithm} -s {uuid} {name}");
        let output = Command::new("debugfs")
            .args(["-R", &request])
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let number = |after: &str| {
            let rest = text
                .split(after)
                .nth(1)
                .unwrap_or_else(|| panic!("no answer: {text}"));
            let end = rest.find(|c: char| !c.is_ascii_hexdigit()).unwrap();
            u32::from_str_radix(&rest[..end], 16).unwrap()
        };
        (number("is 0x"), number("minor 0x"))
    }

    #[test]
    fn agrees_with_debugfs() {
        let long = "x".repeat(255);
        let names = [
            "a",
            "hello",
            "0123456789abcdef",
            "0123456789abcdef0123456789abcdef",
            &long,
        ]
        .map(String::from);
        let high = [
            "gr\u{fc}n",
            "\u{e9}t\u{e9}-\u{10ffff}\u{7f}-\u{3b1}\u{3b2}\u{3b3}",
        ]
        .map(String::from);
        let seeds = [
            (
                "01020304-0506-0708-090a-0b0c0d0e0f10",
                [0x0403_0201, 0x0807_0605, 0x0c0b_0a09, 0x100f_0e0d],
            ),
            ("00000000-0000-0000-0000-000000000000", [0; 4]),
        ];
        for (version, algorithm) in ["legacy", "half_md4", "tea"].into_iter().enumerate() {
            for (uuid, seed) in seeds {
                let hasher = NameHasher::new(version as u8, false, seed).unwrap();
                for name in names.iter().chain(&high) {
                    let hash = hasher.hash(name.as_bytes());
                    let expected = oracle(algorithm, uuid, name);
                    assert_eq!(
                        (hash.major, hash.minor),
                        expected,
                        "{algorithm} {uuid} {name}"
                    );
                }
            }
        }
    }

    #[test]
    fn signedness_matters_for_high_bytes_only() {
        for version in 0..3 {
            let signed = NameHasher::new(version, false, [0; 4]).unwrap();
            let unsigned = NameHasher::new(version, true, [0; 4]).unwrap();
            assert_eq!(
                unsigned,
                NameHasher::new(version + 3, false, [0; 4]).unwrap()
            );
            assert_eq!(signed.hash(b"plain"), unsigned.hash(b"plain"));
            assert_ne!(signed.hash(b"caf\xe9"), unsigned.hash(b"caf\xe9"));
        }
    }

    #[test]
    fn unknown_versions_are_unsupported() {
        assert!(matches!(
            NameHasher::new(6, false, [0; 4]),
            Err(Error::Unsupported { .. })
        ));
    }
}
