"""What the relay does to one IPv4 packet, and what it answers. Bytes in, bytes out.

Offsets are into a larger buffer, so that nothing is copied. Everything is in wire order.
"""

from __future__ import annotations

import struct

IPV4_MIN = 20
ICMP = 1
_ICMP_UNREACHABLE_TTL = 8
_FRAGMENT_OFFSET = 0x1FFF


def decrease_ttl(buffer: bytearray, offset: int) -> int:
    """Take one from the TTL of the header at `offset`, patch its checksum, return the new TTL.

    The checksum comes out bit for bit as from the kernel's ip_decrease_ttl (RFC 1624), 0xffff never
    appears. A TTL of 0 or 1 gives 0 and leaves the packet alone: the caller drops it.
    """
    ttl = buffer[offset + 8]
    if ttl <= 1:
        return 0
    buffer[offset + 8] = ttl - 1
    high = buffer[offset + 10] + 1
    if high < 0xFF:
        buffer[offset + 10] = high
        return ttl - 1
    check = (high << 8) + buffer[offset + 11]
    check += check >= 0xFFFF
    buffer[offset + 10] = check >> 8 & 0xFF
    buffer[offset + 11] = check & 0xFF
    return ttl - 1


def checksum(data: bytes) -> int:
    """Return the Internet checksum (RFC 1071) of an even number of bytes."""
    total = sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def net_unreachable(offender: bytes, source: bytes) -> bytes | None:
    """Return the ICMP "net unreachable" that answers `offender`, or None where there must be no answer.

    `source` is the answering node's address, four bytes. The reply is flannel's (proxy_amd64.c): TTL 8,
    quoting the header and eight bytes. RFC 1122 3.2.2: none for ICMP and for later fragments; for ICMP
    that takes in echo requests too, as in flannel. None either for a header longer than the packet.
    """
    header = (offender[0] & 0xF) * 4
    later_fragment = int.from_bytes(offender[6:8]) & _FRAGMENT_OFFSET
    if offender[9] == ICMP or later_fragment or not IPV4_MIN <= header <= len(offender):
        return None
    quote = offender[: header + 8]
    body = struct.pack("!BBHI", 3, 0, 0, 0) + quote + bytes(len(quote) % 2)
    length = IPV4_MIN + 8 + len(quote)
    reply = bytearray(
        struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0, _ICMP_UNREACHABLE_TTL, ICMP, 0)
        + source
        + offender[12:16]
        + body
    )
    struct.pack_into("!H", reply, 10, checksum(bytes(reply[:IPV4_MIN])))
    struct.pack_into("!H", reply, IPV4_MIN + 2, checksum(body))
    return bytes(reply[:length])
