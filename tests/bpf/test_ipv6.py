"""Programs of IPv6: one table of packets, and the kernel's own device as the oracle of the wire.

What both families share is one text and has its tests with IPv4; here is what bpf/ipv6.h holds, and that the
text holds for it.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from ipaddress import IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6PacketTooBig,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from flannel_ebpf.contract import abi, enums
from flannel_ebpf.contract.enums import PodFlag, Reason
from tests import namespaces
from tests.bpf import cases
from tests.bpf.cases import tampered
from tests.bpf.ipv6 import (
    COUNT_ONLY,
    DIRECT,
    FLOWS,
    OTHER_POD,
    OUTSIDE,
    OWN,
    PEER,
    POD,
    STRANGER,
    VXLAN,
    KernelNode6,
    Node6,
    from_pod,
    l4,
    on_wire,
    packet,
    tunnel,
    wrong_checksums,
)
from tests.bpf.node import (
    GATEWAY_MAC,
    KERNEL,
    OTHER_MAC,
    OTHER_PORT,
    POD_MAC,
    POD_PORT,
    REDIRECT,
    XDP_PASS,
)
from tests.bpf.test_round_trip import shared, to_uplink

Load = Callable[[abi.Config], Node6]
Case = partial(cases.Case, config=VXLAN)
out, into, guard = partial(Case, "fl_from_pod"), partial(Case, "fl_from_peer"), partial(Case, "fl_xdp")

CHAIN = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt()
LONG_CHAIN = CHAIN / CHAIN
LATER = IPv6ExtHdrFragment(offset=8, m=0, id=7)
FIRST = IPv6ExtHdrFragment(offset=0, m=1, id=7)
NODE_MAC = "33:33:00:00:00:16"


def node_address(node: Node6) -> None:
    node.add_pod(POD, ifindex=2, flags=PodFlag.NODE)


def shorter_frame(frame: Packet, length: int) -> bytes:
    """Return the beginning of a frame, whose outer header says so."""
    raw = bytearray(bytes(frame)[:length])
    raw[18:20] = (length - 54).to_bytes(2, "big")
    return bytes(raw)


CASES = [
    *(
        out(f"{kind} to a peer", from_pod(l4(kind)), Reason.FAST_VXLAN)
        for kind in ("udp", "tcp", "ping", "pong")
    ),
    *(
        out(f"{kind} to a peer, direct", from_pod(l4(kind)), Reason.FAST_DIRECT, config=DIRECT)
        for kind in ("udp", "tcp", "ping")
    ),
    out("by flow", from_pod(), Reason.LEARN_YOUNG, config=FLOWS),
    out("SYN, by flow", from_pod(l4("tcp:S")), Reason.LEARN_SYN, config=FLOWS, taught=True),
    out("largest packet", from_pod(l4(payload=bytes(1382))), Reason.FAST_VXLAN),
    out("one byte too large", from_pod(l4(payload=bytes(1383))), Reason.TOO_BIG),
    out("hop limit 1", from_pod(hlim=1), Reason.TTL),
    out("hop limit 2", from_pod(hlim=2), Reason.FAST_VXLAN),
    out("IPv4", Ether() / IP() / l4(), Reason.NOT_FAMILY),
    out("ARP", Ether(src=str(POD_MAC)) / ARP() / Raw(bytes(30)), Reason.NOT_FAMILY),
    out("VLAN tag", Ether() / Dot1Q(vlan=5) / packet(POD, PEER.pod), Reason.NOT_FAMILY),
    out("version 4 in IPv6", tampered(from_pod(), 14, b"\x45"), Reason.BAD_HEADER),
    out("length beyond the frame", from_pod(plen=200), Reason.BAD_HEADER),
    out("padding behind the packet", bytes(from_pod()) + b"pad", Reason.BAD_HEADER),
    out("multicast frame", from_pod(gateway=NODE_MAC), Reason.NOT_UNICAST),
    out("multicast address", from_pod(dst=IPv6Address("ff02::1")), Reason.NOT_UNICAST),
    out("link-local address", from_pod(dst=IPv6Address("fe80::1")), Reason.NOT_UNICAST),
    out("to the next pod", from_pod(dst=OTHER_POD), Reason.NOT_OVERLAY),
    out("to the outside", from_pod(dst=OUTSIDE), Reason.NOT_OVERLAY),
    out("to a subnet nobody holds", from_pod(dst=STRANGER.pod), Reason.NOT_OVERLAY),
    out("hop-by-hop options", from_pod(IPv6ExtHdrHopByHop() / l4()), Reason.IP_OPTIONS),
    out("destination options", from_pod(IPv6ExtHdrDestOpt() / l4()), Reason.IP_OPTIONS),
    out("routing header", from_pod(IPv6ExtHdrRouting() / l4()), Reason.IP_OPTIONS),
    out("first fragment", from_pod(FIRST / l4()), Reason.FRAGMENT),
    out("later fragment", from_pod(LATER / Raw(bytes(64))), Reason.FRAGMENT),
    out("SCTP", from_pod(SCTP()), Reason.PROTOCOL),
    out("UDP without a checksum", from_pod(UDP(chksum=0) / Raw(bytes(8))), Reason.CHECKSUM),
    out("ICMPv4", from_pod(ICMP(), nh=1), Reason.PROTOCOL),
    out("unreachable", from_pod(ICMPv6DestUnreach() / Raw(bytes(48))), Reason.FAST_VXLAN),
    out("too big", from_pod(ICMPv6PacketTooBig() / Raw(bytes(48))), Reason.FAST_VXLAN),
    out("too big, by flow", from_pod(ICMPv6PacketTooBig() / Raw(bytes(48))), Reason.PROTOCOL, config=FLOWS),
    out("neighbour solicitation", from_pod(ICMPv6ND_NS(tgt=str(PEER.pod))), Reason.PROTOCOL),
    out("multicast listener", from_pod(ICMPv6MLReport2(), hlim=64), Reason.PROTOCOL),
    out("half a TCP header", from_pod(Raw(bytes(12)), nh=6), Reason.TRUNCATED),
    out("no L4 header", from_pod(Raw(b""), nh=17), Reason.TRUNCATED),
    out("routed by the pod", from_pod(src=OUTSIDE), Reason.POD_SOURCE),
    out("the node's address", from_pod(), Reason.DROP_POD_SOURCE, setup=node_address),
    out("shaped", from_pod(), Reason.SHAPED, setup=lambda node: node.add_pod(POD, flags=PodFlag.SHAPED)),
    out("silent daemon", from_pod(), Reason.STAND_ASIDE, setup=lambda node: node.set_until(1)),
    *(
        out(f"a tunnel packet {what}", from_pod(body, dst=to), Reason.DROP_POD_TUNNEL)
        for to in (OWN.public_ip, PEER.public_ip)
        for what, body in (
            ("whole", l4(dport=8472)),
            ("in pieces", FIRST / l4(dport=8472)),
            ("behind options", IPv6ExtHdrDestOpt() / l4(dport=8472)),
            ("behind more than are read", LONG_CHAIN / l4(dport=8472)),
        )
    ),
    out("another port of the node", from_pod(l4(dport=53), dst=OWN.public_ip), Reason.NOT_OVERLAY),
    out("options for the outside", from_pod(LONG_CHAIN / l4(), dst=OUTSIDE), Reason.NOT_OVERLAY),
    into("tunnel packet", tunnel(), Reason.FAST_VXLAN),
    into("plain packet of a peer", on_wire(packet(PEER.pod, POD)), Reason.FAST_DIRECT, config=DIRECT),
    into("outer checksum 0", tunnel(udp={"chksum": 0}), Reason.OUTER),
    into("outer options", tunnel(extensions=IPv6ExtHdrDestOpt()), Reason.OUTER),
    into("outer first fragment", tunnel(extensions=FIRST), Reason.OUTER),
    into("outer later fragment", tunnel(extensions=LATER), Reason.OUTER),
    into("outer length too short", tampered(tunnel(), 18, b"\x00\x40"), Reason.OUTER),
    into("another VNI", tunnel(vni=2), Reason.VNI),
    into("another VTEP", tunnel(inner_dst=STRANGER.vtep), Reason.INNER_MAC),
    into("IPv4 inside", tampered(tunnel(), 82, b"\x08\x00"), Reason.NOT_FAMILY),
    into("IPv4 on the uplink", on_wire(IP() / l4() / Raw(bytes(40))), Reason.NOT_FAMILY),
    into(
        "neighbour discovery on the uplink",
        on_wire(packet(PEER.public_ip, OWN.public_ip, ICMPv6ND_NA())),
        Reason.NOT_OVERLAY,
    ),
    into("inner hop limit 1", tunnel(packet(PEER.pod, POD, hlim=1)), Reason.TTL),
    into("inner fragment", tunnel(packet(PEER.pod, POD, FIRST / l4())), Reason.FRAGMENT),
    into("unknown pod", tunnel(packet(PEER.pod, OTHER_POD)), Reason.NO_POD, taught=True),
]

SOURCES = [
    (name, frame, reason, program)
    for program in ("fl_from_peer", "fl_xdp")
    for name, frame, reason in (
        ("stranger", tunnel(sender=STRANGER), Reason.DROP_NOT_MEMBER),
        ("stranger behind options", tunnel(sender=STRANGER, extensions=CHAIN), Reason.DROP_NOT_MEMBER),
        ("stranger behind many", tunnel(sender=STRANGER, extensions=LONG_CHAIN), Reason.DROP_NOT_MEMBER),
        ("stranger's first fragment", tunnel(sender=STRANGER, extensions=FIRST), Reason.DROP_NOT_MEMBER),
        (
            "first fragment without an inner header",
            shorter_frame(tunnel(extensions=FIRST), 14 + 40 + 8 + 24),
            Reason.DROP_NOT_MEMBER,
        ),
        ("our own pod's address", tunnel(packet(OTHER_POD, POD)), Reason.DROP_PEER_SOURCE),
        ("our own address", tunnel(packet(OWN.public_ip, POD)), Reason.DROP_PEER_SOURCE),
        (
            "our own address behind options",
            tunnel(packet(OWN.public_ip, POD), extensions=CHAIN),
            Reason.DROP_PEER_SOURCE,
        ),
    )
]

CASES += [Case(program, name, frame, reason) for name, frame, reason, program in SOURCES]
CASES += [
    Case(
        program,
        f"{name}, counted only",
        frame,
        reason,
        config=COUNT_ONLY,
        verdict=KERNEL if program == "fl_from_peer" else XDP_PASS,
    )
    for name, frame, reason, program in SOURCES
]

CASES += [
    guard("member", tunnel(), Reason.MEMBER),
    guard("other traffic", on_wire(packet(OUTSIDE, OWN.public_ip)), Reason.NOT_OVERLAY),
    guard("IPv4", on_wire(IP() / l4() / Raw(bytes(40))), Reason.NOT_FAMILY),
    guard("later fragment", tunnel(sender=STRANGER, extensions=LATER), Reason.OUTER),
]


@pytest.fixture(scope="session")
def kernel6() -> Iterator[KernelNode6]:
    """Return the kernel's own vxlan path, in a namespace of its own."""
    made = namespaces.new_namespace()
    with namespaces.inside(made):
        node = KernelNode6()
    yield node
    node.close()
    with namespaces.inside(made):
        assert wrong_checksums() == 0, "the kernel's own device takes every packet that BPF sent"
    os.close(made)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.program}: {case.name}")
def test_packet_ends_as_expected(case: cases.Case, node6: Load) -> None:
    node = node6(case.config)
    case.setup(node)
    frame = bytes(case.frame)
    ran = node.run(case.program, frame, ticket=case.ticket, **case.skb)
    assert ran.reason == case.reason
    assert ran.verdict == case.expected_verdict
    assert bool(ran.ticket) == case.taught
    if ran.verdict != REDIRECT:
        assert ran.frame == frame, "what is left to the kernel must be whole"


def assert_same_encapsulation(node: Node6, kernel: KernelNode6, frame: Packet) -> None:
    ran = node.run("fl_from_pod", bytes(frame))
    assert (ran.verdict, ran.reason) == (REDIRECT, Reason.FAST_VXLAN)
    assert ran.frame[14:].hex() == kernel.encapsulated(bytes(frame))[14:].hex(), "the checksum too"


@pytest.mark.parametrize("tc", range(0, 256, 5))
def test_every_traffic_class_leaves_alike(tc: int, node6: Load, kernel6: KernelNode6) -> None:
    for ecn in range(4):
        frame = from_pod(tc=tc & ~3 | ecn, fl=0x12345)
        assert_same_encapsulation(node6(VXLAN), kernel6, frame)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 17, 18, 63, 64, 511, 512, 1369, 1370, 1382])
@pytest.mark.parametrize("kind", ["udp", "tcp", "ping"])
def test_sizes_leave_alike_with_their_checksums(
    size: int, kind: str, node6: Load, kernel6: KernelNode6
) -> None:
    size = min(size, 1370) if kind == "tcp" else size
    frame = from_pod(l4(kind, payload=bytes(byte * 7 & 0xFF for byte in range(size))))
    assert_same_encapsulation(node6(VXLAN), kernel6, frame)


def test_ports_labels_and_hop_limits_leave_alike(node6: Load, kernel6: KernelNode6) -> None:
    node, choose = node6(VXLAN), random.Random(8472)
    for _ in range(200):
        ports = {"sport": choose.randrange(1, 65536), "dport": choose.randrange(1, 65536)}
        ip = {"hlim": choose.randrange(2, 256), "fl": choose.randrange(1 << 20)}
        body = l4(
            choose.choice(["udp", "tcp", "ping"]), payload=choose.randbytes(choose.randrange(99)), **ports
        )
        assert_same_encapsulation(node, kernel6, from_pod(body, **ip))


def test_a_checksum_left_to_the_device_makes_no_difference(node6: Load) -> None:
    """The outer one is right already for the packet as its device will finish it."""
    node, frame = node6(VXLAN), bytes(from_pod())
    sent = node.run("fl_from_pod", frame).frame
    unfinished = tampered(from_pod(), 60, b"\x12\x34")
    assert node.run("fl_from_pod", unfinished).frame[60:62] == sent[60:62]


@pytest.mark.parametrize("inner", range(4))
@pytest.mark.parametrize("outer", range(4))
def test_every_ecn_pair_arrives_alike(inner: int, outer: int, node6: Load, kernel6: KernelNode6) -> None:
    frame = bytes(tunnel(packet(PEER.pod, POD, tc=46 << 2 | inner, fl=0xABCDE), tc=outer))
    ran = node6(VXLAN).run("fl_from_peer", frame)
    if ran.reason == Reason.ECN:
        assert ran.frame == frame
        return
    assert (ran.verdict, ran.reason) == (REDIRECT, Reason.FAST_VXLAN)
    assert ran.frame == kernel6.delivered(frame)


@st.composite
def pod_frames(draw: st.DrawFn, src: IPv6Address, dst: IPv6Address) -> bytes:
    """Frames of a pod that every backend may carry."""
    ports = st.integers(1, 65535)
    body = l4(
        draw(st.sampled_from(["udp", "tcp", "tcp:PA", "ping", "pong"])),
        sport=draw(ports),
        dport=draw(ports),
        payload=draw(st.binary(max_size=1360)),
    )
    ip = {
        "tc": draw(st.integers(0, 255)),
        "hlim": draw(st.integers(5, 255)),
        "fl": draw(st.integers(0, 2**20 - 1)),
    }
    return bytes(from_pod(body, src=src, dst=dst, **ip))


def hops_away(frame: bytes, delivered: bytes) -> int:
    """Return by how much the hop limit fell; everything else of the IPv6 packet must be the same."""
    assert delivered[14:21] + delivered[22:] == frame[14:21] + frame[22:]
    return frame[21] - delivered[21]


def as_peer(config: abi.Config) -> abi.Config:
    vtep = PEER.vtep if config.backend == enums.Mode.VXLAN else abi.NO_MAC
    return replace(config, public_ip=PEER.public_ip, subnet=PEER.subnet.network_address, vtep_mac=vtep)


@shared
@given(frame=pod_frames(PEER.pod, OWN.pod))
@pytest.mark.parametrize("config", [VXLAN, DIRECT])
def test_bpf_to_bpf(frame: bytes, config: abi.Config, node6: Load) -> None:
    sent = node6(as_peer(config)).run("fl_from_pod", frame)
    got = node6(config).run("fl_from_peer", to_uplink(sent.frame))
    assert (sent.verdict, got.verdict) == (REDIRECT, REDIRECT)
    assert hops_away(frame, got.frame) == 2


@shared
@given(frame=pod_frames(PEER.pod, OWN.pod))
def test_bpf_to_kernel(frame: bytes, node6: Load, kernel6: KernelNode6) -> None:
    sent = node6(as_peer(VXLAN)).run("fl_from_pod", frame)
    assert sent.verdict == REDIRECT
    assert hops_away(frame, kernel6.delivered(to_uplink(sent.frame))) == 2


@shared
@given(frame=pod_frames(OWN.pod, PEER.pod))
def test_kernel_to_bpf(frame: bytes, node6: Load, kernel6: KernelNode6) -> None:
    got = node6(as_peer(VXLAN)).run("fl_from_peer", to_uplink(kernel6.encapsulated(frame)))
    assert got.verdict == REDIRECT
    assert hops_away(frame, got.frame) == 2


CLAIMS = {
    "advertised": packet(POD, IPv6Address("ff02::1"), ICMPv6ND_NA(tgt=str(POD)), hlim=255),
    "asked from": packet(POD, IPv6Address("ff02::1:ff00:1"), ICMPv6ND_NS(tgt=str(OWN.pod + 9)), hlim=255),
    "asked whether it is free": packet(
        IPv6Address("::"), IPv6Address("ff02::1:ff00:20"), ICMPv6ND_NS(tgt=str(POD)), hlim=255
    ),
}


@pytest.mark.parametrize("how", CLAIMS)
def test_a_pod_that_claims_anothers_address_ends_its_entry(how: str, node6: Load) -> None:
    node = node6(VXLAN)
    node.set_port(OTHER_PORT)
    frame = bytes(Ether(src=str(OTHER_MAC), dst=NODE_MAC) / CLAIMS[how])
    assert node.run("fl_from_pod", frame, ifindex=OTHER_PORT).reason == Reason.NOT_UNICAST
    assert node.pod(POD) is None
    assert node.port(OTHER_PORT).mac == OTHER_MAC


@pytest.mark.parametrize("how", CLAIMS)
def test_a_pod_that_says_its_own_address_stays(how: str, node6: Load) -> None:
    node = node6(VXLAN)
    node.set_port(POD_PORT)
    frame = bytes(Ether(src=str(POD_MAC), dst=NODE_MAC) / CLAIMS[how])
    node.run("fl_from_pod", frame, ifindex=POD_PORT)
    assert node.pod(POD) is not None


@pytest.mark.parametrize(
    "forged",
    [
        packet(POD, IPv6Address("ff02::1"), ICMPv6ND_NA(tgt=str(POD)), hlim=64),
        packet(POD, IPv6Address("ff02::1"), l4("ping"), hlim=255),
    ],
)
def test_what_no_neighbour_says_ends_nothing(forged: Packet, node6: Load) -> None:
    node = node6(VXLAN)
    frame = bytes(Ether(src=str(OTHER_MAC), dst=NODE_MAC) / forged)
    node.run("fl_from_pod", frame, ifindex=OTHER_PORT)
    assert node.pod(POD) is not None


def test_a_flow_opens_once_the_kernel_has_carried_a_packet_of_it(node6: Load) -> None:
    node = node6(FLOWS)
    node.fill_sketch()
    frame = bytes(from_pod())
    began = node.run("fl_from_pod", frame)
    assert (began.reason, began.verdict) == (Reason.LEARN_NEW, KERNEL)
    left = bytearray(bytes(Ether(src=str(OWN.vtep), dst=str(PEER.vtep)) / packet(POD, PEER.pod, hlim=63)))
    assert node.run("fl_to_peer", bytes(left), ticket=began.ticket).counted[Reason.LEARN_LEFT] == 1
    assert node.run("fl_from_pod", frame).reason == Reason.FAST_VXLAN
    other = bytes(from_pod(l4(sport=4001)))
    assert node.run("fl_from_pod", other).reason == Reason.LEARN_NEW


def test_a_packet_that_the_kernel_changed_opens_nothing(node6: Load) -> None:
    node = node6(FLOWS)
    node.fill_sketch()
    began = node.run("fl_from_pod", bytes(from_pod()))
    translated = Ether(src=str(OWN.vtep), dst=str(PEER.vtep)) / packet(POD, PEER.pod + 1, hlim=63)
    assert node.run("fl_to_peer", bytes(translated), ticket=began.ticket).counted[Reason.LEARN_CHANGED] == 1
    assert node.run("fl_from_pod", bytes(from_pod())).reason != Reason.FAST_VXLAN


def test_the_other_familys_ticket_is_left_alone(node6: Load) -> None:
    """Both families' programs stand on one hook, and each has lessons of its own."""
    node = node6(VXLAN)
    other = bytes(Ether(src=str(GATEWAY_MAC), dst=str(POD_MAC)) / IP() / l4() / Raw(bytes(60)))
    for program in ("fl_from_pod", "fl_to_pod", "fl_to_peer"):
        ran = node.run(program, other, ticket=77, ifindex=0 if "pod" in program else 10)
        assert (program, ran.ticket, ran.verdict) == (program, 77, KERNEL)
