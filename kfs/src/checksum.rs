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
}
