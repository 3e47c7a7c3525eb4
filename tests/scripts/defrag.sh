#!/bin/bash
# defrag.sh: defragmentation as a user meets it: a mounted volume whose files are in many pieces is put in
# order by kfsctl while others write and read; e2fsck and debugfs judge what is left, and maps are drawn.
# Root only (mounts). Prints a line for each part and "N passed, 0 failed" at the end.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
bin=${KFS_BIN_DIR:-$top/target/debug}
set_up

judge() {
    e2fsck -fn "$image" >"$work/e2fsck" 2>&1 || { cat "$work/e2fsck"; die "the volume is not clean"; }
}
sums() { (cd "$mnt" && sha256sum tree/* sparse ballast); }
# figure JSON FIELD...: a number of an answer.
figure() { python3 -c 'import json, sys
value = json.loads(sys.argv[1])
for field in sys.argv[2:]: value = value[int(field) if isinstance(value, list) else field]
print(value)' "$@"; }
# runs_of FILE: how many runs debugfs sees in a file of the image.
runs_of() {
    debugfs -R "dump_extents -l $1" "$image" 2>/dev/null |
        python3 -c 'import re, sys
runs, end = 0, None
for line in sys.stdin:
    found = re.match(r"\s*\d+/\s*\d+\s+\d+/\s*\d+\s+\d+\s*-\s*\d+\s+(\d+)\s*-\s*(\d+)", line)
    if found:
        runs, end = runs + (int(found[1]) != end), int(found[2]) + 1
print(runs)'
}

# Files that take turns, block by block, written from the end; one with holes that were punched.
cat >"$work/fragment.py" <<'END'
import os, random, sys
root, size = sys.argv[1], 4096
os.mkdir(f"{root}/tree")
random.seed(1)
flags = os.O_RDWR | os.O_CREAT | os.O_DIRECT
files = [os.open(f"{root}/tree/{n}", flags) for n in range(4)]
import mmap
page = mmap.mmap(-1, size)
for block in reversed(range(1300)):
    for number, file in enumerate(files):
        page[:] = bytes([(block * 7 + number) % 251 + 1]) * size
        os.pwrite(file, page, block * size)
sparse = os.open(f"{root}/sparse", os.O_RDWR | os.O_CREAT)
for _ in range(300):
    os.pwrite(sparse, random.randbytes(3000), random.randrange(2000) * 8192)
    os.fsync(sparse)
with open(f"{root}/ballast", "wb") as ballast:
    ballast.write(random.randbytes(8 << 20))
os.sync()
END

"$bin/mkfs" "$image" 512M >/dev/null
serve
python3 "$work/fragment.py" "$mnt"
sums >"$work/sums"
(cd "$mnt" && stat -c '%n %s %b %Y %Z' tree/* sparse ballast) >"$work/stats"
stop
judge
before=$(runs_of tree/2)
[ "$before" -gt 1000 ] || die "the files are not in pieces: $before"
ok "files in $before pieces each"

serve
plan=$(ctl defrag --dry-run --json)
[ "$(figure "$plan" before fragments)" -gt 4000 ] || die "the dry run says: $plan"
ctl defrag --dry-run | grep -q '/tree/0' || die "the dry run does not name the files"
[ "$(figure "$(ctl defrag --dry-run --json /tree/1)" files)" = 1 ] || die "a path does not name one file"
! ctl defrag /nowhere 2>"$work/said" || die "a path that is not there is taken"
grep -q '/nowhere' "$work/said" || die "the error does not name the path"
ok "a dry run says what would be done"

# Somebody writes all the time, to a file of his own and into one that is being moved, and tells how long
# the longest write took.
cat >"$work/writer.py" <<'END'
import os, sys, time
root, stop = sys.argv[1], sys.argv[2]
own = os.open(f"{root}/own", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
shared = os.open(f"{root}/tree/3", os.O_RDWR)
old = os.pread(shared, 4096, 0)
longest, count = 0, 0
while not os.path.exists(stop):
    began = time.monotonic()
    # The same bytes again: what the file holds does not change.
    os.pwrite(shared, old, 0)
    os.pwrite(own, b"x" * 5000, count % 500 * 5000)
    longest = max(longest, time.monotonic() - began)
    count += 1
    time.sleep(0.001)
print(f"{count} writes, the longest took {longest * 1000:.0f} ms")
END
python3 "$work/writer.py" "$mnt" "$work/stop" >"$work/writer" &
writer=$!
ctl snapshot create kept >/dev/null
kept=$(ctl defrag --json)
[ "$(figure "$kept" before gain)" = "$(figure "$kept" after gain)" ] || die "it moved what a snapshot sees: $kept"
[ "$(figure "$kept" kept_bytes)" -gt 20000000 ] || die "it does not tell what stays: $kept"
ctl snapshot delete kept >/dev/null
ok "what a snapshot sees stays"
ctl defrag --rate 200M
done_again=$(ctl defrag --json)
[ "$(figure "$done_again" after fragments)" -lt 40 ] || die "there are many fragments left: $done_again"
[ "$(figure "$done_again" after aligned_bytes)" -ge $((4 * 4 << 20)) ] || die "little is aligned: $done_again"
touch "$work/stop"
wait "$writer"
writer=
cat "$work/writer"
rm "$mnt/own"
sums | diff "$work/sums" - || die "the content has changed"
(cd "$mnt" && stat -c '%n %s %b %Y %Z' tree/[012] sparse ballast) >"$work/after"
grep -v 'tree/3' "$work/stats" | awk '{ print $1, $2, $4, $5 }' >"$work/wanted"
awk '{ print $1, $2, $4, $5 }' "$work/after" | diff "$work/wanted" - || die "sizes or times have changed"
ok "a volume is put in order while others write"

ctl snapshot create pinned >/dev/null
rm "$mnt/tree/1"
sync -f "$mnt"
ctl fragmap >"$work/map"
grep -q "snapshot 'pinned' alone" "$work/map" || { cat "$work/map"; die "the map does not show who keeps what"; }
ctl fragmap -o "$work/map.svg" >/dev/null
ctl fragmap -o "$work/map.png" >/dev/null
ctl fragmap /tree/2 -o "$work/file.png" >/dev/null
python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' "$work/map.svg" || die "the SVG is no XML"
for picture in map file; do
    [ "$(head -c 8 "$work/$picture.png" | od -An -tx1 | tr -d ' ')" = 89504e470d0a1a0a ] || die "$picture.png is no PNG"
done
ctl fragmap /tree/2 | grep -q aligned || die "the map of a file does not tell what is aligned"
[ "$(figure "$(ctl fragmap --json)" cells 0 metadata)" -gt 0 ] || die "the map begins without metadata"
ctl snapshot delete pinned >/dev/null
ok "maps of the volume and of a file"

stop
judge
after=$(runs_of tree/2)
[ "$after" -le 3 ] || die "debugfs sees $after runs"
filefrag_sees=$(e2fsck -fn "$image" 2>/dev/null | sed -n 's/.*(\(.*\) non-contiguous).*/\1/p')
echo "tree/2: $before runs before, $after after; e2fsck: $filefrag_sees of the files are not contiguous"
ok "e2fsck and debugfs agree"

# An image that nobody serves.
"$bin/kfsctl" --image "$image" defrag --json >"$work/idle"
judge
"$bin/kfsctl" --image "$image" fragmap /tree/0 | grep -q FLAGS || die "no map of an idle image"
ok "an idle image"

echo "$passed passed, 0 failed"
