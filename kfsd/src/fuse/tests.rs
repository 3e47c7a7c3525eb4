//! The wire layer on bytes built by hand, honest and hostile.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use proptest::prelude::*;
use rustix::io::Errno;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::abi::*;
use super::flags::InitFlags;
use super::tiny::{DIR, FILE, TinyFs};
use super::*;

/// A session over a tiny file system, and a request's way through it.
struct Client {
    fs: Arc<TinyFs>,
    session: Session,
    scratch: Scratch,
}

/// A parsed reply: its error (0 or negative) and its body.
type Answer = (i32, Vec<u8>);

impl Client {
    fn new() -> Self {
        let fs = Arc::new(TinyFs::default());
        Self {
            session: Session::new(fs.clone()),
            fs,
            scratch: Scratch::new(),
        }
    }

    fn ready() -> Self {
        let mut client = Self::new();
        assert_eq!(client.init(InitFlags::all()).0, 0);
        client
    }

    /// Sends bytes cut into pieces of `piece` bytes, with `room` for the reply.
    fn send(&mut self, request: &[u8], room: usize, piece: usize) -> Vec<u8> {
        let mut request = request.to_vec();
        let mut reply = vec![0xaa; room];
        let cut = |bytes: &mut [u8]| -> Vec<Segment> {
            bytes
                .chunks_mut(piece)
                .map(|c| Segment::new(c.as_mut_ptr(), c.len()))
                .collect()
        };
        let (mut ins, mut outs) = (cut(&mut request), cut(&mut reply));
        // SAFETY: both buffers outlive the call and are not used during it.
        let (source, sink) = unsafe {
            (
                DataSource::from_segments(&mut ins),
                DataSink::from_segments(&mut outs),
            )
        };
        let len = self.session.handle(source, sink, &mut self.scratch);
        assert!(len <= room, "a reply of {len} bytes in {room}");
        reply.truncate(len);
        reply
    }

    fn call(&mut self, opcode: Opcode, node: u64, body: &[u8]) -> Answer {
        let reply = self.send(&request(opcode as u32, node, body), 1 << 16, 1 << 20);
        answer(&reply)
    }

    fn init(&mut self, flags: InitFlags) -> Answer {
        let init = InitIn {
            major: 7,
            minor: 41,
            max_readahead: 1 << 17,
            flags: flags.bits() as u32,
        };
        let ext = InitInExt {
            flags2: (flags.bits() >> 32) as u32,
            ..InitInExt::default()
        };
        self.call(Opcode::Init, 0, &[init.as_bytes(), ext.as_bytes()].concat())
    }
}

fn request(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let header = InHeader {
        len: 40 + body.len() as u32,
        opcode,
        unique: 77,
        nodeid: node,
        ..InHeader::default()
    };
    [header.as_bytes(), body].concat()
}

fn answer(reply: &[u8]) -> Answer {
    let (header, body) = OutHeader::read_from_prefix(reply).unwrap();
    assert_eq!((header.len as usize, header.unique), (reply.len(), 77));
    assert!(header.error <= 0 && header.error > -512);
    assert!(header.error == 0 || body.is_empty());
    (header.error, body.to_vec())
}

fn parse<T: FromBytes>((error, body): &Answer) -> T {
    assert_eq!(*error, 0);
    T::read_from_bytes(body).unwrap()
}

fn bytes<T: IntoBytes + Immutable>(value: &T, rest: &[u8]) -> Vec<u8> {
    [value.as_bytes(), rest].concat()
}

fn failed(errno: Errno) -> Answer {
    (-errno.raw_os_error(), Vec::new())
}

#[test]
fn init_agrees_on_what_both_have() {
    let mut client = Client::new();
    let out: InitOut = parse(&client.init(InitFlags::all()));
    let flags = InitFlags::from_bits_retain(u64::from(out.flags) | u64::from(out.flags2) << 32);
    assert!(flags.contains(InitFlags::INIT_EXT | InitFlags::SECURITY_CTX | InitFlags::MAX_PAGES));
    assert!(!flags.intersects(InitFlags::WRITEBACK_CACHE | InitFlags::POSIX_LOCKS));
    assert_eq!((out.major, out.minor, out.max_write), (7, 41, 1 << 20));
    assert_eq!((out.max_pages, out.max_readahead), (256, 1 << 17));
    assert_eq!(client.session.agreed(), Some(flags));

    let little = InitFlags::BIG_WRITES | InitFlags::SECURITY_CTX;
    let out: InitOut = parse(&client.init(little));
    // Without INIT_EXT there are no upper flags, whatever was sent.
    assert_eq!((out.flags, out.flags2), (1 << 5, 0));
    assert_eq!(client.fs.begun.load(Ordering::Relaxed), 2);
    assert_eq!(client.fs.ended.load(Ordering::Relaxed), 1, "ended before");
}

#[test]
fn init_refuses_old_kernels_and_talks_down_new_ones() {
    let mut client = Client::new();
    let mut init = InitIn::new_zeroed();
    (init.major, init.minor) = (7, 26);
    let reply = client.call(Opcode::Init, 0, init.as_bytes());
    assert_eq!(reply, failed(Errno::PROTO));
    (init.major, init.minor) = (8, 0);
    let out: InitOut = parse(&client.call(Opcode::Init, 0, init.as_bytes()));
    assert_eq!((out.major, out.minor), (7, 41));
    assert_eq!(client.session.agreed(), None);
    let reply = client.call(Opcode::Init, 0, &init.as_bytes()[..15]);
    assert_eq!(reply, failed(Errno::INVAL));
    // INIT_EXT says that more follows, and nothing does.
    (init.major, init.minor, init.flags) = (7, 41, 1 << 30);
    let reply = client.call(Opcode::Init, 0, init.as_bytes());
    assert_eq!(reply, failed(Errno::INVAL));
}

#[test]
fn nothing_works_outside_a_session() {
    let mut client = Client::new();
    assert_eq!(client.call(Opcode::Statfs, 1, &[]), failed(Errno::IO));
    client.init(InitFlags::all());
    assert_eq!(client.call(Opcode::Statfs, 1, &[]).0, 0);
    assert_eq!(client.call(Opcode::Destroy, 0, &[]), (0, vec![]));
    assert_eq!(client.fs.ended.load(Ordering::Relaxed), 1);
    assert_eq!(client.call(Opcode::Statfs, 1, &[]), failed(Errno::IO));
    drop(client.session);
    assert_eq!(client.fs.ended.load(Ordering::Relaxed), 1, "only once");
}

#[test]
fn lookup_counts_until_forget() {
    let mut client = Client::ready();
    let entry: EntryOut = parse(&client.call(Opcode::Lookup, 1, b"f\0"));
    assert_eq!((entry.nodeid, entry.attr.mode), (FILE, 0o100_644));
    assert_eq!(
        (entry.entry_valid, entry.entry_valid_nsec),
        (1, 500_000_000)
    );
    parse::<EntryOut>(&client.call(Opcode::Lookup, 1, b"d\0"));
    assert_eq!(client.call(Opcode::Lookup, 1, b"x\0"), failed(Errno::NOENT));
    assert_eq!(
        client.call(Opcode::Lookup, 99, b"f\0"),
        failed(Errno::STALE)
    );
    let forget = request(Opcode::Forget as u32, FILE, &1u64.to_ne_bytes());
    assert!(client.send(&forget, 100, 100).is_empty());
    assert_eq!(client.fs.lookups.load(Ordering::Relaxed), 1);
    let one = ForgetOne {
        nodeid: DIR,
        nlookup: 1,
    };
    // A count that lies: what is there is taken, and that is all.
    let head = BatchForgetIn {
        count: u32::MAX,
        dummy: 0,
    };
    let batch = request(Opcode::BatchForget as u32, 0, &bytes(&head, one.as_bytes()));
    assert!(client.send(&batch, 100, 100).is_empty());
    assert_eq!(client.fs.lookups.load(Ordering::Relaxed), 0);
    let counted: Vec<_> = client
        .session
        .operations()
        .filter(|&(_, n)| n > 0)
        .collect();
    let expected = [
        (Opcode::Lookup, 4),
        (Opcode::Forget, 1),
        (Opcode::Init, 1),
        (Opcode::BatchForget, 1),
    ];
    assert_eq!(counted, expected);
    assert_eq!(
        client.session.errors(Opcode::Lookup),
        1,
        "ESTALE, not ENOENT"
    );
}

#[test]
fn data_goes_through_pieces_of_any_size() {
    let mut client = Client::ready();
    let data: Vec<u8> = (0..10_000u32).map(|i| (i * 7) as u8).collect();
    for piece in [1, 3, 16, 4096, 1 << 20] {
        client.fs.content.lock().clear();
        let write = WriteIn {
            size: 10_000,
            offset: 5,
            ..WriteIn::default()
        };
        let body = request(Opcode::Write as u32, FILE, &bytes(&write, &data));
        let out: WriteOut = parse(&answer(&client.send(&body, 100, piece)));
        assert_eq!(out.size, 10_000);
        let read = ReadIn {
            offset: 4,
            size: 20_000,
            ..ReadIn::default()
        };
        let body = request(Opcode::Read as u32, FILE, read.as_bytes());
        let (error, back) = answer(&client.send(&body, 20_016, piece));
        assert_eq!(error, 0);
        assert_eq!((back[0], &back[1..]), (0, data.as_slice()), "piece {piece}");
        assert_eq!(
            answer(&client.send(&body, 20_015, piece)),
            failed(Errno::INVAL)
        );
    }
    assert_eq!(client.session.bytes_moved(), (5 * 10_001, 5 * 10_000));
}

#[test]
fn writes_that_lie_about_their_size_are_refused() {
    let mut client = Client::ready();
    let mut write = WriteIn {
        size: 11,
        ..WriteIn::default()
    };
    let short = client.call(Opcode::Write, FILE, &bytes(&write, &[0; 10]));
    assert_eq!(short, failed(Errno::INVAL));
    (write.size, write.offset) = (10, u64::MAX - 5);
    let wrap = client.call(Opcode::Write, FILE, &bytes(&write, &[0; 10]));
    assert_eq!(wrap, failed(Errno::INVAL));
    assert_eq!(client.fs.content.lock().len(), 0);
}

#[test]
fn directories_are_read_in_parts() {
    let mut client = Client::ready();
    for (opcode, entry) in [(Opcode::Readdir, 0), (Opcode::Readdirplus, 128)] {
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let read = ReadIn {
                offset,
                // Room for one entry, not for two.
                size: entry + 40,
                ..ReadIn::default()
            };
            let (error, body) = client.call(opcode, 1, read.as_bytes());
            assert_eq!(error, 0);
            if body.is_empty() {
                break;
            }
            let (head, name) = Dirent::read_from_prefix(&body[entry as usize..]).unwrap();
            assert_eq!(body.len() as u32, entry + 32);
            names.push(String::from_utf8_lossy(&name[..head.namelen as usize]).into_owned());
            offset = head.off;
        }
        assert_eq!(names, [".", "..", "f", "d"]);
    }
    assert_eq!(client.fs.lookups.load(Ordering::Relaxed), 2);
}

#[test]
fn xattrs_have_sizes() {
    let mut client = Client::ready();
    let mut ask = |opcode, size, name: &[u8]| {
        let head = GetxattrIn { size, padding: 0 };
        client.call(opcode, FILE, &bytes(&head, name))
    };
    let out: GetxattrOut = parse(&ask(Opcode::Getxattr, 0, b"user.tiny\0"));
    assert_eq!(out.size, 5);
    assert_eq!(
        ask(Opcode::Getxattr, 5, b"user.tiny\0"),
        (0, b"value".to_vec())
    );
    assert_eq!(
        ask(Opcode::Getxattr, 4, b"user.tiny\0"),
        failed(Errno::RANGE)
    );
    assert_eq!(
        ask(Opcode::Getxattr, 4, b"user.no\0"),
        failed(Errno::NODATA)
    );
    let out: GetxattrOut = parse(&ask(Opcode::Listxattr, 0, b""));
    assert_eq!(out.size, 10);
    assert_eq!(
        ask(Opcode::Listxattr, 99, b""),
        (0, b"user.tiny\0".to_vec())
    );
}

#[test]
fn security_labels_arrive() {
    let mut client = Client::ready();
    let mut body = bytes(&MkdirIn::default(), b"new\0");
    body.extend([48u32.to_ne_bytes(), 1u32.to_ne_bytes()].concat());
    body.extend([5u32.to_ne_bytes(), 0u32.to_ne_bytes()].concat());
    body.extend(b"security.selinux\0label");
    body.resize(8 + 4 + 48, 0);
    parse::<EntryOut>(&client.call(Opcode::Mkdir, 1, &body));
    assert_eq!(*client.fs.label.lock(), b"label");
    body.pop();
    let cut = client.call(Opcode::Mkdir, 1, &body);
    assert_eq!(cut, failed(Errno::INVAL));
}

#[test]
fn errors_that_the_kernel_would_refuse_become_eio() {
    let mut client = Client::ready();
    client.fs.fail.store(512, Ordering::Relaxed);
    assert_eq!(client.call(Opcode::Lookup, 1, b"f\0"), failed(Errno::IO));
    client.fs.fail.store(5, Ordering::Relaxed);
    assert_eq!(client.call(Opcode::Lookup, 1, b"f\0"), failed(Errno::IO));
}

#[test]
fn unknown_operations_get_enosys() {
    let mut client = Client::ready();
    for code in [0, 7, 19, 53, 4096, u32::MAX] {
        let reply = client.send(&request(code, 1, &[0; 64]), 100, 100);
        assert_eq!(answer(&reply), failed(Errno::NOSYS), "{code}");
    }
    assert_eq!(client.call(Opcode::Poll, 1, &[0; 24]), failed(Errno::NOSYS));
    assert!(
        client
            .send(&request(Opcode::Interrupt as u32, 0, &[0; 8]), 100, 100)
            .is_empty()
    );
}

#[test]
fn every_operation_survives_every_length() {
    let mut client = Client::ready();
    let body = [0; 200];
    for &opcode in Opcode::ALL {
        for len in 0..body.len() {
            for room in [0, 15, 16, 17, 200, 5000] {
                client.send(&request(opcode as u32, 1, &body[..len]), room, 7);
            }
        }
        client.init(InitFlags::all());
    }
}

#[test]
fn headers_that_lie_about_their_length_are_answered_or_dropped() {
    let mut client = Client::ready();
    let good = request(Opcode::Lookup as u32, 1, b"f\0");
    for len in [0u32, 39, 43, u32::MAX] {
        let mut bad = good.clone();
        bad[..4].copy_from_slice(&len.to_ne_bytes());
        assert_eq!(
            answer(&client.send(&bad, 200, 100)),
            failed(Errno::INVAL),
            "{len}"
        );
    }
    for cut in 0..40 {
        assert!(client.send(&good[..cut], 200, 100).is_empty());
    }
    // What is behind the request does not belong to it.
    let longer = [good.as_slice(), b"garbage"].concat();
    parse::<EntryOut>(&answer(&client.send(&longer, 200, 100)));
    let huge = client.call(Opcode::Setxattr, FILE, &vec![0; 1 << 20]);
    assert_eq!(huge, failed(Errno::TOOBIG));
}

proptest! {
    #[test]
    fn random_bytes_never_panic(
        opcode in 0u32..60,
        node in 0u64..5,
        body in prop::collection::vec(any::<u8>(), 0..300),
        room in 0usize..400,
        piece in 1usize..64,
    ) {
        let mut client = Client::ready();
        client.send(&request(opcode, node, &body), room, piece);
    }
}
