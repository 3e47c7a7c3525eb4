#!/bin/bash
# snapshot-load.sh LIMIT_MS [SECONDS]: how long `kfsctl snapshot create` takes while fio writes to a mount as fast as
# it can: sequentially through the page cache, and at random, some past the cache and some with fsync. Prints the
# times, and fails when one is longer than LIMIT_MS. KFS_SPEED_DIR says where the image lies. Root only (mounts).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
bin=${KFS_BIN_DIR:-$top/target/release}
[ $# -ge 1 ] || die "usage: snapshot-load.sh LIMIT_MS [SECONDS]"
limit=$1 seconds=${2:-20}
export TMPDIR=${KFS_SPEED_DIR:-${TMPDIR:-/tmp}}
set_up

"$bin/mkfs" "$image" 6G >/dev/null
serve
job() { fio --minimal --directory="$mnt" --time_based --runtime="$seconds" --eta=never "$@" >>"$work/fio" 2>&1; }
(
    job --name=sequential --rw=write --bs=1M --size=512M &
    job --name=direct --rw=randwrite --bs=16k --size=256M --direct=1 --ioengine=libaio --iodepth=8 &
    job --name=synced --rw=randwrite --bs=4k --size=64M --fsync=4 &
    wait
) &
writer=$!
sleep 2
end=$((SECONDS + seconds - 4)) taken=0
while [ "$SECONDS" -lt "$end" ]; do
    begin=$(date +%s%N)
    ctl snapshot create "s$taken" >/dev/null
    echo $((($(date +%s%N) - begin) / 1000)) >>"$work/times"
    taken=$((taken + 1))
    ctl snapshot delete --keep last=3 >/dev/null
    sleep 0.3
done
touch "$work/stop"
wait "$writer" || { cat "$work/fio"; die "fio failed"; }
writer=
[ "$taken" -ge 5 ] || die "only $taken snapshots were taken"
# Field 48 of fio's terse lines: KiB a second written.
grep '^3;' "$work/fio" | awk -F';' '{ printf "fio %s wrote %.1f MiB/s\n", $3, $48 / 1024 }'
sort -n "$work/times" >"$work/sorted"
median=$(sed -n "$(((taken + 1) / 2))p" "$work/sorted") longest=$(tail -1 "$work/sorted")
printf '%d snapshots while fio wrote: half took less than %.1f ms, the longest %.1f ms\n' "$taken" \
    "$(awk "BEGIN { print $median / 1000 }")" "$(awk "BEGIN { print $longest / 1000 }")"
[ "$longest" -le $((limit * 1000)) ] || { cat "$work/times"; die "one took longer than $limit ms"; }
ctl snapshot delete --keep last=1 >/dev/null
stop
"$bin/kfsctl" --image "$image" check >/dev/null || die "the volume is not clean"
ok "taking snapshots under load"

echo "$passed passed, 0 failed"
