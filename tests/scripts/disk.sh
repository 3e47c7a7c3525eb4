#!/bin/bash
# disk.sh IMAGE SIZE: formats IMAGE with our mkfs. An image that holds something is left alone.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# = 2 ] || die "usage: disk.sh IMAGE SIZE"
need_programs mkfs
if [ -s "$1" ]; then
    echo "$1 exists; remove it to make another"
    exit 0
fi
show "$bin/mkfs" "$1" "$2"
