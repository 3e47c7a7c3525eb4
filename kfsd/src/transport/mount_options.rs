//! The `-o` options of a mount: those of mount(8) and those of FUSE.

use rustix::mount::MountFlags;
use thiserror::Error;

/// Why an option was refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionError {
    /// Not an option we know.
    #[error("unknown mount option '{0}'")]
    Unknown(String),
    /// Known, but without the value it needs, or with one it does not take.
    #[error("mount option '{0}': {1}")]
    Value(String, &'static str),
}

/// How to mount. Later options win over earlier ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    flags: MountFlags,
    allow_other: Option<bool>,
    default_permissions: bool,
    source: Option<String>,
    subtype: String,
    max_read: Option<u32>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            flags: MountFlags::empty(),
            allow_other: None,
            default_permissions: true,
            source: None,
            subtype: "kfs".into(),
            max_read: None,
        }
    }
}

/// The options that set or clear flags of mount(2): name, flags to set, flags to clear.
const FLAGS: &[(&str, MountFlags, MountFlags)] = {
    use MountFlags as F;
    const NONE: MountFlags = MountFlags::empty();
    const ATIME: MountFlags = F::NOATIME.union(F::RELATIME).union(F::STRICTATIME);
    &[
        ("rw", NONE, F::RDONLY),
        ("ro", F::RDONLY, NONE),
        ("suid", NONE, F::NOSUID),
        ("nosuid", F::NOSUID, NONE),
        ("dev", NONE, F::NODEV),
        ("nodev", F::NODEV, NONE),
        ("exec", NONE, F::NOEXEC),
        ("noexec", F::NOEXEC, NONE),
        ("async", NONE, F::SYNCHRONOUS),
        ("sync", F::SYNCHRONOUS, NONE),
        ("dirsync", F::DIRSYNC, NONE),
        ("atime", NONE, F::NOATIME),
        ("noatime", F::NOATIME, ATIME),
        ("diratime", NONE, F::NODIRATIME),
        ("nodiratime", F::NODIRATIME, NONE),
        ("relatime", F::RELATIME, ATIME),
        ("norelatime", NONE, F::RELATIME),
        ("strictatime", F::STRICTATIME, ATIME),
        ("nostrictatime", NONE, F::STRICTATIME),
        ("lazytime", F::LAZYTIME, NONE),
        ("nolazytime", NONE, F::LAZYTIME),
        ("silent", F::SILENT, NONE),
        ("loud", NONE, F::SILENT),
        ("symfollow", NONE, F::NOSYMFOLLOW),
        ("nosymfollow", F::NOSYMFOLLOW, NONE),
    ]
};

/// What fstab may say to mount(8) and others, and means nothing to a file system.
const IGNORED: &[&str] = &["auto", "noauto", "nofail", "_netdev", "nouser"];

impl MountOptions {
    /// Adds a comma separated list, as `-o` takes it. `\,` is a comma in a value.
    pub fn parse(&mut self, list: &str) -> Result<(), OptionError> {
        for option in split(list) {
            self.set(&option)?;
        }
        Ok(())
    }

    fn set(&mut self, option: &str) -> Result<(), OptionError> {
        let (name, value) = match option.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (option, None),
        };
        let wants = |what| OptionError::Value(name.into(), what);
        match (name, value) {
            ("fsname", Some(value)) if !value.is_empty() => self.source = Some(value.into()),
            ("subtype", Some(value)) if is_subtype(value) => self.subtype = value.into(),
            ("max_read", Some(value)) => {
                let parsed = value.parse().ok().filter(|&bytes| bytes >= 4096);
                self.max_read = Some(parsed.ok_or(wants("a number from 4096 on is needed"))?);
            }
            ("fsname" | "max_read", _) => return Err(wants("a value is needed")),
            ("subtype", _) => {
                return Err(wants("a word of letters, digits, '-' and '_' is needed"));
            }
            (name, _) if name.starts_with("x-") || IGNORED.contains(&name) => {}
            ("defaults", None) => self.flags = MountFlags::empty(),
            ("allow_other", None) => self.allow_other = Some(true),
            ("noallow_other", None) => self.allow_other = Some(false),
            ("default_permissions", None) => self.default_permissions = true,
            ("nodefault_permissions", None) => self.default_permissions = false,
            (name, value) => {
                let known = FLAGS.iter().find(|(flag, _, _)| *flag == name);
                let (_, set, clear) = known.ok_or_else(|| OptionError::Unknown(option.into()))?;
                if value.is_some() {
                    return Err(wants("it takes no value"));
                }
                self.flags = (self.flags - *clear) | *set;
            }
        }
        Ok(())
    }

    /// Whether the mount is read-only.
    pub fn is_read_only(&self) -> bool {
        self.flags.contains(MountFlags::RDONLY)
    }

    /// Makes the mount read-only.
    pub fn set_read_only(&mut self) {
        self.flags |= MountFlags::RDONLY;
    }

    /// The flags of mount(2).
    pub(crate) fn flags(&self) -> MountFlags {
        self.flags
    }

    /// What /proc/mounts shows as source, where an option says so.
    pub(crate) fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    /// The type, as /proc/mounts shows it.
    pub(crate) fn file_system_type(&self) -> String {
        format!("fuse.{}", self.subtype)
    }

    /// The part of the options that FUSE itself takes. Root's mounts are for everybody.
    pub(crate) fn fuse_options(&self, is_root: bool) -> String {
        let mut options = String::new();
        if self.allow_other.unwrap_or(is_root) {
            options += ",allow_other";
        }
        if self.default_permissions {
            options += ",default_permissions";
        }
        if let Some(bytes) = self.max_read {
            options += &format!(",max_read={bytes}");
        }
        options
    }

    /// All options, as fusermount3 takes them.
    pub(crate) fn fusermount_options(&self, source: &str) -> String {
        let mut options = String::from(if self.is_read_only() { "ro" } else { "rw" });
        for (name, set, _) in FLAGS {
            // fusermount3 knows only these; nosuid and nodev it adds itself.
            let passed = matches!(
                *name,
                "nosuid" | "nodev" | "noexec" | "sync" | "dirsync" | "noatime"
            );
            if passed && self.flags.contains(*set) {
                options = options + "," + name;
            }
        }
        options += &self.fuse_options(false);
        let source = source.replace('\\', "\\\\").replace(',', "\\,");
        options + ",fsname=" + &source + ",subtype=" + &self.subtype
    }
}

fn is_subtype(value: &str) -> bool {
    let fits = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    !value.is_empty() && value.chars().all(fits)
}

fn split(list: &str) -> Vec<String> {
    let (mut options, mut current) = (Vec::new(), String::new());
    let mut chars = list.chars();
    while let Some(c) = chars.next() {
        match c {
            ',' => options.push(std::mem::take(&mut current)),
            '\\' => current.extend(chars.next()),
            c => current.push(c),
        }
    }
    options.push(current);
    options.retain(|option| !option.is_empty());
    options
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(list: &str) -> Result<MountOptions, OptionError> {
        let mut options = MountOptions::default();
        options.parse(list).map(|()| options)
    }

    #[test]
    fn later_options_win() {
        let options = parse("ro,rw,nosuid,nodev,noexec,exec,noatime,strictatime").unwrap();
        let expected = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::STRICTATIME;
        assert_eq!(options.flags(), expected);
        assert!(parse("rw,ro").unwrap().is_read_only());
        assert_eq!(parse("nosuid,suid,dev").unwrap(), MountOptions::default());
        assert_eq!(parse("").unwrap(), MountOptions::default());
    }

    #[test]
    fn fuse_options_are_passed_on() {
        let root = parse("max_read=65536,x-systemd.automount,_netdev").unwrap();
        let expected = ",allow_other,default_permissions,max_read=65536";
        assert_eq!(root.fuse_options(true), expected);
        assert_eq!(
            MountOptions::default().fuse_options(false),
            ",default_permissions"
        );
        let named = parse("fsname=a\\,b,subtype=my-fs,allow_other,nosuid,relatime").unwrap();
        assert_eq!(named.source(), Some("a,b"));
        assert_eq!(named.file_system_type(), "fuse.my-fs");
        let expected = "rw,nosuid,allow_other,default_permissions,fsname=a\\,b,subtype=my-fs";
        assert_eq!(named.fusermount_options("a,b"), expected);
    }

    #[test]
    fn what_is_not_known_is_named() {
        let error = parse("rw,quux=7").unwrap_err();
        assert_eq!(error.to_string(), "unknown mount option 'quux=7'");
        for bad in [
            "fsname",
            "fsname=",
            "subtype=a/b",
            "subtype=",
            "max_read=x",
            "max_read=1",
        ] {
            assert!(matches!(parse(bad), Err(OptionError::Value(..))), "{bad}");
        }
        let error = parse("ro=1").unwrap_err();
        assert_eq!(error.to_string(), "mount option 'ro': it takes no value");
    }
}
