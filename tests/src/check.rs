//! kfs's own check as the judge of images in memory: much faster than e2fsck, so it looks at all of them.

use kfs::check::{CheckOptions, CheckReport, Verdict, check};
use kfs_disk::BlockDevice;
use std::sync::Arc;

/// What the check says of an image that nobody changes.
///
/// # Panics
/// When the device fails, or is not one that can be judged.
#[must_use]
pub fn look(device: Arc<dyn BlockDevice>, context: &str) -> CheckReport {
    check(device, &CheckOptions::default(), &mut |_| {
        std::ops::ControlFlow::Continue(())
    })
    .unwrap_or_else(|error| panic!("{context}: cannot be checked: {error}"))
}

/// The image is whole, or will be when it is recovered.
///
/// # Panics
/// When it is not.
pub fn assert_recoverable(device: Arc<dyn BlockDevice>, context: &str) {
    let report = look(device, context);
    assert!(
        report.verdict() != Verdict::Broken,
        "{context}: {:#?}",
        report.findings
    );
}

/// The image is whole, and nothing is left to recover.
///
/// # Panics
/// When it is not.
pub fn assert_clean(device: Arc<dyn BlockDevice>, context: &str) {
    let report = look(device, context);
    assert!(
        report.verdict() == Verdict::Clean,
        "{context}: {:?}, {:#?}",
        report.recovery,
        report.findings
    );
}
