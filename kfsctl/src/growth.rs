//! Growing a volume, a slice of the work a request.

use crate::execute::failed;
use crate::protocol::{ErrorCode, RequestError};
use kfs::{BlockNr, Error, Filesystem};
use kfs_disk::DeviceTooShort;
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long one request works.
const SLICE: Duration = Duration::from_secs(1);

pub(crate) fn grow(
    fs: &Arc<Filesystem>,
    size_bytes: u64,
    is_added: bool,
    cursor: u32,
) -> Result<Value, RequestError> {
    let geometry = &fs.volume().geometry;
    let before = geometry.offset_of(BlockNr(geometry.blocks_count()));
    let size = match is_added {
        true => before.checked_add(size_bytes),
        false => Some(size_bytes),
    };
    let size = size.ok_or_else(|| {
        RequestError::new(
            ErrorCode::InvalidArgument,
            "that is more than a volume can have",
            "",
        )
    })?;
    let progress = fs.grow(size, cursor, SLICE).map_err(explain)?;
    Ok(json!({
        "before_bytes": before,
        "size_bytes": progress.size_bytes,
        "target_bytes": progress.target_bytes,
        "next": progress.next,
    }))
}

/// A block device that is too short is not made longer here, but by whoever made it.
fn explain(error: Error) -> RequestError {
    let short = match &error {
        Error::Device { source, .. } => source.get_ref(),
        _ => None,
    };
    match short.and_then(|inner| inner.downcast_ref::<DeviceTooShort>()) {
        Some(short) => RequestError::new(
            ErrorCode::Failed,
            short.to_string(),
            "make the device larger first (a logical volume with lvextend, a loop device with losetup -c), \
             see that with `blockdev --getsize64 DEVICE`, then `resize max` takes all of it",
        ),
        None => failed(error),
    }
}
