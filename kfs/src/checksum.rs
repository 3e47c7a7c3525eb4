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
/// A crc can be run backwards, and is linear: what `wanted` was before `after` and the four bytes is what it was
/// before as many zeros, once what `after` adds is taken out of it. What differs from the value of `before` is the
/// patch.
#[must_use]
pub fn crc32c_patch<const N: usize>(
    seed: u32,
    before: &[u8],
    after: &[u8; N],
    wanted: u32,
) -> [u8; 4] {
    let needed = Rewind::<N>::value(wanted ^ crc32c(0, after));
    (needed ^ crc32c(seed, before)).to_le_bytes()
}

/// Runs a crc32c back over `N` zeros and four more.
struct Rewind<const N: usize>;

impl<const N: usize> Rewind<N> {
    /// For each byte of a value, the lowest first, what is left of it.
    const TABLES: [[u32; 256]; 4] = rewind_tables(N + 4);

    fn value(value: u32) -> u32 {
        let bytes = value.to_le_bytes().into_iter().zip(&Self::TABLES);
        bytes.fold(0, |sum, (byte, table)| sum ^ table[usize::from(byte)])
    }
}

const fn rewind_tables(zeros: usize) -> [[u32; 256]; 4] {
    let mut tables = [[0; 256]; 4];
    let mut bit = 0;
    while bit < 32 {
        let mut value = 1u32 << bit;
        let mut step = 0;
        while step < zeros {
            value = value << 8 ^ BACK[(value >> 24) as usize];
            step += 1;
        }
        let mut byte = 0;
        while byte < 256 {
            if byte >> (bit % 8) & 1 == 1 {
                tables[bit / 8][byte] ^= value;
            }
            byte += 1;
        }
        bit += 1;
    }
    tables
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

    fn patch_between<const N: usize>(before: &[u8], after: &[u8; N], wanted: u32) {
        let patch = crc32c_patch(7, before, after, wanted);
        let whole = [before, &patch, after].concat();
        assert_eq!(crc32c(7, &whole), wanted, "{before:?} ? {after:?}");
    }

    #[test]
    fn a_patch_gives_the_wanted_checksum() {
        for wanted in [0, 1, 0xdead_beef, u32::MAX] {
            for before in ["", "some", "more than that"] {
                patch_between(before.as_bytes(), b"", wanted);
                patch_between(before.as_bytes(), b"after it", wanted);
                patch_between(before.as_bytes(), &[0xa5; 820], wanted);
            }
        }
    }
}
