#!/bin/bash
# stress.sh SECONDS: many programs at once on an image that kfsd mounts: dbench with 64 clients, then each
# program of stress-ng's filesystem class, two of a kind, and snapshots that come and go meanwhile. A third
# of the time each for dbench and, divided among them, the programs of stress-ng. Then the host's file
# system under a sparse image runs full. Nothing may hang, kfsd ends in order, e2fsck judges. Root only.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# = 1 ] || die "usage: stress.sh SECONDS"
seconds=$1
need_root "a mount"
need_programs mkfs kfsd kfsctl
work=$(mktemp -d)
image=$work/image mnt=$work/mnt host=$work/host
mkdir "$mnt" "$host"
# Not a program of Linux's own file systems: it wants a device of its own.
readonly NOT_HERE=binderfs,ramfs

cleanup() {
    touch "$work/stop"
    [ -z "${snapshots:-}" ] || wait "$snapshots" || true
    mountpoint -q "$mnt" && umount -l "$mnt"
    [ -z "${kfsd_pid:-}" ] || kill "$kfsd_pid" 2>/dev/null || true
    mountpoint -q "$host" && unmount "$host"
    rm -rf "$work"
}
trap cleanup EXIT

# end NAME: unmounts, waits for kfsd, and lets e2fsck judge.
end() {
    unmount "$mnt"
    wait_end "$kfsd_pid" 120 || die "$1: kfsd does not end after umount"
    wait "$kfsd_pid" || { tail -n 20 "$work/log" >&2; die "$1: kfsd ended with status $?"; }
    kfsd_pid=
    e2fsck -fn "$2" >"$work/e2fsck" 2>&1 || { cat "$work/e2fsck" >&2; die "$1: e2fsck complains"; }
    ! grep -q 'panicked' "$work/log" || { cat "$work/log" >&2; die "$1: kfsd panicked"; }
}

# Two programs allocate 1 GiB each, and two snapshots may each see another 2 GiB of it.
"$bin/mkfs" -q "$image" 16G
start_kfsd "$work/log" --image "$image" --mount "$mnt" --control-socket "$work/control"
passed=0

timeout $((seconds + 60)) dbench -D "$mnt" -t $((seconds / 3 + 1)) 64 >"$work/dbench" 2>&1 || {
    tail -n 20 "$work/dbench" >&2
    die "dbench fails"
}
grep '^Throughput' "$work/dbench"
passed=$((passed + 1))

# Snapshots of all this, two at a time.
(
    ctl() { "$bin/kfsctl" --socket "$work/control" snapshot "$@" >>"$work/snapshots" 2>&1; }
    number=0 last=
    while [ ! -e "$work/stop" ]; do
        number=$((number + 1))
        ! ctl create "stress-$number" || last=stress-$number
        ctl delete --keep last=2 || true
        sleep 0.5
    done
    ctl delete --keep last=1 && ctl delete "$last"
) &
snapshots=$!
mkdir "$mnt/stress"
classes=$(stress-ng --class 'filesystem?' 2>&1 | sed 's/.*: *//' | wc -w)
each=$((seconds / 3 * 2 / (classes > 0 ? classes : 1)))
timeout $((seconds * 4 + 600)) stress-ng --class filesystem --exclude "$NOT_HERE" --sequential 2 \
    -t $((each > 0 ? each : 1)) --temp-path "$mnt/stress" >"$work/stress" 2>&1 || {
    tail -n 40 "$work/stress" >&2
    die "stress-ng fails"
}
touch "$work/stop"
wait "$snapshots" || { tail -n 5 "$work/snapshots" >&2; die "snapshots under stress"; }
snapshots=
taken=$(grep -c '^stress-' "$work/snapshots")
[ "$taken" -gt 1 ] || die "no snapshots were taken meanwhile"
end "stress" "$image"
echo "stress-ng: $classes programs, $taken snapshots meanwhile, clean to e2fsck"
passed=$((passed + 1))

# The host runs full under a sparse image: an error for the writer, nothing that was synced is lost.
mount -t tmpfs -o size=60m none "$host"
"$bin/mkfs" -q "$host/image" 1G
start_kfsd "$work/log" --image "$host/image" --mount "$mnt" --control-socket none
mkdir "$mnt/kept"
cp -r "$top/kfs/src" "$mnt/kept/"
sync -f "$mnt/kept"
find "$mnt/kept" -type f -exec sync {} +
! dd if=/dev/urandom of="$mnt/large" bs=1M count=200 conv=fsync status=none 2>/dev/null || die "more was written than the host has room for"
umount "$mnt" || true
wait_end "$kfsd_pid" 60 || die "the host full: kfsd does not end"
wait "$kfsd_pid" || true
kfsd_pid=
# There is room again, and the volume recovers.
mount -o remount,size=600m "$host"
start_kfsd "$work/log" --image "$host/image" --mount "$mnt" --control-socket none
diff -r "$top/kfs/src" "$mnt/kept/src" || die "the host full: synced files are lost"
echo again >"$mnt/again"
unmount "$mnt"
wait_end "$kfsd_pid" 60 || die "the host full: kfsd does not end after umount"
wait "$kfsd_pid" || die "the host full: kfsd ended with status $?"
kfsd_pid=
e2fsck -fp "$host/image" >"$work/e2fsck" 2>&1 || [ $? = 1 ] || { cat "$work/e2fsck" >&2; die "the host full: e2fsck -p is not enough"; }
e2fsck -fn "$host/image" >"$work/e2fsck" 2>&1 || { cat "$work/e2fsck" >&2; die "the host full: e2fsck complains"; }
echo "the host full: an error, nothing synced lost, clean to e2fsck"
passed=$((passed + 1))
echo "$passed passed, 0 failed"
