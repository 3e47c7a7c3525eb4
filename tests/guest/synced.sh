#!/bin/sh
# synced.sh: writes files until somebody pulls the plug, and says after each fsync what must have
# survived: "synced NAME SHA-256". Beside it three noisy processes make, rename and remove trees that
# nobody syncs. KFS_DIR is the folder (default /mnt).
cd "${KFS_DIR:-/mnt}" || exit 1

noise() {
    round=0
    while mkdir "noise-$1"; do
        for folder in a b c d; do
            mkdir "noise-$1/$folder" || return
            for file in 1 2 3 4 5 6 7 8; do
                seq 1 $((round % 7 * 400 + file)) >"noise-$1/$folder/$file" || return
            done
        done
        mv "noise-$1/a" "noise-$1/moved" && ln "noise-$1/b/1" "noise-$1/hard" && ln -s b "noise-$1/soft" || return
        setfattr -n user.round -v $round "noise-$1/b" || return
        rm -rf "noise-$1" || return
        round=$((round + 1))
    done
}

noise 1 2>/dev/null &
noise 2 2>/dev/null &
noise 3 2>/dev/null &
number=0
while :; do
    number=$((number + 1))
    folder=synced-$((number % 5))
    name=$folder/$number
    mkdir -p "$folder" || exit 1
    seq "$number" $((number + number % 11 * 1000)) | dd of="$name" conv=fsync 2>/dev/null || exit 1
    # Every third one is written again, in the middle.
    if [ $((number % 3)) = 0 ]; then
        echo "again $number" | dd of="$name" bs=1 seek=100 conv=notrunc,fsync 2>/dev/null || exit 1
    fi
    sum=$(sha256sum <"$name") || exit 1
    echo "synced $name ${sum%% *}"
done
