"""The tunnel's rules of IPv6 a second time, in plain Python: what fuzzed frames are held against."""

from __future__ import annotations

from tests.bpf.ipv6 import OWN, PEER, POD
from tests.bpf.judge import odd_ecn, word
from tests.bpf.node import GATEWAY_MAC, POD_MAC, UPLINK_MAC

IPV6 = b"\x86\xdd"
TCP, UDP, ICMPV6, FRAGMENT = 6, 17, 58, 44
EXTENSIONS = (0, 43, 60, FRAGMENT)
MOST_EXTENSIONS = 6


def traffic_class(ip: bytes) -> int:
    return word(ip, 0) >> 4 & 0xFF


def is_tunnel(frame: bytes) -> bool:
    """RFC 7348's outer headers, whole, for our address and port, with a checksum (RFC 8200)."""
    ip, udp = frame[14:54], frame[54:62]
    return (
        len(frame) >= 62
        and frame[12:14] == IPV6
        and ip[0] >> 4 == 6
        and ip[6] == UDP
        and ip[24:40] == OWN.public_ip.packed
        and word(ip, 4) == len(frame) - 54
        and word(udp, 2) == 8472
        and word(udp, 4) == len(frame) - 54
        and word(udp, 6) != 0
    )


def from_sender(frame: bytes) -> bool:
    """Whether the inner source belongs to the one member that there is."""
    outer, inner = frame[22:38], frame[92:108]
    return outer == PEER.public_ip.packed and (
        inner[:8] == PEER.subnet.network_address.packed[:8] or inner == outer
    )


def sound_inner(ip: bytes) -> bool:
    """Whether it may be carried: no extension headers, hops to spare, an L4 that is whole."""
    if (
        len(ip) < 48
        or ip[0] >> 4 != 6
        or word(ip, 4) != len(ip) - 40
        or ip[7] <= 1
        or ip[24:40] != POD.packed
    ):
        return False
    kind, l4 = ip[6], ip[40:]
    if kind == TCP:
        header = (l4[12] >> 4) * 4 if len(l4) >= 20 else 0
        return 20 <= header <= len(l4)
    return (kind == UDP and word(l4, 6) != 0) or (kind == ICMPV6 and l4[0] <= 129)


def sound_vxlan(frame: bytes) -> bool:
    """RFC 7348's header and inner Ethernet, as the kernel's device takes them."""
    destination, source = frame[70:76], frame[76:82]
    return (
        frame[62:70] == b"\x08\0\0\0\0\0\1\0"
        and destination == OWN.vtep.octets
        and source not in (OWN.vtep.octets, bytes(6))
        and not source[0] & 1
        and frame[82:84] == IPV6
    )


def delivered(frame: bytes) -> bytes | None:
    """Return the frame that the pod must get, None when it must get nothing."""
    if not is_tunnel(frame) or frame[:6] != UPLINK_MAC.octets or len(frame) < 132:
        return None
    inner = frame[84:]
    if not (sound_vxlan(frame) and from_sender(frame) and sound_inner(inner)):
        return None
    outer_ecn, tos = traffic_class(frame[14:54]) & 3, traffic_class(inner)
    if odd_ecn(outer_ecn, tos & 3):
        return None
    first = word(inner, 0) | (0x30 if outer_ecn == 3 else 0)
    ip = first.to_bytes(2, "big") + inner[2:7] + bytes((inner[7] - 1,)) + inner[8:]
    return POD_MAC.octets + GATEWAY_MAC.octets + IPV6 + ip


def may_drop(frame: bytes) -> bool:
    """Whether the kernel could take the frame for our tunnel's, and it is not from who may send it."""
    ip = frame[14:]
    if len(ip) < 40 or frame[12:14] != IPV6 or ip[24:40] != OWN.public_ip.packed:
        return False
    stranger = ip[8:24] != PEER.public_ip.packed
    at, first = find_udp(ip)
    if at == UNKNOWN:
        return stranger
    udp = ip[at:] if at else b""
    if len(udp) < 8 or word(udp, 2) != 8472 or (len(udp) >= 16 and udp[12:15] != b"\0\0\1"):
        return False
    if len(udp) >= 70 and udp[28:30] == IPV6:
        inner = udp[38:54]
        return stranger or inner[:8] == POD.packed[:8] or inner == OWN.public_ip.packed
    return stranger or first


UNKNOWN = -1


def find_udp(ip: bytes) -> tuple[int, bool]:
    """Return where UDP begins (0: nowhere), and whether it is in the first of several fragments."""
    kind, at, first = ip[6], 40, False
    for _ in range(MOST_EXTENSIONS + 1):
        if kind not in EXTENSIONS:
            return (at if kind == UDP else 0), first
        if len(ip) < at + 8:
            return UNKNOWN, first
        if kind == FRAGMENT and word(ip, at + 2) & 0xFFF8:
            return 0, first
        first |= kind == FRAGMENT and bool(ip[at + 3] & 1)
        kind, at = ip[at], at + (8 if kind == FRAGMENT else (ip[at + 1] + 1) * 8)
    return UNKNOWN, first
