//! The mkfs command: opens or makes the image, refuses what must not be overwritten,
//! formats and fills.
#![forbid(unsafe_code)]

mod args;

use anyhow::{Context, Result, bail};
use args::Args;
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use kfs_disk::{BlockDevice, Bytes, Count, FileDevice};
use mkfs::{Content, Options, Progress, Report};
use std::io::{ErrorKind, IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

/// Exit status for a wrong command line, as clap has it.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    env_logger::init();
    let args = Args::parse();
    let failed = |error: &anyhow::Error| eprintln!("mkfs: {error:#}");
    let options = match args.options() {
        Ok(options) => options,
        Err(error) => {
            failed(&error);
            return ExitCode::from(EXIT_USAGE);
        }
    };
    match run(&args, options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            failed(&error);
            match is_usage(&error, &args) {
                true => ExitCode::from(EXIT_USAGE),
                false => ExitCode::FAILURE,
            }
        }
    }
}

/// Whether what the command line asks for can never be.
fn is_usage(error: &anyhow::Error, args: &Args) -> bool {
    match error.downcast_ref::<mkfs::Error>() {
        // The size is the device's own, unless it was given.
        Some(mkfs::Error::TooSmall { .. } | mkfs::Error::TooManyBlocks { .. }) => args.sets_size(),
        error => error.is_some_and(mkfs::Error::is_usage),
    }
}

fn run(args: &Args, mut options: Options) -> Result<()> {
    let start = Instant::now();
    if let Some(source) = &args.source {
        // Before anything is overwritten.
        let opened = std::fs::read_dir(source);
        opened.with_context(|| format!("-d {}", source.display()))?;
    }
    let (device, is_new) = match open(args, &mut options)? {
        Target::Device(device, is_new) => (device, is_new),
        Target::Absent(size) => return say_plan(args, &options, size, 512),
    };
    if args.dry_run {
        return say_plan(args, &options, device.size_bytes(), device.sector_size());
    }
    let result = make(args, &options, Arc::new(device));
    if result.is_err() && is_new {
        // A file that holds nothing useful would only be in the way of the next try.
        let _ = std::fs::remove_file(&args.device);
    }
    let (report, filled) = result?;
    let mut text = format!("Created file system with {report}");
    if let Some(filled) = filled {
        let (files, size) = (Count(filled.files, "file"), Bytes(filled.bytes));
        text += &format!("Filled with {files} and {size} of data\n");
    }
    if args.verbose {
        text += &format!(
            "Features: {}\nWritten: {} in {} ms\n",
            report.features.join(" "),
            Bytes(report.bytes_written),
            start.elapsed().as_millis()
        );
    }
    say(args, &text)
}

/// Formats, and fills if asked to.
fn make(
    args: &Args,
    options: &Options,
    device: Arc<FileDevice>,
) -> Result<(Report, Option<Progress>)> {
    let report = mkfs::format(&*device, options);
    let report = report.with_context(|| format!("{}", args.device.display()))?;
    let Some(source) = &args.source else {
        return Ok((report, None));
    };
    let bar = progress_bar(args, source)?;
    let mut show = |progress: Progress| {
        bar.set_position(progress.bytes);
        bar.set_message(Count(progress.files, "file").to_string());
    };
    let filled = mkfs::populate(device, source, &mut show)?;
    bar.finish_and_clear();
    Ok((report, Some(filled)))
}

/// A bar on standard error; nothing where that is no terminal.
fn progress_bar(args: &Args, source: &Path) -> Result<ProgressBar> {
    if args.quiet || !std::io::stderr().is_terminal() {
        return Ok(ProgressBar::hidden());
    }
    let total = mkfs::measure(source)?;
    let template = "{bar:30} {bytes}/{total_bytes} {binary_bytes_per_sec} {msg}";
    let style = ProgressStyle::with_template(template).context("template of the bar")?;
    Ok(ProgressBar::new(total.bytes).with_style(style))
}

fn say(args: &Args, text: &str) -> Result<()> {
    if args.quiet {
        return Ok(());
    }
    match std::io::stdout().write_all(text.as_bytes()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        result => result.context("standard output"),
    }
}

fn say_plan(args: &Args, options: &Options, size: u64, sector_size: u32) -> Result<()> {
    let report = mkfs::dry_run(options, size, sector_size)?;
    say(args, &format!("Would create file system with {report}"))
}

/// What the file system is to be made on.
enum Target {
    /// A device, and whether it was made just now.
    Device(FileDevice, bool),
    /// A file that is not there and, in a dry run, is not made: only its size.
    Absent(u64),
}

fn open(args: &Args, options: &mut Options) -> Result<Target> {
    let path = &args.device;
    if !path.exists() {
        let Some(size) = options.size_bytes else {
            bail!(
                "{} does not exist; give a size to create it, such as 10G",
                path.display()
            );
        };
        // Bad options must not leave an empty file behind.
        mkfs::dry_run(options, size, 512).with_context(|| format!("{}", path.display()))?;
        if args.dry_run {
            return Ok(Target::Absent(size));
        }
        options.content = Content::Zeros;
        return Ok(Target::Device(FileDevice::create(path, size)?, true));
    }
    let mut device = if args.dry_run {
        FileDevice::open_read_only(path)?
    } else {
        FileDevice::open(path)?
    };
    refuse_used(&device, path, args.force || args.dry_run)?;
    let size = device.size_bytes();
    let wanted = options.size_bytes.unwrap_or(size);
    if device.is_block_device() {
        // The tables of a large disk would take minutes; Linux zeroes them after the first mount.
        options.lazy_inode_tables |= !args.sets_lazy_inode_tables();
    } else if wanted > size {
        if args.dry_run {
            return Ok(Target::Absent(wanted));
        }
        mkfs::dry_run(options, wanted, 512).with_context(|| format!("{}", path.display()))?;
        device
            .resize(wanted)
            .with_context(|| format!("making {} larger", path.display()))?;
    }
    Ok(Target::Device(device, false))
}

/// Refuses to overwrite what is recognised.
fn refuse_used(device: &FileDevice, path: &Path, force: bool) -> Result<()> {
    let found = mkfs::probe(device).with_context(|| format!("reading {}", path.display()))?;
    match found {
        Some(what) if !force => bail!("{} holds {what}; use -F to overwrite it", path.display()),
        _ => Ok(()),
    }
}
