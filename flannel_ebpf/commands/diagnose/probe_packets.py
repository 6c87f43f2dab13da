"""The packets that `probe` sends, as bytes: an ICMP echo, a UDP datagram, and both as a tunnel carries them.

Sizes are of the inner IPv4 packet. Layouts: RFC 791, 792, 768, 7348.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address
from typing import NamedTuple

from flannel_ebpf.base.model import Mac

IP_HEADER, ICMP_HEADER, UDP_HEADER = 20, 8, 8
ICMP, UDP = 1, 17
_ECHO_REPLY, _ECHO = 0, 8
_DF = 0x4000
_VXLAN_FLAGS = 0x08
_ETHERTYPE_IPV4 = 0x0800


class Echo(NamedTuple):
    """An echo reply that came: from whom, and what tells it apart."""

    source: IPv4Address
    ident: int
    sequence: int


def echo(ident: int, sequence: int, size: int) -> bytes:
    """Return an ICMP echo request that makes an IPv4 packet of `size` bytes."""
    body = bytes(size - IP_HEADER - ICMP_HEADER)
    head = struct.pack("!BBHHH", _ECHO, 0, 0, ident, sequence)
    return head[:2] + struct.pack("!H", checksum(head + body)) + head[4:] + body


def echo_reply(packet: bytes) -> Echo | None:
    """Return the echo reply in what a raw ICMP socket received, None for another packet."""
    start = (packet[0] & 0xF) * 4 if packet else 0
    if start < IP_HEADER or len(packet) < start + ICMP_HEADER or packet[start] != _ECHO_REPLY:
        return None
    ident, sequence = struct.unpack_from("!HH", packet, start + 4)
    return Echo(IPv4Address(packet[12:16]), ident, sequence)


def datagram(source_port: int, port: int, body: bytes) -> bytes:
    """Return a UDP datagram without a checksum."""
    return struct.pack("!HHHH", source_port, port, UDP_HEADER + len(body), 0) + body


def ipv4(source: IPv4Address, target: IPv4Address, protocol: int, body: bytes) -> bytes:
    """Return an IPv4 packet that must not be fragmented."""
    length = IP_HEADER + len(body)
    fields = (0x45, 0, length, 0, _DF, 64, protocol, 0, source.packed, target.packed)
    head = struct.pack("!BBHHHBBH4s4s", *fields)
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + body


def vxlan(vni: int, source: Mac, target: Mac, packet: bytes) -> bytes:
    """Return what a VXLAN tunnel's UDP datagram holds: header, Ethernet header, packet."""
    header = struct.pack("!BxxxI", _VXLAN_FLAGS, vni << 8)
    return header + target.octets + source.octets + struct.pack("!H", _ETHERTYPE_IPV4) + packet


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
