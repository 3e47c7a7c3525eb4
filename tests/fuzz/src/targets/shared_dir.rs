//! A whole FUSE session on the bytes of a hostile guest, over a directory of the host.
//!
//! The work is done by a thread that has become nobody: should a session ever reach something
//! outside of its directory, it may do little there.

use super::fuse::talk;
use crate::input::Input;
use crate::served;
use parking_lot::Mutex;
use rustix::process::{Gid, Uid};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Who owns nothing.
const NOBODY: u32 = 65534;

/// A session over a directory.
pub fn shared_dir(data: &[u8]) {
    static WORKER: OnceLock<Mutex<Worker>> = OnceLock::new();
    let worker = WORKER.get_or_init(|| Mutex::new(Worker::start()));
    let worker = worker.lock();
    worker.inputs.send(data.to_vec()).expect("the thread waits");
    worker.done.recv().expect("the thread answers");
}

struct Worker {
    inputs: Sender<Vec<u8>>,
    done: Receiver<()>,
}

impl Worker {
    fn start() -> Self {
        let (inputs, wait_input) = channel::<Vec<u8>>();
        let (tell_done, done) = channel();
        std::thread::spawn(move || {
            become_nobody();
            let path = parent().join(format!("kfs-fuzz-{}", std::process::id()));
            for input in wait_input {
                run(&path, &input);
                if tell_done.send(()).is_err() {
                    return;
                }
            }
        });
        Self { inputs, done }
    }
}

/// Where directories are made, in memory where that is possible.
fn parent() -> PathBuf {
    let shm = Path::new("/dev/shm");
    if shm.is_dir() {
        shm.into()
    } else {
        std::env::temp_dir()
    }
}

/// For this thread alone: the process goes on as who it is.
fn become_nobody() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (gid, uid) = (Gid::from_raw(NOBODY), Uid::from_raw(NOBODY));
    rustix::thread::set_thread_groups(&[]).expect("root may");
    rustix::thread::set_thread_res_gid(gid, gid, gid).expect("root may");
    rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
}

fn run(path: &Path, data: &[u8]) {
    fill(path).expect("the directory is ours");
    let mut input = Input::new(data);
    let (volume, session) = served::shared_dir(path, input.u8());
    talk(&session, &mut input, true);
    session.end();
    drop((session, volume));
    remove(path);
}

fn fill(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir(path)?;
    std::fs::create_dir_all(path.join("directory/below"))?;
    std::fs::write(path.join("plain"), [1; 5000])?;
    std::fs::write(path.join("directory/below/name"), "content")?;
    std::fs::hard_link(path.join("plain"), path.join("linked"))?;
    std::os::unix::fs::symlink("directory/below/name", path.join("short"))?;
    // One that leads out of the directory: nothing may follow it.
    std::os::unix::fs::symlink("/etc", path.join("long"))
}

/// A guest may have taken all permissions away.
fn remove(path: &Path) {
    if std::fs::remove_dir_all(path).is_ok() {
        return;
    }
    let all = std::fs::Permissions::from_mode(0o777);
    let mut waiting = vec![path.to_owned()];
    while let Some(directory) = waiting.pop() {
        let _ = std::fs::set_permissions(&directory, all.clone());
        let entries = std::fs::read_dir(&directory)
            .into_iter()
            .flatten()
            .flatten();
        let is_dir = |entry: &std::fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_dir());
        waiting.extend(entries.filter(is_dir).map(|entry| entry.path()));
    }
    std::fs::remove_dir_all(path).expect("it is ours");
}
