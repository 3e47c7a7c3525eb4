#!/bin/bash
# fuzz.sh: the fuzz targets of tests/fuzz, with and without libFuzzer.
#
#   fuzz.sh quick [SECONDS]        all targets with mutations of the kept inputs, without libFuzzer, for that
#                                  time (56 s): what `make test` does
#   fuzz.sh TARGET [SECONDS]       one target with libFuzzer, until it fails or the time (60 s) is over
#   fuzz.sh round SEED [COUNT]     all targets with libFuzzer, COUNT executions (500 000): what `make soak` does
#   fuzz.sh keep TARGET            adds to tests/fuzz/corpus what libFuzzer has found and the corpus does not reach
#   fuzz.sh minimize TARGET FILE   makes an input that fails smaller
#
# libFuzzer runs on the stable toolchain; cargo-fuzz is not needed: the flags below are those that it builds
# with when asked for no sanitizer. Found inputs are in build/fuzz/TARGET, failing ones in
# tests/fuzz/artifacts/TARGET. Both ways watch panics, hangs and memory.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
cd "$top"

triple=$(rustc -vV | sed -n 's/^host: //p')
programs=target/$triple/fuzz
work=build/fuzz
targets=(parsers control fuse vring journal shared_dir image)
# Thousandths of a round's executions. They differ in speed by a factor of a hundred.
declare -A SHARE=([parsers]=600 [control]=60 [fuse]=80 [vring]=60 [journal]=70 [shared_dir]=80 [image]=50)

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
    local target=$1 artifacts=tests/fuzz/artifacts/$1/ log=$work/$1.log
    shift
    mkdir -p "$work/$target" "$artifacts" "tests/fuzz/corpus/$target" "tests/fuzz/regressions/$target"
    if ! "$programs/$target" -timeout=60 -rss_limit_mb=2048 -max_len=1024 -verbosity=1 -print_final_stats=1 \
        -artifact_prefix="$artifacts" "$@" \
        "$work/$target" "tests/fuzz/corpus/$target" "tests/fuzz/regressions/$target" 2>"$log"; then
        grep -v -e '^#' -e NEW_FUNC "$log" | tail -n 40 >&2
        die "$target fails ($*): the input is in $artifacts"
    fi
    printf '%-10s %s, %s executions, %d MiB at most, %d inputs found so far\n' "$target" "$*" \
        "$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")" \
        "$(sed -n 's/^stat::peak_rss_mb: *//p' "$log")" "$(find "$work/$target" -type f | wc -l)"
}

quick() {
    local target seconds=$((($1 + ${#targets[@]} - 1) / ${#targets[@]}))
    cargo build --quiet -p kfs-fuzz --bin kfs-fuzz
    for target in "${targets[@]}"; do
        target/debug/kfs-fuzz "$target" -t "$seconds"
    done
}

known() {
    [ -n "${SHARE[$1]:-}" ] || die "there is no target '$1': ${targets[*]}"
}

mkdir -p "$work"
case ${1:-} in
quick)
    quick "${2:-56}"
    ;;
round)
    build
    for target in "${targets[@]}"; do
        run "$target" -runs=$((${3:-500000} * SHARE[$target] / 1000)) -seed="${2:?a seed}"
    done
    ;;
keep)
    known "${2:-}"
    build
    mkdir -p "$work/$2" "tests/fuzz/corpus/$2"
    # By what is reached, not by how often: few inputs are enough.
    "$programs/$2" -set_cover_merge=1 -use_counters=0 -max_len=1024 "tests/fuzz/corpus/$2" "$work/$2"
    ;;
minimize)
    known "${2:-}"
    build
    "$programs/$2" -minimize_crash=1 -max_total_time=60 -exact_artifact_path="$3.small" "$3"
    ;;
*)
    known "${1:-}"
    build
    run "$1" -max_total_time="${2:-60}"
    ;;
esac
