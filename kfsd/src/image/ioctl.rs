//! The ioctls of inode flags: lsattr(1) and chattr(1), in their ext and their xfs form.

use super::tree::Node;
use crate::fuse::{DataSink, Result};
use kfs::InodeFlags;
use rustix::io::Errno;

const GETFLAGS: u32 = 0x8008_6601;
const SETFLAGS: u32 = 0x4008_6602;
const GETFLAGS_32: u32 = 0x8004_6601;
const SETFLAGS_32: u32 = 0x4004_6602;
const FSGETXATTR: u32 = 0x801c_581f;
const FSSETXATTR: u32 = 0x401c_5820;

/// Bytes of `struct fsxattr`, whose first word are the flags.
const FSXATTR_BYTES: usize = 28;

/// Flags of the ext form with their values in the xfs form.
const XFS_FLAGS: [(InodeFlags, u32); 5] = [
    (InodeFlags::IMMUTABLE, 0x08),
    (InodeFlags::APPEND, 0x10),
    (InodeFlags::SYNC, 0x20),
    (InodeFlags::NOATIME, 0x40),
    (InodeFlags::NODUMP, 0x80),
];

/// Answers an ioctl.
pub(super) fn flags_ioctl(
    inode: &Node,
    command: u32,
    input: &[u8],
    output: &mut DataSink<'_>,
) -> Result<i32> {
    let flags = inode.fs().attr(inode).flags;
    match command {
        GETFLAGS | GETFLAGS_32 => {
            output.write(&(flags & InodeFlags::USER_VISIBLE).bits().to_le_bytes())?;
        }
        SETFLAGS | SETFLAGS_32 => {
            let wanted = InodeFlags::from_bits_retain(first_word(input)?);
            inode.fs().set_flags(inode, wanted).map_err(inode.errno())?;
        }
        FSGETXATTR => {
            let mut answer = [0; FSXATTR_BYTES];
            let xfs = XFS_FLAGS.iter().filter(|(flag, _)| flags.contains(*flag));
            let word: u32 = xfs.map(|(_, bit)| bit).sum();
            answer[..4].copy_from_slice(&word.to_le_bytes());
            output.write(&answer)?;
        }
        FSSETXATTR => {
            let word = first_word(input)?;
            let mut wanted = flags;
            for (flag, bit) in XFS_FLAGS {
                wanted.set(flag, word & bit != 0);
            }
            inode.fs().set_flags(inode, wanted).map_err(inode.errno())?;
        }
        _ => return Err(Errno::NOTTY),
    }
    Ok(0)
}

fn first_word(input: &[u8]) -> Result<u32> {
    let word = input.first_chunk::<4>().ok_or(Errno::INVAL)?;
    Ok(u32::from_le_bytes(*word))
}
