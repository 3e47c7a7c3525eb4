#!/bin/bash
# host.sh --dir DIR --script FILE [--file FILE] [--env NAME=VALUE] [--collect FILE]: runs a guest's script on
# this machine, at full speed: in a chroot of the guest's Debian root (prepare.sh --programs) with DIR on
# /mnt. All other mounts live in a mount namespace and end with the script.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=${KFS_GUEST_DIR:-$here/../../build/guest}

dir='' script='' collect=/dev/null files=() variables=()
while [ $# -gt 0 ]; do
    case $1 in
    --dir) dir=$2 ;;
    --script) script=$2 ;;
    --file) files+=("$2") ;;
    --env) variables+=("$2") ;;
    --collect) collect=$2 ;;
    *)
        echo "host: unknown option $1" >&2
        exit 2
        ;;
    esac
    shift 2
done
[ "$(id -u)" = 0 ] || {
    echo "host: chroot needs root" >&2
    exit 2
}

if [ -z "${KFS_IN_NAMESPACE:-}" ]; then
    work=$(mktemp -d "${TMPDIR:-/tmp}/kfs-host.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir "$work/root" "$work/kfs"
    cp "$script" "$work/kfs/script"
    [ ${#files[@]} = 0 ] || cp "${files[@]}" "$work/kfs/"
    status=0
    again=()
    for variable in "${variables[@]}"; do again+=(--env "$variable"); done
    KFS_IN_NAMESPACE=$work unshare --mount --propagation private "$0" --dir "$dir" "${again[@]}" | tee "$work/output" | grep -v '^KFS-COLLECT ' || true
    status=$(cat "$work/kfs/status" 2>/dev/null || echo 99)
    sed -n 's/^KFS-COLLECT //p' "$work/output" >"$collect"
    exit "$status"
fi

work=$KFS_IN_NAMESPACE
root=$work/root
mount -o loop,ro "$build/programs.ext4" "$root"
for place in tmp run root; do mount -t tmpfs tmpfs "$root/$place"; done
mount --rbind /dev "$root/dev"
mount --bind /proc "$root/proc"
mount --bind "$dir" "$root/mnt"
mkdir "$root/run/kfs"
cp -r "$work/kfs/." "$root/run/kfs/"
status=0
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "${variables[@]}" chroot "$root" /bin/sh /run/kfs/script </dev/null 2>&1 || status=$?
echo "$status" >"$work/kfs/status"
