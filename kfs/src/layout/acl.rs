//! POSIX ACLs: the compact form on disk, and the form in which xattr calls carry them.
//!
//! A caller gets and sets `system.posix_acl_*` as version 2 (every entry has an id); on disk
//! it is version 1, in which only named users and groups have one. Kernel: `fs/ext4/acl.h`.

use crate::error::{Error, Result};

const DISK_VERSION: u32 = 1;
const XATTR_VERSION: u32 = 2;
const TAG_USER: u16 = 0x2;
const TAG_GROUP: u16 = 0x8;
const NO_ID: u32 = u32::MAX;

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from(u16_at(bytes, at)?) | u32::from(u16_at(bytes, at + 2)?) << 16)
}

fn has_id(tag: u16) -> bool {
    tag == TAG_USER || tag == TAG_GROUP
}

fn is_tag(tag: u16) -> bool {
    matches!(tag, 0x1 | TAG_USER | 0x4 | TAG_GROUP | 0x10 | 0x20)
}

/// From the form of xattr calls to that on disk.
///
/// # Errors
/// [`Error::Invalid`] when it is not an ACL of version 2, [`Error::NotSupported`] for another
/// version.
pub fn encode(xattr: &[u8]) -> Result<Vec<u8>> {
    let version = u32_at(xattr, 0).ok_or(Error::Invalid)?;
    if version != XATTR_VERSION {
        return Err(Error::NotSupported);
    }
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    for entry in xattr[4..].chunks(8) {
        let tag = u16_at(entry, 0)
            .filter(|&t| is_tag(t))
            .ok_or(Error::Invalid)?;
        if entry.len() != 8 {
            return Err(Error::Invalid);
        }
        disk.extend_from_slice(&entry[..if has_id(tag) { 8 } else { 4 }]);
    }
    Ok(disk)
}

/// From the form on disk to that of xattr calls; `None` when it is damaged.
#[must_use]
pub fn decode(disk: &[u8]) -> Option<Vec<u8>> {
    if u32_at(disk, 0)? != DISK_VERSION {
        return None;
    }
    let mut xattr = XATTR_VERSION.to_le_bytes().to_vec();
    let mut at = 4;
    while at < disk.len() {
        let tag = u16_at(disk, at).filter(|&t| is_tag(t))?;
        xattr.extend_from_slice(disk.get(at..at + 4)?);
        at += 4;
        let id = if has_id(tag) {
            u32_at(disk, at)?
        } else {
            NO_ID
        };
        at += if has_id(tag) { 4 } else { 0 };
        xattr.extend_from_slice(&id.to_le_bytes());
    }
    Some(xattr)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acl_round_trip() {
        let mut xattr = vec![2, 0, 0, 0];
        for (tag, id) in [
            (1u16, NO_ID),
            (2, 1000),
            (4, NO_ID),
            (0x10, NO_ID),
            (0x20, NO_ID),
        ] {
            xattr.extend_from_slice(&tag.to_le_bytes());
            xattr.extend_from_slice(&[7, 0]);
            xattr.extend_from_slice(&id.to_le_bytes());
        }
        let disk = encode(&xattr).unwrap();
        assert_eq!(disk.len(), 4 + 4 * 4 + 8);
        assert_eq!(decode(&disk).unwrap(), xattr);
        assert!(decode(&disk[..disk.len() - 1]).is_none());
        assert!(matches!(
            encode(&xattr[..xattr.len() - 1]),
            Err(Error::Invalid)
        ));
        assert!(matches!(encode(&[1, 0, 0, 0]), Err(Error::NotSupported)));
    }
}
