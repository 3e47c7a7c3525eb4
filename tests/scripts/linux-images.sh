#!/bin/bash
# linux-images.sh: images that mke2fs made and Linux filled, read and then changed by kfs. What kfs shows
# must be what Linux put there, and what Linux shows afterwards what kfs did; e2fsck judges in between.
# Root only (loop mounts). Prints one line for each kind of image and "N passed, 0 failed" at the end.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
bin=${KFS_BIN_DIR:-$top/target/debug}
work=$(mktemp -d)
image=$work/image mnt=$work/mnt
mkdir "$mnt"

cleanup() {
    mountpoint -q "$mnt" && unmount "$mnt"
    [ -z "${kfsd_pid:-}" ] || kill "$kfsd_pid" 2>/dev/null || true
    rm -rf "$work"
}
trap cleanup EXIT

manifest() { "$top/tests/guest/manifest.sh" "$mnt"; }

fill() {
    mkdir -p "$mnt/many" "$mnt/deep/a/b/c/d/e" "$mnt/attributes"
    cp -a "$top/kfs/src" "$mnt/source"
    (cd "$mnt/many" && for i in $(seq 3000); do : >"a-file-with-a-name-of-some-length-$i"; done)
    printf 'hello' >"$mnt/deep/a/b/c/d/e/file"
    ln "$mnt/deep/a/b/c/d/e/file" "$mnt/hard"
    ln -s short "$mnt/fast"
    ln -s "$(printf 'x%.0s' $(seq 300))" "$mnt/slow"
    mknod "$mnt/null" c 1 3
    mknod "$mnt/disk" b 259 70000
    mkfifo "$mnt/fifo"
    dd if=/dev/urandom of="$mnt/sparse" bs=4k count=1 seek=5000 status=none
    for i in $(seq 1 2 199); do
        dd if=/dev/urandom of="$mnt/fragmented" bs=4k count=1 seek="$i" conv=notrunc status=none
    done
    fallocate -l 1M "$mnt/allocated" 2>/dev/null || truncate -s 1M "$mnt/allocated"
    chown 1234:5678 "$mnt/hard"
    chmod 4751 "$mnt/hard"
    touch -d '2039-05-06 07:08:09' "$mnt/fast" "$mnt/allocated"
    for i in $(seq 4); do
        : >"$mnt/attributes/$i"
        setfattr -n user.text -v "value $i" "$mnt/attributes/$i"
        setfattr -n trusted.large -v "$(printf 'v%.0s' $(seq $((i * 180))))" "$mnt/attributes/$i"
    done
    # Fits only where attributes have inodes of their own.
    setfattr -n user.huge -v "$(printf 'h%.0s' $(seq 20000))" "$mnt/attributes/4" 2>/dev/null || true
    setfacl -m u:1234:rwx,g:5678:r "$mnt/attributes/1"
    setfacl -d -m u:1234:rwx "$mnt/attributes"
}

change() {
    rm -r "$mnt/source/storage"
    (cd "$mnt/many" && for i in $(seq 1 3 3000); do rm "a-file-with-a-name-of-some-length-$i"; done)
    (cd "$mnt/many" && for i in $(seq 500); do : >"another-$i"; done)
    echo more >>"$mnt/deep/a/b/c/d/e/file"
    mv "$mnt/deep/a/b/c" "$mnt/moved"
    truncate -s 333333 "$mnt/fragmented"
    fallocate -p -o 20000 -l 100000 "$mnt/fragmented"
    truncate -s 60M "$mnt/sparse"
    dd if=/dev/urandom of="$mnt/allocated" bs=1000 count=300 seek=17 conv=notrunc status=none
    ln "$mnt/hard" "$mnt/another-hard"
    setfattr -n user.new -v new "$mnt/attributes/2"
    setfattr -x trusted.large "$mnt/attributes/3"
    : >"$mnt/attributes/inherits"
    cp -a "$top/disk/src" "$mnt/more-source"
}

# make OPTION...: an image filled by Linux; what Linux shows of it goes to $work/linux.
make() {
    local kind=(-t ext4)
    [ "${1:-}" != -t ] || kind=()
    rm -f "$image"
    mke2fs -q -F "${kind[@]}" "$@" "$image" 600M >/dev/null
    mount_image rw "$image" "$mnt"
    fill
    # Only written back has Linux allocated everything, and counts it.
    sync -f "$mnt"
    manifest >"$work/linux"
}

# unmount_kfs NAME: unmounts and waits for kfsd's end.
unmount_kfs() {
    unmount "$mnt"
    wait_end "$kfsd_pid" 30 || die "$1: kfsd does not end after umount"
    kfsd_pid=
}

# compare_kfs NAME: mounts the image with kfs, which must show what Linux showed.
compare_kfs() {
    start_kfsd "$work/log" --image "$image" --mount "$mnt" --control-socket none
    manifest >"$work/kfs"
    diff -u "$work/linux" "$work/kfs" || die "$1: kfs does not show what Linux wrote"
}

# judge NAME: e2fsck and Linux on what kfs has left.
judge() {
    e2fsck -fn "$image" >"$work/e2fsck" 2>&1 || { cat "$work/e2fsck"; die "$1: e2fsck complains"; }
    mount_image ro "$image" "$mnt"
    manifest >"$work/linux"
    unmount "$mnt"
    diff -u "$work/kfs" "$work/linux" || die "$1: Linux does not show what kfs wrote"
    echo "$1: the same to kfs and Linux, clean to e2fsck ($(wc -l <"$work/linux") lines)"
    passed=$((passed + 1))
}

# try NAME OPTION...: one kind of image, read and changed.
try() {
    local name=$1
    shift
    make "$@"
    unmount "$mnt"
    compare_kfs "$name"
    change
    sync -f "$mnt"
    manifest >"$work/kfs"
    unmount_kfs "$name"
    judge "$name"
}

# try_reading NAME OPTION...: one that kfs only reads, and says why. Features in $TUNE are added to the
# filled image: not every Linux can change a volume that has them.
try_reading() {
    local name=$1
    shift
    make "$@"
    unmount "$mnt"
    [ -z "${TUNE:-}" ] || tune2fs -O "$TUNE" "$image" >/dev/null 2>&1 || die "$name: tune2fs fails"
    compare_kfs "$name"
    ! touch "$mnt/new" 2>/dev/null || die "$name: can be changed"
    unmount_kfs "$name"
    grep -q 'read-only' "$work/log" || die "$name: kfsd does not say that it is read-only"
    judge "$name"
}

# try_dirty NAME OPTION...: one that Linux did not unmount, with a journal to replay and orphans.
try_dirty() {
    local name=$1 copy=$work/copy
    shift
    make "$@"
    exec 7>"$mnt/gone" 8<"$mnt/many/a-file-with-a-name-of-some-length-7"
    dd if=/dev/urandom of="$mnt/gone" bs=64k count=20 status=none
    rm "$mnt/gone" "$mnt/many/a-file-with-a-name-of-some-length-7"
    sync -f "$mnt"
    manifest >"$work/linux"
    cp --sparse=always "$image" "$copy"
    exec 7>&- 8<&-
    unmount "$mnt"
    mv "$copy" "$image"
    compare_kfs "$name"
    grep -q 'recovered the journal' "$work/log" || die "$name: there was no journal to replay"
    grep -q 'finishing what 2 orphan inodes need' "$work/log" || die "$name: the orphans were not found"
    unmount_kfs "$name"
    judge "$name"
}

# try_refused FEATURE [OPTION...]: one that kfs refuses by the feature's name.
try_refused() {
    local feature=$1
    shift
    rm -f "$image"
    mke2fs -q -F -t ext4 -O "$feature" "$@" "$image" 64M >/dev/null
    if "$bin/kfsd" --image "$image" --mount "$mnt" --control-socket none >"$work/log" 2>&1; then
        die "$feature: not refused"
    fi
    grep -q "$feature" "$work/log" || { cat "$work/log"; die "$feature: not named"; }
    echo "$feature: refused by name"
    passed=$((passed + 1))
}

passed=0
try "defaults"
try "blocks of 1 KiB" -b 1024
try "without 64bit" -O ^64bit
try "without metadata_csum" -O ^metadata_csum
try "inodes of 128 bytes" -I 128
try "as ext3 was laid out, with extents" -O ^flex_bg,^metadata_csum,^64bit,uninit_bg,^orphan_file
try "checksum seed, large directories" -O metadata_csum_seed,large_dir
try "no journal, linear directories" -O ^has_journal,^dir_index
try "meta_bg, two backups" -O meta_bg,^resize_inode,sparse_super2,^sparse_super
try_dirty "not unmounted" -O orphan_file
try_dirty "not unmounted, orphans in a list" -O ^orphan_file -b 1024
try_reading "ext2" -t ext2
try_reading "ext3" -t ext3 -b 1024
TUNE=quota,project try_reading "quota and project" -O extent
try_reading "multiple mount protection" -O mmp
try_reading "bigalloc" -O bigalloc -C 16384
try_reading "inline_data" -O inline_data
try_reading "ea_inode" -O ea_inode
try_refused casefold
try_refused encrypt
echo "$passed passed, 0 failed"
