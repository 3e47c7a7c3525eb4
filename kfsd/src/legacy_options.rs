//! `-o`: options of mount(8) for `--mount`, and the options of the older virtiofsd, in one list.
//!
//! The two sets of names do not overlap, so a word says by itself which it is.

use crate::args::{CacheArg, ErrorsArg, LevelArg, SandboxArg};
use crate::config::ConfigError;
use clap::ValueEnum;
use std::path::PathBuf;
use std::time::Duration;

/// What `-o` said.
#[derive(Debug, Default)]
pub(crate) struct LegacyOptions {
    pub(crate) source: Option<PathBuf>,
    pub(crate) cache: Option<CacheArg>,
    pub(crate) sandbox: Option<SandboxArg>,
    pub(crate) log_level: Option<LevelArg>,
    pub(crate) xattr: Option<bool>,
    pub(crate) posix_acl: Option<bool>,
    pub(crate) writeback: Option<bool>,
    pub(crate) errors: Option<ErrorsArg>,
    pub(crate) readdirplus: Option<bool>,
    pub(crate) announce_submounts: Option<bool>,
    pub(crate) allow_direct_io: Option<bool>,
    pub(crate) killpriv_v2: Option<bool>,
    pub(crate) modcaps: Option<String>,
    pub(crate) timeout: Option<Duration>,
    /// What is for mount(8).
    pub(crate) mount_options: Vec<String>,
}

/// Reads all `-o` arguments, each a list separated by commas.
pub(crate) fn parse(lists: &[String]) -> Result<LegacyOptions, ConfigError> {
    let mut options = LegacyOptions::default();
    for word in lists
        .iter()
        .flat_map(|list| split(list))
        .filter(|word| !word.is_empty())
    {
        match word.split_once('=') {
            Some((name, value)) => with_value(&mut options, word, name, value)?,
            None => flag(&mut options, word)?,
        }
    }
    Ok(options)
}

/// Splits at commas, but not at those behind a backslash, which are part of a value.
fn split(list: &str) -> impl Iterator<Item = &str> {
    let mut escaped = false;
    list.split(move |c| {
        let splits = c == ',' && !escaped;
        escaped = c == '\\' && !escaped;
        splits
    })
}

fn with_value(
    options: &mut LegacyOptions,
    word: &str,
    name: &str,
    value: &str,
) -> Result<(), ConfigError> {
    match name {
        "source" => options.source = Some(PathBuf::from(value)),
        "cache" => options.cache = Some(choice(name, value, "auto, always, never or metadata")?),
        "sandbox" => options.sandbox = Some(choice(name, value, "namespace, chroot or none")?),
        "log_level" => options.log_level = Some(choice(name, value, "a log level")?),
        "modcaps" => options.modcaps = Some(value.to_owned()),
        "timeout" => {
            let timeout = value
                .parse()
                .ok()
                .and_then(|v| Duration::try_from_secs_f64(v).ok());
            options.timeout = Some(timeout.ok_or_else(|| ConfigError::Value {
                option: "-o timeout".into(),
                value: value.into(),
                expected: "a number of seconds",
            })?);
        }
        "errors" => {
            let expected = "continue or remount-ro";
            options.errors = Some(choice(name, value, expected)?);
        }
        "xattrmap" => {
            return Err(ConfigError::Unsupported {
                option: "-o xattrmap".into(),
                hint: "",
            });
        }
        _ => options.mount_options.push(word.to_owned()),
    }
    Ok(())
}

fn flag(options: &mut LegacyOptions, word: &str) -> Result<(), ConfigError> {
    let (name, on) = match word.strip_prefix("no_") {
        Some(name) => (name, false),
        None => (word, true),
    };
    let target = match name {
        "xattr" => &mut options.xattr,
        "posix_acl" => &mut options.posix_acl,
        "writeback" => &mut options.writeback,
        "readdirplus" => &mut options.readdirplus,
        "announce_submounts" => &mut options.announce_submounts,
        "allow_direct_io" => &mut options.allow_direct_io,
        "killpriv_v2" => &mut options.killpriv_v2,
        // Locks are kept by each guest for itself.
        "flock" | "posix_lock" if !on => return Ok(()),
        "flock" | "posix_lock" => {
            return Err(ConfigError::Unsupported {
                option: format!("-o {word}"),
                hint: "; locks are local to each guest",
            });
        }
        "debug" if on => {
            options.log_level = Some(LevelArg::Debug);
            return Ok(());
        }
        _ => {
            options.mount_options.push(word.to_owned());
            return Ok(());
        }
    };
    *target = Some(on);
    Ok(())
}

fn choice<T: ValueEnum>(name: &str, value: &str, expected: &'static str) -> Result<T, ConfigError> {
    T::from_str(value, false).map_err(|_| ConfigError::Value {
        option: format!("-o {name}"),
        value: value.into(),
        expected,
    })
}
