#!/bin/bash
# words.sh: what the tools say when something is wrong, and how they end: 2 for a wrong command line, 1 for what fails. Root only
# (mounts, a loop device). Prints a line for each part and "N passed, 0 failed" at the end.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
bin=${KFS_BIN_DIR:-$top/target/debug}
set_up
idle() { "$bin/kfsctl" --image "$image" "$@"; }

# says STATUS TEXT COMMAND...: it ends with the status, and says what the expression matches.
says() {
    local wanted=$1 text=$2 status=0
    shift 2
    "$@" >"$work/out" 2>&1 || status=$?
    [ "$status" = "$wanted" ] && grep -Eq -- "$text" "$work/out" ||
        { cat "$work/out"; die "$* ends with $status, and not with $wanted and: $text"; }
}
# No line of what was said has a part twice.
once() {
    ! tr ':' '\n' <"$work/out" | sed 's/^ *//' | grep . | sort | uniq -d | grep . || { cat "$work/out"; die "that is said twice"; }
}

says 1 'does not exist; give a size' "$bin/mkfs" "$image"
says 2 "'10Q' is not a size" "$bin/mkfs" "$image" 10Q
says 2 'block size 3000' "$bin/mkfs" -b 3000 "$image" 1G
says 2 "unknown option 'x'" "$bin/mkfs" -E x "$image" 1G
says 1 "there is no directory $work/no; make it first" "$bin/mkfs" "$work/no/a.img" 1G
once
mkdir "$work/from"
echo a >"$work/from/a"
says 0 'Filled with 1 file and 2 B of data' "$bin/mkfs" -d "$work/from" "$image" 600M
says 1 'use -F to overwrite' "$bin/mkfs" "$image"
[ ! -e "$work/no" ] || die "a directory was made"
ok "mkfs"

says 2 'nothing to serve' "$bin/kfsd"
says 1 'nope.img: there is no such file; .* mkfs' "$bin/kfsd" --image nope.img --mount "$mnt"
[ "$(wc -l <"$work/out")" = 1 ] || { cat "$work/out"; die "one line would do"; }
once
says 2 '30s, 5min or 1h' "$bin/kfsd" --image "$image" --mount "$mnt" --snapshot-every often
says 1 "has no snapshot 'none'; .*snapshot list" "$bin/kfsd" --image "$image" --mount "$mnt" --snapshot none
ok "kfsd"

says 2 'no slashes' idle snapshot create a/b
says 2 'not empty' idle snapshot create ''
says 2 'at most 1024 bytes' idle snapshot create -m "$(printf 'x%.0s' $(seq 1025))"
says 2 '30s, 5min or 1h' idle freeze --timeout 30
says 2 'a day' idle freeze --timeout 25h
says 2 'is no unit' idle resize 5Q
says 2 'svg or .png' idle fragmap -o map.gif
says 1 'no kfsd serves .*nothing to watch' idle top --once
says 1 'no kfsd serves .*nothing to thaw' idle thaw
says 0 ' 2 files, 2 directories, 0 symbolic links' idle check
idle snapshot create one -m $'a line\nand another\e[2J' >/dev/null
says 0 'one .* a line \.\.\.$' idle snapshot list
[ "$(wc -l <"$work/out")" = 2 ] || die "the list is no table"
says 0 '^            and another\\u\{1b\}\[2J$' idle snapshot show one
says 1 "no snapshot 'none'" idle snapshot show none
echo mine >"$work/mine"
for command in export clone; do
    says 1 'mine exists already' idle snapshot $command one "$work/mine"
    grep -q 'remove it or choose another name' "$work/out" || die "no hint"
    says 1 "there is no directory $work/no" idle snapshot $command one "$work/no/a.img"
done
[ "$(cat "$work/mine")" = mine ] || die "a file was overwritten"
ok "kfsctl on an idle image"

serve
mkdir "$mnt/dir"
ln -s a "$mnt/link"
mknod "$mnt/null" c 1 3
mkfifo "$mnt/fifo"
says 1 '/link is a symbolic link' ctl fragmap /link
grep -q 'leads to (a)' "$work/out" || die "it does not say where to"
says 1 '/null is a character device' ctl fragmap /null
says 1 '/fifo is a FIFO' ctl defrag /fifo
says 0 '^inode ' ctl fragmap /dir
says 0 '1 fragment, 1 extent, ' ctl fragmap /a
echo other >"$mnt/a"
sync -f "$mnt"
says 1 "the snapshot 'one' has no /dir" ctl restore one --path /dir
says 1 'there is no directory /no$' ctl restore one --path /a --to /no/deep/a
says 1 'of another kind is in the way' ctl restore one --path /a --to /dir
says 1 'in use: the mount' ctl restore one
says 0 ': 1 inode, ' ctl restore one --path /a
for number in 1 2 3; do
    echo $number >"$mnt/times"
    sync -f "$mnt"
    ctl snapshot create "t$number" >/dev/null
done
ctl log /times >"$work/log-of-file"
[ "$(grep -Ec '^[0-9T:-]+\.[0-9]{3,9}Z ' "$work/log-of-file")" = 3 ] || { cat "$work/log-of-file"; die "no fractions of seconds"; }
[ "$(awk '/^[0-9]/ { print $1 }' "$work/log-of-file" | sort -u | wc -l)" = 3 ] || { cat "$work/log-of-file"; die "versions look the same"; }
stop
ok "kfsctl on a mount"

serve --snapshot t1
says 0 "^snapshot +'t1' is served" ctl status
says 0 "^kfsd serves 't1'" ctl snapshot list
grep -q ' one ' "$work/out" && grep -q ' t3 ' "$work/out" || { cat "$work/out"; die "not all are listed"; }
says 0 '^M /times' ctl snapshot diff t1 t3
says 0 "snapshot 'one': clean" ctl check --snapshot one
for command in 'restore one' 'restore one --path /a' 'snapshot create x' 'snapshot delete one' trim 'resize +1G' freeze; do
    # shellcheck disable=SC2086
    says 1 "serves the snapshot 't1', which takes no changes" ctl $command
done
says 8 "serves the snapshot 't1'" ctl check
[ "$(cat "$mnt/times")" = 1 ] || die "another file is served"
stop
says 0 ': clean$' idle check
ok "a kfsd that serves a snapshot"

start_kfsd "$work/log" --shared-dir "$work/from" --mount "$mnt" --control-socket "$work/control"
for command in 'restore one' 'restore one --path /a' 'snapshot list' 'snapshot create' 'log /a'; do
    # shellcheck disable=SC2086
    says 1 "the directory $work/from of the host, which has no snapshots" ctl $command
done
for command in defrag 'resize +1G' 'resize min' trim fragmap freeze; do
    # shellcheck disable=SC2086
    says 1 "the directory $work/from of the host, not an image" ctl $command
done
says 8 'fsck' ctl check
stop
ok "a kfsd that serves a directory"

truncate -s 100M "$work/device.img"
"$bin/mkfs" -q "$work/device.img"
device=$(losetup -f --show "$work/device.img")
status=0
(
    says 1 'the block device has 100.00 MiB, 110.00 MiB are needed' "$bin/kfsctl" --image "$device" resize +10M
    grep -q lvextend "$work/out" || die "no hint"
    nobody() { setpriv --reuid=65534 --regid=65534 --clear-groups "$@"; }
    cp "$bin/kfsctl" "$work/kfsctl"
    chmod 711 "$work"
    chmod 600 "$image"
    says 1 'run as root' nobody "$work/kfsctl" --image "$device" status
    says 1 'run as its owner' nobody "$work/kfsctl" --image "$image" status
) || status=$?
losetup -d "$device"
[ "$status" = 0 ] || exit "$status"
ok "block devices, and who may not open them"

echo "$passed passed, 0 failed"
