//! A hostile guest: makes FUSE requests out of the bytes of an input, and remembers what the replies
//! tell it, so that its requests mean something.

use crate::input::Input;
use kfsd::fuse::abi::{EntryOut, InHeader, InitIn, InitInExt, Opcode, OpenOut, OutHeader, ROOT_ID};
use zerocopy::{FromBytes, IntoBytes};

/// Most bytes of data in a request.
const DATA_MAX: usize = 24 << 10;
/// Most room for a reply.
const ROOM_MAX: usize = 70 << 10;

/// A piece of a request's arguments.
#[derive(Clone, Copy)]
enum Field {
    /// A node id, 8 bytes.
    Node,
    /// A file handle, 8 bytes.
    Handle,
    /// Any number of 8 bytes.
    Long,
    /// Any number of 4 bytes.
    Word,
    /// Flags of open(2), 4 bytes.
    OpenFlags,
    /// A mode with its type, 4 bytes.
    Mode,
    /// Zeros.
    Pad(usize),
    /// A name with its NUL.
    Name,
    /// The name of an attribute with its NUL.
    XattrName,
    /// How much data follows, 4 bytes.
    DataLen,
    /// How much data is wanted, 4 bytes.
    Size,
    /// The data.
    Data,
}

/// A request as it goes over the wire.
pub(crate) struct Request {
    pub(crate) bytes: Vec<u8>,
    /// Bytes that there are for the reply.
    pub(crate) room: usize,
    pub(crate) opcode: Option<Opcode>,
}

/// What the guest knows.
pub(crate) struct Guest {
    nodes: Vec<u64>,
    handles: Vec<u64>,
    unique: u64,
    /// Whether what the guest takes up is the host's own: offsets and lengths stay small then.
    is_modest: bool,
}

/// Most that a modest guest asks for, in bytes.
const MODEST: u64 = 16 << 20;

fn fields(opcode: Opcode) -> &'static [Field] {
    use Field::{
        Data, DataLen, Handle, Long, Mode, Name, Node, OpenFlags, Pad, Size, Word, XattrName,
    };
    match opcode {
        Opcode::Lookup | Opcode::Unlink | Opcode::Rmdir => &[Name],
        Opcode::Forget => &[Long],
        Opcode::BatchForget => &[Word, Pad(4), Node, Long, Node, Long, Node, Long],
        Opcode::Getattr => &[Word, Pad(4), Handle],
        Opcode::Setattr => &[
            Word,
            Pad(4),
            Handle,
            Long,
            Long,
            Long,
            Long,
            Long,
            Word,
            Word,
            Word,
            Mode,
            Pad(4),
            Word,
            Word,
            Pad(4),
        ],
        Opcode::Statx => &[Word, Pad(4), Handle, Word, Word],
        Opcode::Symlink => &[Name, Name],
        Opcode::Mknod => &[Mode, Word, Word, Pad(4), Name],
        Opcode::Mkdir => &[Mode, Word, Name],
        Opcode::Rename => &[Node, Name, Name],
        Opcode::Rename2 => &[Node, Word, Pad(4), Name, Name],
        Opcode::Link => &[Node, Name],
        Opcode::Open | Opcode::Opendir => &[OpenFlags, Word],
        Opcode::Create | Opcode::Tmpfile => &[OpenFlags, Mode, Word, Word, Name],
        Opcode::Read | Opcode::Readdir | Opcode::Readdirplus => {
            &[Handle, Long, Size, Word, Long, Word, Pad(4)]
        }
        Opcode::Write => &[Handle, Long, DataLen, Word, Long, Word, Pad(4), Data],
        Opcode::Release | Opcode::Releasedir => &[Handle, Word, Word, Long],
        Opcode::Flush => &[Handle, Pad(8), Long],
        Opcode::Fsync | Opcode::Fsyncdir => &[Handle, Word, Pad(4)],
        Opcode::Setxattr => &[DataLen, Word, Word, Pad(4), XattrName, Data],
        Opcode::Getxattr => &[Size, Pad(4), XattrName],
        Opcode::Listxattr => &[Size, Pad(4)],
        Opcode::Removexattr => &[XattrName],
        Opcode::Getlk | Opcode::Setlk | Opcode::Setlkw => {
            &[Handle, Long, Long, Long, Word, Word, Word, Pad(4)]
        }
        Opcode::Access => &[Word, Pad(4)],
        Opcode::Fallocate => &[Handle, Long, Long, Word, Pad(4)],
        Opcode::Lseek => &[Handle, Long, Word, Pad(4)],
        Opcode::CopyFileRange => &[Handle, Long, Node, Handle, Long, Long, Long],
        Opcode::Ioctl => &[Handle, Word, Word, Long, DataLen, Size, Data],
        Opcode::Setupmapping => &[Handle, Long, Long, Long, Long],
        Opcode::Removemapping => &[Word, Long, Long, Long, Long],
        Opcode::Init => &[Word, Word, Word, Word, Word, Pad(44)],
        Opcode::Interrupt => &[Long],
        _ => &[Data],
    }
}

impl Guest {
    pub(crate) fn new(is_modest: bool) -> Self {
        Self {
            nodes: vec![ROOT_ID],
            handles: vec![0],
            unique: 0,
            is_modest,
        }
    }

    fn long(&self, input: &mut Input<'_>) -> u64 {
        let number = input.number();
        if self.is_modest {
            number % MODEST
        } else {
            number
        }
    }

    /// The INIT that every session begins with. The input says what the kernel can do.
    pub(crate) fn init(&mut self, input: &mut Input<'_>) -> Request {
        let (kind, flags) = (input.u8(), input.u64());
        let flags = if kind & 1 == 0 { u64::MAX } else { flags };
        let init = InitIn {
            major: 7,
            minor: if kind & 2 == 0 {
                41
            } else {
                27 + u32::from(kind >> 3)
            },
            max_readahead: 1 << 20,
            flags: flags as u32,
        };
        let ext = InitInExt {
            flags2: (flags >> 32) as u32,
            ..InitInExt::default()
        };
        let body = [init.as_bytes(), ext.as_bytes()].concat();
        self.whole(Opcode::Init as u32, 0, &body, ROOM_MAX)
    }

    /// The next request of the input.
    pub(crate) fn request(&mut self, input: &mut Input<'_>) -> Request {
        let (which, twist) = (input.u8(), input.u8());
        let opcode = Opcode::ALL[usize::from(which) % Opcode::ALL.len()];
        let node = self.node(input);
        let mut body = Vec::new();
        let mut data_len = 0;
        for field in fields(opcode) {
            self.put(input, *field, &mut body, &mut data_len);
        }
        let mut request = self.whole(opcode as u32, node, &body, ROOM_MAX);
        let takes_space = matches!(opcode, Opcode::CopyFileRange | Opcode::Fallocate);
        if self.is_modest && takes_space {
            return request;
        }
        if twist & 0x0f == 0x0f {
            self.distort(input, twist >> 4, &mut request);
        } else if twist & 0x0f == 0x0e {
            append_extension(input, &mut request);
        }
        request
    }

    fn node(&self, input: &mut Input<'_>) -> u64 {
        match input.u8() {
            0xff => input.number(),
            index => self.nodes[usize::from(index) % self.nodes.len()],
        }
    }

    fn put(&self, input: &mut Input<'_>, field: Field, body: &mut Vec<u8>, data_len: &mut usize) {
        match field {
            Field::Node => body.extend(self.node(input).to_le_bytes()),
            Field::Handle => {
                let handle = match input.u8() {
                    0xff => input.number(),
                    index => self.handles[usize::from(index) % self.handles.len()],
                };
                body.extend(handle.to_le_bytes());
            }
            Field::Long => body.extend(self.long(input).to_le_bytes()),
            Field::Word => body.extend((input.number() as u32).to_le_bytes()),
            Field::OpenFlags => {
                const FLAGS: [u32; 6] = [0, 1, 2, 0o1002, 0o2001, 0o102];
                let kind = usize::from(input.u8());
                let flags = FLAGS.get(kind % 8).copied();
                body.extend(flags.unwrap_or_else(|| input.u32()).to_le_bytes());
            }
            Field::Mode => {
                const MODES: [u32; 6] = [0o100_644, 0o755, 0o010_600, 0o020_600, 0o140_600, 0o6777];
                let kind = usize::from(input.u8());
                let mode = MODES.get(kind % 8).copied();
                body.extend(mode.unwrap_or_else(|| input.u32()).to_le_bytes());
            }
            Field::Pad(len) => body.resize(body.len() + len, 0),
            Field::Name => {
                body.extend(name(input));
                body.push(0);
            }
            Field::XattrName => {
                body.extend(xattr_name(input));
                body.push(0);
            }
            Field::DataLen => {
                let kind = input.u8();
                *data_len = usize::from(kind & 0x3f) << (kind >> 6 << 2);
                *data_len = (*data_len).min(DATA_MAX);
                body.extend((*data_len as u32).to_le_bytes());
            }
            Field::Size => {
                const SIZES: [u32; 6] = [0, 1, 200, 4096, 65536, 1 << 20];
                let kind = usize::from(input.u8());
                let size = SIZES.get(kind % 8).copied();
                body.extend(size.unwrap_or_else(|| input.u32()).to_le_bytes());
            }
            Field::Data => {
                let start = body.len();
                body.extend(input.take((*data_len).min(32)));
                body.resize(start + *data_len, b'd');
            }
        }
    }

    fn whole(&mut self, opcode: u32, nodeid: u64, body: &[u8], room: usize) -> Request {
        self.unique += 1;
        let header = InHeader {
            len: (size_of::<InHeader>() + body.len()) as u32,
            opcode,
            unique: self.unique,
            nodeid,
            ..InHeader::default()
        };
        Request {
            bytes: [header.as_bytes(), body].concat(),
            room,
            opcode: Opcode::from_code(opcode),
        }
    }

    /// Lies about lengths, sends less, leaves less room.
    fn distort(&self, input: &mut Input<'_>, how: u8, request: &mut Request) {
        let bytes = &mut request.bytes;
        match how & 7 {
            0 => bytes[..4].copy_from_slice(&(input.number() as u32).to_le_bytes()),
            1 => bytes.truncate(input.index(bytes.len() + 1)),
            2 => request.room = input.index(200),
            3 => {
                bytes[4..8].copy_from_slice(&(input.number() as u32).to_le_bytes());
                request.opcode = None;
            }
            4 => bytes[36..38].copy_from_slice(&input.array::<2>()),
            5 => bytes[24..36].copy_from_slice(&input.array::<12>()),
            6 => {
                let at = input.index(bytes.len());
                let len = (bytes.len() - at).min(8);
                bytes[at..at + len].copy_from_slice(&input.array::<8>()[..len]);
            }
            _ => {
                let len = usize::from(input.u8());
                bytes.extend_from_slice(input.take(len));
                let len = bytes.len() as u32;
                bytes[..4].copy_from_slice(&len.to_le_bytes());
            }
        }
    }

    /// Looks at a reply: it must be one. Learns node ids and handles from it.
    pub(crate) fn reply(&mut self, request: &Request, reply: &[u8]) {
        if reply.is_empty() {
            return;
        }
        assert!(reply.len() <= request.room, "more than there is room for");
        let (header, body) = OutHeader::read_from_prefix(reply).expect("a reply has a header");
        assert_eq!(header.len as usize, reply.len(), "the reply's length");
        assert!((-4095..=0).contains(&header.error), "{}", header.error);
        assert!(header.error == 0 || body.is_empty(), "an error with data");
        if header.error != 0 {
            return;
        }
        match request.opcode {
            Some(
                Opcode::Lookup
                | Opcode::Mknod
                | Opcode::Mkdir
                | Opcode::Symlink
                | Opcode::Link
                | Opcode::Create
                | Opcode::Tmpfile,
            ) => {
                let Ok((entry, rest)) = EntryOut::read_from_prefix(body) else {
                    return;
                };
                if entry.nodeid != 0 && self.nodes.len() < 200 {
                    self.nodes.push(entry.nodeid);
                }
                self.learn_handle(rest);
            }
            Some(Opcode::Open | Opcode::Opendir) => self.learn_handle(body),
            _ => {}
        }
    }

    fn learn_handle(&mut self, bytes: &[u8]) {
        if let Ok((opened, _)) = OpenOut::read_from_prefix(bytes)
            && self.handles.len() < 200
        {
            self.handles.push(opened.fh);
        }
    }
}

fn name(input: &mut Input<'_>) -> Vec<u8> {
    const NAMES: [&str; 20] = [
        "directory",
        "below",
        "plain",
        "sparse",
        "tree",
        "attributes",
        "ahead",
        "short",
        "long",
        "mapped",
        "mapped-directory",
        "linked",
        "fifo",
        "char",
        ".",
        "..",
        "new",
        "other",
        "a/b",
        "name",
    ];
    match input.u8() {
        kind if kind < 200 => NAMES[usize::from(kind) % NAMES.len()].into(),
        kind if kind < 240 => format!(
            "{:05}-with-a-name-that-is-long-enough-to-fill-blocks-soon",
            kind - 200
        )
        .into(),
        kind if kind < 248 => vec![b'n'; input.index(300)],
        _ => {
            let len = usize::from(input.u8() % 32);
            input.take(len).to_vec()
        }
    }
}

fn xattr_name(input: &mut Input<'_>) -> Vec<u8> {
    const NAMES: [&str; 8] = [
        "user.small",
        "user.long",
        "security.selinux",
        "security.capability",
        "trusted.other",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "user.new",
    ];
    match input.u8() {
        kind if kind < 240 => NAMES[usize::from(kind) % NAMES.len()].into(),
        kind if kind < 248 => [&b"user."[..], &vec![b'x'; input.index(300)]].concat(),
        _ => {
            let len = usize::from(input.u8() % 32);
            input.take(len).to_vec()
        }
    }
}

/// Extensions behind the arguments of a request that makes a node: a label, a group, or nonsense.
fn append_extension(input: &mut Input<'_>, request: &mut Request) {
    let kind = input.u8();
    let body: Vec<u8> = match kind & 3 {
        0 => {
            let label = input.take(8);
            let name = &b"security.selinux\0"[..];
            [&(label.len() as u32).to_le_bytes(), &[0; 4], name, label].concat()
        }
        1 => [1, input.u32()]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect(),
        _ => {
            let len = usize::from(input.u8() % 64);
            input.take(len).to_vec()
        }
    };
    let size = if kind & 4 == 0 {
        ((8 + body.len()) as u32).next_multiple_of(8)
    } else {
        input.number() as u32
    };
    let code = [1, 32, 0, u32::from(kind)][usize::from(kind & 3)];
    let start = request.bytes.len();
    request.bytes.extend(size.to_le_bytes());
    request.bytes.extend(code.to_le_bytes());
    request.bytes.extend(&body);
    let len = request.bytes.len().next_multiple_of(8);
    request
        .bytes
        .resize(start + (len - start).next_multiple_of(8), 0);
    let words = (request.bytes.len() - start) / 8;
    let len = request.bytes.len() as u32;
    request.bytes[..4].copy_from_slice(&len.to_le_bytes());
    request.bytes[36..38].copy_from_slice(&(words as u16).to_le_bytes());
}
