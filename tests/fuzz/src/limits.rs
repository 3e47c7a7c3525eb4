//! How much memory and time one execution may take.
//!
//! The allocator counts; an execution that passes its limit ends the process with a message that
//! names its input, as a hang does. Executions run one at a time.
#![allow(unsafe_code, reason = "a global allocator that counts")]

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use std::alloc::{GlobalAlloc, Layout, System};
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Memory that an execution may hold at a time, in bytes: the images take 14 MiB at most.
pub const MEMORY_MAX: usize = 192 << 20;
/// Time of the processor that it may take. One that is slow takes a tenth of a second.
pub const CPU_MAX: Duration = Duration::from_secs(10);
/// Time that it may take, waiting included.
pub const WALL_MAX: Duration = Duration::from_secs(120);

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);
/// What may be live; no limit outside executions.
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);
static CURRENT: Mutex<Option<Running>> = Mutex::new(None);

struct Running {
    name: String,
    input: Vec<u8>,
    started: Instant,
    cpu: Duration,
}

fn count(size: usize) {
    let live = LIVE.fetch_add(size, Ordering::Relaxed) + size;
    PEAK.fetch_max(live, Ordering::Relaxed);
    if live > LIMIT.load(Ordering::Relaxed) {
        LIMIT.store(usize::MAX, Ordering::Relaxed);
        fail(
            "memory",
            &format!("{live} bytes are in use, {size} in one piece"),
        );
    }
}

// SAFETY: all calls are passed on to the system's allocator, with a count beside.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: the caller's promises are those that `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, new_size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Ends the process: the limit is passed, or a thread has panicked.
fn fail(what: &str, how: &str) -> ! {
    let current = CURRENT.try_lock().and_then(|mut current| current.take());
    let (name, left) = match &current {
        Some(running) => (running.name.as_str(), leave(&running.input)),
        None => ("?", String::new()),
    };
    let text = format!("\nFAILED: {what} of {name}: {how}{left}\n");
    // Past the test harness, which would keep it for itself.
    let _ = std::io::stderr().write_all(text.as_bytes());
    std::process::abort();
}

/// Leaves an input where it can be looked at.
fn leave(input: &[u8]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("artifacts");
    let file = path.join(format!("failed-{}", std::process::id()));
    let left = std::fs::create_dir_all(path).and_then(|()| std::fs::write(&file, input));
    match left {
        Ok(()) => format!("; the input is in {}", file.display()),
        Err(error) => format!("; the input cannot be left in {}: {error}", file.display()),
    }
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.cast_unsigned(), now.tv_nsec as u32)
}

/// What an execution took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Taken {
    /// Most bytes held at a time beyond what was held before.
    pub memory: usize,
    /// Time of the processor.
    pub cpu: Duration,
}

/// Runs one execution within the limit of memory only: libFuzzer watches the time, and what panics.
pub fn bounded(run: impl FnOnce()) {
    let before = LIVE.load(Ordering::Relaxed);
    LIMIT.store(before.saturating_add(MEMORY_MAX), Ordering::Relaxed);
    run();
    LIMIT.store(usize::MAX, Ordering::Relaxed);
}

/// Runs one execution within the limits. One that breaks them ends the process with a message that
/// has this name, and leaves the input in `artifacts`.
pub fn within(name: &str, input: &[u8], run: fn(&[u8])) -> Taken {
    watch();
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let cpu = cpu_time();
    *CURRENT.lock() = Some(Running {
        name: name.into(),
        input: input.into(),
        started: Instant::now(),
        cpu,
    });
    LIMIT.store(before.saturating_add(MEMORY_MAX), Ordering::Relaxed);
    run(input);
    LIMIT.store(usize::MAX, Ordering::Relaxed);
    *CURRENT.lock() = None;
    Taken {
        memory: PEAK.load(Ordering::Relaxed).saturating_sub(before),
        cpu: cpu_time().saturating_sub(cpu),
    }
}

/// Starts to look for hangs and panics, once.
fn watch() {
    static STARTED: AtomicBool = AtomicBool::new(false);
    if STARTED.swap(true, Ordering::Relaxed) {
        return;
    }
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        // Whatever thread it is, and whoever would catch it.
        if LIMIT.swap(usize::MAX, Ordering::Relaxed) != usize::MAX {
            fail("panic", "nothing may");
        }
    }));
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let late = CURRENT.lock().as_ref().is_some_and(|running| {
                cpu_time().saturating_sub(running.cpu) > CPU_MAX
                    || running.started.elapsed() > WALL_MAX
            });
            if late {
                fail("time", "it hangs");
            }
        }
    });
}
