//! Why and when the daemon ends: a signal, or that nobody is left to be served.

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};

/// Something the main thread waits for.
#[derive(Debug)]
pub enum Event {
    /// SIGTERM, SIGINT or SIGHUP.
    Signal(i32),
    /// The user at this endpoint (its index) is gone; with what went wrong, if anything did.
    Gone(usize, Option<String>),
}

/// Where the events arrive.
#[derive(Debug)]
pub struct Events {
    sender: Sender<Event>,
    receiver: Receiver<Event>,
    signals: Option<Signals>,
}

impl Events {
    /// Takes over the signals that ask a process to end. They are kept until
    /// [`listen`](Self::listen) brings them here, also while the daemon is ending: a second one
    /// does not cut the end short.
    pub fn new() -> io::Result<Self> {
        let (sender, receiver) = channel();
        let signals = Some(Signals::new([SIGTERM, SIGINT, SIGHUP])?);
        Ok(Self {
            sender,
            receiver,
            signals,
        })
    }

    /// Starts the thread that brings the signals.
    pub fn listen(&mut self) -> io::Result<()> {
        let Some(mut signals) = self.signals.take() else {
            return Ok(());
        };
        let sender = self.sender.clone();
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                for signal in signals.forever() {
                    if sender.send(Event::Signal(signal)).is_err() {
                        log::info!("signal {signal}: the daemon is ending already");
                    }
                }
            })?;
        Ok(())
    }

    /// For those who bring events.
    pub fn sender(&self) -> Sender<Event> {
        self.sender.clone()
    }

    /// Waits until all `users` are gone or a signal arrives. Returns whether all went well.
    pub fn wait(&self, users: usize) -> bool {
        let mut left = users;
        let mut is_well = true;
        while left > 0 {
            match self.receiver.recv().expect("a sender is held here") {
                Event::Signal(signal) => {
                    let name = signal_hook::low_level::signal_name(signal).unwrap_or("a signal");
                    log::info!("{name}: ending");
                    return is_well;
                }
                Event::Gone(_, problem) => {
                    left -= 1;
                    if let Some(problem) = problem {
                        log::error!("{problem}");
                        is_well = false;
                    }
                }
            }
        }
        log::info!("all users are gone: ending");
        is_well
    }
}
