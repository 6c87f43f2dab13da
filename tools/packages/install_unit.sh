#!/usr/bin/env bash
# What a .deb brings by itself: unit, default file and documents, for the program below PREFIX.
set -euo pipefail
cd "$(dirname "$0")/../.."
destdir=${DESTDIR:-} prefix=${PREFIX:-/usr/local}

install -D -m 644 -t "$destdir$prefix/share/doc/flannel-ebpf" README.md docs/*.md deploy/systemd/docker-flannel.conf
unit=$destdir$prefix/lib/systemd/system/flannel-ebpf.service
install -D -m 644 deploy/systemd/flannel-ebpf.service "$unit"
sed -i "s#/usr/bin/flannel-ebpf#$prefix/bin/flannel-ebpf#" "$unit"
if [ ! -e "$destdir/etc/default/flannel-ebpf" ]; then # an operator's is not ours to replace
    install -D -m 644 deploy/default "$destdir/etc/default/flannel-ebpf"
fi
