//! The command line: kfsd's own options and those of virtiofsd, so that programs which start
//! virtiofsd can start kfsd instead.
//!
//! Here is only what may be written; `config.rs` says what it means and what contradicts what.
//! Options that are accepted because other programs pass them, and that change nothing, are hidden.

use clap::{ArgAction, Parser, ValueEnum};
use std::path::PathBuf;

/// Serves an ext4 image or a host directory to virtual machines (virtio-fs) and to this host.
///
/// One of --image and --shared-dir says what is served, and --socket-path, --fd and --mount say to
/// whom; each of these may be given several times, and all share the one volume. The daemon ends
/// when all its users are gone, or on SIGTERM or SIGINT.
#[derive(Debug, Parser)]
#[command(
    name = "kfsd",
    version,
    disable_version_flag = true,
    after_help = "Exit status: 0 if all went well, 1 if not, 2 for a wrong command line."
)]
pub struct Args {
    /// Image file or block device with an ext4 file system
    #[arg(long, value_name = "IMAGE", help_heading = "What is served")]
    pub image: Option<PathBuf>,

    /// Directory of the host
    #[arg(long, value_name = "DIR", help_heading = "What is served")]
    pub shared_dir: Option<PathBuf>,

    /// Serve this snapshot of the image, which takes no changes
    #[arg(long, value_name = "NAME", help_heading = "What is served")]
    pub snapshot: Option<String>,

    /// Refuse changes
    #[arg(long, help_heading = "What is served")]
    pub readonly: bool,

    /// Socket for a virtual machine to connect to (vhost-user)
    #[arg(
        long,
        visible_alias = "socket",
        value_name = "PATH",
        help_heading = "To whom"
    )]
    pub socket_path: Vec<PathBuf>,

    /// Give the sockets to this group, and let it connect
    #[arg(long, value_name = "GROUP", help_heading = "To whom")]
    pub socket_group: Option<String>,

    /// Listening socket that was inherited as this file descriptor
    #[arg(long, value_name = "FD", help_heading = "To whom")]
    pub fd: Vec<i32>,

    /// Directory of the host to mount the volume on (/dev/fuse)
    #[arg(long, value_name = "DIR", help_heading = "To whom")]
    pub mount: Vec<PathBuf>,

    /// Mount options for --mount, separated by commas (ro, noatime, nosuid, allow_other, ...), or
    /// options in the form of the older virtiofsd
    #[arg(short = 'o', value_name = "OPTIONS", help_heading = "To whom")]
    pub options: Vec<String>,

    /// Name by which a guest mounts the volume, told to those that ask the daemon for it
    #[arg(long, value_name = "TAG", help_heading = "To whom")]
    pub tag: Option<String>,

    /// Request queues for each virtual machine; each has a thread of its own
    #[arg(long, value_name = "COUNT", default_value_t = 1, help_heading = "To whom",
          value_parser = clap::value_parser!(u16).range(1..=63))]
    pub num_request_queues: u16,

    /// When a virtual machine has gone, wait for the next one
    #[arg(long, help_heading = "To whom")]
    pub keep_listening: bool,

    /// How much the users' kernels may cache
    #[arg(long, value_name = "MODE", help_heading = "Behaviour")]
    pub cache: Option<CacheArg>,

    /// Let the users' kernels delay writes
    #[arg(long, help_heading = "Behaviour")]
    pub writeback: bool,

    /// Have no READDIRPLUS: directories are listed without attributes
    #[arg(long, help_heading = "Behaviour")]
    pub no_readdirplus: bool,

    /// What to do when the image turns out to be damaged; the default is in the image (tune2fs -e)
    #[arg(long, value_name = "MODE", help_heading = "Behaviour of --image")]
    pub errors: Option<ErrorsArg>,

    /// Have a directory .snapshots in the root, with all snapshots in it; `visible`: listings of the root
    /// show it
    #[arg(long, value_name = "HOW", num_args = 0..=1, require_equals = true,
          default_missing_value = "hidden", help_heading = "Behaviour of --image")]
    pub snapshot_dir: Option<SnapshotDirArg>,

    /// Take a snapshot of the image this often: 30s, 5min, 1h, 24h
    #[arg(long, value_name = "TIME", help_heading = "Behaviour of --image",
          value_parser = kfsctl::duration::parse_duration)]
    pub snapshot_every: Option<std::time::Duration>,

    /// Of the snapshots so taken, keep the newest of each period: PERIOD=COUNT,... of last,
    /// minutely, hourly, daily, weekly, monthly
    #[arg(long, value_name = "RULES", help_heading = "Behaviour of --image")]
    pub snapshot_keep: Option<kfsctl::keep::Keep>,

    /// Serve extended attributes of the directory
    #[arg(long, help_heading = "Behaviour of --shared-dir")]
    pub xattr: bool,

    /// Serve POSIX access control lists; implies --xattr
    #[arg(long, help_heading = "Behaviour of --shared-dir")]
    pub posix_acl: bool,

    /// Take security labels with new files; implies --xattr
    #[arg(long, help_heading = "Behaviour of --shared-dir")]
    pub security_label: bool,

    /// Show mounts below the directory as mounts of their own
    #[arg(long, help_heading = "Behaviour of --shared-dir")]
    pub announce_submounts: bool,

    /// Show mounts below the directory as plain directories
    #[arg(long, hide = true, conflicts_with = "announce_submounts")]
    pub no_announce_submounts: bool,

    /// Pass O_DIRECT on to the host
    #[arg(long, help_heading = "Behaviour of --shared-dir")]
    pub allow_direct_io: bool,

    /// Pass O_NOATIME on to the host
    #[arg(long, help_heading = "Behaviour of --shared-dir")]
    pub preserve_noatime: bool,

    /// Drop suid and sgid bits on writes without asking the guest (the default)
    #[arg(long, hide = true)]
    pub killpriv_v2: bool,

    /// Leave it to the guest to drop suid and sgid bits on writes
    #[arg(
        long,
        conflicts_with = "killpriv_v2",
        help_heading = "Behaviour of --shared-dir"
    )]
    pub no_killpriv_v2: bool,

    /// How the daemon confines itself to the directory; the default is namespace for root who
    /// serves virtual machines, else none
    #[arg(long, value_name = "MODE", help_heading = "Behaviour of --shared-dir")]
    pub sandbox: Option<SandboxArg>,

    /// Change the capabilities that are kept in the sandbox: +NAME keeps, -NAME drops, several
    /// separated by colons
    #[arg(
        long,
        value_name = "LIST",
        help_heading = "Behaviour of --shared-dir",
        allow_hyphen_values = true
    )]
    pub modcaps: Option<String>,

    /// Open files this process may have; 0 leaves the limit as it is
    #[arg(long, value_name = "COUNT", help_heading = "Process")]
    pub rlimit_nofile: Option<u64>,

    /// Least severe messages to log
    #[arg(long, value_name = "LEVEL", help_heading = "Process")]
    pub log_level: Option<LevelArg>,

    /// Log to the system log
    #[arg(long, help_heading = "Process")]
    pub syslog: bool,

    /// Log everything
    #[arg(short = 'd', hide = true)]
    pub debug: bool,

    /// Control socket for kfsctl; "none" for none
    #[arg(long, value_name = "PATH", help_heading = "Process")]
    pub control_socket: Option<PathBuf>,

    /// Print what programs that start vhost-user daemons want to know, and end
    #[arg(long, help_heading = "Process")]
    pub print_capabilities: bool,

    /// Print the version
    #[arg(short = 'V', long, action = ArgAction::Version, help_heading = "Process")]
    pub version: Option<bool>,

    /// Threads for requests; there is one for each queue.
    #[arg(long, hide = true)]
    pub thread_pool_size: Option<u32>,

    /// How host inodes are held.
    #[arg(long, hide = true)]
    pub inode_file_handles: Option<FileHandlesArg>,

    /// Filter for system calls.
    #[arg(long, hide = true)]
    pub seccomp: Option<SeccompArg>,

    /// Staying in the foreground, as always.
    #[arg(short = 'f', hide = true)]
    pub foreground: bool,

    /// Ids of a user namespace; not served.
    #[arg(long, hide = true)]
    pub uid_map: Vec<String>,
    /// Ids of a user namespace; not served.
    #[arg(long, hide = true)]
    pub gid_map: Vec<String>,
    /// Id translation; not served.
    #[arg(long, hide = true)]
    pub translate_uid: Vec<String>,
    /// Id translation; not served.
    #[arg(long, hide = true)]
    pub translate_gid: Vec<String>,
    /// Mapping of attribute names; not served.
    #[arg(long, hide = true)]
    pub xattrmap: Option<String>,
    /// Shared mappings of files that bypass the cache; always allowed.
    #[arg(long, hide = true)]
    pub allow_mmap: bool,
}

/// `--snapshot-dir`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SnapshotDirArg {
    /// Found by who knows its name.
    Hidden,
    /// Shown by listings of the root.
    Visible,
}

/// How much the users' kernels may cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum CacheArg {
    /// Data until the file is opened again, names and attributes for a second
    Auto,
    /// Everything; only where nobody else changes the files
    Always,
    /// Nothing
    #[value(alias = "none")]
    Never,
    /// Names and attributes, no data
    Metadata,
}

/// What to do about a damaged image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ErrorsArg {
    /// Fail what needs the damaged part, and go on
    Continue,
    /// Take no more changes
    RemountRo,
}

/// How the daemon confines itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SandboxArg {
    /// Mount and network namespaces of its own, with the directory as the root
    Namespace,
    /// chroot(2) into the directory
    Chroot,
    /// Not at all
    None,
}

/// How host inodes are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FileHandlesArg {
    /// By file descriptors
    Never,
    /// By file handles where that works
    #[value(alias = "fallback")]
    Prefer,
    /// By file handles only
    Mandatory,
}

/// What a forbidden system call leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SeccompArg {
    /// There is no filter
    None,
    /// End of the process
    Kill,
    /// A line in the log
    Log,
    /// A signal
    Trap,
}

/// Severity of messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LevelArg {
    /// No messages
    Off,
    /// What went wrong
    #[value(alias = "err")]
    Error,
    /// And what looks wrong
    Warn,
    /// And what begins and ends
    Info,
    /// And each operation
    Debug,
    /// And everything else
    Trace,
}

impl From<LevelArg> for log::LevelFilter {
    fn from(level: LevelArg) -> Self {
        match level {
            LevelArg::Off => Self::Off,
            LevelArg::Error => Self::Error,
            LevelArg::Warn => Self::Warn,
            LevelArg::Info => Self::Info,
            LevelArg::Debug => Self::Debug,
            LevelArg::Trace => Self::Trace,
        }
    }
}
