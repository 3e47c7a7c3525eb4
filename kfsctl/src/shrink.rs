//! `kfsctl resize` to a smaller size, on an image that nobody serves.

use crate::bar::Bar;
use crate::resize::{Size, stopped};
use crate::target::Executor;
use anyhow::{Context, bail, ensure};
use kfs::{BlockNr, MountOptions, ShrinkPhase, Shrunk};
use kfs_disk::{BlockDevice, FileDevice};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The image, if the size that is wanted is less than that of the volume on it, or the volume has it and the
/// file is still longer: shrinking was interrupted.
///
/// # Errors
/// When the smallest size is wanted of a volume that is in use.
pub(crate) fn wanted(executor: &Executor, size: Size) -> anyhow::Result<Option<Arc<FileDevice>>> {
    let Executor::Image { fs, device } = executor else {
        ensure!(
            size != Size::Smallest,
            "a volume that a kfsd serves cannot be made smaller: stop the kfsd first"
        );
        return Ok(None);
    };
    let geometry = &fs.volume().geometry;
    let bytes = geometry.offset_of(BlockNr(geometry.blocks_count()));
    let is_smaller = match size {
        Size::Smallest => true,
        Size::Bytes(wanted) => {
            let is_cut =
                device.size_bytes() > wanted && kfs::shrunk_size(geometry, wanted) == bytes;
            wanted < bytes || is_cut
        }
        Size::Added(_) | Size::Largest => false,
    };
    Ok(is_smaller.then(|| Arc::clone(device)))
}

/// Makes the volume smaller, and the image file with it. Returns the sizes before and after.
pub(crate) fn run(image: Arc<FileDevice>, size: Size, bar: &mut Bar) -> anyhow::Result<(u64, u64)> {
    let Shrunk {
        before_bytes,
        size_bytes,
        is_complete,
        ..
    } = match size {
        Size::Bytes(bytes) => shrink(&image, bytes, bar)?,
        _ => shrink_to_least(&image, bar)?,
    };
    if !is_complete {
        return Err(kfs::Error::Interrupted)
            .with_context(|| stopped(size_bytes, "the same command goes on"));
    }
    shorten(image, size_bytes)?;
    Ok((before_bytes, size_bytes))
}

fn shrink_to_least(image: &Arc<FileDevice>, bar: &mut Bar) -> kfs::Result<Shrunk> {
    let device: Arc<dyn BlockDevice> = Arc::<FileDevice>::clone(image);
    match shrink(image, kfs::minimum_size(&device)?, bar) {
        // It is about that size already, unless no size would do.
        Err(kfs::Error::TooSmall { .. } | kfs::Error::Shrink { .. }) => {
            let superblock = kfs::read_superblock(&*device)?;
            let geometry = kfs::layout::Geometry::try_from(&superblock)?;
            let bytes = geometry.offset_of(BlockNr(geometry.blocks_count()));
            shrink(image, bytes, bar)
        }
        shrunk => shrunk,
    }
}

fn shrink(image: &Arc<FileDevice>, bytes: u64, bar: &mut Bar) -> kfs::Result<Shrunk> {
    let device: Arc<dyn BlockDevice> = Arc::<FileDevice>::clone(image);
    let options = MountOptions {
        commit_interval: None,
        ..MountOptions::default()
    };
    kfs::shrink(&device, &options, bytes, &mut |progress| {
        let stage = match progress.phase {
            ShrinkPhase::Survey => "looking",
            ShrinkPhase::Move => "moving",
            ShrinkPhase::Renumber => "numbers",
            ShrinkPhase::Cut => "cutting",
        };
        match bar.step(stage, progress.done, progress.total) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })
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
