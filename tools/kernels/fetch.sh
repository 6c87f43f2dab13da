#!/usr/bin/env bash
# Fetch a stock kernel of Debian's and unpack it, never install it; print the folder, which is made once.
#
#   tools/kernels/fetch.sh bullseye|bookworm|trixie|newest [ARCHITECTURE]
#
# `newest` is the newest one of trixie-backports and sid. The folder has vmlinuz, lib/modules/VERSION and
# initramfs, and lies in $FLANNEL_KERNELS (default ~/.cache/flannel-ebpf/kernels).
set -euo pipefail

name=$1
architecture=${2:-amd64}
here=$(cd "$(dirname "$0")" && pwd)
work=${FLANNEL_KERNELS:-$HOME/.cache/flannel-ebpf/kernels}
folder=$work/$name-$architecture
finish() {
    "$here/initramfs.sh" "$folder" "$(ls "$folder/lib/modules")"
    echo "$folder"
    exit
}
if [ -e "$folder/vmlinuz" ]; then finish; fi

case $name in
newest) releases="trixie-backports sid" ;;
*) releases=$name ;;
esac

# apt with lists of its own: the machine's keep their releases
apt=$work/apt/$name-$architecture
mkdir -p "$apt"/{lists/partial,cache/archives/partial}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(grep -rhv '^#' /etc/apt/sources.list* | grep -oE 'https?://[^ ]*/debian/?( |$)' | head -n 1 || true)
for release in $releases; do
    echo "deb [signed-by=$keyring] ${mirror:-http://deb.debian.org/debian} $release main"
done > "$apt/sources.list"
options=(-qq -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists="$apt/lists" -o Dir::State::status=/dev/null -o Dir::Cache="$apt/cache"
    -o Acquire::Languages=none -o APT::Sandbox::User=root
    -o APT::Architecture="$architecture" -o APT::Architectures="$architecture")
apt-get "${options[@]}" -o APT::Update::Error-Mode=any update >&2

image=$(for release in $releases; do
    apt-cache "${options[@]}" show --no-all-versions "linux-image-$architecture/$release"
done | grep '^Depends:' | grep -oE 'linux-image-[0-9][^ ,]*' | sort --version-sort | tail -n 1)
[ -n "$image" ] || { echo "no linux-image-$architecture in $releases" >&2; exit 1; }
# since 6.17 or so the image package is a frame around linux-binary-VERSION and linux-modules-VERSION
packages=$(apt-cache "${options[@]}" depends --no-suggests --no-recommends --no-conflicts --no-breaks \
    --no-replaces --no-enhances --recurse "$image" | grep -E '^linux-(image|binary|modules)-[0-9]' | sort -u)

unpacked=$folder.new
rm -rf "$unpacked"
mkdir -p "$unpacked"
# shellcheck disable=SC2086 # one word per package
(cd "$apt" && apt-get "${options[@]}" download $packages >&2)
for package in "$apt"/*.deb; do dpkg-deb -x "$package" "$unpacked"; done
rm -r "$apt"
[ -e "$unpacked/lib" ] || ln -s usr/lib "$unpacked/lib"
mv "$(find "$unpacked" -name 'vmlinuz*' -type f | head -n 1)" "$unpacked/vmlinuz"
version=$(ls "$unpacked/lib/modules")
[ -e "$unpacked/lib/modules/$version/modules.dep.bin" ] || depmod --basedir "$unpacked" "$version"
rm -rf "$folder"
mv "$unpacked" "$folder"
finish
