//! libFuzzer's way into the target `shared_dir`.
#![no_main]

use kfs_fuzz::{limits, targets};

libfuzzer_sys::fuzz_target!(|data: &[u8]| limits::bounded(|| targets::shared_dir(data)));
