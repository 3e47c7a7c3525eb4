#!/bin/bash
# fsx.sh OPERATIONS SEED: several fsx processes at once on a fresh image that kfsd mounts; OPERATIONS is
# their sum. Root only. Each kind of work in tests/conformance/fsx-*.toml has its processes; the same seed
# gives each process the same operations again. With an even seed snapshots come and go meanwhile, so that
# most writes meet blocks that one keeps. Afterwards e2fsck judges the image.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# = 2 ] || die "usage: fsx.sh OPERATIONS SEED"
operations=$1 seed=$2
need_root "fsx on a mount"
need_programs mkfs kfsd kfsctl
need_tool fsx 0.3.2
# The kinds of work, and how many of a hundred operations each process does: commits take their time.
readonly KINDS=(mixed mixed fragmented synced) SHARES=(40 35 20 5)

work=$(mktemp -d)
image=$work/image mnt=$work/mnt
mkdir "$mnt"
children=()
cleanup() {
    touch "$work/stop"
    [ -z "${snapshots:-}" ] || wait "$snapshots" || true
    [ ${#children[@]} = 0 ] || kill "${children[@]}" 2>/dev/null || true
    mountpoint -q "$mnt" && umount -l "$mnt"
    [ -z "${kfsd_pid:-}" ] || kill "$kfsd_pid" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# Keeps what is needed to find the fault: fsx's log, its picture of the file, and kfsd's log.
keep_evidence() {
    local folder=$top/build/fsx-failed
    rm -rf "$folder"
    mkdir -p "$folder"
    cp "$work"/*.out "$work"/*.fsx* "$work/log" "$folder/" 2>/dev/null || true
    echo "fsx: logs and files are in ${folder#"$top"/}" >&2
}

# Takes snapshots, of which two are kept, until there is $work/stop. Prints how many it took.
come_and_go() {
    local taken=0
    while [ ! -e "$work/stop" ]; do
        taken=$((taken + 1))
        ctl snapshot create "s$taken" >/dev/null
        [ "$taken" -le 2 ] || ctl snapshot delete "s$((taken - 2))" >/dev/null
        sleep 0.2
    done
    ctl snapshot delete --keep last=1 >/dev/null
    ctl snapshot delete "s$taken" >/dev/null
    echo "$taken"
}

"$bin/mkfs" -q "$image" 1G
start_kfsd "$work/log" --image "$image" --mount "$mnt" --control-socket "$work/control"
if [ $((seed % 2)) = 0 ]; then
    come_and_go >"$work/taken" &
    snapshots=$!
fi
started=$SECONDS done=0
for i in "${!KINDS[@]}"; do
    count=$((operations * SHARES[i] / 100))
    [ "$count" -gt 0 ] || die "$operations operations are too few for ${#KINDS[@]} processes"
    "$tools/fsx" -f "$top/tests/conformance/fsx-${KINDS[i]}.toml" -N "$count" -S "$((seed * 100 + i))" -P "$work" \
        "$mnt/file-$i.fsx" >"$work/$i.out" 2>&1 &
    children+=($!)
    done=$((done + count))
done
failed=0
for i in "${!children[@]}"; do
    status=0
    wait "${children[i]}" || status=$?
    if [ "$status" != 0 ] || ! grep -q 'A-OK' "$work/$i.out"; then
        failed=$((failed + 1))
        echo "fsx: ${KINDS[i]}, seed $((seed * 100 + i)), ended with status $status:" >&2
        tail -n 15 "$work/$i.out" >&2
    fi
done
children=()
touch "$work/stop"
meanwhile=
if [ -n "${snapshots:-}" ]; then
    wait "$snapshots" || die "taking and deleting snapshots"
    snapshots=
    meanwhile=", $(cat "$work/taken") snapshots meanwhile"
fi
if [ "$failed" != 0 ]; then
    cp "$mnt"/*.fsx "$work/" 2>/dev/null || true
    keep_evidence
    die "$failed of ${#KINDS[@]} processes failed; again: fsx.sh $operations $seed"
fi
unmount "$mnt"
wait_end "$kfsd_pid" 60 || die "kfsd does not end after umount"
wait "$kfsd_pid" || die "kfsd ended with status $?"
kfsd_pid=
e2fsck -fn "$image" >"$work/e2fsck" 2>&1 || { cat "$work/e2fsck" >&2; die "seed $seed: e2fsck complains"; }
echo "fsx: $done operations of seed $seed by ${#KINDS[@]} processes at once$meanwhile, clean to e2fsck ($((SECONDS - started)) s)"
