#!/usr/bin/env bash
# Run flannel-ebpf on Debian's stock kernels, in virtual machines over this machine's file system, read-only:
# the probe, tests/bpf, and two nodes that talk over every backend. Needs no KVM; takes about half an hour.
#
#   tools/kernel_matrix.sh [bullseye|bookworm|trixie]...      default: all three
#
# Downloads, once: Debian packages qemu-system-x86 and kmod (installed), virtme-ng from PyPI (into a Python
# environment of its own), and each release's kernel from the package mirror (unpacked, never installed).
# All but the first two lies in $FLANNEL_KERNELS (default ~/.cache/flannel-ebpf-kernels, 1.5 GB); each
# kernel's results in log-<release> there. Exit status: how many kernels failed.
set -euo pipefail

checkout=$(cd "$(dirname "$0")/.." && pwd)
work=${FLANNEL_KERNELS:-$HOME/.cache/flannel-ebpf-kernels}
[ $# -gt 0 ] || set -- bullseye bookworm trixie
[ "$(id -u)" -eq 0 ] || { echo "kernels: needs root" >&2; exit 1; }
export PATH=$work/vng/bin:$PATH
case $work in
/tmp/* | /run/*) echo "kernels: FLANNEL_KERNELS=$work: a folder outside /tmp and /run, the guest has its own" >&2; exit 1 ;;
esac
mkdir -p "$work"/{apt/lists/partial,apt/cache/archives/partial,out}

for package in qemu-system-x86 kmod; do
    dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null | grep -q '^installed' ||
        apt-get -qq install --no-install-recommends -y "$package"
done
[ -x "$work/vng/bin/vng" ] || {
    /usr/bin/python3 -m venv "$work/vng"
    "$work/vng/bin/pip" install --quiet --disable-pip-version-check virtme-ng==1.42
}

# apt with a sources list of its own: the machine's keeps its releases
mirror=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
printf "deb [signed-by=$keyring] $mirror %s main\n" bullseye bookworm trixie > "$work/apt/sources.list"
options=(-qq -o Dir::Etc::sourcelist="$work/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists="$work/apt/lists" -o Dir::Cache="$work/apt/cache"
    -o Acquire::Languages=none -o APT::Sandbox::User=root)

# Print the folder of a release's kernel, unpacked: boot/vmlinuz-VERSION and lib/modules/VERSION.
kernel_of() {
    local release=$1 package folder="$work/$1"
    if [ ! -e "$folder/complete" ]; then
        [ -s "$work/apt/cache/pkgcache.bin" ] || apt-get "${options[@]}" update
        package=$(apt-cache "${options[@]}" show --no-all-versions "linux-image-amd64/$release" |
            sed -n 's/^Depends: \(linux-image-[^ ]*\).*/\1/p')
        (cd "$work/apt" && apt-get "${options[@]}" download "$package/$release")
        mkdir -p "$folder"
        dpkg-deb -x "$work/apt/$package"_*.deb "$folder"
        rm "$work/apt/$package"_*.deb
        [ -e "$folder/lib" ] || ln -s usr/lib "$folder/lib"
        touch "$folder/complete"
    fi
    echo "$folder"
}

failed=0
for release in "$@"; do
    folder=$(kernel_of "$release")
    image=$(echo "$folder"/boot/vmlinuz-*)
    log=$work/log-$release
    printf 'KERNEL=%q\nCHECKOUT=%q\nTESTS=%q\n' "$folder" "$checkout" "${TESTS:-tests/bpf}" > "$work/out/settings"
    cp "$checkout/tools/kernels/guest.sh" "$work/out/"
    rm -f "$work/out/passed"
    echo "kernels: $release, ${image##*/vmlinuz-}, log in $log"
    # vng wants a terminal; a second share of the root is for guest.sh, which mounts it with a cache
    nice -n 19 script --quiet --flush --return --log-out "$log" --command "vng --verbose --run $image \
        --disable-kvm --cpus 1 --memory 4G --rwdir $work/out --qemu-opts='-fsdev \
        local,id=cached,path=/,security_model=none,readonly=on,multidevs=remap -device \
        virtio-9p-pci,fsdev=cached,mount_tag=cached' -- bash $work/out/guest.sh $work/out" \
        > /dev/null < /dev/null || true
    grep -a '^kernels: ' "$log" | tr -d '\r' || true # a guest that said nothing is told of below
    [ -e "$work/out/passed" ] || { echo "kernels: $release FAILED"; failed=$((failed + 1)); }
done
exit "$failed"
