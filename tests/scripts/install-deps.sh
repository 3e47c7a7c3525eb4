#!/bin/bash
# install-deps.sh [build] [guest] [test]: installs the Debian packages that are missing, and nothing else.
#
#   build   what cargo needs beside Rust itself (a linker, make)
#   guest   what tests/guest needs to boot a virtual machine
#   test    what the tests compare kfs with
#
# Without root it names the missing packages and fails. Rust is not taken from Debian, whose cargo is
# too old: the script says how to get it.
set -euo pipefail

readonly RUST_WANTED=1.95

declare -A GROUP=(
    [build]="gcc libc6-dev make ca-certificates"
    [guest]="qemu-system-x86 busybox-static e2fsprogs mount cpio xz-utils attr debootstrap debian-archive-keyring"
    [test]="e2fsprogs xfsprogs mount attr acl fuse3 rsync git gcc g++ make tar sqlite3 fio libcap2-bin dbench stress-ng"
)

die() {
    echo "install-deps: $*" >&2
    exit 1
}

check_rust() {
    local version
    if ! command -v cargo >/dev/null; then
        die "cargo is missing. kfs needs Rust $RUST_WANTED or newer; get it with
    curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y
(or see https://rustup.rs), then run the same command again"
    fi
    version=$(cargo --version | awk '{ print $2 }')
    if [ "$(printf '%s\n' "$RUST_WANTED" "$version" | sort -V | head -n 1)" != "$RUST_WANTED" ]; then
        die "cargo is $version, kfs needs $RUST_WANTED or newer: rustup update stable"
    fi
}

missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || echo "$package"
    done | sort -u
}

install_packages() {
    echo "install-deps: installing" "$@"
    if ! apt-get -s install --no-install-recommends "$@" >/dev/null 2>&1; then
        apt-get update -q
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >"$log" 2>&1 || {
        # Package lists of last month name files that the mirror no longer has.
        apt-get update -q
        DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "$@" >"$log" 2>&1 || {
            tail -n 20 "$log" >&2
            die "apt-get install failed"
        }
    }
}

command -v apt-get >/dev/null || die "this is no Debian: install by hand what the groups in $0 name"
[ $# -gt 0 ] || set -- build guest test

wanted=()
for group in "$@"; do
    [ -n "${GROUP[$group]:-}" ] || die "unknown group '$group' (build, guest, test)"
    [ "$group" = build ] && check_rust
    read -r -a packages <<<"${GROUP[$group]}"
    wanted+=("${packages[@]}")
done

mapfile -t missing < <(missing_packages "${wanted[@]}")
[ ${#missing[@]} -gt 0 ] || exit 0
if [ "$(id -u)" != 0 ]; then
    die "these packages are missing; run as root:
    apt-get install --no-install-recommends ${missing[*]}"
fi
log=$(mktemp)
trap 'rm -f "$log"' EXIT
install_packages "${missing[@]}"
