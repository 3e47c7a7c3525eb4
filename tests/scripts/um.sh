#!/bin/bash
# um.sh IMAGE DIR: unmounts DIR, waits until its kfsd has ended and sees that IMAGE is marked clean.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# = 2 ] || die "usage: um.sh IMAGE DIR"
image=$1 dir=$2
need_root "unmounting"
if mountpoint -q "$dir"; then
    umount "$dir" || die "who uses it: fuser -vm $dir"
else
    echo "$dir is not mounted"
fi
if [ -e "$top/build/kfsd.pid" ]; then
    pid=$(cat "$top/build/kfsd.pid")
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = kfsd ]; then
        wait_end "$pid" 60 || die "kfsd $pid still runs 60 s after the unmount, see build/kfsd.log"
    fi
    rm -f "$top/build/kfsd.pid"
fi
[ -e "$image" ] || exit 0
e2fsck -n "$image" 2>/dev/null | tail -n 1
dumpe2fs -h "$image" 2>/dev/null | grep -q '^Filesystem state: *clean$' || die "$image is not marked clean"
if dumpe2fs -h "$image" 2>/dev/null | grep -q needs_recovery; then die "$image needs recovery"; fi
