#!/usr/bin/env bash
# Make dist/flannel-ebpf-image.tar, for `docker load` and `ctr images import`: what deploy/image/Dockerfile says, from a
# bootstrapped Debian instead of a registry's.
set -euo pipefail
cd "$(dirname "$0")/../.."
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
deb=$(ls dist/flannel-ebpf_"$version"_*.deb)

tools/packages/root.sh image-12 bookworm python3 python3-bpfcc iproute2 iptables nftables
work=$(mktemp -d -p build)
trap 'umount -q "$work/root" || true; rm -rf "$work"' EXIT
mkdir "$work/upper" "$work/work" "$work/root" "$work/image"
mount -t overlay overlay -o "lowerdir=build/roots/image-12,upperdir=$work/upper,workdir=$work/work" "$work/root"
install -D -m 755 deploy/image/install-conf "$work/root/opt/bin/install-conf"
cp "$deb" "$work/root/tmp/"
chroot "$work/root" sh -ec 'dpkg -i /tmp/*.deb > /dev/null; rm -rf /tmp/*.deb /var/lib/apt/lists/* /var/cache/apt
    ln -sf /usr/lib/flannel-ebpf/bin/flanneld /opt/bin/flanneld; rm -f /usr/sbin/policy-rc.d'

image=$work/image
tar --create --directory "$work/root" --one-file-system --numeric-owner --sort=name --file "$image/layer.tar" .
digest=$(sha256sum "$image/layer.tar" | cut -d' ' -f1)
entry=$(sed -n 's/^ENTRYPOINT //p' deploy/image/Dockerfile)
arch=$(dpkg --print-architecture)
printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":%s,"Env":["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$arch" "$entry" "$digest" > "$image/config.json"
printf '[{"Config":"config.json","RepoTags":["flannel-ebpf:%s"],"Layers":["layer.tar"]}]' "$version" > "$image/manifest.json"
tar --create --directory "$image" --file dist/flannel-ebpf-image.tar manifest.json config.json layer.tar
echo "dist/flannel-ebpf-image.tar: flannel-ebpf:$version, $(du -h dist/flannel-ebpf-image.tar | cut -f1)"
