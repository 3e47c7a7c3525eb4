//! An actor: a thread with its own user, root directory and umask, which does one thing at a time.

use super::answer::Answer;
use super::execute::Hands;
use super::operation::{Action, User};
use super::picture;
use super::values::Times;
use anyhow::{Context, Result, anyhow};
use rustix::fs::Mode;
use rustix::process::{chroot, umask};
use rustix::thread::{Gid, Uid, UnshareFlags};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

enum Request {
    Act(Box<Action>),
    Times(String),
    Picture,
}

enum Reply {
    Ready(Result<()>),
    Answer(Answer),
    Times(Times),
    Picture(Result<Vec<String>>),
}

/// A handle on the thread, which ends when this is dropped, and closes its files.
pub struct Actor {
    requests: Option<Sender<Request>>,
    replies: Receiver<Reply>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Actor {
    /// Starts an actor whose root directory is `home`.
    ///
    /// # Errors
    /// Without the rights of root.
    pub fn start(home: &Path, user: &'static User) -> Result<Self> {
        let (requests, received) = channel();
        let (sender, replies) = channel();
        let home = home.to_owned();
        let thread = std::thread::Builder::new()
            .name(format!("user {}", user.uid))
            .spawn(move || serve(&home, user, &received, &sender))?;
        let actor = Self {
            requests: Some(requests),
            replies,
            thread: Some(thread),
        };
        match actor.replies.recv()? {
            Reply::Ready(ready) => ready?,
            _ => return Err(anyhow!("an actor says first that it is ready")),
        }
        Ok(actor)
    }

    fn ask(&self, request: Request) -> Result<Reply> {
        let requests = self.requests.as_ref().context("the actor has ended")?;
        requests.send(request).context("the actor is dead")?;
        self.replies.recv().context("the actor died")
    }

    /// Does something.
    ///
    /// # Errors
    /// When the actor is dead.
    pub fn act(&self, action: &Action) -> Result<Answer> {
        match self.ask(Request::Act(Box::new(action.clone())))? {
            Reply::Answer(answer) => Ok(answer),
            _ => Err(anyhow!("an action has an answer")),
        }
    }

    /// Looks at the times of a path.
    pub(super) fn times(&self, path: &str) -> Result<Times> {
        match self.ask(Request::Times(path.into()))? {
            Reply::Times(times) => Ok(times),
            _ => Err(anyhow!("a question for times has times for an answer")),
        }
    }

    /// Describes all there is below its root directory.
    ///
    /// # Errors
    /// When something cannot be read.
    pub fn picture(&self) -> Result<Vec<String>> {
        match self.ask(Request::Picture)? {
            Reply::Picture(picture) => picture,
            _ => Err(anyhow!(
                "a question for a picture has a picture for an answer"
            )),
        }
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn become_user(home: &Path, user: &User) -> Result<()> {
    // SAFETY: without UnshareFlags::FILES the thread keeps sharing its file descriptors.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }.context("unshare")?;
    chroot(home).context("chroot needs root")?;
    std::env::set_current_dir("/")?;
    let groups: Vec<Gid> = user.groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn serve(home: &Path, user: &User, requests: &Receiver<Request>, replies: &Sender<Reply>) {
    let ready = become_user(home, user);
    let failed = ready.is_err();
    if replies.send(Reply::Ready(ready)).is_err() || failed {
        return;
    }
    let mut hands = Hands::default();
    for request in requests {
        let reply = match request {
            Request::Act(action) => Reply::Answer(hands.act(&action)),
            Request::Times(path) => Reply::Times(Times::of(&path)),
            Request::Picture => Reply::Picture(picture::of_root()),
        };
        if replies.send(reply).is_err() {
            break;
        }
    }
}
