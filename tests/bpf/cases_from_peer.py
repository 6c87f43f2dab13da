"""Packets from other nodes: what `fl_from_peer` delivers, drops, or leaves to the kernel."""

from __future__ import annotations

from functools import partial
from ipaddress import IPv4Address

from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q
from scapy.layers.sctp import SCTP
from scapy.packet import Raw

from flannel_ebpf.contract import enums
from flannel_ebpf.contract.enums import Reason
from tests.bpf.cases import (
    COUNT_ONLY,
    HOST,
    MIXED,
    MULTICAST_MAC,
    NO_CHECK,
    OUTSIDE,
    Case,
    no_pod,
    odd_member,
    peer_mode,
    shaped_pod,
    silent_daemon,
    tampered,
    unknown_outer_leg,
    with_inner_type,
)
from tests.bpf.frames import l4, on_wire, packet, udp_tunnel, vxlan
from tests.bpf.node import (
    DIRECT,
    KERNEL,
    NEXT_HOP_MAC,
    OTHER_POD,
    OWN_VTEP,
    PEER,
    POD,
    SECOND_PEER,
    STRANGER,
    UDP,
    VXLAN,
    Node,
)

row = partial(Case, "fl_from_peer")


def two_members(node: Node) -> None:
    node.add_peer(SECOND_PEER, SECOND_PEER.peer(enums.Mode.VXLAN))


FROM_PEER = [
    row("UDP from a peer", vxlan(), Reason.FAST_VXLAN),
    row("TCP from a peer", vxlan(packet(PEER.pod, POD, l4("tcp"))), Reason.FAST_VXLAN),
    row("ping from a peer", vxlan(packet(PEER.pod, POD, l4("ping"))), Reason.FAST_VXLAN),
    row("from a peer's own address", vxlan(packet(PEER.public_ip, POD)), Reason.FAST_VXLAN),
    row("kernel's outer checksum", vxlan(udp={"chksum": 0x1234}), Reason.FAST_VXLAN),
    row("for another machine", on_wire(vxlan()[IP], NEXT_HOP_MAC), Reason.NOT_UNICAST),
    row("broadcast", on_wire(vxlan()[IP], "ff:ff:ff:ff:ff:ff"), Reason.NOT_UNICAST),
    row("short frame", on_wire(Raw(bytes(20))), Reason.NOT_FAMILY),
    row("short packet", bytes(vxlan())[:36], Reason.NOT_OVERLAY),
    row("ARP on the uplink", on_wire(ARP() / Raw(bytes(18))), Reason.NOT_FAMILY),
    row("IPv6 on the uplink", on_wire(IPv6() / l4()), Reason.NOT_FAMILY),
    row("VLAN on the uplink", on_wire(Dot1Q(vlan=5) / vxlan()[IP]), Reason.NOT_FAMILY),
    row("not for us", vxlan(outer_dst=HOST), Reason.NOT_OVERLAY),
    row("another port", vxlan(dport=8473), Reason.NOT_OVERLAY),
    row("TCP to us", on_wire(packet(HOST, VXLAN.public_ip, l4("tcp"))), Reason.NOT_OVERLAY),
    row("outer options", vxlan(options=b"\x94\x04\x00\x00"), Reason.OUTER),
    row("outer first fragment", vxlan(flags="MF"), Reason.OUTER),
    row("outer later fragment", vxlan(frag=5), Reason.OUTER),
    row("outer length too small", vxlan(len=100), Reason.OUTER),
    row("outer checksum wrong", vxlan(chksum=0x4321), Reason.OUTER),
    row("UDP length wrong", vxlan(udp={"len": 60}), Reason.OUTER),
    row("reserved VXLAN flag", vxlan(vxlan_flags=0x0C), Reason.VXLAN_HEADER),
    row("no I flag", vxlan(vxlan_flags=0), Reason.VXLAN_HEADER),
    row("reserved VXLAN byte", tampered(vxlan(), 49, b"\x01"), Reason.VXLAN_HEADER),
    row("another VNI", vxlan(vni=2), Reason.VNI),
    row("another VTEP", vxlan(inner_dst=PEER.vtep), Reason.INNER_MAC),
    row("broadcast inside", vxlan(inner_dst="ff:ff:ff:ff:ff:ff"), Reason.INNER_MAC),
    row("our own VTEP as source", vxlan(inner_src=OWN_VTEP), Reason.INNER_MAC),
    row("no source MAC", vxlan(inner_src="00:00:00:00:00:00"), Reason.INNER_MAC),
    row("group source MAC", vxlan(inner_src=MULTICAST_MAC), Reason.INNER_MAC),
    row("ARP inside", with_inner_type(vxlan(), 0x0806), Reason.NOT_FAMILY),
    row("IPv6 inside", with_inner_type(vxlan(), 0x86DD), Reason.NOT_FAMILY),
    row("VLAN inside", with_inner_type(vxlan(), 0x8100), Reason.NOT_FAMILY),
    row("too short inside", bytes(vxlan())[:80], Reason.TRUNCATED),
    row("fragment inside", vxlan(packet(PEER.pod, POD, flags="MF")), Reason.FRAGMENT),
    row("later fragment inside", vxlan(packet(PEER.pod, POD, frag=3)), Reason.FRAGMENT),
    row("options inside", vxlan(packet(PEER.pod, POD, options=b"\x94\x04\x00\x00")), Reason.IP_OPTIONS),
    row("TTL 1 inside", vxlan(packet(PEER.pod, POD, ttl=1)), Reason.TTL),
    row("TTL 2 inside", vxlan(packet(PEER.pod, POD, ttl=2)), Reason.FAST_VXLAN),
    row("checksum wrong inside", vxlan(packet(PEER.pod, POD, chksum=1)), Reason.BAD_HEADER),
    row("SCTP inside", vxlan(packet(PEER.pod, POD, SCTP())), Reason.PROTOCOL),
    row("multicast inside", vxlan(packet(PEER.pod, IPv4Address("224.0.0.9"))), Reason.NOT_UNICAST),
    row("Not-ECT inside CE", vxlan(tos=3), Reason.ECN),
    row(
        "UDP super-packet that would keep its tunnel state",
        vxlan(),
        Reason.GSO,
        skb={"gso_size": 32, "gso_segs": 2},
    ),
    row(
        "super-packet of no kind that the helper takes",
        vxlan(packet(PEER.pod, POD, l4("tcp"))),
        Reason.GSO,
        skb={"gso_size": 32, "gso_segs": 2},
    ),
    row("to a pod nobody knows", vxlan(), Reason.NO_POD, setup=no_pod, taught=True),
    row("of a silent daemon", vxlan(), Reason.STAND_ASIDE, setup=silent_daemon),
    row(
        "from no member, of a silent daemon", vxlan(sender=STRANGER), Reason.STAND_ASIDE, setup=silent_daemon
    ),
    row(
        "peer that the kernel was not seen to hear",
        vxlan(),
        Reason.LEARN_PEER,
        setup=unknown_outer_leg,
        taught=True,
    ),
    row(
        "peer that the kernel was not seen to hear, direct",
        on_wire(packet(PEER.pod, POD)),
        Reason.FAST_DIRECT,
        config=DIRECT,
        setup=unknown_outer_leg,
    ),
    row("beyond our subnet", vxlan(packet(PEER.pod, OUTSIDE)), Reason.NO_POD),
    row("to a shaped pod", vxlan(), Reason.SHAPED, setup=shaped_pod),
    row("from no member", vxlan(sender=STRANGER), Reason.DROP_NOT_MEMBER),
    row(
        "from no member, a member's source",
        vxlan(packet(PEER.pod, POD), sender=STRANGER),
        Reason.DROP_NOT_MEMBER,
    ),
    row(
        "no member's own address",
        vxlan(packet(STRANGER.public_ip, POD), sender=STRANGER),
        Reason.DROP_NOT_MEMBER,
    ),
    row("from a subnet of another length", vxlan(sender=STRANGER), Reason.PEER_SOURCE, setup=odd_member),
    row(
        "from its node's own address",
        vxlan(packet(STRANGER.public_ip, POD), sender=STRANGER),
        Reason.PEER_SOURCE,
        setup=odd_member,
    ),
    row(
        "what is somebody else's, from such a member",
        vxlan(packet(PEER.pod, POD), sender=STRANGER),
        Reason.DROP_PEER_SOURCE,
        setup=odd_member,
    ),
    row("ARP from no member", with_inner_type(vxlan(sender=STRANGER), 0x0806), Reason.DROP_NOT_MEMBER),
    row(
        "from no member, counted only",
        vxlan(sender=STRANGER),
        Reason.DROP_NOT_MEMBER,
        config=COUNT_ONLY,
        verdict=KERNEL,
    ),
    row("from no member, unchecked", vxlan(sender=STRANGER), Reason.PEER_SOURCE, config=NO_CHECK),
    row(
        "from no member with a member's source, unchecked",
        vxlan(packet(PEER.pod, POD), sender=STRANGER),
        Reason.FAST_VXLAN,
        config=NO_CHECK,
    ),
    row(
        "another member's subnet",
        vxlan(packet(SECOND_PEER.pod, POD)),
        Reason.DROP_PEER_SOURCE,
        setup=two_members,
    ),
    row("a source that is nobody's", vxlan(packet(OUTSIDE, POD)), Reason.PEER_SOURCE),
    row("our own subnet", vxlan(packet(OTHER_POD, POD)), Reason.DROP_PEER_SOURCE),
    row("our own subnet, in a fragment", vxlan(packet(OTHER_POD, POD, frag=3)), Reason.DROP_PEER_SOURCE),
    row("direct", on_wire(packet(PEER.pod, POD)), Reason.FAST_DIRECT, config=DIRECT),
    row(
        "direct, padded by the link",
        bytes(on_wire(packet(PEER.pod, POD, l4(payload=b"")))) + bytes(18),
        Reason.FAST_DIRECT,
        config=DIRECT,
    ),
    row("direct, from no peer", on_wire(packet(OUTSIDE, POD)), Reason.NOT_OVERLAY, config=DIRECT),
    row("plain in a vxlan network", on_wire(packet(PEER.pod, POD)), Reason.NOT_OVERLAY),
    row("plain from a vxlan peer", on_wire(packet(PEER.pod, POD)), Reason.NOT_OVERLAY, config=MIXED),
    row(
        "plain from a direct peer of a vxlan network",
        on_wire(packet(PEER.pod, POD)),
        Reason.FAST_DIRECT,
        config=MIXED,
        setup=peer_mode(enums.Mode.DIRECT),
    ),
    row(
        "direct, pod unknown",
        on_wire(packet(PEER.pod, POD)),
        Reason.NO_POD,
        config=DIRECT,
        setup=no_pod,
        taught=True,
    ),
    row("udp", udp_tunnel(), Reason.FAST_UDP, config=UDP),
    row("udp, TTL 2", udp_tunnel(packet(PEER.pod, POD, ttl=2)), Reason.TTL, config=UDP),
    row("udp, TTL 3", udp_tunnel(packet(PEER.pod, POD, ttl=3)), Reason.FAST_UDP, config=UDP),
    row(
        "udp, a relay's datagrams in one piece",
        udp_tunnel(Raw(2 * bytes(packet(PEER.pod, POD)))),
        Reason.GSO,
        config=UDP,
        skb={"gso_size": len(packet(PEER.pod, POD)), "gso_segs": 2},
    ),
    row(
        "udp, such a piece of whom we do not know",
        udp_tunnel(Raw(2 * bytes(packet(PEER.pod, POD))), sender=STRANGER),
        Reason.DROP_NOT_MEMBER,
        config=UDP,
        skb={"gso_size": len(packet(PEER.pod, POD)), "gso_segs": 2},
    ),
    row("udp, short", udp_tunnel(Raw(bytes(12))), Reason.TRUNCATED, config=UDP, taught=False),
    row("udp, no member", udp_tunnel(sender=STRANGER), Reason.DROP_NOT_MEMBER, config=UDP),
]
