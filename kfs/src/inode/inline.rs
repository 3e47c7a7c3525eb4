//! Files and directories that lie in their inode (feature inline_data), which kfs reads.
//!
//! ```text
//!  i_block, 60 bytes | content ...            the rest: attribute system.data
//!  of a directory    | parent | entries ...   the rest: attribute system.data, entries
//! ```
//!
//! Source: kernel documentation, ext4, "Inline Data".

use super::Inode;
use crate::corrupt::Corrupt;
use crate::error::Result;
use crate::layout::dirent::{
    DIR_TAIL_SIZE, DIRENT_HEADER_SIZE, FileType, RawDirent, decode_rec_len, dirent_size,
    encode_rec_len,
};
use crate::layout::inode::InodeFlags;
use crate::storage::Buffer;
use crate::volume::Volume;
use crate::xattr::{XattrName, XattrSet, XattrValue};
use std::sync::Arc;
use zerocopy::{FromBytes, IntoBytes};

/// Bytes of a directory's area that name its parent.
const PARENT_SIZE: usize = 4;

impl Inode {
    /// Whether the content lies in the inode.
    pub(crate) fn has_inline_data(&self) -> bool {
        let flags = self.state().fields().flags();
        flags.contains(InodeFlags::INLINE_DATA)
    }

    /// The two parts of the content: the block area, and what did not fit there.
    fn inline_parts(&self, volume: &Volume) -> Result<([u8; 60], Vec<u8>)> {
        let state = self.state();
        let fields = state.fields();
        let block_size = volume.geometry.block_size;
        let set = XattrSet::parse(self.nr(), fields.xattr_area(), None, block_size)?;
        let rest = match set.get(&XattrName::inline_data())? {
            Some(XattrValue::Inline(rest)) => rest,
            _ => Vec::new(),
        };
        Ok((*fields.block_area(), rest))
    }

    /// A file's content, `size` bytes.
    pub(crate) fn inline_data(&self, volume: &Volume) -> Result<Vec<u8>> {
        let (area, rest) = self.inline_parts(volume)?;
        let mut content = [&area[..], &rest].concat();
        let size = self.size_bytes();
        let len = usize::try_from(size)
            .ok()
            .filter(|len| *len <= content.len());
        let nr = self.nr();
        content.truncate(len.ok_or(Corrupt::InlineSize { inode: nr, size })?);
        Ok(content)
    }

    /// A directory as the one block that it would be without the feature.
    pub(crate) fn inline_directory(&self, volume: &Volume) -> Result<Arc<Buffer>> {
        let (area, rest) = self.inline_parts(volume)?;
        let (parent, first) = area.split_at(PARENT_SIZE);
        let parent = u32::from_le_bytes(parent.try_into().expect("four bytes"));
        let size = self.size_bytes();
        let damaged = || Corrupt::InlineSize {
            inode: self.nr(),
            size,
        };
        let mut block = Block::new(volume);
        let directory = FileType::Directory as u8;
        for (name, inode) in [(&b"."[..], self.nr().0), (b"..", parent)] {
            block.push(name, inode, directory).ok_or_else(damaged)?;
        }
        for mut part in [first, &rest] {
            while part.len() >= DIRENT_HEADER_SIZE {
                let (entry, _) = RawDirent::ref_from_prefix(part).map_err(|_| damaged())?;
                let len = decode_rec_len(entry.rec_len.get(), volume.geometry.block_size);
                let name_end = DIRENT_HEADER_SIZE + usize::from(entry.name_len);
                if len < name_end || len > part.len() {
                    return Err(damaged().into());
                }
                if entry.inode.get() != 0 {
                    let name = &part[DIRENT_HEADER_SIZE..name_end];
                    block
                        .push(name, entry.inode.get(), entry.file_type)
                        .ok_or_else(damaged)?;
                }
                part = &part[len..];
            }
        }
        Ok(block.finish())
    }
}

/// A block of directory entries that is being put together.
struct Block {
    bytes: Vec<u8>,
    /// Where the entries end, short of a place for a checksum.
    end: usize,
    last: usize,
    used: usize,
    block_size: u32,
}

impl Block {
    fn new(volume: &Volume) -> Self {
        let block_size = volume.geometry.block_size;
        let tail = volume.geometry.csum_seed.map_or(0, |_| DIR_TAIL_SIZE);
        Self {
            bytes: vec![0; block_size as usize],
            end: block_size as usize - tail,
            last: 0,
            used: 0,
            block_size,
        }
    }

    /// `None` when there is no room.
    fn push(&mut self, name: &[u8], inode: u32, file_type: u8) -> Option<()> {
        let len = dirent_size(name.len());
        let place = self.bytes[..self.end].get_mut(self.used..self.used + len)?;
        let header = RawDirent {
            inode: inode.into(),
            rec_len: encode_rec_len(len, self.block_size).into(),
            name_len: u8::try_from(name.len()).ok()?,
            file_type,
        };
        place[..DIRENT_HEADER_SIZE].copy_from_slice(header.as_bytes());
        place[DIRENT_HEADER_SIZE..DIRENT_HEADER_SIZE + name.len()].copy_from_slice(name);
        self.last = self.used;
        self.used += len;
        Some(())
    }

    /// The last entry reaches to the end.
    fn finish(mut self) -> Arc<Buffer> {
        let len = encode_rec_len(self.end - self.last, self.block_size);
        self.bytes[self.last + 4..self.last + 6].copy_from_slice(&len.to_le_bytes());
        Arc::new(Buffer::detached(self.bytes.into()))
    }
}
