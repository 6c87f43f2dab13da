#!/usr/bin/env bash
# Make FOLDER: Debian's arm64 packages that the lab and its tests need, unpacked (nothing of them is run), and
# Python's packages of this checkout's environment as far as they are not compiled. arm64_root.sh FOLDER
set -euo pipefail

root=$1
checkout=$(cd "$(dirname "$0")/../.." && pwd)
if [ -e "$root/complete" ]; then exit; fi
rm -rf "$root"
apt=$root.apt
mkdir -p "$root" "$apt"/{lists/partial,cache/archives/partial}
mirror=$(grep -rhv '^#' /etc/apt/sources.list* | grep -oE 'https?://[^ ]*/debian/?( |$)' | head -n 1 || true)
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] ${mirror:-http://deb.debian.org/debian} bookworm main" > "$apt/sources.list"
touch "$apt/status"
options=(-qq -o Dir::Etc::sourcelist="$apt/sources.list" -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::lists="$apt/lists" -o Dir::State::status="$apt/status" -o Dir::Cache="$apt/cache"
    -o Acquire::Languages=none -o APT::Sandbox::User=root -o APT::Architecture=arm64
    -o APT::Architectures=arm64 -o APT::Install-Recommends=false)
apt-get "${options[@]}" -o APT::Update::Error-Mode=any update
packages=(bash busybox-static coreutils mount util-linux procps grep sed gawk findutils kmod iproute2 iputils-ping iptables
    nftables ipset conntrack ethtool tcpdump iperf3 etcd-server etcd-client python3 python3-bpfcc
    python3-grpcio bpftool diffutils)
apt-get "${options[@]}" -o Debug::NoLocking=true --download-only --yes install "${packages[@]}"
for package in "$apt"/cache/archives/*.deb; do dpkg-deb --fsys-tarfile "$package" | tar -x -C "$root" --keep-directory-symlink; done
rm -rf "$apt"
# what the packages' scripts would have done
for folder in run proc sys dev tmp root etc/alternatives; do mkdir -p "$root/$folder"; done
ln -sf bash "$root/bin/sh"
ln -sf gawk "$root/usr/bin/awk"
for tool in iptables iptables-save iptables-restore ip6tables ip6tables-save ip6tables-restore; do
    ln -sf xtables-nft-multi "$root/usr/sbin/$tool"
done
printf 'root:x:0:0:root:/root:/bin/bash\n' > "$root/etc/passwd"
printf 'root:x:0:\n' > "$root/etc/group"
printf '127.0.0.1 localhost\n::1 localhost\n' > "$root/etc/hosts"

# compiled packages in arm64's form, in the versions that the environment here has
here=$checkout/.venv/lib/python3.11/site-packages
cp -a "$here" "$root/opt-python"
compiled=$("$checkout/.venv/bin/pip" list --format=freeze | grep -E '^(grpcio|protobuf|PyYAML|hypothesis)==')
# shellcheck disable=SC2086 # one word per package
"$checkout/.venv/bin/pip" install --quiet --disable-pip-version-check --root-user-action=ignore --upgrade \
    --platform manylinux2014_aarch64 --platform manylinux_2_17_aarch64 --python-version 3.11 \
    --implementation cp --only-binary=:all: --no-deps --target "$root/opt-python" $compiled
touch "$root/complete"
