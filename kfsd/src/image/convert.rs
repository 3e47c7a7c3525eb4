//! Attributes, times and devices between the file system's types and those of the wire.

use crate::fuse::abi::{Kstatfs, Statx, SxTime};
use crate::fuse::flags::SetattrValid;
use crate::fuse::{SetAttr, abi};
use kfs::layout::features::{self, Feature};
use kfs::layout::inode::DeviceNumber;
use kfs::{Attr, FileType, InodeFlags, SpaceStatus, TimeChange, Timestamp};
use kfs_disk::DeviceStats;
use kfsctl::status::{
    Cache, Device, Features, Inodes, Journal, Snapshots, Source, Space, VolumeState, VolumeStatus,
};
use std::path::Path;

/// Longest name of a directory entry.
const NAME_MAX: u32 = 255;

/// Bits of `stx_mask` beyond those of stat(2).
pub(super) const STATX_BASIC: u32 = 0x7ff;
const STATX_BTIME: u32 = 0x800;

pub(super) fn attr(attr: &Attr, block_size: u32) -> abi::Attr {
    abi::Attr {
        ino: u64::from(attr.inode.0),
        size: attr.size_bytes,
        blocks: attr.blocks_512,
        atime: attr.atime.seconds.cast_unsigned(),
        mtime: attr.mtime.seconds.cast_unsigned(),
        ctime: attr.ctime.seconds.cast_unsigned(),
        atimensec: attr.atime.nanoseconds,
        mtimensec: attr.mtime.nanoseconds,
        ctimensec: attr.ctime.nanoseconds,
        mode: u32::from(attr.mode),
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        rdev: encode_device(attr.device),
        blksize: block_size,
        flags: 0,
    }
}

pub(super) fn statx(attr: &Attr, block_size: u32) -> Statx {
    let time = |time: Timestamp| SxTime {
        tv_sec: time.seconds,
        tv_nsec: time.nanoseconds,
        reserved: 0,
    };
    let btime = if attr.crtime.is_some() {
        STATX_BTIME
    } else {
        0
    };
    // The bits of statx are those of the inode for these flags.
    let known = InodeFlags::IMMUTABLE | InodeFlags::APPEND | InodeFlags::NODUMP;
    Statx {
        mask: STATX_BASIC | btime,
        blksize: block_size,
        attributes: u64::from((attr.flags & known).bits()),
        attributes_mask: u64::from(known.bits()),
        nlink: attr.links,
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode,
        ino: u64::from(attr.inode.0),
        size: attr.size_bytes,
        blocks: attr.blocks_512,
        atime: time(attr.atime),
        btime: attr.crtime.map(time).unwrap_or_default(),
        ctime: time(attr.ctime),
        mtime: time(attr.mtime),
        rdev_major: attr.device.major,
        rdev_minor: attr.device.minor,
        ..Statx::default()
    }
}

pub(super) fn statfs(space: &SpaceStatus) -> Kstatfs {
    Kstatfs {
        blocks: space.blocks,
        bfree: space.blocks_free,
        bavail: space.blocks_available,
        files: space.inodes,
        ffree: space.inodes_free,
        bsize: space.block_size,
        namelen: NAME_MAX,
        frsize: space.block_size,
        ..Kstatfs::default()
    }
}

pub(super) fn set_attr(change: &SetAttr) -> kfs::SetAttr {
    let has = |flag| change.valid.contains(flag);
    let to = |(seconds, nanoseconds): (i64, u32)| {
        TimeChange::To(Timestamp {
            seconds,
            nanoseconds: nanoseconds.min(999_999_999),
        })
    };
    let time = |set, now, value| {
        if has(now) {
            Some(TimeChange::Now)
        } else {
            has(set).then(|| to(value))
        }
    };
    kfs::SetAttr {
        mode: has(SetattrValid::MODE).then_some(change.mode as u16 & 0o7777),
        uid: has(SetattrValid::UID).then_some(change.uid),
        gid: has(SetattrValid::GID).then_some(change.gid),
        size_bytes: has(SetattrValid::SIZE).then_some(change.size),
        atime: time(SetattrValid::ATIME, SetattrValid::ATIME_NOW, change.atime),
        mtime: time(SetattrValid::MTIME, SetattrValid::MTIME_NOW, change.mtime),
        // The kernel sends it with a write-back cache only, where its time is the true one.
        ctime: has(SetattrValid::CTIME).then(|| Timestamp {
            seconds: change.ctime.0,
            nanoseconds: change.ctime.1.min(999_999_999),
        }),
        kill_privileges: has(SetattrValid::KILL_SUIDGID),
    }
}

/// d_type of getdents(2).
pub(super) fn dirent_kind(file_type: FileType) -> u8 {
    match file_type {
        FileType::Unknown => 0,
        FileType::Fifo => 1,
        FileType::CharDevice => 2,
        FileType::Directory => 4,
        FileType::BlockDevice => 6,
        FileType::Regular => 8,
        FileType::Symlink => 10,
        FileType::Socket => 12,
    }
}

/// The kernel's 32-bit form of a device number: 12 bits of major, 20 of minor.
fn encode_device(device: DeviceNumber) -> u32 {
    let DeviceNumber { major, minor } = device;
    minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12
}

pub(super) fn decode_device(rdev: u32) -> DeviceNumber {
    DeviceNumber {
        major: (rdev >> 8) & 0xfff,
        minor: rdev & 0xff | (rdev >> 12) & 0xf_ff00,
    }
}

/// What `kfsctl status` shows of an image.
pub(super) fn volume_status(
    path: &Path,
    status: &kfs::Status,
    device: DeviceStats,
) -> VolumeStatus {
    let space = &status.space;
    let block_size = u64::from(space.block_size);
    let journal = &status.journal;
    VolumeStatus {
        source: Source::Image {
            path: path.to_owned(),
        },
        snapshot: None,
        read_only: status.read_only.is_some(),
        read_only_reason: status.read_only.map(|reason| reason.to_string()),
        errors_found: Some(status.errors_recorded.max(status.damage_found)),
        state: Some(
            if journal.aborted || status.damage_found > 0 || status.errors_recorded > 0 {
                VolumeState::HasErrors
            } else if status.read_only.is_some() || status.frozen_for.is_some() {
                VolumeState::Clean
            } else {
                VolumeState::InUse
            },
        ),
        label: Some(String::from_utf8_lossy(&status.label).into_owned()),
        uuid: Some(uuid(&status.uuid)),
        space: Some(Space {
            block_size_bytes: block_size,
            total_blocks: space.blocks,
            free_blocks: space.blocks_free,
            available_blocks: space.blocks_available,
        }),
        inodes: Some(Inodes {
            total: space.inodes,
            free: space.inodes_free,
        }),
        features: Some(sorted(&status.features)),
        journal: (journal.log_blocks > 0).then(|| Journal {
            size_bytes: u64::from(journal.log_blocks) * block_size,
            used_bytes: Some(u64::from(journal.log_blocks_used) * block_size),
            running_tid: Some(journal.running.0),
            committed_tid: Some(journal.committed.0),
            running_blocks: Some(journal.running_blocks.into()),
            checkpoint_blocks: Some(journal.checkpoint_blocks.into()),
            commits: Some(journal.commits),
            needs_recovery: journal.log_blocks_used > 0,
        }),
        caches: vec![Cache {
            name: "metadata blocks".into(),
            hits: status.cache.hits,
            misses: status.cache.misses,
            entries: status.cache.buffers,
            capacity: 0,
        }],
        inodes_in_memory: Some(status.inodes_in_memory),
        device: Some(Device {
            reads: device.reads,
            read_bytes: device.read_bytes,
            writes: device.writes,
            written_bytes: device.written_bytes,
            flushes: device.flushes,
            discards: device.discards,
            zeroings: device.zeroings,
            errors: device.errors,
        }),
        snapshots: Some(Snapshots {
            count: status.snapshots,
            pinned_bytes: status.pinned_blocks * block_size,
        }),
        frozen_for_seconds: status.frozen_for.map(|left| left.as_secs_f64()),
    }
}

/// Puts feature names into the sets they belong to.
fn sorted(names: &[String]) -> Features {
    let mut sorted = Features::default();
    for name in names {
        let set = match (features::find(name), name.as_str()) {
            (Some(Feature::Compat(_)), _) => &mut sorted.compat,
            (Some(Feature::Incompat(_)), _) | (None, "needs_recovery") => &mut sorted.incompat,
            (Some(Feature::RoCompat(_)), _) | (None, "orphan_present") => &mut sorted.ro_compat,
            // Unknown ones are named by their set and bit.
            (None, name) if name.starts_with("FEATURE_I") => &mut sorted.incompat,
            (None, name) if name.starts_with("FEATURE_R") => &mut sorted.ro_compat,
            (None, _) => &mut sorted.compat,
        };
        set.push(name.clone());
    }
    sorted
}

fn uuid(bytes: &[u8; 16]) -> String {
    let hex = |part: &[u8]| {
        part.iter()
            .map(|byte| format!("{byte:02x}"))
            .collect::<String>()
    };
    let (a, rest) = bytes.split_at(4);
    format!(
        "{}-{}-{}-{}-{}",
        hex(a),
        hex(&rest[..2]),
        hex(&rest[2..4]),
        hex(&rest[4..6]),
        hex(&rest[6..])
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_survive_the_wire() {
        for (major, minor) in [(0, 0), (8, 1), (259, 70_000), (4095, 0xf_ffff)] {
            let device = DeviceNumber { major, minor };
            assert_eq!(decode_device(encode_device(device)), device);
        }
    }
}
