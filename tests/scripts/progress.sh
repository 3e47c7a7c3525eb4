#!/bin/bash
# progress.sh: what a terminal shows while kfsctl takes its time, and what Ctrl-C leaves; then what --json prints,
# for each command, when it works and when it fails. Root only (mounts). Prints a line for each part and
# "N passed, 0 failed" at the end.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
bin=${KFS_BIN_DIR:-$top/target/debug}
set_up
new=$work/new.img

# 60 GiB that take no room, and which an export reads all the same.
"$bin/mkfs" "$image" 100G >/dev/null
serve
echo here >"$mnt/file"
fallocate -l 60G "$mnt/big"
ctl snapshot create one >/dev/null
healthy() { ctl snapshot list | grep -q ' one ' && echo again >"$mnt/again"; }
# interrupted STATUS COMMAND...: runs it for a second, until Ctrl-C.
interrupted() {
    local wanted=$1 status=0
    shift
    timeout --foreground --preserve-status -s INT 1 "$@" >"$work/out" 2>"$work/err" || status=$?
    [ "$status" = "$wanted" ] || { cat "$work/out" "$work/err"; die "$* ends with $status"; }
}
gone_soon() {
    for _ in $(seq 50); do
        [ -e "$new" ] || return 0
        sleep 0.1
    done
    die "half an image is left: $(ls -s "$new")"
}

status=0
script -qec "timeout --foreground --preserve-status -s INT 2 $bin/kfsctl --socket $work/control snapshot export one $new" \
    "$work/screen" >/dev/null || status=$?
[ "$status" = 130 ] || { cat "$work/screen"; die "on a terminal it ends with $status"; }
grep -q 'copying .* [0-9]* %' "$work/screen" || { cat -v "$work/screen"; die "no bar is drawn"; }
grep -q 'stopping' "$work/screen" && grep -q 'is removed again' "$work/screen" || { cat -v "$work/screen"; die "it does not say what became of it"; }
[ ! -e "$new" ] || die "half an image is left"
healthy || die "the daemon is not well"
ok "a bar is drawn, and Ctrl-C leaves nothing"

interrupted 130 "$bin/kfsctl" --socket "$work/control" snapshot export one "$new"
[ ! -e "$new" ] || die "half an image is left"
! grep -q '%' "$work/err" || die "a bar without a terminal"
interrupted 130 "$bin/kfsctl" --socket "$work/control" snapshot clone one "$new"
[ ! -e "$new" ] && healthy || die "half a clone is left"
"$bin/kfsctl" --socket "$work/control" snapshot export one "$new" >/dev/null 2>&1 &
asking=$!
sleep 1
[ -e "$new" ] || die "it has not begun"
kill -KILL "$asking"
wait "$asking" 2>/dev/null || true
gone_soon
healthy || die "the daemon is not well"
ok "neither does a killed kfsctl"

"$bin/kfsctl" --socket "$work/control" snapshot export one "$new" >/dev/null 2>&1 &
asking=$!
sleep 1
[ -e "$new" ] || die "it has not begun"
kill "$kfsd_pid"
wait_end "$kfsd_pid" 30 || die "kfsd does not end during an export"
[ ! -e "$new" ] || die "kfsd leaves half an image"
! wait "$asking" || die "kfsctl says that it worked"
kfsd_pid=
! mountpoint -q "$mnt" || umount "$mnt"
interrupted 130 "$bin/kfsctl" --image "$image" snapshot export one "$new"
[ ! -e "$new" ] || die "kfsctl leaves half an image"
"$bin/kfsctl" --image "$image" check >/dev/null || die "the image is not clean"
ok "neither does kfsd when it ends, nor kfsctl on an idle image"

# A file in pieces, and a rate that makes moving them take long.
serve
head -c 40M /dev/urandom >"$work/random"
for block in $(seq 0 2 5000); do
    dd if="$work/random" of="$mnt/pieces" bs=8K count=1 skip=$block seek=$block conv=notrunc status=none
    dd if="$work/random" of="$mnt/others" bs=8K count=1 skip=$block seek=$block conv=notrunc status=none
done
sync "$mnt/pieces" "$mnt/others"
sum=$(sha256sum <"$mnt/pieces")
interrupted 130 "$bin/kfsctl" --socket "$work/control" defrag --rate 1M /pieces
grep -q 'were moved, and the same command goes on' "$work/err" || { cat "$work/err"; die "it does not say how far it came"; }
[ "$(sha256sum <"$mnt/pieces")" = "$sum" ] && healthy || die "another file than before"
stop
interrupted 130 "$bin/kfsctl" --image "$image" resize 8T
grep -q 'the volume is whole' "$work/err" || { cat "$work/err"; die "it does not say what there is now"; }
"$bin/kfsctl" --image "$image" check >"$work/check" && ! grep warning "$work/check" || { cat "$work/check"; die "the image is not clean"; }
ok "defrag and resize end after the step at hand"

rm "$image"
"$bin/mkfs" "$image" 600M >/dev/null
serve
echo here >"$mnt/file"
# json STATUS ARGUMENT...: prints one value, and nothing else, and ends with that status.
json() {
    local wanted=$1 status=0
    shift
    ctl --json "$@" >"$work/out" 2>"$work/err" || status=$?
    [ "$status" = "$wanted" ] || { cat "$work/out" "$work/err"; die "$* --json ends with $status"; }
    [ "$(wc -l <"$work/out")" = 1 ] && python3 -m json.tool <"$work/out" >"$work/pretty" ||
        { cat "$work/out" "$work/err"; die "$* --json prints no JSON"; }
    [ "$wanted" = 0 ] || python3 -c 'import json, sys; e = json.load(sys.stdin)["error"]; e["code"], e["message"]' <"$work/out" ||
        { cat "$work/out"; die "$* --json does not say what is wrong"; }
    tried="$tried $1${2:+ $2}"
}
tried=
json 0 status
json 0 snapshot create one -m 'a "comment"'
json 0 snapshot list
json 0 snapshot show one
echo other >"$mnt/file"
json 0 snapshot diff one
json 0 log /file
json 0 restore one --path /file
json 0 check
json 0 check --snapshot one
json 0 defrag --dry-run
json 0 defrag
json 0 fragmap
json 0 fragmap /file
json 0 fragmap -o "$work/map.svg"
json 0 trim
json 0 sync
json 0 drop-caches
json 0 freeze --timeout 20s
json 0 thaw
json 0 set log-level warn
json 0 metrics
json 0 top --once
json 0 snapshot export one "$new"
json 0 snapshot clone one "$work/clone.img"
json 0 restore one --force
json 0 resize +200M
json 0 snapshot delete before-restore-1
json 0 snapshot delete --keep last=1
ok "--json: each command prints one value"

json 1 snapshot create one
json 1 snapshot show nobody
json 1 snapshot delete nobody
json 1 snapshot diff nobody
json 1 snapshot export one "$new"
json 1 snapshot clone nobody "$work/none.img"
json 1 log /nothing
json 1 restore one
json 1 restore nobody --path /file
json 8 check --snapshot nobody
json 1 defrag /nothing
json 1 fragmap /nothing
json 1 thaw
json 1 resize 1M
json 2 resize much
json 2 set log-level loud
json 2 snapshot delete --keep sometimes=1
json 2 dance
stop
for command in status 'snapshot create' 'snapshot list' 'snapshot show one' 'snapshot delete one' 'snapshot diff one' \
    "snapshot export one $work/none.img" "snapshot clone one $work/none.img" 'log /file' 'restore one --force' 'restore one --path /file' \
    'defrag' 'fragmap' 'trim' 'sync' 'drop-caches' 'resize +1G' 'freeze' 'thaw' 'set log-level warn' 'metrics' 'top --once'; do
    # shellcheck disable=SC2086
    json 1 $command
done
json 8 check
json 8 check --snapshot one
# Every command that there is was tried.
for command in $("$bin/kfsctl" --help | awk '/^Commands:/ { on = 1; next } /^$/ { on = 0 } on && /^  [a-z]/ && $1 != "help" { print $1 }'); do
    [[ " $tried " = *" $command "* ]] || die "nobody tries $command"
done
ok "--json: each error is one value"

echo "$passed passed, 0 failed"
