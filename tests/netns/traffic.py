"""Traffic between hosts of the lab, made with sockets of this process that live in the hosts' namespaces."""

from __future__ import annotations

import hashlib
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Self

from scapy.layers.l2 import Ether
from scapy.packet import Packet

from flannel_ebpf.lab.host import Host
from tests.namespaces import inside

PATIENCE = 30.0
"""Seconds that anything here waits for a packet that must come."""
QUIET = 1.0
"""Seconds without a packet after which no more are thought to come."""

_RCVBUFFORCE, _UDP_SEGMENT, _UDP_GRO = 33, 103, 104
_IP_MTU_DISCOVER, _IP_MTU, _IP_RECVTOS, _IP_RECVTTL = 10, 14, 13, 12
_PMTUDISC_DONT, _PMTUDISC_DO = 0, 2
_OUTGOING = 4  # PACKET_OUTGOING

Address = tuple[str, int]


def udp(host: Host, port: int = 0) -> socket.socket:
    """A UDP socket of `host` that tells TOS and TTL of what it gets; everything goes to its `port`."""
    with inside(host.ns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 16 << 20)
    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTOS, 1)
    sock.setsockopt(socket.IPPROTO_IP, _IP_RECVTTL, 1)
    sock.bind(("", port))
    sock.settimeout(PATIENCE)
    return sock


def send_udp(
    sock: socket.socket, to: Address, count: int, size: int = 64, *, ttl: int = 64, tos: int = 0
) -> None:
    """Send `count` numbered datagrams of `size` bytes."""
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, ttl)
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, tos)
    for number in range(count):
        sock.sendto(number.to_bytes(4, "big") + bytes(size - 4), to)


def numbers(sock: socket.socket, count: int, quiet: float = QUIET) -> list[int]:
    """Receive until `count` datagrams of `send_udp` are here or none has come for `quiet` seconds.

    Return their numbers, sorted: nobody promises an order.
    """
    got: list[int] = []
    while len(got) < count and select.select([sock], [], [], quiet)[0]:
        got.append(int.from_bytes(sock.recv(65536)[:4], "big"))
    return sorted(got)


def receive(sock: socket.socket) -> tuple[bytes, int, int, Address]:
    """Return payload, TOS, TTL and sender of the next datagram; TimeoutError after PATIENCE."""
    data, extra, _, sender = sock.recvmsg(65536, 256)
    said = {kind: int.from_bytes(value, "little") for _, kind, value in extra}
    return data, said[socket.IP_TOS], said[socket.IP_TTL], sender


def delivered(client: Host, server: Host, count: int = 100, size: int = 64) -> int:
    """Send `count` datagrams from `client` to `server` on a new flow; return how many came."""
    with udp(client) as source, udp(server) as target:
        send_udp(source, (str(server.ip), target.getsockname()[1]), count, size)
        return len(numbers(target, count))


def send_super(sock: socket.socket, to: Address, payload: bytes, segment: int) -> None:
    """Hand the kernel one super-packet of datagrams of `segment` bytes (UDP_SEGMENT)."""
    sock.sendmsg([payload], [(socket.SOL_UDP, _UDP_SEGMENT, struct.pack("=H", segment))], 0, to)


def accept_super(sock: socket.socket) -> None:
    """Let the kernel hand over super-packets unsegmented (UDP_GRO)."""
    sock.setsockopt(socket.SOL_UDP, _UDP_GRO, 1)


def may_fragment(sock: socket.socket, may: bool) -> None:
    """Leave DF clear or set it; with it set, datagrams larger than the known path MTU fail with EMSGSIZE."""
    sock.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _PMTUDISC_DONT if may else _PMTUDISC_DO)


def path_mtu(sock: socket.socket) -> int:
    """Return the path MTU that the kernel knows for a connected socket."""
    return sock.getsockopt(socket.IPPROTO_IP, _IP_MTU)


def tcp_server(host: Host, port: int = 0) -> socket.socket:
    with inside(host.ns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", port))
    sock.listen(16)
    sock.settimeout(PATIENCE)
    return sock


def tcp_client(host: Host, to: Address, patience: float = PATIENCE, port: int = 0) -> socket.socket:
    """Connect, from `port` if it is given, which may have other connections; OSError after `patience`."""
    family = socket.AF_INET6 if ":" in to[0] else socket.AF_INET
    with inside(host.ns):
        sock = socket.socket(family, socket.SOCK_STREAM)
    if port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port))
    sock.settimeout(patience)
    sock.connect(to)
    return sock


@contextmanager
def connection(
    client: Host, server: Host, to: Address | None = None, port: int = 0, source: int = 0
) -> Generator[tuple[socket.socket, socket.socket], None, None]:
    """A TCP connection: the client's and the server's end.

    The server listens on `port` (0: any); the client connects there, or to `to` if something translates it,
    from `source` (0: any).
    """
    with (
        tcp_server(server, port) as listener,
        tcp_client(client, to or (str(server.ip), listener.getsockname()[1]), port=source) as near,
        listener.accept()[0] as far,
    ):
        far.settimeout(PATIENCE)
        yield near, far


def pump(source: socket.socket, target: socket.socket, size: int) -> None:
    """Send `size` random bytes through a connection; the sums of what went in and came out are equal."""
    block = os.urandom(1 << 20)
    sent, got = hashlib.sha256(), hashlib.sha256()
    failed: list[OSError] = []

    def send() -> None:
        left = size
        try:
            while left:
                part = block[: min(left, len(block))]
                source.sendall(part)
                sent.update(part)
                left -= len(part)
        except OSError as error:
            failed.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    left = size
    try:
        while left:
            data = target.recv(1 << 20)
            if not data:
                break
            got.update(data)
            left -= len(data)
    finally:
        sender.join()
    assert not failed, failed
    assert left == 0
    assert sent.digest() == got.digest()


def transfer(client: Host, server: Host, size: int, to: Address | None = None, port: int = 0) -> None:
    """Send `size` bytes each way through one TCP connection."""
    with connection(client, server, to, port) as (near, far):
        pump(near, far, size)
        pump(far, near, size)


def ping(client: Host, to: IPv4Address | str, count: int, *options: str, patience: int = 10) -> int:
    """Return how many of `count` echo requests were answered, at most `patience` seconds after the last."""
    line = ["ping", "-q", f"-c{count}", "-i0.002", f"-W{patience}", *options, str(to)]
    said = client.run(line, check=False).stdout
    return int(said.partition(" received")[0].rpartition(" ")[2])


def raw(host: Host, protocol: int) -> socket.socket:
    """A raw socket that gets all IPv4 packets of `protocol` that `host` gets, and sends such."""
    with inside(host.ns):
        sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
    sock.settimeout(PATIENCE)
    return sock


def icmp(host: Host) -> socket.socket:
    """A raw socket that gets all ICMP that `host` gets."""
    return raw(host, socket.IPPROTO_ICMP)


def icmp_error(sock: socket.socket, kind: int) -> tuple[str, int]:
    """Return who sent the next ICMP message of type `kind`, and its last header word (the MTU of type 3)."""
    while True:
        packet = sock.recv(65536)
        header = packet[(packet[0] & 15) * 4 :]
        if header[0] == kind:
            return socket.inet_ntoa(packet[12:16]), int.from_bytes(header[6:8], "big")


@contextmanager
def capture(ns: str, device: str) -> Generator[Callable[[], list[Packet]], None, None]:
    """See whole frames of `device`; the callable returns those since the last call."""
    with inside(ns):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003))
    with sock:
        sock.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 16 << 20)
        sock.bind((device, 0))

        def frames() -> list[Packet]:
            got: list[Packet] = []
            while select.select([sock], [], [], 0.05)[0]:
                got.append(Ether(sock.recv(65536)))
            return got

        yield frames


@contextmanager
def injector(ns: str, device: str) -> Generator[Callable[[Packet], None], None, None]:
    """Send whole frames out of `device`."""
    with inside(ns):
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with sock:
        sock.bind((device, 0))
        yield lambda frame: (sock.send(bytes(frame)), None)[1]


class Stream:
    """Numbered datagrams at a steady pace from one host to another, from `with` to its end.

    `sent` counts; `got` holds (time of arrival, number). At the end of the block the last ones are awaited.
    """

    def __init__(self, client: Host, server: Host, pace: float = 1000.0, size: int = 200) -> None:
        self._source, self._target = udp(client), udp(server)
        self._there = (str(server.ip), self._target.getsockname()[1])
        self._interval, self._size = 1 / pace, size
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]
        self.sent = 0
        self.got: list[tuple[float, int]] = []

    def _send(self) -> None:
        start = time.monotonic()
        while not self._stop.is_set():
            self._source.sendto(self.sent.to_bytes(4, "big") + bytes(self._size - 4), self._there)
            self.sent += 1
            time.sleep(max(0.0, start + self.sent * self._interval - time.monotonic()))

    def _receive(self) -> None:
        while select.select([self._target], [], [], 0.5)[0] or not self._stop.is_set():
            if select.select([self._target], [], [], 0)[0]:
                self.got.append((time.monotonic(), int.from_bytes(self._target.recv(65536)[:4], "big")))

    @property
    def lost(self) -> set[int]:
        """Numbers sent that have not come."""
        return set(range(self.sent)) - {number for _, number in self.got}

    def silent(self, count: int = 300) -> bool:
        """Whether none of the last `count` that were sent has come."""
        return self.sent - (self.got[-1][1] if self.got else 0) > count

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
        self._source.close()
        self._target.close()
