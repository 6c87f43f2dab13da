"""The packets that `probe` sends, as bytes: an ICMP echo, a UDP datagram, and both as a tunnel carries them.

Sizes are of the inner packet, its IP header included. Layouts: RFC 791, 792, 768, 8200, 4443, 7348.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

from flannel_ebpf.base.family import Address, Family, family_of
from flannel_ebpf.base.model import Mac

ICMP_HEADER, UDP_HEADER = 8, 8
UDP = 17
_DF = 0x4000
_VXLAN_FLAGS = 0x08


@dataclass(frozen=True, slots=True)
class Layout:
    """What differs between the families: the IP header's length, where in it the protocol stands, numbers."""

    header: int
    protocol_at: int
    ethertype: int
    icmp: int
    echo: int
    reply: int


LAYOUTS = {
    Family.V4: Layout(20, 9, 0x0800, 1, 8, 0),
    Family.V6: Layout(40, 6, 0x86DD, 58, 128, 129),
}


_TUNNEL = {"vxlan": 30, "udp": 8}


def overhead(backend: str, family: Family) -> int:
    """Return the bytes of a backend's outer headers, from the outer IP header to the inner one."""
    return _TUNNEL[backend] + LAYOUTS[family].header if backend in _TUNNEL else 0


class Ends(NamedTuple):
    """Where a packet comes from and goes to, of one family."""

    source: Address
    target: Address

    @property
    def layout(self) -> Layout:
        """What a packet between the two looks like."""
        return LAYOUTS[family_of(self.target)]

    def pseudo(self, protocol: int, length: int) -> bytes:
        """Return what a checksum over IPv6 covers besides the payload (RFC 8200, 8.1); nothing for IPv4."""
        if family_of(self.target) is Family.V4:
            return b""
        return self.source.packed + self.target.packed + struct.pack("!II", length, protocol)


def echo(ends: Ends, ident: int, sequence: int, size: int) -> bytes:
    """Return an ICMP echo request that makes a packet of `size` bytes."""
    layout = ends.layout
    body = bytes(size - layout.header - ICMP_HEADER)
    head = struct.pack("!BBHHH", layout.echo, 0, 0, ident, sequence)
    covered = ends.pseudo(layout.icmp, size - layout.header) + head + body
    return head[:2] + struct.pack("!H", checksum(covered)) + head[4:] + body


def echo_reply(family: Family, received: bytes) -> tuple[int, int] | None:
    """Return (identifier, sequence) of the echo reply in what a raw ICMP socket received, None for another.

    Such a socket of IPv4 returns the IP header too, one of IPv6 does not (raw(7), RFC 3542).
    """
    start = (received[0] & 0xF) * 4 if family is Family.V4 and received else 0
    layout = LAYOUTS[family]
    if family is Family.V4 and start < layout.header:
        return None
    if len(received) < start + ICMP_HEADER or received[start] != layout.reply:
        return None
    ident, sequence = struct.unpack_from("!HH", received, start + 4)
    return ident, sequence


def datagram(ends: Ends, port: int, body: bytes) -> bytes:
    """Return a UDP datagram from a port to the same one; over IPv4 without a checksum, IPv6 demands one."""
    length = UDP_HEADER + len(body)
    head = struct.pack("!HHH", port, port, length)
    pseudo = ends.pseudo(UDP, length)
    total = (checksum(pseudo + head + bytes(2) + body) or 0xFFFF) if pseudo else 0
    return head + struct.pack("!H", total) + body


def packet(ends: Ends, protocol: int, body: bytes) -> bytes:
    """Return an IP packet that must not be fragmented."""
    if family_of(ends.target) is Family.V6:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, 64)
        return head + ends.source.packed + ends.target.packed + body
    fields = (0x45, 0, ends.layout.header + len(body), 0, _DF, 64, protocol, 0)
    head = struct.pack("!BBHHHBBH", *fields) + ends.source.packed + ends.target.packed
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def vxlan(vni: int, source: Mac, target: Mac, inner: bytes) -> bytes:
    """Return what a VXLAN tunnel's UDP datagram holds: header, Ethernet header, packet."""
    header = struct.pack("!BxxxI", _VXLAN_FLAGS, vni << 8)
    family = Family(inner[0] >> 4)
    return header + target.octets + source.octets + struct.pack("!H", LAYOUTS[family].ethertype) + inner


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
