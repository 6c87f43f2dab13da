#!/usr/bin/env bash
# Make FOLDER/initramfs for the kernel that is unpacked there: busybox, `init`, and the modules that mount a
# host's file system. initramfs.sh FOLDER VERSION; $BUSYBOX is the one to put in
set -euo pipefail

folder=$1 version=$2
here=$(cd "$(dirname "$0")" && pwd)
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mkdir -p "$root"/{bin,modules,proc,sys,dev,root}
cp "${BUSYBOX:-/bin/busybox}" "$root/bin/busybox"
install -m 755 "$here/init" "$root/init"
: > "$root/modules/order"
for module in virtio_pci virtio_mmio overlay 9pnet_virtio 9p; do
    modprobe --dirname "$folder" --set-version "$version" --show-depends "$module" 2> /dev/null |
        sed -n 's/^insmod \([^ ]*\).*/\1/p' || true # built into this kernel
done | while read -r file; do
    plain=$(basename "$file" .xz)
    [ ! -e "$root/modules/$plain" ] || continue
    case $file in
    *.xz) xz --decompress --stdout "$file" > "$root/modules/$plain" ;;
    *) cp "$file" "$root/modules/$plain" ;;
    esac
    echo "$plain" >> "$root/modules/order"
done
(cd "$root" && find . | cpio --quiet --create --format=newc | gzip -1) > "$folder/initramfs"
