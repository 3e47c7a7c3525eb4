//! `Overlay`: a device whose changes stay in memory, so that a journal can be replayed for a check
//! without writing to the image.

use kfs_disk::BlockDevice;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A view of a device with changes that only it knows.
pub(super) struct Overlay {
    base: Arc<dyn BlockDevice>,
    /// Divides the device's size, as the volume's block size does.
    block_size: u64,
    changed: Mutex<HashMap<u64, Box<[u8]>>>,
    /// Most bytes of changes to hold.
    bytes_max: u64,
}

impl Overlay {
    pub(super) fn new(base: Arc<dyn BlockDevice>, block_size: u32, bytes_max: u64) -> Self {
        Self {
            base,
            block_size: u64::from(block_size),
            changed: Mutex::default(),
            bytes_max,
        }
    }

    fn changed(&self) -> MutexGuard<'_, HashMap<u64, Box<[u8]>>> {
        // Nothing panics with the lock held; what it guards is whole at any time.
        self.changed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Calls `each` with the blocks that a range touches: number, and the ranges in block and buffer.
    fn pieces(
        &self,
        offset: u64,
        len: usize,
    ) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> + use<> {
        let block_size = self.block_size;
        let mut done = 0;
        std::iter::from_fn(move || {
            if done == len {
                return None;
            }
            let at = offset + done as u64;
            let within = (at % block_size) as usize;
            let count = (block_size as usize - within).min(len - done);
            let piece = (at / block_size, within..within + count, done..done + count);
            done += count;
            Some(piece)
        })
    }
}

impl BlockDevice for Overlay {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.base.read_at(offset, buf)?;
        let changed = self.changed();
        if !changed.is_empty() {
            for (block, within, target) in self.pieces(offset, buf.len()) {
                if let Some(bytes) = changed.get(&block) {
                    buf[target].copy_from_slice(&bytes[within]);
                }
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        let mut changed = self.changed();
        for (block, within, source) in self.pieces(offset, buf.len()) {
            if !changed.contains_key(&block) {
                if (changed.len() as u64 + 1) * self.block_size > self.bytes_max {
                    return Err(io::Error::new(
                        io::ErrorKind::OutOfMemory,
                        "the journal is too large to be replayed in memory",
                    ));
                }
                let mut bytes = vec![0; self.block_size as usize];
                self.base.read_at(block * self.block_size, &mut bytes)?;
                changed.insert(block, bytes.into());
            }
            let bytes = changed.get_mut(&block).expect("inserted above");
            bytes[within].copy_from_slice(&buf[source]);
        }
        Ok(())
    }

    /// There is nothing to make durable.
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(io::Error::other)?;
        self.write_at(offset, &vec![0; len])
    }

    fn size_bytes(&self) -> u64 {
        self.base.size_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kfs_disk::MemoryDevice;

    #[test]
    fn changes_stay_in_the_overlay() {
        let base = Arc::new(MemoryDevice::from_bytes(&[7; 4096]));
        let overlay = Overlay::new(Arc::clone(&base) as Arc<dyn BlockDevice>, 1024, 2048);
        overlay.write_at(1020, &[1; 8]).unwrap();
        let mut bytes = [0; 12];
        overlay.read_at(1018, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 7, 1, 1, 1, 1, 1, 1, 1, 1, 7, 7]);
        assert_eq!(base.to_vec(), [7; 4096]);
        overlay.write_at(0, &[2; 2048]).unwrap();
        assert!(overlay.write_at(2048, &[2]).is_err());
    }
}
