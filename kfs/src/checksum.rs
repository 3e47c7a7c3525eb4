//! The checksums of the format: crc32c with a running seed, and the crc16 of `uninit_bg`.

use crc::{CRC_16_MODBUS, Crc};

static CRC16: Crc<u16> = Crc::<u16>::new(&CRC_16_MODBUS);

/// Seed with which every chain of checksums starts.
pub const CRC32C_INIT: u32 = !0;

/// Continues a crc32c over `data` as ext4 and jbd2 do: no inversion before or after, so that
/// `crc32c(crc32c(s, a), b)` is the value of `a` followed by `b`.
#[must_use]
pub fn crc32c(seed: u32, data: &[u8]) -> u32 {
    !crc32c::crc32c_append(!seed, data)
}

/// The bytes that, put between `before` and `after`, give the whole the checksum `wanted`.
///
/// A crc can be run backwards: from `wanted` through `after` to the value that is needed behind the
/// four bytes, and from there through four zeros. What differs from the value of `before` is the patch.
#[must_use]
pub fn crc32c_patch(seed: u32, before: &[u8], after: &[u8], wanted: u32) -> [u8; 4] {
    let steps = after.iter().rev().chain(&[0; 4]);
    let needed = steps.fold(wanted, |value, &byte| crc32c_back(value, byte));
    (needed ^ crc32c(seed, before)).to_le_bytes()
}

/// The value before `byte` was added.
fn crc32c_back(value: u32, byte: u8) -> u32 {
    value << 8 ^ BACK[(value >> 24) as usize] ^ u32::from(byte)
}

/// For each upper byte of a value: what eight steps back leave of it.
const BACK: [u32; 256] = {
    /// The polynomial of crc32c, lowest power first.
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut table = [0; 256];
    let mut upper = 0;
    while upper < 256 {
        let mut value = (upper as u32) << 24;
        let mut step = 0;
        while step < 8 {
            // A step forward shifts right and adds the polynomial, whose top bit is set, for a 1.
            let was_odd = value >> 31;
            value = (value ^ (POLYNOMIAL * was_odd)) << 1 | was_odd;
            step += 1;
        }
        table[upper] = value;
        upper += 1;
    }
    table
};

/// The crc16 of several pieces one after the other, starting at 0xffff.
#[must_use]
pub fn crc16(pieces: &[&[u8]]) -> u16 {
    let mut digest = CRC16.digest();
    for piece in pieces {
        digest.update(piece);
    }
    digest.finalize()
}

/// Seed of the checksums that belong to one inode: its bytes, extent blocks, directory blocks.
#[must_use]
pub fn inode_seed(volume_seed: u32, inode: u32, generation: u32) -> u32 {
    let seed = crc32c(volume_seed, &inode.to_le_bytes());
    crc32c(seed, &generation.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_values() {
        // The published check value of CRC-32C, which inverts at both ends.
        assert_eq!(!crc32c(CRC32C_INIT, b"123456789"), 0xe306_9283);
        assert_eq!(
            crc32c(crc32c(7, b"1234"), b"56789"),
            crc32c(7, b"123456789")
        );
        assert_eq!(crc16(&[b"1234", b"56789"]), 0x4b37);
    }

    #[test]
    fn a_patch_gives_the_wanted_checksum() {
        for wanted in [0, 1, 0xdead_beef, u32::MAX] {
            for (before, after) in [("", ""), ("some", ""), ("", "more"), ("before", "after it")] {
                let patch = crc32c_patch(7, before.as_bytes(), after.as_bytes(), wanted);
                let whole = [before.as_bytes(), &patch, after.as_bytes()].concat();
                assert_eq!(crc32c(7, &whole), wanted, "{before} ? {after}");
            }
        }
    }
}
