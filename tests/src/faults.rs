//! Running something on devices that fail at each of its operations in turn.

use crate::check;
use kfs::check::{Finding, FindingKind};
use kfs_disk::BlockDevice;
use kfs_disk::testing::{Fault, FaultTrigger, OpKinds};
use std::sync::Arc;

/// Runs `run` with the 0th, 1st, 2nd ... operation of these kinds failing, once and from then on, until
/// it does not come that far. It gets the fault and words for messages (which begin with `what`), and
/// says whether it met a failure. Returns how often it did.
pub fn fail_each(kinds: OpKinds, what: &str, run: impl FnMut(Fault, &str) -> bool) -> usize {
    fail_some(kinds, what, |nth| nth + 1, run)
}

/// As [`fail_each`], with the 0th operation and then the `next` one each time.
pub fn fail_some(
    kinds: OpKinds,
    what: &str,
    next: impl Fn(u64) -> u64,
    mut run: impl FnMut(Fault, &str) -> bool,
) -> usize {
    let mut failures = 0;
    let mut nth = 0;
    loop {
        let mut was_reached = false;
        for (trigger, how) in [
            (FaultTrigger::Nth(nth), "once"),
            (FaultTrigger::From(nth), "on"),
        ] {
            let context = format!("{what} {nth} fails {how}");
            let has_failed = run(Fault::new(kinds, trigger), &context);
            was_reached |= has_failed;
            failures += usize::from(has_failed);
        }
        if !was_reached {
            return failures;
        }
        nth = next(nth);
    }
}

/// Panics unless kfs's own check finds nothing wrong with what a failing device has left, but, where the
/// journal was aborted, that there was an error.
///
/// # Panics
/// As said.
pub fn assert_sound(device: Arc<dyn BlockDevice>, was_aborted: bool, context: &str) {
    if !was_aborted {
        return check::assert_clean(device, context);
    }
    let report = check::look(device, context);
    let others = |finding: &&Finding| finding.kind != FindingKind::Superblock;
    let other = report.findings.iter().find(others);
    assert!(
        report.is_complete && other.is_none(),
        "{context}: {other:?}"
    );
}
