//! Changes a volume as the bytes of an input say.

use crate::input::Input;
use crate::walk::Found;
use kfs::layout::inode::DeviceNumber;
use kfs::{
    Filesystem, Inode, InodeFlags, NewNode, RenameMode, Result, SeekTarget, SetAttr, SetMode,
    SliceSink, SliceSource, SpaceChange, TimeChange, Timestamp, WriteOptions,
};
use std::sync::Arc;

/// Most changes of one input.
const CHANGES_MAX: u8 = 24;
/// Most bytes of one write.
const WRITE_MAX: usize = 64 << 10;

/// Who changes what.
pub(crate) struct Changes<'f> {
    fs: &'f Filesystem,
    found: Found,
    /// Inodes that a client holds, with how often.
    held: Vec<Arc<Inode>>,
}

impl<'f> Changes<'f> {
    pub(crate) fn new(fs: &'f Filesystem, found: Found) -> Self {
        Self {
            fs,
            found,
            held: Vec::new(),
        }
    }

    /// Does what the input asks for; then, whatever it says, a bit of everything.
    pub(crate) fn run(&mut self, input: &mut Input<'_>) {
        for _ in 0..input.u8() % (CHANGES_MAX + 1) {
            let _ = self.change(input);
        }
        let _ = self.usual();
    }

    /// A client that goes lets go of what it holds.
    pub(crate) fn let_go(&mut self) {
        for inode in self.held.drain(..) {
            let _ = self.fs.release(&inode, 1);
        }
    }

    fn inode(&self, input: &mut Input<'_>) -> Option<Arc<Inode>> {
        let index = input.index(self.found.directories.len() + self.found.others.len());
        self.found.all().nth(index).cloned()
    }

    fn file(&self, input: &mut Input<'_>) -> Option<Arc<Inode>> {
        input.pick(&self.found.others).cloned()
    }

    fn directory(&self, input: &mut Input<'_>) -> Option<Arc<Inode>> {
        input.pick(&self.found.directories).cloned()
    }

    fn name(&self, input: &mut Input<'_>) -> Vec<u8> {
        match input.u8() {
            // One that is there, probably in another directory.
            kind if kind & 1 == 0 => input.pick(&self.found.names).cloned().unwrap_or_default(),
            kind if kind & 2 == 0 => format!("new-{}", kind >> 2).into_bytes(),
            kind => {
                let fill = vec![b'a' + (kind >> 4); usize::from(input.u8()) + 1];
                [&fill[..], input.take(4)].concat()
            }
        }
    }

    fn change(&mut self, input: &mut Input<'_>) -> Result<()> {
        let fs = self.fs;
        let (kind, directory) = (input.u8(), self.directory(input));
        let (Some(directory), Some(inode)) = (directory, self.inode(input)) else {
            return Ok(());
        };
        match kind % 24 {
            0 | 1 => self.create(input, &directory),
            2 | 3 => self.write(input),
            4 => self.set_size(input),
            5 => fs.unlink(&directory, &self.name(input)),
            6 => fs.rmdir(&directory, &self.name(input)),
            7 => self.rename(input, &directory),
            8 => fs.link(&inode, &directory, &self.name(input)),
            9 => self.set_xattr(input, &inode),
            10 => fs.remove_xattr(&inode, b"user.small"),
            11 => self.change_space(input),
            12 => self.copy(input),
            13 => self.read(input),
            14 => self.set_attr(input, &inode),
            15 => fs.set_flags(&inode, InodeFlags::from_bits_retain(input.u32())),
            16 => {
                fs.acquire(&inode, 1);
                self.held.push(inode);
                Ok(())
            }
            17 => {
                let held = self.held.pop();
                held.map_or(Ok(()), |inode| fs.release(&inode, 1))
            }
            18 => fs.sync(),
            19 => fs.fsync(&inode, input.u8() & 1 != 0),
            20 => self.create_unnamed(&directory),
            21 => {
                fs.finish_writing(&inode);
                let cookie = input.number();
                fs.list(&directory, cookie, &mut |_| {
                    std::ops::ControlFlow::Continue(())
                })
            }
            // Many names in one directory: blocks split.
            22 => self.fill(input, &directory),
            _ => fs.lookup(&directory, &self.name(input)).map(drop),
        }
    }

    fn create(&mut self, input: &mut Input<'_>, directory: &Inode) -> Result<()> {
        const TYPES: [u16; 8] = [
            0o100_644, 0o040_755, 0o120_777, 0o010_644, 0o020_600, 0o060_600, 0o140_777, 0o102_755,
        ];
        let kind = input.u8();
        let name = self.name(input);
        let target = vec![b't'; input.index(1100)];
        let node = NewNode {
            mode: TYPES[usize::from(kind & 7)],
            umask: u16::from(kind >> 5) * 7,
            uid: u32::from(kind),
            target: if kind & 7 == 2 { &target } else { b"" },
            device: DeviceNumber {
                major: input.u16().into(),
                minor: input.u32(),
            },
            label: (kind & 16 != 0).then_some((b"security.selinux", b"label")),
            ..NewNode::default()
        };
        let made = self.fs.create(directory, &name, &node)?;
        if made.is_directory() {
            self.found.directories.push(made);
        } else {
            self.found.others.push(made);
        }
        self.found.names.push(name);
        Ok(())
    }

    fn create_unnamed(&mut self, directory: &Inode) -> Result<()> {
        let node = NewNode {
            mode: 0o100_600,
            ..NewNode::default()
        };
        let made = self.fs.create_unnamed(directory, &node)?;
        self.fs.acquire(&made, 1);
        self.held.push(Arc::clone(&made));
        self.found.others.push(made);
        Ok(())
    }

    fn fill(&mut self, input: &mut Input<'_>, directory: &Inode) -> Result<()> {
        let Some(inode) = self.file(input) else {
            return Ok(());
        };
        let (count, seed) = (input.u8() % 64, input.u8());
        for number in 0..count {
            let name = format!("{seed:03}-{number:0width$}", width = 20 + usize::from(seed));
            let name = &name.as_bytes()[..name.len().min(255)];
            self.fs.link(&inode, directory, name)?;
        }
        Ok(())
    }

    fn write(&self, input: &mut Input<'_>) -> Result<()> {
        let Some(file) = self.file(input) else {
            return Ok(());
        };
        let (kind, offset) = (input.u8(), input.number());
        let content = vec![kind | 1; usize::from(input.u16()) % WRITE_MAX];
        let options = WriteOptions {
            append: kind & 1 != 0,
            kill_privileges: kind & 2 != 0,
            privileged: kind & 4 != 0,
            delayed: kind & 8 != 0,
        };
        let mut source = SliceSource::new(&content);
        self.fs
            .write(&file, offset, content.len(), &mut source, options)
            .map(drop)
    }

    fn read(&self, input: &mut Input<'_>) -> Result<()> {
        let Some(file) = self.file(input) else {
            return Ok(());
        };
        let mut buffer = vec![0; usize::from(input.u16())];
        let (offset, len) = (input.number(), buffer.len());
        let _ = self.fs.seek(&file, offset, SeekTarget::Data);
        let _ = self.fs.seek(&file, offset, SeekTarget::Hole);
        let mut sink = SliceSink::new(&mut buffer);
        self.fs.read(&file, offset, len, &mut sink).map(drop)
    }

    fn set_size(&self, input: &mut Input<'_>) -> Result<()> {
        let Some(file) = self.file(input) else {
            return Ok(());
        };
        let change = SetAttr {
            size_bytes: Some(input.number()),
            ..SetAttr::default()
        };
        self.fs.set_attr(&file, &change).map(drop)
    }

    fn set_attr(&self, input: &mut Input<'_>, inode: &Arc<Inode>) -> Result<()> {
        let kind = input.u8();
        let stamp = Timestamp {
            seconds: input.u64().cast_signed(),
            nanoseconds: input.u32(),
        };
        let change = SetAttr {
            mode: (kind & 1 != 0).then(|| input.u16()),
            uid: (kind & 2 != 0).then(|| input.u32()),
            gid: (kind & 4 != 0).then(|| input.u32()),
            atime: (kind & 8 != 0).then_some(TimeChange::To(stamp)),
            mtime: (kind & 16 != 0).then_some(TimeChange::Now),
            ctime: (kind & 32 != 0).then_some(stamp),
            kill_privileges: kind & 64 != 0,
            ..SetAttr::default()
        };
        self.fs.set_attr(inode, &change).map(drop)
    }

    fn rename(&self, input: &mut Input<'_>, from: &Arc<Inode>) -> Result<()> {
        let Some(to) = self.directory(input) else {
            return Ok(());
        };
        let mode = match input.u8() % 3 {
            0 => RenameMode::Replace,
            1 => RenameMode::NoReplace,
            _ => RenameMode::Exchange,
        };
        let (old, new) = (self.name(input), self.name(input));
        self.fs.rename(from, &old, &to, &new, mode)
    }

    fn set_xattr(&self, input: &mut Input<'_>, inode: &Arc<Inode>) -> Result<()> {
        const NAMES: [&str; 6] = [
            "user.small",
            "user.long",
            "security.capability",
            "trusted.x",
            "system.posix_acl_access",
            "system.posix_acl_default",
        ];
        let kind = input.u8();
        let name = NAMES[usize::from(kind & 7) % NAMES.len()];
        let mode = match kind >> 6 {
            1 => SetMode::Create,
            2 => SetMode::Replace,
            _ => SetMode::Any,
        };
        let len = input.index(3000);
        let mut value = input.take(len.min(64)).to_vec();
        value.resize(len, kind);
        self.fs
            .set_xattr(inode, name.as_bytes(), &value, mode, kind & 8 != 0)
    }

    fn change_space(&self, input: &mut Input<'_>) -> Result<()> {
        let Some(file) = self.file(input) else {
            return Ok(());
        };
        let kind = input.u8();
        let keep_size = kind & 4 != 0;
        let change = match kind & 3 {
            0 | 1 => SpaceChange::Allocate { keep_size },
            2 => SpaceChange::PunchHole,
            _ => SpaceChange::ZeroRange { keep_size },
        };
        let (offset, len) = (input.number(), input.number());
        self.fs
            .change_space(&file, offset, len, change, WriteOptions::default())
    }

    fn copy(&self, input: &mut Input<'_>) -> Result<()> {
        let (Some(from), Some(to)) = (self.file(input), self.file(input)) else {
            return Ok(());
        };
        let (source, target) = ((&from, input.number()), (&to, input.number()));
        let len = input.number().min(1 << 20);
        self.fs
            .copy_range(source, target, len, WriteOptions::default())
            .map(drop)
    }

    /// What every client does some time.
    fn usual(&mut self) -> Result<()> {
        let fs = self.fs;
        let root = fs.root()?;
        let node = |mode| NewNode {
            mode,
            ..NewNode::default()
        };
        let directory = fs.create(&root, b"usual", &node(0o040_755))?;
        let file = fs.create(&directory, b"file", &node(0o100_644))?;
        let mut source = SliceSource::new(&[1; 6000]);
        fs.write(&file, 3000, 6000, &mut source, WriteOptions::default())?;
        let size = SetAttr {
            size_bytes: Some(2000),
            ..SetAttr::default()
        };
        fs.set_attr(&file, &size)?;
        fs.rename(&directory, b"file", &root, b"moved", RenameMode::Replace)?;
        fs.unlink(&root, b"moved")?;
        fs.rmdir(&root, b"usual")
    }
}
