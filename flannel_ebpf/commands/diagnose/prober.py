"""Sends `probe`'s packets to all peers at once and gathers what comes back.

Three questions go to each peer. An echo by the kernel's path, and one wrapped as the programs wrap it: over
IPv4 with a UDP checksum of 0, which some hosts and networks drop. An echo beside the overlay, to its public
address. And a datagram through the tunnel whose inner target is our own public address: a peer that hears
it routes it back beside the tunnel. So "it does not hear us" and "we do not hear it" can be told apart,
without help from its daemon.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from typing import Literal

from flannel_ebpf.base.errors import KernelError
from flannel_ebpf.base.family import Address, Family
from flannel_ebpf.commands.diagnose import probe_packets as packets
from flannel_ebpf.commands.diagnose.paths import Node, Target
from flannel_ebpf.commands.diagnose.probe_packets import LAYOUTS, Ends

Way = Literal["kernel", "bpf", "underlay"]
WAYS: tuple[Way, ...] = ("kernel", "bpf", "underlay")
SMALL = 100

_SO_NO_CHECK, _SO_ATTACH_FILTER, _SO_SNDBUFFORCE = 11, 26, 32
_MTU_DISCOVER = {Family.V4: (socket.IPPROTO_IP, 10), Family.V6: (socket.IPPROTO_IPV6, 23)}
_PMTUDISC_PROBE = 3
_BURST = 64  # packets between two looks at what came
_RECEIVE_BUFFER = 4 << 20
_SEND_BUFFER = 64 << 20  # packets for a dead neighbour count here until ARP gives up, and must delay no other


@dataclass(slots=True)
class Tally:
    """What came of a peer: by (way, size) how many echoes went out, and the round trips of those answered."""

    sent: dict[tuple[Way, int], int] = field(default_factory=lambda: defaultdict(int))
    trips: dict[tuple[Way, int], list[float]] = field(default_factory=lambda: defaultdict(list))
    returned: int = 0
    """Datagrams that came back beside the tunnel: the peer hears us."""

    def came(self, way: Way, size: int) -> int:
        """Return how many echoes of this size came back."""
        return len(self.trips[way, size])


class Prober:
    """Opens the sockets; raises KernelError where they cannot be had, which takes root."""

    def __init__(self, node: Node, targets: Sequence[Target]) -> None:
        self._node = node
        self._targets = targets
        self._by_address = {one.address: one for one in targets}
        self._by_public = {one.public_ip: one for one in targets}
        self._ident = int.from_bytes(os.urandom(2), "big") & 0xFFF0
        self._pending: dict[tuple[int, int, Address], tuple[float, Way, int]] = {}
        self._sequence = 0
        self.tallies = {one: Tally() for one in targets}
        self._stack = ExitStack()
        try:
            self._overlay = self._icmp(node.address)
            self._underlay = self._icmp(node.public_ip)
            self._tunnel = self._udp()
            self._back = self._capture()
        except OSError as error:
            self._stack.close()
            raise KernelError(
                f"sockets for probing: {error.strerror}: this takes root", error.errno or 0
            ) from error

    def __enter__(self) -> Prober:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def round(self, sizes: Callable[[Target], Sequence[int]], wait: float) -> None:
        """Send one echo of each size by each way to every peer, and listen `wait` seconds longer."""
        for number, send in enumerate(self._sends(sizes)):
            with suppress(OSError):  # no route, no neighbour: nothing comes back, and that is the finding
                send()
            if number % _BURST == 0:
                self._listen(0)
        self._listen(wait)

    def _sends(self, sizes: Callable[[Target], Sequence[int]]) -> Iterator[Callable[[], object]]:
        for target in self._targets:
            wanted = sizes(target)
            if not wanted:
                continue
            tunnel = self._node.port and (
                target.mac or not self._node.mac
            )  # else the peer is routed to directly
            for size in wanted:
                yield partial(self._by_kernel, target, size)
                if tunnel:
                    yield partial(self._by_bpf, target, size)
            yield partial(self._beside, target)
            if tunnel:
                yield partial(self._there_and_back, target)

    def _next(self, target: Target, place: Address, way: Way, size: int) -> tuple[int, int]:
        self._sequence = (self._sequence + 1) & 0xFFFF
        ident = self._ident | WAYS.index(way)
        self._pending[ident, self._sequence, place] = (time.monotonic(), way, size)
        self.tallies[target].sent[way, size] += 1
        return ident, self._sequence

    def _by_kernel(self, target: Target, size: int) -> None:
        ident, sequence = self._next(target, target.address, "kernel", size)
        ends = Ends(self._node.address, target.address)
        self._overlay.sendto(packets.echo(ends, ident, sequence, size), (str(target.address), 0))

    def _by_bpf(self, target: Target, size: int) -> None:
        ident, sequence = self._next(target, target.address, "bpf", size)
        ends = Ends(self._node.address, target.address)
        body = packets.echo(ends, ident, sequence, size)
        self._through(target, packets.packet(ends, ends.layout.icmp, body))

    def _beside(self, target: Target) -> None:
        ident, sequence = self._next(target, target.public_ip, "underlay", SMALL)
        ends = Ends(self._node.public_ip, target.public_ip)
        self._underlay.sendto(packets.echo(ends, ident, sequence, SMALL), (str(target.public_ip), 0))

    def _there_and_back(self, target: Target) -> None:
        ends = Ends(self._node.address, self._node.public_ip)
        body = packets.datagram(ends, self._own_port, target.subnet.network_address.packed)
        self._through(target, packets.packet(ends, packets.UDP, body))

    def _through(self, target: Target, packet: bytes) -> None:
        """Send a packet in the tunnel's UDP, with a checksum as the programs do: over IPv4 one of 0."""
        node = self._node
        if node.mac and target.mac:
            packet = packets.vxlan(node.vni, node.mac, target.mac, packet)
        self._tunnel.sendto(packet, (str(target.public_ip), node.port))

    def _listen(self, seconds: float) -> None:
        """Take what comes within `seconds`; what is there already in any case."""
        deadline = time.monotonic() + seconds
        sockets = [self._overlay, self._underlay, self._back]
        while True:
            ready, _, _ = select.select(sockets, [], [], max(deadline - time.monotonic(), 0))
            for one in ready:
                packet, (sender, *_) = one.recvfrom(65_535)
                if one is self._back:
                    self._take_returned(packet)
                elif "%" not in sender:
                    self._take_echo(packet, ip_address(sender))
            if not ready and time.monotonic() >= deadline:
                return
            if not self._pending and seconds:
                return

    def _take_echo(self, packet: bytes, sender: Address) -> None:
        reply = packets.echo_reply(self._node.family, packet)
        if reply is None:
            return
        found = self._pending.pop((*reply, sender), None)
        if found is None:
            return
        sent_at, way, size = found
        target = (self._by_public if way == "underlay" else self._by_address)[sender]
        self.tallies[target].trips[way, size].append(time.monotonic() - sent_at)

    def _take_returned(self, packet: bytes) -> None:
        layout = LAYOUTS[self._node.family]
        header = (packet[0] & 0xF) * 4 if self._node.family is Family.V4 else layout.header
        told = packet[header + packets.UDP_HEADER :]
        for target in self._targets:
            if target.subnet.network_address.packed == told:
                self.tallies[target].returned += 1

    def _icmp(self, address: Address) -> socket.socket:
        family = self._node.family
        made = self._stack.enter_context(
            socket.socket(family.af, socket.SOCK_RAW | socket.SOCK_NONBLOCK, LAYOUTS[family].icmp)
        )
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
        made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        made.setsockopt(*_MTU_DISCOVER[family], _PMTUDISC_PROBE)
        made.bind((str(address), 0))
        return made

    def _udp(self) -> socket.socket:
        family = self._node.family
        made = self._stack.enter_context(socket.socket(family.af, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        made.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        if family is Family.V4:
            made.setsockopt(socket.SOL_SOCKET, _SO_NO_CHECK, 1)
        made.bind((str(self._node.public_ip), 0))
        self._own_port = int(made.getsockname()[1])
        return made

    def _capture(self) -> socket.socket:
        """Return a socket that sees UDP to our own port on the uplink.

        The stack would not hand it to us: the source is our own address too, a martian.
        """
        layout = LAYOUTS[self._node.family]
        fixed = self._node.family is Family.V6
        code = (
            (0x30, 0, 0, layout.protocol_at),
            (0x15, 0, 4, packets.UDP),
            (0x01, 0, 0, layout.header) if fixed else (0xB1, 0, 0, 0),  # length of the IP header
            (0x48, 0, 0, 2),  # target port
            (0x15, 0, 1, self._own_port),
            (0x06, 0, 0, 0xFFFF),
            (0x06, 0, 0, 0),
        )
        made = self._stack.enter_context(
            socket.socket(
                socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.htons(layout.ethertype)
            )
        )
        filters = b"".join(struct.pack("=HBBI", *one) for one in code)
        buffer = _pinned(filters)
        made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code), buffer[0]))
        made.bind((self._node.uplink, layout.ethertype))
        return made


def _pinned(data: bytes) -> tuple[int, object]:
    """Return the address of a copy of `data`, and what keeps it there."""
    import ctypes  # noqa: PLC0415 - for this one address

    copy = ctypes.create_string_buffer(data, len(data))
    return ctypes.addressof(copy), copy
