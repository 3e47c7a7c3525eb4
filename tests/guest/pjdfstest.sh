#!/bin/sh
# pjdfstest.sh: the POSIX test suite on /mnt, in a guest with the Debian root. Beside it lie the program
# (build/tools/bin/pjdfstest) and its configuration (tests/conformance/pjdfstest.toml). Ends with
# "pjdfstest: N passed, 0 failed, N cannot apply" as tests/scripts/pjdfstest.sh does, which says why
# there are two runs.
set -u
here=/run/kfs second=/tmp/second

suite() {
    name=$1
    shift
    "$here/pjdfstest" -c "/tmp/$name.toml" -s $second -p /mnt "$@" >"/tmp/$name" 2>&1 || {
        echo "guest: FAILED: pjdfstest, $name"
        grep -A 3 'FAILED$' "/tmp/$name" | head -n 60 || tail -n 40 "/tmp/$name"
        exit 1
    }
    grep '^Summary: 0 failed' "/tmp/$name" || exit 1
}

mkdir $second
mount -t tmpfs none $second
chmod 1777 $second /mnt
sed 's/^allow_remount = true/allow_remount = false/' $here/pjdfstest.toml >/tmp/writable.toml
cp $here/pjdfstest.toml /tmp/read-only.toml
suite writable
suite read-only erofs
umount $second
passed=$(sed -n 's/^Summary:.* \([0-9]*\) passed.*/\1/p' /tmp/writable /tmp/read-only | awk '{ sum += $1 } END { print sum }')
skipped=$(sed -n 's/^\(.*[^ ]\)  *skipped$/\1/p' /tmp/writable | grep -cv '::erofs_')
echo "pjdfstest: $passed passed, 0 failed, $skipped cannot apply"
