# lib.sh: what the scripts share; sourced by them (bash). Starts and stops kfsd and judges images.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
bin=${KFS_BIN_DIR:-$top/target/release}
tools=${KFS_TOOLS_DIR:-$top/build/tools/bin}

die() {
    echo "$(basename "$0" .sh): $*" >&2
    exit 1
}

# Shows a command as one would type it, then runs it.
show() {
    echo "host# ${*//$top\//}"
    "$@"
}

# start_kfsd LOG ARGUMENT...: starts kfsd and returns when what it was told to make (sockets, mount
# points) is there. Sets kfsd_pid.
start_kfsd() {
    local log=$1 waited=0 argument previous='' ready
    shift
    "$bin/kfsd" "$@" >"$log" 2>&1 &
    kfsd_pid=$!
    while :; do
        ready=1 previous=''
        for argument in "$@"; do
            case $previous in
            --socket-path) [ -S "$argument" ] || ready=0 ;;
            --mount) mountpoint -q "$argument" || ready=0 ;;
            esac
            previous=$argument
        done
        if ! kill -0 "$kfsd_pid" 2>/dev/null; then
            cat "$log" >&2
            die "kfsd ended before it was ready"
        fi
        [ "$ready" = 0 ] || return 0
        waited=$((waited + 1))
        if [ "$waited" -gt 300 ]; then
            cat "$log" >&2
            kill "$kfsd_pid"
            die "kfsd is not ready after 30 s"
        fi
        sleep 0.1
    done
}

# patiently COMMAND...: again for 5 s until it succeeds.
patiently() {
    local waited=0
    while ! "$@" 2>/dev/null; do
        waited=$((waited + 1))
        if [ "$waited" -gt 50 ]; then
            "$@"
            return
        fi
        sleep 0.1
    done
}

# unmount DIR: who looks at all mounts of the machine keeps one busy for a moment.
unmount() { patiently umount "$1"; }

# mount_image OPTIONS IMAGE DIR: by Linux. The loop device of the mount before may be on its way out.
mount_image() { patiently mount -o "loop,$1" "$2" "$3"; }

# wait_end PID SECONDS: true when the process has ended within that time.
wait_end() {
    local waited=0
    while kill -0 "$1" 2>/dev/null; do
        waited=$((waited + 1))
        [ "$waited" -le $(($2 * 10)) ] || return 1
        sleep 0.1
    done
}

# Asks kfsd to end (it commits and marks the image clean) and passes on its status.
stop_kfsd() {
    local status=0
    kill -TERM "$kfsd_pid" 2>/dev/null || true
    if ! wait_end "$kfsd_pid" 60; then
        kill -KILL "$kfsd_pid"
        die "kfsd did not end within 60 s of SIGTERM"
    fi
    wait "$kfsd_pid" || status=$?
    kfsd_pid=
    return "$status"
}

# One image on one mount, for scripts that look at kfsctl as users do: $image, $mnt, and the parts that passed.
# set_up [DIR...]: also makes these folders in $work; what is mounted on them is unmounted at the end.
set_up() {
    work=$(mktemp -d)
    image=$work/disk.img mnt=$work/mnt passed=0 folders=("$@")
    (cd "$work" && mkdir mnt "$@")
    trap tear_down EXIT
}

# Writers of these scripts go on until $work/stop is there; their pid is $writer.
tear_down() {
    local place
    touch "$work/stop"
    # A frozen volume would hold the writer up.
    [ -z "${kfsd_pid:-}" ] || "$bin/kfsctl" --socket "$work/control" thaw >/dev/null 2>&1 || true
    [ -z "${writer:-}" ] || wait "$writer" || true
    for place in mnt "${folders[@]}"; do
        ! mountpoint -q "$work/$place" || unmount "$work/$place"
    done
    [ -z "${kfsd_pid:-}" ] || kill "$kfsd_pid" 2>/dev/null || true
    rm -rf "$work"
}

ok() {
    echo "ok: $1"
    passed=$((passed + 1))
}

# serve OPTION...: mounts the image.
serve() {
    start_kfsd "$work/log" --image "$image" --mount "$mnt" --control-socket "$work/control" "$@"
}

# Ends what serve began.
stop() {
    unmount "$mnt"
    wait_end "$kfsd_pid" 30 || die "kfsd does not end after umount"
    kfsd_pid=
}

ctl() { "$bin/kfsctl" --socket "$work/control" "$@"; }

need_root() {
    [ "$(id -u)" = 0 ] || die "$1 needs root"
}

need_programs() {
    local program
    for program in "$@"; do
        [ -x "$bin/$program" ] || die "$bin/$program is missing: run make first"
    done
}

# need_tool NAME VERSION: a test program from crates.io in $tools, installed when it is not there.
need_tool() {
    [ "$("$tools/$1" --version 2>/dev/null)" = "$1 $2" ] && return
    echo "installing $1 $2"
    cargo install --quiet --locked --root "$(dirname "$tools")" "$1@$2" || die "cargo install $1@$2 failed"
}
