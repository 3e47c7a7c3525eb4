//! The host's own mount, over /dev/fuse.
//!
//! Each worker thread has its own clone of the connection (FUSE_DEV_IOC_CLONE), so that a reply
//! goes back where its request came from, and its own two buffers: one read(2) and one write(2)
//! for a request, no allocation. See `md-docs/design/transports.md` for why this is our own code.
#![allow(unsafe_code, reason = "one ioctl")]

use std::ffi::{c_int, c_void};
use std::io;
use std::num::NonZero;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::io::Errno;
use rustix::ioctl::{Opcode, Setter, opcode};
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use super::dev_fuse_mount::{MountError, MountPoint, open_device};
use super::mount_options::MountOptions;
use crate::fuse::{DataSink, DataSource, FileSystem, MAX_DATA, Scratch, Segment, Session};

/// A READ's reply or a WRITE with all that stands before its data.
const BUFFER_SIZE: usize = MAX_DATA as usize + 4096;
/// `_IOR(229, 0, uint32_t)`, though the number goes to the kernel.
const FUSE_DEV_IOC_CLONE: Opcode = opcode::read::<u32>(229, 0);
/// How long a thread that is being stopped may go on before it is woken again.
const WAKE_INTERVAL: Duration = Duration::from_millis(2);

/// Workers for a mount: more than processors, as some of them wait for a disk's flush.
pub fn default_thread_count() -> usize {
    let processors = std::thread::available_parallelism().map_or(2, NonZero::get);
    (processors * 2).clamp(8, 32)
}

/// What the thread in [`FuseMount::run`] waits for.
enum Event {
    WorkerDone,
    Stop,
}

/// A file system mounted on the host.
pub struct FuseMount {
    mount_point: MountPoint,
    device: OwnedFd,
    session: Arc<Session>,
    thread_count: usize,
    events: Mutex<Receiver<Event>>,
    sender: Sender<Event>,
}

/// Unmounts from another thread.
#[derive(Clone)]
pub struct MountStopper(Sender<Event>);

impl MountStopper {
    /// Makes [`FuseMount::run`] unmount and return. Harmless when it has returned already.
    pub fn stop(&self) {
        // No receiver: there is nothing to stop any more.
        let _ = self.0.send(Event::Stop);
    }
}

impl FuseMount {
    /// Mounts `file_system` on `path` and begins the session. `source` is what /proc/mounts shows,
    /// unless an option says otherwise. Requests wait until [`run`](Self::run).
    pub fn new(
        file_system: Arc<dyn FileSystem>,
        source: &str,
        path: &Path,
        options: &MountOptions,
        thread_count: usize,
    ) -> Result<Self, MountError> {
        let (mount_point, device) = MountPoint::mount(source, path, options)?;
        let (sender, events) = channel();
        let mount = Self {
            mount_point,
            device,
            session: Arc::new(Session::new(file_system)),
            thread_count: thread_count.max(1),
            events: Mutex::new(events),
            sender,
        };
        if let Err(error) = mount.begin() {
            mount.mount_point.unmount();
            return Err(MountError::Session(error));
        }
        Ok(mount)
    }

    /// The session, for its numbers.
    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// For a thread that ends the mount.
    pub fn stopper(&self) -> MountStopper {
        MountStopper(self.sender.clone())
    }

    /// Serves until the file system is unmounted, by somebody or by a [`MountStopper`]. The
    /// session has ended when this returns.
    pub fn run(&self) -> io::Result<()> {
        register_signal_handler(SIGRTMIN(), wake)?;
        let events = self.events.lock();
        let stop = Arc::new(AtomicBool::new(false));
        let mut workers = Vec::with_capacity(self.thread_count);
        let mut result = Ok(());
        for index in 0..self.thread_count {
            match self.spawn_worker(index, &stop) {
                Ok(worker) => workers.push(worker),
                Err(error) => {
                    result = Err(error);
                    self.stopper().stop();
                    break;
                }
            }
        }
        let mut running = workers.len();
        while running > 0 {
            let event = if stop.load(Ordering::Relaxed) {
                // A worker may have been between its last look at `stop` and its read.
                workers.iter().for_each(wake_up);
                events.recv_timeout(WAKE_INTERVAL).ok()
            } else {
                events.recv().ok()
            };
            match event {
                Some(Event::WorkerDone) => running -= 1,
                Some(Event::Stop) if !stop.swap(true, Ordering::Relaxed) => {
                    // The workers still serve what unmounting asks for.
                    self.mount_point.unmount();
                }
                _ => {}
            }
        }
        for worker in workers {
            let outcome = worker.join().unwrap_or_else(|_| {
                let panicked = io::Error::other("a worker panicked");
                Err(panicked)
            });
            result = result.and(outcome);
        }
        self.session.end();
        result
    }

    fn begin(&self) -> io::Result<()> {
        let mut worker = Worker::new(self.session.clone());
        while self.session.agreed().is_none() {
            if !worker.serve_one(self.device.as_fd())? {
                return Err(Errno::NODEV.into());
            }
        }
        Ok(())
    }

    fn spawn_worker(
        &self,
        index: usize,
        stop: &Arc<AtomicBool>,
    ) -> io::Result<JoinHandle<io::Result<()>>> {
        let device = match clone_connection(self.device.as_fd()) {
            Ok(clone) => clone,
            // Who may not open the device (fusermount3 did that for us) shares one connection:
            // slower, and as good otherwise.
            Err(error) => {
                log::debug!("the connection is shared: {error}");
                self.device.try_clone()?
            }
        };
        let mut worker = Worker::new(self.session.clone());
        let stop = stop.clone();
        let done = WorkerDone(self.sender.clone());
        Builder::new().name(format!("fuse-{index}")).spawn(move || {
            let _done = done;
            while !stop.load(Ordering::Relaxed) && worker.serve_one(device.as_fd())? {}
            Ok(())
        })
    }
}

/// Tells [`FuseMount::run`] that a worker ended, even when it panicked. A worker that ends while
/// the others go on means that something is wrong or that the mount is gone, which the others
/// notice as well.
struct WorkerDone(Sender<Event>);

impl Drop for WorkerDone {
    fn drop(&mut self) {
        let _ = self.0.send(Event::WorkerDone);
    }
}

/// One thread's buffers.
struct Worker {
    session: Arc<Session>,
    request: Box<[u8]>,
    reply: Box<[u8]>,
    scratch: Scratch,
}

impl Worker {
    fn new(session: Arc<Session>) -> Self {
        let buffer = || vec![0; BUFFER_SIZE].into_boxed_slice();
        Self {
            session,
            request: buffer(),
            reply: buffer(),
            scratch: Scratch::new(),
        }
    }

    /// Waits for a request and answers it. False when the mount is gone.
    fn serve_one(&mut self, device: BorrowedFd<'_>) -> io::Result<bool> {
        let len = match rustix::io::read(device, &mut self.request[..]) {
            Ok(len) => len,
            // Woken up, or a request that was interrupted before we had it.
            Err(Errno::INTR | Errno::AGAIN | Errno::NOENT) => return Ok(true),
            Err(Errno::NODEV) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        };
        let (mut source, mut sink) = ([Segment::empty()], [Segment::empty()]);
        let len = self.session.handle(
            DataSource::from_slice(&self.request[..len], &mut source),
            DataSink::from_slice(&mut self.reply, &mut sink),
            &mut self.scratch,
        );
        if len == 0 {
            return Ok(true);
        }
        match rustix::io::write(device, &self.reply[..len]) {
            Ok(_) => Ok(true),
            // The caller was interrupted and does not wait any more.
            Err(Errno::NOENT) => Ok(true),
            Err(Errno::NODEV) => Ok(false),
            Err(errno) => {
                log::error!("the kernel refused a reply of {len} bytes: {errno}");
                Ok(true)
            }
        }
    }
}

fn clone_connection(device: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let clone = open_device()?;
    let number = u32::try_from(device.as_raw_fd()).expect("an open descriptor is not negative");
    // SAFETY: the kernel reads a u32 through the pointer that `Setter` passes, and nothing else.
    let request = unsafe { Setter::<FUSE_DEV_IOC_CLONE, u32>::new(number) };
    // SAFETY: as above; cloning a connection touches no memory of ours.
    unsafe { rustix::ioctl::ioctl(&clone, request)? };
    Ok(clone)
}

/// The handler of the signal that ends a blocked read: its only work is to be there.
extern "C" fn wake<Info>(_: c_int, _: *mut Info, _: *mut c_void) {}

fn wake_up(worker: &JoinHandle<io::Result<()>>) {
    // It fails only for a thread that has ended.
    let _ = worker.kill(SIGRTMIN());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::tiny::TinyFs;
    use std::fs;
    use std::os::unix::fs::FileExt;
    use tempfile::TempDir;

    struct Mounted {
        fs: Arc<TinyFs>,
        dir: TempDir,
        stopper: MountStopper,
        thread: JoinHandle<io::Result<()>>,
    }

    fn mounted(options: &str) -> Mounted {
        let dir = tempfile::tempdir().unwrap();
        let fs = Arc::new(TinyFs::default());
        let mut parsed = MountOptions::default();
        parsed.parse(options).unwrap();
        let mount = FuseMount::new(fs.clone(), "/some/image", dir.path(), &parsed, 3).unwrap();
        Mounted {
            fs,
            dir,
            stopper: mount.stopper(),
            thread: std::thread::spawn(move || mount.run()),
        }
    }

    fn mounts_line(path: &Path) -> Option<String> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap();
        let path = format!(" {} ", path.display());
        mounts.lines().find(|l| l.contains(&path)).map(Into::into)
    }

    #[test]
    fn a_mount_is_served_until_it_is_stopped() {
        let m = mounted("noatime,nosuid");
        let line = mounts_line(m.dir.path()).unwrap();
        assert!(line.starts_with("/some/image "), "{line}");
        for part in [
            " fuse.kfs ",
            "noatime",
            "nosuid",
            "default_permissions",
            "allow_other",
        ] {
            assert!(line.contains(part), "{line}");
        }
        assert!(!line.contains("nodev"), "{line}");
        let data: Vec<u8> = (0..3_000_000u32).map(|i| (i >> 3) as u8).collect();
        let path = m.dir.path().join("f");
        fs::write(&path, &data).unwrap();
        assert_eq!(*m.fs.content.lock(), data);
        let file = fs::File::open(&path).unwrap();
        let mut part = vec![0; 1_500_000];
        file.read_exact_at(&mut part, 1_000_001).unwrap();
        assert_eq!(part, data[1_000_001..2_500_001]);
        file.sync_all().unwrap();
        assert_eq!(m.fs.synced.load(Ordering::Relaxed), 1);
        let mut names: Vec<_> = fs::read_dir(m.dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["d", "f"]);
        let error = fs::create_dir(m.dir.path().join("new")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        // A file is still open: the mount is taken away all the same.
        m.stopper.stop();
        m.thread.join().unwrap().unwrap();
        assert_eq!(m.fs.ended.load(Ordering::Relaxed), 1);
        assert_eq!(mounts_line(m.dir.path()), None);
        drop(file);
    }

    #[test]
    fn umount_ends_the_session() {
        let m = mounted("ro");
        let error = fs::write(m.dir.path().join("f"), b"x").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        let status = std::process::Command::new("umount")
            .arg(m.dir.path())
            .status();
        assert!(status.unwrap().success());
        m.thread.join().unwrap().unwrap();
        assert_eq!(m.fs.ended.load(Ordering::Relaxed), 1);
        m.stopper.stop();
    }

    #[test]
    fn bad_mount_points_are_named() {
        let fs: Arc<dyn FileSystem> = Arc::new(TinyFs::default());
        let options = MountOptions::default();
        for path in ["/does/not/exist", "/etc/passwd"] {
            let result = FuseMount::new(fs.clone(), "x", Path::new(path), &options, 1);
            let error = result.err().unwrap().to_string();
            assert!(error.contains(path), "{error}");
        }
    }
}
