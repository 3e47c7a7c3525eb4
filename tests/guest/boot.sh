#!/bin/bash
# boot.sh [options]: boots one guest and waits for its end; the status is that of the script in it.
#
#   --share TAG=SOCKET[:DIR]  a vhost-user-fs device; mounted on DIR (default /mnt; "-" for not at all)
#   --script FILE             run FILE in the guest (sh; /bin/sh of busybox, or of Debian with --programs)
#   --file FILE               lay FILE beside the script, as /run/kfs/NAME
#   --env NAME=VALUE          exported to the script
#   --interactive             a shell on this terminal in place of a script
#   --programs                the guest has a Debian root (git, gcc, ...) and not busybox alone
#   --log FILE                keep a copy of what the guest printed
#   --collect FILE            the guest's lines "KFS-COLLECT text" go there (without the word) and are not shown
#   --timeout SECONDS         then QEMU is ended (default 300; none when interactive)
#   --memory MIB  --cpus N  --queues N
#
# Status: the script's; 97 no programs disk, 98 mount failed, 99 the guest ended without a word, 124 time-out.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
build=${KFS_GUEST_DIR:-$here/../../build/guest}

memory=512 cpus=2 queues=1 timeout=300 interactive=0 programs=0 script='' log=/dev/null collect=/dev/null
shares=() files=() variables=()
while [ $# -gt 0 ]; do
    case $1 in
    --share) shares+=("$2") && shift ;;
    --script) script=$2 && shift ;;
    --file) files+=("$2") && shift ;;
    --env) variables+=("$2") && shift ;;
    --log) log=$2 && shift ;;
    --collect) collect=$2 && shift ;;
    --timeout) timeout=$2 && shift ;;
    --memory) memory=$2 && shift ;;
    --cpus) cpus=$2 && shift ;;
    --queues) queues=$2 && shift ;;
    --interactive) interactive=1 ;;
    --programs) programs=1 ;;
    *)
        echo "boot: unknown option $1" >&2
        exit 2
        ;;
    esac
    shift
done

work=$(mktemp -d "${TMPDIR:-/tmp}/kfs-guest.XXXXXX")
qemu_pid=
cleanup() {
    # qemu_pid is that of timeout, which passes TERM on to its QEMU.
    if [ -n "$qemu_pid" ]; then kill -TERM "$qemu_pid" 2>/dev/null || true; fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# The initramfs of prepare.sh, followed by a second archive with what is particular to this boot.
make_initrd() {
    local pair variable mounts=
    mkdir -p "$work/root/kfs"
    for pair in "${shares[@]}"; do
        local tag=${pair%%=*} place=/mnt
        case ${pair#*=} in *:*) place=${pair##*:} ;; esac
        [ "$place" = - ] || mounts+="$tag:$place "
    done
    {
        echo "KFS_MOUNTS='$mounts' KFS_INTERACTIVE=$interactive KFS_PROGRAMS=$programs"
        if [ "$interactive" = 1 ]; then
            stty size </dev/tty 2>/dev/null | sed 's/\(.*\) \(.*\)/KFS_ROWS=\1 KFS_COLUMNS=\2/'
        fi
        for variable in "${variables[@]}"; do
            printf "export %s='%s'\n" "${variable%%=*}" "${variable#*=}"
        done
    } >"$work/root/kfs/env"
    [ -z "$script" ] || cp "$script" "$work/root/kfs/script"
    [ ${#files[@]} = 0 ] || cp "${files[@]}" "$work/root/kfs/"
    (cd "$work/root" && find . -print0 | cpio --null -o -H newc -R 0:0 --quiet) >"$work/extra.cpio"
    # The kernel takes a plain archive only where it starts on a multiple of four bytes.
    dd if="$build/initramfs.cpio.gz" of="$work/initrd" bs=512 conv=sync status=none
    cat "$work/extra.cpio" >>"$work/initrd"
}

qemu_arguments() {
    local number=0 pair socket
    case ${KFS_ACCEL:-$(cat "$build/accel")} in
    kvm) qemu=(-accel kvm -cpu max) ;;
    # Processors that QEMU 7 emulates in threads of their own run instructions that another one has just
    # patched: one boot in a hundred ends with "Oops: int3". So they take turns. Its cmpxchg16b corrupts the
    # kernel's free lists now and then; Linux does without it.
    *) qemu=(-accel tcg,thread=single -cpu max,cx16=off) ;;
    esac
    # Guest memory must be shared with the daemon; without share=on the mount hangs.
    qemu+=(-smp "$cpus" -m "$memory" -nodefaults -no-user-config -display none -no-reboot
        -object "memory-backend-memfd,id=mem,size=${memory}M,share=on" -machine q35,memory-backend=mem
        -kernel "$build/vmlinuz" -initrd "$work/initrd"
        -append "console=ttyS0 quiet panic=-1 rdinit=/init")
    for pair in "${shares[@]}"; do
        socket=${pair#*=}
        qemu+=(-chardev "socket,id=share$number,path=${socket%:*}"
            -device "vhost-user-fs-pci,chardev=share$number,tag=${pair%%=*},queue-size=1024,num-request-queues=$queues")
        number=$((number + 1))
    done
    if [ "$programs" = 1 ]; then
        # snapshot=on: every guest has a root of its own to write to, and nothing is kept.
        qemu+=(-drive "if=none,id=programs,file=$build/programs.ext4,format=raw,snapshot=on,cache=unsafe"
            -device virtio-blk-pci,drive=programs)
    fi
}

make_initrd
qemu_arguments
if [ "$interactive" = 1 ]; then
    qemu-system-x86_64 "${qemu[@]}" -serial mon:stdio
    exit
fi

# The guest's lines pass as they come; the last word of the guest goes to $work/status.
pass_on() {
    while IFS= read -r line || [ -n "$line" ]; do
        line=${line%$'\r'}
        case $line in
        *KFS-GUEST-EXIT*) echo "${line##* }" >"$work/status" ;;
        "KFS-COLLECT "*) printf '%s\n' "${line#KFS-COLLECT }" >&8 ;;
        *"reboot: Power down") ;;
        *) printf '%s\n' "$line" ;;
        esac
    done 8>"$collect"
}

mkfifo "$work/serial"
pass_on <"$work/serial" | tee "$log" &
reader=$!
timeout -k 5 "$timeout" qemu-system-x86_64 "${qemu[@]}" -serial stdio </dev/null >"$work/serial" 2>"$work/stderr" &
qemu_pid=$!
qemu_status=0
wait "$qemu_pid" || qemu_status=$?
qemu_pid=
wait "$reader" || true
# QEMU's device warns of a feature that other monitors use.
grep -v 'supports VHOST_USER_PROTOCOL_F_CONFIG but QEMU does not' "$work/stderr" >&2 || true
if [ "$qemu_status" = 124 ] || [ "$qemu_status" = 137 ]; then
    echo "boot: the guest took more than $timeout s and was ended" >&2
    exit 124
fi
if [ ! -s "$work/status" ]; then
    echo "boot: the guest ended without telling a status (QEMU's status $qemu_status)" >&2
    exit 99
fi
exit "$(cat "$work/status")"
