#!/bin/bash
# run.sh IMAGE DIR: kfsd serves IMAGE on the folder DIR of this machine, in the background, until um.sh.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# = 2 ] || die "usage: run.sh IMAGE DIR"
image=$1 dir=$2
need_root "mounting"
need_programs kfsd
[ -e /dev/fuse ] || modprobe fuse 2>/dev/null || die "there is no /dev/fuse here"
mkdir -p "$dir" "$top/build"
if mountpoint -q "$dir"; then die "$dir is mounted already (make um)"; fi

log=$top/build/kfsd.log
# A session of its own, so that Ctrl-C at the terminal does not end the mount.
start() {
    trap '' HUP INT
    start_kfsd "$log" --image "$image" --mount "$dir"
}
start
disown "$kfsd_pid"
echo "$kfsd_pid" >"$top/build/kfsd.pid"
echo "$image is mounted on $dir (kfsd $kfsd_pid, log in build/kfsd.log); make um ends it"
