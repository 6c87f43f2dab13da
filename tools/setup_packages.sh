#!/usr/bin/env bash
# Install the Debian packages this project needs, those that are missing only, and leave no service running
# or enabled that was not there before.
set -euo pipefail

packages=(
    # BPF: compiler, library, inspection
    clang llvm clang-format libbpf-dev bpftool python3-bpfcc linux-libc-dev libc6-dev gcc
    # Python
    python3 python3-venv python3-nftables
    # lab: etcd, networking tools
    etcd-server etcd-client iproute2 iputils-ping util-linux procps ethtool tcpdump
    iptables nftables conntrack openssl
    # traffic generators and real services for tests and benchmarks
    iperf3 sockperf wrk nginx-light redis-server redis-tools
)
services=(etcd nginx redis-server)

missing=()
for package in "${packages[@]}"; do
    status=$(dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    exit 0
fi

echo "setup: installing Debian packages: ${missing[*]}"
if [ "$(id -u)" -ne 0 ]; then
    echo "setup: that takes root: run 'sudo make setup' once" >&2
    exit 1
fi

# Debian starts a service when its package is installed, unless policy-rc.d says 101 (invoke-rc.d(8)).
policy=/usr/sbin/policy-rc.d
kept=$policy.before-flannel-ebpf
log=$(mktemp)
quietly() { "$@" > "$log" 2>&1 || { cat "$log" >&2; return 1; }; }
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
fresh=()
for service in "${services[@]}"; do
    had_unit "$service" || fresh+=("$service")
done

export DEBIAN_FRONTEND=noninteractive
quietly apt-get -qq update
quietly apt-get -qq -o Dpkg::Use-Pty=0 install --no-install-recommends "${missing[@]}"

# Nor does any of them start at the next boot: the lab starts its own in its own namespaces.
if command -v systemctl > /dev/null; then
    for service in "${fresh[@]}"; do
        if had_unit "$service"; then systemctl --quiet disable "$service" 2> /dev/null || true; fi
    done
fi
