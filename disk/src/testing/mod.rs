//! Devices for tests: faults, power cuts and traces. Never part of a release binary.

mod crash;
mod crash_image;
mod fault;
mod op;
mod rng;
mod trace;

pub use crash::{CrashDevice, CrashImage, CrashPoint, CrashPoints};
pub use crash_image::CrashPolicy;
pub use fault::{Fault, FaultDevice, FaultEffect, FaultError, FaultTrigger};
pub use op::{Op, OpKind, OpKinds};
pub use rng::SplitMix64;
pub use trace::TraceDevice;
