"""The tunnel's rules a second time, in plain Python from the RFCs: what fuzzed frames are held against."""

from __future__ import annotations

from tests.bpf.node import GATEWAY_MAC, OWN_IP, OWN_VTEP, PEER, POD, POD_MAC, UPLINK_MAC

IPV4 = b"\x08\x00"
TCP, UDP, ICMP = 6, 17, 1


def ones_complement(header: bytes) -> int:
    """Return the folded sum of 16-bit words; 0xffff when a header's checksum holds."""
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, len(header), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def word(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 2], "big")


def is_tunnel(frame: bytes) -> bool:
    """RFC 7348's outer headers, whole, for our address and port."""
    ip, udp = frame[14:34], frame[34:42]
    return (
        len(frame) >= 42
        and frame[12:14] == IPV4
        and ip[0] == 0x45
        and ip[9] == UDP
        and ip[16:20] == OWN_IP.packed
        and word(ip, 6) & 0x3FFF == 0
        and word(ip, 2) == len(frame) - 14
        and ones_complement(ip) == 0xFFFF
        and word(udp, 2) == 8472
        and word(udp, 4) == len(frame) - 34
    )


def from_sender(frame: bytes) -> bool:
    """Whether the inner source belongs to the one member that there is."""
    outer, inner = frame[26:30], frame[76:80]
    return outer == PEER.public_ip.packed and (
        inner[:3] == PEER.subnet.network_address.packed[:3] or inner == outer
    )


def sound_l4(ip: bytes) -> bool:
    kind, length, l4 = ip[9], word(ip, 2), ip[20:]
    if kind == TCP:
        header = (l4[12] >> 4) * 4 if len(l4) >= 20 else 0
        return header >= 20 and length >= 20 + header
    if kind == UDP:
        return length >= 28
    return kind == ICMP and length >= 28


def sound_inner(ip: bytes) -> bool:
    return (
        len(ip) >= 28
        and ip[0] == 0x45
        and word(ip, 2) == len(ip)
        and word(ip, 6) & 0x3FFF == 0
        and ip[8] > 1
        and ones_complement(ip[:20]) == 0xFFFF
        and ip[16:20] == POD.packed
        and sound_l4(ip)
    )


def sound_vxlan(frame: bytes) -> bool:
    """RFC 7348's header and inner Ethernet, as the kernel's device takes them."""
    destination, source = frame[50:56], frame[56:62]
    return (
        frame[42:50] == b"\x08\0\0\0\0\0\1\0"
        and destination == OWN_VTEP.octets
        and source not in (OWN_VTEP.octets, bytes(6))
        and not source[0] & 1
        and frame[62:64] == IPV4
    )


def odd_ecn(outer: int, inner: int) -> bool:
    """RFC 6040's pairs that a decapsulator drops, logs or treats by kernel version."""
    return (inner == 0 and outer != 0) or (inner, outer) == (2, 1)


def delivered(frame: bytes) -> bytes | None:
    """Return the frame that the pod must get, its IPv4 checksum zeroed; None when it must get nothing."""
    if not is_tunnel(frame) or frame[:6] != UPLINK_MAC.octets or len(frame) < 92:
        return None
    inner = frame[64:]
    if not (sound_vxlan(frame) and from_sender(frame) and sound_inner(inner)):
        return None
    if odd_ecn(frame[15] & 3, inner[1] & 3):
        return None
    tos = inner[1] | 3 if frame[15] & 3 == 3 else inner[1]
    ip = bytes((inner[0], tos)) + inner[2:8] + bytes((inner[8] - 1, inner[9], 0, 0)) + inner[12:]
    return POD_MAC.octets + GATEWAY_MAC.octets + IPV4 + ip


def may_drop(frame: bytes) -> bool:
    """Whether the kernel could take the frame for our tunnel's, and it is not from who may send it."""
    ip = frame[14:]
    if len(ip) < 20 or frame[12:14] != IPV4 or ip[16:20] != OWN_IP.packed or ip[9] != UDP:
        return False
    udp = ip[(ip[0] & 15) * 4 :]
    if word(ip, 6) & 0x1FFF or len(udp) < 8 or word(udp, 2) != 8472:
        return False
    if len(udp) >= 16 and udp[12:15] != b"\0\0\1":
        return False
    if len(udp) >= 50 and udp[28:30] == IPV4:
        return not may_send(outer=ip[12:16], inner=udp[42:46])
    return ip[12:16] != PEER.public_ip.packed or bool(word(ip, 6) & 0x2000)


def may_send(outer: bytes, inner: bytes) -> bool:
    """Its own subnet, its own address, and what is nobody's."""
    if outer != PEER.public_ip.packed:
        return False
    return inner[:3] not in (POD.packed[:3],) and inner != OWN_IP.packed
