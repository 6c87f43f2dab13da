#!/usr/bin/env python3
"""Which uplink, address and MTU flanneld takes: every set of flags on every host, asked of the real program.

`tools/uplink_choices.py FLANNELD` runs that binary once for each pair, in a network namespace made like the
host and beside an etcd of its own, and prints a line each: host | flags | interface address public-address
MTU. tests/netns/kernel/flanneld_choices.txt is what v0.28.10 answered; a test holds ours against it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from flannel_ebpf.lab import netns

_ETHERNET = [
    *(
        f"link add eth{number} address 02:00:00:00:0{number}:01 type veth peer far{number}"
        for number in range(3)
    ),
    *(f"link set {name}{number} up" for number in range(3) for name in ("eth", "far")),
]
_PLAIN = [
    *_ETHERNET,
    "address add 192.168.64.5/24 dev eth0",
    "address add 10.20.0.5/16 dev eth1",
    "route add 203.0.113.0/24 via 10.20.0.1",
]

HOSTS: dict[str, list[str]] = {
    "plain": [*_PLAIN, "route add default via 192.168.64.1"],
    "two-defaults": [
        *_PLAIN,
        "route add default via 192.168.64.1 metric 200",
        "route add default via 10.20.0.1 metric 100",
        "link set eth1 mtu 9000",
    ],
    "no-default": _PLAIN,
    "multipath": [
        *_PLAIN,
        "route add default nexthop via 192.168.64.1 nexthop via 10.20.0.1",
        "route add 8.8.8.0/24 via 192.168.64.1",  # which of two ways the kernel takes is chance
    ],
    "unreachable": [
        *_PLAIN,
        "route add unreachable default metric 50",
        "route add default via 192.168.64.1 metric 60",
    ],
    "many-addresses": [
        *_ETHERNET,
        "address add 169.254.7.7/16 dev eth0",
        "address add 192.168.64.9/24 dev eth0 valid_lft 3600 preferred_lft 3600",
        "address add 192.168.64.5/24 dev eth0",
        "address add 192.168.64.6/24 dev eth0",
        "address add 192.168.64.100/32 dev eth0",
        "address add 10.20.0.4/24 dev eth1 valid_lft 3600 preferred_lft 0",
        "address add 10.20.0.5/16 dev eth1 scope link",
        "address add 10.255.0.1/32 dev lo",
        "route add default via 192.168.64.1",
        "route add 203.0.113.0/24 via 192.168.64.1 src 10.255.0.1",
    ],
    "only-odd-addresses": [
        *_ETHERNET,
        "address add 192.168.64.5/24 dev eth0 scope link",
        "address add 10.20.0.5/16 dev eth1 valid_lft 3600 preferred_lft 0",
        "address add 127.0.0.2/8 dev eth2",
        "address add 10.255.0.1/32 dev lo scope host",
        "route add default via 192.168.64.1",
        "route add 203.0.113.0/24 via 192.168.64.1",
    ],
    "vpn": [
        *_PLAIN,
        "route add default via 192.168.64.1 metric 100",
        "link add tailscale0 mtu 1280 type veth peer far3",
        "link set far3 up",
        "link set tailscale0 up",
        "address add 100.64.0.7/32 dev tailscale0",
        "route add 203.0.113.0/25 dev tailscale0",
        "route add default dev tailscale0 metric 50",
        "link add ppp0 mtu 1492 type veth peer far4",
        "link set ppp0 up",
        "address add 10.9.0.1 peer 10.9.0.2/32 dev ppp0",
    ],
    "down": [
        *_PLAIN,
        "link set far0 down",
        "link set eth1 down",
        "route add default via 192.168.64.1",
    ],
}
"""Name of a host -> what `ip -batch` makes it of, in an empty network namespace."""

FLAGS: list[tuple[str, ...]] = [
    (),
    ("-iface=eth0",),
    ("-iface=eth1",),
    ("-iface=eth2",),
    ("-iface=eth2", "-iface=eth0"),
    ("-iface=none", "-iface=eth1"),
    ("-iface=",),
    ("-iface=none", "-iface="),
    ("-iface=", "-public-ip=203.0.113.7"),
    ("-iface=192.168.64.6", "-iface=192.168.64.5"),
    ("-iface=10.20.0.4",),
    ("-iface=10.255.0.1",),
    ("-iface=lo",),
    ("-iface=127.0.0.1",),
    ("-iface=tailscale0",),
    ("-iface=none", "-iface=ppp0"),
    ("-iface-regex=^eth",),
    ("-iface-regex=",),
    ("-iface-regex=.",),
    (r"-iface-regex=^192\.168\.",),
    (r"-iface-regex=^10\.20\.0\.4$", "-iface-regex=^eth1$"),
    ("-iface-regex=eth2",),
    ("-iface-regex=^[[:alpha:]]+[[:digit:]]$",),
    (r"-iface-regex=(?i)^ETH1\z",),
    ("-iface-regex=(", "-iface-regex=^10"),
    ("-iface-regex=nothing",),
    ("-iface=none", "-iface-regex=^eth1$", "-iface-can-reach=8.8.8.8"),
    ("-iface-can-reach=203.0.113.9",),
    ("-iface-can-reach=8.8.8.8",),
    ("-iface-can-reach=192.168.64.1",),
    ("-iface-can-reach=192.168.64.5",),
    ("-iface-can-reach=nonsense",),
    ("-iface-can-reach=",),
    ("-public-ip=192.168.64.6",),
    ("-public-ip=10.20.0.5",),
    ("-public-ip=203.0.113.7",),
    ("-public-ip=",),
    ("-iface=eth0", "-public-ip=203.0.113.7"),
    ("-iface-can-reach=8.8.8.8", "-public-ip=203.0.113.7"),
]
"""What is given on the command line."""

REFUSED = "refused"
_CONFIG = '{"Network":"10.1.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}'
_PREFIX = "/coreos.com/network"
_DEADLINE = 20.0


def main() -> int:
    """Print one line for each host and set of flags."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("flanneld", help="the binary")
    parser.add_argument("--host", choices=HOSTS, action="append", help="only these hosts")
    options = parser.parse_args()
    for host in options.host or HOSTS:
        with _host(host) as ns, tempfile.TemporaryDirectory() as folder:
            for flags in FLAGS:
                answer = _ask(ns, options.flanneld, flags, Path(folder))
                print(f"{host} | {' '.join(flags)} | {answer}", flush=True)
    return 0


@contextmanager
def _host(name: str) -> Iterator[str]:
    """Make the host as a namespace with an etcd in it, on the loopback."""
    ns = f"choices-{os.getpid()}"
    netns.create([ns])
    try:
        netns.configure(ns, HOSTS[name])
        with tempfile.TemporaryDirectory() as data:
            command = ["etcd", f"--data-dir={data}", "--logger=zap", "--log-level=error"]
            etcd = subprocess.Popen(netns.inside(ns, command), stderr=subprocess.DEVNULL)
            try:
                _wait(lambda: _etcdctl(ns, "put", f"{_PREFIX}/config", _CONFIG) != "")
                yield ns
            finally:
                etcd.kill()
                etcd.wait()
    finally:
        netns.delete([ns])


def _ask(ns: str, flanneld: str, flags: tuple[str, ...], folder: Path) -> str:
    """Run flanneld until it has written subnet.env or has ended; return what it chose."""
    env, log = folder / "subnet.env", folder / "log"
    env.unlink(missing_ok=True)
    command = [flanneld, f"-subnet-file={env}", "-iptables-forward-rules=false", *flags]
    with log.open("wb") as output:
        daemon = subprocess.Popen(netns.inside(ns, command), stdout=output, stderr=output)
    try:
        _wait(lambda: env.exists() or daemon.poll() is not None)
        return _answer(ns, env.read_text(), log.read_text()) if env.exists() else REFUSED
    finally:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait()
        _etcdctl(ns, "del", "--prefix", f"{_PREFIX}/subnets/")
        subprocess.run(["ip", "-n", ns, "link", "del", "flannel.1"], stderr=subprocess.DEVNULL, check=False)


def _answer(ns: str, env: str, log: str) -> str:
    lease = _etcdctl(ns, "get", "--prefix", "--print-value-only", f"{_PREFIX}/subnets/")
    chosen = re.search(r"Using interface with name (\S+) and address (\S+)", log)
    mtu = re.search(r"FLANNEL_MTU=(\d+)", env)
    if not (lease and chosen and mtu):
        raise SystemExit(f"flanneld's choice cannot be read from {log}")
    return f"{chosen[1]} {chosen[2]} {json.loads(lease)['PublicIP']} {mtu[1]}"


def _etcdctl(ns: str, *arguments: str) -> str:
    """Return what etcdctl prints, "" when it fails."""
    command = netns.inside(ns, ["env", "ETCDCTL_API=3", "etcdctl", *arguments])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def _wait(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing within {_DEADLINE:.0f} s")
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
