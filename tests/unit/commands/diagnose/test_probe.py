"""What `probe` concludes from answers, and the packets it sends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Self

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.vxlan import VXLAN
from scapy.packet import Packet

from flannel_ebpf.base.family import Family
from flannel_ebpf.base.model import Mac
from flannel_ebpf.commands.diagnose import probe
from flannel_ebpf.commands.diagnose import probe_packets as packets
from flannel_ebpf.commands.diagnose.paths import Node, Target, chosen
from flannel_ebpf.commands.diagnose.probe import diagnose
from flannel_ebpf.commands.diagnose.probe_packets import Ends
from flannel_ebpf.commands.diagnose.prober import SMALL, Tally, Way

SIZES = (SMALL, 1350, 1450)
NODE = Node(
    IPv4Network("10.1.0.0/16"),
    "vxlan",
    "eth0",
    IPv4Address("192.0.2.1"),
    IPv4Address("10.1.5.0"),
    1450,
    "flannel.1",
    8472,
    1,
)
ENDS = {
    Family.V4: Ends(NODE.address, IPv4Address("10.1.6.0")),
    Family.V6: Ends(IPv6Address("fd10:1:0:5::"), IPv6Address("fd10:1:0:6::")),
}
LAYERS = {Family.V4: IP, Family.V6: IPv6}
ALL = {("kernel", size): 3 for size in SIZES} | {("bpf", size): 3 for size in SIZES}
ALL |= {("underlay", SMALL): 3}


def tally(answers: dict[tuple[Way, int], int], returned: int = 0) -> Tally:
    made = Tally(returned=returned)
    for key in ALL:
        made.sent[key] = 3
        made.trips[key] = [0.001] * answers.get(key, 0)
    return made


@pytest.mark.parametrize(
    ("answers", "returned", "says"),
    [
        (ALL, 3, ""),
        ({("underlay", SMALL): 3}, 0, "it does not hear us: UDP port 8472 is filtered there"),
        ({("underlay", SMALL): 3}, 1, "it hears us, but we do not hear it"),
        ({}, 2, "it hears us, but we do not hear it"),
        ({}, 0, "its public address does not answer either"),
        ({("bpf", SMALL): 3, ("underlay", SMALL): 3}, 0, "only packets as BPF sends them are answered"),
        (ALL | {("kernel", 1450): 0, ("bpf", 1450): 0}, 3, "packets up to 1396 bytes pass, those of 1450"),
        (
            ALL | {("bpf", size): 0 for size in SIZES},
            3,
            "packets as BPF sends them (UDP checksum 0) are lost",
        ),
        (ALL | {("kernel", 1350): 2}, 3, "packets are lost: kernel 1350: 33%"),
    ],
)
def test_each_pattern_of_answers_has_its_own_words(
    answers: dict[tuple[Way, int], int], returned: int, says: str
) -> None:
    found = diagnose(NODE, tally(answers, returned), SIZES, 1396)
    assert "; ".join(found).startswith(says)
    assert bool(found) == bool(says)


class _Narrow:
    """A Prober whose every peer answers packets up to 1330 bytes, the middle of the sizes that are asked."""

    def __init__(self, _node: Node, targets: Sequence[Target]) -> None:
        self.tallies = {one: Tally() for one in targets}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def round(self, sizes: Callable[[Target], Sequence[int]], _wait: float) -> None:
        for target, tally in self.tallies.items():
            for size in sizes(target):
                tally.sent["kernel", size] += 1
                tally.trips["kernel", size] += [0.001] * (size <= 1330)


def test_the_search_for_what_passes_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Target(IPv4Network("10.1.6.0/24"), IPv4Address("192.0.2.2"), IPv4Address("10.1.6.0"))
    monkeypatch.setattr(probe, "Prober", _Narrow)
    (row,) = probe.of_family(replace(NODE, mtu=1430), [peer], 3, 1.0)
    assert row["kernel"] == "3/3 3/3 0/3"
    assert row["findings"][0].startswith("packets up to 1330 bytes pass")


def recomputed(frame: Packet) -> bytes:
    """Return a packet with all its checksums computed anew."""
    layer = frame
    while layer:
        for name in ("chksum", "cksum"):
            if name in layer.fields:
                delattr(layer, name)
        layer = layer.payload
    return bytes(frame)


@pytest.mark.parametrize("family", Family)
def test_a_vxlan_packet_is_what_scapy_reads(family: Family) -> None:
    ends = ENDS[family]
    inner = packets.packet(ends, ends.layout.icmp, packets.echo(ends, 7, 9, 1450))
    own, other = Mac(b"\2\0\0\0\0\1"), Mac(b"\2\0\0\0\0\2")
    wrapped = packets.vxlan(1, own, other, inner)
    frame = VXLAN(wrapped)
    assert (frame.vni, frame.src, frame.dst, len(frame[LAYERS[family]])) == (1, str(own), str(other), 1450)
    assert (frame[LAYERS[family]].src, frame[LAYERS[family]].dst) == tuple(map(str, ends))
    echo = frame[ICMP] if family is Family.V4 else frame[ICMPv6EchoRequest]
    assert (echo.id, echo.seq) == (7, 9)
    assert recomputed(frame) == wrapped


def test_a_datagram_has_a_checksum_where_one_must_be() -> None:
    datagram = UDP(packets.datagram(ENDS[Family.V4], 8472, b"body"))
    assert (datagram.sport, datagram.dport, datagram.len, datagram.chksum) == (8472, 8472, 12, 0)
    ends = ENDS[Family.V6]
    whole = packets.packet(ends, packets.UDP, packets.datagram(ends, 8472, b"body"))
    assert IPv6(whole)[UDP].chksum
    assert recomputed(IPv6(whole)) == whole


@pytest.mark.parametrize("family", Family)
def test_an_echo_reply_says_what_it_answers(family: Family) -> None:
    if family is Family.V4:
        received = bytes(IP(src="10.1.6.0", dst="10.1.5.0") / ICMP(type=0, id=7, seq=9))
    else:
        received = bytes(ICMPv6EchoReply(id=7, seq=9))
    assert packets.echo_reply(family, received) == (7, 9)


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize("received", [b"", b"\x45", b"\x81", bytes(28), b"\x4f" + bytes(40)])
def test_what_is_no_echo_reply_is_none(received: bytes, family: Family) -> None:
    assert packets.echo_reply(family, received) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("10.1.6.0/24", 1), ("10.1.6.7", 1), ("192.0.2.2", 1), ("192.0.2.0/24", 0), ("10.9.9.9", 0), ("n2", 0)],
)
def test_a_peer_is_named_by_subnet_node_or_pod(text: str, number: int) -> None:
    target = Target(IPv4Network("10.1.6.0/24"), IPv4Address("192.0.2.2"), IPv4Address("10.1.6.0"))
    assert len(chosen([target], text)) == number
    target = Target(IPv6Network("fd10:1:0:6::/64"), IPv6Address("fd00::2"), IPv6Address("fd10:1:0:6::"))
    assert chosen([target], text) == []
    assert chosen([target], "fd10:1:0:6::7") == chosen([target], "fd00::2") == [target]
