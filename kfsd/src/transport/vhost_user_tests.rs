//! The device against a monitor and a driver of our own, honest and hostile.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, IntoBytes};

use super::super::socket::Socket;
use super::*;
use crate::fuse::abi::{EntryOut, InHeader, InitIn, InitInExt, Opcode, OutHeader, ReadIn, WriteIn};
use crate::fuse::tiny::{FILE, TinyFs};

const MEMORY_SIZE: usize = 16 << 20;
const QUEUE_SIZE: u16 = 64;
const PATIENCE: Duration = Duration::from_secs(10);
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Where the queues' structures and the buffers of requests and replies lie.
const QUEUE_STRIDE: u64 = 0x1_0000;
const AVAIL: u64 = 0x4000;
const USED: u64 = 0x8000;
const REQUEST: u64 = 0x10_0000;
const REPLY: u64 = 0x80_0000;

/// A served tiny file system.
struct Served {
    fs: Arc<TinyFs>,
    dir: TempDir,
    stopper: VhostUserStopper,
    thread: JoinHandle<Result<(), DeviceError>>,
}

fn options() -> DeviceOptions {
    DeviceOptions {
        tag: Some("myfs".into()),
        request_queues: 2,
        once: false,
    }
}

fn serve(options: DeviceOptions) -> Served {
    let (dir, fs) = (tempfile::tempdir().unwrap(), Arc::new(TinyFs::default()));
    let socket = Socket::bind(&dir.path().join("sock")).unwrap();
    let server = VhostUserServer::new(fs.clone(), socket, options).unwrap();
    Served {
        fs,
        dir,
        stopper: server.stopper(),
        thread: std::thread::spawn(move || server.run()),
    }
}

impl Served {
    fn stop(self) {
        self.stopper.stop();
        self.thread.join().unwrap().unwrap();
        assert!(!self.dir.path().join("sock").exists());
    }
}

struct GuestQueue {
    base: u64,
    avail: u16,
    used: u16,
    kick: EventFd,
    call: EventFd,
}

/// A monitor with a guest in it.
struct Guest {
    frontend: Frontend,
    memory: GuestMemoryMmap,
    queues: Vec<GuestQueue>,
}

type Descriptor = (u64, u32, u16, u16);

impl Guest {
    fn connect(served: &Served) -> Self {
        let path = served.dir.path().join("sock");
        let mut frontend = Frontend::connect(path, 3).unwrap();
        let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(MEMORY_SIZE as u64).unwrap();
        let region = (GuestAddress(0), MEMORY_SIZE, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([region]).unwrap();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        frontend.set_features(features).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        assert!(protocol.contains(VhostUserProtocolFeatures::CONFIG));
        let infos: Vec<_> = memory
            .iter()
            .map(|r| VhostUserMemoryRegionInfo::from_guest_region(r).unwrap())
            .collect();
        frontend.set_mem_table(&infos).unwrap();
        let mut guest = Self {
            frontend,
            memory,
            queues: Vec::new(),
        };
        for index in 0..3 {
            guest.add_queue(index, infos[0].userspace_addr);
        }
        guest
    }

    fn add_queue(&mut self, index: usize, user_base: u64) {
        let base = index as u64 * QUEUE_STRIDE;
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (kick, call) = (event(), event());
        let config = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: user_base + base,
            used_ring_addr: user_base + base + USED,
            avail_ring_addr: user_base + base + AVAIL,
            log_addr: None,
        };
        let frontend = &mut self.frontend;
        frontend.set_vring_num(index, QUEUE_SIZE).unwrap();
        frontend.set_vring_addr(index, &config).unwrap();
        frontend.set_vring_base(index, 0).unwrap();
        frontend.set_vring_call(index, &call).unwrap();
        frontend.set_vring_kick(index, &kick).unwrap();
        frontend.set_vring_enable(index, true).unwrap();
        self.queues.push(GuestQueue {
            base,
            avail: 0,
            used: 0,
            kick,
            call,
        });
    }

    fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    fn put_descriptors(&self, table: u64, chain: &[Descriptor]) {
        for (index, &(address, len, flags, next)) in chain.iter().enumerate() {
            let at = table + index as u64 * 16;
            self.put(at, address);
            self.put(at + 8, len);
            self.put(at + 12, flags);
            self.put(at + 14, next);
        }
    }

    /// Offers the chain that starts at `head` and does not wait.
    fn offer(&mut self, queue: usize, head: u16) {
        let (base, avail) = (self.queues[queue].base, self.queues[queue].avail);
        let slot = base + AVAIL + 4 + u64::from(avail % QUEUE_SIZE) * 2;
        self.put(slot, head);
        self.queues[queue].avail = avail.wrapping_add(1);
        self.put(base + AVAIL + 2, avail.wrapping_add(1));
        // used_event: a notification for each chain.
        let used_event = base + AVAIL + 4 + u64::from(QUEUE_SIZE) * 2;
        self.put(used_event, self.queues[queue].used);
        self.queues[queue].kick.write(1).unwrap();
    }

    /// Waits for the next used chain and returns its head and length.
    fn wait(&mut self, queue: usize) -> (u32, u32) {
        let deadline = Instant::now() + PATIENCE;
        let q = &mut self.queues[queue];
        loop {
            let at = GuestAddress(q.base + USED + 2);
            let index: u16 = self.memory.read_obj(at).unwrap();
            if index != q.used {
                break;
            }
            assert!(Instant::now() < deadline, "the device does not answer");
            std::thread::sleep(Duration::from_micros(200));
        }
        let at = q.base + USED + 4 + u64::from(q.used % QUEUE_SIZE) * 8;
        q.used = q.used.wrapping_add(1);
        let entry: [u32; 2] = [0, 4].map(|o| self.memory.read_obj(GuestAddress(at + o)).unwrap());
        (entry[0], entry[1])
    }

    fn run(&mut self, queue: usize, chain: &[Descriptor]) -> u32 {
        self.put_descriptors(self.queues[queue].base, chain);
        self.offer(queue, 0);
        let (head, len) = self.wait(queue);
        assert_eq!(head, 0);
        len
    }

    /// A whole request in the manner of Linux: header, arguments and data each in a descriptor of
    /// their own, and the same for the reply.
    fn call(
        &mut self,
        queue: usize,
        opcode: Opcode,
        node: u64,
        parts: &[&[u8]],
        room: u32,
    ) -> Vec<u8> {
        let len = parts.iter().map(|part| part.len()).sum::<usize>();
        let header = InHeader {
            len: 40 + len as u32,
            opcode: opcode as u32,
            unique: 5,
            nodeid: node,
            ..InHeader::default()
        };
        let mut chain = Vec::new();
        let mut at = REQUEST;
        for part in std::iter::once(&header.as_bytes()).chain(parts) {
            self.memory.write_slice(part, GuestAddress(at)).unwrap();
            let next = chain.len() as u16 + 1;
            chain.push((at, part.len() as u32, NEXT, next));
            at += part.len() as u64 + 100;
        }
        let next = chain.len() as u16 + 1;
        if room > 0 {
            chain.push((REPLY, 16, WRITE | NEXT, next));
            chain.push((REPLY + 4096, room, WRITE, 0));
        } else {
            chain.push((REPLY, 16, WRITE, 0));
        }
        let used = self.run(queue, &chain);
        let mut reply = vec![0; 16 + room as usize];
        let (head, body) = reply.split_at_mut(16);
        self.memory.read_slice(head, GuestAddress(REPLY)).unwrap();
        self.memory
            .read_slice(body, GuestAddress(REPLY + 4096))
            .unwrap();
        reply.truncate(used as usize);
        reply
    }

    fn init(&mut self) {
        let init = InitIn {
            major: 7,
            minor: 41,
            max_readahead: 1 << 17,
            flags: u32::MAX,
        };
        let ext = InitInExt::default();
        let reply = self.call(1, Opcode::Init, 0, &[init.as_bytes(), ext.as_bytes()], 64);
        assert_eq!(error(&reply), 0);
    }
}

fn error(reply: &[u8]) -> i32 {
    let (header, _) = OutHeader::read_from_prefix(reply).unwrap();
    assert_eq!((header.len as usize, header.unique), (reply.len(), 5));
    header.error
}

#[test]
fn requests_are_answered_on_every_queue() {
    let served = serve(options());
    let mut guest = Guest::connect(&served);
    guest.init();
    for queue in [1, 2] {
        let reply = guest.call(queue, Opcode::Lookup, 1, &[b"f\0"], 128);
        assert_eq!(error(&reply), 0);
        let entry = EntryOut::read_from_bytes(&reply[16..]).unwrap();
        assert_eq!(entry.nodeid, FILE);
    }
    assert_eq!(served.fs.lookups.load(Ordering::Relaxed), 2);
    // FORGET on the hiprio queue, without room for a reply.
    let header = InHeader {
        len: 48,
        opcode: Opcode::Forget as u32,
        nodeid: FILE,
        ..InHeader::default()
    };
    let forget = [header.as_bytes(), &2u64.to_ne_bytes()].concat();
    guest
        .memory
        .write_slice(&forget, GuestAddress(REQUEST))
        .unwrap();
    assert_eq!(guest.run(0, &[(REQUEST, 48, 0, 0)]), 0);
    assert_eq!(served.fs.lookups.load(Ordering::Relaxed), 0);
    guest.queues[1].call.read().expect("the guest was notified");
    served.stop();
}

#[test]
fn data_is_moved_and_indirect_tables_work() {
    let served = serve(options());
    let mut guest = Guest::connect(&served);
    guest.init();
    let data: Vec<u8> = (0..300_000u32).map(|i| (i / 7) as u8).collect();
    let write = WriteIn {
        size: data.len() as u32,
        ..WriteIn::default()
    };
    let parts = [
        write.as_bytes(),
        &data[..4096],
        &data[4096..4097],
        &data[4097..],
    ];
    let reply = guest.call(1, Opcode::Write, FILE, &parts, 8);
    assert_eq!(
        (error(&reply), &reply[16..20]),
        (0, write.size.to_ne_bytes().as_slice())
    );
    assert_eq!(*served.fs.content.lock(), data);

    let read = ReadIn {
        size: 200_000,
        offset: 1000,
        ..ReadIn::default()
    };
    let header = InHeader {
        len: 80,
        opcode: Opcode::Read as u32,
        unique: 5,
        nodeid: FILE,
        ..InHeader::default()
    };
    let request = [header.as_bytes(), read.as_bytes()].concat();
    guest
        .memory
        .write_slice(&request, GuestAddress(REQUEST))
        .unwrap();
    let table = 0x9_0000;
    let mut chain = vec![(REQUEST, 80, NEXT, 1), (REPLY, 16, WRITE | NEXT, 2)];
    for page in 0..49u16 {
        let flags = if page == 48 { WRITE } else { WRITE | NEXT };
        let len = if page == 48 {
            200_000 - 48 * 4096
        } else {
            4096
        };
        // Pages in falling order: nothing may rely on neighbours.
        let at = REPLY + 0x10_0000 - u64::from(page) * 8192;
        chain.push((at, len, flags, page + 3));
    }
    guest.put_descriptors(table, &chain);
    let used = guest.run(1, &[(table, chain.len() as u32 * 16, INDIRECT, 0)]);
    assert_eq!(used, 200_016);
    let mut back = Vec::new();
    for &(at, len, _, _) in &chain[2..] {
        let mut page = vec![0; len as usize];
        guest
            .memory
            .read_slice(&mut page, GuestAddress(at))
            .unwrap();
        back.extend(page);
    }
    assert!(back == data[1000..201_000]);
    served.stop();
}

#[test]
fn hostile_chains_are_given_back_and_the_queue_goes_on() {
    let served = serve(options());
    let mut guest = Guest::connect(&served);
    guest.init();
    let end = MEMORY_SIZE as u64;
    let table = 0x9_0000;
    guest.put_descriptors(table, &[(table, 16, INDIRECT, 0)]);
    let bad: &[&[Descriptor]] = &[
        // Loops.
        &[(REQUEST, 40, NEXT, 0)],
        &[(REQUEST, 40, NEXT, 1), (REPLY, 16, WRITE | NEXT, 0)],
        // Goes on outside its table.
        &[(REQUEST, 40, NEXT, 9999)],
        // Outside of memory, or half outside, or around the end of the address space.
        &[(end, 40, NEXT, 1), (REPLY, 16, WRITE, 0)],
        &[(REQUEST, 40, NEXT, 1), (end - 8, 16, WRITE, 0)],
        &[(u64::MAX - 8, 40, NEXT, 1), (REPLY, 16, WRITE, 0)],
        &[(REQUEST, u32::MAX, 0, 0)],
        // Writable before readable.
        &[(REPLY, 16, WRITE | NEXT, 1), (REQUEST, 40, 0, 0)],
        // Nothing to read, nothing at all, too short for a header.
        &[(REPLY, 4096, WRITE, 0)],
        &[(REQUEST, 0, 0, 0)],
        &[(REQUEST, 39, NEXT, 1), (REPLY, 16, WRITE, 0)],
        // Indirect tables: inside of each other, of no length, of a wrong one, outside, empty.
        &[(table, 16, INDIRECT, 0)],
        &[(table, 0, INDIRECT, 0)],
        &[(table, 17, INDIRECT, 0)],
        &[(end, 16, INDIRECT, 0)],
        &[(0xa_0000, 160, INDIRECT, 0)],
    ];
    // A header that would be a good LOOKUP, so that nothing is refused for its sake.
    let header = InHeader {
        len: 40,
        opcode: Opcode::Statfs as u32,
        unique: 5,
        nodeid: 1,
        ..InHeader::default()
    };
    for round in 0..3 {
        for chain in bad {
            let at = GuestAddress(REQUEST);
            guest.memory.write_slice(header.as_bytes(), at).unwrap();
            assert_eq!(guest.run(1, chain), 0, "round {round}: {chain:?}");
        }
        let reply = guest.call(1, Opcode::Lookup, 1, &[b"f\0"], 128);
        assert_eq!(error(&reply), 0);
    }
    // A head outside of the table cannot even be given back.
    guest.offer(1, 5000);
    let reply = guest.call(1, Opcode::Lookup, 1, &[b"f\0"], 128);
    assert_eq!(error(&reply), 0);
    // An index that is far ahead stops this queue, and no other.
    guest.put(guest.queues[1].base + AVAIL + 2, 30_000u16);
    guest.queues[1].kick.write(1).unwrap();
    let reply = guest.call(2, Opcode::Lookup, 1, &[b"f\0"], 128);
    assert_eq!(error(&reply), 0);
    served.stop();
}

/// Offers an FSYNC in descriptors that no other request uses.
fn offer_fsync(guest: &mut Guest) {
    let header = InHeader {
        len: 56,
        opcode: Opcode::Fsync as u32,
        unique: 5,
        nodeid: FILE,
        ..InHeader::default()
    };
    let request = [header.as_bytes(), &[0; 16]].concat();
    let at = REQUEST + 0x1_0000;
    guest
        .memory
        .write_slice(&request, GuestAddress(at))
        .unwrap();
    let table = guest.queues[1].base + 32 * 16;
    guest.put_descriptors(
        table,
        &[(at, 56, NEXT, 33), (REPLY + 0x1_0000, 16, WRITE, 0)],
    );
    guest.offer(1, 32);
}

#[test]
fn a_slow_flush_holds_up_nobody() {
    let served = serve(options());
    let mut guest = Guest::connect(&served);
    guest.init();
    let closed = served.fs.gate.lock();
    offer_fsync(&mut guest);
    let reply = guest.call(1, Opcode::Lookup, 1, &[b"f\0"], 128);
    assert_eq!(error(&reply), 0);
    drop(closed);
    assert_eq!(guest.wait(1), (32, 16));
    assert_eq!(served.fs.synced.load(Ordering::Relaxed), 1);
    served.stop();
}

#[test]
fn stopping_a_queue_waits_for_its_requests() {
    let served = serve(options());
    let mut guest = Guest::connect(&served);
    guest.init();
    std::thread::scope(|scope| {
        let closed = served.fs.gate.lock();
        offer_fsync(&mut guest);
        let reply = guest.call(1, Opcode::Lookup, 1, &[b"f\0"], 128);
        assert_eq!(error(&reply), 0);
        let frontend = guest.frontend.clone();
        let stopped = scope.spawn(move || frontend.get_vring_base(1).unwrap());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!stopped.is_finished(), "the request is still being served");
        drop(closed);
        assert_eq!(stopped.join().unwrap(), 3, "three were taken");
    });
    // It was given back before the queue stopped.
    assert_eq!(guest.wait(1), (32, 16));
    served.stop();
}

#[test]
fn a_second_monitor_gets_a_session_of_its_own() {
    let served = serve(options());
    for round in 1..4 {
        let mut guest = Guest::connect(&served);
        guest.init();
        let reply = guest.call(2, Opcode::Lookup, 1, &[b"f\0"], 128);
        assert_eq!(error(&reply), 0);
        assert_eq!(served.fs.begun.load(Ordering::Relaxed), round);
        drop(guest);
        let deadline = Instant::now() + PATIENCE;
        while served.fs.ended.load(Ordering::Relaxed) < round {
            assert!(Instant::now() < deadline, "the session does not end");
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(served.fs.lookups.load(Ordering::Relaxed), 0);
    }
    served.stop();
}

#[test]
fn connections_leak_no_descriptors() {
    let served = serve(options());
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let connect = |rounds: u64| {
        for _ in 0..rounds {
            drop(Guest::connect(&served));
        }
        // The next one is served only when the one before is gone.
        let guest = Guest::connect(&served);
        let open = count();
        drop(guest);
        open
    };
    let before = connect(2);
    let after = connect(60);
    // Other tests run in this process; a leak would be 180 and more.
    assert!(after < before + 120, "{before} descriptors became {after}");
    served.stop();
}

#[test]
fn once_means_once() {
    let served = serve(DeviceOptions {
        once: true,
        ..options()
    });
    drop(Guest::connect(&served));
    served.thread.join().unwrap().unwrap();
}

#[test]
fn the_configuration_space_has_tag_and_queues() {
    let served = serve(options());
    let mut guest = Guest::connect(&served);
    let flags = VhostUserConfigFlags::empty();
    let (_, config) = guest.frontend.get_config(0, 44, flags, &[0; 44]).unwrap();
    assert_eq!(&config[..5], b"myfs\0");
    assert_eq!(config[36..40], 2u32.to_le_bytes());
    served.stop();
}

#[test]
fn configuration_beyond_the_end_is_nothing() {
    let memory = Memory::new(GuestMemoryMmap::new());
    let session = Arc::new(Session::new(Arc::new(TinyFs::default())));
    let device = DeviceRef(Arc::new(Device::new(&options(), session, &memory).unwrap()));
    assert_eq!(device.get_config(36, 8).len(), 8);
    for (offset, size) in [(37, 8), (44, 1), (u32::MAX, u32::MAX)] {
        assert!(device.get_config(offset, size).is_empty());
    }
}

#[test]
fn nonsense_on_the_socket_costs_only_the_connection() {
    use std::io::{Read, Write};
    let served = serve(options());
    let path = served.dir.path().join("sock");
    for bytes in [
        vec![0; 12],
        vec![0xff; 100],
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
    ] {
        let mut stream = std::os::unix::net::UnixStream::connect(&path).unwrap();
        stream.write_all(&bytes).unwrap();
        let mut rest = Vec::new();
        // It hangs up; that some bytes were not read may show as a reset.
        let _ = stream.read_to_end(&mut rest);
    }
    let mut guest = Guest::connect(&served);
    guest.init();
    served.stop();
}

#[test]
fn impossible_options_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = |tag: &str, request_queues| {
        let socket = Socket::bind(&dir.path().join("sock")).unwrap();
        let options = DeviceOptions {
            tag: Some(tag.into()),
            request_queues,
            once: false,
        };
        VhostUserServer::new(Arc::new(TinyFs::default()), socket, options).map(drop)
    };
    assert!(matches!(server("", 1), Err(DeviceError::Tag(_))));
    assert!(matches!(
        server(&"x".repeat(37), 1),
        Err(DeviceError::Tag(_))
    ));
    assert!(matches!(server("t", 0), Err(DeviceError::Queues(0))));
    assert!(matches!(server("t", 64), Err(DeviceError::Queues(64))));
    server(&"x".repeat(36), 63).unwrap();
}
