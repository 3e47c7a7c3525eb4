//! What the daemon is to do, checked: the only place where options are judged against each other
//! and against the files they name.

mod error;

use crate::args::{
    Args, CacheArg, ErrorsArg, FileHandlesArg, LevelArg, SandboxArg, SeccompArg, SnapshotDirArg,
};
use crate::legacy_options::{self, LegacyOptions};
use crate::schedule::Schedule;
use crate::transport::MountOptions;
use kfs::ErrorsPolicy;
use rustix::thread::CapabilitySet;
use std::path::{Path, PathBuf};

pub use error::ConfigError;

/// Longest path a Unix socket can have.
const MAX_SOCKET_PATH: usize = 107;
/// Longest tag; virtio-fs has 36 bytes for it.
const MAX_TAG: usize = 36;

/// What is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// An ext4 image or block device.
    Image(PathBuf),
    /// A directory of the host.
    SharedDir(PathBuf),
}

/// To whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A virtual machine that connects to this path.
    Socket(PathBuf),
    /// A virtual machine that connects to this inherited listening socket.
    Fd(i32),
    /// This host, by a mount.
    Mount(PathBuf),
}

/// How much the users' kernels may cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CachePolicy {
    /// Data until the file is opened again, names and attributes for a second.
    #[default]
    Auto,
    /// Everything, for long.
    Always,
    /// Nothing.
    Never,
    /// Names and attributes, no data.
    Metadata,
}

/// Whether the root has a directory with all snapshots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SnapshotDir {
    /// No.
    #[default]
    None,
    /// Found by who knows its name.
    Hidden,
    /// Shown by listings of the root.
    Visible,
}

impl From<SnapshotDirArg> for SnapshotDir {
    fn from(how: SnapshotDirArg) -> Self {
        match how {
            SnapshotDirArg::Hidden => Self::Hidden,
            SnapshotDirArg::Visible => Self::Visible,
        }
    }
}

/// How the daemon confines itself to a host directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sandbox {
    /// Not at all.
    #[default]
    None,
    /// chroot(2).
    Chroot,
    /// Namespaces of its own.
    Namespace,
}

/// What applies to a host directory only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedDirOptions {
    /// Serve extended attributes.
    pub xattr: bool,
    /// Serve POSIX ACLs.
    pub posix_acl: bool,
    /// Take security labels.
    pub security_label: bool,
    /// Mark roots of mounts.
    pub announce_submounts: bool,
    /// Pass O_DIRECT on.
    pub allow_direct_io: bool,
    /// Pass O_NOATIME on.
    pub preserve_noatime: bool,
    /// Drop suid and sgid as the kernel asks for.
    pub killpriv_v2: bool,
    /// Confinement.
    pub sandbox: Sandbox,
    /// Capabilities to keep beyond the usual ones.
    pub keep_capabilities: CapabilitySet,
    /// Capabilities to drop of the usual ones.
    pub drop_capabilities: CapabilitySet,
}

impl Default for SharedDirOptions {
    fn default() -> Self {
        Self {
            xattr: false,
            posix_acl: false,
            security_label: false,
            announce_submounts: false,
            allow_direct_io: false,
            preserve_noatime: false,
            killpriv_v2: true,
            sandbox: Sandbox::None,
            keep_capabilities: CapabilitySet::empty(),
            drop_capabilities: CapabilitySet::empty(),
        }
    }
}

/// Where kfsctl reaches the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlSocket {
    /// Nowhere.
    None,
    /// In the directory of the user, under the process id.
    Default,
    /// Here.
    Path(PathBuf),
}

/// All of it. Paths are absolute.
#[derive(Clone, Debug)]
pub struct Config {
    /// What is served.
    pub source: Source,
    /// Refuse changes.
    pub read_only: bool,
    /// To whom; at least one.
    pub endpoints: Vec<Endpoint>,
    /// Group that may connect to the sockets.
    pub socket_group: Option<u32>,
    /// Options of all mounts.
    pub mount_options: MountOptions,
    /// Name of the volume in guests.
    pub tag: Option<String>,
    /// Request queues a virtual machine.
    pub request_queues: u16,
    /// Whether a socket waits for the next virtual machine when one has gone.
    pub keep_listening: bool,
    /// Caching.
    pub cache: CachePolicy,
    /// Delayed writes.
    pub writeback: bool,
    /// READDIRPLUS.
    pub readdirplus: bool,
    /// How long names and attributes hold, where `-o timeout=` says so.
    pub timeout: Option<std::time::Duration>,
    /// What to do about a damaged image.
    pub errors: ErrorsPolicy,
    /// The snapshot of the image to serve.
    pub snapshot: Option<String>,
    /// The directory of snapshots.
    pub snapshot_dir: SnapshotDir,
    /// Snapshots to be taken by the clock.
    pub schedule: Option<Schedule>,
    /// For a host directory.
    pub shared_dir: SharedDirOptions,
    /// Open files; `None`: as many as the system allows.
    pub open_files: Option<u64>,
    /// Where kfsctl reaches the daemon.
    pub control: ControlSocket,
    /// Things to be said once logging works.
    pub remarks: Vec<String>,
}

/// Least severe messages to log, known before everything else is judged.
pub fn log_level(args: &Args) -> Option<log::LevelFilter> {
    if args.debug {
        Some(log::LevelFilter::Debug)
    } else {
        args.log_level.map(LevelArg::into)
    }
}

impl TryFrom<Args> for Config {
    type Error = ConfigError;

    fn try_from(mut args: Args) -> Result<Self, ConfigError> {
        let mut remarks = Vec::new();
        let legacy = legacy_options::parse(&args.options)?;
        apply_legacy(&mut args, &legacy);
        refuse_unsupported(&args, &mut remarks)?;
        let source = source(&args)?;
        let endpoints = endpoints(&args)?;
        let has_mount = endpoints
            .iter()
            .any(|endpoint| matches!(endpoint, Endpoint::Mount(_)));
        if let (false, Some(option)) = (has_mount, legacy.mount_options.first()) {
            return Err(ConfigError::Needs {
                option: format!("-o {option}"),
                needs: "--mount",
            });
        }
        if let Some(tag) = &args.tag
            && (tag.is_empty() || tag.len() > MAX_TAG || tag.contains('\0'))
        {
            return Err(ConfigError::Tag { len: tag.len() });
        }
        let mut mount_options = MountOptions::default();
        for option in &legacy.mount_options {
            mount_options.parse(option)?;
        }
        if args.snapshot.is_some() {
            if args.image.is_none() {
                return Err(ConfigError::Needs {
                    option: "--snapshot".into(),
                    needs: "--image",
                });
            }
            args.readonly = true;
        }
        if args.snapshot_dir.is_some() && args.image.is_none() {
            return Err(ConfigError::Needs {
                option: "--snapshot-dir".into(),
                needs: "--image",
            });
        }
        let read_only = args.readonly || mount_options.is_read_only();
        let schedule = Schedule::from_args(&args, read_only)?;
        if read_only {
            mount_options.set_read_only();
        }
        let shared_dir = shared_dir_options(&args, &source, has_mount)?;
        Ok(Self {
            read_only,
            endpoints,
            socket_group: args.socket_group.as_deref().map(group_id).transpose()?,
            mount_options,
            tag: args.tag,
            request_queues: args.num_request_queues,
            keep_listening: args.keep_listening,
            cache: args.cache.map_or_else(CachePolicy::default, CacheArg::into),
            writeback: args.writeback,
            readdirplus: !args.no_readdirplus,
            timeout: legacy.timeout,
            errors: errors_policy(args.errors, args.image.as_ref())?,
            snapshot: args.snapshot,
            snapshot_dir: args
                .snapshot_dir
                .map_or(SnapshotDir::None, SnapshotDirArg::into),
            schedule,
            shared_dir,
            open_files: args.rlimit_nofile,
            control: control_socket(args.control_socket)?,
            source,
            remarks,
        })
    }
}

fn errors_policy(
    errors: Option<ErrorsArg>,
    image: Option<&PathBuf>,
) -> Result<ErrorsPolicy, ConfigError> {
    match errors {
        Some(_) if image.is_none() => Err(ConfigError::Needs {
            option: "--errors".into(),
            needs: "--image",
        }),
        Some(ErrorsArg::Continue) => Ok(ErrorsPolicy::Continue),
        Some(ErrorsArg::RemountRo) => Ok(ErrorsPolicy::RemountReadOnly),
        None => Ok(ErrorsPolicy::Default),
    }
}

impl From<CacheArg> for CachePolicy {
    fn from(cache: CacheArg) -> Self {
        match cache {
            CacheArg::Auto => Self::Auto,
            CacheArg::Always => Self::Always,
            CacheArg::Never => Self::Never,
            CacheArg::Metadata => Self::Metadata,
        }
    }
}

/// The newer form of an option wins over the older one.
fn apply_legacy(args: &mut Args, legacy: &LegacyOptions) {
    if args.shared_dir.is_none() {
        args.shared_dir.clone_from(&legacy.source);
    }
    args.cache = args.cache.or(legacy.cache);
    args.sandbox = args.sandbox.or(legacy.sandbox);
    args.log_level = args.log_level.or(legacy.log_level);
    args.errors = args.errors.or(legacy.errors);
    args.xattr |= legacy.xattr == Some(true);
    args.posix_acl |= legacy.posix_acl == Some(true);
    args.writeback |= legacy.writeback == Some(true);
    args.no_readdirplus |= legacy.readdirplus == Some(false);
    args.announce_submounts |= legacy.announce_submounts == Some(true);
    args.allow_direct_io |= legacy.allow_direct_io == Some(true);
    args.no_killpriv_v2 |= legacy.killpriv_v2 == Some(false);
    if args.modcaps.is_none() {
        args.modcaps.clone_from(&legacy.modcaps);
    }
}

/// Options of virtiofsd: refused where ignoring them would break a promise, else remarked upon.
fn refuse_unsupported(args: &Args, remarks: &mut Vec<String>) -> Result<(), ConfigError> {
    let unsupported = |option: &str, hint| {
        Err(ConfigError::Unsupported {
            option: option.into(),
            hint,
        })
    };
    if !args.uid_map.is_empty() || !args.gid_map.is_empty() {
        return unsupported(
            "--uid-map/--gid-map",
            "; run it as root, or without id maps",
        );
    }
    if !args.translate_uid.is_empty() || !args.translate_gid.is_empty() {
        return unsupported("--translate-uid/--translate-gid", "");
    }
    if args.xattrmap.is_some() {
        return unsupported(
            "--xattrmap",
            "; --xattr serves attributes under their own names",
        );
    }
    match args.inode_file_handles {
        Some(FileHandlesArg::Mandatory) => {
            return unsupported(
                "--inode-file-handles=mandatory",
                "; it holds file descriptors",
            );
        }
        Some(FileHandlesArg::Prefer) => {
            remarks.push("--inode-file-handles=prefer: inodes are held by descriptors".into());
        }
        Some(FileHandlesArg::Never) | None => {}
    }
    match args.seccomp {
        Some(SeccompArg::Kill | SeccompArg::Log | SeccompArg::Trap) => {
            return unsupported("--seccomp with a filter", "; use --seccomp none");
        }
        Some(SeccompArg::None) | None => {}
    }
    if args.thread_pool_size.is_some_and(|size| size > 1) {
        remarks.push("--thread-pool-size: each request queue has a thread of its own".into());
    }
    Ok(())
}

fn source(args: &Args) -> Result<Source, ConfigError> {
    let source = match (&args.image, &args.shared_dir) {
        (Some(_), Some(_)) => return Err(ConfigError::TwoSources),
        (None, None) => return Err(ConfigError::NoSource),
        (Some(path), None) => {
            let (path, kind) = resolve("--image", path)?;
            if kind.is_dir() {
                return Err(ConfigError::ImageIsDirectory { path });
            }
            if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
                return Err(ConfigError::ImageIsSpecial { path });
            }
            Source::Image(path)
        }
        (None, Some(path)) => {
            let (path, kind) = resolve("--shared-dir", path)?;
            if !kind.is_dir() {
                return Err(ConfigError::SharedDirIsFile { path });
            }
            Source::SharedDir(path)
        }
    };
    Ok(source)
}

/// The path without symbolic links, and what is there.
fn resolve(option: &'static str, path: &Path) -> Result<(PathBuf, std::fs::FileType), ConfigError> {
    let failed = |source: std::io::Error| {
        let path = path.to_owned();
        if source.kind() != std::io::ErrorKind::NotFound {
            return ConfigError::Path {
                option,
                path,
                source,
            };
        }
        let (what, advice) = match option {
            "--image" => ("file", "check the path, or make an image with mkfs"),
            "--mount" => ("directory", "make it first"),
            _ => ("directory", "check the path, or make it first"),
        };
        ConfigError::Missing {
            option,
            path,
            what,
            advice,
        }
    };
    let resolved = path.canonicalize().map_err(failed)?;
    let kind = resolved.metadata().map_err(failed)?.file_type();
    Ok((resolved, kind))
}

fn endpoints(args: &Args) -> Result<Vec<Endpoint>, ConfigError> {
    let mut endpoints: Vec<Endpoint> = Vec::new();
    let mut add = |endpoint: Endpoint, path: &Path| {
        if endpoints.contains(&endpoint) {
            return Err(ConfigError::Duplicate {
                path: path.to_owned(),
            });
        }
        endpoints.push(endpoint);
        Ok(())
    };
    for path in &args.socket_path {
        add(Endpoint::Socket(socket_path("--socket-path", path)?), path)?;
    }
    for &fd in &args.fd {
        // 0 to 2 are the standard streams; the rest is checked when the descriptor is taken over.
        if fd < 3 || !Path::new("/proc/self/fd").join(fd.to_string()).exists() {
            return Err(ConfigError::BadFd { fd });
        }
        add(Endpoint::Fd(fd), Path::new(&fd.to_string()))?;
    }
    for path in &args.mount {
        let (resolved, kind) = resolve("--mount", path)?;
        if !kind.is_dir() {
            return Err(ConfigError::NotDirectory {
                option: "--mount",
                path: resolved,
            });
        }
        add(Endpoint::Mount(resolved), path)?;
    }
    if endpoints.is_empty() {
        return Err(ConfigError::NoEndpoint);
    }
    if args.socket_group.is_some() && args.socket_path.is_empty() {
        return Err(ConfigError::Needs {
            option: "--socket-group".into(),
            needs: "--socket-path",
        });
    }
    Ok(endpoints)
}

/// Makes the path of a socket absolute: the sandbox changes the working directory.
fn socket_path(option: &'static str, path: &Path) -> Result<PathBuf, ConfigError> {
    let failed = |source| ConfigError::Path {
        option,
        path: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(failed)?;
    if absolute.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(ConfigError::SocketPathTooLong { path: absolute });
    }
    Ok(absolute)
}

fn control_socket(path: Option<PathBuf>) -> Result<ControlSocket, ConfigError> {
    match path {
        None => Ok(ControlSocket::Default),
        Some(path) if path == Path::new("none") => Ok(ControlSocket::None),
        Some(path) => Ok(ControlSocket::Path(socket_path("--control-socket", &path)?)),
    }
}

fn shared_dir_options(
    args: &Args,
    source: &Source,
    has_mount: bool,
) -> Result<SharedDirOptions, ConfigError> {
    let given = [
        ("--xattr", args.xattr),
        ("--posix-acl", args.posix_acl),
        ("--security-label", args.security_label),
        ("--announce-submounts", args.announce_submounts),
        ("--allow-direct-io", args.allow_direct_io),
        ("--preserve-noatime", args.preserve_noatime),
        ("--no-killpriv-v2", args.no_killpriv_v2),
        (
            "--sandbox",
            args.sandbox
                .is_some_and(|sandbox| sandbox != SandboxArg::None),
        ),
        ("--modcaps", args.modcaps.is_some()),
    ];
    if let (Source::Image(_), Some(&(option, _))) = (source, given.iter().find(|given| given.1)) {
        return Err(ConfigError::SharedDirOnly { option });
    }
    let is_root = rustix::process::geteuid().is_root();
    let sandbox = match args.sandbox {
        // A mount of this host is taken down by its path, which a sandbox cannot see.
        Some(SandboxArg::Namespace | SandboxArg::Chroot) if has_mount => {
            return Err(ConfigError::Conflict {
                option: "--sandbox",
                other: "--mount",
            });
        }
        Some(SandboxArg::Namespace | SandboxArg::Chroot) if !is_root => {
            return Err(ConfigError::Unsupported {
                option: "--sandbox for users other than root".into(),
                hint: "; use --sandbox none",
            });
        }
        Some(SandboxArg::Namespace) => Sandbox::Namespace,
        Some(SandboxArg::Chroot) => Sandbox::Chroot,
        None if matches!(source, Source::SharedDir(_)) && is_root && !has_mount => {
            Sandbox::Namespace
        }
        Some(SandboxArg::None) | None => Sandbox::None,
    };
    let (keep_capabilities, drop_capabilities) =
        crate::sandbox::parse_modcaps(args.modcaps.as_deref().unwrap_or_default())?;
    Ok(SharedDirOptions {
        xattr: args.xattr || args.posix_acl || args.security_label,
        posix_acl: args.posix_acl,
        security_label: args.security_label,
        announce_submounts: args.announce_submounts,
        allow_direct_io: args.allow_direct_io,
        preserve_noatime: args.preserve_noatime,
        killpriv_v2: !args.no_killpriv_v2,
        sandbox,
        keep_capabilities,
        drop_capabilities,
    })
}

/// Id of a group given by name or number; the names are those of /etc/group.
fn group_id(name: &str) -> Result<u32, ConfigError> {
    if let Ok(id) = name.parse() {
        return Ok(id);
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    groups
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.first() == Some(&name))
        .and_then(|fields| fields.get(2)?.parse().ok())
        .ok_or_else(|| ConfigError::NoGroup {
            name: name.to_owned(),
        })
}

#[cfg(test)]
mod tests;
