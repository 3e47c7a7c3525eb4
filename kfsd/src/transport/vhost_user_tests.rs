//! The device against a monitor and a driver of our own, honest and hostile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use zerocopy::{FromBytes, IntoBytes};

use super::super::socket::Socket;
use super::*;
use crate::fuse::abi::{EntryOut, InHeader, Opcode, ReadIn, WriteIn};
use crate::fuse::tiny::{FILE, TinyFs};
use guest::{
    AVAIL, Descriptor, Guest, INDIRECT, MEMORY_SIZE, NEXT, PATIENCE, QUEUE_SIZE, REPLY, REQUEST,
    USED, WRITE, error,
};

#[path = "vhost_user_guest.rs"]
mod guest;

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
    fn connect(&self) -> Guest {
        Guest::connect(&self.dir.path().join("sock"))
    }

    fn stop(self) {
        self.stopper.stop();
        self.thread.join().unwrap().unwrap();
        assert!(!self.dir.path().join("sock").exists());
    }
}

#[test]
fn requests_are_answered_on_every_queue() {
    let served = serve(options());
    let mut guest = served.connect();
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
    let mut guest = served.connect();
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
    let mut guest = served.connect();
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
    let mut guest = served.connect();
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
    let mut guest = served.connect();
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

/// Its rings lie upon each other: each chain that is given back is another one that is offered.
#[test]
fn a_queue_without_an_end_ends_with_its_monitor() {
    let served = serve(options());
    let mut guest = served.connect();
    guest.init();
    guest.frontend.get_vring_base(1).unwrap();
    let (base, memory) = (guest.queues[1].base, guest.memory.clone());
    guest.put_descriptors(base, &[(REPLY, 40, 0, 0)]);
    let index = GuestAddress(base + USED + 2);
    let ring = usize::from(QUEUE_SIZE) * 8 + 6;
    memory
        .write_slice(&vec![0; ring], GuestAddress(base + USED))
        .unwrap();
    memory.write_obj(1u16, index).unwrap();
    guest.queues.truncate(1);
    guest.add_queue(1, USED);
    guest.queues[1].kick.write(1).unwrap();
    let deadline = Instant::now() + PATIENCE;
    // More than are served in one go.
    while memory.read_obj::<u16>(index).unwrap() < 2000 {
        assert!(Instant::now() < deadline, "the queue stands still");
        std::thread::yield_now();
    }
    drop(guest);
    while served.fs.ended.load(Ordering::Relaxed) == 0 {
        assert!(Instant::now() < deadline, "the session does not end");
        std::thread::sleep(Duration::from_millis(1));
    }
    served.stop();
}

#[test]
fn a_second_monitor_gets_a_session_of_its_own() {
    let served = serve(options());
    for round in 1..4 {
        let mut guest = served.connect();
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
            drop(served.connect());
        }
        // The next one is served only when the one before is gone.
        let guest = served.connect();
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
    drop(served.connect());
    served.thread.join().unwrap().unwrap();
}

#[test]
fn the_configuration_space_has_tag_and_queues() {
    let served = serve(options());
    let mut guest = served.connect();
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
    let mut guest = served.connect();
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
