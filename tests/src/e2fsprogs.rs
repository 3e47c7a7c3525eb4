//! e2fsck as the judge of images.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a full check that changes nothing.
///
/// # Errors
/// What e2fsck found, or that it cannot be run.
pub fn check(image: &Path) -> Result<(), String> {
    let output = run(&["-fn"], image)?;
    if output.status.success() {
        Ok(())
    } else {
        Err(text(&output))
    }
}

/// Lets e2fsck do what a boot does: replay the journal and clear orphans, and nothing that needs a
/// decision; then checks the result.
///
/// # Errors
/// When more was needed, or the result is not clean.
pub fn recover_and_check(image: &Path) -> Result<(), String> {
    let output = run(&["-p"], image)?;
    // 1 says that it changed something, which replaying is.
    match output.status.code() {
        Some(0 | 1) => check(image),
        _ => Err(text(&output)),
    }
}

/// Lets e2fsck repair whatever it finds; then checks the result.
///
/// # Errors
/// When it cannot, or the result is not clean.
pub fn repair(image: &Path) -> Result<(), String> {
    let output = run(&["-fy"], image)?;
    match output.status.code() {
        Some(0 | 1) => check(image),
        _ => Err(text(&output)),
    }
}

fn run(options: &[&str], image: &Path) -> Result<Output, String> {
    Command::new("e2fsck")
        .args(options)
        .arg(image)
        .output()
        .map_err(|error| format!("e2fsck cannot be run (package e2fsprogs): {error}"))
}

fn text(output: &Output) -> String {
    let out = String::from_utf8_lossy(&output.stdout);
    let err = String::from_utf8_lossy(&output.stderr);
    format!("e2fsck, {}:\n{out}{err}", output.status)
}
