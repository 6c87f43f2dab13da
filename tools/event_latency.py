#!/usr/bin/env python3
"""From a lease in etcd to a peer in the BPF map: how long a running node takes to follow.

`--leases` other leases stand beside those that are measured. Also printed: how long a restarted daemon takes
to have all peers programmed, and its memory and idle CPU.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from flannel_ebpf.base.model import Claim, Endpoint, Lease
from flannel_ebpf.base.options import EtcdOptions
from flannel_ebpf.contract.abi import SubnetKey
from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab, LabSpec, Node
from flannel_ebpf.lab.netns import inside
from flannel_ebpf.lab.spec import ETCD_ENDPOINT
from flannel_ebpf.leases.etcd import EtcdClient, Registry

NETWORK = "10.0.0.0/8"
DEADLINE = 60.0
"""Seconds to wait for anything before the measurement is given up."""
SETTLE_SECONDS, IDLE_SECONDS = 10.0, 60.0
"""After a start, until the passes that it leads to are over; then one period of what is done unasked."""
LOOK_EVERY = 0.0005
"""Seconds between looks into the map: without a pause the measurement takes a core from what it measures."""


def subnet_of(number: int) -> IPv4Network:
    """Return a subnet of NETWORK's upper half; number below 32768."""
    return IPv4Network((0x0A800000 + (number << 8), 24))


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


def inner(map_path: str, leases: int, puts: int) -> None:
    """In the node's namespace: write the crowd, then measure single puts."""
    client = EtcdClient(EtcdOptions(endpoints=(ETCD_ENDPOINT,)))
    registry = Registry(client, LabSpec().etcd_prefix)
    with Map.open(Path(map_path)) as peers:
        for number in range(leases):
            registry.create(lease_of(number), ttl=0)
        since = time.monotonic()
        while len(peers.items()) < leases:
            if time.monotonic() - since > DEADLINE:
                raise SystemExit(f"only {len(peers.items())} of {leases} peers were programmed")
            time.sleep(0.1)
        numbers = range(leases, leases + puts)
        taken = sorted(put_and_wait(peers, registry, number) for number in numbers)
    client.close()
    print(
        f"put to peer programmed, {puts} puts beside {leases} leases: "
        f"median {statistics.median(taken):.1f} ms, "
        f"p99 {taken[int(len(taken) * 0.99)]:.1f} ms, worst {taken[-1]:.1f} ms"
    )


def restart(node: Node, peers: int, *, cold: bool) -> float:
    """Restart the daemon and return the seconds until it is ready; cold: nothing is left of the last one."""
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
    return took


def cost(node: Node) -> tuple[float, float]:
    """Return the daemon's resident memory in MB and the share of one core that it uses, once it is idle."""
    daemon = node.daemon
    if daemon is None:
        raise SystemExit(node.log_tail())

    def seconds() -> float:
        fields = Path(f"/proc/{daemon.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    time.sleep(SETTLE_SECONDS)
    before = seconds()
    time.sleep(IDLE_SECONDS)
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6, (seconds() - before) / IDLE_SECONDS


def main() -> None:
    """Build the lab, measure, take it down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--leases", type=int, default=0, help="leases beside the measured ones (0 to 30000)")
    parser.add_argument("--puts", type=int, default=200, help="puts to measure (default 200)")
    parser.add_argument("--inner", metavar="MAP", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inner:
        inner(options.inner, options.leases, options.puts)
        return
    spec = LabSpec(name=f"latency{os.getpid()}", network=NETWORK, datapath="ebpf", pods_per_node=1)
    with Lab.up(spec) as lab:
        node = lab.node("n1")
        again = [sys.executable, __file__, "--inner", str(node.map_path("fl_peers"))]
        again += ["--leases", str(options.leases), "--puts", str(options.puts)]
        subprocess.run(inside(node.ns, again), check=True)
        peers = options.leases + options.puts + 1
        print(f"start to ready with {peers} peers: warm {restart(node, peers, cold=False):.2f} s, ", end="")
        print(f"cold {restart(node, peers, cold=True):.2f} s")
        memory, share = cost(node)
        print(f"daemon with {peers} peers: {memory:.0f} MB resident, {share:.2%} of a core when idle")


if __name__ == "__main__":
    main()
