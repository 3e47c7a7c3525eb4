//! Freeze and thaw of a volume.

use crate::execute::failed;
use crate::protocol::{ErrorCode, RequestError};
use kfs::{Error, Filesystem};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// The longest that a volume can be frozen.
pub const SECONDS_MAX: u64 = 86_400;

pub(crate) fn freeze(fs: &Arc<Filesystem>, seconds: u64) -> Result<Value, RequestError> {
    if !(1..=SECONDS_MAX).contains(&seconds) {
        let text = format!("a volume can be frozen for 1 to {SECONDS_MAX} seconds, not {seconds}");
        return Err(RequestError::new(ErrorCode::InvalidArgument, text, ""));
    }
    fs.freeze(Duration::from_secs(seconds))
        .map_err(|error| match error {
            Error::Busy => RequestError::new(
                ErrorCode::Failed,
                "the volume is frozen already",
                "`kfsctl thaw` ends that",
            ),
            error => failed(error),
        })?;
    Ok(json!({ "timeout_seconds": seconds }))
}

pub(crate) fn thaw(fs: &Filesystem) -> Result<Value, RequestError> {
    if fs.thaw() {
        return Ok(json!({}));
    }
    Err(RequestError::new(
        ErrorCode::Failed,
        "the volume is not frozen",
        "if it was, its time was over before: what was copied meanwhile may not be consistent",
    ))
}
