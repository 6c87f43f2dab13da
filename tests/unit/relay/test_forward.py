"""The loops against a TUN and a socket made of lists: what comes out, and that each packet counts once."""

import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flannel_ebpf.relay.counters import NAMES
from flannel_ebpf.relay.forward import FromPeers, ToPeers
from flannel_ebpf.relay.packet import checksum
from flannel_ebpf.relay.peers import PeerTable

MTU = 1472
PEERS = {
    IPv4Network("10.1.6.0/24"): IPv4Address("192.0.2.6"),
    IPv4Network("10.1.7.0/24"): IPv4Address("192.0.2.7"),
}


class Tun:
    def __init__(self, packets: Sequence[bytes] = ()) -> None:
        self.waiting = list(packets)
        self.written: list[bytes] = []
        self.down = False

    def readinto(self, room: memoryview) -> int | None:
        if not self.waiting:
            return None
        packet = self.waiting.pop(0)[: len(room)]
        room[: len(packet)] = packet
        return len(packet)

    def write(self, packet: bytes) -> int:
        if self.down:
            raise OSError(5, "down")
        self.written.append(bytes(packet))
        return len(packet)


class Socket:
    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.refuse_batches = False
        self.refuse = False

    def sendto(self, data: memoryview, to: tuple[str, int]) -> None:
        assert to[1] == 8285
        if self.refuse:
            raise OSError(101, "unreachable")
        self.sent.append((to[0], bytes(data)))

    def sendmsg(self, parts: Any, notes: Any, flags: int, to: tuple[str, int]) -> None:
        if self.refuse_batches or self.refuse:
            raise OSError(90, "too long")
        (data,), size = parts, struct.unpack("=H", notes[0][2])[0]
        assert len(data) <= 65507
        pieces = [bytes(data[at : at + size]) for at in range(0, len(data), size)]
        assert 1 < len(pieces) <= 64
        self.sent += [(to[0], piece) for piece in pieces]


def packet(dst: str, size: int = 60, ttl: int = 64, src: str = "10.1.5.2") -> bytes:
    made = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, size, 7, 0, ttl, 17, 0))
    made += IPv4Address(src).packed + IPv4Address(dst).packed
    struct.pack_into("!H", made, 10, checksum(bytes(made)))
    return bytes(made + bytes(size - 20))


def forwarded(original: bytes) -> bytes:
    dst, src = str(IPv4Address(original[16:20])), str(IPv4Address(original[12:16]))
    return packet(dst, len(original), original[8] - 1, src)


def row() -> memoryview:
    return memoryview(bytearray(8 * len(NAMES))).cast("Q")


def counted(counters: memoryview) -> dict[str, int]:
    return {name: count for name, count in zip(NAMES, counters, strict=True) if count}


def peer_table() -> PeerTable:
    table = PeerTable()
    table.replace(PEERS)
    return table


def to_peers(tun: Tun, sock: Socket, counters: memoryview, batch: bool = True) -> ToPeers:
    address = IPv4Address("10.1.5.0")
    made: Any = ToPeers
    return made(tun, sock, peer_table(), counters, mtu=MTU, port=8285, address=address, batch=batch)


def from_peers(tun: Tun, counters: memoryview, source_check: str = "drop") -> FromPeers:
    made: Any = FromPeers
    return made(tun, None, peer_table(), counters, mtu=MTU, source_check=source_check)


GOOD = st.builds(
    packet,
    st.sampled_from(["10.1.6.2", "10.1.6.3", "10.1.7.2"]),
    st.sampled_from([20, 40, 60, 1400, MTU]),
    st.integers(2, 255),
)
BAD = st.sampled_from(
    [
        b"\x45",
        b"\x60" + bytes(60),
        b"\x35" + packet("10.1.6.2")[1:],
        packet("10.1.6.2", MTU + 1),
        packet("10.1.6.2", ttl=1),
        packet("10.1.9.9"),
    ]
)


@given(st.lists(GOOD | BAD, max_size=300), st.booleans(), st.booleans())
def test_every_good_packet_leaves_in_order_and_every_packet_counts_once(
    packets: list[bytes], batch: bool, refuse_batches: bool
) -> None:
    tun, sock, counters = Tun(packets), Socket(), row()
    sock.refuse_batches = refuse_batches
    relay = to_peers(tun, sock, counters, batch)
    while relay.burst():
        pass
    good = [p for p in packets if p[0] == 0x45 and 20 <= len(p) <= MTU and p[8] > 1 and p[18] in (6, 7)]
    assert sock.sent == [(f"192.0.2.{p[18]}", forwarded(p)) for p in good]
    found = counted(counters)
    assert found.get("tx_sent", 0) == len(good)
    assert found.get("tx_bytes", 0) == sum(map(len, good))
    reasons = sum(n for name, n in found.items() if name.startswith("tx_") and name != "tx_bytes")
    assert reasons == len(packets)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"\x45", "tx_malformed"),
        (packet("10.1.6.2")[:19], "tx_malformed"),
        (b"\x44" + packet("10.1.6.2")[1:], "tx_malformed"),
        (b"\x60" + bytes(39), "tx_ipv6"),
        (packet("10.1.6.2", MTU + 1), "tx_oversize"),
        (packet("10.1.6.2", ttl=1), "tx_ttl"),
        (packet("10.1.6.2", ttl=0), "tx_ttl"),
    ],
)
def test_what_does_not_leave_is_named(bad: bytes, reason: str) -> None:
    tun, sock, counters = Tun([bad, bad]), Socket(), row()
    to_peers(tun, sock, counters).burst()
    assert counted(counters) == {reason: 2}
    assert sock.sent == tun.written == []


def test_no_route_is_answered_and_the_packet_behind_it_goes_on() -> None:
    tun, sock, counters = Tun([packet("10.1.9.9"), packet("10.1.6.2")]), Socket(), row()
    to_peers(tun, sock, counters).burst()
    assert counted(counters) == {"tx_no_route": 1, "icmp_unreachable": 1, "tx_sent": 1, "tx_bytes": 60}
    assert [reply[20:22] for reply in tun.written] == [b"\x03\x00"]


def test_what_the_kernel_refuses_is_counted() -> None:
    tun, sock, counters = Tun([packet("10.1.6.2")] * 5), Socket(), row()
    sock.refuse = True
    to_peers(tun, sock, counters).burst()
    assert counted(counters) == {"tx_error": 5}


def deliver(relay: FromPeers, sender: str, datagrams: list[bytes]) -> None:
    joined = b"".join(datagrams)
    relay._view[: len(joined)] = joined
    relay.deliver(sender, len(joined), len(datagrams[0]) or 1)


def test_aggregate_is_taken_apart() -> None:
    datagrams = [packet("10.1.5.2", 100, ttl, "10.1.6.2") for ttl in range(2, 40)]
    datagrams.append(packet("10.1.5.2", 50, 9, "10.1.6.9"))
    tun, counters = Tun(), row()
    deliver(from_peers(tun, counters), "192.0.2.6", datagrams)
    assert tun.written == [forwarded(datagram) for datagram in datagrams]
    assert counted(counters) == {"rx_delivered": 39, "rx_bytes": 3850}


@pytest.mark.parametrize(
    ("datagram", "reason"),
    [
        (b"", "rx_malformed"),
        (b"\x45", "rx_malformed"),
        (packet("10.1.5.2", src="10.1.6.2")[:19], "rx_malformed"),
        (b"\x65" + packet("10.1.5.2", src="10.1.6.2")[1:], "rx_malformed"),
        (packet("10.1.5.2", src="10.1.6.2")[:59], "rx_truncated"),
        (packet("10.1.5.2", MTU + 1, src="10.1.6.2"), "rx_oversize"),
        (packet("10.1.5.2", src="10.1.7.2"), "rx_foreign_source"),
        (packet("10.1.5.2", src="10.1.5.2"), "rx_foreign_source"),
        (packet("10.1.5.2", src="10.1.6.2", ttl=1), "rx_ttl"),
    ],
)
def test_what_is_not_delivered_is_named(datagram: bytes, reason: str) -> None:
    tun, counters = Tun(), row()
    deliver(from_peers(tun, counters), "192.0.2.6", [datagram])
    assert counted(counters) == {reason: 1}
    assert tun.written == []


def test_strangers_are_not_believed_unless_told_so() -> None:
    datagram = packet("10.1.5.2", src="10.1.6.2")
    tun, counters = Tun(), row()
    deliver(from_peers(tun, counters), "192.0.2.66", [datagram] * 3)
    deliver(from_peers(tun, counters), "192.0.2.66", [b""])
    assert counted(counters) == {"rx_not_member": 4}
    deliver(from_peers(tun, counters, source_check="off"), "192.0.2.66", [datagram])
    assert tun.written == [forwarded(datagram)]


def test_source_check_that_only_counts_lets_everybody_in() -> None:
    known, foreign = packet("10.1.5.2", src="10.1.6.2"), packet("10.1.5.2", src="10.1.9.2")
    tun, counters = Tun(), row()
    relay = from_peers(tun, counters, source_check="count")
    deliver(relay, "192.0.2.6", [known, foreign, packet("10.1.5.2", src="10.1.9.2", ttl=1)])
    deliver(relay, "192.0.2.66", [foreign])
    assert tun.written == [forwarded(known), forwarded(foreign), forwarded(foreign)]
    assert counted(counters) == {
        "rx_delivered": 3,
        "rx_bytes": 180,
        "rx_foreign_source": 2,
        "rx_not_member": 1,
        "rx_ttl": 1,
    }


def test_tun_that_is_down_is_counted() -> None:
    tun, counters = Tun(), row()
    tun.down = True
    deliver(from_peers(tun, counters), "192.0.2.6", [packet("10.1.5.2", src="10.1.6.2")] * 2)
    assert counted(counters) == {"rx_error": 2}


@given(st.binary(max_size=2000), st.integers(1, 2000), st.sampled_from(["drop", "off"]))
def test_junk_counts_once_per_datagram_and_never_raises(junk: bytes, segment: int, check: str) -> None:
    tun, counters = Tun(), row()
    relay = from_peers(tun, counters, check)
    relay._view[: len(junk)] = junk
    relay.deliver("192.0.2.6", len(junk), segment)
    expected = -(-len(junk) // segment) or 1
    assert sum(n for name, n in counted(counters).items() if name != "rx_bytes") == expected
