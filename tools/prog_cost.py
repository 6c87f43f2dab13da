"""Nanoseconds per packet of each BPF program, in seconds: to judge a change of the C code.

Two ways. `live`: kernel run statistics while real packets pass (kernel.bpf_stats_enabled; its own clock reads
are in the figures, some 20 ns). `alone`: BPF_PROG_TEST_RUN of one packet at a time on one core, the median of
many: caches are warm and nothing disturbs, so small differences show.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path

from perf.ends import Ends
from perf.modes import MODES, Mode
from perf.workloads import build_generator, start_servers, workloads

from flannel_ebpf import abi
from flannel_ebpf.kernel.bpf import Map, Program
from flannel_ebpf.lab import Host, Lab
from flannel_ebpf.lab.node import Node
from flannel_ebpf.model import Mac

STATISTICS = Path("/proc/sys/kernel/bpf_stats_enabled")
PROGRAMS = ("fl_from_pod", "fl_to_peer", "fl_from_peer", "fl_to_pod")
RUNS = 20_000
ENOUGH = 2000
PORTS = (40000, 9000)
SKB_MARK, SKB_IFINDEX, SKB_SIZE = 8, 40, 192
"""Offsets in struct __sk_buff, and its size."""

Cost = dict[str, tuple[int, float]]
"""Program -> how often it ran, nanoseconds each time."""


def main() -> int:
    """Build a lab for each mode, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--modes", default="ebpf-vxlan,ebpf-vxlan-subnets", help="comma list, %(default)s")
    parser.add_argument("--seconds", type=int, default=2, help="of each live measurement")
    parser.add_argument("--alone", nargs=3, metavar=("LAB", "NODE", "FRAME"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        lab, node, frame = options.alone
        print(json.dumps(alone(Lab.open(lab).node(node), bytes.fromhex(frame))))
        return 0
    line("mode", "traffic", "node", "program", "runs", "ns each")
    with tempfile.TemporaryDirectory() as name:
        build_generator(Path(name))
        for mode in options.modes.split(","):
            one_mode(MODES[mode], Path(name), options.seconds)
    return 0


def one_mode(mode: Mode, folder: Path, seconds: int) -> None:
    """Measure one mode both ways."""
    every = workloads(folder)
    with Lab.up(mode.spec) as lab, Ends(lab, mode) as pods:
        start_servers(pods, folder)
        for name, text in (
            ("udp_pps", "UDP, one flow"),
            ("flows_10k", "UDP, 10,000 flows"),
            ("tcp_crr", "connects"),
        ):
            with measured(lab) as costs:
                every[name].run(pods, seconds)
            show(mode, text, costs)
        with Ends(lab, MODES["host"]) as nodes, measured(lab) as costs:
            nodes.serve([str(folder / "traffic"), "sink", "9000", "1"], 9000)
            every["udp_pps"].run(nodes, seconds)
        show(mode, "not the overlay's", costs)
        packet = pod_packet(lab)
        for node, program, frame in (("n1", "fl_from_pod", packet), ("n2", "fl_from_peer", b"")):
            # A test run finds its devices in the namespace of the process that asks for it.
            command = [sys.executable, __file__, "--alone", lab.spec.name, node, (frame or packet).hex()]
            found = json.loads(lab.node(node).run(["taskset", "-c", "1", *command]).stdout)
            packet = bytes.fromhex(found["frame"])
            line(
                mode.name,
                "alone, 64 B UDP",
                node,
                f"{program} {found['verdict']}",
                RUNS,
                f"{found['ns']:.0f}",
            )


def show(mode: Mode, text: str, costs: dict[str, Cost]) -> None:
    """Print a line for each program that ran."""
    for node, cost in costs.items():
        for program, (runs, nanoseconds) in cost.items():
            if runs > ENOUGH:
                line(mode.name, text, node, program, runs, f"{nanoseconds:.0f}")


def line(mode: str, traffic: str, node: str, program: str, runs: int | str, each: str) -> None:
    """Print one line of the table."""
    print(f"{mode:<20} {traffic:<18} {node:<5} {program:<16} {runs:>9} {each:>8}", flush=True)


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
        shown = pinned(node, program)
        found[program] = (int(shown.get("run_cnt", 0)), int(shown.get("run_time_ns", 0)))
    return found


def pinned(node: Node, program: str) -> dict[str, int]:
    """Return what bpftool says of a node's program."""
    command = ["bpftool", "--json", "prog", "show", "pinned", str(node.map_path(program))]
    found: dict[str, int] = json.loads(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout
    )
    return found


def pod_packet(lab: Lab) -> bytes:
    """Return a 64 B UDP datagram of n1p1 to n2p1, as it leaves the pod."""
    sender, receiver = lab.pod("n1p1"), lab.pod("n2p1")
    gateway = address_of(lab.node("n1"), "cni0")
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 92, 1, 0, 64, 17, 0, sender.ip.packed, receiver.ip.packed)
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    check = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    ip = header[:10] + struct.pack("!H", check) + header[12:]
    return (
        gateway
        + address_of(sender, "eth0")
        + b"\x08\x00"
        + ip
        + struct.pack("!HHHH", *PORTS, 72, 0)
        + bytes(64)
    )


def address_of(host: Host, device: str) -> bytes:
    """Return a device's MAC address."""
    return Mac.parse(
        json.loads(host.run(["ip", "-json", "link", "show", "dev", device]).stdout)[0]["address"]
    ).octets


def alone(node: Node, frame: bytes) -> dict[str, object]:
    """Run n1's fl_from_pod, or n2's fl_from_peer, on `frame`; return ns, verdict and what became of it."""
    sends = node.name == "n1"
    device = node.pods[0].veth if sends else "eth0"
    ifindex = socket.if_nametoindex(device)
    if not sends:
        frame = address_of(node, device) + frame[6:]
    admit(node, frame if sends else frame[50:], sends)
    context = bytearray(SKB_SIZE)
    struct.pack_into("=I", context, SKB_IFINDEX, ifindex)
    program = Program.by_id(pinned(node, "fl_from_pod" if sends else "fl_from_peer")["id"])
    runs = [program.test_run(frame, bytes(context)) for _ in range(RUNS)]
    return {
        "ns": statistics.median(run.duration_ns for run in runs),
        "verdict": runs[-1].verdict,
        "frame": runs[-1].data.hex(),
    }


def admit(node: Node, inner: bytes, sends: bool) -> None:
    """Have the flow of the packet `inner`, which starts with an Ethernet header, admitted."""
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    source, destination = IPv4Address(inner[26:30]), IPv4Address(inner[30:34])
    pod, far = (source, destination) if sends else (destination, source)
    key = abi.FlowKey(pod, far, *(PORTS if sends else PORTS[::-1]), 17)
    every = abi.FlowBit.TX_ENTERED | abi.FlowBit.TX_LEFT | abi.FlowBit.RX_ARRIVED | abi.FlowBit.RX_DELIVERED
    veth = socket.if_nametoindex(node.pods[0].veth)
    with Map.open(node.map_path("fl_flows")) as flows, Map.open(node.map_path("fl_sketch")) as sketch:
        flows.update(key.pack(), abi.Flow(now, now, veth, every).pack())
        epoch = now >> 33 & 0xFF
        cell = abi.Cell(epoch, 255, epoch).pack()
        sketch.update_many((struct.pack("=I", index), cell) for index in range(sketch.info.max_entries))


if __name__ == "__main__":
    sys.exit(main())
