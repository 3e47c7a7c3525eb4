#!/bin/bash
# pjdfstest.sh [DIR]: the POSIX test suite on a fresh image that kfsd mounts, or on the mounted folder DIR.
# Root only. Ends with pjdfstest's two summaries and "N passed, 0 failed".
#
# Two runs: the tests of a file system that turns read-only want that nobody has a file open for writing,
# and other tests of the suite leave some open until its end (they fail on Linux's ext4 too).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
need_root "pjdfstest"
need_tool pjdfstest 0.2.2
# All tests there are but one, link::link_count_max: Linux does not say a FUSE file system's LINK_MAX.
readonly PASSES=397 SKIPPED=1

work=$(mktemp -d)
# Users without rights have to get to the mount point.
chmod 755 "$work"
image=$work/image mnt=${1:-$work/mnt} second=$work/second mounted=
mkdir -p "$mnt" "$second" "$work/bin"
cleanup() {
    mountpoint -q "$second" && unmount "$second"
    if [ -n "$mounted" ]; then umount "$mnt" 2>/dev/null || true; fi
    [ -z "${kfsd_pid:-}" ] || kill "$kfsd_pid" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

# pjdfstest calls `mount -o remount,ro`. mount(8) would ask /sbin/mount.fuse, where that is installed,
# which cannot remount; and a FUSE file system is busy while the last RELEASE is on its way.
cat >"$work/bin/mount" <<'EOF'
#!/bin/bash
for _ in $(seq 50); do
    /bin/mount -i "$@" 2>"${0%/*}/error" && exit 0
    grep -q busy "${0%/*}/error" || break
    sleep 0.1
done
cat "${0%/*}/error" >&2
exit 32
EOF
chmod +x "$work/bin/mount"

if [ $# = 0 ]; then
    need_programs mkfs kfsd
    "$bin/mkfs" -q "$image" 1G
    start_kfsd "$work/log" --image "$image" --mount "$mnt" --control-socket none
    mounted=1
fi
mount -t tmpfs none "$second"
chmod 1777 "$second" "$mnt"

# suite NAME ARGUMENT...: one run; its summary is printed, and on failure what failed.
suite() {
    local name=$1 status=0
    shift
    PATH=$work/bin:$PATH "$tools/pjdfstest" -c "$work/$name.toml" -s "$second" -p "$mnt" "$@" >"$work/$name" 2>&1 || status=$?
    if [ "$status" != 0 ] || ! grep -q '^Summary: 0 failed' "$work/$name"; then
        grep -A 3 'FAILED$' "$work/$name" | head -n 60 >&2 || tail -n 40 "$work/$name" >&2
        [ ! -e "$work/log" ] || tail -n 20 "$work/log" >&2
        die "$name: pjdfstest failed (status $status)"
    fi
    grep '^Summary' "$work/$name"
}

configuration=$top/tests/conformance/pjdfstest.toml
sed 's/^allow_remount = true/allow_remount = false/' "$configuration" >"$work/writable.toml"
cp "$configuration" "$work/read-only.toml"
suite writable
suite read-only erofs
passed=$(sed -n 's/^Summary:.* \([0-9]*\) passed.*/\1/p' "$work/writable" "$work/read-only" |
    awk "{ sum += \$1 } END { print sum + 0 }")
skipped=$(sed -n 's/^\(.*[^ ]\)  *skipped$/\1/p' "$work/writable" | grep -cv '::erofs_' || true)
[ "$passed" = "$PASSES" ] && [ "$skipped" = "$SKIPPED" ] ||
    die "$passed tests passed and $skipped were skipped: $PASSES and $SKIPPED there should be"

if [ -n "$mounted" ]; then
    unmount "$mnt"
    wait_end "$kfsd_pid" 30 || die "kfsd does not end after umount"
    wait "$kfsd_pid" || die "kfsd ended with status $?"
    kfsd_pid=
    e2fsck -fn "$image" >"$work/e2fsck" 2>&1 || { cat "$work/e2fsck" >&2; die "e2fsck complains"; }
fi
echo "pjdfstest: $passed passed, 0 failed, $skipped cannot apply"
