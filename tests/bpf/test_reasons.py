"""One table of packets: what goes in, where it ends, and why. Every reason has a row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

import pytest
from frames import NEXT_HOP_MAC, from_pod, l4, on_wire, packet, udp_tunnel, vxlan
from node import (
    DIRECT,
    DROP,
    GATEWAY_MAC,
    KERNEL,
    MARK,
    OTHER_MAC,
    OTHER_POD,
    OTHER_PORT,
    OWN_VTEP,
    PEER,
    POD,
    POD_MAC,
    POD_PORT,
    REDIRECT,
    SECOND_PEER,
    STRANGER,
    UDP,
    VXLAN,
    XDP_DROP,
    XDP_PASS,
    Node,
    flow_key,
)
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.layers.sctp import SCTP
from scapy.packet import Packet, Raw

from flannel_ebpf import abi
from flannel_ebpf.abi import FlowBit, PodFlag, Reason

FLOWS = replace(VXLAN, fastpath=abi.Fastpath.FLOWS)
COUNT_ONLY = replace(VXLAN, source_check=abi.Check.COUNT)
NO_CHECK = replace(VXLAN, source_check=abi.Check.OFF)
MIXED = replace(VXLAN, direct_routing=True)
NO_L2_ETH = replace(VXLAN, caps=VXLAN.caps & ~abi.Cap.ENCAP_L2_ETH)
NO_NEIGH = replace(VXLAN, caps=VXLAN.caps & ~abi.Cap.REDIRECT_NEIGH)

HOST = IPv4Address("192.0.2.77")
OUTSIDE = IPv4Address("203.0.113.5")
UDP_KEY = flow_key(POD, PEER.pod, 4000, 5000, 17)
RX_KEY = flow_key(POD, PEER.pod, 5000, 4000, 17)
OLD = 1  # ns after boot


@dataclass(frozen=True)
class Case:
    """A packet, what the node knows, and how it must end. `marked`: the learning mark afterwards."""

    name: str
    program: str
    frame: Packet | bytes
    reason: Reason | None
    config: abi.Config = VXLAN
    setup: Callable[[Node], None] = lambda node: None
    verdict: int | None = None
    mark: int = 0
    marked: bool = False
    skb: dict[str, int] = field(default_factory=dict)

    @property
    def expected_verdict(self) -> int:
        if self.verdict is not None:
            return self.verdict
        if self.reason in (Reason.FAST_VXLAN, Reason.FAST_DIRECT, Reason.FAST_UDP):
            return REDIRECT
        dropped = self.reason is not None and self.reason >= Reason.DROP_NOT_MEMBER
        if self.program == "fl_xdp":
            return XDP_DROP if dropped else XDP_PASS
        return DROP if dropped else KERNEL


def peer_mtu(mtu: int) -> Callable[[Node], None]:
    return lambda node: node.add_peer(PEER, PEER.peer(node.config.backend, mtu=mtu))


def peer_mode(mode: abi.Mode) -> Callable[[Node], None]:
    return lambda node: node.add_peer(PEER, PEER.peer(mode))


def peer_has_programs(node: Node) -> None:
    node.add_peer(PEER, replace(PEER.peer(abi.Mode.UDP), flags=abi.PeerFlag.ON_LINK | abi.PeerFlag.BPF))


def without_checksum(kind: str) -> bytes:
    """A frame as a pod's kernel leaves it for the device: only the pseudo header is summed up."""
    frame = bytearray(bytes(from_pod(l4(kind))))
    words = frame[26:34] + bytes((0, frame[23])) + (len(frame) - 34).to_bytes(2, "big")
    total = sum(int.from_bytes(words[at : at + 2], "big") for at in range(0, len(words), 2))
    at = 34 + (16 if kind == "tcp" else 6)
    frame[at : at + 2] = (total % 0xFFFF).to_bytes(2, "big")
    return bytes(frame)


def shaped_pod(node: Node) -> None:
    node.add_pod(POD, flags=PodFlag.SHAPED)


def shaped_port(node: Node) -> None:
    node.forget_pod(POD)
    node.set_port(POD_PORT, PodFlag.SHAPED)


def no_pod(node: Node) -> None:
    node.forget_pod(POD)


def pod_elsewhere(node: Node) -> None:
    node.add_pod(POD, ifindex=OTHER_PORT)


def flooded_pod(node: Node) -> None:
    node.add_pod(POD, ifindex=0)


def two_members(node: Node) -> None:
    node.add_peer(SECOND_PEER, SECOND_PEER.peer(abi.Mode.VXLAN))


def young(node: Node) -> None:
    node.clear_sketch()


def known_flow(bits: FlowBit, *, since: int = OLD, key: abi.FlowKey = UDP_KEY) -> Callable[[Node], None]:
    def setup(node: Node) -> None:
        node.fill_sketch()
        node.put_flow(key, abi.Flow(since, since, POD_PORT, bits))

    return setup


def grown(node: Node) -> None:
    node.fill_sketch()


def tampered(frame: Packet, offset: int, value: bytes) -> bytes:
    raw = bytearray(bytes(frame))
    raw[offset : offset + len(value)] = value
    return bytes(raw)


ETH, IP_AT, INNER_ETH, INNER_IP = 0, 14, 50, 64
NO_BITS = FlowBit(0)
TX, RX = FlowBit.TX_ENTERED | FlowBit.TX_LEFT, FlowBit.RX_ARRIVED | FlowBit.RX_DELIVERED
MULTICAST_MAC = "01:00:5e:00:00:16"

FROM_POD = [
    Case("UDP to a peer", "fl_from_pod", from_pod(), Reason.FAST_VXLAN),
    Case("TCP to a peer", "fl_from_pod", from_pod(l4("tcp")), Reason.FAST_VXLAN),
    Case("ping to a peer", "fl_from_pod", from_pod(l4("ping")), Reason.FAST_VXLAN),
    Case("echo reply to a peer", "fl_from_pod", from_pod(l4("pong")), Reason.FAST_VXLAN),
    Case("from a pod not known yet", "fl_from_pod", from_pod(), Reason.FAST_VXLAN, setup=no_pod),
    Case("from a pod whose place is unsure", "fl_from_pod", from_pod(), Reason.FAST_VXLAN, setup=flooded_pod),
    Case("largest packet", "fl_from_pod", from_pod(l4(payload=bytes(1422))), Reason.FAST_VXLAN),
    Case("one byte too large", "fl_from_pod", from_pod(l4(payload=bytes(1423))), Reason.TOO_BIG),
    Case("path with a small MTU", "fl_from_pod", from_pod(), Reason.TOO_BIG, setup=peer_mtu(141)),
    Case("path just large enough", "fl_from_pod", from_pod(), Reason.FAST_VXLAN, setup=peer_mtu(142)),
    Case(
        "super-packet with large segments",
        "fl_from_pod",
        from_pod(l4("tcp", payload=bytes(3000))),
        Reason.TOO_BIG,
        skb={"gso_size": 1411, "gso_segs": 3},
    ),
    Case(
        "super-packet whose kind the helper refuses",
        "fl_from_pod",
        from_pod(l4("tcp", payload=bytes(3000))),
        Reason.GSO,
        skb={"gso_size": 1410, "gso_segs": 3},
    ),
    Case(
        "super-packet without ENCAP_L2_ETH",
        "fl_from_pod",
        from_pod(l4("tcp", payload=bytes(3000))),
        Reason.GSO,
        config=NO_L2_ETH,
        skb={"gso_size": 1410, "gso_segs": 3},
    ),
    Case("kernel without redirect_neigh", "fl_from_pod", from_pod(), Reason.HELPER, config=NO_NEIGH),
    Case("ARP", "fl_from_pod", Ether(src=str(POD_MAC)) / ARP(psrc=str(POD)), Reason.NOT_IPV4),
    Case("IPv6", "fl_from_pod", Ether() / IPv6() / l4(), Reason.NOT_IPV4),
    Case("VLAN tag", "fl_from_pod", Ether() / Dot1Q(vlan=5) / packet(POD, PEER.pod), Reason.NOT_IPV4),
    Case("broadcast frame", "fl_from_pod", from_pod(gateway="ff:ff:ff:ff:ff:ff"), Reason.NOT_UNICAST),
    Case("multicast frame", "fl_from_pod", from_pod(gateway=MULTICAST_MAC), Reason.NOT_UNICAST),
    Case("multicast address", "fl_from_pod", from_pod(dst=IPv4Address("224.0.0.22")), Reason.NOT_UNICAST),
    Case("to the next pod", "fl_from_pod", from_pod(dst=OTHER_POD), Reason.NOT_OVERLAY),
    Case("to the outside", "fl_from_pod", from_pod(dst=OUTSIDE), Reason.NOT_OVERLAY),
    Case("to a subnet nobody holds", "fl_from_pod", from_pod(dst=STRANGER.pod), Reason.NOT_OVERLAY),
    Case(
        "to a peer of the kernel's alone",
        "fl_from_pod",
        from_pod(),
        Reason.NOT_OVERLAY,
        setup=peer_mode(abi.Mode.NONE),
    ),
    Case(
        "to a peer of another backend",
        "fl_from_pod",
        from_pod(),
        Reason.NOT_OVERLAY,
        setup=peer_mode(abi.Mode.UDP),
    ),
    Case("IP options", "fl_from_pod", from_pod(options=b"\x94\x04\x00\x00"), Reason.IP_OPTIONS),
    Case("first fragment", "fl_from_pod", from_pod(flags="MF"), Reason.FRAGMENT),
    Case("later fragment", "fl_from_pod", from_pod(frag=10), Reason.FRAGMENT),
    Case("DF", "fl_from_pod", from_pod(flags="DF"), Reason.FAST_VXLAN),
    Case("TTL 0", "fl_from_pod", from_pod(ttl=0), Reason.TTL),
    Case("TTL 1", "fl_from_pod", from_pod(ttl=1), Reason.TTL),
    Case("TTL 2", "fl_from_pod", from_pod(ttl=2), Reason.FAST_VXLAN),
    Case("SCTP", "fl_from_pod", from_pod(SCTP()), Reason.PROTOCOL),
    Case("ICMP unreachable", "fl_from_pod", from_pod(ICMP(type=3) / Raw(bytes(28))), Reason.PROTOCOL),
    Case("version 6 in IPv4", "fl_from_pod", tampered(from_pod(), IP_AT, b"\x65"), Reason.BAD_HEADER),
    Case("header length 4", "fl_from_pod", tampered(from_pod(), IP_AT, b"\x44"), Reason.BAD_HEADER),
    Case("wrong header checksum", "fl_from_pod", from_pod(chksum=0x1234), Reason.BAD_HEADER),
    Case("total length beyond the frame", "fl_from_pod", from_pod(len=200), Reason.BAD_HEADER),
    Case("bytes behind the packet", "fl_from_pod", from_pod() / Raw(b"xx"), Reason.FAST_VXLAN),
    Case("padding behind the packet", "fl_from_pod", bytes(from_pod()) + b"pad", Reason.BAD_HEADER),
    Case("TCP data offset 4", "fl_from_pod", tampered(from_pod(l4("tcp")), 46, b"\x40"), Reason.BAD_HEADER),
    Case(
        "TCP header longer than the packet",
        "fl_from_pod",
        tampered(from_pod(l4("tcp", payload=b"")), 46, b"\xf0"),
        Reason.TRUNCATED,
    ),
    Case("half a TCP header", "fl_from_pod", from_pod(Raw(bytes(12)), proto=6), Reason.TRUNCATED),
    Case("no L4 header", "fl_from_pod", from_pod(Raw(b""), proto=17), Reason.TRUNCATED),
    Case("routed by the pod", "fl_from_pod", from_pod(src=OUTSIDE), Reason.POD_SOURCE),
    Case("another pod's address", "fl_from_pod", from_pod(), Reason.DROP_POD_SOURCE, setup=pod_elsewhere),
    Case(
        "another pod's address, counted only",
        "fl_from_pod",
        from_pod(),
        Reason.DROP_POD_SOURCE,
        config=COUNT_ONLY,
        setup=pod_elsewhere,
        verdict=KERNEL,
    ),
    Case(
        "another pod's address, unchecked",
        "fl_from_pod",
        from_pod(),
        Reason.POD_SOURCE,
        config=NO_CHECK,
        setup=pod_elsewhere,
    ),
    Case("not for the gateway", "fl_from_pod", from_pod(gateway=OTHER_MAC), Reason.NOT_GATEWAY),
    Case("shaped pod", "fl_from_pod", from_pod(), Reason.SHAPED, setup=shaped_pod),
    Case("shaped port of an unknown pod", "fl_from_pod", from_pod(), Reason.SHAPED, setup=shaped_port),
    Case("direct", "fl_from_pod", from_pod(), Reason.FAST_DIRECT, config=DIRECT),
    Case(
        "direct needs no room for headers",
        "fl_from_pod",
        from_pod(l4(payload=bytes(1472))),
        Reason.FAST_DIRECT,
        config=DIRECT,
    ),
    Case("direct, too big", "fl_from_pod", from_pod(l4(payload=bytes(1473))), Reason.TOO_BIG, config=DIRECT),
    Case(
        "direct peer of a vxlan network",
        "fl_from_pod",
        from_pod(),
        Reason.FAST_DIRECT,
        config=MIXED,
        setup=peer_mode(abi.Mode.DIRECT),
    ),
    Case("udp", "fl_from_pod", from_pod(), Reason.FAST_UDP, config=UDP),
    Case("udp, TTL 2 is the relay's last", "fl_from_pod", from_pod(ttl=2), Reason.TTL, config=UDP),
    Case("udp, TTL 3", "fl_from_pod", from_pod(ttl=3), Reason.FAST_UDP, config=UDP),
    Case("udp, largest", "fl_from_pod", from_pod(l4(payload=bytes(1444))), Reason.FAST_UDP, config=UDP),
    Case(
        "udp, super-packet that a relay might get whole",
        "fl_from_pod",
        from_pod(l4("tcp", payload=bytes(3000))),
        Reason.GSO,
        config=UDP,
        skb={"gso_size": 1400, "gso_segs": 3},
    ),
    Case(
        "udp, UDP super-packet to a peer with programs",
        "fl_from_pod",
        from_pod(l4("udp", payload=bytes(2800))),
        Reason.GSO,
        config=UDP,
        setup=peer_has_programs,
        skb={"gso_size": 1400, "gso_segs": 2},
    ),
    Case("udp, checksum to be done", "fl_from_pod", without_checksum("udp"), Reason.CHECKSUM, config=UDP),
    Case("udp, TCP's to be done", "fl_from_pod", without_checksum("tcp"), Reason.CHECKSUM, config=UDP),
    Case(
        "udp, checksum to be done, peer with programs",
        "fl_from_pod",
        without_checksum("tcp"),
        Reason.FAST_UDP,
        config=UDP,
        setup=peer_has_programs,
    ),
    Case(
        "udp, checksum to be done, over hardware",
        "fl_from_pod",
        without_checksum("udp"),
        Reason.FAST_UDP,
        config=replace(UDP, uplink_finishes=True),
    ),
    Case("udp, too big", "fl_from_pod", from_pod(l4(payload=bytes(1445))), Reason.TOO_BIG, config=UDP),
]

FROM_POD_FLOWS = [
    Case("flow's first packets", "fl_from_pod", from_pod(), Reason.LEARN_YOUNG, config=FLOWS, setup=young),
    Case(
        "flow without an entry",
        "fl_from_pod",
        from_pod(),
        Reason.LEARN_NEW,
        config=FLOWS,
        setup=grown,
        marked=True,
    ),
    Case(
        "flow that never left",
        "fl_from_pod",
        from_pod(),
        Reason.LEARN_NEW,
        config=FLOWS,
        setup=known_flow(FlowBit.TX_ENTERED),
        marked=True,
    ),
    Case(
        "flow open too long",
        "fl_from_pod",
        from_pod(),
        Reason.LEARN_REVALIDATE,
        config=FLOWS,
        setup=known_flow(TX),
        marked=True,
    ),
    Case(
        "SYN",
        "fl_from_pod",
        from_pod(l4("tcp:S")),
        Reason.TCP_STATE,
        config=FLOWS,
    ),
    Case("FIN", "fl_from_pod", from_pod(l4("tcp:FA")), Reason.TCP_STATE, config=FLOWS),
    Case("RST", "fl_from_pod", from_pod(l4("tcp:R")), Reason.TCP_STATE, config=FLOWS),
    Case("SYN by subnets", "fl_from_pod", from_pod(l4("tcp:S")), Reason.FAST_VXLAN),
    Case(
        "another pod's address, young flow",
        "fl_from_pod",
        from_pod(),
        Reason.DROP_POD_SOURCE,
        config=FLOWS,
        setup=lambda node: (young(node), pod_elsewhere(node))[0],
    ),
]

FROM_PEER = [
    Case("UDP from a peer", "fl_from_peer", vxlan(), Reason.FAST_VXLAN),
    Case("TCP from a peer", "fl_from_peer", vxlan(packet(PEER.pod, POD, l4("tcp"))), Reason.FAST_VXLAN),
    Case("ping from a peer", "fl_from_peer", vxlan(packet(PEER.pod, POD, l4("ping"))), Reason.FAST_VXLAN),
    Case("from a peer's own address", "fl_from_peer", vxlan(packet(PEER.public_ip, POD)), Reason.FAST_VXLAN),
    Case("kernel's outer checksum", "fl_from_peer", vxlan(udp={"chksum": 0x1234}), Reason.FAST_VXLAN),
    Case("for another machine", "fl_from_peer", on_wire(vxlan()[IP], NEXT_HOP_MAC), Reason.NOT_UNICAST),
    Case("broadcast", "fl_from_peer", on_wire(vxlan()[IP], "ff:ff:ff:ff:ff:ff"), Reason.NOT_UNICAST),
    Case("short frame", "fl_from_peer", on_wire(Raw(bytes(20))), Reason.TRUNCATED),
    Case("ARP on the uplink", "fl_from_peer", on_wire(ARP() / Raw(bytes(18))), Reason.NOT_IPV4),
    Case("IPv6 on the uplink", "fl_from_peer", on_wire(IPv6() / l4()), Reason.NOT_IPV4),
    Case("VLAN on the uplink", "fl_from_peer", on_wire(Dot1Q(vlan=5) / vxlan()[IP]), Reason.NOT_IPV4),
    Case("not for us", "fl_from_peer", vxlan(outer_dst=HOST), Reason.NOT_OVERLAY),
    Case("another port", "fl_from_peer", vxlan(dport=8473), Reason.NOT_OVERLAY),
    Case("TCP to us", "fl_from_peer", on_wire(packet(HOST, VXLAN.public_ip, l4("tcp"))), Reason.NOT_OVERLAY),
    Case("outer options", "fl_from_peer", vxlan(options=b"\x94\x04\x00\x00"), Reason.OUTER),
    Case("outer first fragment", "fl_from_peer", vxlan(flags="MF"), Reason.OUTER),
    Case("outer later fragment", "fl_from_peer", vxlan(frag=5), Reason.OUTER),
    Case("outer length too small", "fl_from_peer", vxlan(len=100), Reason.OUTER),
    Case("outer checksum wrong", "fl_from_peer", vxlan(chksum=0x4321), Reason.OUTER),
    Case("UDP length wrong", "fl_from_peer", vxlan(udp={"len": 60}), Reason.OUTER),
    Case("reserved VXLAN flag", "fl_from_peer", vxlan(vxlan_flags=0x0C), Reason.VXLAN_HEADER),
    Case("no I flag", "fl_from_peer", vxlan(vxlan_flags=0), Reason.VXLAN_HEADER),
    Case("reserved VXLAN byte", "fl_from_peer", tampered(vxlan(), 49, b"\x01"), Reason.VXLAN_HEADER),
    Case("another VNI", "fl_from_peer", vxlan(vni=2), Reason.VNI),
    Case("another VTEP", "fl_from_peer", vxlan(inner_dst=PEER.vtep), Reason.INNER_MAC),
    Case("broadcast inside", "fl_from_peer", vxlan(inner_dst="ff:ff:ff:ff:ff:ff"), Reason.INNER_MAC),
    Case("our own VTEP as source", "fl_from_peer", vxlan(inner_src=OWN_VTEP), Reason.INNER_MAC),
    Case("no source MAC", "fl_from_peer", vxlan(inner_src="00:00:00:00:00:00"), Reason.INNER_MAC),
    Case("group source MAC", "fl_from_peer", vxlan(inner_src=MULTICAST_MAC), Reason.INNER_MAC),
    Case("ARP inside", "fl_from_peer", tampered(vxlan(), INNER_ETH + 12, b"\x08\x06"), Reason.NOT_IPV4),
    Case("IPv6 inside", "fl_from_peer", tampered(vxlan(), INNER_ETH + 12, b"\x86\xdd"), Reason.NOT_IPV4),
    Case("VLAN inside", "fl_from_peer", tampered(vxlan(), INNER_ETH + 12, b"\x81\x00"), Reason.NOT_IPV4),
    Case("too short inside", "fl_from_peer", vxlan(Raw(bytes(20))), Reason.TRUNCATED),
    Case(
        "fragment inside",
        "fl_from_peer",
        vxlan(packet(PEER.pod, POD, flags="MF")),
        Reason.FRAGMENT,
    ),
    Case("later fragment inside", "fl_from_peer", vxlan(packet(PEER.pod, POD, frag=3)), Reason.FRAGMENT),
    Case(
        "options inside",
        "fl_from_peer",
        vxlan(packet(PEER.pod, POD, options=b"\x94\x04\x00\x00")),
        Reason.IP_OPTIONS,
    ),
    Case("TTL 1 inside", "fl_from_peer", vxlan(packet(PEER.pod, POD, ttl=1)), Reason.TTL),
    Case("TTL 2 inside", "fl_from_peer", vxlan(packet(PEER.pod, POD, ttl=2)), Reason.FAST_VXLAN),
    Case("checksum wrong inside", "fl_from_peer", vxlan(packet(PEER.pod, POD, chksum=1)), Reason.BAD_HEADER),
    Case("SCTP inside", "fl_from_peer", vxlan(packet(PEER.pod, POD, SCTP())), Reason.PROTOCOL),
    Case(
        "multicast inside",
        "fl_from_peer",
        vxlan(packet(PEER.pod, IPv4Address("224.0.0.9"))),
        Reason.NOT_UNICAST,
    ),
    Case("Not-ECT inside CE", "fl_from_peer", vxlan(tos=3), Reason.ECN),
    Case(
        "UDP super-packet that would keep its tunnel state",
        "fl_from_peer",
        vxlan(),
        Reason.GSO,
        skb={"gso_size": 32, "gso_segs": 2},
    ),
    Case(
        "super-packet of no kind that the helper takes",
        "fl_from_peer",
        vxlan(packet(PEER.pod, POD, l4("tcp"))),
        Reason.GSO,
        skb={"gso_size": 32, "gso_segs": 2},
    ),
    Case("to a pod nobody knows", "fl_from_peer", vxlan(), Reason.NO_POD, setup=no_pod, marked=True),
    Case("to a pod somewhere", "fl_from_peer", vxlan(), Reason.NO_POD, setup=flooded_pod, marked=True),
    Case("beyond our subnet", "fl_from_peer", vxlan(packet(PEER.pod, OUTSIDE)), Reason.NO_POD),
    Case("to a shaped pod", "fl_from_peer", vxlan(), Reason.SHAPED, setup=shaped_pod),
    Case("from no member", "fl_from_peer", vxlan(sender=STRANGER), Reason.DROP_NOT_MEMBER),
    Case(
        "from no member, a member's source",
        "fl_from_peer",
        vxlan(packet(PEER.pod, POD), sender=STRANGER),
        Reason.DROP_NOT_MEMBER,
    ),
    Case(
        "no member's own address",
        "fl_from_peer",
        vxlan(packet(STRANGER.public_ip, POD), sender=STRANGER),
        Reason.DROP_NOT_MEMBER,
    ),
    Case(
        "ARP from no member",
        "fl_from_peer",
        tampered(vxlan(sender=STRANGER), INNER_ETH + 12, b"\x08\x06"),
        Reason.DROP_NOT_MEMBER,
    ),
    Case(
        "from no member, counted only",
        "fl_from_peer",
        vxlan(sender=STRANGER),
        Reason.DROP_NOT_MEMBER,
        config=COUNT_ONLY,
        verdict=KERNEL,
    ),
    Case(
        "from no member, unchecked",
        "fl_from_peer",
        vxlan(sender=STRANGER),
        Reason.FAST_VXLAN,
        config=NO_CHECK,
    ),
    Case(
        "another member's subnet",
        "fl_from_peer",
        vxlan(packet(SECOND_PEER.pod, POD)),
        Reason.DROP_PEER_SOURCE,
        setup=two_members,
    ),
    Case("a source outside", "fl_from_peer", vxlan(packet(OUTSIDE, POD)), Reason.DROP_PEER_SOURCE),
    Case("our own subnet", "fl_from_peer", vxlan(packet(OTHER_POD, POD)), Reason.DROP_PEER_SOURCE),
    Case(
        "a source outside, in a fragment",
        "fl_from_peer",
        vxlan(packet(OUTSIDE, POD, frag=3)),
        Reason.DROP_PEER_SOURCE,
    ),
    Case("direct", "fl_from_peer", on_wire(packet(PEER.pod, POD)), Reason.FAST_DIRECT, config=DIRECT),
    Case(
        "direct, padded by the link",
        "fl_from_peer",
        bytes(on_wire(packet(PEER.pod, POD, l4(payload=b"")))) + bytes(18),
        Reason.FAST_DIRECT,
        config=DIRECT,
    ),
    Case(
        "direct, from no peer",
        "fl_from_peer",
        on_wire(packet(OUTSIDE, POD)),
        Reason.NOT_OVERLAY,
        config=DIRECT,
    ),
    Case("plain in a vxlan network", "fl_from_peer", on_wire(packet(PEER.pod, POD)), Reason.NOT_OVERLAY),
    Case(
        "plain from a vxlan peer",
        "fl_from_peer",
        on_wire(packet(PEER.pod, POD)),
        Reason.NOT_OVERLAY,
        config=MIXED,
    ),
    Case(
        "plain from a direct peer of a vxlan network",
        "fl_from_peer",
        on_wire(packet(PEER.pod, POD)),
        Reason.FAST_DIRECT,
        config=MIXED,
        setup=peer_mode(abi.Mode.DIRECT),
    ),
    Case(
        "direct, pod unknown",
        "fl_from_peer",
        on_wire(packet(PEER.pod, POD)),
        Reason.NO_POD,
        config=DIRECT,
        setup=no_pod,
        marked=True,
    ),
    Case("udp", "fl_from_peer", udp_tunnel(), Reason.FAST_UDP, config=UDP),
    Case("udp, TTL 2", "fl_from_peer", udp_tunnel(packet(PEER.pod, POD, ttl=2)), Reason.TTL, config=UDP),
    Case("udp, TTL 3", "fl_from_peer", udp_tunnel(packet(PEER.pod, POD, ttl=3)), Reason.FAST_UDP, config=UDP),
    Case(
        "udp, a relay's datagrams in one piece",
        "fl_from_peer",
        udp_tunnel(Raw(2 * bytes(packet(PEER.pod, POD)))),
        Reason.GSO,
        config=UDP,
        skb={"gso_size": len(packet(PEER.pod, POD)), "gso_segs": 2},
    ),
    Case(
        "udp, such a piece of whom we do not know",
        "fl_from_peer",
        udp_tunnel(Raw(2 * bytes(packet(PEER.pod, POD))), sender=STRANGER),
        Reason.GSO,
        config=UDP,
        skb={"gso_size": len(packet(PEER.pod, POD)), "gso_segs": 2},
    ),
    Case(
        "udp from programs, for the kernel",
        "fl_from_peer",
        udp_tunnel(),
        Reason.NO_POD,
        config=replace(UDP, tun=OTHER_PORT),
        setup=no_pod,
        verdict=REDIRECT,
        marked=True,
    ),
    Case(
        "udp from a relay, for our relay",
        "fl_from_peer",
        udp_tunnel(checksum=0x1234),
        Reason.NO_POD,
        config=replace(UDP, tun=OTHER_PORT),
        setup=no_pod,
        marked=True,
    ),
    Case("udp, short", "fl_from_peer", udp_tunnel(Raw(bytes(12))), Reason.TRUNCATED, config=UDP),
    Case("udp, no member", "fl_from_peer", udp_tunnel(sender=STRANGER), Reason.DROP_NOT_MEMBER, config=UDP),
]

FROM_PEER_FLOWS = [
    Case("flow's first packets", "fl_from_peer", vxlan(), Reason.LEARN_YOUNG, FLOWS, setup=young),
    Case("flow without an entry", "fl_from_peer", vxlan(), Reason.LEARN_NEW, FLOWS, setup=grown, marked=True),
    Case(
        "flow that was never delivered",
        "fl_from_peer",
        vxlan(),
        Reason.LEARN_NEW,
        config=FLOWS,
        setup=known_flow(FlowBit.RX_ARRIVED, key=RX_KEY),
        marked=True,
    ),
    Case(
        "flow open too long",
        "fl_from_peer",
        vxlan(),
        Reason.LEARN_REVALIDATE,
        config=FLOWS,
        setup=known_flow(RX, key=RX_KEY),
        marked=True,
    ),
    Case(
        "FIN",
        "fl_from_peer",
        vxlan(packet(PEER.pod, POD, l4("tcp:FA"))),
        Reason.TCP_STATE,
        FLOWS,
        setup=grown,
    ),
    Case("beyond our subnet", "fl_from_peer", vxlan(packet(PEER.pod, OUTSIDE)), Reason.NO_POD, FLOWS, grown),
]

TO = [
    Case("unmarked, to a peer", "fl_to_peer", from_pod(), None, config=FLOWS, verdict=KERNEL),
    Case("unmarked, to a pod", "fl_to_pod", from_pod(), None, config=FLOWS, verdict=KERNEL),
    Case(
        "left unchanged",
        "fl_to_peer",
        from_pod(),
        Reason.LEARN_LEFT,
        config=FLOWS,
        setup=known_flow(FlowBit.TX_ENTERED),
        mark=MARK,
    ),
    Case(
        "left with another source",
        "fl_to_peer",
        from_pod(src=HOST),
        Reason.LEARN_CHANGED,
        config=FLOWS,
        setup=known_flow(FlowBit.TX_ENTERED),
        mark=MARK,
    ),
    Case(
        "left without having entered",
        "fl_to_peer",
        from_pod(),
        Reason.LEARN_CHANGED,
        config=FLOWS,
        setup=known_flow(RX),
        mark=MARK,
    ),
    Case("SYN left", "fl_to_peer", from_pod(l4("tcp:S")), Reason.TCP_STATE, config=FLOWS, mark=MARK),
    Case("IPv6 left", "fl_to_peer", Ether() / IPv6() / l4(), Reason.NOT_IPV4, config=FLOWS, mark=MARK),
    Case("short left", "fl_to_peer", bytes(from_pod())[:40], Reason.TRUNCATED, config=FLOWS, mark=MARK),
]


def to_pod_frame(dst: IPv4Address = POD, mac: str = str(POD_MAC), body: Packet | None = None) -> Packet:
    return Ether(src=str(GATEWAY_MAC), dst=mac) / packet(PEER.pod, dst, body, ttl=62)


TO_POD = [
    Case(
        "delivered unchanged",
        "fl_to_pod",
        to_pod_frame(),
        Reason.LEARN_DELIVERED,
        config=FLOWS,
        setup=known_flow(FlowBit.RX_ARRIVED, key=RX_KEY),
        mark=MARK,
    ),
    Case(
        "delivered from another source",
        "fl_to_pod",
        Ether(src=str(GATEWAY_MAC), dst=str(POD_MAC)) / packet(HOST, POD),
        Reason.LEARN_CHANGED,
        config=FLOWS,
        setup=known_flow(FlowBit.RX_ARRIVED, key=RX_KEY),
        mark=MARK,
    ),
    Case("delivered, subnets", "fl_to_pod", to_pod_frame(), Reason.LEARN_DELIVERED, mark=MARK),
    Case("SYN delivered", "fl_to_pod", to_pod_frame(body=l4("tcp:S")), Reason.TCP_STATE, FLOWS, mark=MARK),
    Case(
        "multicast is no pod",
        "fl_to_pod",
        to_pod_frame(IPv4Address("224.0.0.22")),
        Reason.NOT_UNICAST,
        mark=MARK,
    ),
    Case("group MAC is no pod", "fl_to_pod", to_pod_frame(mac=MULTICAST_MAC), Reason.NOT_UNICAST, mark=MARK),
    Case("not our subnet's", "fl_to_pod", to_pod_frame(OUTSIDE), Reason.NOT_OVERLAY, mark=MARK),
]

XDP = [
    Case("member's packet", "fl_xdp", vxlan(), Reason.MEMBER),
    Case("member's fragment inside", "fl_xdp", vxlan(packet(PEER.pod, POD, frag=3)), Reason.MEMBER),
    Case("no member", "fl_xdp", vxlan(sender=STRANGER), Reason.DROP_NOT_MEMBER),
    Case(
        "no member, counted", "fl_xdp", vxlan(sender=STRANGER), Reason.DROP_NOT_MEMBER, COUNT_ONLY, verdict=2
    ),
    Case("source outside", "fl_xdp", vxlan(packet(OUTSIDE, POD)), Reason.DROP_PEER_SOURCE),
    Case(
        "ARP from no member",
        "fl_xdp",
        tampered(vxlan(sender=STRANGER), INNER_ETH + 12, b"\x08\x06"),
        Reason.DROP_NOT_MEMBER,
    ),
    Case("another network", "fl_xdp", vxlan(vni=2, sender=STRANGER), Reason.VNI),
    Case("another port", "fl_xdp", vxlan(dport=53, sender=STRANGER), Reason.NOT_OVERLAY),
    Case("not for us", "fl_xdp", vxlan(outer_dst=HOST), Reason.NOT_OVERLAY),
    Case("outer fragment", "fl_xdp", vxlan(flags="MF"), Reason.OUTER),
    Case("short", "fl_xdp", on_wire(Raw(bytes(20))), Reason.TRUNCATED),
    Case("IPv6", "fl_xdp", on_wire(IPv6() / l4()), Reason.NOT_IPV4),
    Case("plain packet in host-gw", "fl_xdp", on_wire(packet(PEER.pod, POD)), Reason.NOT_OVERLAY, DIRECT),
    Case("udp member", "fl_xdp", udp_tunnel(), Reason.MEMBER, UDP),
    Case("udp no member", "fl_xdp", udp_tunnel(sender=STRANGER), Reason.DROP_NOT_MEMBER, UDP),
    Case("udp source outside", "fl_xdp", udp_tunnel(packet(OUTSIDE, POD)), Reason.DROP_PEER_SOURCE, UDP),
]

CASES = [*FROM_POD, *FROM_POD_FLOWS, *FROM_PEER, *FROM_PEER_FLOWS, *TO, *TO_POD, *XDP]

UNREACHABLE = {
    Reason.UNKNOWN: "a helper's 'go on', never a packet's end",
    Reason.DROP_BROKEN: "needs a helper that fails after an earlier one of the same packet succeeded",
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.program}: {case.name}")
def test_packet_ends_as_expected(case: Case, node_with: Callable[[abi.Config], Node]) -> None:
    node = node_with(case.config)
    case.setup(node)
    frame = bytes(case.frame)
    ran = node.run(case.program, frame, mark=case.mark, **case.skb)
    assert ran.reason == case.reason
    assert ran.verdict == case.expected_verdict
    assert bool(ran.mark & MARK) == case.marked
    if ran.verdict != REDIRECT:
        assert ran.frame == frame, "what is left to the kernel must be whole"


def test_every_reason_has_a_row() -> None:
    assert {case.reason for case in CASES} - {None} == set(Reason) - UNREACHABLE.keys()
