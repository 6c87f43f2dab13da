#!/usr/bin/env bash
# What tools/kernel_matrix.sh runs inside the virtual machine. $1: the folder that both sides may write.
set -euo pipefail

out=$1
# shellcheck source=/dev/null
. "$out/settings"
root=/run/cached

# The host's file system once more, this time cached: without, every Python start takes ten seconds.
mkdir -p "$root"
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=loose,ro cached "$root"
for folder in proc sys dev; do mount --rbind "/$folder" "$root/$folder"; done
for folder in tmp run; do mount -t tmpfs tmpfs "$root/$folder"; done
mount --bind "$out" "$root$out"

# The kernel loads modules by itself, from where its package was unpacked.
printf '#!/bin/sh\nexec /sbin/modprobe -d %q "$@"\n' "$root$KERNEL" > /run/modprobe
chmod 755 /run/modprobe
echo /run/modprobe > /proc/sys/kernel/modprobe
/run/modprobe tun # no udev here: the module itself makes /dev/net/tun

export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/tmp
export PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$CHECKOUT
inside() { chroot "$root" /usr/bin/env --chdir="$CHECKOUT" .venv/bin/python "$@"; }

inside -c 'from flannel_ebpf.kernel.programs.probe import has_tcx, probe; print("kernels: probe:", probe().name, "tcx:", has_tcx())'
inside tools/kernels/two_nodes.py
inside -m pytest -p no:cacheprovider --fuzz-frames=300 --timeout=900 --tb=short --color=no --quiet $TESTS
touch "$out/passed"
