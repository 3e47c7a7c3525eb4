#!/bin/bash
# prepare.sh [--programs]: fetches and builds what a guest boots from, once, under build/guest/.
#
#   vmlinuz, modules/   Debian's cloud kernel (unpacked, not installed)
#   initramfs.cpio.gz   busybox, getfattr/setfattr and tests/guest/init: boots in a few seconds
#   programs.ext4       with --programs: a Debian root with git, gcc, sqlite3, rsync, fio, ...
#   accel               "kvm" where KVM runs a guest, else "tcg"
#
# Nothing is done twice; `make clean` forgets it all.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
top=$(cd "$here/../.." && pwd)
build=${KFS_GUEST_DIR:-$top/build/guest}
mirror=${KFS_DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg
readonly PROGRAMS=git,gcc,libc6-dev,make,sqlite3,rsync,fio,attr,acl,e2fsprogs,util-linux,python3-minimal,perl-base

say() { echo "prepare: $*" >&2; }
die() {
    say "$@"
    exit 1
}

# private_apt LINE: a private set of package lists, so that nothing changes in /etc/apt.
private_apt() {
    rm -rf "$build/apt"
    mkdir -p "$build/apt/lists/partial" "$build/apt/cache/archives/partial"
    echo "$1" >"$build/apt/sources.list"
}

apt_here() {
    local command=$1
    shift
    "$command" -o Dir::Etc::sourcelist="$build/apt/sources.list" -o Dir::Etc::sourceparts=- \
        -o Dir::State::Lists="$build/apt/lists" -o Dir::Cache="$build/apt/cache" \
        -o APT::Sandbox::User=root "$@"
}

# Prints the name of the newest cloud kernel that `$1 depends` knows.
kernel_package() {
    "$@" depends linux-image-cloud-amd64 2>/dev/null |
        awk '$1 == "Depends:" && $2 ~ /^linux-image-/ { print $2; exit }'
}

fetch_kernel() {
    local codename package
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-bookworm}")
    private_apt "deb [signed-by=$KEYRING] $mirror $codename-backports main"
    package=
    if apt_here apt-get update -q >"$build/apt/log" 2>&1; then
        package=$(kernel_package apt_here apt-cache || true)
    fi
    if [ -n "$package" ]; then
        say "fetching $package from $codename-backports"
        (cd "$build/apt" && apt_here apt-get download -q "$package" >>log 2>&1) || package=
    fi
    if [ -z "$package" ]; then
        package=$(kernel_package apt-cache || true)
        [ -n "$package" ] || die "no package linux-image-cloud-amd64: run apt-get update"
        say "fetching $package"
        (cd "$build/apt" && apt-get download -q "$package" >>log 2>&1) || {
            tail -n 5 "$build/apt/log" >&2
            die "cannot download $package"
        }
    fi
    rm -rf "$build/apt/unpacked"
    dpkg -x "$build/apt/$package"_*.deb "$build/apt/unpacked"
}

# Copies a module and what it depends on, decompressed, in the order in which insmod wants them.
take_module() {
    local tree=$1 module=$2 file name number
    file=$(find "$tree" -name "$module.ko*" | head -n 1)
    [ -n "$file" ] || return 0 # built in
    name=$(basename "${file%.xz}")
    [ -z "$(find "$build/modules.new" -name "*-$name")" ] || return 0
    number=$(find "$build/modules.new" -type f | wc -l)
    case $file in
    *.xz) xz -dc "$file" ;;
    *) cat "$file" ;;
    esac >"$build/modules.new/$(printf %02d "$number")-$name"
}

prepare_kernel() {
    local module
    [ -e "$build/vmlinuz" ] && return
    fetch_kernel
    rm -rf "$build/modules" "$build/modules.new"
    mkdir "$build/modules.new"
    for module in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci fuse virtiofs virtio_blk; do
        take_module "$build/apt/unpacked" "$module"
    done
    mv "$build/modules.new" "$build/modules"
    cp "$build/apt/unpacked"/boot/vmlinuz-* "$build/vmlinuz.new"
    basename "$build/apt/unpacked"/boot/vmlinuz-* | sed 's/vmlinuz-//' >"$build/kernel-version"
    mv "$build/vmlinuz.new" "$build/vmlinuz"
    rm -rf "$build/apt"
}

# Copies a dynamic program and its libraries into the root folder $1.
take_program() {
    local root=$1 program=$2 file
    for file in "$program" $(ldd "$program" | grep -o '/[^ ]*'); do
        mkdir -p "$root$(dirname "$file")"
        cp -L "$file" "$root$file"
    done
}

prepare_initramfs() {
    local root=$build/initramfs program
    if [ -e "$build/initramfs.cpio.gz" ] && [ "$build/initramfs.cpio.gz" -nt "$here/init" ]; then
        return
    fi
    rm -rf "$root"
    mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,dev,proc,sys,tmp,run,mnt,root,etc,modules,programs}
    cp /bin/busybox "$root/bin/busybox"
    # `busybox --install -s` in the guest makes the other names.
    ln -s busybox "$root/bin/sh"
    ln -s busybox "$root/bin/mount"
    for program in /usr/bin/getfattr /usr/bin/setfattr; do
        take_program "$root" "$program"
    done
    echo "root:x:0:0:root:/root:/bin/sh" >"$root/etc/passwd"
    echo "root:x:0:" >"$root/etc/group"
    cp "$build/modules"/*.ko "$root/modules/" 2>/dev/null || true
    install -m 755 "$here/init" "$root/init"
    (cd "$root" && find . -print0 | cpio --null -o -H newc -R 0:0 --quiet) |
        gzip -1 >"$build/initramfs.new"
    mv "$build/initramfs.new" "$build/initramfs.cpio.gz"
    rm -rf "$root"
}

# A small real C program for the guests to unpack and compile.
fetch_source() {
    local codename=bookworm
    private_apt "deb-src [signed-by=$KEYRING] $mirror $codename main"
    apt_here apt-get update -q >"$build/apt/log" 2>&1 &&
        (cd "$1" && apt_here apt-get source -q --download-only lua5.4 >>"$build/apt/log" 2>&1) || {
        tail -n 5 "$build/apt/log" >&2
        die "cannot fetch the source of lua5.4"
    }
    rm -rf "$build/apt"
}

prepare_programs() {
    local root=$build/programs
    [ -e "$build/programs.ext4" ] && return
    [ "$(id -u)" = 0 ] || die "making the guest's Debian root needs root (debootstrap)"
    say "making the guest's Debian root (once, about a minute)"
    rm -rf "$root"
    debootstrap --variant=minbase --include="$PROGRAMS" bookworm "$root" "$mirror" \
        >"$build/debootstrap.log" 2>&1 || {
        tail -n 5 "$build/debootstrap.log" >&2
        die "debootstrap failed, see $build/debootstrap.log"
    }
    fetch_source "$root/usr/src"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}/*
    echo guest >"$root/etc/hostname"
    truncate -s 2G "$build/programs.new"
    mke2fs -q -F -t ext4 -O ^has_journal -m 0 -d "$root" "$build/programs.new"
    mv "$build/programs.new" "$build/programs.ext4"
    rm -rf "$root"
}

# /dev/kvm may exist and still run nothing (nested machines): only a boot tells.
prepare_accel() {
    [ -e "$build/accel" ] && return
    echo tcg >"$build/accel"
    if [ -w /dev/kvm ]; then
        if KFS_ACCEL=kvm "$here/boot.sh" --timeout 15 >"$build/accel.log" 2>&1; then
            echo kvm >"$build/accel"
        else
            say "/dev/kvm does not run a guest here (see $build/accel.log)"
        fi
    fi
    say "guests run with $(cat "$build/accel")"
}

mkdir -p "$build"
"$here/../scripts/install-deps.sh" guest
exec 9>"$build/.lock"
flock 9
prepare_kernel
prepare_initramfs
prepare_accel
for argument in "$@"; do
    case $argument in
    --programs) prepare_programs ;;
    *) die "unknown argument $argument" ;;
    esac
done
