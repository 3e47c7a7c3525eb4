#!/bin/sh
# peers.sh: one of several users of the same tree at the same time: two guests and a mount on the host.
# KFS_SELF is this one's name, KFS_PEERS everybody's, KFS_DIR where the tree is mounted (default /mnt).
#
# Each writes files and says so, waits for the others' files and checks their contents, renames its own,
# and waits until it sees that the others did. Caches live a second or so, hence the waiting in loops.
set -u
cd "${KFS_DIR:-/mnt}" || exit 1
failed=0

fail() {
    echo "$KFS_SELF: $*"
    failed=1
}

# wait_for PATH: true when PATH is seen within 90 s.
wait_for() {
    tries=0
    while [ ! -e "$1" ]; do
        tries=$((tries + 1))
        [ $tries -lt 180 ] || return 1
        sleep 0.5
    done
}

content() { seq 1 "$2" | sed "s/^/$1 /"; }

mkdir "$KFS_SELF"
for number in $(seq 1 50); do content "$KFS_SELF" "$number" >"$KFS_SELF/$number"; done
dd if=/dev/zero bs=1M count=4 2>/dev/null | tr '\0' x >"$KFS_SELF/large"
ln -s large "$KFS_SELF/link"
touch "$KFS_SELF/written"
echo "$KFS_SELF: wrote its files"

for peer in $KFS_PEERS; do
    wait_for "$peer/written" || {
        fail "does not see the files of $peer"
        continue
    }
    for number in $(seq 1 50); do
        [ "$(content "$peer" "$number")" = "$(cat "$peer/$number")" ] || fail "$peer/$number is wrong"
    done
    [ "$(tr -d x <"$peer/link" | wc -c)" = 0 ] && [ "$(stat -L -c %s "$peer/link")" = 4194304 ] || fail "$peer/link is wrong"
done
touch "$KFS_SELF/read"
for peer in $KFS_PEERS; do wait_for "$peer/read" || fail "$peer never read"; done
echo "$KFS_SELF: read the files of $KFS_PEERS"

for number in $(seq 1 50); do mv "$KFS_SELF/$number" "$KFS_SELF/moved-$number"; done
for number in $(seq 1 10); do rm "$KFS_SELF/moved-$number"; done
touch "$KFS_SELF/moved"
for peer in $KFS_PEERS; do
    wait_for "$peer/moved" || fail "$peer never moved"
    # The names were cached above: they must be gone once the cache has aged.
    tries=0
    while [ -e "$peer/1" ] || [ -e "$peer/moved-10" ] || [ ! -e "$peer/moved-50" ]; do
        tries=$((tries + 1))
        [ $tries -lt 60 ] || break
        sleep 0.5
    done
    count=$(ls "$peer" | grep -c '^moved-')
    [ "$count" = 40 ] || fail "$peer has $count moved files, not 40"
done
touch "$KFS_SELF/done"
for peer in $KFS_PEERS; do wait_for "$peer/done" || fail "$peer is not done"; done
echo "$KFS_SELF: saw what the others moved and removed"
exit $failed
