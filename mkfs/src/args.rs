//! The command line, with mke2fs's letters where they mean the same.

use anyhow::{Context, Result, bail};
use clap::{ArgAction, Parser, ValueEnum};
use mkfs::{ErrorsBehavior, Options, Usage, parse_size, parse_uuid};
use std::path::PathBuf;

/// Makes an ext4-compatible file system in an image file or on a block device.
#[derive(Debug, Parser)]
#[command(
    name = "mkfs",
    version,
    disable_help_flag = true,
    disable_version_flag = true
)]
pub(crate) struct Args {
    /// Image file, made when it is not there, or block device.
    pub(crate) device: PathBuf,
    /// Size, as in 1000M; a bare number counts blocks (KiB without -b). Default: what the device
    /// has.
    size: Option<String>,
    /// Block size in bytes: 1024, 2048 or 4096. Default: 4096, and 1024 below 512 MiB.
    #[arg(short = 'b', value_name = "BYTES")]
    block_size: Option<String>,
    /// Number of inodes.
    #[arg(short = 'N', value_name = "COUNT")]
    inodes_count: Option<u64>,
    /// One inode for so many bytes.
    #[arg(short = 'i', value_name = "BYTES")]
    inode_ratio: Option<String>,
    /// Size of an inode in bytes.
    #[arg(short = 'I', value_name = "BYTES")]
    inode_size: Option<u32>,
    /// Blocks in a group.
    #[arg(short = 'g', value_name = "BLOCKS")]
    blocks_per_group: Option<u32>,
    /// Groups whose metadata lies together.
    #[arg(short = 'G', value_name = "COUNT")]
    groups_per_flex: Option<u32>,
    /// Volume label, up to 16 bytes.
    #[arg(short = 'L', value_name = "LABEL", default_value = "")]
    label: String,
    /// Directory the volume is said to have been mounted on.
    #[arg(short = 'M', value_name = "DIR", default_value = "")]
    last_mounted: String,
    /// UUID of the volume, or random, time, or clear.
    #[arg(short = 'U', value_name = "UUID")]
    uuid: Option<String>,
    /// Blocks only root may take, in percent.
    #[arg(short = 'm', value_name = "PERCENT", default_value_t = 5.0)]
    reserved_percent: f64,
    /// Features to add, or with ^ to leave out, separated by commas; none leaves out all.
    #[arg(short = 'O', value_name = "FEATURES", action = ArgAction::Append)]
    features: Vec<String>,
    /// stride=N, stripe_width=N, root_owner[=UID:GID], hash_seed=UUID, orphan_file_size=SIZE,
    /// lazy_itable_init[=0|1], lazy_journal_init[=0|1], assume_storage_prezeroed[=0|1], discard,
    /// nodiscard; separated by commas.
    #[arg(short = 'E', value_name = "OPTIONS", action = ArgAction::Append)]
    extended: Vec<String>,
    /// size=MIB: size of the journal.
    #[arg(short = 'J', value_name = "OPTIONS", action = ArgAction::Append)]
    journal: Vec<String>,
    /// Make a journal, which is the default.
    #[arg(short = 'j')]
    with_journal: bool,
    /// Fill the file system with what is in this directory.
    #[arg(short = 'd', value_name = "DIR")]
    pub(crate) source: Option<PathBuf>,
    /// What Linux and kfsd do about errors in the file system.
    #[arg(short = 'e', value_name = "BEHAVIOR", value_enum, default_value_t = Errors::Continue)]
    errors: Errors,
    /// Usage, which decides the defaults that otherwise the size decides.
    #[arg(short = 'T', value_name = "USAGE", value_enum)]
    usage: Option<UsageName>,
    /// Type of the file system: ext4 is the only one.
    #[arg(short = 't', value_name = "TYPE", default_value = "ext4")]
    fs_type: String,
    /// Overwrite what is there.
    #[arg(short = 'F')]
    pub(crate) force: bool,
    /// Only say what would be made.
    #[arg(short = 'n')]
    pub(crate) dry_run: bool,
    /// Say nothing but errors.
    #[arg(short = 'q')]
    pub(crate) quiet: bool,
    /// Say more.
    #[arg(short = 'v')]
    pub(crate) verbose: bool,
    /// Print help.
    #[arg(short = 'h', long = "help", action = ArgAction::Help)]
    help: Option<bool>,
    /// Print version.
    #[arg(short = 'V', long = "version", action = ArgAction::Version)]
    version: Option<bool>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Errors {
    Continue,
    RemountRo,
    Panic,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum UsageName {
    Floppy,
    Small,
    Default,
    Big,
    Huge,
}

impl Args {
    /// The library's options.
    pub(crate) fn options(&self) -> Result<Options> {
        if self.fs_type != "ext4" {
            bail!("-t {}: only ext4 can be made", self.fs_type);
        }
        let mut options = Options {
            inodes_count: self.inodes_count,
            inode_size: self.inode_size,
            blocks_per_group: self.blocks_per_group,
            groups_per_flex: self.groups_per_flex,
            label: self.label.clone(),
            last_mounted: self.last_mounted.clone(),
            reserved_percent: self.reserved_percent,
            errors: match self.errors {
                Errors::Continue => ErrorsBehavior::Continue,
                Errors::RemountRo => ErrorsBehavior::RemountReadOnly,
                Errors::Panic => ErrorsBehavior::Panic,
            },
            usage: self.usage.map(|usage| match usage {
                UsageName::Floppy => Usage::Floppy,
                UsageName::Small => Usage::Small,
                UsageName::Default => Usage::Default,
                UsageName::Big => Usage::Big,
                UsageName::Huge => Usage::Huge,
            }),
            uuid: self.uuid.as_deref().map(read_uuid).transpose()?.flatten(),
            ..Options::default()
        };
        if let Some(size) = &self.block_size {
            let size = parse_size(size, 1).context("-b")?;
            options.block_size = Some(u32::try_from(size).context("-b: too large")?);
        }
        if let Some(ratio) = &self.inode_ratio {
            options.inode_ratio = Some(parse_size(ratio, 1).context("-i")?);
        }
        for list in &self.features {
            options.apply_features(list).context("-O")?;
        }
        for list in &self.extended {
            options.apply_extended(list).context("-E")?;
        }
        for list in &self.journal {
            options.apply_journal(list).context("-J")?;
        }
        if self.with_journal || options.journal_bytes.is_some() {
            options.apply_features("has_journal").context("-j")?;
        }
        // A bare number counts blocks, as in mke2fs: of the size given, else of 1 KiB.
        let unit = options.block_size.map_or(1024, u64::from);
        if let Some(size) = &self.size {
            options.size_bytes = Some(parse_size(size, unit).context("size")?);
        }
        Ok(options)
    }
}

impl Args {
    /// Whether the user gave a size.
    pub(crate) fn sets_size(&self) -> bool {
        self.size.is_some()
    }

    /// Whether the user decided about lazy inode tables.
    pub(crate) fn sets_lazy_inode_tables(&self) -> bool {
        self.extended
            .iter()
            .any(|list| list.contains("lazy_itable_init"))
    }
}

/// `None` asks for a random one.
fn read_uuid(text: &str) -> Result<Option<[u8; 16]>> {
    match text {
        "random" | "time" => Ok(None),
        "clear" | "null" => Ok(Some([0; 16])),
        _ => Ok(Some(parse_uuid("uuid", text)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &[&str]) -> Result<Options> {
        let line = ["mkfs"].iter().chain(line);
        Args::try_parse_from(line)?.options()
    }

    #[test]
    fn sizes_count_blocks() {
        let size = |line: &[&str]| options(line).unwrap().size_bytes;
        assert_eq!(size(&["a"]), None);
        assert_eq!(size(&["a", "100M"]), Some(100 << 20));
        assert_eq!(size(&["a", "100"]), Some(100 << 10));
        assert_eq!(size(&["-b", "4096", "a", "100"]), Some(100 << 12));
    }

    #[test]
    fn bad_lines_are_refused() {
        let bad: [&[&str]; 8] = [
            &[],
            &["-t", "ext2", "a"],
            &["-b", "x", "a"],
            &["a", "10Q"],
            &["-U", "1234", "a"],
            &["-O", "encrypt", "a"],
            &["-E", "nonsense", "a"],
            &["-Z", "a"],
        ];
        for line in bad {
            assert!(options(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn letters() {
        let line = [
            "-O",
            "^has_journal",
            "-J",
            "size=4",
            "-m",
            "1.5",
            "-U",
            "clear",
            "-e",
            "panic",
        ];
        let options = options(&[&line[..], &["a"]].concat()).unwrap();
        assert_eq!(options.journal_bytes, Some(4 << 20));
        assert_eq!(options.uuid, Some([0; 16]));
        assert_eq!(options.errors, ErrorsBehavior::Panic);
        assert!(
            options
                .features
                .compat
                .contains(kfs::layout::Compat::HAS_JOURNAL)
        );
    }
}
