#!/bin/bash
# soak.sh SECONDS: the guest tests again and again until the time is over; stops at the first failure.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# = 1 ] || die "usage: soak.sh SECONDS"
cd "$top"
tests/scripts/install-deps.sh build guest test
cargo build --workspace --bins
tests/guest/prepare.sh --programs
rounds=0
while [ "$SECONDS" -lt "$1" ]; do
    rounds=$((rounds + 1))
    echo "=== round $rounds, $SECONDS s of $1 s"
    cargo test -q -p kfs-tests --test guest -- --ignored --test-threads=1
done
echo "$rounds rounds passed, 0 failed"
