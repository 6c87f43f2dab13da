#!/usr/bin/env python3
"""What a running daemon takes of its host: at rest, while etcd is away, while others change their routes.

One row for each state: part of one core that the daemon uses, and its children; system calls that put it to
sleep, a second; resident memory, threads, descriptors; lines logged. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from event_latency import lease_of

from flannel_ebpf.base.options import EtcdOptions
from flannel_ebpf.lab import Lab, LabSpec, Node
from flannel_ebpf.lab.netns import inside
from flannel_ebpf.lab.spec import ETCD_ENDPOINT
from flannel_ebpf.leases.etcd import EtcdClient, Registry

SETTLE_SECONDS = 10.0
"""Until the passes are over that a change of state leads to."""


@dataclass(frozen=True)
class Taken:
    """What the daemon has taken since it began, and what it holds."""

    at: float
    own: float
    children: float
    sleeps: int
    lines: int
    resident: float
    threads: int
    files: int

    @classmethod
    def by(cls, node: Node) -> Taken:
        """Read it from /proc."""
        daemon = node.daemon
        if daemon is None:
            raise SystemExit(node.log_tail())
        proc = Path(f"/proc/{daemon.pid}")
        fields = (proc / "stat").read_text().rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        tasks = [(task / "status").read_text() for task in (proc / "task").iterdir()]
        sleeps = sum(int(text.partition("\nvoluntary_ctxt_switches:")[2].split()[0]) for text in tasks)
        return cls(
            time.monotonic(),
            (int(fields[11]) + int(fields[12])) / tick,
            (int(fields[13]) + int(fields[14])) / tick,
            sleeps,
            len(node.daemon_log().splitlines()),
            int((proc / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6,
            len(tasks),
            len(list((proc / "fd").iterdir())),
        )


def row(what: str, node: Node, seconds: float) -> str:
    """Watch the daemon for so long; return the row."""
    time.sleep(SETTLE_SECONDS)
    before = Taken.by(node)
    time.sleep(seconds)
    now = Taken.by(node)
    took = now.at - before.at
    return (
        f"| {what} | {(now.own - before.own) / took:.2%} | {(now.children - before.children) / took:.2%} "
        f"| {(now.sleeps - before.sleeps) / took:.0f} | {now.resident:.0f} MB | {now.threads} | {now.files} "
        f"| {now.lines - before.lines} |"
    )


def crowd(leases: int) -> None:
    """In the node's namespace: write so many leases of nodes that do not exist."""
    client = EtcdClient(EtcdOptions(endpoints=(ETCD_ENDPOINT,)))
    registry = Registry(client, LabSpec().etcd_prefix)
    for number in range(leases):
        registry.create(lease_of(number), ttl=0)
    client.close()


@contextmanager
def churning(node: Node, a_second: int) -> Iterator[None]:
    """Add and remove a route that is none of ours, so many changes a second, during the block."""
    stop = threading.Event()
    line = "route {} 198.51.100.0/24 via 192.168.64.254 dev eth0\n"
    ip = subprocess.Popen(inside(node.ns, ["ip", "-force", "-batch", "-"]), stdin=subprocess.PIPE, text=True)

    def change() -> None:
        verbs = ("add", "del")
        for number in range(sys.maxsize):
            if stop.wait(1 / a_second) or ip.stdin is None:
                return
            ip.stdin.write(line.format(verbs[number % 2]))
            ip.stdin.flush()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        ip.communicate()


def measure(leases: int, seconds: float, a_second: int) -> None:
    """Build a lab, print its rows, take it down."""
    spec = LabSpec(name=f"cost{os.getpid()}", network="10.0.0.0/8", datapath="ebpf", pods_per_node=2)
    with Lab.up(spec) as lab:
        node = lab.node("n1")
        again = [sys.executable, __file__, "--crowd", "--leases", str(leases)]
        subprocess.run(inside(node.ns, again), check=True)
        print(row(f"{leases:,} leases, at rest", node, seconds))
        with churning(node, a_second):
            print(row(f"{leases:,} leases, {a_second} foreign route changes a second", node, seconds))
        if lab.etcd.process is not None:
            lab.etcd.process.signal(signal.SIGKILL)
        print(row(f"{leases:,} leases, etcd is away", node, seconds))


def main() -> None:
    """Read the arguments and measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--leases", type=int, nargs="+", default=[0, 5000], help="cluster sizes to measure")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each state is watched")
    parser.add_argument("--changes", type=int, default=10, help="foreign route changes a second")
    parser.add_argument("--crowd", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.crowd:
        crowd(arguments.leases[0])
        return
    print("| state | CPU | its children's | sleeps a second | resident | threads | files | lines logged |")
    print("|---|---|---|---|---|---|---|---|")
    for leases in arguments.leases:
        measure(leases, arguments.seconds, arguments.changes)


if __name__ == "__main__":
    main()
