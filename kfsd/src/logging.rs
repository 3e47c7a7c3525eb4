//! Where messages go: to standard error, or to the system log.

use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

/// Socket of the system log.
const SYSLOG: &str = "/dev/log";
/// Facility "daemon" of the system log.
const FACILITY: u8 = 3 << 3;

/// Starts logging. Without a level, RUST_LOG says what is logged, and else `info` is the limit.
pub fn start(
    level: Option<LevelFilter>,
    syslog: bool,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(LevelFilter::Trace);
    if syslog {
        let socket = UnixDatagram::unbound()?;
        socket
            .connect(SYSLOG)
            .map_err(|error| format!("--syslog: cannot reach {SYSLOG}: {error}"))?;
        builder.target(env_logger::Target::Pipe(Box::new(Syslog { socket })));
        builder.format(|out, record| {
            let priority = FACILITY | severity(record.level());
            let pid = std::process::id();
            writeln!(out, "<{priority}>kfsd[{pid}]: {}", record.args())
        });
    }
    let default = env_logger::Env::default().default_filter_or("info");
    let first = match level {
        Some(level) => env_logger::Builder::new().filter_level(level).build(),
        None => env_logger::Builder::from_env(default).build(),
    };
    let level = first.filter();
    log::set_boxed_logger(Box::new(Switch {
        first,
        output: builder.build(),
    }))?;
    log::set_max_level(level);
    Ok(())
}

/// Whether [`set_level`] has replaced what the daemon was started with.
static IS_REPLACED: AtomicBool = AtomicBool::new(false);

/// Logs messages of this level and more important ones from now on, whatever the daemon was started
/// with.
pub fn set_level(level: LevelFilter) {
    IS_REPLACED.store(true, Ordering::Relaxed);
    log::set_max_level(level);
    log::info!("log level: {level}");
}

/// A logger whose filter can be replaced.
struct Switch {
    /// Only asked what it would log.
    first: env_logger::Logger,
    /// Logs all it is given.
    output: env_logger::Logger,
}

impl Log for Switch {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The macros have looked at the level.
        IS_REPLACED.load(Ordering::Relaxed) || self.first.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if IS_REPLACED.load(Ordering::Relaxed) || self.first.matches(record) {
            self.output.log(record);
        }
    }

    fn flush(&self) {
        self.output.flush();
    }
}

fn severity(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// The system log: one datagram a message.
struct Syslog {
    socket: UnixDatagram,
}

impl Write for Syslog {
    fn write(&mut self, message: &[u8]) -> io::Result<usize> {
        // A log that is full or gone must not hold the daemon up.
        let _ = self.socket.send(message.trim_ascii_end());
        Ok(message.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
