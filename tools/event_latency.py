#!/usr/bin/env python3
"""From a lease in etcd to a peer in the BPF map: how long a running node takes to follow.

For each of `--leases` and `--peers` a cluster with so many others. One row each: put to peer in the map, one
at a time and with 20 changes a second; start until ready, which is with all peers programmed, of a daemon
that finds its own state (warm) and of one that finds nothing (cold), with the CPU that takes; memory; CPU
when idle; the overlay's routes, neighbours and FDB entries; what a cold start reads from etcd. Times are
those of the machine: run it on an idle one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from ipaddress import IPv4Address, IPv4Network
from itertools import product
from pathlib import Path

from flannel_ebpf.base.model import Claim, Endpoint, Lease
from flannel_ebpf.base.options import EtcdOptions
from flannel_ebpf.contract.abi import SubnetKey
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, LabSpec, Node
from flannel_ebpf.lab.netns import inside
from flannel_ebpf.lab.spec import ETCD_ENDPOINT
from flannel_ebpf.leases.etcd import EtcdClient, Registry
from flannel_ebpf.leases.lease_format import encode_lease, subnet_key

NETWORK = "10.0.0.0/8"
DEADLINE = 60.0
"""Seconds to wait for anything before the measurement is given up."""
SETTLE_SECONDS, IDLE_SECONDS = 10.0, 60.0
"""After a start, until the passes that it leads to are over; then one period of what is done unasked."""
MOST_OPS = 128
"""Puts in a transaction (etcd's --max-txn-ops)."""
CHANGES, CHURN_SECONDS = 20, 10.0
"""Changes a second, and for how long."""
LOOK_EVERY = 0.0005
"""Seconds between looks into the map: without a pause the measurement takes a core from what it measures."""


def subnet_of(number: int) -> IPv4Network:
    """Return a subnet of NETWORK behind those of the lab's nodes; number below 57344."""
    return IPv4Network((0x0A200000 + (number << 8), 24))


def lease_of(number: int) -> Lease:
    """Return a vxlan lease of a node that does not exist."""
    data = {"VNI": 1, "VtepMAC": f"02:00:00:01:{number >> 8:02x}:{number & 255:02x}"}
    address = IPv4Address(0xC0A84000 + (1 << 16) + number)
    return Lease.of([subnet_of(number)], Claim("vxlan", (Endpoint(address, data),)))


def put_and_wait(peers: Map, registry: Registry, number: int) -> float:
    """Write a lease and return the milliseconds until its peer is in the map."""
    lease, subnet = lease_of(number), subnet_of(number)
    key = SubnetKey(len=subnet.prefixlen, addr=subnet.network_address).pack()
    since = time.monotonic()
    registry.create(lease, ttl=0)  # a key without TTL is one request
    while peers.lookup(key) is None:
        time.sleep(LOOK_EVERY)
        if time.monotonic() - since > DEADLINE:
            raise SystemExit(f"{subnet} was not programmed within {DEADLINE:.0f} s")
    return (time.monotonic() - since) * 1000


def churn(peers: Map, registry: Registry, numbers: range) -> list[float]:
    """Write leases, CHANGES a second; return the milliseconds until each peer was in the map."""
    begun = time.monotonic()
    pending: dict[bytes, float] = {}
    taken = []
    left = list(reversed(numbers))
    while left or pending:
        now = time.monotonic()
        if left and now >= begun + (len(numbers) - len(left)) / CHANGES:
            number = left.pop()
            subnet = subnet_of(number)
            pending[SubnetKey(len=subnet.prefixlen, addr=subnet.network_address).pack()] = now
            registry.create(lease_of(number), ttl=0)
        for key in [key for key in pending if peers.lookup(key) is not None]:
            taken.append((time.monotonic() - pending.pop(key)) * 1000)
        if now > begun + DEADLINE:
            raise SystemExit(f"{len(pending)} changes were not programmed within {DEADLINE:.0f} s")
        time.sleep(LOOK_EVERY)
    return sorted(taken)


def write_crowd(lab: Lab, leases: int) -> None:
    """Write so many leases, in transactions of as many puts as etcd allows."""
    prefix = lab.spec.etcd_prefix
    for first in range(0, leases, MOST_OPS):
        crowd = map(lease_of, range(first, min(first + MOST_OPS, leases)))
        puts = [f"put {subnet_key(prefix, one.subnets)} {_quoted(encode_lease(one))}" for one in crowd]
        lab.etcdctl("txn", stdin="\n" + "\n".join(puts) + "\n\n\n")


def _quoted(value: bytes) -> str:
    return json.dumps(value.decode())


def inner(map_path: str, leases: int, puts: int, daemon: int) -> None:
    """In the node's namespace: wait for the crowd, then measure single puts."""
    client = EtcdClient(EtcdOptions(endpoints=(ETCD_ENDPOINT,)))
    registry = Registry(client, LabSpec().etcd_prefix)
    with Map.open(Path(map_path)) as peers:
        since = time.monotonic()
        while len(peers.items()) < leases:
            if time.monotonic() - since > DEADLINE:
                raise SystemExit(f"only {len(peers.items())} of {leases} peers were programmed")
            time.sleep(0.5)
        time.sleep(SETTLE_SECONDS)
        numbers, begun = range(leases, leases + puts), cpu_of(daemon)
        taken = sorted(put_and_wait(peers, registry, number) for number in numbers)
        each = (cpu_of(daemon) - begun) / puts * 1000
        since, begun = time.monotonic(), cpu_of(daemon)
        many = range(leases + puts, leases + puts + int(CHANGES * CHURN_SECONDS))
        busy = churn(peers, registry, many)
        share = (cpu_of(daemon) - begun) / (time.monotonic() - since)
    client.close()
    print(*middle_and_end(taken), each, *middle_and_end(busy), share)


def middle_and_end(taken: list[float]) -> tuple[float, float]:
    """Return the median and the 99th percentile of sorted values."""
    return statistics.median(taken), taken[int(len(taken) * 0.99)]


def restart(node: Node, peers: int, *, cold: bool) -> str:
    """Restart the daemon; return the seconds until it is ready, and of CPU. cold: the last left nothing."""
    node.stop_daemon()
    if cold:
        flags = [f"--state-dir={node.state_dir}", f"--bpf-pin-root={node.pin_root}"]
        flags.append(f"--subnet-file={node.subnet_file}")
        node.run([sys.executable, "-m", "flannel_ebpf", "down", "--purge", *flags])
    node.log.unlink()
    since = time.monotonic()
    node.start_daemon()
    while "ready:" not in node.daemon_log():
        if time.monotonic() - since > DEADLINE:
            raise SystemExit(node.log_tail())
        time.sleep(0.005)
    took = time.monotonic() - since
    with Map.open(node.map_path("fl_peers")) as programmed:
        if len(programmed.items()) < peers:
            raise SystemExit(f"ready with {len(programmed.items())} of {peers} peers")
    return f"{took:.2f} s, {cpu_seconds(node):.2f} s"


def cpu_seconds(node: Node) -> float:
    """Return the CPU that the daemon has used so far."""
    daemon = node.daemon
    if daemon is None:
        raise SystemExit(node.log_tail())
    return cpu_of(daemon.pid)


def cpu_of(pid: int) -> float:
    """Return the CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cost(node: Node) -> tuple[float, float]:
    """Return the daemon's resident memory in MB and the share of one core that it uses, once it is idle."""
    daemon = node.daemon
    if daemon is None:
        raise SystemExit(node.log_tail())

    time.sleep(SETTLE_SECONDS)
    before = cpu_seconds(node)
    time.sleep(IDLE_SECONDS)
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, (cpu_seconds(node) - before) / IDLE_SECONDS


def bytes_from_etcd(node: Node) -> int:
    """Return what the daemon's connections to etcd have brought so far."""
    told = node.run(["ss", "-H", "-t", "-i", "-n", "dport", "=", ETCD_ENDPOINT.rpartition(":")[2]]).stdout
    return sum(int(number) for number in re.findall(r"bytes_received:(\d+)", told))


def kernel_objects(node: Node) -> int:
    """Return how many routes, neighbours and FDB entries the overlay's device has."""
    device = "flannel.1"
    routes = node.run(["ip", "-4", "route", "show", "dev", device]).stdout
    neighbours = node.run(["ip", "-4", "neigh", "show", "dev", device]).stdout
    entries = node.run(["bridge", "fdb", "show", "dev", device]).stdout
    return sum(text.count("\n") for text in (routes, neighbours, entries))


def measure(leases: int, puts: int, choice: str) -> None:
    """Build a lab, print its row, take it down."""
    spec = LabSpec(
        name=f"latency{os.getpid()}",
        network=NETWORK,
        network_config={"SubnetMin": "10.0.1.0", "SubnetMax": "10.31.255.0"},
        datapath="ebpf",
        pods_per_node=1,
        extra_up_args=(f"--peers={choice}",),
    )
    with Lab.up(spec) as lab:
        node = lab.node("n1")
        lab.node("n2").stop_daemon()
        write_crowd(lab, leases)
        again = [sys.executable, __file__, "--inner", str(node.map_path("fl_peers"))]
        daemon = node.daemon.pid if node.daemon else 0
        again += ["--leases", str(leases), "--puts", str(puts), "--daemon", str(daemon)]
        told = subprocess.run(inside(node.ns, again), check=True, stdout=subprocess.PIPE, text=True).stdout
        median, p99, each, busy, busy99, busy_share = map(float, told.split())
        peers = leases + puts + int(CHANGES * CHURN_SECONDS) + 1
        warm, cold = restart(node, peers, cold=False), restart(node, peers, cold=True)
        read = bytes_from_etcd(node)
        memory, share = cost(node)
        print(
            f"| {leases:,} | {choice} | {median:.1f} / {p99:.1f} ms, {each:.1f} ms "
            f"| {busy:.1f} / {busy99:.1f} ms, {busy_share:.0%} | {warm} | {cold} "
            f"| {memory:.0f} MB | {share:.2%} | {kernel_objects(node)} | {read / 1e6:.1f} MB |",
            flush=True,
        )


def main() -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        *("--leases", "-n"), type=int, nargs="+", default=[100, 1000, 5000, 10_000],
        help="leases beside the measured ones (0 to 56000)",
    )  # fmt: skip
    parser.add_argument("--puts", type=int, default=200, help="puts to measure (default 200)")
    parser.add_argument(
        "--peers", nargs="+", default=["all", "on-demand"], help="each way of having peers (default both)"
    )
    parser.add_argument("--inner", metavar="MAP", help=argparse.SUPPRESS)
    parser.add_argument("--daemon", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the lab is taken down, as after Ctrl-C
    if options.inner:
        inner(options.inner, options.leases[0], options.puts, options.daemon)
        return
    print(
        f"| leases | peers | put to programmed: median / p99, CPU a lease | {CHANGES} changes a second, CPU "
        "| warm start, CPU | cold start, CPU | memory | idle | kernel objects | read at a cold start |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for leases, choice in product(options.leases, options.peers):
        measure(leases, options.puts, choice)


if __name__ == "__main__":
    main()
