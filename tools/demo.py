#!/usr/bin/env python3
"""Show flannel-ebpf at work: two nodes, real etcd, pods talking through the kernel and then through BPF.

Exits with status 1 when the counters do not prove that packets took the path they should have taken.
"""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from types import FrameType

from flannel_ebpf.base.errors import FlannelError, LabError
from flannel_ebpf.contract.enums import Hook, Reason
from flannel_ebpf.lab import Host, Lab, LabSpec, Node, teardown
from flannel_ebpf.lab.counters import Reasons, device_packets, reasons
from flannel_ebpf.lab.drawing import draw
from flannel_ebpf.lab.readiness import unattached

NAME = "demo"
DEVICE = "flannel.1"
SECONDS = 3
ENOUGH = 5_000
"""Packets that a path must have carried in SECONDS: any working path carries many times more."""
STRAY = 0.01
"""Share of packets that may pass the kernel while BPF carries the flow: its first ones, handshakes, ICMP."""


def main() -> int:
    """Run the demo and return the exit status."""
    signal.signal(signal.SIGTERM, _interrupt)
    print("flannel-ebpf demo: pods on two nodes talk through the kernel's vxlan, then through BPF.")
    teardown.remove(NAME)  # what an earlier run left that was killed
    try:
        with Lab.up(LabSpec(name=NAME, datapath="kernel")) as lab:
            show_lab(lab)
            slow = through_kernel(lab)
            fast = through_bpf(lab)
            print(f"\nProved by the counters: {slow:.1f} Gbit/s through the kernel, {fast:.1f} through BPF.")
            print("One short run each; `make bench` compares the two in alternating rounds.")
    except FlannelError as error:
        print(f"\ndemo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ndemo: interrupted, everything it made is removed", file=sys.stderr)
        return 130
    where_next()
    return 0


def show_lab(lab: Lab) -> None:
    """Print the topology and the leases."""
    heading(1, "What was built: namespaces on this machine, real etcd, one daemon per node")
    print(draw(lab))
    heading(2, "Leases in etcd, under flannel's own keys")
    print(indented(lab.etcdctl("get", "--prefix", lab.spec.etcd_prefix)))


def through_kernel(lab: Lab) -> float:
    """Send through the kernel path; return Gbit/s. Raises LabError when flannel.1 did not carry it."""
    heading(3, "Through the kernel: bridge, routing, netfilter, vxlan device (--datapath=kernel)")
    node = lab.node("n1")
    before = device_packets(node, DEVICE)
    speed = talk(lab)
    carried = device_packets(node, DEVICE) - before
    print(f"  no BPF program is attached; {DEVICE} on n1 carried {carried:,} packets.")
    prove("eth0" in unattached(node), "a BPF program is attached on the kernel path")
    prove(carried > ENOUGH, f"{DEVICE} carried only {carried} packets of an iperf3 run on the kernel path")
    return speed


def through_bpf(lab: Lab) -> float:
    """Switch both nodes to BPF and send again; return Gbit/s. Raises LabError when it was not BPF."""
    heading(4, "Through BPF: tc programs encapsulate, decapsulate and redirect (--datapath=ebpf)")
    switch_to_bpf(lab)
    sender, receiver = lab.node("n1"), lab.node("n2")
    show_peers(sender)
    before = {node.name: reasons(node) for node in (sender, receiver)}
    device_before = device_packets(sender, DEVICE)
    speed = talk(lab)
    after = {node.name: reasons(node) for node in (sender, receiver)}
    stray = device_packets(sender, DEVICE) - device_before

    print("\n  What the programs counted (enum fl_reason):")
    print(f"  {'node':<5} {'hook':<10} {'reason':<18} {'before':>10} {'after':>10}")
    for node in (sender, receiver):
        print_reasons(node, before[node.name], after[node.name])
    sent = (after["n1"] - before["n1"])[Hook.FROM_POD, Reason.FAST_VXLAN]
    received = (after["n2"] - before["n2"])[Hook.FROM_PEER, Reason.FAST_VXLAN]
    print(f"  {DEVICE} on n1 carried {stray:,} packets; BPF encapsulated {sent:,}.")
    prove(sent > ENOUGH, f"n1 encapsulated only {sent} packets in BPF")
    prove(received > ENOUGH, f"n2 decapsulated only {received} packets in BPF")
    prove(stray < STRAY * sent, f"{stray} packets took {DEVICE} while BPF carried {sent}")
    return speed


def switch_to_bpf(lab: Lab) -> None:
    """Restart both daemons on the BPF datapath, with pods running."""
    for node in lab.nodes:
        node.stop_daemon()
        node.start_daemon(["--datapath=ebpf"])
    lab.wait_attached(lab.nodes)
    print("  both daemons restarted with --datapath=ebpf; the pods stayed as they are")


def show_peers(node: Node) -> None:
    """Print fl_peers from bpftool's dump, one line for each struct."""
    command = ["bpftool", "map", "dump", "pinned", str(node.map_path("fl_peers"))]
    print(f"\n  what {node.name} knows of its peers, in its BPF map:\n  {node.name}$ {shlex.join(command)}")
    entries = json.loads(node.run([*command, "--json"]).stdout)
    for entry in (entry["formatted"] for entry in entries):
        print(f"      key   {compact(entry['key'])}\n      value {compact(entry['value'])}")
    print()


def talk(lab: Lab) -> float:
    """Ping and iperf3 from n1p1 to n2p1, each shown; return Gbit/s."""
    client, server = lab.pod("n1p1"), lab.pod("n2p1")
    show(client, ["ping", "-c3", "-i0.2", "-q", str(server.ip)], last=2)
    listening = server.popen(["iperf3", "--server", "--one-off"])
    try:
        wait_for_port(server, 5201)
        command = ["iperf3", "--client", str(server.ip), "--time", str(SECONDS)]
        print(f"  {client.name}$ {shlex.join(command)}")
        result = json.loads(client.run([*command, "--json"]).stdout)
    finally:
        listening.kill()
        listening.wait()
    speed = float(result["end"]["sum_received"]["bits_per_second"]) / 1e9
    print(f"      {speed:.1f} Gbit/s over {SECONDS} s, one TCP connection")
    return speed


def show(host: Host, command: list[str], last: int) -> None:
    """Run a command, printing it and the last lines of what it said."""
    print(f"  {host.name}$ {shlex.join(command)}")
    lines = [line for line in host.run(command).stdout.splitlines() if line]
    print(indented("\n".join(lines[-last:]), by=6))


def wait_for_port(host: Host, port: int) -> None:
    """Wait until something listens on a TCP port in `host`; LabError after 5 s."""
    deadline = time.monotonic() + 5
    while f":{port}" not in host.run(["ss", "-Hltn"]).stdout:
        if time.monotonic() > deadline:
            raise LabError(f"nothing listens on port {port} in {host.name}")
        time.sleep(0.02)


def print_reasons(node: Node, before: Reasons, after: Reasons) -> None:
    """Print the five reasons that moved most, largest first."""
    moved = (after - before).most_common(5)
    for key, _ in moved:
        hook, reason = key
        print(
            f"  {node.name:<5} {hook.name.lower():<10} {reason.name:<18} {before[key]:>10,} {after[key]:>10,}"
        )


def compact(fields: dict[str, object]) -> str:
    """Return one struct of a map dump on one line; addresses are lists of numbers there."""
    return ", ".join(
        f"{name} {_address(value)}" for name, value in fields.items() if not name.startswith("pad")
    )


def _address(value: object) -> object:
    if not isinstance(value, list):
        return value
    octets = [int(str(octet), 0) for octet in value]
    return ":".join(f"{octet:02x}" for octet in octets) if len(octets) == 6 else ".".join(map(str, octets))


def where_next() -> None:
    """Say what to do with all this."""
    heading(5, "Where to go next")
    print(
        "  a lab of your own     .venv/bin/flannel-ebpf lab up --nodes 3 --datapath ebpf\n"
        "  look into it          .venv/bin/flannel-ebpf lab exec n1p1 -- ping 10.1.x.2\n"
        "  a real node           README.md, 'Switch a node from flanneld'\n"
        "  how a packet travels  docs/packet-path.md\n"
        "  measure               make bench\n"
        "  the tests             make test"
    )


def prove(holds: bool, otherwise: str) -> None:
    """Raise LabError unless the counters show what the demo claims."""
    if not holds:
        raise LabError(f"NOT PROVED: {otherwise}")


def heading(number: int, text: str) -> None:
    """Print the title of a step."""
    print(f"\n{number}. {text}\n", flush=True)


def indented(text: str, by: int = 2) -> str:
    """Return `text` with every line moved to the right."""
    return "\n".join(" " * by + line for line in text.strip().splitlines())


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
