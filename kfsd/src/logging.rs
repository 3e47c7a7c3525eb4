//! Where messages go: to standard error, or to the system log.

use log::{Level, LevelFilter};
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;

/// Socket of the system log.
const SYSLOG: &str = "/dev/log";
/// Facility "daemon" of the system log.
const FACILITY: u8 = 3 << 3;

/// Starts logging. Without a level, RUST_LOG says what is logged, and else `info` is the limit.
pub fn start(
    level: Option<LevelFilter>,
    syslog: bool,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let default = env_logger::Env::default().default_filter_or("info");
    let mut builder = match level {
        Some(level) => {
            let mut builder = env_logger::Builder::new();
            builder.filter_level(level);
            builder
        }
        None => env_logger::Builder::from_env(default),
    };
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
    builder.try_init()?;
    Ok(())
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
