"""One node's program on one packet at a time, by BPF_PROG_TEST_RUN: `python -m perf.alone LAB NODE FRAME`.

Runs in the node's network namespace, because that is where a test run finds its devices. FRAME, in hex, is a
64 B UDP datagram: for n1 as its pod sends it, for n2 as n1 encapsulated it. Prints JSON: the costs by kind of
packet, and what the program made of FRAME.
"""

from __future__ import annotations

import json
import socket
import statistics
import struct
import sys
from collections.abc import Iterator

from flannel_ebpf.base.model import Mac
from flannel_ebpf.kernel.bpf import Program, TestRun
from flannel_ebpf.lab import Host, Lab

RUNS = 20_000
PORTS = (40000, 9000)
SKB_IFINDEX, SKB_SIZE = 40, 192
"""Offset in struct __sk_buff, and its size."""
ETHERNET, IPV4 = 14, 20
SYN, ACK = 0x02, 0x10
UDP, TCP = 17, 6


def datagram(lab: Lab) -> bytes:
    """Return a 64 B UDP datagram of n1p1 to n2p1, as it leaves the pod."""
    sender, receiver = lab.pod("n1p1"), lab.pod("n2p1")
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 92, 1, 0, 64, UDP, 0, sender.ip.packed, receiver.ip.packed)
    ethernet = address_of(lab.node("n1"), "cni0") + address_of(sender, "eth0") + b"\x08\x00"
    return ethernet + _with_checksum(header) + struct.pack("!HHHH", *PORTS, 72, 0) + bytes(64)


def address_of(host: Host, device: str) -> bytes:
    """Return a device's MAC address."""
    shown = json.loads(host.run(["ip", "-json", "link", "show", "dev", device]).stdout)
    return Mac.parse(shown[0]["address"]).octets


def main(lab: str, name: str, text: str) -> None:
    """Measure and print."""
    node = Lab.open(lab).node(name)
    sends, frame = name == "n1", bytes.fromhex(text)
    device = node.pods[0].veth if sends else "eth0"
    program = "fl_from_pod" if sends else "fl_from_peer"
    if not sends:
        frame = address_of(node, device) + frame[6:]
    inner = len(frame) - ETHERNET - 92
    context = bytearray(SKB_SIZE)
    struct.pack_into("=I", context, SKB_IFINDEX, socket.if_nametoindex(device))
    kinds = {
        "SYN": _connections(frame, inner, SYN),
        "first packet": _connections(frame, inner, ACK),
        "admitted": (frame for _ in range(RUNS)),
    }
    costs, last = {}, TestRun(0, b"", b"", 0)
    with Program.open(node.map_path(program)) as opened:
        for kind, frames in kinds.items():
            if kind == "admitted":
                _admit(Lab.open(lab))
            taken = []
            for one in frames:
                last = opened.test_run(one, bytes(context))
                taken.append(last.duration_ns)
            costs[kind] = statistics.median(taken)
    print(json.dumps({"program": program, "ns": costs, "verdict": last.verdict, "frame": last.data.hex()}))


def _connections(frame: bytes, inner: int, flags: int) -> Iterator[bytes]:
    """Yield the frame as a TCP packet, each of another connection."""
    ip, l4 = inner + ETHERNET, inner + ETHERNET + IPV4
    header = bytearray(frame[ip:l4])
    header[9], header[10:12] = TCP, b"\0\0"
    for number in range(RUNS):
        tcp = struct.pack("!HHIIBBHHH", 1024 + number, PORTS[1], 0, 0, 0x50, flags, 1024, 0, 0)
        yield frame[:ip] + _with_checksum(bytes(header)) + tcp + frame[l4 + len(tcp) :]


def _with_checksum(header: bytes) -> bytes:
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    return header[:10] + struct.pack("!H", ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF) + header[12:]


def _admit(lab: Lab) -> None:
    """Send real datagrams of the flow that is measured, until it must be open."""
    send = f"""
import socket, time
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("", {PORTS[0]}))
for _ in range(40):
    sock.sendto(bytes(64), ("{lab.pod("n2p1").ip}", {PORTS[1]}))
    time.sleep(0.001)
"""
    lab.pod("n1p1").run([sys.executable, "-c", send])


if __name__ == "__main__":
    main(*sys.argv[1:])
