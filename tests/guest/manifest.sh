#!/bin/sh
# manifest.sh DIR: says all that is to be known about the tree DIR: names, types, modes, owners, link
# counts, sizes, allocated blocks, mtimes to the nanosecond where stat tells, SHA-256 of contents,
# targets of symlinks, extended attributes. It runs alike in busybox and in Debian, so that what a guest
# saw and what Linux sees on the host can be compared with diff.
#
# KFS_MANIFEST_BLOCKS=0 leaves out the allocated blocks (a copy may have others).
cd "$1" || exit 1
export LC_ALL=C

[ "${KFS_MANIFEST_BLOCKS:-1}" = 1 ] && blocks=' %b' || blocks=''
below() { find . -path ./lost+found -prune -o "$@" -print0 | sort -z; }

echo "# folders: name, mode, owner, mtime"
below -type d | xargs -0 -r stat -c '%n %a %u:%g %Y'
echo "# files: name, mode, owner, links, size, blocks, mtime"
below -type f | xargs -0 -r stat -c "%n %a %u:%g %h %s$blocks %Y"
echo "# the rest: name, type, mode, owner, links, device, mtime"
below ! -type f ! -type d | xargs -0 -r stat -c '%n %f %u:%g %h %t,%T %Y'
echo "# symlinks"
below -type l | xargs -0 -r -n 1 readlink
echo "# contents"
below -type f | xargs -0 -r sha256sum
echo "# extended attributes"
below ! -type l | xargs -0 -r getfattr -h -d -e hex -m - 2>/dev/null
echo "# end"
