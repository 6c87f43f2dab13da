"""Measure the udp backend's relay: two namespaces, one direction, medians of alternating rounds.

    sender, relay A [core 0] -> veth -> relay B [core 1] -> TUN

The sender has idle priority on A's core, so it offers just as much as the relay can take. Packets are
counted where relay B puts them into its TUN; the sink's socket is never read. CPU is user + system time
of both relays' processes; `TCP` is iperf3 between the two TUN addresses.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from flannel_ebpf.relay import counters
from flannel_ebpf.relay.forward import UDP_SEGMENT
from flannel_ebpf.relay.supervise import RelaySpec

NETWORK = IPv4Network("10.1.0.0/16")
SUBNETS = {"rlyb-a": IPv4Network("10.1.5.0/24"), "rlyb-b": IPv4Network("10.1.6.0/24")}
PUBLIC = {"rlyb-a": IPv4Address("192.168.77.1"), "rlyb-b": IPv4Address("192.168.77.2")}
CORES = {"rlyb-a": "0", "rlyb-b": "1"}
VARIANTS = {"batch": True, "single": False}
SINK_PORT = 9


def run(*words: str) -> None:
    """Run a command that must succeed."""
    subprocess.run(words, check=True, capture_output=True)


def inside(node: str, *words: str) -> list[str]:
    """Return the command line that runs `words` in a node's namespace on its core."""
    return ["nsenter", f"--net=/run/netns/{node}", "taskset", "-c", CORES[node], *words]


@contextmanager
def two_nodes() -> Iterator[None]:
    """Two namespaces joined by a veth pair, each with its public address."""
    try:
        for node in PUBLIC:
            run("ip", "netns", "add", node)
        run("ip", "link", "add", "up0", "netns", "rlyb-a", "type", "veth", "peer", "up0", "netns", "rlyb-b")
        for node, ip in PUBLIC.items():
            run("ip", "-n", node, "address", "add", f"{ip}/24", "dev", "up0")
            run("ip", "-n", node, "link", "set", "up0", "up")
            run("ip", "-n", node, "link", "set", "lo", "up")
        yield
    finally:
        for node in PUBLIC:
            subprocess.run(["ip", "netns", "delete", node], check=False, capture_output=True)


@contextmanager
def relays(folder: Path, batch: bool) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Both relays, ready to carry packets."""
    with ExitStack() as stack:
        processes = {}
        for node, peer in (("rlyb-a", "rlyb-b"), ("rlyb-b", "rlyb-a")):
            home = folder / node
            home.mkdir(exist_ok=True)
            (home / "counters").unlink(missing_ok=True)
            (home / "peers.json").write_text(json.dumps({str(SUBNETS[peer]): str(PUBLIC[peer])}))
            address = SUBNETS[node].network_address
            spec = RelaySpec(home, "flannel0", PUBLIC[node], 8285, 1472, address, NETWORK, batch=batch)
            processes[node] = subprocess.Popen(inside(node, *spec.command()), stderr=subprocess.DEVNULL)
            stack.callback(processes[node].wait)
            stack.callback(processes[node].terminate)
        deadline = time.monotonic() + 10
        while not all(counters.read(folder / node / "counters")[0] for node in PUBLIC):
            if time.monotonic() > deadline:
                raise TimeoutError("the relays did not start")
            time.sleep(0.02)
        yield processes


def cpu_seconds(main_pid: int) -> float:
    """Return user + system time of a relay's main process and its workers."""
    children = Path(f"/proc/{main_pid}/task/{main_pid}/children").read_text().split()
    ticks = 0
    for pid in (str(main_pid), *children):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def send(size: int) -> None:
    """Send inner packets of `size` bytes for ever; started by `measure` in node A."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    payload = size - 28
    count = min(64, 60000 // size)
    segment = (socket.SOL_UDP, UDP_SEGMENT, struct.pack("=H", payload))
    to = (str(SUBNETS["rlyb-b"].network_address), SINK_PORT)
    burst = bytes(payload * count)
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        sock.sendmsg((burst,), (segment,), 0, to)


def measure(folder: Path, size: int, seconds: float, pids: list[int]) -> tuple[float, float, float]:
    """Return kpps, Gb/s of inner bytes, and CPU seconds per Gbit of one round."""
    command = inside("rlyb-a", sys.executable, __file__, "--send", str(size))
    sender = subprocess.Popen(command)
    try:
        time.sleep(0.5)
        cpu, start = sum(map(cpu_seconds, pids)), time.monotonic()
        before = counters.read(folder / "rlyb-b" / "counters")[1]
        time.sleep(seconds)
        after = counters.read(folder / "rlyb-b" / "counters")[1]
        elapsed = time.monotonic() - start
        cpu = sum(map(cpu_seconds, pids)) - cpu
    finally:
        sender.kill()
        sender.wait()
    packets = after["rx_delivered"] - before["rx_delivered"]
    gbit = (after["rx_bytes"] - before["rx_bytes"]) * 8e-9
    return packets / elapsed / 1000, gbit / elapsed, cpu / gbit


def tcp(seconds: float, pids: list[int]) -> tuple[float, float, float]:
    """Return 0, iperf3's TCP throughput in Gb/s from node A to node B, and CPU seconds per Gbit."""
    to = str(SUBNETS["rlyb-b"].network_address)
    server = subprocess.Popen(inside("rlyb-b", "iperf3", "-s", "-1"), stdout=subprocess.DEVNULL)
    try:
        time.sleep(0.3)
        cpu = sum(map(cpu_seconds, pids))
        client = inside("rlyb-a", "iperf3", "-c", to, "-t", str(seconds), "-J")
        found = subprocess.run(client, check=True, capture_output=True, timeout=seconds + 20)
        cpu = sum(map(cpu_seconds, pids)) - cpu
    finally:
        server.terminate()
        server.wait()
    received = json.loads(found.stdout)["end"]["sum_received"]
    return 0.0, float(received["bits_per_second"]) * 1e-9, cpu / (float(received["bytes"]) * 8e-9)


def main() -> None:
    """Run the rounds and print one line per variant and packet size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--send", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.send:
        send(options.send)
    results: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    with two_nodes(), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(options.rounds):
            for variant, batch in VARIANTS.items():
                with relays(folder, batch) as processes:
                    pids = [process.pid for process in processes.values()]
                    for size in (64, 1400):
                        sample = measure(folder, size, options.seconds, pids)
                        results.setdefault((variant, f"{size} B"), []).append(sample)
                    results.setdefault((variant, "TCP"), []).append(tcp(options.seconds, pids))
    print(f"{'variant':8} {'packets':8} {'kpps':>8} {'Gb/s':>8} {'CPU s/Gbit':>11}")
    for (variant, packets), samples in sorted(results.items()):
        kpps, gbits, cpu = (statistics.median(column) for column in zip(*samples, strict=True))
        rate = f"{kpps:8.1f}" if kpps else f"{'-':>8}"
        print(f"{variant:8} {packets:8} {rate} {gbits:8.3f} {cpu:11.3f}")


if __name__ == "__main__":
    main()
