#!/bin/bash
# snapshots.sh: snapshots as a user meets them: taken by kfsctl of a mounted image while it is written, looked
# into, compared, brought back, exported, served, deleted; Linux and e2fsck judge what is left.
# Root only (mounts). Prints a line for each part and "N passed, 0 failed" at the end.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
bin=${KFS_BIN_DIR:-$top/target/debug}
set_up other third
other=$work/other
sums() { (cd "$1" && find . -type f ! -path './lost+found/*' -print0 | sort -z | xargs -0 sha256sum); }

# e2fsck_of_copy: e2fsck judges the image, whose snapshots it refuses to look past.
e2fsck_of_copy() {
    "$bin/kfsctl" --image "$image" snapshot create e2fsck >/dev/null
    "$bin/kfsctl" --image "$image" snapshot export e2fsck "$work/judged.img" >/dev/null
    "$bin/kfsctl" --image "$image" snapshot delete e2fsck >/dev/null
    e2fsck -fn "$work/judged.img" >"$work/e2fsck" 2>&1 || { cat "$work/e2fsck"; die "the volume is not clean"; }
    rm "$work/judged.img"
}

"$bin/mkfs" "$image" 1G >/dev/null
serve
cp -a "$top/kfs/src" "$mnt/source"
mkdir "$mnt/docs"
echo one >"$mnt/docs/a"
echo two >"$mnt/docs/b"
dd if=/dev/urandom of="$mnt/big" bs=1M count=40 status=none
sync -f "$mnt"
sums "$mnt" >"$work/first"
[ "$(ctl snapshot create first -m 'before all')" = first ] || die "create does not print the name"
ok "a snapshot is taken"

# Somebody who never stops writing.
(while [ ! -e "$work/stop" ]; do
    dd if=/dev/urandom of="$mnt/busy" bs=64k count=20 conv=fsync status=none 2>/dev/null
    cp -r "$mnt/source" "$mnt/copy" && rm -r "$mnt/copy"
done) 2>/dev/null &
writer=$!
echo changed >"$mnt/docs/a"
rm "$mnt/docs/b"
echo new >"$mnt/docs/c"
mv "$mnt/big" "$mnt/large"
dd if=/dev/urandom of="$mnt/large" bs=1M count=8 seek=4 conv=notrunc status=none
for i in $(seq 5); do ctl snapshot create "busy-$i" >/dev/null; done
ctl snapshot list | grep -q busy-3 || die "list does not show it"
ok "snapshots are taken while others write"

[ ! -e "$mnt/.kfs" ] && ! mkdir "$mnt/.kfs" 2>/dev/null || die "the store is to be seen"
# The writer makes and removes a directory meanwhile, so one look is not enough.
links_agree() { [ "$(stat -c %h "$mnt")" = "$(find "$mnt" -maxdepth 1 -type d | wc -l | awk '{ print $1 + 1 }')" ]; }
for i in $(seq 50); do
    ! links_agree || break
    [ "$i" -lt 50 ] || die "the root has a link too many"
    sleep 0.1
done
ok "the store is hidden"

ctl snapshot diff first busy-1 >"$work/diff"
for line in 'M /docs/a' '- /docs/b' '+ /docs/c' 'R /big -> /large'; do
    grep -qxF -- "$line" "$work/diff" || { cat "$work/diff"; die "diff does not say: $line"; }
done
ok "diff tells what has changed"

ctl snapshot export first "$work/first.img" >/dev/null
ctl snapshot export busy-5 "$work/busy.img" >/dev/null
! ctl snapshot export first "$work/first.img" 2>/dev/null || die "an export overwrites a file"
for exported in first busy; do
    e2fsck -fn "$work/$exported.img" >"$work/e2fsck" 2>&1 || { cat "$work/e2fsck"; die "$exported is not clean"; }
done
mount_image ro "$work/first.img" "$other"
sums "$other" | diff - "$work/first" || die "the exported snapshot has other content"
[ ! -e "$other/.kfs" ] || die "the exported image has a store"
unmount "$other"
ok "exported snapshots are ordinary volumes with what was there"

ctl restore first --path /docs >/dev/null
[ "$(cat "$mnt/docs/a" "$mnt/docs/b" "$mnt/docs/c")" = "one
two
new" ] || die "restore does not bring the files back"
ctl restore first --path /big --to /big >/dev/null
(cd "$mnt" && sha256sum ./big) | grep -qxF -f - "$work/first" || die "the restored file differs"
ok "files come back"

touch "$work/stop"
wait "$writer" || true
writer=
rm -rf "$mnt/copy"
! ctl snapshot delete nobody 2>"$work/error" || die "what is not there is deleted"
grep -q "no snapshot 'nobody'" "$work/error" || die "the error does not name it"
! ctl snapshot create first 2>/dev/null || die "a name is given twice"
ctl snapshot delete busy-1 busy-3 >/dev/null
ctl snapshot delete --keep last=2 >"$work/deleted"
[ "$(wc -l <"$work/deleted")" = 2 ] || die "--keep deletes others than it should"
ok "snapshots are deleted"

ctl snapshot create last >/dev/null
sums "$mnt" >"$work/last"
rm -rf "$mnt/source"
stop
cp --sparse=always "$image" "$work/copy.img"
! mount -o loop "$work/copy.img" "$other" 2>/dev/null || die "Linux mounts an image with snapshots for writing"
mount_image ro "$work/copy.img" "$other"
[ -e "$other/large" ] || die "Linux does not read the image"
unmount "$other"
"$bin/kfsctl" --image "$image" check >/dev/null || die "kfsctl check finds something"
ok "Linux mounts it read-only, and only so"

serve --snapshot last
sums "$mnt" | diff - "$work/last" || die "the served snapshot has other content"
! touch "$mnt/new" 2>/dev/null || die "a snapshot can be changed"
stop
ok "a snapshot is served"

serve
ctl log /docs/a >"$work/versions"
[ "$(wc -l <"$work/versions")" = 3 ] && grep -q ' busy-4 .. busy-5$' "$work/versions" && grep -q ' last, the volume$' "$work/versions" ||
    { cat "$work/versions"; die "log does not show the versions of a file"; }
ctl log /source --json | grep -q '"current":true,"exists":false' || die "log does not show that a directory is gone"
! ctl log /docs/nothing 2>/dev/null || die "log shows what never was"
ok "the versions of a file are shown"

# Between two images on a file system that shares blocks, and onto another one, that does not.
truncate -s 2G "$work/xfs.img"
mkfs.xfs -q -m reflink=1 "$work/xfs.img"
mount_image rw "$work/xfs.img" "$other"
stop
cp --sparse=always "$image" "$other/disk.img"
mv "$image" "$work/elsewhere.img"
ln -s "$other/disk.img" "$image"
serve
before=$(df --output=used -B1 "$other" | tail -1)
ctl snapshot clone last "$other/clone.img" >"$work/cloned"
grep -q 'shares its blocks' "$work/cloned" || { cat "$work/cloned"; die "the clone does not share blocks"; }
after=$(df --output=used -B1 "$other" | tail -1)
[ $((after - before)) -lt $((8 << 20)) ] || die "the clone takes $((after - before)) bytes"
ctl snapshot clone last "$work/foreign.img" | grep -q 'copied' || die "a clone on another file system is no copy"
! ctl snapshot clone last "$other/clone.img" 2>/dev/null || die "a clone overwrites a file"
! ctl snapshot clone nobody "$other/none.img" 2>/dev/null && [ ! -e "$other/none.img" ] || die "a clone of nothing"
stop
for cloned in "$other/clone.img" "$work/foreign.img"; do
    e2fsck -fn "$cloned" >"$work/e2fsck" 2>&1 || { cat "$work/e2fsck"; die "$cloned is not clean"; }
    mount_image rw "$cloned" "$work/third"
    sums "$work/third" | diff - "$work/last" || die "$cloned has other content"
    [ ! -e "$work/third/.kfs" ] || die "the clone has a store"
    unmount "$work/third"
done
rm "$image" "$work/foreign.img"
mv "$work/elsewhere.img" "$image"
unmount "$other"
ok "a clone shares blocks where the host can do that"

serve --snapshot-dir
[ -z "$(find "$mnt" -maxdepth 1 -name .snapshots)" ] || die "listings show .snapshots, which nobody asked for"
[ "$(ls -A "$mnt/.snapshots" | sort | xargs)" = "$(ctl snapshot list | awk 'NR > 1 { print $2 }' | sort | xargs)" ] ||
    die ".snapshots does not list the snapshots"
sums "$mnt/.snapshots/last" | diff - "$work/last" || die "a snapshot in .snapshots has other content"
! touch "$mnt/.snapshots/last/new" 2>/dev/null && ! mkdir "$mnt/.snapshots/new" 2>/dev/null && ! rmdir "$mnt/.snapshots" 2>/dev/null ||
    die "something is changed in .snapshots"
! mkdir "$mnt/.snapshots" 2>/dev/null || die "a second .snapshots is made"
! ln "$mnt/.snapshots/last/docs/a" "$mnt/linked" 2>/dev/null || die "a link from the volume into a snapshot"
[ "$(stat -c %i "$mnt/.snapshots/last/docs/a")" != "$(stat -c %i "$mnt/docs/a")" ] || die "two files have one inode number"
cp -a "$mnt/.snapshots/last/source" "$mnt/source.again"
diff -r "$mnt/.snapshots/last/source" "$mnt/source.again" || die "the copy differs"
rm -r "$mnt/source.again"
ctl snapshot create passing >/dev/null
sleep 1.1 # how long names are cached
exec 5<"$mnt/.snapshots/passing/docs/a"
cat <&5 >/dev/null
exec 6<"$mnt/.snapshots/passing/docs"
ctl snapshot delete passing >/dev/null
! stat -L /dev/fd/5 >/dev/null 2>&1 || die "a file of a deleted snapshot is still there"
exec 5<&- 6<&-
sleep 1.1
[ ! -e "$mnt/.snapshots/passing" ] || die "a deleted snapshot is still there"
stop
serve --snapshot-dir=visible
[ "$(find "$mnt" -maxdepth 1 -name .snapshots)" = "$mnt/.snapshots" ] || die "listings do not show .snapshots"
[ "$(ls -A "$mnt" | sort | uniq -d)" = "" ] || die "a name is listed twice"
stop
ok "all snapshots are in .snapshots"

"$bin/kfsctl" --image "$image" restore last >"$work/restored"
grep -q "'before-restore-1'" "$work/restored" || die "restore does not say how to go back"
serve
sums "$mnt" | diff - "$work/last" || die "the volume is not as it was"
stop
"$bin/kfsctl" --image "$image" restore before-restore-1 >/dev/null
serve
[ ! -e "$mnt/source" ] || die "the restore is not undone"
stop
ok "the volume is set back, and forth"

serve
! ctl restore last 2>"$work/error" || die "a volume in use is set back"
grep -q "in use: the mount at $mnt" "$work/error" || { cat "$work/error"; die "the refusal does not say who uses it"; }
mkdir "$mnt/later"
echo later >"$mnt/later/file"
echo other >"$mnt/docs/a"
exec 5<"$mnt/docs/a" 6>>"$mnt/later/file"
# Somebody who goes on writing, whatever becomes of his files.
(while [ ! -e "$work/stop-online" ]; do
    dd if=/dev/zero of="$mnt/online" bs=64k count=20 conv=fsync status=none
done) 2>/dev/null &
writer=$!
sleep 0.5
ctl restore --force last >"$work/restored"
touch "$work/stop-online"
wait "$writer" || true
writer=
! cat <&5 >"$work/stale" 2>"$work/error" || die "an open file of before can be read"
grep -q 'Stale file handle' "$work/error" || { cat "$work/error"; die "the error is another one"; }
! echo more >&6 2>/dev/null || die "an open file of before can be written"
exec 5<&- 6>&-
sleep 1.1 # how long names are cached
rm -f "$mnt/online"
sums "$mnt" | diff - "$work/last" || die "the mounted volume is not as it was"
[ ! -e "$mnt/later" ] || die "a directory of later is still there"
echo again >"$mnt/docs/again"
undo=$(sed -n "s/.*before is '\(.*\)'$/\1/p" "$work/restored")
ctl restore --force "$undo" >/dev/null
sleep 1.1
[ "$(cat "$mnt/later/file" "$mnt/docs/a")" = "later
other" ] || die "the restore under a mount is not undone"
[ ! -e "$mnt/docs/again" ] || die "what came between is there"
stop
e2fsck_of_copy
ok "a mounted volume is set back, and open files of before are stale"

"$bin/kfsctl" --image "$image" snapshot list | grep -q before-restore-2 || die "no way back is kept"
"$bin/kfsctl" --image "$image" snapshot list | awk '/before-restore/ { print $2 }' |
    xargs "$bin/kfsctl" --image "$image" snapshot delete >/dev/null
"$bin/kfsctl" --image "$image" snapshot delete --keep last=1 >/dev/null
"$bin/kfsctl" --image "$image" snapshot list --json | grep -q '"name":"last"' || die "the last one is gone"
"$bin/kfsctl" --image "$image" snapshot delete last >/dev/null
e2fsck -fn "$image" >"$work/e2fsck" 2>&1 || { cat "$work/e2fsck"; die "not clean without snapshots"; }
mount_image rw "$image" "$other"
touch "$other/linux-was-here"
unmount "$other"
ok "without snapshots it is an ordinary volume again"

serve --snapshot-every 1s --snapshot-keep last=2
for i in $(seq 100); do
    [ "$(ctl snapshot list | grep -c auto-)" = 2 ] && break
    sleep 0.1
done
sleep 2.5
[ "$(ctl snapshot list | grep -c auto-)" = 2 ] || { ctl snapshot list; die "the schedule does not keep two"; }
stop
ok "the clock takes snapshots, and old ones go"

echo "$passed passed, 0 failed"
