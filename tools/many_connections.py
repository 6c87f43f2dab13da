"""What a million short connections leave in conntrack and in the flow table, by BPF and on the kernel path.

Both labs stand in turn; a client connects as fast as it can. Printed is the most that conntrack of the
two nodes and fl_flows held meanwhile, and what is left of them once the last connection is over: conntrack's
entries are bounded by the client's ports, and ours are gone. Status 1 when that is not so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from perf.ends import Ends
from perf.modes import MODES
from perf.workloads import CRR, CRR_WORKERS, build_generator, start_servers

from flannel_ebpf.kernel.bpf import Map
from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.node import Node

SAMPLE_SECONDS = 1.0
LEFT = 16
"""Entries of fl_flows that may outlive their connections: the client is killed amid its last ones."""
MORE = 1.02
"""Of conntrack's entries on the kernel path, that BPF's may be."""
CONNTRACK = "/proc/sys/net/netfilter/nf_conntrack_count"


@dataclass
class Held:
    """Entries in a mode's nodes: the most that was seen, and what is left at the end."""

    connections: int = 0
    seconds: float = 0.0
    conntrack: int = 0
    flows: int = 0
    flows_left: int = 0

    def look(self, nodes: list[Node], *, bpf: bool) -> None:
        """Count now."""
        self.conntrack = max(self.conntrack, *(int(node.run(["cat", CONNTRACK]).stdout) for node in nodes))
        if bpf:
            self.flows_left = max(flows_of(node) for node in nodes)
            self.flows = max(self.flows, self.flows_left)


def main() -> int:
    """Run both modes, print, judge."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=1_000_000, help="of each mode, %(default)s")
    parser.add_argument("--modes", default="kernel-vxlan,ebpf-vxlan", help="first the kernel's, %(default)s")
    options = parser.parse_args()
    print(f"{'mode':<16} {'connections':>12} {'k/s':>6} {'conntrack':>10} {'fl_flows':>9} {'left':>6}")
    found = []
    with tempfile.TemporaryDirectory() as name:
        build_generator(Path(name))
        for mode in options.modes.split(","):
            held = connect(mode, Path(name), options.connections)
            rate = held.connections / held.seconds / 1e3
            print(
                f"{mode:<16} {held.connections:>12} {rate:>6.2f} {held.conntrack:>10} {held.flows:>9} "
                f"{held.flows_left:>6}",
                flush=True,
            )
            found.append(held)
    kernel = found[0]
    return int(any(one.conntrack > MORE * kernel.conntrack or one.flows_left > LEFT for one in found))


def connect(name: str, folder: Path, connections: int) -> Held:
    """Make so many connections in a mode's lab, and count meanwhile and afterwards."""
    mode, held = MODES[name], Held()
    bpf = bool(mode.fastpath)
    with Lab.up(mode.spec) as lab, Ends(lab, mode) as pods:
        start_servers(pods, folder)
        command = [str(folder / "traffic"), "crr", pods.to, str(CRR), str(CRR_WORKERS)]
        with pods.driving(command) as client:
            assert client.stdout is not None  # noqa: S101 - `driving` asks for it
            looked = 0.0
            for at, done in progress(client.stdout):
                held.seconds, held.connections = at, done
                if at - looked > SAMPLE_SECONDS:
                    held.look(lab.nodes, bpf=bpf)
                    looked = at
                if done >= connections:
                    break
        held.look(lab.nodes, bpf=bpf)
    return held


def progress(lines: Iterator[str]) -> Iterator[tuple[float, int]]:
    """Seconds and connections so far, as the generator writes them."""
    for line in lines:
        at, done = line.split()
        yield float(at), int(done)


def flows_of(node: Node) -> int:
    """Return how many entries a node's flow table has."""
    with Map.open(node.map_path("fl_flows")) as table:
        return len(table.items())


if __name__ == "__main__":
    sys.exit(main())
