#!/usr/bin/env bash
# Install the Debian packages this project needs, and those named as arguments: those that are missing only. Leave
# no service running or enabled that was not there before, also when a run before this one was interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
    # BPF: compiler, library, inspection
    clang llvm clang-format libbpf-dev bpftool python3-bpfcc linux-libc-dev libc6-dev gcc
    # Python
    python3 python3-venv python3-nftables
    # lab: etcd, networking tools
    etcd-server etcd-client iproute2 iputils-ping util-linux procps ethtool tcpdump
    iptables nftables ipset conntrack openssl strace
    # traffic generators and real services for tests and benchmarks
    iperf3 sockperf wrk nginx-light redis-server redis-tools
)
packages+=("$@")
services=(etcd nginx redis-server docker prometheus prometheus-node-exporter containerd)

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
unfinished=build/setup-services # services of ours that a run was about to bring, while it is not at its end
if [ ${#missing[@]} -eq 0 ] && [ ! -e "$unfinished" ]; then
    exit 0
fi

if [ "$(id -u)" -ne 0 ]; then
    echo "setup: Debian packages are missing, and everything here takes root: run it as root" >&2
    exit 1
fi
echo "setup: installing ${#missing[@]} Debian packages, up to a minute: ${missing[*]}"

# Debian starts a service when its package is installed, unless policy-rc.d says 101 (invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
kept=$policy.before-flannel-ebpf
log=$(mktemp)
# In a session of its own: Ctrl-C must not reach dpkg, which would leave packages half installed.
quietly() { setsid --wait "$@" > "$log" 2>&1; }
failed() { { tail -n 5 "$log"; echo "setup: $1"; } >&2; exit 1; }
restore() {
    rm -f "$policy" "$log"
    if [ -e "$kept" ]; then mv "$kept" "$policy"; fi
}
trap restore EXIT
trap 'exit 130' INT TERM
if [ -e "$policy" ] && [ ! -e "$kept" ]; then mv "$policy" "$kept"; fi
printf '#!/bin/sh\nexit 101\n' > "$policy"
chmod 755 "$policy"

had_unit() { [ -e "/lib/systemd/system/$1.service" ]; }
mkdir -p build
if [ ! -e "$unfinished" ]; then
    for service in "${services[@]}"; do
        had_unit "$service" || echo "$service"
    done > "$unfinished"
fi

export DEBIAN_FRONTEND=noninteractive
quietly dpkg --configure --pending || failed "a former installation cannot be finished: dpkg --configure -a says why"
if [ ${#missing[@]} -gt 0 ]; then
    # apt-get update is content with what it cannot fetch, unless told otherwise.
    quietly apt-get -qq -o APT::Update::Error-Mode=any update ||
        failed "the package lists cannot be fetched: is there a network?"
    quietly apt-get -qq -o Dpkg::Use-Pty=0 install --yes --no-install-recommends "${missing[@]}" ||
        failed "the packages cannot be installed; the lines above are apt's"
fi

# Nor does any of them start at the next boot: the lab starts its own in its own namespaces.
if command -v systemctl > /dev/null; then
    while read -r service; do
        if had_unit "$service"; then systemctl --quiet disable "$service" 2> /dev/null || true; fi
    done < "$unfinished"
fi
rm "$unfinished"
