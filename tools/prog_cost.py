"""Nanoseconds per packet of each BPF program, in seconds: to judge a change of the C code.

Two ways. `live`: kernel run statistics while real packets pass (kernel.bpf_stats_enabled; its own clock reads
are in the figures, some 30 ns). `alone`: BPF_PROG_TEST_RUN of one packet at a time, the median: caches
are warm and nothing disturbs, so small differences show.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from perf import alone
from perf.ends import CLIENT_CORE, Ends
from perf.modes import MODES, Mode
from perf.workloads import SINK, build_generator, start_servers, workloads

from flannel_ebpf.lab import Lab
from flannel_ebpf.lab.node import Node

STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
PROGRAMS = ("fl_from_pod", "fl_to_peer", "fl_from_peer", "fl_to_pod")
LIVE = {
    "udp_pps": "UDP, one flow",
    "tcp_rr": "TCP, requests",
    "flows_10k": "UDP, 10,000 flows",
    "tcp_crr": "connects",
}
ENOUGH = 2000
"""Runs from which on an average says something."""

Cost = dict[str, tuple[int, float]]
"""Program -> how often it ran, nanoseconds each time."""


def main() -> int:
    """Build a lab for each mode, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modes", default="ebpf-vxlan,ebpf-vxlan-subnets", help="comma list, %(default)s")
    parser.add_argument("--seconds", type=int, default=2, help="of each live measurement; 0: none")
    options = parser.parse_args()
    line("mode", "", "packets", "node", "program", "ns each", "runs")
    with tempfile.TemporaryDirectory() as name:
        build_generator(Path(name))
        for mode in options.modes.split(","):
            with Lab.up(MODES[mode].spec) as lab, Ends(lab, MODES[mode]) as pods:
                start_servers(pods, Path(name))
                if options.seconds:
                    live(pods, Path(name), options.seconds)
                by_hand(lab, MODES[mode])
    return 0


def live(pods: Ends, folder: Path, seconds: int) -> None:
    """Measure with real packets: between the pods, then, for packets that are not ours, between the nodes."""
    every = workloads(folder)
    for name, text in LIVE.items():
        with measured(pods.lab) as costs:
            every[name].run(pods, seconds)
        show(pods.mode, text, costs)
    with Ends(pods.lab, MODES["host"]) as nodes:
        nodes.serve([str(folder / "traffic"), "sink", str(SINK), "1"], SINK)
        with measured(pods.lab) as costs:
            every["udp_pps"].run(nodes, seconds)
        show(pods.mode, "not the overlay's", costs)


def by_hand(lab: Lab, mode: Mode) -> None:
    """Measure single packets: n1 sends, n2 gets what n1 made of it."""
    frame = alone.datagram(lab).hex()
    for node in ("n1", "n2"):
        command = ["taskset", "-c", CLIENT_CORE, sys.executable, alone.__file__, lab.spec.name, node, frame]
        found = json.loads(lab.node(node).run(command).stdout)
        frame = found["frame"]
        for kind, nanoseconds in found["ns"].items():
            line(mode.name, "alone", kind, node, found["program"], nanoseconds, alone.RUNS)


def show(mode: Mode, text: str, costs: dict[str, Cost]) -> None:
    """Print a line for each program that ran."""
    for node, cost in costs.items():
        for program, (runs, nanoseconds) in cost.items():
            if runs > ENOUGH:
                line(mode.name, "live", text, node, program, f"{nanoseconds:.0f}", runs)


def line(mode: str, way: str, packets: str, node: str, program: str, each: object, runs: object) -> None:
    """Print one line of the table."""
    print(f"{mode:<20} {way:<6} {packets:<18} {node:<5} {program:<13} {each:>8} {runs:>9}", flush=True)


@contextmanager
def measured(lab: Lab) -> Iterator[dict[str, Cost]]:
    """Kernel run statistics of the block, by node; filled in at its end."""
    costs: dict[str, Cost] = {}
    kept = STATISTICS.read_text()
    STATISTICS.write_text("1")
    try:
        before = {node.name: statistics_of(node) for node in lab.nodes}
        yield costs
        for node in lab.nodes:
            costs[node.name] = {}
            for program, after in statistics_of(node).items():
                runs, spent = (
                    now - then for now, then in zip(after, before[node.name][program], strict=True)
                )
                costs[node.name][program] = (runs, spent / runs if runs else 0.0)
    finally:
        STATISTICS.write_text(kept)


def statistics_of(node: Node) -> dict[str, tuple[int, int]]:
    """Return runs and nanoseconds so far of each program of a node."""
    found = {}
    for program in PROGRAMS:
        command = ["bpftool", "--json", "prog", "show", "pinned", str(node.map_path(program))]
        shown = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        found[program] = (int(shown.get("run_cnt", 0)), int(shown.get("run_time_ns", 0)))
    return found


if __name__ == "__main__":
    sys.exit(main())
