#!/bin/sh
# stale.sh: a guest whose volume is set back to a snapshot by the host, while it has a file and a directory open.
#
# The host takes the snapshot when it reads "wrote the first state", says so by /mnt/go, and sets the volume
# back when it reads "opened".
set -u
cd /mnt || exit 1
failed=0

fail() {
    echo "$*"
    failed=1
}

# wait_until COMMAND...: true when the command succeeds within 60 s.
wait_until() {
    tries=0
    while ! "$@"; do
        tries=$((tries + 1))
        [ $tries -lt 240 ] || return 1
        sleep 0.25
    done
}

# is_stale COMMAND...: fails with ESTALE.
is_stale() {
    said=$("$@" 2>&1) && fail "$* succeeds: $said"
    case $said in
    *"Stale file handle"*) ;;
    *) fail "$* says: $said" ;;
    esac
}

mkdir dir
echo then >dir/state
echo mine >victim
sync
echo "wrote the first state"
wait_until [ -e go ] || fail "the host did not go on"

echo now >dir/state
echo later >dir/later
exec 3<dir/state
# A file that takes the inode of one that the snapshot has.
old=$(stat -c %i victim)
rm victim
for number in 1 2 3 4 5 6 7 8; do
    echo other >"heir$number"
    [ "$(stat -c %i "heir$number")" != "$old" ] || exec 4>>"heir$number"
done
[ -e /proc/self/fd/4 ] || fail "no file took the inode of another"
cd dir
sync
echo "opened"
wait_until [ ! -e /mnt/go ] || fail "the volume was not set back"

is_stale cat <&3
is_stale ls .
(echo more >&4) 2>/dev/null
sync
exec 3<&- 4>&-
cd /mnt
[ "$(cat dir/state)" = then ] || fail "dir/state holds $(cat dir/state)"
[ "$(cat victim)" = mine ] || fail "victim holds $(cat victim)"
[ ! -e dir/later ] || fail "a file of later is there"
echo again >dir/again
sync
echo "saw the first state"
exit $failed
