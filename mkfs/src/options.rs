//! What may be asked of mkfs. Everything has a default that depends on the size.

use crate::error::{Error, Result};
use crate::features::{Features, parse_features};
use crate::size::parse_size;

/// What the device holds before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Content {
    /// Anything: what must be zero is written.
    #[default]
    Unknown,
    /// Zeros everywhere, as in a file just made: nothing needs to be zeroed.
    Zeros,
}

/// What Linux does when it finds an error in the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ErrorsBehavior {
    /// Go on.
    #[default]
    Continue = 1,
    /// Take no more changes.
    RemountReadOnly = 2,
    /// Stop the machine.
    Panic = 3,
}

/// How the size of the volume decides the defaults (`-T`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// Below 3 MiB.
    Floppy,
    /// Below 512 MiB.
    Small,
    /// What lies between.
    Default,
    /// From 4 TiB.
    Big,
    /// From 16 TiB.
    Huge,
}

/// The options of mkfs. `Options::default()` is what `mkfs disk.img` uses.
#[derive(Clone, Debug)]
pub struct Options {
    /// Size of the file system in bytes; `None` takes the whole device.
    pub size_bytes: Option<u64>,
    /// `-T`.
    pub usage: Option<Usage>,
    /// `-b`, in bytes.
    pub block_size: Option<u32>,
    /// `-I`, in bytes.
    pub inode_size: Option<u32>,
    /// `-i`: bytes for which there is an inode.
    pub inode_ratio: Option<u64>,
    /// `-N`.
    pub inodes_count: Option<u64>,
    /// `-g`.
    pub blocks_per_group: Option<u32>,
    /// `-G`.
    pub groups_per_flex: Option<u32>,
    /// `-m`, in percent.
    pub reserved_percent: f64,
    /// `-L`, at most 16 bytes.
    pub label: String,
    /// `-M`, at most 63 bytes.
    pub last_mounted: String,
    /// `-U`; `None` makes one up.
    pub uuid: Option<[u8; 16]>,
    /// `-E hash_seed`; `None` makes one up.
    pub hash_seed: Option<[u8; 16]>,
    /// `-e`.
    pub errors: ErrorsBehavior,
    /// `-O`.
    pub features: Features,
    /// `-J size`, in bytes.
    pub journal_bytes: Option<u64>,
    /// `-E orphan_file_size`, in bytes.
    pub orphan_file_bytes: Option<u64>,
    /// `-E root_owner`.
    pub root_owner: (u32, u32),
    /// `-E stride`, in blocks.
    pub stride: u16,
    /// `-E stripe_width`, in blocks.
    pub stripe_width: u32,
    /// `-E lazy_itable_init`: inode tables that are not known to be zero are left to the kernel.
    pub lazy_inode_tables: bool,
    /// `-E discard`.
    pub discard: bool,
    /// What the device holds before.
    pub content: Content,
    /// Time of creation in seconds; `None` is now.
    pub time: Option<i64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            size_bytes: None,
            usage: None,
            block_size: None,
            inode_size: None,
            inode_ratio: None,
            inodes_count: None,
            blocks_per_group: None,
            groups_per_flex: None,
            reserved_percent: 5.0,
            label: String::new(),
            last_mounted: String::new(),
            uuid: None,
            hash_seed: None,
            errors: ErrorsBehavior::default(),
            features: Features::default(),
            journal_bytes: None,
            orphan_file_bytes: None,
            root_owner: (0, 0),
            stride: 0,
            stripe_width: 0,
            lazy_inode_tables: false,
            discard: true,
            content: Content::default(),
            time: None,
        }
    }
}

fn number<T: std::str::FromStr>(what: &'static str, value: &str) -> Result<T> {
    value
        .parse()
        .map_err(|_| Error::value(what, value, "it must be a number"))
}

fn flag(what: &'static str, value: Option<&str>) -> Result<bool> {
    match value {
        None | Some("1") => Ok(true),
        Some("0") => Ok(false),
        Some(other) => Err(Error::value(what, other, "it must be 0 or 1")),
    }
}

/// Reads a uuid as people write it.
///
/// # Errors
/// [`Error::Value`].
pub fn parse_uuid(what: &'static str, text: &str) -> Result<[u8; 16]> {
    let uuid = uuid::Uuid::try_parse(text);
    uuid.map(uuid::Uuid::into_bytes).map_err(|_| {
        Error::value(
            what,
            text,
            "it must be a uuid, or one of random, time and clear",
        )
    })
}

impl Options {
    /// Applies the list after `-O`: names separated by commas, `^` takes one away, `none` all.
    ///
    /// # Errors
    /// [`Error::Feature`] for a feature mkfs does not write.
    pub fn apply_features(&mut self, list: &str) -> Result<()> {
        self.features = parse_features(self.features, list)?;
        Ok(())
    }

    /// Applies the list after `-E`: `name` or `name=value`, separated by commas.
    ///
    /// # Errors
    /// [`Error::ExtendedOption`] and [`Error::Value`].
    pub fn apply_extended(&mut self, list: &str) -> Result<()> {
        for item in list.split(',').filter(|item| !item.is_empty()) {
            let (name, value) = match item.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (item, None),
            };
            self.apply_extended_item(name, value)?;
        }
        Ok(())
    }

    fn apply_extended_item(&mut self, name: &str, value: Option<&str>) -> Result<()> {
        let text = value.unwrap_or("");
        match name {
            "stride" => self.stride = number("stride", text)?,
            "stripe_width" | "stripe-width" => self.stripe_width = number("stripe_width", text)?,
            "lazy_itable_init" => self.lazy_inode_tables = flag("lazy_itable_init", value)?,
            // The journal's blocks are left alone where they are known to be zero, and are zeroed
            // cheaply elsewhere: there is nothing to be lazy about.
            "lazy_journal_init" => drop(flag("lazy_journal_init", value)?),
            "assume_storage_prezeroed" => {
                if flag("assume_storage_prezeroed", value)? {
                    self.content = Content::Zeros;
                }
            }
            "discard" => self.discard = true,
            "nodiscard" => self.discard = false,
            "hash_seed" => self.hash_seed = Some(parse_uuid("hash_seed", text)?),
            "orphan_file_size" => self.orphan_file_bytes = Some(parse_size(text, 1)?),
            "root_owner" => self.root_owner = parse_owner(value)?,
            _ => {
                let name = name.to_string();
                return Err(Error::ExtendedOption { name });
            }
        }
        Ok(())
    }

    /// Applies the list after `-J`.
    ///
    /// # Errors
    /// [`Error::ExtendedOption`] and [`Error::Value`].
    pub fn apply_journal(&mut self, list: &str) -> Result<()> {
        for item in list.split(',').filter(|item| !item.is_empty()) {
            match item.split_once('=') {
                Some(("size", value)) => self.journal_bytes = Some(parse_size(value, 1 << 20)?),
                _ => {
                    let name = item.to_string();
                    return Err(Error::ExtendedOption { name });
                }
            }
        }
        Ok(())
    }
}

/// `uid:gid`; without a value, who runs mkfs.
fn parse_owner(value: Option<&str>) -> Result<(u32, u32)> {
    let Some(value) = value else {
        let uid = rustix::process::geteuid().as_raw();
        return Ok((uid, rustix::process::getegid().as_raw()));
    };
    let error = || Error::value("root_owner", value, "it must be uid:gid");
    let (uid, gid) = value.split_once(':').ok_or_else(error)?;
    Ok((
        uid.parse().map_err(|_| error())?,
        gid.parse().map_err(|_| error())?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extended_options() {
        let mut options = Options::default();
        options
            .apply_extended("stride=4,stripe_width=8,root_owner=7:9,nodiscard")
            .unwrap();
        assert_eq!((options.stride, options.stripe_width), (4, 8));
        assert_eq!((options.root_owner, options.discard), ((7, 9), false));
        options
            .apply_extended("lazy_itable_init=1,lazy_journal_init")
            .unwrap();
        assert!(options.lazy_inode_tables);
        for bad in [
            "resize=1T",
            "stride",
            "stride=x",
            "root_owner=7",
            "lazy_itable_init=2",
        ] {
            assert!(options.apply_extended(bad).is_err(), "{bad}");
        }
        options.apply_journal("size=8").unwrap();
        assert_eq!(options.journal_bytes, Some(8 << 20));
        assert!(options.apply_journal("device=/dev/sda").is_err());
    }
}
