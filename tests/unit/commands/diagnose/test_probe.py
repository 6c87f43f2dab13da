"""What `probe` concludes from answers, and the packets it sends."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.vxlan import VXLAN

from flannel_ebpf.base.model import Mac
from flannel_ebpf.commands.diagnose import probe_packets as packets
from flannel_ebpf.commands.diagnose.paths import Node, Target, chosen
from flannel_ebpf.commands.diagnose.probe import diagnose
from flannel_ebpf.commands.diagnose.prober import SMALL, Tally, Way

SIZES = (SMALL, 1350, 1450)
NODE = Node(
    IPv4Network("10.1.0.0/16"),
    "vxlan",
    "eth0",
    IPv4Address("192.0.2.1"),
    IPv4Address("10.1.5.0"),
    1450,
    8472,
    1,
)
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


def test_a_vxlan_packet_is_what_scapy_reads() -> None:
    inner = packets.ipv4(NODE.address, IPv4Address("10.1.6.0"), packets.ICMP, packets.echo(7, 9, 1450))
    own, other = Mac(b"\2\0\0\0\0\1"), Mac(b"\2\0\0\0\0\2")
    frame = VXLAN(packets.vxlan(1, own, other, inner))
    assert (frame.vni, frame.src, frame.dst, len(frame[IP])) == (1, str(own), str(other), 1450)
    assert (frame[ICMP].type, frame[ICMP].id, frame[ICMP].seq) == (8, 7, 9)
    chksum = frame[IP].chksum, frame[ICMP].chksum
    del frame[IP].chksum, frame[ICMP].chksum
    again = VXLAN(bytes(frame))
    assert (again[IP].chksum, again[ICMP].chksum) == chksum


def test_a_datagram_has_no_checksum() -> None:
    datagram = UDP(packets.datagram(1000, 8472, b"body"))
    assert (datagram.sport, datagram.dport, datagram.len, datagram.chksum) == (1000, 8472, 12, 0)


@pytest.mark.parametrize("packet", [b"", b"\x45", bytes(28), b"\x4f" + bytes(40)])
def test_what_is_no_echo_reply_is_none(packet: bytes) -> None:
    assert packets.echo_reply(packet) is None


@pytest.mark.parametrize(
    ("text", "number"),
    [("10.1.6.0/24", 1), ("10.1.6.7", 1), ("192.0.2.2", 1), ("192.0.2.0/24", 0), ("10.9.9.9", 0), ("n2", 0)],
)
def test_a_peer_is_named_by_subnet_node_or_pod(text: str, number: int) -> None:
    target = Target(IPv4Network("10.1.6.0/24"), IPv4Address("192.0.2.2"), IPv4Address("10.1.6.0"))
    assert len(chosen([target], text)) == number
