#!/bin/bash
# vm.sh IMAGE SIZE: the main job. Formats IMAGE if there is none, starts kfsd on it, boots a guest that
# mounts it by virtio-fs and gives a shell there. With SCRIPT=file, or without a terminal, it runs a
# script in the guest in place of the shell (tests/guest/tour.sh unless told), and then shows that e2fsck
# finds the image clean and that Linux, mounting it, sees what the guest saw.
#
#   SCRIPT=FILE       run FILE in the guest
#   PROGRAMS=1        the guest is a Debian with git, gcc, sqlite3, rsync, fio and python3
#   SHARED_DIR=DIR    serve the folder DIR and no image
#   MEMORY=MIB CPUS=N TIMEOUT=SECONDS
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# = 2 ] || die "usage: vm.sh IMAGE SIZE"
image=$1 size=$2
guest=$top/tests/guest
need_programs kfsd mkfs

prepare=()
[ "${PROGRAMS:-0}" = 0 ] || prepare=(--programs)
"$guest/prepare.sh" "${prepare[@]}"
[ -n "${SHARED_DIR:-}" ] || "$top/tests/scripts/disk.sh" "$image" "$size"

work=$(mktemp -d "${TMPDIR:-/tmp}/kfs-vm.XXXXXX")
kfsd_pid=
cleanup() {
    if mountpoint -q "$work/mnt"; then umount "$work/mnt"; fi
    if [ -n "$kfsd_pid" ]; then kill -TERM "$kfsd_pid" 2>/dev/null && wait_end "$kfsd_pid" 60; fi
    rm -rf "$work"
}
trap cleanup EXIT

boot_guest() {
    local arguments=(--share "myfs=$work/kfsd.sock" "${prepare[@]}" --memory "${MEMORY:-512}" --cpus "${CPUS:-2}")
    if [ -z "${SCRIPT:-}" ] && [ -t 0 ] && [ -t 1 ]; then
        "$guest/boot.sh" "${arguments[@]}" --interactive
    else
        "$guest/boot.sh" "${arguments[@]}" --script "${SCRIPT:-$guest/tour.sh}" --timeout "${TIMEOUT:-600}" \
            --file "$guest/manifest.sh" --env "KFS_MANIFEST_BLOCKS=$blocks" --collect "$work/guest.manifest"
    fi
}

# A host allocates the blocks of a shared folder when it likes; an image has the same for everybody.
[ -n "${SHARED_DIR:-}" ] && blocks=0 || blocks=1

# What is in $1, against what the guest told.
compare() {
    [ -s "$work/guest.manifest" ] || return 0
    KFS_MANIFEST_BLOCKS=$blocks "$guest/manifest.sh" "$1" >"$work/host.manifest" 2>/dev/null
    if ! diff "$work/guest.manifest" "$work/host.manifest"; then
        die "the guest (<) and the host (>) see different trees"
    fi
    echo "The host sees what the guest saw: $(grep -c '^[0-9a-f]\{64\} ' "$work/host.manifest") files with the" \
        "same SHA-256, and the same names, modes, owners, times, links, holes and xattrs."
}

if [ -n "${SHARED_DIR:-}" ]; then source=(--shared-dir "$SHARED_DIR" --xattr); else source=(--image "$image"); fi
echo "host# kfsd ${source[*]} --socket-path $work/kfsd.sock"
start_kfsd "$work/kfsd.log" "${source[@]}" --socket-path "$work/kfsd.sock"
echo "host# qemu-system-x86_64 ... -device vhost-user-fs-pci,chardev=share0,tag=myfs ($(cat "$top/build/guest/accel"))"
status=0
boot_guest || status=$?
kfsd_status=0
stop_kfsd || kfsd_status=$?
if [ -s "$work/kfsd.log" ]; then
    echo; echo "--- kfsd said"
    tail -n 20 "$work/kfsd.log"
fi
[ "$kfsd_status" = 0 ] || die "kfsd ended with status $kfsd_status"
[ "$status" = 0 ] || die "the guest ended with status $status"
if [ -n "${SHARED_DIR:-}" ]; then
    compare "$SHARED_DIR"
    exit 0
fi

echo; echo "--- afterwards, on the host, without kfs"
show e2fsck -fn "$image" || die "e2fsck is not content with $image"
if [ "$(id -u)" = 0 ] && mkdir "$work/mnt" && show mount -o loop,ro "$image" "$work/mnt"; then
    show ls -la "$work/mnt" "$work/mnt"/*
    compare "$work/mnt"
    show umount "$work/mnt"
else
    echo "(mounting the image by Linux needs root and loop devices: not shown)"
fi
