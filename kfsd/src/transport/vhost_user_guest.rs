//! A monitor and a driver of our own, for the tests of the device.

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::{FromBytes, IntoBytes};

use crate::fuse::abi::{InHeader, InitIn, InitInExt, Opcode, OutHeader};

pub(super) const MEMORY_SIZE: usize = 16 << 20;
pub(super) const QUEUE_SIZE: u16 = 64;
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
pub(super) const NEXT: u16 = 1;
pub(super) const WRITE: u16 = 2;
pub(super) const INDIRECT: u16 = 4;
/// Where the queues' structures and the buffers of requests and replies lie.
pub(super) const QUEUE_STRIDE: u64 = 0x1_0000;
pub(super) const AVAIL: u64 = 0x4000;
pub(super) const USED: u64 = 0x8000;
pub(super) const REQUEST: u64 = 0x10_0000;
pub(super) const REPLY: u64 = 0x80_0000;

pub(super) struct GuestQueue {
    pub(super) base: u64,
    pub(super) avail: u16,
    pub(super) used: u16,
    pub(super) kick: EventFd,
    pub(super) call: EventFd,
}

/// A monitor with a guest in it.
pub(super) struct Guest {
    pub(super) frontend: Frontend,
    pub(super) memory: GuestMemoryMmap,
    pub(super) queues: Vec<GuestQueue>,
}

pub(super) type Descriptor = (u64, u32, u16, u16);

impl Guest {
    pub(super) fn connect(socket: &Path) -> Self {
        let mut frontend = Frontend::connect(socket, 3).unwrap();
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
            guest.add_queue(index, AVAIL);
        }
        guest
    }

    /// Sets up another queue, with the ring of available chains so far behind its beginning.
    pub(super) fn add_queue(&mut self, index: usize, avail: u64) {
        let base = index as u64 * QUEUE_STRIDE;
        let user_base = self.memory.get_host_address(GuestAddress(0)).unwrap() as u64;
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (kick, call) = (event(), event());
        let config = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: user_base + base,
            used_ring_addr: user_base + base + USED,
            avail_ring_addr: user_base + base + avail,
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

    pub(super) fn put<T: vm_memory::ByteValued>(&self, at: u64, value: T) {
        self.memory.write_obj(value, GuestAddress(at)).unwrap();
    }

    pub(super) fn put_descriptors(&self, table: u64, chain: &[Descriptor]) {
        for (index, &(address, len, flags, next)) in chain.iter().enumerate() {
            let at = table + index as u64 * 16;
            self.put(at, address);
            self.put(at + 8, len);
            self.put(at + 12, flags);
            self.put(at + 14, next);
        }
    }

    /// Offers the chain that starts at `head` and does not wait.
    pub(super) fn offer(&mut self, queue: usize, head: u16) {
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
    pub(super) fn wait(&mut self, queue: usize) -> (u32, u32) {
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

    pub(super) fn run(&mut self, queue: usize, chain: &[Descriptor]) -> u32 {
        self.put_descriptors(self.queues[queue].base, chain);
        self.offer(queue, 0);
        let (head, len) = self.wait(queue);
        assert_eq!(head, 0);
        len
    }

    /// A whole request in the manner of Linux: header, arguments and data each in a descriptor of
    /// their own, and the same for the reply.
    pub(super) fn call(
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

    pub(super) fn init(&mut self) {
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

pub(super) fn error(reply: &[u8]) -> i32 {
    let (header, _) = OutHeader::read_from_prefix(reply).unwrap();
    assert_eq!((header.len as usize, header.unique), (reply.len(), 5));
    header.error
}
