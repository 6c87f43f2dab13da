"""Measure the udp format three ways, pod to pod between two nodes, in medians of alternating rounds.

    relay    the Python relay as the daemon runs it, in batches (UDP_SEGMENT, UDP_GRO)
    single   the same relay, one packet a system call: what a kernel before 5.0 allows
    BPF      admitted flows in the programs

The client's pod, node and relay have core 1, the server's core 0. Packets per second are counted at the
server's pod while a generator offers as much as its core has left beside the relay; TCP is iperf3 with one
flow; CPU is that of iperf3, of the relays, and all softirq time, at a rate that every way can carry. What is
measured goes before what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from perf.workloads import build_generator

from flannel_ebpf.base.errors import LabError
from flannel_ebpf.contract.enums import Reason
from flannel_ebpf.lab import Host, Lab, LabSpec, Node
from flannel_ebpf.lab.counters import device_packets, reasons
from flannel_ebpf.lab.processes import Process
from flannel_ebpf.relay import counters

SERVER_CORE, CLIENT_CORE = "0", "1"
CORES = {"n1": CLIENT_CORE, "n2": SERVER_CORE}
IPERF, SINK = 5201, 9000
RATE_MBIT = 200
WARM_UP = 0.5
SHARE = 0.9
"""Part of the packets that must have gone the way that is measured."""

Figures = dict[str, float]


def relay_files(node: Node) -> Path:
    """Return the run-time folder of a node's relay."""
    return node.state_dir / "relay-flannel0"


def relay_pid(node: Node) -> int:
    """Return the pid of a node's relay once it is ready; LabError after ten seconds."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        pid = counters.read(relay_files(node) / "counters")[0]
        if pid and Process.of(pid):
            return pid
        time.sleep(0.02)
    raise LabError(f"{node.name} has no relay")


def relay_processes(node: Node) -> list[int]:
    """Return the pids of a node's relay, workers included."""
    pid = relay_pid(node)
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def prefer(pid: int, nice: int) -> None:
    """Give a process a nice value, and its session too: with autogroups a process's own counts only there."""
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    group = Path(f"/proc/{pid}/autogroup")
    if group.exists():
        group.write_text(str(nice))


def pin_relay(node: Node) -> None:
    """Put the relay's processes on their node's core, first in line."""
    for pid in relay_processes(node):
        os.sched_setaffinity(pid, {int(CORES[node.name])})
        prefer(pid, -20)


def send_one_by_one(node: Node) -> None:
    """Replace the daemon and its relay by a relay that does not batch; routes and TUN stay."""
    node.stop_daemon()
    command = json.loads((relay_files(node) / "lock").read_text())
    command[command.index("--batch") + 1] = "off"
    old = Process.of(relay_pid(node))
    if old:
        old.signal(signal.SIGTERM)
        old.wait(5)
    node.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextmanager
def lab_of(variant: str) -> Iterator[Lab]:
    """Build the lab of one way, with servers, everything in its place."""
    datapath = "ebpf" if variant == "BPF" else "kernel"
    spec = LabSpec(f"rlyb-{variant.lower()}", backend="udp", datapath=datapath, pods_per_node=1)
    with Lab.up(spec) as lab, ExitStack() as stack:
        for node in lab.nodes:
            if variant == "single":
                send_one_by_one(node)
            pin_relay(node)
        for command in (["iperf3", "-s"], ["python3", "-c", DEAF_SINK]):
            server = lab.pod("n2p1").popen(
                ["taskset", "-c", SERVER_CORE, *command], stdout=subprocess.DEVNULL
            )
            stack.callback(server.wait)
            stack.callback(server.kill)
        time.sleep(1)
        yield lab


DEAF_SINK = f"import socket, time; s = socket.socket(2, 2); s.bind(('', {SINK})); time.sleep(1e9)"
"""A socket that nobody reads: what arrives is counted by the device, and costs the server's core no more."""


def received(host: Host) -> int:
    """Return the packets that a pod has got."""
    lines = host.run(["cat", "/proc/net/dev"]).stdout.splitlines()
    fields = next(line for line in lines if line.strip().startswith("eth0:")).partition(":")[2].split()
    return int(fields[1])


def packets(generator: Path, size: int) -> Callable[[Lab, float], Figures]:
    """Return what measures inner IPv4 packets of `size` bytes."""

    def run(lab: Lab, seconds: float) -> Figures:
        client, server = lab.pod("n1p1"), lab.pod("n2p1")
        flood = [str(generator), "flood", str(server.ip), str(SINK), str(size - 28), "1", "1"]
        sender = client.popen(["taskset", "-c", CLIENT_CORE, *flood])
        prefer(sender.pid, -10)
        try:
            time.sleep(WARM_UP)
            start, before = time.monotonic(), received(server)
            time.sleep(seconds)
            rate = (received(server) - before) / (time.monotonic() - start)
        finally:
            sender.kill()
            sender.communicate()
        time.sleep(0.2)  # queues run empty
        return {f"{size} B kpps": rate / 1e3, f"{size} B Gb/s": rate * size * 8e-9}

    return run


def iperf(lab: Lab, seconds: float, *options: str) -> dict[str, Any]:
    """Run one TCP flow; return iperf3's results."""
    to = ["iperf3", "-c", str(lab.pod("n2p1").ip), "-t", str(seconds), "-J", *options]
    client = lab.pod("n1p1").popen(["taskset", "-c", CLIENT_CORE, *to])
    prefer(client.pid, -10)
    found: dict[str, Any] = json.loads(client.communicate(timeout=seconds + 20)[0])["end"]
    return found


def tcp(lab: Lab, seconds: float) -> Figures:
    """Measure TCP at full speed."""
    return {"TCP Gb/s": iperf(lab, seconds)["sum_received"]["bits_per_second"] * 1e-9}


def relay_cpu(lab: Lab) -> float:
    """Return the CPU seconds of both relays and of all softirqs since boot."""
    ticks = sum(map(int, Path("/proc/stat").read_text().splitlines()[0].split()[6:8]))
    for node in lab.nodes:
        for pid in relay_processes(node):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def cpu(lab: Lab, seconds: float) -> Figures:
    """Measure CPU per Gbit at RATE_MBIT."""
    before = relay_cpu(lab)
    found = iperf(lab, 2 * seconds, "-b", f"{RATE_MBIT}M")
    used, received = found["cpu_utilization_percent"], found["sum_received"]
    ends = (used["host_total"] + used["remote_total"]) / 100 * received["seconds"]
    spent = relay_cpu(lab) - before + ends
    return {f"CPU s/Gbit at {RATE_MBIT} Mb/s": spent / (received["bytes"] * 8e-9)}


def prove(variant: str, lab: Lab) -> None:
    """Raise LabError unless the packets of all rounds went the way they should."""
    node = lab.node("n1")
    relayed = device_packets(node, "flannel0")
    fast = 0
    if variant == "BPF":
        fast = sum(count for (_, reason), count in reasons(node).items() if reason == Reason.FAST_UDP)
    share = fast / (fast + relayed)
    if share < SHARE if variant == "BPF" else share > 0:
        raise LabError(f"{variant}: BPF carried {share:.0%} of the packets")


def main() -> None:
    """Run the rounds and print a row for every figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        generator = build_generator(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        work = (packets(generator, 64), packets(generator, 1400), tcp, cpu)
        labs = {variant: stack.enter_context(lab_of(variant)) for variant in ("relay", "single", "BPF")}
        for _ in range(options.rounds):
            for measure in work:
                for variant, lab in labs.items():
                    for name, figure in measure(lab, options.seconds).items():
                        results.setdefault(name, {}).setdefault(variant, []).append(figure)
        for variant, lab in labs.items():
            prove(variant, lab)
    print(f"{'median of ' + str(options.rounds):24} {'relay':>9} {'single':>9} {'BPF':>9} {'BPF/relay':>10}")
    for name, by_variant in results.items():
        medians = {variant: statistics.median(samples) for variant, samples in by_variant.items()}
        columns = " ".join(f"{figure:9.3f}" for figure in medians.values())
        print(f"{name:24} {columns} {medians['BPF'] / medians['relay']:10.2f}")


if __name__ == "__main__":
    main()
