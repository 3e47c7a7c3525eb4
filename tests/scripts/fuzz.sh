#!/bin/bash
# fuzz.sh: runs the fuzz targets with libFuzzer, on the stable toolchain.
#
#   fuzz.sh TARGET [SECONDS]   one target, until it fails or the time (60 s) is over
#   fuzz.sh soak [COUNT]       COUNT executions (10 million) over all targets; a run that was stopped goes
#                              on where it was. The figures come at the end
#   fuzz.sh keep TARGET        adds to tests/fuzz/corpus what the runs have found and the corpus does not reach
#
# cargo-fuzz is not needed; the flags below are those it builds with when asked for no sanitizer. Found
# inputs are in build/fuzz/TARGET, failing ones in tests/fuzz/artifacts/TARGET.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$top"

triple=$(rustc -vV | sed -n 's/^host: //p')
programs=target/$triple/fuzz
work=build/fuzz
# Thousandths of a soak's executions. They differ in speed by a factor of twenty.
declare -A SHARE=([parsers]=300 [control]=200 [fuse]=140 [vring]=110 [journal]=120 [shared_dir]=80 [image]=50)
targets=(parsers control fuse vring journal shared_dir image)
# Executions after which a soak notes how far it came.
readonly STEP=20000

build() {
    local flags=(-Cpasses=sancov-module
        -Cllvm-args=-sanitizer-coverage-level=4
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
        -Cllvm-args=-sanitizer-coverage-pc-table
        -Cllvm-args=-sanitizer-coverage-trace-compares
        --cfg fuzzing)
    RUSTFLAGS="${flags[*]}" cargo build --quiet --profile fuzz -p kfs-fuzz --features libfuzzer \
        --target "$triple" "${targets[@]/#/--bin=}"
}

# run TARGET FLAG...: libFuzzer with what is the same for all runs.
run() {
    local target=$1
    shift
    mkdir -p "$work/$target" "tests/fuzz/artifacts/$target" "tests/fuzz/corpus/$target" "tests/fuzz/regressions/$target"
    "$programs/$target" -timeout=60 -rss_limit_mb=2048 -max_len=1024 -len_control=20 -verbosity=0 \
        -artifact_prefix="tests/fuzz/artifacts/$target/" "$@" \
        "$work/$target" "tests/fuzz/corpus/$target" "tests/fuzz/regressions/$target"
}

done_so_far() {
    cat "$work/done-$1" 2>/dev/null || echo 0
}

soak() {
    local total=$1 target wanted so_far step started=$SECONDS
    for target in "${targets[@]}"; do
        wanted=$((total * SHARE[$target] / 1000))
        so_far=$(done_so_far "$target")
        while [ "$so_far" -lt "$wanted" ]; do
            step=$((wanted - so_far < STEP ? wanted - so_far : STEP))
            run "$target" -runs="$step" -seed=$((so_far + 1)) 2>"$work/log" || {
                tail -n 40 "$work/log" >&2
                die "$target fails: the input is in tests/fuzz/artifacts/$target"
            }
            so_far=$((so_far + step))
            echo "$so_far" >"$work/done-$target"
            echo "$target: $so_far of $wanted executions, $((SECONDS - started)) s"
        done
    done
    so_far=0
    for target in "${targets[@]}"; do
        so_far=$((so_far + $(done_so_far "$target")))
        printf '%-12s %9d executions, %5d inputs found\n' "$target" "$(done_so_far "$target")" \
            "$(find "$work/$target" -type f | wc -l)"
    done
    echo "fuzz: $so_far executions, no panic, no hang, no unbounded memory"
}

known() {
    [ -n "${SHARE[$1]:-}" ] || die "there is no target '$1': ${targets[*]}"
}

mkdir -p "$work"
case ${1:-} in
soak)
    build
    soak "${2:-10000000}"
    ;;
keep)
    known "${2:-}"
    build
    "$programs/$2" -merge=1 -max_len=1024 "tests/fuzz/corpus/$2" "$work/$2"
    ;;
*)
    known "${1:-}"
    build
    run "$1" -max_total_time="${2:-60}"
    ;;
esac
