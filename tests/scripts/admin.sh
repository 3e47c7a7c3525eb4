#!/bin/bash
# admin.sh: what an administrator asks of a running kfsd: freeze and thaw, check of a snapshot, metrics, top,
# the log level, and of an idle image: another size. Root only (mounts). Prints a line for each part and "N passed, 0 failed" at the end.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
bin=${KFS_BIN_DIR:-$top/target/debug}
set_up

"$bin/mkfs" "$image" 512M >/dev/null
serve
mkdir "$mnt/quiet"
echo here >"$mnt/quiet/file"
(while [ ! -e "$work/stop" ]; do
    dd if=/dev/urandom of="$mnt/busy" bs=64k count=20 conv=fsync status=none 2>/dev/null
    mkdir "$mnt/d" && rmdir "$mnt/d"
done) 2>/dev/null &
writer=$!
sleep 1

ctl freeze --timeout 5m | grep -q '300 seconds' || die "freeze does not say for how long"
cp --sparse=always "$image" "$work/copy.img"
e2fsck -fn "$work/copy.img" >"$work/fsck" 2>&1 || { cat "$work/fsck"; die "the copy of a frozen image is not clean"; }
! grep -qi 'journal' "$work/fsck" || { cat "$work/fsck"; die "the copy's journal is not empty"; }
cmp "$image" "$work/copy.img" || die "a frozen image changes"
ctl status | grep -q '^frozen' || die "status does not show the freeze"
timeout 5 "$bin/kfsctl" --socket "$work/control" sync || die "sync waits for the thaw"
timeout 5 "$bin/kfsctl" --socket "$work/control" snapshot list >/dev/null || die "list waits for the thaw"
# Not the root: this kernel keeps others out of a directory that one of its processes waits to change.
timeout 5 cat "$mnt/quiet/file" >/dev/null && timeout 5 ls "$mnt/quiet" >/dev/null || die "reading waits for the thaw"
! ctl freeze 2>"$work/err" || die "it freezes twice"
grep -q 'frozen already' "$work/err" || { cat "$work/err"; die "not the error there should be"; }
! ctl snapshot create late 2>"$work/err" || die "a snapshot of a frozen volume is taken"
grep -q 'kfsctl thaw' "$work/err" || { cat "$work/err"; die "not the error there should be"; }
ctl status | grep -q '^state  *clean' || die "what is frozen is not clean"
ctl thaw
! ctl thaw 2>"$work/err" || die "it thaws twice"
grep -q 'not frozen' "$work/err" || { cat "$work/err"; die "not the error there should be"; }
timeout 10 touch "$mnt/after" || die "nobody can write after the thaw"
ok "freeze and thaw"

ctl freeze --timeout 1s --json | grep -q '"timeout_seconds":1' || die "freeze prints no JSON"
timeout 10 touch "$mnt/later" || die "it does not thaw by itself"
ok "a freeze ends by itself"

ctl snapshot create one >/dev/null
# A truncate may have been under way: then an orphan is left to finish.
sound() { grep -Eq "snapshot 'one': (clean|no errors)" "$1"; }
ctl check --snapshot one >"$work/check" && sound "$work/check" || { cat "$work/check"; die "the snapshot is not clean"; }
ctl check --snapshot one --json | grep -Eq '"verdict":"(clean|needs-recovery)"' || die "no JSON of it"
status=0
ctl check --snapshot none 2>/dev/null || status=$?
[ $status = 8 ] || die "a snapshot that is not there gives $status"
ctl check >"$work/check" && grep -Eq '^the volume: (clean|no errors)' "$work/check" && ! grep -q 'journal' "$work/check" || { cat "$work/check"; die "the volume is not clean"; }
[ "$(ctl snapshot list | wc -l)" = 2 ] || die "a check leaves its snapshot"
ok "the volume and a snapshot are checked while the volume is written"

blocks() { stat -f -c '%b' "$mnt"; }
before=$(blocks)
ctl resize +300M | grep -q -- '->' || die "resize does not say what it did"
[ "$(blocks)" -gt $((before + 60000)) ] || die "df does not show the new size: $before, $(blocks)"
ctl resize 9G --json | grep -q '"size_bytes":9' || die "no JSON of it"
[ "$(stat -c %s "$image")" = $((9 << 30)) ] || die "the image has another length"
ctl resize 9G | grep -q already || die "it grows to the size it has"
! ctl resize 1G 2>"$work/err" || die "it is made smaller"
grep -q 'only be made larger' "$work/err" || { cat "$work/err"; die "not the error there should be"; }
! ctl resize min 2>"$work/err" || die "it is made smaller"
grep -q 'stop the kfsd' "$work/err" || { cat "$work/err"; die "not the error there should be"; }
dd if=/dev/urandom of="$mnt/quiet/large" bs=1M count=700 status=none || die "the new space cannot be used"
sum=$(sha256sum <"$mnt/quiet/large")
ctl check --snapshot one >"$work/check" && sound "$work/check" || { cat "$work/check"; die "the snapshot from before is not clean"; }
ok "the volume grows while it is written"

ctl metrics >"$work/metrics"
for name in kfs_volume_free_bytes kfs_snapshots kfs_journal_commits_total kfs_device_writes_total \
    'kfs_request_duration_seconds_bucket{operation="write",le="+Inf"}' 'kfs_cache_hits_total{cache='; do
    grep -qF "$name" "$work/metrics" || { cat "$work/metrics"; die "no $name"; }
done
ok "metrics"

ctl top --once >"$work/top"
grep -q '^CLIENT' "$work/top" && grep -q '^write' "$work/top" || { cat "$work/top"; die "top shows no writes"; }
ctl top --once --json | grep -q '"requests_per_second"' || die "no JSON of it"
(sleep 2; printf q) | timeout 20 script -qec "$bin/kfsctl --socket $work/control top" "$work/screen" >/dev/null ||
    die "top does not end on q"
grep -q 'CLIENT' "$work/screen" || die "top shows nothing"
grep -qF $'\e[?1049l' "$work/screen" || die "top does not put the screen back"
ok "top, once and on a terminal"

! grep -q 'control: ' "$work/log" || die "it logs requests already"
ctl set log-level debug
ctl sync
grep -q 'control: Sync' "$work/log" || { cat "$work/log"; die "debug messages are not logged"; }
ctl set log-level error
ctl drop-caches
! grep -q 'control: DropCaches' "$work/log" || die "debug messages are still logged"
! ctl set log-level loud 2>/dev/null || die "there is no such level"
ok "the log level is changed"

# A frozen volume does not hold the end up, though writers wait.
ctl freeze --timeout 1h >/dev/null
touch "$work/stop"
kill "$kfsd_pid"
wait_end "$kfsd_pid" 30 || die "kfsd does not end while it is frozen"
kfsd_pid=
wait "$writer" || true
writer=
! mountpoint -q "$mnt" || unmount "$mnt"
"$bin/kfsctl" --image "$image" check --snapshot one >"$work/check" && sound "$work/check" || die "idle: not clean"
serve --readonly
! ctl restore one --force 2>"$work/err" || die "what is served read-only is set back"
grep -q 'read-only' "$work/err" && ls "$mnt/quiet" >/dev/null || { cat "$work/err"; die "it is not there any more"; }
stop
! "$bin/kfsctl" --image "$image" freeze 2>"$work/err" || die "an idle image freezes"
grep -q 'no kfsd serves .*can be copied as it is' "$work/err" || { cat "$work/err"; die "not the error there should be"; }
! "$bin/kfsctl" --image "$image" set log-level info 2>"$work/err" || die "an idle image logs"
grep -q 'no kfsd serves .*log' "$work/err" || { cat "$work/err"; die "not the error there should be"; }
"$bin/kfsctl" --image "$image" snapshot delete one >/dev/null
"$bin/kfsctl" --image "$image" resize 10G | grep -q -- '->' || die "an idle image does not grow"
e2fsck -fn "$image" >"$work/fsck" 2>&1 || { cat "$work/fsck"; die "e2fsck finds something"; }
mount_image rw "$image" "$mnt"
[ "$(sha256sum <"$mnt/quiet/large")" = "$sum" ] || die "Linux reads something else"
[ "$(blocks)" -gt 2500000 ] || die "Linux sees another size"
dd if=/dev/zero of="$mnt/linux" bs=1M count=50 status=none
unmount "$mnt"
e2fsck -fn "$image" >"$work/fsck" 2>&1 || { cat "$work/fsck"; die "e2fsck finds something after Linux"; }
ok "a frozen volume is closed in order"

mount_image rw "$image" "$mnt"
for number in $(seq 60); do
    mkdir "$mnt/dir$number"
    head -c $((number * 5000)) /dev/urandom >"$mnt/dir$number/file"
    ln "$mnt/dir$number/file" "$mnt/dir$number/same"
    ln -s "$(printf 'x%.0s' $(seq "$number"))" "$mnt/dir$number/link"
done
for number in $(seq 2000); do : >"$mnt/dir7/empty$number"; done
# What is there, but for inode numbers.
tree() { (cd "$mnt" && find . -printf '%p %y %m %n %s %l\n' | sort && find . -type f -exec sha256sum {} + | sort); }
tree >"$work/tree"
unmount "$mnt"
! "$bin/kfsctl" --image "$image" resize 500M 2>"$work/err" || die "it is made too small"
grep -Eq 'needs [0-9.]+ MiB' "$work/err" && grep -Eq '`resize [0-9]+M` or' "$work/err" || { cat "$work/err"; die "not the error there should be"; }
[ "$(stat -c %s "$image")" = $((10 << 30)) ] || die "the image has another length"
"$bin/kfsctl" --image "$image" resize 1100M --json | grep -q '"size_bytes":1153433600' || die "it is not made smaller"
[ "$(stat -c %s "$image")" = 1153433600 ] || die "the image is not shorter"
e2fsck -fn "$image" >"$work/fsck" 2>&1 || { cat "$work/fsck"; die "e2fsck finds something"; }
mount_image rw "$image" "$mnt"
tree | cmp - "$work/tree" || die "Linux sees something else"
[ "$(blocks)" -lt 300000 ] || die "Linux sees another size"
dd if=/dev/zero of="$mnt/linux" bs=1M count=60 status=none
rm -r "$mnt/dir7"
unmount "$mnt"
e2fsck -fn "$image" >"$work/fsck" 2>&1 || { cat "$work/fsck"; die "e2fsck finds something after Linux"; }
tree_after() { mount_image ro "$image" "$mnt" && tree && unmount "$mnt"; }
mount_image rw "$image" "$mnt"
! "$bin/kfsctl" --image "$image" check 2>"$work/err" || die "what Linux has mounted is checked"
grep -q 'in use by' "$work/err" || { cat "$work/err"; die "not the error there should be"; }
unmount "$mnt"
tree_after >"$work/tree"
"$bin/kfsctl" --image "$image" resize min >"$work/out" || die "it is not made as small as can be"
e2fsck -fn "$image" >"$work/fsck" 2>&1 || { cat "$work/fsck"; die "e2fsck finds something"; }
tree_after | cmp - "$work/tree" || die "Linux sees something else"
# resize2fs names another size, in blocks of 4096; what kfs moves needs nodes for its pieces.
least=$(resize2fs -P "$image" 2>/dev/null | sed -n 's/.*: *//p')
[ "$(stat -c %s "$image")" -le $((least * 4096 * 11 / 10)) ] || { cat "$work/out"; die "resize2fs finds $least blocks to be enough"; }
"$bin/kfsctl" --image "$image" resize min >/dev/null || die "as small as can be, it refuses to be that"
ok "an idle volume is made smaller, and Linux goes on with it"

echo "$passed passed, 0 failed"
