#!/usr/bin/env bash
# Make build/roots/NAME: a Debian RELEASE with PACKAGES, to be booted or chrooted into. Nothing is started.
# Usage: root.sh NAME RELEASE [PACKAGES...]; kept from one run to the next while these stay the same.
set -euo pipefail
cd "$(dirname "$0")/../.."
name=$1 release=$2
shift 2

tools/setup_packages.sh debootstrap
root=build/roots/$name
if [ "$(cat "$root.made" 2> /dev/null)" = "$release $*" ]; then exit 0; fi
rm -rf --one-file-system "$root" "$root.made"
mkdir -p "$root" build/roots/cache
echo "root: making Debian $release in $root, some minutes the first time"
log=$root.log
mirror=$(grep -rhv '^#' /etc/apt/sources.list* | grep -oE 'https?://[^ ]*/debian/?( |$)' | head -1 || true)
debootstrap --variant=minbase --cache-dir="$PWD/build/roots/cache" "$release" "$root" \
    "${mirror:-http://deb.debian.org/debian}" > "$log" 2>&1 || { tail "$log" >&2; exit 1; }
cp -L /etc/resolv.conf "$root/etc/resolv.conf"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"
if [ $# -gt 0 ]; then
    unshare --mount --pid --fork --mount-proc="$root/proc" chroot "$root" /usr/bin/env -i \
        PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive \
        sh -ec "apt-get -qq update; apt-get -qq -y install --no-install-recommends $*; apt-get clean" \
        >> "$log" 2>&1 || { tail "$log" >&2; exit 1; }
fi
echo "$release $*" > "$root.made"
