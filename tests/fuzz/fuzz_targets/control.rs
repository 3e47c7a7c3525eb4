//! libFuzzer's way into the target `control`.
#![no_main]

use kfs_fuzz::{limits, targets};

libfuzzer_sys::fuzz_target!(|data: &[u8]| limits::bounded(|| targets::control(data)));
