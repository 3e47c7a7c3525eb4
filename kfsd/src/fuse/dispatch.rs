//! From an operation code to a method of [`FileSystem`]: decode, call, encode; no logic.
//!
//! Where an operation changes something, the room for its reply is checked first, so that nothing
//! is done that cannot be answered.

use rustix::io::Errno;

use super::abi::{
    AccessIn, AttrOut, BatchForgetIn, CopyFileRangeIn, CreateIn, EntryOut, FallocateIn, FlushIn,
    ForgetIn, ForgetOne, FsyncIn, GetattrIn, GetxattrIn, GetxattrOut, InHeader, IoctlIn, IoctlOut,
    LinkIn, LkIn, LseekIn, LseekOut, MkdirIn, MknodIn, Opcode, OpenIn, OpenOut, ReadIn, ReleaseIn,
    RemovemappingIn, RemovemappingOne, Rename2In, RenameIn, SetattrIn, SetupmappingIn, SetxattrIn,
    SetxattrInCompat, StatxIn, StatxOut, WriteIn, WriteOut,
};
use super::buffers::{DataSink, DataSource};
use super::file_system::{Context, CopyRange, Entry, FileSystem, Opened, Result, SetAttr, SetLock};
use super::flags::{
    FSYNC_FDATASYNC, GETATTR_FH, InitFlags, IoctlFlags, LK_FLOCK, OpenRequestFlags, ReleaseFlags,
    SetattrValid, SetxattrFlags, WriteFlags,
};
use super::reply::{check_room, put, put_attr};
use super::request::{self, Args};
use super::sinks::{DirSink, XattrSink};

/// Most bytes of a link target.
const TARGET_MAX: usize = 4095;

/// FORGET and BATCH_FORGET. They have no reply, so errors are only skipped.
pub(crate) fn forget(fs: &dyn FileSystem, header: &InHeader, source: &mut DataSource<'_>) {
    if header.opcode == Opcode::Forget as u32 {
        if let Ok(one) = request::read::<ForgetIn>(source) {
            fs.forget(header.nodeid, one.nlookup);
        }
        return;
    }
    let Ok(batch) = request::read::<BatchForgetIn>(source) else {
        return;
    };
    for _ in 0..batch.count {
        let Ok(one) = request::read::<ForgetOne>(source) else {
            return;
        };
        fs.forget(one.nodeid, one.nlookup);
    }
}

/// One request on its way to the file system.
pub(crate) struct Call<'a> {
    pub(crate) file_system: &'a dyn FileSystem,
    pub(crate) ctx: Context,
    pub(crate) node: u64,
    pub(crate) total_extlen: u16,
    pub(crate) agreed: InitFlags,
}

type Sink<'s, 'a> = &'s mut DataSink<'a>;

impl Call<'_> {
    /// Answers everything but INIT, DESTROY, WRITE and what has no reply.
    pub(crate) fn dispatch(
        &self,
        opcode: Opcode,
        args: Args<'_>,
        sink: Sink<'_, '_>,
    ) -> Result<()> {
        match opcode {
            Opcode::Lookup => self.lookup(args, sink),
            Opcode::Getattr => self.getattr(args, sink),
            Opcode::Setattr => self.setattr(args, sink),
            Opcode::Statx => self.statx(args, sink),
            Opcode::Readlink => self.readlink(sink),
            Opcode::Symlink => self.symlink(args, sink),
            Opcode::Mknod => self.mknod(args, sink),
            Opcode::Mkdir => self.mkdir(args, sink),
            Opcode::Unlink => self.unlink(args),
            Opcode::Rmdir => self.rmdir(args),
            Opcode::Rename => self.rename(args),
            Opcode::Rename2 => self.rename2(args),
            Opcode::Link => self.link(args, sink),
            Opcode::Open => self.open(args, sink),
            Opcode::Create => self.create(args, sink),
            Opcode::Tmpfile => self.tmpfile(args, sink),
            Opcode::Read => self.read(args, sink),
            Opcode::Statfs => put(sink, &self.file_system.statfs(&self.ctx, self.node)?),
            Opcode::Release => self.release(args),
            Opcode::Flush => self.flush(args),
            Opcode::Fsync => self.fsync(args),
            Opcode::Syncfs => self.file_system.syncfs(&self.ctx),
            Opcode::Setxattr => self.setxattr(args),
            Opcode::Getxattr => self.getxattr(args, sink),
            Opcode::Listxattr => self.listxattr(args, sink),
            Opcode::Removexattr => self.removexattr(args),
            Opcode::Opendir => self.opendir(args, sink),
            Opcode::Readdir => self.readdir(args, sink, false),
            Opcode::Readdirplus => self.readdir(args, sink, true),
            Opcode::Releasedir => self.releasedir(args),
            Opcode::Fsyncdir => self.fsyncdir(args),
            Opcode::Access => self.access(args),
            Opcode::Fallocate => self.fallocate(args),
            Opcode::Lseek => self.lseek(args, sink),
            Opcode::CopyFileRange => self.copy_file_range(args, sink),
            Opcode::Getlk => self.getlk(args, sink),
            Opcode::Setlk => self.setlk(args, false),
            Opcode::Setlkw => self.setlk(args, true),
            Opcode::Ioctl => self.ioctl(args, sink),
            Opcode::Setupmapping => self.setupmapping(args),
            Opcode::Removemapping => self.removemapping(args),
            // The kernel lives without these: no block numbers, everything is always ready.
            Opcode::Bmap | Opcode::Poll => Err(Errno::NOSYS),
            // Answered by the session before.
            Opcode::Init
            | Opcode::Destroy
            | Opcode::Write
            | Opcode::Forget
            | Opcode::BatchForget
            | Opcode::Interrupt
            | Opcode::NotifyReply => Err(Errno::INVAL),
        }
    }

    fn lookup(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<EntryOut>(sink)?;
        let name = if self.agreed.contains(InitFlags::EXPORT_SUPPORT) {
            args.lookup_name()?
        } else {
            args.name()?
        };
        let entry = self.file_system.lookup(&self.ctx, self.node, name)?;
        put(sink, &entry.encode())
    }

    fn getattr(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        let getattr: GetattrIn = args.take()?;
        let fh = (getattr.getattr_flags & GETATTR_FH != 0).then_some(getattr.fh);
        let (attr, timeout) = self.file_system.getattr(&self.ctx, self.node, fh)?;
        put_attr(sink, attr, timeout)
    }

    fn setattr(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<AttrOut>(sink)?;
        let setattr: SetattrIn = args.take()?;
        let change = SetAttr {
            valid: SetattrValid::from_bits_retain(setattr.valid),
            mode: setattr.mode,
            uid: setattr.uid,
            gid: setattr.gid,
            size: setattr.size,
            atime: time(setattr.atime, setattr.atimensec)?,
            mtime: time(setattr.mtime, setattr.mtimensec)?,
            ctime: time(setattr.ctime, setattr.ctimensec)?,
        };
        let fh = change
            .valid
            .contains(SetattrValid::FH)
            .then_some(setattr.fh);
        let (attr, timeout) = self
            .file_system
            .setattr(&self.ctx, self.node, &change, fh)?;
        put_attr(sink, attr, timeout)
    }

    fn statx(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        let statx: StatxIn = args.take()?;
        let fh = (statx.getattr_flags & GETATTR_FH != 0).then_some(statx.fh);
        let (flags, mask) = (statx.sx_flags, statx.sx_mask);
        let (stat, timeout) = self
            .file_system
            .statx(&self.ctx, self.node, fh, flags, mask)?;
        let out = StatxOut {
            attr_valid: timeout.as_secs(),
            attr_valid_nsec: timeout.subsec_nanos(),
            stat,
            ..StatxOut::default()
        };
        put(sink, &out)
    }

    fn readlink(&self, sink: Sink<'_, '_>) -> Result<()> {
        sink.truncate(TARGET_MAX);
        self.file_system.readlink(&self.ctx, self.node, sink)
    }

    fn symlink(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<EntryOut>(sink)?;
        let name = args.name()?;
        let target = args.string()?;
        if target.is_empty() {
            return Err(Errno::NOENT);
        }
        if target.len() > TARGET_MAX {
            return Err(Errno::NAMETOOLONG);
        }
        let creation = args.creation(0, self.total_extlen, self.agreed)?;
        let entry = self
            .file_system
            .symlink(&self.ctx, self.node, name, target, &creation)?;
        put(sink, &entry.encode())
    }

    fn mknod(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<EntryOut>(sink)?;
        let mknod: MknodIn = args.take()?;
        let name = args.name()?;
        let creation = args.creation(mknod.umask, self.total_extlen, self.agreed)?;
        let (mode, rdev) = (mknod.mode, mknod.rdev);
        let entry = self
            .file_system
            .mknod(&self.ctx, self.node, name, mode, rdev, &creation)?;
        put(sink, &entry.encode())
    }

    fn mkdir(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<EntryOut>(sink)?;
        let mkdir: MkdirIn = args.take()?;
        let name = args.name()?;
        let creation = args.creation(mkdir.umask, self.total_extlen, self.agreed)?;
        let entry = self
            .file_system
            .mkdir(&self.ctx, self.node, name, mkdir.mode, &creation)?;
        put(sink, &entry.encode())
    }

    fn unlink(&self, mut args: Args<'_>) -> Result<()> {
        let name = args.name()?;
        self.file_system.unlink(&self.ctx, self.node, name)
    }

    fn rmdir(&self, mut args: Args<'_>) -> Result<()> {
        let name = args.name()?;
        self.file_system.rmdir(&self.ctx, self.node, name)
    }

    fn rename(&self, mut args: Args<'_>) -> Result<()> {
        let rename: RenameIn = args.take()?;
        self.rename_to(args, rename.newdir, 0)
    }

    fn rename2(&self, mut args: Args<'_>) -> Result<()> {
        let rename: Rename2In = args.take()?;
        self.rename_to(args, rename.newdir, rename.flags)
    }

    fn rename_to(&self, mut args: Args<'_>, new_parent: u64, flags: u32) -> Result<()> {
        let (name, new_name) = (args.name()?, args.name()?);
        self.file_system
            .rename(&self.ctx, self.node, name, new_parent, new_name, flags)
    }

    fn link(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<EntryOut>(sink)?;
        let link: LinkIn = args.take()?;
        let name = args.name()?;
        let entry = self
            .file_system
            .link(&self.ctx, link.oldnodeid, self.node, name)?;
        put(sink, &entry.encode())
    }

    fn open(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<OpenOut>(sink)?;
        let open: OpenIn = args.take()?;
        let request_flags = OpenRequestFlags::from_bits_retain(open.open_flags);
        let opened = self
            .file_system
            .open(&self.ctx, self.node, open.flags, request_flags)?;
        put(sink, &open_out(opened))
    }

    fn create(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<(EntryOut, OpenOut)>(sink)?;
        let create: CreateIn = args.take()?;
        let name = args.name()?;
        let creation = args.creation(create.umask, self.total_extlen, self.agreed)?;
        let created = self.file_system.create(
            &self.ctx,
            self.node,
            name,
            create.mode,
            create.flags,
            OpenRequestFlags::from_bits_retain(create.open_flags),
            &creation,
        )?;
        put_created(sink, &created)
    }

    fn tmpfile(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<(EntryOut, OpenOut)>(sink)?;
        let create: CreateIn = args.take()?;
        // The kernel sends the name that it made up for the dentry; there is none in the tree.
        args.string()?;
        let creation = args.creation(create.umask, self.total_extlen, self.agreed)?;
        let (mode, flags) = (create.mode, create.flags);
        let created = self
            .file_system
            .tmpfile(&self.ctx, self.node, mode, flags, &creation)?;
        put_created(sink, &created)
    }

    fn read(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        let read: ReadIn = args.take()?;
        check_range(read.offset, read.size.into())?;
        if read.size as usize > sink.remaining() {
            return Err(Errno::INVAL);
        }
        sink.truncate(read.size as usize);
        let (offset, size) = (read.offset, read.size);
        self.file_system
            .read(&self.ctx, self.node, read.fh, offset, size, sink)
    }

    /// WRITE: the data stays where it is. Returns how many bytes were taken.
    pub(crate) fn write(&self, mut source: DataSource<'_>, sink: Sink<'_, '_>) -> Result<u32> {
        check_room::<WriteOut>(sink)?;
        let write: WriteIn = request::read(&mut source)?;
        check_range(write.offset, write.size.into())?;
        if write.size as usize > source.remaining() {
            return Err(Errno::INVAL);
        }
        source.truncate(write.size as usize);
        let flags = WriteFlags::from_bits_retain(write.write_flags);
        let count = self.file_system.write(
            &self.ctx,
            self.node,
            write.fh,
            write.offset,
            flags,
            &mut source,
        )?;
        // A count above the size would make the kernel fail in a less clear way.
        let out = WriteOut {
            size: count.min(write.size),
            padding: 0,
        };
        put(sink, &out)?;
        Ok(out.size)
    }

    fn release(&self, mut args: Args<'_>) -> Result<()> {
        let release: ReleaseIn = args.take()?;
        let flags = ReleaseFlags::from_bits_retain(release.release_flags);
        let owner = flags
            .intersects(ReleaseFlags::FLUSH | ReleaseFlags::FLOCK_UNLOCK)
            .then_some(release.lock_owner);
        self.file_system
            .release(&self.ctx, self.node, release.fh, flags, owner)
    }

    fn flush(&self, mut args: Args<'_>) -> Result<()> {
        let flush: FlushIn = args.take()?;
        self.file_system
            .flush(&self.ctx, self.node, flush.fh, flush.lock_owner)
    }

    fn fsync(&self, mut args: Args<'_>) -> Result<()> {
        let fsync: FsyncIn = args.take()?;
        let data_only = fsync.fsync_flags & FSYNC_FDATASYNC != 0;
        self.file_system
            .fsync(&self.ctx, self.node, fsync.fh, data_only)
    }

    fn setxattr(&self, mut args: Args<'_>) -> Result<()> {
        let setxattr = if self.agreed.contains(InitFlags::SETXATTR_EXT) {
            args.take::<SetxattrIn>()?
        } else {
            let short: SetxattrInCompat = args.take()?;
            SetxattrIn {
                size: short.size,
                flags: short.flags,
                ..SetxattrIn::default()
            }
        };
        let name = args.xattr_name()?;
        let value = args.bytes(setxattr.size as usize)?;
        self.file_system.setxattr(
            &self.ctx,
            self.node,
            name,
            value,
            setxattr.flags,
            SetxattrFlags::from_bits_retain(setxattr.setxattr_flags),
        )
    }

    fn getxattr(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        let getxattr: GetxattrIn = args.take()?;
        let name = args.xattr_name()?;
        put_xattr(sink, getxattr.size, |value| {
            self.file_system.getxattr(&self.ctx, self.node, name, value)
        })
    }

    fn listxattr(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        let listxattr: GetxattrIn = args.take()?;
        put_xattr(sink, listxattr.size, |names| {
            self.file_system.listxattr(&self.ctx, self.node, names)
        })
    }

    fn removexattr(&self, mut args: Args<'_>) -> Result<()> {
        let name = args.xattr_name()?;
        self.file_system.removexattr(&self.ctx, self.node, name)
    }

    fn opendir(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<OpenOut>(sink)?;
        let open: OpenIn = args.take()?;
        let opened = self.file_system.opendir(&self.ctx, self.node, open.flags)?;
        put(sink, &open_out(opened))
    }

    fn readdir(&self, mut args: Args<'_>, sink: Sink<'_, '_>, plus: bool) -> Result<()> {
        let read: ReadIn = args.take()?;
        sink.truncate(read.size as usize);
        let mut entries = DirSink::new(sink, plus);
        self.file_system
            .readdir(&self.ctx, self.node, read.fh, read.offset, &mut entries)
    }

    fn releasedir(&self, mut args: Args<'_>) -> Result<()> {
        let release: ReleaseIn = args.take()?;
        self.file_system
            .releasedir(&self.ctx, self.node, release.fh)
    }

    fn fsyncdir(&self, mut args: Args<'_>) -> Result<()> {
        let fsync: FsyncIn = args.take()?;
        let data_only = fsync.fsync_flags & FSYNC_FDATASYNC != 0;
        self.file_system
            .fsyncdir(&self.ctx, self.node, fsync.fh, data_only)
    }

    fn access(&self, mut args: Args<'_>) -> Result<()> {
        let access: AccessIn = args.take()?;
        self.file_system.access(&self.ctx, self.node, access.mask)
    }

    fn fallocate(&self, mut args: Args<'_>) -> Result<()> {
        let FallocateIn {
            fh,
            offset,
            length,
            mode,
            ..
        } = args.take()?;
        check_range(offset, length)?;
        if length == 0 {
            return Err(Errno::INVAL);
        }
        self.file_system
            .fallocate(&self.ctx, self.node, fh, offset, length, mode)
    }

    fn lseek(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        let LseekIn {
            fh, offset, whence, ..
        } = args.take()?;
        let offset = self
            .file_system
            .lseek(&self.ctx, self.node, fh, offset, whence)?;
        put(sink, &LseekOut { offset })
    }

    fn copy_file_range(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        check_room::<WriteOut>(sink)?;
        let copy: CopyFileRangeIn = args.take()?;
        // The reply has 32 bits for the count, and callers go on where a copy stopped.
        let len = copy.len.min(0x7fff_f000);
        check_range(copy.off_in, len)?;
        check_range(copy.off_out, len)?;
        let range = CopyRange {
            source: (self.node, copy.fh_in, copy.off_in),
            target: (copy.nodeid_out, copy.fh_out, copy.off_out),
            len,
            flags: copy.flags,
        };
        let size = self.file_system.copy_file_range(&self.ctx, &range)?;
        put(sink, &WriteOut { size, padding: 0 })
    }

    fn getlk(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        let (fh, lock) = lock(args.take()?, false);
        let found = self.file_system.getlk(&self.ctx, self.node, fh, &lock)?;
        put(sink, &found)
    }

    fn setlk(&self, mut args: Args<'_>, wait: bool) -> Result<()> {
        let (fh, lock) = lock(args.take()?, wait);
        self.file_system.setlk(&self.ctx, self.node, fh, &lock)
    }

    fn ioctl(&self, mut args: Args<'_>, sink: Sink<'_, '_>) -> Result<()> {
        let ioctl: IoctlIn = args.take()?;
        let input = args.bytes(ioctl.in_size as usize)?;
        let head = sink
            .reserve::<{ size_of::<IoctlOut>() }>()
            .ok_or(Errno::INVAL)?;
        sink.truncate(ioctl.out_size as usize);
        let result = self.file_system.ioctl(
            &self.ctx,
            self.node,
            ioctl.fh,
            IoctlFlags::from_bits_retain(ioctl.flags),
            ioctl.cmd,
            input,
            sink,
        )?;
        let out = IoctlOut {
            result,
            ..IoctlOut::default()
        };
        sink.fill(head, zerocopy::transmute!(out));
        Ok(())
    }

    fn setupmapping(&self, mut args: Args<'_>) -> Result<()> {
        let mapping: SetupmappingIn = args.take()?;
        check_range(mapping.foffset, mapping.len)?;
        check_range(mapping.moffset, mapping.len)?;
        self.file_system
            .setupmapping(&self.ctx, self.node, &mapping)
    }

    fn removemapping(&self, mut args: Args<'_>) -> Result<()> {
        let head: RemovemappingIn = args.take()?;
        for _ in 0..head.count {
            let range: RemovemappingOne = args.take()?;
            check_range(range.moffset, range.len)?;
            self.file_system
                .removemapping(&self.ctx, self.node, &range)?;
        }
        Ok(())
    }
}

/// Offsets are signed in the kernel: a range must end below 2^63.
fn check_range(offset: u64, len: u64) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= i64::MAX as u64 => Ok(()),
        _ => Err(Errno::INVAL),
    }
}

fn time(seconds: u64, nanoseconds: u32) -> Result<(i64, u32)> {
    if nanoseconds >= 1_000_000_000 {
        return Err(Errno::INVAL);
    }
    Ok((seconds.cast_signed(), nanoseconds))
}

fn lock(lk: LkIn, wait: bool) -> (u64, SetLock) {
    let lock = SetLock {
        owner: lk.owner,
        lock: lk.lk,
        flock: lk.lk_flags & LK_FLOCK != 0,
        wait,
    };
    (lk.fh, lock)
}

fn open_out(opened: Opened) -> OpenOut {
    OpenOut {
        fh: opened.fh,
        open_flags: opened.flags.bits(),
        backing_id: 0,
    }
}

fn put_created(sink: Sink<'_, '_>, (entry, opened): &(Entry, Opened)) -> Result<()> {
    put(sink, &entry.encode())?;
    put(sink, &open_out(*opened))
}

fn put_xattr(
    sink: Sink<'_, '_>,
    asked: u32,
    get: impl FnOnce(&mut XattrSink<'_, '_>) -> Result<()>,
) -> Result<()> {
    let mut value = XattrSink::new(sink, asked);
    get(&mut value)?;
    if asked != 0 {
        return Ok(());
    }
    let size = u32::try_from(value.total()).map_err(|_| Errno::TOOBIG)?;
    put(sink, &GetxattrOut { size, padding: 0 })
}
