//! Recovery of logs: one of an image, edited, and small ones made up block by block.

use crate::base::{self, Editor, Kind, fix_log};
use crate::input::Input;
use crate::walk::read_inode;
use kfs::layout::journal::{
    BlockType, JBD2_MAGIC, JournalIncompat, RawBlockTag3, RawJournalHeader, RawJournalSuperblock,
    RawRevokeHeader, TagFlags,
};
use kfs::storage::journal::{LogArea, attach, recover, reset_log};
use kfs::{BlockNr, Filesystem, Run};
use kfs_disk::{BlockDevice, MemoryDevice};
use std::ops::ControlFlow;
use std::sync::Arc;
use zerocopy::IntoBytes;

/// Log blocks twice, as there are most of them; the superblock and the journal's inode, too.
const CLASSES: [usize; 5] = [13, 13, 12, 0, 4];
/// Size of a made-up volume in blocks of 1 KiB.
const BLOCKS: u64 = 96;
const BLOCK_SIZE: usize = 1024;
/// Where its log lies: in two pieces.
const LOG: [Run; 2] = [
    Run {
        start: BlockNr(8),
        len: 20,
    },
    Run {
        start: BlockNr(40),
        len: 30,
    },
];

const _: () = assert!(Kind::CLASSES == 18, "the numbers above are of the log");

/// A log to recover.
pub fn journal(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.u8();
    if how & 1 == 0 {
        edited(&mut input, how);
    } else {
        made_up(&mut input, how);
    }
}

fn edited(input: &mut Input<'_>, how: u8) {
    let base = base::get(usize::from(how >> 1) % base::WITH_JOURNAL);
    let mut editor = Editor::new(base, true);
    editor.edit(input, &CLASSES);
    if how & 0x80 == 0 {
        editor.fix_checksums();
    }
    let device: Arc<dyn BlockDevice> = Arc::new(editor.into_device());
    let Ok(fs) = Filesystem::open(Arc::clone(&device), base::options()) else {
        return;
    };
    if let Ok(root) = fs.root() {
        read_inode(&fs, &root);
        let mut visit = |entry: &kfs::ListedEntry<'_>| {
            if let Ok(inode) = fs.inode_of(&entry.entry) {
                read_inode(&fs, &inode);
            }
            ControlFlow::Continue(())
        };
        let _ = fs.list(&root, 0, &mut visit);
    }
    let _ = fs.close();
}

fn made_up(input: &mut Input<'_>, how: u8) {
    let device = MemoryDevice::new(BLOCKS * BLOCK_SIZE as u64);
    let log: Vec<u64> = LOG
        .iter()
        .flat_map(|run| run.start.0..run.start.0 + u64::from(run.len))
        .collect();
    let first = superblock(input, how, log.len() as u32);
    write(&device, log[0], first.as_bytes());
    let mut at = first.s_start.get() as usize;
    let mut sequence = first.s_sequence.get();
    let (start, end) = (first.s_first.get() as usize, first.log_end() as usize);
    let mut room = log.len() * 2;
    while !input.is_empty() && room > 0 {
        room -= 1;
        if let Some(block) = log.get(at) {
            write(&device, *block, &log_block(input, &first, &mut sequence));
        }
        at += 1;
        if at >= end {
            at = start;
        }
    }
    if how & 0x80 == 0 {
        fix_log(&device, &log, BLOCK_SIZE);
    }
    let area = LogArea::new(LOG);
    let size = BLOCK_SIZE as u32;
    let _ = attach(&device, area.clone(), size, BLOCKS);
    if let Ok(mut recovered) = recover(&device, area.clone(), size, BLOCKS) {
        let reset = reset_log(&device, &mut recovered.log, size);
        // What recovery leaves is empty, unless it has replayed something over the log.
        if reset.is_ok() && recovered.blocks == 0 {
            let again = recover(&device, area, size, BLOCKS);
            assert!(again.is_ok_and(|again| again.transactions == 0));
        }
    }
}

fn write(device: &MemoryDevice, block: u64, bytes: &[u8]) {
    device
        .write_at(block * BLOCK_SIZE as u64, bytes)
        .expect("the log lies within the device");
}

fn superblock(input: &mut Input<'_>, how: u8, len: u32) -> RawJournalSuperblock {
    let mut raw = RawJournalSuperblock::new(BLOCK_SIZE as u32, len, *b"a log's identity");
    let features = [
        JournalIncompat::REVOKE | JournalIncompat::BIT64 | JournalIncompat::CSUM_V3,
        JournalIncompat::REVOKE,
        JournalIncompat::REVOKE | JournalIncompat::BIT64,
        JournalIncompat::REVOKE | JournalIncompat::CSUM_V2,
        JournalIncompat::REVOKE | JournalIncompat::CSUM_V2 | JournalIncompat::BIT64,
        JournalIncompat::REVOKE | JournalIncompat::CSUM_V3,
        JournalIncompat::empty(),
        JournalIncompat::CSUM_V3 | JournalIncompat::FAST_COMMIT | JournalIncompat::ASYNC_COMMIT,
    ];
    raw.set_written_features(features[usize::from(how >> 1 & 7)]);
    raw.s_start.set(1);
    match input.u8() {
        0xff => {
            for field in [
                &mut raw.s_start,
                &mut raw.s_first,
                &mut raw.s_maxlen,
                &mut raw.s_sequence,
                &mut raw.s_num_fc_blks,
                &mut raw.s_feature_incompat,
                &mut raw.s_header.h_blocktype,
            ] {
                if input.u8() & 1 != 0 {
                    field.set(input.number() as u32);
                }
            }
        }
        start => {
            raw.s_start.set(u32::from(start) % len);
            raw.s_sequence.set(u32::MAX - u32::from(start >> 6));
        }
    }
    raw
}

/// The next block of a made-up log.
fn log_block(
    input: &mut Input<'_>,
    superblock: &RawJournalSuperblock,
    sequence: &mut u32,
) -> Vec<u8> {
    let mut block = vec![0; BLOCK_SIZE];
    let kind = input.u8();
    if kind & 0xf0 == 0xf0 {
        // Out of order.
        *sequence = sequence.wrapping_add_signed(i32::from(input.u8().cast_signed()));
    }
    let mut put = |at: usize, bytes: &[u8]| {
        let len = bytes.len().min(BLOCK_SIZE.saturating_sub(at));
        block[BLOCK_SIZE.min(at)..][..len].copy_from_slice(&bytes[..len]);
    };
    match kind & 7 {
        0 | 1 => {
            let header = RawJournalHeader::new(BlockType::Descriptor, *sequence);
            put(0, header.as_bytes());
            let mut at = size_of::<RawJournalHeader>();
            for _ in 0..=kind >> 3 & 7 {
                let (to, flags) = (input.number(), input.u8());
                // Most blocks go to where the volume is.
                let to = if flags & 0x80 == 0 { to % BLOCKS } else { to };
                let flags = TagFlags::from_bits_retain(u16::from(flags & 15));
                let tag = RawBlockTag3::new(to, flags, 0);
                let v3 = superblock.incompat().contains(JournalIncompat::CSUM_V3);
                if v3 {
                    put(at, tag.as_bytes());
                    at += 16;
                } else {
                    put(at, &(to as u32).to_be_bytes());
                    put(at + 6, &flags.bits().to_be_bytes());
                    at += 12;
                }
                if !flags.contains(TagFlags::SAME_UUID) {
                    at += 16;
                }
            }
        }
        2 => {
            let header = RawJournalHeader::new(BlockType::Commit, *sequence);
            put(0, header.as_bytes());
            *sequence = sequence.wrapping_add(1);
        }
        3 => {
            let count = u32::from(kind >> 3 & 7);
            let used = if kind & 0xc0 == 0xc0 {
                input.u32()
            } else {
                16 + count * 8
            };
            put(0, RawRevokeHeader::new(*sequence, used).as_bytes());
            for index in 0..count as usize {
                put(16 + index * 8, &(input.number() % BLOCKS).to_be_bytes());
            }
        }
        4 => put(0, &JBD2_MAGIC.to_be_bytes()),
        5 => put(input.index(BLOCK_SIZE), input.take(32)),
        _ => put(0, &[kind; 64]),
    }
    block
}
