"""A flannel udp peer made of raw sockets only, and the node under test: two namespaces and a veth.

    node <prefix>a  up0 192.168.78.1   flannel0, relay   subnet 10.1.5.0/24
    peer <prefix>b  up0 192.168.78.2   nothing           subnet 10.1.6.0/24; 192.168.78.3 is no member

Written from flannel's wire format (the payload is the bare packet), not from the relay's code.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from flannel_ebpf.relay.spec import RelaySpec
from tests.namespaces import inside

NODE, PEER, STRANGER = "192.168.78.1", "192.168.78.2", "192.168.78.3"
MTU = 1472
PATIENCE = 30.0
"""Seconds that anything here waits for a packet that must come."""
PEERS = {IPv4Network("10.1.6.0/24"): IPv4Address(PEER)}


def run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


@contextmanager
def two_namespaces(prefix: str) -> Iterator[None]:
    node, peer = f"{prefix}a", f"{prefix}b"
    try:
        for name in (node, peer):
            run("ip", "netns", "add", name)
        run("ip", "link", "add", "up0", "netns", node, "type", "veth", "peer", "up0", "netns", peer)
        for name, addresses in ((node, [NODE]), (peer, [PEER, STRANGER])):
            for address in addresses:
                run("ip", "-n", name, "address", "add", f"{address}/24", "dev", "up0")
            run("ip", "-n", name, "link", "set", "up0", "up")
            run("ip", "-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in (node, peer):
            subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


def spec(folder: Path, **changes: object) -> RelaySpec:
    settings = {
        "folder": folder,
        "tun": "flannel0",
        "bind": IPv4Address(NODE),
        "port": 8285,
        "mtu": MTU,
        "address": IPv4Address("10.1.5.0"),
        "network": IPv4Network("10.1.0.0/16"),
    }
    return RelaySpec(**{**settings, **changes})  # type: ignore[arg-type] # tests change any field


def udp_socket(namespace: str, address: str, port: int) -> socket.socket:
    with inside(namespace):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
    sock.setsockopt(socket.IPPROTO_IP, 15, 1)  # IP_FREEBIND: a test may start before the TUN is there
    sock.bind((address, port))
    sock.settimeout(PATIENCE)
    return sock


def sniffer(namespace: str, device: str) -> socket.socket:
    """A packet socket that sees whole frames (a TUN's: whole packets) of `device`."""
    with inside(namespace):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
        sock.bind((device, 0))
    sock.settimeout(PATIENCE)
    return sock


def frame_where(sock: socket.socket, wanted: Callable[[bytes], bool]) -> bytes:
    """Return the next frame that is `wanted`; a TimeoutError after PATIENCE."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        frame = sock.recv(65536)
        if wanted(frame):
            return frame
    raise TimeoutError("no such frame")


def inner(
    size: int = 60, ttl: int = 64, src: str = "10.1.6.2", dst: str = "10.1.5.0", port: int = 7000
) -> bytes:
    """A whole inner packet of `size` bytes for a socket at `dst`:`port`."""
    return bytes(IP(src=src, dst=dst, ttl=ttl) / UDP(sport=5000, dport=port) / Raw(bytes(size - 28)))


def resident_kib(pids: list[int]) -> int:
    """Private and shared memory of the processes together, in KiB."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in pids)
    return pages * os.sysconf("SC_PAGE_SIZE") // 1024


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def segments(payloads: bytes, size: int) -> tuple[list[bytes], list[tuple[int, int, bytes]]]:
    """Arguments of sendmsg that send `payloads` as datagrams of `size` bytes (UDP_SEGMENT)."""
    return [payloads], [(socket.SOL_UDP, 103, struct.pack("=H", size))]
