//! `kfsctl resize` to a smaller size, on an image that nobody serves.

use crate::resize::Size;
use crate::target::Executor;
use anyhow::{Context, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use kfs::{BlockNr, MountOptions, ShrinkPhase, ShrinkProgress, Shrunk};
use kfs_disk::{BlockDevice, FileDevice};
use signal_hook::consts::{SIGINT, SIGTERM};
use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The image, if the size that is wanted is less than that of the volume on it, or the volume has it and the
/// file is still longer: shrinking was interrupted.
pub(crate) fn wanted(executor: &Executor, size: Size) -> Option<Arc<FileDevice>> {
    let Executor::Image { fs, device } = executor else {
        return None;
    };
    let geometry = &fs.volume().geometry;
    let bytes = geometry.offset_of(BlockNr(geometry.blocks_count()));
    let is_absolute = !size.is_added && size.bytes > 0;
    let is_cut =
        device.size_bytes() > size.bytes && kfs::shrunk_size(geometry, size.bytes) == bytes;
    (is_absolute && (size.bytes < bytes || is_cut)).then(|| Arc::clone(device))
}

/// Makes the volume smaller, and the image file with it. Returns the sizes before and after.
pub(crate) fn run(image: Arc<FileDevice>, bytes: u64, as_json: bool) -> anyhow::Result<(u64, u64)> {
    let is_stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&is_stopped))
            .context("cannot wait for signals")?;
    }
    let shrunk = {
        let device: Arc<dyn BlockDevice> = Arc::<FileDevice>::clone(&image);
        let options = MountOptions {
            commit_interval: None,
            ..MountOptions::default()
        };
        let bars = Bars::new(as_json);
        kfs::shrink(&device, &options, bytes, &mut |progress| {
            bars.show(progress);
            match is_stopped.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        })?
    };
    let Shrunk {
        before_bytes,
        size_bytes,
        is_complete,
        ..
    } = shrunk;
    if !is_complete {
        bail!(
            "stopped: the volume is whole and has {}; the same command goes on",
            HumanBytes(size_bytes)
        );
    }
    shorten(image, size_bytes)?;
    Ok((before_bytes, size_bytes))
}

/// Makes the image file as long as the volume. A block device stays as it is.
fn shorten(image: Arc<FileDevice>, bytes: u64) -> anyhow::Result<()> {
    if image.is_block_device() || image.size_bytes() <= bytes {
        return Ok(());
    }
    let Some(mut image) = Arc::into_inner(image) else {
        bail!("the volume has its new size, but the image file is still in use");
    };
    image
        .resize(bytes)
        .context("the volume has its new size, but the image file cannot be made shorter")
}

/// A bar on a terminal, nothing elsewhere.
struct Bars(ProgressBar);

impl Bars {
    fn new(as_json: bool) -> Self {
        if as_json || !std::io::stderr().is_terminal() {
            return Self(ProgressBar::hidden());
        }
        let style = ProgressStyle::with_template("{msg:8} {wide_bar} {pos} of {len}  {eta:>4}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(ProgressBar::new(0).with_style(style))
    }

    fn show(&self, progress: ShrinkProgress) {
        self.0.set_message(match progress.phase {
            ShrinkPhase::Survey => "looking",
            ShrinkPhase::Move => "moving",
            ShrinkPhase::Renumber => "numbers",
            ShrinkPhase::Cut => "cutting",
        });
        self.0.set_length(progress.total);
        self.0.set_position(progress.done);
    }
}

impl Drop for Bars {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
