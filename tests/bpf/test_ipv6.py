"""Programs of IPv6: one table of packets, and the kernel's own device as the oracle of the wire.

What both families share is one text and has its tests with IPv4; here is what bpf/ipv6.h holds, and that the
text holds for it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import IPv6Address

import pytest
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

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.enums import PodFlag, Reason
from tests.bpf import cases
from tests.bpf.cases import tampered
from tests.bpf.ipv6 import (
    COUNT_ONLY,
    DIRECT,
    FLOWS,
    GROUP_MAC,
    OTHER_POD,
    OUTSIDE,
    OWN,
    PEER,
    POD,
    STRANGER,
    VXLAN,
    Node6,
    from_pod,
    l4,
    on_wire,
    packet,
    tunnel,
)
from tests.bpf.node import (
    KERNEL,
    POD_MAC,
    REDIRECT,
    XDP_PASS,
)

Load = Callable[[abi.Config], Node6]
Case = partial(cases.Case, config=VXLAN)
out, into, guard = partial(Case, "fl_from_pod"), partial(Case, "fl_from_peer"), partial(Case, "fl_xdp")

CHAIN = IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / IPv6ExtHdrRouting() / IPv6ExtHdrDestOpt()
LONG_CHAIN = CHAIN / CHAIN
LATER = IPv6ExtHdrFragment(offset=8, m=0, id=7)
FIRST = IPv6ExtHdrFragment(offset=0, m=1, id=7)


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
    out("multicast frame", from_pod(gateway=GROUP_MAC), Reason.NOT_UNICAST),
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
