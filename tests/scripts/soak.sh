#!/bin/bash
# soak.sh SECONDS [PART...]: the long tests (or these parts), in turns, until the time is over or every part
# has reached its goal.
#
# A part is a command for round N; N is its seed. What is done is remembered in build/soak, so that the
# next soak goes on there; `rm -r build/soak` begins anew. The first failure ends the soak: its command is
# printed, and the same round comes first next time. At the end, the figures of all soaks so far.
set -uo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 1 ] || die "usage: soak.sh SECONDS [PART...]"
need_root "make soak"
cd "$top" || exit 1
limit=$1 wanted=" ${*:2} " state=$top/build/soak
export KFS_BIN_DIR=$top/target/release
mkdir -p "$state"

names=() goals=() units=() commands=()
# part NAME GOAL UNIT COMMAND...: GOAL rounds of "UNIT" (said of one round); {} in COMMAND is the round.
part() {
    [ "$wanted" = "  " ] || [[ $wanted = *" $1 "* ]] || return 0
    names+=("$1") goals+=("$2") units+=("$3")
    commands+=("${*:4}")
}

part fsx 50 "200000 operations" tests/scripts/fsx.sh 200000 {}
part differential 200 "5000 operations" env KFS_SEED={} KFS_DIFFERENTIAL_OPERATIONS=5000 \
    cargo test -q -p kfs-tests --test differential -- --ignored --nocapture
part limits 2 "the limits, with 1000000 names in a directory" env KFS_LIMITS_ENTRIES=1000000 \
    cargo test -q -p kfs-tests --test limits
part pjdfstest 50 "397 tests" tests/scripts/pjdfstest.sh
part stress 20 "ten minutes of dbench, stress-ng and snapshots" tests/scripts/stress.sh 600
part crash 50 "20 workloads, and what else crash.rs has" env KFS_CRASH_SEEDS=20 KFS_CRASH_FIRST={}000 KFS_CRASH_PAIRS=1 KFS_CRASH_TRIPLES=200 cargo test -q -p kfs-tests --test crash
part snapshots 50 "20000 operations with snapshots, 20 workloads of power cuts" env KFS_SNAPSHOT_SEEDS=1 KFS_SNAPSHOT_STEPS=20000 KFS_CRASH_SEEDS=20 KFS_SNAPSHOT_ROUNDS=100 KFS_MOVE_ROUNDS=10000 KFS_FIRST_SEED={}000 cargo test -q -p kfs-tests --test snapshots --test snapshot_reuse --test snapshot_writers
part threads 50 "2000 concurrent histories of each of 4 kinds" env KFS_CONCURRENT_SEEDS=2000 KFS_CONCURRENT_FIRST={}000000 cargo test -q -p kfs-tests --test concurrent
part fuzz 20 "500000 executions" tests/scripts/fuzz.sh round {}
part journal 50 "2000 interleavings of the journal" env KFS_SCHEDULES=2000 KFS_SCHEDULES_FIRST={}000000 cargo test -q -p kfs --lib interleavings
part check 20 "1000 damaged images" env KFS_CHECK_SEEDS=1000 KFS_CHECK_FIRST={}000000 cargo test -q -p kfs-tests --test check what
part speed 1 "a snapshot of 10000000 files, throughput with 0, 1, 10, 100 snapshots, writers while one is deleted" \
    cargo test -q --release -p kfs-tests --test snapshot_speed -- --ignored --nocapture --test-threads=1
part load 10 "snapshots taken while fio writes to a mount for a minute" tests/scripts/snapshot-load.sh 1000 60
part memory 1 "memory of 1, 10, 100 snapshots of a million files on 1 TiB" env KFS_MEMORY_FILES=1000000 \
    cargo test -q --release -p kfs-tests --test snapshot_memory -- --nocapture
part guests 20 "all guest tests" cargo test -q -p kfs-tests --test guest -- --ignored --test-threads=1
[ ${#names[@]} -gt 0 ] || die "soak.sh: there is no part$wanted"

done_of() { cat "$state/$1" 2>/dev/null || echo 0; }

figures() {
    local i
    echo "=== figures after $((SECONDS)) s of this soak"
    for i in "${!names[@]}"; do
        printf '%-14s %4d of %d rounds of %s\n' "${names[i]}" "$(done_of "${names[i]}")" "${goals[i]}" "${units[i]}"
    done
}

tests/scripts/install-deps.sh build guest test || exit 1
cargo build --workspace --bins && cargo build --release --workspace --bins || exit 1
need_tool pjdfstest 0.2.2
tests/guest/prepare.sh --programs || exit 1

rounds=0 active=1
while [ "$active" = 1 ] && [ "$SECONDS" -lt "$limit" ]; do
    active=0
    for i in "${!names[@]}"; do
        round=$(($(done_of "${names[i]}") + 1))
        [ "$round" -le "${goals[i]}" ] || continue
        [ "$SECONDS" -lt "$limit" ] || break
        active=1
        command=${commands[i]//\{\}/$round}
        echo "=== ${names[i]}, round $round of ${goals[i]}, $SECONDS s of $limit s: $command"
        # shellcheck disable=SC2086
        if ! $command; then
            figures
            echo "FAILED: ${names[i]}, round $round: $command"
            exit 1
        fi
        echo "$round" >"$state/${names[i]}"
        rounds=$((rounds + 1))
    done
done
figures
echo "$rounds rounds passed, 0 failed"
