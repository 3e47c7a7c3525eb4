//! What a terminal shows while something takes its time, and Ctrl-C meanwhile.

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use kfsctl::{ErrorCode, Progress};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Exit status of a command that was ended by Ctrl-C, as shells have it.
pub(crate) const EXIT_INTERRUPTED: u8 = 130;

/// A bar on a terminal, nothing elsewhere. A spinner until it is known how far it is.
pub(crate) struct Bar {
    bar: ProgressBar,
    is_bar: bool,
    /// Somebody wants it to end.
    stop: Option<Arc<AtomicBool>>,
    is_stopping: bool,
}

impl Bar {
    /// A bar that hides where JSON is wanted.
    pub(crate) fn new(as_json: bool) -> Self {
        let bar = match as_json || !io::stderr().is_terminal() {
            true => ProgressBar::hidden(),
            false => ProgressBar::new_spinner(),
        };
        let style = ProgressStyle::with_template("{spinner} {msg} {elapsed}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        Self {
            bar,
            is_bar: false,
            stop: None,
            is_stopping: false,
        }
    }

    /// From now on the first signal that asks to end is told to the work, and the second one ends at once.
    pub(crate) fn catch_signals(&mut self) -> io::Result<()> {
        let stop = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            let status = EXIT_INTERRUPTED.into();
            signal_hook::flag::register_conditional_shutdown(signal, status, Arc::clone(&stop))?;
            signal_hook::flag::register(signal, Arc::clone(&stop))?;
        }
        self.stop = Some(stop);
        Ok(())
    }

    /// A bar for what kfsctl does in steps; Ctrl-C is looked at between them.
    pub(crate) fn of_steps(as_json: bool) -> io::Result<Self> {
        let mut bar = Self::new(as_json);
        bar.catch_signals()?;
        Ok(bar)
    }

    /// Shows how far it is after a step; `total` is 0 where nobody knows.
    ///
    /// # Errors
    /// `Interrupted` when somebody wants it to end.
    pub(crate) fn step(
        &mut self,
        stage: &'static str,
        done: u64,
        total: u64,
    ) -> Result<(), kfs::Error> {
        let progress = Progress {
            stage: stage.into(),
            done,
            total,
        };
        match self.tell(&progress) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(kfs::Error::Interrupted),
        }
    }

    /// Shows how far it is, and says whether to go on.
    pub(crate) fn tell(&mut self, progress: &Progress) -> ControlFlow<()> {
        if self.bar.is_hidden() {
            // Nobody looks.
        } else if progress.total > 0 {
            self.show(progress);
        } else if progress.done > 0 {
            let done = HumanCount(progress.done);
            self.bar.set_message(format!("{}: {done}", progress.stage));
        }
        let is_wanted = match &self.stop {
            Some(stop) => !stop.load(Ordering::Relaxed),
            None => true,
        };
        if is_wanted {
            return ControlFlow::Continue(());
        }
        if !self.is_stopping {
            self.is_stopping = true;
            let note = || eprintln!("kfsctl: stopping; once more to leave it at once");
            self.bar.suspend(note);
        }
        ControlFlow::Break(())
    }

    fn show(&mut self, progress: &Progress) {
        if !self.is_bar {
            self.is_bar = true;
            let style =
                ProgressStyle::with_template("{msg:12} {wide_bar} {percent:>3} %  {eta:>4}");
            self.bar
                .set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
        if self.bar.message() != progress.stage {
            self.bar.set_message(progress.stage.clone().into_owned());
            self.bar.reset_eta();
        }
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done.min(progress.total));
    }

    /// Takes it off the screen.
    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

/// Whether an error says that somebody had the work stopped.
pub(crate) fn is_interrupted(error: &anyhow::Error) -> bool {
    let code = crate::refused(error).map(|refused| refused.code);
    let error = error.downcast_ref::<kfs::Error>();
    code == Some(ErrorCode::Cancelled) || matches!(error, Some(kfs::Error::Interrupted))
}
