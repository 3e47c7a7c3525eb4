#!/bin/sh
# programs.sh: real programs at work on /mnt. Runs in a guest with the Debian root (boot.sh --programs).
#
# Each step is a function; what it prints is shown only when it fails. A step passes when its last
# command does (set -e within). The work stays on /mnt: the host is sent a manifest of it at the end.
#
# KFS_STEPS names the steps to run (all unless told); KFS_SMALL=1 does less of each.
set -u
export HOME=/root GIT_CONFIG_NOSYSTEM=1 LC_ALL=C
here=/mnt/programs
small=${KFS_SMALL:-0}
[ "$small" = 1 ] && tree="include/linux/netfilter include/asm-generic" || tree="include lib/python3.11 lib/git-core share/perl5"

# A source tree of many small files, from the guest's own root.
step_untar() {
    mkdir -p /tmp/source
    # shellcheck disable=SC2086
    (cd /usr && tar cf /tmp/tree.tar --hard-dereference $tree)
    mkdir untar
    tar xf /tmp/tree.tar -C untar
    tar df /tmp/tree.tar -C untar
    # Once more over itself, and a part of it removed.
    tar xf /tmp/tree.tar -C untar --overwrite
    tar df /tmp/tree.tar -C untar
    find untar | wc -l
    cp -a untar untar.copy
    diff -r --no-dereference untar untar.copy
    rm -rf untar.copy
    [ ! -e untar.copy ]
}

step_git() {
    git config --global user.name guest
    git config --global user.email guest@example.org
    git config --global init.defaultBranch main
    rm -rf /tmp/origin
    mkdir /tmp/origin
    cd /tmp/origin
    git init -q
    parts="asm-generic netinet linux/netfilter linux"
    [ "$small" = 1 ] && parts="asm-generic netinet linux/netfilter linux/can"
    for part in $parts; do
        mkdir -p "$part"
        cp -r "/usr/include/$part/." "$part/"
        git add -A
        git commit -qm "add $part"
    done
    head_wanted=$(git rev-parse HEAD)
    cd "$here"
    git clone -q --no-local /tmp/origin clone
    cd clone
    git fsck --full
    [ "$(git rev-parse HEAD)" = "$head_wanted" ]
    git checkout -q -b work HEAD~2
    for number in $(seq 1 20); do
        echo "change $number" >>notes
        git add notes
        git commit -qm "change $number"
    done
    git merge -q -m merge main
    git gc -q --prune=now
    git fsck --full --strict
    [ -z "$(git status --porcelain)" ]
    [ "$(git log --oneline work ^main | wc -l)" -ge 21 ]
    git clone -q --local . ../clone.local
    git -C ../clone.local fsck --full
}

step_compile() {
    mkdir lua
    tar xf /usr/src/lua5.4_*.orig.tar.* -C lua --strip-components=1
    cd lua
    if [ "$small" = 1 ]; then
        # A tenth of it: emulated machines compile slowly.
        gcc -O0 -Isrc -c src/lctype.c src/lopcodes.c src/lzio.c
        ar rcs libsmall.a ./*.o
        echo 'extern const unsigned char luai_ctype_[]; int main(void) { return luai_ctype_[67] == 0; }' >main.c
        gcc -o main main.c -L. -lsmall
        ./main
        return
    fi
    make -s -j2 -C src a "MYCFLAGS=-std=gnu99 -DLUA_USE_POSIX" CFLAGS="-O0 -w \$(SYSCFLAGS) \$(MYCFLAGS)"
    make -s -j2 -C src lua "MYCFLAGS=-std=gnu99 -DLUA_USE_POSIX" CFLAGS="-O0 -w \$(SYSCFLAGS) \$(MYCFLAGS)"
    # The program that was just linked runs from the file system, and make finds nothing to do again.
    [ "$(src/lua -e 'local s = 0; for i = 1, 1000 do s = s + i end; print(s)')" = 500500 ]
    make -q -C src liblua.a
}

# The same work with a rollback journal and with a write-ahead log (which maps a shared file).
step_sqlite() {
    rows=10000
    [ "$small" = 1 ] && rows=2000
    for mode in delete truncate wal; do
        database=$mode.db
        sqlite3 "$database" "PRAGMA journal_mode=$mode; PRAGMA synchronous=FULL;
            CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT, body BLOB); CREATE INDEX i ON t (name);"
        sqlite3 "$database" "WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < $rows)
            INSERT INTO t SELECT n, hex(n * 7919 % 10007), randomblob(n % 300) FROM c;"
        for number in $(seq 1 25); do
            echo "BEGIN; UPDATE t SET body = randomblob(100) WHERE id % 97 = $number;
                DELETE FROM t WHERE id % 101 = $number; COMMIT;"
        done | sqlite3 "$database"
        # A rolled back transaction leaves no trace.
        before=$(sqlite3 "$database" "SELECT count(*), total(length(body)) FROM t;")
        sqlite3 "$database" "BEGIN; DELETE FROM t; ROLLBACK;"
        [ "$(sqlite3 "$database" "SELECT count(*), total(length(body)) FROM t;")" = "$before" ]
        sqlite3 "$database" "VACUUM; PRAGMA integrity_check;" | grep -qx ok
        [ "$(sqlite3 "$database" "SELECT count(*), total(length(body)) FROM t;")" = "$before" ]
    done
}

# Hard links, ACLs, xattrs, owners, times and holes, there and back.
step_rsync() {
    mkdir from
    cp -r /usr/include/asm-generic from/headers
    ln from/headers/errno.h from/hard
    ln -s headers/errno.h from/soft
    ln -s /nowhere from/dangling
    mkfifo from/pipe
    mknod from/null c 1 3
    truncate -s 8M from/sparse
    echo end | dd of=from/sparse bs=1M seek=5 conv=notrunc status=none
    setfattr -n user.one -v 1 from/headers
    setfattr -n user.long -v "$(seq 1 300)" from/headers/errno.h
    setfattr -n trusted.two -v 2 from/headers/ioctl.h
    chown -R 1000:1001 from/headers
    chmod 6755 from/headers/types.h
    chmod 1777 from/headers
    touch -d '1999-12-31 23:59:58.123456789' from/headers/poll.h
    touch -h -d '2030-01-01 00:00:00.5' from/soft
    if [ "${KFS_ACL:-1}" = 1 ]; then
        setfacl -m u:1234:rwx,g:4321:r from/headers/ioctl.h
        setfacl -d -m u:1234:rx from/headers
    fi
    rsync -aHAXS from/ to/
    [ -z "$(rsync -aHAXS --checksum --delete --dry-run --itemize-changes from/ to/)" ]
    [ "$(stat -c %h to/hard)" = 2 ] && [ "$(stat -c %i to/hard)" = "$(stat -c %i to/headers/errno.h)" ]
    [ "$(stat -c %b to/sparse)" -lt 100 ]
    rm to/headers/errno.h
    chmod 700 to/headers/ioctl.h
    echo changed >to/headers/fcntl.h
    rsync -aHAXS --checksum --delete from/ to/
    [ -z "$(rsync -aHAXS --checksum --delete --dry-run --itemize-changes from/ to/)" ]
    # Through tmpfs and back: nothing is lost on the way.
    rsync -aHAS to/ /tmp/rsync/
    rsync -aHAS /tmp/rsync/ back/
    [ -z "$(rsync -aHAS --checksum --delete --dry-run --itemize-changes from/ back/)" ]
}

step_fio() {
    size=16M
    [ "$small" = 1 ] && size=4M
    common="--directory=$here --size=$size --verify=crc32c --verify_fatal=1 --do_verify=1 --group_reporting --minimal"
    # shellcheck disable=SC2086
    {
        fio $common --name=sequential --rw=write --bs=128k --ioengine=psync --end_fsync=1
        fio $common --name=random --rw=randwrite --bs=4k --ioengine=psync --numjobs=2 --fsync=64
        fio $common --name=odd --rw=randrw --bsrange=512-64k --bs_unaligned --ioengine=psync
        fio $common --name=direct --rw=randwrite --bs=4k --direct=1 --ioengine=psync
        fio $common --name=mapped --rw=randwrite --bs=4k --ioengine=mmap
    } >/tmp/fio.out
}

# Writes as fast as the guest can, in three ways at once.
step_load() {
    common="--directory=$here --time_based --runtime=30 --minimal"
    # shellcheck disable=SC2086
    {
        fio $common --name=sequential --size=64M --rw=write --bs=1M --ioengine=psync &
        first=$!
        fio $common --name=direct --size=32M --rw=randwrite --bs=16k --direct=1 --ioengine=psync &
        second=$!
        fio $common --name=synced --size=16M --rw=randwrite --bs=4k --fsync=4 --ioengine=psync &
        wait $! && wait "$first" && wait "$second"
    } >/tmp/load.out 2>&1
}

step_sparse() {
    offsets="0 1 17 500 1000"
    size=1073741824
    if [ "$small" = 1 ]; then
        offsets="0 1 17 30"
        size=33554432
    fi
    truncate -s $size holes
    for offset in $offsets; do
        dd if=/dev/urandom of=holes bs=64k seek=$((offset * 16)) count=2 conv=notrunc status=none
    done
    cp --sparse=always holes always
    cp --sparse=auto --reflink=never holes auto
    for copy in always auto; do
        [ "$(stat -c %s $copy)" = $size ]
        [ "$(stat -c %b $copy)" -lt 4000 ]
    done
    python3 - "$offsets" holes always auto <<'PYTHON'
import os, sys

def pieces(name):
    """The data ranges as SEEK_DATA and SEEK_HOLE tell them, with their bytes."""
    out, fd = [], os.open(name, os.O_RDONLY)
    end, at = os.fstat(fd).st_size, 0
    while at < end:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            assert error.errno == 6, error  # ENXIO: only a hole is left
            break
        at = os.lseek(fd, start, os.SEEK_HOLE)
        out.append((start, os.pread(fd, at - start, start)))
    os.close(fd)
    return out

first = pieces(sys.argv[2])
assert [(start, len(data)) for start, data in first] == [
    (int(offset) * 1048576, 131072) for offset in sys.argv[1].split()], [(s, len(d)) for s, d in first]
for name in sys.argv[3:]:
    assert pieces(name) == first, name
PYTHON
    rm always
    # fallocate: space without size, a hole punched, zeros, and what is left around them.
    seq 1 200000 | head -c 1048576 >allocated
    cp allocated /tmp/allocated
    fallocate --keep-size --offset 1MiB --length 4MiB allocated
    [ "$(stat -c %s allocated)" = 1048576 ] && [ "$(stat -c %b allocated)" -ge 10240 ]
    cmp allocated /tmp/allocated
    for file in allocated /tmp/allocated; do
        fallocate --punch-hole --offset 65536 --length 131072 $file
        dd if=/dev/zero of=$file bs=1000 seek=300 count=100 conv=notrunc status=none
    done
    cmp allocated /tmp/allocated
    fallocate --zero-range --offset 500000 --length 100001 allocated
    dd if=/dev/zero of=/tmp/allocated bs=1 seek=500000 count=100001 conv=notrunc status=none
    cmp allocated /tmp/allocated
    truncate -s 100001 allocated
    truncate -s 300001 allocated
    truncate -s 100001 /tmp/allocated
    truncate -s 300001 /tmp/allocated
    cmp allocated /tmp/allocated
}

# One folder with many names, long names, deep folders, open-unlinked files, locks, mmap, O_TMPFILE.
step_names() {
    count=5000
    [ "$small" = 1 ] && count=500
    python3 - "$count" <<'PYTHON'
import errno, fcntl, mmap, os, sys

count = int(sys.argv[1])
os.mkdir("many")
for number in range(count):
    os.close(os.open(f"many/a-rather-long-name-for-file-{number:06}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
names = os.listdir("many")
assert len(names) == len(set(names)) == count, len(names)
for number in range(0, count, 2):
    os.unlink(f"many/a-rather-long-name-for-file-{number:06}")
for number in range(1, count, 4):
    os.rename(f"many/a-rather-long-name-for-file-{number:06}", f"many/{number}")
names = os.listdir("many")
assert len(names) == len(set(names)) == count // 2, len(names)
for number in range(1, count, 2):
    old = f"many/{number}" if number % 4 == 1 else f"many/a-rather-long-name-for-file-{number:06}"
    assert os.stat(old).st_size == 0

longest = "n" * 255
open(longest, "w").close()
try:
    open(longest + "n", "w")
    raise AssertionError("a name of 256 bytes was taken")
except OSError as error:
    assert error.errno == errno.ENAMETOOLONG, error
os.link(longest, "m" * 255)
assert os.stat(longest).st_nlink == 2

path = "deep"
for depth in range(60):
    os.mkdir(path)
    path += f"/{depth}"
open(path, "w").write("bottom")
assert open(path).read() == "bottom"

fd = os.open("unlinked", os.O_CREAT | os.O_RDWR)
os.unlink("unlinked")
os.write(fd, b"x" * 100000)
assert os.fstat(fd).st_nlink == 0 and len(os.pread(fd, 200000, 0)) == 100000
os.close(fd)

fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o640)
os.write(fd, b"from nowhere")
# Python asks for AT_SYMLINK_FOLLOW only when it is given a folder.
os.link(f"/proc/self/fd/{fd}", "tmpfile", src_dir_fd=os.open(".", os.O_RDONLY), follow_symlinks=True)
os.close(fd)
assert open("tmpfile").read() == "from nowhere"

fd = os.open("mapped", os.O_CREAT | os.O_RDWR)
os.ftruncate(fd, 1 << 20)
view = mmap.mmap(fd, 1 << 20)
for at in range(0, 1 << 20, 4096):
    view[at:at + 8] = at.to_bytes(8, "big")
view.flush()
for at in range(0, 1 << 20, 4096):
    assert os.pread(fd, 8, at) == at.to_bytes(8, "big")
fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
other = os.open("mapped", os.O_RDWR)
try:
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    raise AssertionError("two exclusive locks")
except BlockingIOError:
    pass
view.close()
os.close(fd)

os.mkdir("rename")
open("rename/a", "w").write("a")
open("rename/b", "w").write("b")
held = open("rename/b")
os.rename("rename/a", "rename/b")
assert open("rename/b").read() == "a" and held.read() == "b" and os.listdir("rename") == ["b"]
os.mkdir("rename/full")
os.mkdir("rename/full/sub")
for bad, wanted in ((("rename/full", "rename/full/sub/x"), errno.EINVAL), (("deep", "rename/full"), errno.ENOTEMPTY)):
    try:
        os.rename(*bad)
        raise AssertionError(bad)
    except OSError as error:
        assert error.errno == wanted, error
PYTHON
}

failed=0 number=0
for step in ${KFS_STEPS:-untar git compile sqlite rsync fio sparse names}; do
    number=$((number + 1))
    mkdir -p "$here"
    cd "$here" || exit 1
    started=$(cut -d . -f 1 /proc/uptime)
    # Not in a condition: the shell would not mind set -e in there.
    (
        set -e
        mkdir "$step.d"
        here=$here/$step.d
        cd "$here"
        "step_$step"
    ) >/tmp/step.log 2>&1
    status=$?
    took=$(($(cut -d . -f 1 /proc/uptime) - started))
    if [ $status = 0 ]; then
        echo "ok $number - $step ($took s)"
    else
        failed=$((failed + 1))
        echo "not ok $number - $step ($took s, status $status)"
        tail -n 40 /tmp/step.log | sed 's/^/    /'
    fi
done
echo "$((number - failed)) of $number steps passed"
sync
if [ "${KFS_MANIFEST:-1}" = 1 ]; then sh /run/kfs/manifest.sh /mnt | sed 's/^/KFS-COLLECT /'; fi
[ $failed = 0 ]
