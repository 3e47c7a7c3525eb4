//! Descriptor chains: a guest's memory, tables and rings as the input says, under the worker that
//! serves a queue.

use crate::guest::{Guest, Request};
use crate::input::Input;
use crate::served;
use kfsd::transport::{Memory, Offload, QueueWorker};
use kfsd::volume::Volume;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;
use vhost_user_backend::{VringMutex, VringT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const QUEUE_SIZE: u16 = 16;
const DESCRIPTORS: u64 = 0x0;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const INDIRECT_TABLES: u64 = 0x3000;
/// Requests and replies; the memory has a gap in the middle of them.
const BUFFERS: u64 = 0x4000;
const GAP: u64 = 0x4_0000;
const AFTER_GAP: u64 = 0x5_0000;
const END: u64 = 0x9_0000;
/// Rounds of putting something into memory and letting the worker look at it.
const ROUNDS_MAX: usize = 12;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Queues as a hostile driver leaves them.
pub fn vring(data: &[u8]) {
    let mut input = Input::new(data);
    let (volume, session) = served::image(input.u8());
    let how = input.u8();
    let memory = Memory::new(map());
    let offload = Offload::default();
    let warnings = Arc::new(AtomicU32::new(0));
    let worker = QueueWorker::new(
        Arc::clone(&session),
        memory.clone(),
        offload.clone(),
        warnings,
    );
    if let Some(vring) = queue(memory.clone(), how, &mut input) {
        let mut driver = Driver::new(&memory);
        driver.init(&mut input);
        worker.drain(&vring);
        worker.wait_idle();
        driver.look();
        for _ in 0..ROUNDS_MAX {
            if input.is_empty() {
                break;
            }
            driver.round(&mut input);
            worker.drain(&vring);
            worker.wait_idle();
            driver.look();
        }
    }
    assert!(offload.close(Duration::from_secs(60)), "requests hang");
    session.end();
    drop((worker, session));
    let _ = volume.shutdown();
}

fn map() -> GuestMemoryMmap {
    let ranges = [
        (GuestAddress(0), GAP as usize),
        (GuestAddress(AFTER_GAP), (END - AFTER_GAP) as usize),
    ];
    GuestMemoryMmap::from_ranges(&ranges).expect("memory for a small guest")
}

/// The queue as the monitor sets it up; `None` when the library refuses that.
fn queue(memory: Memory, how: u8, input: &mut Input<'_>) -> Option<VringMutex> {
    let vring: VringMutex = VringT::new(memory, 1024).expect("a size that is possible");
    if how & 7 == 7 {
        vring.set_queue_size(input.u16());
        let [a, b, c] = [(); 3].map(|()| input.number());
        vring.set_queue_info(a, b, c).ok()?;
        vring.set_queue_next_avail(input.u16());
    } else {
        vring.set_queue_size(QUEUE_SIZE);
        vring.set_queue_info(DESCRIPTORS, AVAIL, USED).ok()?;
    }
    vring.set_queue_event_idx(how & 8 != 0);
    vring.set_queue_ready(how & 0xf0 != 0xf0);
    vring.set_enabled(true);
    Some(vring)
}

/// The guest's side of the queue.
struct Driver<'m> {
    memory: &'m Memory,
    guest: Guest,
    avail: u16,
    used: u16,
    next_descriptor: u16,
    next_buffer: u64,
    /// Requests on their way: the head of their chain, and where the reply comes.
    waiting: Vec<(u16, Request, u64)>,
}

impl<'m> Driver<'m> {
    fn new(memory: &'m Memory) -> Self {
        Self {
            memory,
            guest: Guest::new(false),
            avail: 0,
            used: 0,
            next_descriptor: 0,
            next_buffer: BUFFERS,
            waiting: Vec::new(),
        }
    }

    /// Writes where there is memory.
    fn put(&self, at: u64, bytes: &[u8]) {
        let memory = vm_memory::GuestAddressSpace::memory(self.memory);
        let _ = memory.write(bytes, GuestAddress(at));
    }

    fn get(&self, at: u64, len: usize) -> Vec<u8> {
        let memory = vm_memory::GuestAddressSpace::memory(self.memory);
        let mut bytes = vec![0; len];
        let _ = memory.read(&mut bytes, GuestAddress(at));
        bytes
    }

    fn init(&mut self, input: &mut Input<'_>) {
        let request = self.guest.init(input);
        self.offer(input, request, 0);
    }

    /// A few requests, a few edits of what holds them, and the index that makes them seen.
    fn round(&mut self, input: &mut Input<'_>) {
        let how = input.u8();
        for _ in 0..how & 3 {
            let request = self.guest.request(input);
            let how = input.u8();
            self.offer(input, request, how);
        }
        for _ in 0..how >> 2 & 3 {
            self.edit(input);
        }
        if how & 0xf0 == 0xf0 {
            self.put(AVAIL + 2, &input.array::<2>());
        }
    }

    fn descriptor(&mut self, table: u64, index: u16, address: u64, len: u32, flags: u16) {
        let at = table + u64::from(index) * 16;
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &len.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &((index + 1) % QUEUE_SIZE).to_le_bytes());
    }

    /// Puts a request and its descriptors into memory and offers the chain. `how` says into how
    /// many pieces it is cut, and whether the table is indirect.
    fn offer(&mut self, input: &mut Input<'_>, request: Request, how: u8) {
        let (len, room) = (request.bytes.len() as u64, request.room as u64);
        if how & 0x30 == 0x30 {
            // Across the gap: a part of it lies nowhere.
            self.next_buffer = GAP - u64::from(input.u16()) % 200;
        } else if self.next_buffer + len + room > GAP {
            self.next_buffer = BUFFERS;
        }
        let (source, reply) = (self.next_buffer, self.next_buffer + len);
        self.put(source, &request.bytes);
        let pieces = |start: u64, len: u64, cut: u64| {
            let mut list = Vec::new();
            let mut at = 0;
            while at < len && list.len() < 5 {
                let step = if list.len() == 4 {
                    len - at
                } else {
                    cut.min(len - at)
                };
                list.push((start + at, step as u32));
                at += step;
            }
            list
        };
        let readable = pieces(source, len, [u64::MAX, 40, 7, 1000][usize::from(how & 3)]);
        let writable = pieces(
            reply,
            room,
            [u64::MAX, 16, 5, 3000][usize::from(how >> 2 & 3)],
        );
        let is_indirect = how & 0x40 != 0;
        let head = self.next_descriptor % QUEUE_SIZE;
        let table = if is_indirect {
            INDIRECT_TABLES
        } else {
            DESCRIPTORS
        };
        let mut index = if is_indirect { 0 } else { head };
        let total = readable.len() + writable.len();
        let both = readable.iter().map(|piece| (piece, 0));
        let both = both.chain(writable.iter().map(|piece| (piece, WRITE)));
        for (nth, (&(address, len), flags)) in both.enumerate() {
            let next = if nth + 1 < total { NEXT } else { 0 };
            self.descriptor(table, index, address, len, flags | next);
            index = (index + 1) % QUEUE_SIZE;
        }
        if is_indirect {
            let len = total as u32 * 16;
            self.descriptor(DESCRIPTORS, head, INDIRECT_TABLES, len, INDIRECT);
            index = head + 1;
        }
        self.next_descriptor = index % QUEUE_SIZE;
        self.next_buffer = (reply + room).next_multiple_of(8);
        let slot = AVAIL + 4 + u64::from(self.avail % QUEUE_SIZE) * 2;
        self.put(slot, &head.to_le_bytes());
        self.avail = self.avail.wrapping_add(1);
        self.put(AVAIL + 2, &self.avail.to_le_bytes());
        self.waiting.push((head, request, reply));
    }

    /// Changes something that the worker will look at.
    fn edit(&mut self, input: &mut Input<'_>) {
        let (kind, index) = (input.u8(), u64::from(input.u8() % QUEUE_SIZE as u8));
        let table = if kind & 0x80 == 0 {
            DESCRIPTORS
        } else {
            INDIRECT_TABLES
        };
        match kind % 8 {
            0 => self.put(table + index * 16, &input.number().to_le_bytes()),
            1 => self.put(
                table + index * 16 + 8,
                &(input.number() as u32).to_le_bytes(),
            ),
            2 => self.put(table + index * 16 + 12, &(input.u16() & 7).to_le_bytes()),
            3 => self.put(table + index * 16 + 14, &input.array::<2>()),
            4 => self.put(AVAIL + 4 + index * 2, &input.array::<2>()),
            5 => self.put(AVAIL, &input.array::<2>()),
            6 => {
                let len = usize::from(input.u8() % 33);
                self.put(table + index * 16, input.take(len));
            }
            _ => {
                let (at, len) = (input.u32() % END as u32, usize::from(input.u8()));
                self.put(u64::from(at), input.take(len));
            }
        }
    }

    /// Takes what was given back.
    fn look(&mut self) {
        let index = self.get(USED + 2, 2);
        let index = u16::from_le_bytes([index[0], index[1]]);
        for _ in 0..QUEUE_SIZE {
            if self.used == index {
                break;
            }
            let slot = USED + 4 + u64::from(self.used % QUEUE_SIZE) * 8;
            let entry = self.get(slot, 8);
            let (head, len) = (u16::from_le_bytes([entry[0], entry[1]]), &entry[4..8]);
            let len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
            self.used = self.used.wrapping_add(1);
            let found = self.waiting.iter().position(|(of, _, _)| *of == head);
            if let Some(found) = found {
                let (_, request, reply) = self.waiting.remove(found);
                self.learn(&request, &self.get(reply, len.min(request.room)));
            }
        }
    }

    /// The memory may have been changed by edits, so nothing is expected of a reply.
    fn learn(&mut self, request: &Request, reply: &[u8]) {
        let len = reply.get(..4).map(|len| [len[0], len[1], len[2], len[3]]);
        let is_whole = len.is_some_and(|len| u32::from_le_bytes(len) as usize == reply.len());
        let is_error = reply.get(4..8).is_some_and(|error| error != [0; 4]);
        if is_whole && !is_error && reply.len() >= 16 {
            self.guest.reply(request, reply);
        }
    }
}
