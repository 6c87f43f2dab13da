"""IPv4 packets as bytes, and conversations of them as two hosts would have."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from itertools import count
from typing import NamedTuple

TCP, UDP, ICMP = 6, 17, 1
FIN, SYN, RST, PSH, ACK, URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
ECHO_REPLY, UNREACHABLE, ECHO = 0, 3, 8
TTL = 64


_MARK = b"\xfd\x0a\xf1\xa7"
"""Begins the token by which a packet is known again; in TCP an experimental option (RFC 4727)."""


def token_of(packet: bytes) -> int:
    """Return the number of a packet that a Speaker made, whatever became of its headers; 0: it made none."""
    at = packet.find(_MARK)
    return int.from_bytes(packet[at + 4 : at + 10]) if at >= 0 else 0


def token(number: int) -> bytes:
    return _MARK + number.to_bytes(6)


def is_same_kind(packet: bytes, sent: bytes) -> bool:
    """Say whether this may be the packet that was sent, and no answer to it that quotes it."""
    return packet[9] == sent[9] and (packet[9] != ICMP or packet[20] == sent[20])


class Odd(NamedTuple):
    """What packets of one flow may differ in."""

    length: int = 0
    tos: int = 0
    ttl: int = TTL
    ident: int = 1
    flags: int = 0


PLAIN = Odd()
ODDITIES = (
    Odd(length=90),
    Odd(length=700),
    Odd(tos=0xB8),
    Odd(tos=0x20),
    Odd(tos=0x01),
    Odd(ttl=50),
    Odd(ttl=12),
    Odd(ident=7),
    Odd(flags=PSH),
    Odd(flags=URG),
    PLAIN,
    PLAIN,
    PLAIN,
    PLAIN,
)


def checksum(data: bytes) -> int:
    """RFC 1071."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(src: bytes, dst: bytes, protocol: int, body: bytes, odd: Odd = PLAIN) -> bytes:
    """A packet without options that may not be fragmented."""
    length = 20 + len(body)
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, odd.tos, length, odd.ident, 0x4000, odd.ttl, protocol, 0, src, dst
    )
    return head[:10] + checksum(head).to_bytes(2) + head[12:] + body


def _with_sum(src: bytes, dst: bytes, protocol: int, body: bytes, at: int) -> bytes:
    pseudo = src + dst + struct.pack("!BBH", 0, protocol, len(body))
    return body[:at] + checksum(pseudo + body).to_bytes(2) + body[at + 2 :]


def udp(src: bytes, dst: bytes, sport: int, dport: int, payload: bytes) -> bytes:
    body = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    return _with_sum(src, dst, UDP, body, 6)


def tcp(
    src: bytes,
    dst: bytes,
    ports: tuple[int, int],
    numbers: tuple[int, int],
    flags: int,
    payload: bytes,
    mark: bytes,
) -> bytes:
    (sport, dport), (seq, ack) = ports, numbers
    options = (struct.pack("!BBH", 2, 4, 1400) if flags & SYN else b"") + mark + b"\1\1"
    words = 5 + len(options) // 4
    body = (
        struct.pack("!HHIIBBHHH", sport, dport, seq, ack, words << 4, flags, 65000, 0, 0) + options + payload
    )
    return _with_sum(src, dst, TCP, body, 16)


def icmp(kind: int, code: int, rest: bytes, payload: bytes) -> bytes:
    body = struct.pack("!BBH", kind, code, 0) + rest + payload
    return body[:2] + checksum(body).to_bytes(2) + body[4:]


@dataclass(frozen=True)
class Step:
    """One packet of a conversation; `outwards`: from the one who began it."""

    outwards: bool
    packet: bytes

    @property
    def token(self) -> int:
        return token_of(self.packet)


class Speaker:
    """Makes conversations whose packets all have a token of their own."""

    def __init__(self) -> None:
        self._tokens = count(1)
        self._ports = count()

    def mark(self) -> bytes:
        return token(next(self._tokens))

    def port(self) -> int:
        return 20_000 + next(self._ports) % 12_000

    def udp(self, a: IPv4Address, b: IPv4Address, dport: int) -> list[Step]:
        """A question and its answer, twice."""
        sport = self.port()
        return [
            step
            for _ in range(2)
            for step in (
                self._udp(a, b, sport, dport, outwards=True),
                self._udp(b, a, dport, sport, outwards=False),
            )
        ]

    def refused(self, a: IPv4Address, b: IPv4Address, dport: int) -> list[Step]:
        """A question to a closed port."""
        asked = self._udp(a, b, self.port(), dport, outwards=True)
        body = icmp(UNREACHABLE, 3, bytes(4), asked.packet[:28] + self.mark())
        return [asked, Step(False, ipv4(b.packed, a.packed, ICMP, body))]

    def ping(self, a: IPv4Address, b: IPv4Address) -> list[Step]:
        """An echo request and its reply."""
        rest = struct.pack("!HH", self.port(), 1)
        return [
            Step(True, ipv4(a.packed, b.packed, ICMP, icmp(ECHO, 0, rest, self.mark()))),
            Step(False, ipv4(b.packed, a.packed, ICMP, icmp(ECHO_REPLY, 0, rest, self.mark()))),
        ]

    def tcp(self, a: IPv4Address, b: IPv4Address, dport: int, *, reset: bool = False) -> list[Step]:
        """A connection: opened, a request, a reply, closed by both sides or reset."""
        return list(self._tcp(a, b, self.port(), dport, reset=reset))

    def odd_udp(self, a: IPv4Address, b: IPv4Address, dport: int) -> list[Step]:
        """A question and its answer, then packets that differ in all that the packets of a flow may."""
        sport = self.port()
        return [
            self._udp(*(a, b, sport, dport) if outwards else (b, a, dport, sport), outwards=outwards, odd=odd)
            for odd in (PLAIN, *ODDITIES)
            for outwards in (True, False)
        ]

    def odd_tcp(self, a: IPv4Address, b: IPv4Address, dport: int) -> list[Step]:
        """A connection that is opened, and then such packets."""
        sport = self.port()
        found = list(self._tcp(a, b, sport, dport, reset=False))[:3]
        mine, theirs = 1_000_001 + sport, 2_000_001 + sport
        for odd in ODDITIES:
            for outwards in (True, False):
                payload = bytes(odd.length) + b"x"
                source, target = (a, b) if outwards else (b, a)
                ports = (sport, dport) if outwards else (dport, sport)
                numbers = (mine, theirs) if outwards else (theirs, mine)
                body = tcp(
                    source.packed, target.packed, ports, numbers, ACK | odd.flags, payload, self.mark()
                )
                found.append(Step(outwards, ipv4(source.packed, target.packed, TCP, body, odd)))
                mine, theirs = (mine + len(payload), theirs) if outwards else (mine, theirs + len(payload))
        return found

    def _udp(
        self, a: IPv4Address, b: IPv4Address, sport: int, dport: int, *, outwards: bool, odd: Odd = PLAIN
    ) -> Step:
        body = udp(a.packed, b.packed, sport, dport, self.mark() + bytes(odd.length))
        return Step(outwards, ipv4(a.packed, b.packed, UDP, body, odd))

    def _tcp(self, a: IPv4Address, b: IPv4Address, sport: int, dport: int, *, reset: bool) -> Iterator[Step]:
        mine, theirs = 1_000_000 + sport, 2_000_000 + sport
        ends = (
            [(True, RST | ACK, b"")]
            if reset
            else [(True, FIN | ACK, b""), (False, FIN | ACK, b""), (True, ACK, b"")]
        )
        for outwards, flags, payload in (
            (True, SYN, b""),
            (False, SYN | ACK, b""),
            (True, ACK, b""),
            (True, PSH | ACK, b"request"),
            (False, PSH | ACK, b"reply"),
            *ends,
        ):
            numbers = (mine, 0 if flags == SYN else theirs) if outwards else (theirs, mine)
            source, target = (a, b) if outwards else (b, a)
            ports = (sport, dport) if outwards else (dport, sport)
            body = tcp(source.packed, target.packed, ports, numbers, flags, payload, self.mark())
            yield Step(outwards, ipv4(source.packed, target.packed, TCP, body))
            taken = len(payload) + bool(flags & (SYN | FIN))
            mine, theirs = (mine + taken, theirs) if outwards else (mine, theirs + taken)


def forwarded(packet: bytes, hops: int = 1) -> bytes:
    """Return a packet as it looks behind so many routers."""
    head = bytearray(packet[:20])
    head[8] -= hops
    head[10:12] = b"\0\0"
    head[10:12] = checksum(bytes(head)).to_bytes(2)
    return bytes(head) + packet[20:]
