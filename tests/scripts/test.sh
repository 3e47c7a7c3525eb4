#!/bin/bash
# test.sh: `make test`. Runs every step even when one failed, counts, and ends with the totals.
#
# cargo's "test result:" lines are counted test by test; formatting and lints count as one each. Tests
# that need QEMU or root are marked #[ignore] (tests/tests/guest.rs, disk/tests/block_device.rs) and run
# here by name: nothing is skipped.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
cd "$top" || exit 1
started=$SECONDS passed=0 failed=0 failures=() said=()
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# step NAME COMMAND...: counts the tests that cargo reports, or the command itself where it reports none.
step() {
    local name=$1 status ok bad
    shift
    echo; echo "=== $name: $*"
    "$@" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    ok=$(awk '/^test result:/ { sum += $4 } END { print sum + 0 }' "$log")
    bad=$(awk '/^test result:/ { sum += $6 } END { print sum + 0 }' "$log")
    if [ "$status" = 0 ]; then
        [ "$ok" -gt 0 ] || ok=1
    else
        [ "$bad" -gt 0 ] || bad=1
        failures+=("$name")
        said+=("--- $name ended with status $status, and said last:" "$(tail -n 25 "$log")")
        while IFS= read -r test; do
            failures+=("    $test")
        done < <(sed -n 's/^test \(.*\) \.\.\. FAILED$/\1/p' "$log")
    fi
    passed=$((passed + ok)) failed=$((failed + bad))
}

export RUST_BACKTRACE=0
tests/scripts/install-deps.sh build guest test || exit 1
step format cargo fmt --all --check
step lints cargo clippy --workspace --all-targets -- -D warnings
step programs cargo build --workspace --bins
step cargo cargo test --workspace --no-fail-fast
step block-devices cargo test -p kfs-disk --test block_device -- --ignored
step linux-images env KFS_BIN_DIR=target/debug tests/scripts/linux-images.sh
step snapshots env KFS_BIN_DIR=target/debug tests/scripts/snapshots.sh
step administration env KFS_BIN_DIR=target/debug tests/scripts/admin.sh
step snapshots-under-load env KFS_BIN_DIR=target/debug tests/scripts/snapshot-load.sh 5000 15
step words env KFS_BIN_DIR=target/debug tests/scripts/words.sh
step progress env KFS_BIN_DIR=target/debug tests/scripts/progress.sh
step defrag env KFS_BIN_DIR=target/debug tests/scripts/defrag.sh
step pjdfstest env KFS_BIN_DIR=target/debug tests/scripts/pjdfstest.sh
step differential cargo test -p kfs-tests --test differential -- --ignored --nocapture
step semantics cargo test -p kfs-tests --test semantics -- --ignored
step fsx env KFS_BIN_DIR=target/debug tests/scripts/fsx.sh 200000 1
step fsx-snapshots env KFS_BIN_DIR=target/debug tests/scripts/fsx.sh 40000 2
step stress env KFS_BIN_DIR=target/debug tests/scripts/stress.sh 30
step fuzz tests/scripts/fuzz.sh quick 56
step prepare tests/guest/prepare.sh --programs
step guests cargo test -p kfs-tests --test guest -- --ignored --test-threads=1

echo
# Who sees only the end of this sees why.
[ ${#said[@]} = 0 ] || printf '%s\n' "${said[@]}"
echo "=== $((SECONDS - started)) s"
for failure in "${failures[@]}"; do echo "FAILED: $failure"; done
echo "$passed passed, $failed failed"
[ "$failed" = 0 ]
