//! Makes ext4-compatible file systems.
//!
//! ```text
//! Options + size -> geometry::choose -> Plan::new -> write -> Report
//!                   (the numbers)       (what goes where)
//! ```
//!
//! Numbers and places are those of mke2fs 1.47 for the same options. Everything up to the plan is
//! pure; a plan that cannot be made leaves the device untouched.
#![forbid(unsafe_code)]

mod contents;
mod error;
mod features;
mod geometry;
mod options;
mod plan;
mod populate;
mod probe;
mod report;
mod size;
mod source_file;
mod space;
mod write;

pub use error::{Error, Result};
pub use features::Features;
pub use geometry::Numbers;
pub use options::{Content, ErrorsBehavior, Options, Usage, parse_uuid};
pub use plan::{FilePlan, GroupPlan, Plan};
pub use populate::{Progress, measure, populate};
pub use probe::probe;
pub use report::Report;
pub use size::parse_size;
pub use space::Space;

use kfs_disk::BlockDevice;

/// Makes a file system on a device, whatever it holds: [`probe`] tells what that is.
///
/// # Errors
/// Options that are not possible, before anything is written; a device that fails.
pub fn format(device: &dyn BlockDevice, options: &Options) -> Result<Report> {
    let plan = Plan::new(options, device.size_bytes(), device.sector_size())?;
    let written = write::write(device, &plan, options)?;
    Ok(Report::new(&plan, written))
}

/// What [`format`] would make on a device of that size.
///
/// # Errors
/// Options that are not possible.
pub fn dry_run(options: &Options, device_bytes: u64, sector_size: u32) -> Result<Report> {
    let plan = Plan::new(options, device_bytes, sector_size)?;
    Ok(Report::new(&plan, 0))
}
