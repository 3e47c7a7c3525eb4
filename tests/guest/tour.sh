#!/bin/sh
# tour.sh: the scripted tour of `make vm`. Runs in the guest, in busybox's sh; works on /mnt, shows each
# command and what it said. At the end the host is sent a manifest of the tree, which vm.sh compares with
# what Linux finds when it mounts the image itself.
cd /mnt || exit 1

failed=0
run() {
    echo "guest# $*"
    sh -c "$*" || {
        echo "guest: FAILED ($?): $*"
        failed=1
    }
}

run 'grep virtiofs /proc/mounts'
run 'df -h /mnt'
rm -rf tour

echo; echo '--- files and folders'
run 'mkdir -p tour/one/two/three && cd tour && echo "hello from the guest" >one/hello.txt && cat one/hello.txt'
cd tour || exit 1
run 'seq 1 100000 >one/numbers.txt && wc -l one/numbers.txt'
run 'dd if=/dev/urandom of=one/two/random.bin bs=1M count=16 2>/dev/null && ls -l one/two'
run 'for i in $(seq 1 300); do echo $i >one/two/three/file-$i; done; ls one/two/three | wc -l'
run 'mv one/two/three/file-1 one/renamed && rm one/two/three/file-2 && cat one/renamed'
run 'echo appended >>one/hello.txt && truncate -s 5000 one/hello.txt && wc -c one/hello.txt'

echo; echo '--- links, modes, owners, times, special files'
run 'ln one/numbers.txt hard && ln -s one/hello.txt soft && ls -l hard soft && readlink soft'
run 'chown 1000:1001 one/renamed && chmod 4751 one/renamed && touch -d "2001-02-03 04:05:06" one/renamed && ls -l one/renamed'
run 'mkfifo pipe && mknod null c 1 3 && ls -l pipe null'

echo; echo '--- extended attributes'
run 'setfattr -n user.colour -v blue one/hello.txt && getfattr -d one/hello.txt'

echo; echo '--- a sparse file: 64 MiB, two blocks written'
run 'truncate -s 64M sparse && echo start | dd of=sparse conv=notrunc 2>/dev/null && echo end | dd of=sparse bs=1M seek=60 conv=notrunc 2>/dev/null; ls -lh sparse; du -h sparse'

echo; echo '--- a tar archive and back'
run 'tar cf archive.tar one && mkdir copy && tar xf archive.tar -C copy && diff -r one copy/one && echo "the copy is identical"'
run 'rm -rf copy/one/two/three && find . | wc -l'

echo; echo '--- unlinked while open, and sync'
run 'exec 3<>gone; rm gone; echo "still there" >&3; cat /proc/self/fd/3; [ ! -e gone ]'
run 'sync && df -h /mnt'

sync
sh /run/kfs/manifest.sh /mnt | sed 's/^/KFS-COLLECT /'
exit $failed
