//! `kfsctl resize` to a smaller size, on an image that nobody serves.

use crate::bar::Bar;
use crate::resize::{Size, stopped};
use crate::target::Executor;
use anyhow::{Context, bail};
use kfs::{BlockNr, MountOptions, ShrinkPhase, Shrunk};
use kfs_disk::{BlockDevice, Bytes, FileDevice};
use kfsctl::status::{Source, Status};
use kfsctl::{ErrorCode, Request, RequestError};
use std::ops::ControlFlow;
use std::sync::Arc;

/// The image, if the size that is wanted is less than that of the volume on it, or the volume has it and the
/// file is still longer: shrinking was interrupted.
///
/// # Errors
/// When the smallest size is wanted of a volume that is in use.
pub(crate) fn wanted(
    executor: &mut Executor,
    size: Size,
) -> anyhow::Result<Option<Arc<FileDevice>>> {
    let (fs, device) = match executor {
        Executor::Image { fs, device } => (fs, device),
        Executor::Daemon(_) if size != Size::Smallest => return Ok(None),
        Executor::Daemon(_) => return refuse_served(executor),
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

/// Only an idle image is made smaller; a host directory not even that.
fn refuse_served(executor: &mut Executor) -> anyhow::Result<Option<Arc<FileDevice>>> {
    let status: Status = serde_json::from_value(executor.request(&Request::Status {})?)
        .context("the answer cannot be read")?;
    match &status.volume.source {
        // The daemon says it itself.
        Source::SharedDir { .. } => Ok(None),
        Source::Image { path } => bail!(RequestError::new(
            ErrorCode::Failed,
            "a volume that a kfsd serves cannot be made smaller: stop the kfsd first",
            format!("then `kfsctl --image {} resize min`", path.display()),
        )),
    }
}

/// Makes the volume smaller, and the image file with it. Returns the sizes before and after.
pub(crate) fn run(image: Arc<FileDevice>, size: Size, bar: &mut Bar) -> anyhow::Result<(u64, u64)> {
    let Shrunk {
        before_bytes,
        size_bytes,
        is_complete,
        ..
    } = match size {
        Size::Bytes(bytes) => shrink(&image, bytes, bar).map_err(explain)?,
        _ => shrink_to_least(&image, bar)?,
    };
    if !is_complete {
        return Err(kfs::Error::Interrupted)
            .with_context(|| stopped(size_bytes, "the same command goes on"));
    }
    shorten(image, size_bytes)?;
    Ok((before_bytes, size_bytes))
}

/// A size that is too small is told in words, with one that would do.
fn explain(error: kfs::Error) -> anyhow::Error {
    let kfs::Error::TooSmall { minimum_bytes } = error else {
        return error.into();
    };
    let needed = Bytes(minimum_bytes);
    let size = minimum_bytes.div_ceil(1 << 20);
    anyhow::Error::from(RequestError::new(
        ErrorCode::Failed,
        format!("what is on the volume needs {needed}: it cannot be smaller than that"),
        format!("`resize {size}M` or `resize min`"),
    ))
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
