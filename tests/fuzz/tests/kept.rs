//! Every kept input once, within the limits: what was found stays fixed. In one test, as executions run
//! one at a time.

use kfs_fuzz::limits;
use kfs_fuzz::targets;

#[test]
fn kept_inputs_run_within_the_limits() {
    for target in targets::ALL {
        let kept = targets::kept_files(target.name);
        assert!(!kept.is_empty(), "{} has no kept inputs", target.name);
        for (file, input) in kept {
            limits::within(&file.to_string_lossy(), &input, target.run);
        }
        limits::within(target.name, &[], target.run);
    }
}
