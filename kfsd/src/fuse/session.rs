//! [`Session`]: one kernel's talk with one [`FileSystem`], from INIT to DESTROY.
//!
//! [`Session::handle`] takes the bytes of a request and makes the bytes of the reply. It needs no
//! transport, may be called from several threads, and never panics whatever the bytes are.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{RwLock, RwLockWriteGuard};
use rustix::io::Errno;

use super::abi::{
    InHeader, InitIn, InitInExt, InitOut, KERNEL_MINOR_VERSION, KERNEL_VERSION,
    MIN_KERNEL_MINOR_VERSION, Opcode,
};
use super::buffers::{DataSink, DataSource};
use super::dispatch;
use super::file_system::{Context, FileSystem, InitReply, InitRequest, Result, Usage};
use super::flags::InitFlags;
use super::latency::{LATENCY_CLASSES, Latency};
use super::reply::{self, Reply};
use super::request::{self, Args, Scratch};

/// Most data in a READ or WRITE.
pub const MAX_DATA: u32 = 1 << 20;
/// The same in pages, as INIT wants it.
const MAX_PAGES: u16 = 256;
/// Codes that are counted: all we know are below.
const CODES: usize = Opcode::Statx as usize + 1;
/// Marks a session that has seen INIT; no flag of the protocol.
const READY: u64 = 1 << 63;

/// What we ask for when the kernel has it. A file system takes out what it cannot do, and adds
/// what is only for some (POSIX_ACL with DONT_MASK, locks, EXPORT_SUPPORT, DAX).
const WANTED: InitFlags = InitFlags::ASYNC_READ
    .union(InitFlags::ATOMIC_O_TRUNC)
    .union(InitFlags::BIG_WRITES)
    .union(InitFlags::AUTO_INVAL_DATA)
    .union(InitFlags::DO_READDIRPLUS)
    .union(InitFlags::READDIRPLUS_AUTO)
    .union(InitFlags::ASYNC_DIO)
    .union(InitFlags::NO_OPEN_SUPPORT)
    .union(InitFlags::PARALLEL_DIROPS)
    .union(InitFlags::MAX_PAGES)
    .union(InitFlags::CACHE_SYMLINKS)
    .union(InitFlags::NO_OPENDIR_SUPPORT)
    .union(InitFlags::SUBMOUNTS)
    .union(InitFlags::HANDLE_KILLPRIV_V2)
    .union(InitFlags::SETXATTR_EXT)
    .union(InitFlags::INIT_EXT)
    .union(InitFlags::SECURITY_CTX)
    .union(InitFlags::CREATE_SUPP_GROUP)
    .union(InitFlags::DIRECT_IO_ALLOW_MMAP);

/// One kernel's session with a file system.
pub struct Session {
    /// Each request holds it shared to its end; exclusively held, nothing is in progress.
    file_system: RwLock<Arc<dyn FileSystem>>,
    /// There is no file system any more.
    has_failed: AtomicBool,
    /// The flags agreed on, and READY; 0 before INIT and after the end.
    agreed: AtomicU64,
    /// The minor number agreed on; 0 before INIT.
    minor: AtomicU32,
    counts: [AtomicU64; CODES],
    errors: [AtomicU64; CODES],
    latencies: [Latency; CODES],
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let agreed = self.agreed();
        f.debug_struct("Session").field("agreed", &agreed).finish()
    }
}

impl Session {
    /// A session that waits for INIT.
    pub fn new(file_system: Arc<dyn FileSystem>) -> Self {
        Self {
            file_system: RwLock::new(file_system),
            has_failed: AtomicBool::new(false),
            agreed: AtomicU64::new(0),
            minor: AtomicU32::new(0),
            counts: [const { AtomicU64::new(0) }; CODES],
            errors: [const { AtomicU64::new(0) }; CODES],
            latencies: std::array::from_fn(|_| Latency::default()),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
        }
    }

    /// The flags agreed on; `None` outside INIT and DESTROY.
    pub fn agreed(&self) -> Option<InitFlags> {
        let bits = self.agreed.load(Ordering::Acquire);
        (bits & READY != 0).then(|| InitFlags::from_bits_retain(bits & !READY))
    }

    /// How often each operation was asked for.
    pub fn operations(&self) -> impl Iterator<Item = (Opcode, u64)> + '_ {
        let count = |&opcode: &Opcode| {
            let counter = index(opcode).map(|index| &self.counts[index]);
            (opcode, counter.map_or(0, |c| c.load(Ordering::Relaxed)))
        };
        Opcode::ALL.iter().map(count)
    }

    /// How often an operation failed for a reason other than that there is no such thing.
    pub fn errors(&self, opcode: Opcode) -> u64 {
        index(opcode).map_or(0, |index| self.errors[index].load(Ordering::Relaxed))
    }

    /// Time that an operation took, in all.
    pub fn time(&self, opcode: Opcode) -> Duration {
        index(opcode).map_or(Duration::ZERO, |index| self.latencies[index].sum())
    }

    /// How many requests for an operation are in each class of latencies.
    pub fn latencies(&self, opcode: Opcode) -> [u64; LATENCY_CLASSES] {
        index(opcode).map_or([0; LATENCY_CLASSES], |index| {
            self.latencies[index].classes()
        })
    }

    /// The version of the protocol that the kernel speaks; `None` outside INIT and DESTROY.
    pub fn version(&self) -> Option<(u32, u32)> {
        self.agreed()?;
        Some((KERNEL_VERSION, self.minor.load(Ordering::Relaxed)))
    }

    /// What the file system holds for the session, where it counts that, and is not being exchanged.
    pub fn usage(&self) -> Option<Usage> {
        self.file_system.try_read()?.usage()
    }

    /// Waits for the requests in progress, and lets new ones wait.
    pub fn suspend(&self) -> Suspended<'_> {
        Suspended {
            session: self,
            file_system: self.file_system.write(),
        }
    }

    /// Bytes that READ and WRITE moved.
    pub fn bytes_moved(&self) -> (u64, u64) {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (load(&self.bytes_read), load(&self.bytes_written))
    }

    /// Ends the session when the other side is gone: as DESTROY does.
    pub fn end(&self) {
        if self.agreed.swap(0, Ordering::AcqRel) & READY != 0 {
            self.file_system.read().destroy();
        }
    }

    /// Answers a request: reads it from `source`, writes the reply to `sink` and returns the
    /// reply's length in bytes. 0 says that there is none: because the operation has none, or
    /// because the request was too short to be answered, or `sink` too small for a header.
    pub fn handle(
        &self,
        mut source: DataSource<'_>,
        mut sink: DataSink<'_>,
        scratch: &mut Scratch,
    ) -> usize {
        let (header, whole) = match request::header(&mut source) {
            Ok(header) => (header, true),
            Err(Some(header)) => (header, false),
            Err(None) => {
                log::warn!("a request of {} bytes was dropped", source.remaining());
                return 0;
            }
        };
        let begin = Instant::now();
        let opcode = Opcode::from_code(header.opcode);
        if let Some(opcode) = opcode {
            self.count(opcode);
        }
        match opcode {
            Some(Opcode::Forget | Opcode::BatchForget) => {
                if whole && self.agreed().is_some() {
                    dispatch::forget(&**self.file_system.read(), &header, &mut source);
                }
                return 0;
            }
            // Operations are short and cannot be interrupted; the kernel needs no answer.
            Some(Opcode::Interrupt | Opcode::NotifyReply) => return 0,
            _ => {}
        }
        let Some(reply) = Reply::begin(&mut sink, header.unique) else {
            log::warn!("no room to answer a request ({})", name(opcode));
            return 0;
        };
        let result = match (whole, opcode) {
            (false, _) => Err(Errno::INVAL),
            (true, None) => Err(Errno::NOSYS),
            (true, Some(opcode)) => self.answer(opcode, &header, source, &mut sink, scratch),
        };
        if let Err(errno) = result {
            log::trace!("{} of node {}: {errno}", name(opcode), header.nodeid);
            if !matches!(errno, Errno::NOENT | Errno::NODATA | Errno::NOSYS)
                && let Some(index) = opcode.and_then(index)
            {
                self.errors[index].fetch_add(1, Ordering::Relaxed);
            }
        }
        let written = reply.finish(&mut sink, result);
        if let Some(index) = opcode.and_then(index) {
            self.latencies[index].add(begin.elapsed());
        }
        written
    }

    fn answer(
        &self,
        opcode: Opcode,
        header: &InHeader,
        mut source: DataSource<'_>,
        sink: &mut DataSink<'_>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        if opcode == Opcode::Init {
            let args = scratch.load(&mut source)?;
            return self.init(args, sink);
        }
        let agreed = self.agreed().ok_or(Errno::IO)?;
        if opcode == Opcode::Destroy {
            self.end();
            return Ok(());
        }
        let file_system = self.file_system.read();
        // Whoever waited for the lock may find that all has changed.
        if self.has_failed.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        let call = dispatch::Call {
            file_system: &**file_system,
            ctx: Context::from(header),
            node: header.nodeid,
            total_extlen: header.total_extlen,
            agreed,
        };
        if opcode == Opcode::Write {
            let count = call.write(source, sink)?;
            self.bytes_written
                .fetch_add(count.into(), Ordering::Relaxed);
            return Ok(());
        }
        let args = scratch.load(&mut source)?;
        call.dispatch(opcode, args, sink)?;
        if opcode == Opcode::Read {
            let count = sink.written() as u64;
            self.bytes_read.fetch_add(count, Ordering::Relaxed);
        }
        Ok(())
    }

    fn count(&self, opcode: Opcode) {
        if let Some(index) = index(opcode) {
            self.counts[index].fetch_add(1, Ordering::Relaxed);
        }
    }

    fn init(&self, mut args: Args<'_>, sink: &mut DataSink<'_>) -> Result<()> {
        let init: InitIn = args.take()?;
        reply::check_room::<InitOut>(sink)?;
        let mut out = InitOut {
            major: KERNEL_VERSION,
            minor: KERNEL_MINOR_VERSION,
            ..InitOut::default()
        };
        if init.major > KERNEL_VERSION {
            // A newer kernel goes down to our number and sends INIT again.
            return reply::put(sink, &out);
        }
        if init.major < KERNEL_VERSION || init.minor < MIN_KERNEL_MINOR_VERSION {
            let (major, minor) = (init.major, init.minor);
            log::error!("the kernel speaks FUSE {major}.{minor}, which is too old");
            return Err(Errno::PROTO);
        }
        let mut offered = InitFlags::from_bits_retain(init.flags.into());
        if offered.contains(InitFlags::INIT_EXT) {
            let ext: InitInExt = args.take()?;
            // The top bit is no flag of ours to agree on: it marks a session as ready.
            let upper = u64::from(ext.flags2 & (u32::MAX >> 1));
            offered |= InitFlags::from_bits_retain(upper << 32);
        }
        if self.has_failed.load(Ordering::Acquire) {
            return Err(Errno::IO);
        }
        self.end();
        let request = InitRequest {
            minor: init.minor.min(KERNEL_MINOR_VERSION),
            max_readahead: init.max_readahead,
            offered,
        };
        let mut agreed = defaults(&request);
        self.file_system.read().init(&request, &mut agreed)?;
        agreed.flags &= offered;
        let flags = agreed.flags.bits();
        out.minor = request.minor;
        out.max_readahead = agreed.max_readahead.min(init.max_readahead);
        (out.flags, out.flags2) = (flags as u32, (flags >> 32) as u32);
        out.max_background = agreed.max_background;
        out.congestion_threshold = agreed.congestion_threshold;
        out.max_write = agreed.max_write.clamp(4096, MAX_DATA);
        out.time_gran = agreed.time_gran.max(1);
        out.max_pages = agreed.max_pages.clamp(1, MAX_PAGES);
        out.map_alignment = agreed.map_alignment;
        self.minor.store(request.minor, Ordering::Relaxed);
        self.agreed.store(flags | READY, Ordering::Release);
        log::debug!("FUSE 7.{}, agreed on {:?}", out.minor, agreed.flags);
        reply::put(sink, &out)
    }
}

/// A session without requests in progress; they go on when this is dropped.
pub struct Suspended<'a> {
    session: &'a Session,
    file_system: RwLockWriteGuard<'a, Arc<dyn FileSystem>>,
}

impl Suspended<'_> {
    /// Goes on with another file system. It has to answer for node ids and handles that the kernel has from
    /// the one before, which is not asked to destroy anything.
    pub fn replace(mut self, file_system: Arc<dyn FileSystem>) {
        *self.file_system = file_system;
    }

    /// Goes on without one: all requests fail from now on.
    pub fn fail(self) {
        self.session.has_failed.store(true, Ordering::Release);
        self.session.agreed.store(0, Ordering::Release);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.end();
    }
}

fn index(opcode: Opcode) -> Option<usize> {
    let code = opcode as usize;
    (code < CODES).then_some(code)
}

fn defaults(request: &InitRequest) -> InitReply {
    InitReply {
        flags: WANTED & request.offered,
        max_readahead: request.max_readahead.min(MAX_DATA),
        max_write: MAX_DATA,
        max_pages: MAX_PAGES,
        max_background: 128,
        congestion_threshold: 96,
        time_gran: 1,
        map_alignment: 0,
    }
}

fn name(opcode: Option<Opcode>) -> &'static str {
    opcode.map_or("an unknown operation", Opcode::name)
}
