//! `FileDevice`: an image file or a block device of the host.
//!
//! Invariants: a writer holds the file's `flock` lock exclusively and readers share it, so one
//! process at a time changes an image; the size is that of the moment of opening (or of
//! [`FileDevice::resize`]) and no request goes beyond it, so the file never grows by writing.

use std::fs::{self, File, FileType, Metadata, OpenOptions, TryLockError};
use std::io::{self, IoSlice, IoSliceMut, Seek, SeekFrom};
use std::ops::Deref;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::{Errno, retry_on_intr};

use crate::bounds::{check_bounds, read_only_error, total_len};
use crate::device::BlockDevice;
use crate::holder;
use crate::open_error::{Holder, OpenError};
use crate::words::Bytes;

/// Slices that one system call takes (Linux's `UIO_MAXIOV`).
const MAX_SLICES: usize = 1024;

/// Below this, zeros are written: making a hole costs the host more than a few pages.
const MIN_HOLE: u64 = 64 * 1024;

/// How long an opening waits for a holder that is just going away.
const IN_USE_PATIENCE: Duration = Duration::from_millis(200);

static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];

/// Why a block device cannot hold what is wanted: nothing here makes one longer. It is inside of the
/// [`io::Error`] of [`BlockDevice::grow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the block device has {}, {} are needed", Bytes(*.found), Bytes(*.wanted))]
pub struct DeviceTooShort {
    /// Its size, in bytes.
    pub found: u64,
    /// The size it would need, in bytes.
    pub wanted: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    ReadOnly,
    ReadWrite,
}

/// An image file or a block device, locked while it is open.
#[derive(Debug)]
pub struct FileDevice {
    file: File,
    path: PathBuf,
    size: AtomicU64,
    sector_size: u32,
    read_only: bool,
    is_block_device: bool,
    /// Cleared when the host turns out to be unable to do it.
    can_punch_hole: AtomicBool,
    can_zero_range: AtomicBool,
}

impl FileDevice {
    /// Opens for reading and writing; nobody else may have it open.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_patiently(path.as_ref(), Access::ReadWrite)
    }

    /// Opens for reading; other readers may have it open, a writer may not.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        Self::open_patiently(path.as_ref(), Access::ReadOnly)
    }

    /// Creates an image file of `size` zero bytes that takes no space yet.
    pub fn create(path: impl AsRef<Path>, size: u64) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(path)
            .map_err(|err| create_error(path, err))?;
        let device = Self::from_new_file(file, path, size);
        if device.is_err() {
            // Nobody has seen the file yet; what is left of a failed creation only confuses.
            let _ = fs::remove_file(path);
        }
        device
    }

    fn from_new_file(file: File, path: &Path, size: u64) -> Result<Self, OpenError> {
        lock(&file, path, Access::ReadWrite)?;
        let mut device = Self::from_locked_file(file, path, Access::ReadWrite)?;
        device.resize(size).map_err(|err| match err.kind() {
            io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidInput => OpenError::TooLarge {
                path: path.to_owned(),
                size,
            },
            _ => OpenError::io(path, "set its size", err),
        })?;
        Ok(device)
    }

    /// A holder may be on its way out (an unmount that is being finished, udev's short look at a
    /// block device), so "in use" is said only when it stays so.
    fn open_patiently(path: &Path, access: Access) -> Result<Self, OpenError> {
        let deadline = Instant::now() + IN_USE_PATIENCE;
        loop {
            match Self::open_once(path, access) {
                Err(OpenError::InUse { .. }) if Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(20));
                }
                result => return result,
            }
        }
    }

    fn open_once(path: &Path, access: Access) -> Result<Self, OpenError> {
        // The type comes first: opening a FIFO waits, opening a terminal has side effects.
        let metadata = fs::metadata(path).map_err(|err| open_error(path, access, err, None))?;
        check_type(path, metadata.file_type())?;
        let mut options = OpenOptions::new();
        options.read(true).write(access == Access::ReadWrite);
        if access == Access::ReadWrite && metadata.file_type().is_block_device() {
            // On a block device O_EXCL asks the kernel for it: a mounted one is refused.
            options.custom_flags(OFlags::EXCL.bits().cast_signed());
        }
        let file = options
            .open(path)
            .map_err(|err| open_error(path, access, err, Some(&metadata)))?;
        lock(&file, path, access)?;
        Self::from_locked_file(file, path, access)
    }

    fn from_locked_file(mut file: File, path: &Path, access: Access) -> Result<Self, OpenError> {
        let metadata = file
            .metadata()
            .map_err(|err| OpenError::io(path, "examine it", err))?;
        check_type(path, metadata.file_type())?;
        let is_block_device = metadata.file_type().is_block_device();
        let (size, sector_size) = if is_block_device {
            // The kernel lets a write-protected device be opened for writing and fails the writes.
            if access == Access::ReadWrite && holder::is_write_protected(&metadata) {
                return Err(OpenError::ReadOnlyMedium {
                    path: path.to_owned(),
                });
            }
            let size = file
                .seek(SeekFrom::End(0))
                .map_err(|err| OpenError::io(path, "find its size", err))?;
            let sector_size = rustix::fs::ioctl_blksszget(&file)
                .map_err(|err| OpenError::io(path, "find its sector size", err.into()))?;
            (size, sector_size)
        } else {
            // Linux may be writing to it.
            if let Some(holder) = holder::loop_holder(&metadata) {
                return Err(OpenError::InUse {
                    path: path.to_owned(),
                    holder,
                });
            }
            (metadata.len(), 512)
        };
        Ok(FileDevice {
            file,
            path: path.to_owned(),
            size: AtomicU64::new(size),
            sector_size,
            read_only: access == Access::ReadOnly,
            is_block_device,
            can_punch_hole: AtomicBool::new(true),
            can_zero_range: AtomicBool::new(true),
        })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is a block device of the host rather than an image file.
    pub fn is_block_device(&self) -> bool {
        self.is_block_device
    }

    /// Changes the size of an image file; new bytes are zeros and take no space.
    pub fn resize(&mut self, size: u64) -> io::Result<()> {
        if self.read_only {
            return Err(read_only_error());
        }
        if self.is_block_device {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the size of a block device cannot be changed",
            ));
        }
        self.file.set_len(size)?;
        *self.size.get_mut() = size;
        Ok(())
    }

    fn check_write(&self, offset: u64, len: u64) -> io::Result<()> {
        if self.read_only {
            return Err(read_only_error());
        }
        check_bounds(offset, len, self.size_bytes())
    }

    /// Lets the host make zeros of a range; false when it cannot.
    fn fallocate(
        &self,
        able: &AtomicBool,
        flags: FallocateFlags,
        offset: u64,
        len: u64,
    ) -> io::Result<bool> {
        if !able.load(Ordering::Relaxed) {
            return Ok(false);
        }
        let flags = flags | FallocateFlags::KEEP_SIZE;
        match retry_on_intr(|| rustix::fs::fallocate(&self.file, flags, offset, len)) {
            Ok(()) => Ok(true),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NODEV | Errno::INVAL) => {
                able.store(false, Ordering::Relaxed);
                Ok(false)
            }
            Err(err) => Err(err.into()),
        }
    }

    fn punch_hole(&self, offset: u64, len: u64) -> io::Result<bool> {
        self.fallocate(
            &self.can_punch_hole,
            FallocateFlags::PUNCH_HOLE,
            offset,
            len,
        )
    }

    /// The part of a range that consists of whole units the host can make a hole of, or `None`.
    /// Only block devices insist on alignment.
    fn whole_units(&self, offset: u64, len: u64) -> Option<(u64, u64)> {
        let unit = if self.is_block_device {
            u64::from(self.sector_size)
        } else {
            1
        };
        let start = offset.checked_next_multiple_of(unit)?;
        let end = (offset + len) / unit * unit;
        (start < end).then(|| (start, end - start))
    }

    fn write_zero_bytes(&self, mut offset: u64, end: u64) -> io::Result<()> {
        while offset < end {
            let len = (end - offset).min(ZEROES.len() as u64);
            self.file.write_all_at(&ZEROES[..len as usize], offset)?;
            offset += len;
        }
        Ok(())
    }
}

impl BlockDevice for FileDevice {
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        check_bounds(offset, buf.len() as u64, self.size_bytes())?;
        self.file
            .read_exact_at(buf, offset)
            .map_err(explain_short_read)
    }

    fn write_at(&self, offset: u64, buf: &[u8]) -> io::Result<()> {
        self.check_write(offset, buf.len() as u64)?;
        self.file.write_all_at(buf, offset)
    }

    fn read_vectored_at(&self, mut offset: u64, bufs: &mut [IoSliceMut<'_>]) -> io::Result<()> {
        check_bounds(offset, total_len(bufs), self.size_bytes())?;
        let mut next = 0;
        while next < bufs.len() {
            let end = bufs.len().min(next + MAX_SLICES);
            let batch = &mut bufs[next..end];
            let done = retry_on_intr(|| rustix::io::preadv(&self.file, batch, offset))?;
            let whole = whole_slices(batch, done);
            next += whole.count;
            offset += whole.bytes as u64;
            if next < end {
                // The caller's slices must stay as they are, so the one that a short read cut is
                // completed by itself.
                let (buf, done) = (&mut bufs[next], done - whole.bytes);
                self.file
                    .read_exact_at(&mut buf[done..], offset + done as u64)
                    .map_err(explain_short_read)?;
                next += 1;
                offset += buf.len() as u64;
            }
        }
        Ok(())
    }

    fn write_vectored_at(&self, mut offset: u64, bufs: &[IoSlice<'_>]) -> io::Result<()> {
        self.check_write(offset, total_len(bufs))?;
        let mut next = 0;
        while next < bufs.len() {
            let end = bufs.len().min(next + MAX_SLICES);
            let batch = &bufs[next..end];
            let done = retry_on_intr(|| rustix::io::pwritev(&self.file, batch, offset))?;
            let whole = whole_slices(batch, done);
            next += whole.count;
            offset += whole.bytes as u64;
            if next < end {
                let (buf, done) = (&bufs[next], done - whole.bytes);
                self.file.write_all_at(&buf[done..], offset + done as u64)?;
                next += 1;
                offset += buf.len() as u64;
            }
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        if self.read_only {
            return Ok(());
        }
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        if let Some((start, len)) = self.whole_units(offset, len) {
            self.punch_hole(start, len)?;
        }
        Ok(())
    }

    fn write_zeroes(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_write(offset, len)?;
        let end = offset + len;
        if len >= MIN_HOLE
            && let Some((start, hole_len)) = self.whole_units(offset, len)
        {
            // A hole before an unwritten range: it keeps the image sparse.
            let zero_range = FallocateFlags::ZERO_RANGE;
            if self.punch_hole(start, hole_len)?
                || self.fallocate(&self.can_zero_range, zero_range, start, hole_len)?
            {
                self.write_zero_bytes(offset, start)?;
                return self.write_zero_bytes(start + hole_len, end);
            }
        }
        self.write_zero_bytes(offset, end)
    }

    fn size_bytes(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    fn grow(&self, size: u64) -> io::Result<()> {
        if self.read_only {
            return Err(read_only_error());
        }
        let found = match self.is_block_device {
            true => (&self.file).seek(SeekFrom::End(0))?,
            false => self.file.metadata()?.len(),
        };
        if found < size && self.is_block_device {
            let short = DeviceTooShort {
                found,
                wanted: size,
            };
            return Err(io::Error::new(io::ErrorKind::InvalidInput, short));
        }
        if found < size {
            self.file.set_len(size)?;
        }
        self.size.fetch_max(found.max(size), Ordering::Relaxed);
        Ok(())
    }

    fn sector_size(&self) -> u32 {
        self.sector_size
    }

    fn is_read_only(&self) -> bool {
        self.read_only
    }

    fn backing_file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

struct WholeSlices {
    count: usize,
    bytes: usize,
}

/// The leading slices that a transfer of `done` bytes completed.
fn whole_slices<B: Deref<Target = [u8]>>(bufs: &[B], done: usize) -> WholeSlices {
    let mut whole = WholeSlices { count: 0, bytes: 0 };
    for buf in bufs {
        if whole.bytes + buf.len() > done {
            break;
        }
        whole.count += 1;
        whole.bytes += buf.len();
    }
    whole
}

fn check_type(path: &Path, file_type: FileType) -> Result<(), OpenError> {
    let path = path.to_owned();
    let kind = if file_type.is_file() || file_type.is_block_device() {
        return Ok(());
    } else if file_type.is_dir() {
        return Err(OpenError::IsDirectory { path });
    } else if file_type.is_char_device() {
        "character device"
    } else if file_type.is_fifo() {
        "FIFO"
    } else if file_type.is_socket() {
        "socket"
    } else {
        "special file"
    };
    Err(OpenError::NotADevice { path, kind })
}

/// Takes the file's lock. Where the host has no locks (some network file systems) it goes without.
fn lock(file: &File, path: &Path, access: Access) -> Result<(), OpenError> {
    let locked = match access {
        Access::ReadWrite => file.try_lock(),
        Access::ReadOnly => file.try_lock_shared(),
    };
    match locked {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => {
            let holder = file
                .metadata()
                .map_or(Holder::Unknown, |file| holder::lock_holder(&file));
            Err(OpenError::InUse {
                path: path.to_owned(),
                holder,
            })
        }
        Err(TryLockError::Error(err)) if is_unsupported(&err) => {
            log::warn!(
                "{}: no locks there, so nothing keeps others out: {err}",
                path.display()
            );
            Ok(())
        }
        Err(TryLockError::Error(err)) => Err(OpenError::io(path, "lock it", err)),
    }
}

fn is_unsupported(err: &io::Error) -> bool {
    let errno = err.raw_os_error().map(Errno::from_raw_os_error);
    matches!(
        errno,
        Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::NOLCK | Errno::INVAL)
    )
}

fn open_error(
    path: &Path,
    access: Access,
    err: io::Error,
    metadata: Option<&Metadata>,
) -> OpenError {
    let owned = path.to_owned();
    match err.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::NOENT | Errno::NOTDIR) => OpenError::NotFound { path: owned },
        Some(Errno::ISDIR) => OpenError::IsDirectory { path: owned },
        Some(Errno::ACCESS | Errno::PERM) => OpenError::PermissionDenied {
            path: owned,
            write: access == Access::ReadWrite,
            is_block_device: metadata.is_some_and(|known| known.file_type().is_block_device()),
        },
        Some(Errno::ROFS) => OpenError::ReadOnlyMedium { path: owned },
        Some(Errno::BUSY) => {
            let holder = metadata.map_or(Holder::Unknown, holder::block_device_holder);
            OpenError::InUse {
                path: owned,
                holder,
            }
        }
        _ => OpenError::io(path, "open it", err),
    }
}

fn create_error(path: &Path, err: io::Error) -> OpenError {
    let owned = path.to_owned();
    let parent = path.parent().filter(|parent| *parent != Path::new(""));
    let directory = parent.unwrap_or(Path::new(".")).to_owned();
    match err.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::EXIST) => OpenError::AlreadyExists { path: owned },
        Some(Errno::NOENT | Errno::NOTDIR) => OpenError::NoDirectory {
            path: owned,
            directory,
        },
        Some(Errno::ACCESS | Errno::PERM) => OpenError::CreationDenied {
            path: owned,
            directory,
        },
        _ => OpenError::io(path, "create it", err),
    }
}

fn explain_short_read(err: io::Error) -> io::Error {
    if err.kind() == io::ErrorKind::UnexpectedEof {
        return io::Error::new(err.kind(), "the image was made shorter while it was in use");
    }
    err
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
