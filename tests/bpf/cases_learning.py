"""Packets that the kernel carries, and what the programs see of that at both ends of its way."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from ipaddress import IPv4Address

from scapy.layers import inet
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from flannel_ebpf.contract.abi import ANY_PEER_MAC
from flannel_ebpf.contract.enums import Reason
from tests.bpf.cases import (
    HOST,
    MULTICAST_MAC,
    OUTSIDE,
    Case,
    pod_elsewhere,
    silent_daemon,
    unknown_outer_leg,
)
from tests.bpf.conversation import UDP_KEY, Conversation, leaving, to_pod
from tests.bpf.frames import from_pod, l4, packet, udp_tunnel, vxlan
from tests.bpf.node import (
    FLOWS,
    NEXT_HOP_MAC,
    OVERLAY,
    OWN_IP,
    PEER,
    POD,
    POD_MAC,
    REDIRECT,
    STRANGER,
    UDP,
    UPLINK,
    UPLINK_MAC,
    Node,
    a_flow,
)

enters, arrives = partial(Case, "fl_from_pod"), partial(Case, "fl_from_peer")
leaves, delivered = partial(Case, "fl_to_peer"), partial(Case, "fl_to_pod")

BY_BPF, BY_KERNEL = 0x8000, 0x7FFF
"""Tickets of packets whose outer leg BPF did, and of those whose outer leg the kernel shall do."""

AT_OVERLAY, AT_UPLINK = {"ifindex": OVERLAY}, {"ifindex": UPLINK}

Setup = Callable[[Node], int | None]


def young(node: Node) -> None:
    node.clear_sketch()


def young_and_elsewhere(node: Node) -> None:
    young(node)
    pod_elsewhere(node)


def grown(node: Node) -> None:
    node.fill_sketch()


def carried_long_ago(node: Node) -> None:
    node.fill_sketch()
    long_ago = time.monotonic_ns() - FLOWS.revalidate_ms * 1_500_000
    for key in (UDP_KEY, replace(UDP_KEY, pod_port=5000, remote_port=4000)):
        node.put_flow(key, a_flow(key, long_ago, long_ago))


def entered(kind: str = "udp", flags: str = "") -> Setup:
    """The kernel has a packet of the pod in hand, and no outer leg is BPF's."""

    def setup(node: Node) -> int:
        grown(node)
        unknown_outer_leg(node)
        return Conversation(node, kind).enter(flags).ticket

    return setup


def arrived(node: Node) -> int:
    """The kernel has a packet of the peer in hand."""
    grown(node)
    return Conversation(node, "udp").arrive().ticket


def taken(first: Callable[[Node], int | None], program: str, frame: bytes) -> Setup:
    """Somebody has shown that packet there before."""

    def setup(node: Node) -> int | None:
        ticket = first(node)
        node.run(program, frame, ticket=ticket or 0)
        return ticket

    return setup


def left(inner: Packet | None = None) -> bytes:
    return leaving(FLOWS.backend, inner or packet(POD, PEER.pod, ttl=63))


def came(src: IPv4Address = PEER.pod, dst: IPv4Address = POD, mac: str = str(POD_MAC)) -> bytes:
    inner = packet(src, dst, l4(sport=5000, dport=4000), ttl=63)
    return to_pod(inner) if mac == str(POD_MAC) else bytes(Ether(dst=mac) / inner)


def sent(tunnel: Packet, **ip: object) -> bytes:
    """A tunnel packet of ours to the peer, as it leaves the uplink."""
    outer = tunnel.payload.copy()
    for field, value in {"src": str(OWN_IP), "dst": str(PEER.public_ip), **ip}.items():
        setattr(outer, field, value)
    del outer.chksum, outer[inet.UDP].chksum
    return bytes(Ether(src=str(UPLINK_MAC), dst=str(NEXT_HOP_MAC)) / outer)


INNER_OUT = packet(POD, PEER.pod, ttl=63)

LEARNING = [
    enters("flow's first packets", from_pod(), Reason.LEARN_YOUNG, config=FLOWS, setup=young),
    enters("flow without an entry", from_pod(), Reason.LEARN_NEW, config=FLOWS, setup=grown, taught=True),
    enters("flow open too long", from_pod(), Reason.LEARN_REVALIDATE, FLOWS, carried_long_ago, taught=True),
    enters("SYN", from_pod(l4("tcp:S")), Reason.LEARN_SYN, config=FLOWS, taught=True),
    enters("SYN-ACK", from_pod(l4("tcp:SA")), Reason.LEARN_SYN, config=FLOWS, taught=True),
    enters("FIN", from_pod(l4("tcp:FA")), Reason.TCP_STATE, config=FLOWS),
    enters("RST", from_pod(l4("tcp:R")), Reason.TCP_STATE, config=FLOWS),
    enters("SYN by subnets", from_pod(l4("tcp:S")), Reason.FAST_VXLAN),
    enters("another pod's address, young flow", from_pod(), Reason.POD_SOURCE, FLOWS, young_and_elsewhere),
    arrives("flow's first packets", vxlan(), Reason.LEARN_YOUNG, FLOWS, setup=young),
    arrives("flow without an entry", vxlan(), Reason.LEARN_NEW, FLOWS, setup=grown, taught=True),
    arrives("flow open too long", vxlan(), Reason.LEARN_REVALIDATE, FLOWS, carried_long_ago, taught=True),
    arrives("SYN", vxlan(packet(PEER.pod, POD, l4("tcp:S"))), Reason.LEARN_SYN, FLOWS, taught=True),
    arrives("FIN", vxlan(packet(PEER.pod, POD, l4("tcp:FA"))), Reason.TCP_STATE, FLOWS, setup=grown),
    arrives("beyond our subnet", vxlan(packet(PEER.pod, OUTSIDE)), Reason.NO_POD, FLOWS, grown),
    leaves("left unchanged", left(), Reason.LEARN_LEFT, FLOWS, entered(), taught=True),
    leaves(
        "left with another source",
        left(packet(HOST, PEER.pod)),
        Reason.LEARN_CHANGED,
        FLOWS,
        entered(),
        taught=True,
    ),
    leaves(
        "left twice", left(), Reason.LEARN_LATE, FLOWS, taken(entered(), "fl_to_peer", left()), taught=True
    ),
    leaves(
        "left with a ticket of long ago",
        left(),
        Reason.LEARN_LATE,
        FLOWS,
        ticket=999,
        verdict=REDIRECT,
        taught=True,
    ),
    leaves("left without a ticket", left(), None, FLOWS, verdict=REDIRECT, taught=True),
    leaves(
        "left without a ticket to whom the kernel shall show it",
        left(),
        None,
        FLOWS,
        unknown_outer_leg,
        taught=True,
    ),
    leaves("left without a ticket, to no peer", left(packet(POD, OUTSIDE)), None, FLOWS),
    leaves("left, of a silent daemon", left(), None, FLOWS, silent_daemon),
    leaves(
        "left through another VTEP", leaving(FLOWS.backend, INNER_OUT, NEXT_HOP_MAC), None, FLOWS, taught=True
    ),
    leaves(
        "SYN left",
        left(packet(POD, PEER.pod, l4("tcp:S"), ttl=63)),
        Reason.LEARN_LEFT,
        FLOWS,
        entered("tcp", "S"),
        taught=True,
    ),
    leaves(
        "for the station of all peers, to nobody",
        leaving(FLOWS.backend, packet(POD, STRANGER.pod), ANY_PEER_MAC),
        Reason.DROP_NO_PEER,
        FLOWS,
    ),
    leaves("IPv6 left", Ether() / IPv6() / l4(), Reason.NOT_FAMILY, FLOWS, ticket=1, taught=True),
    leaves("BPF's, on the wire", sent(vxlan(INNER_OUT)), Reason.WRAPPED, FLOWS, ticket=BY_BPF, skb=AT_UPLINK),
    leaves(
        "kernel's, on the wire",
        sent(vxlan(INNER_OUT)),
        Reason.LEARN_LEFT,
        FLOWS,
        ticket=BY_KERNEL,
        skb=AT_UPLINK,
    ),
    leaves(
        "kernel's to another node, on the wire",
        sent(vxlan(INNER_OUT), dst=str(HOST)),
        Reason.LEARN_CHANGED,
        FLOWS,
        ticket=BY_KERNEL,
        skb=AT_UPLINK,
    ),
    leaves("not of the tunnel, on the wire", from_pod(), None, FLOWS, skb=AT_UPLINK),
    leaves(
        "short, on the wire",
        sent(vxlan(INNER_OUT))[:70],
        Reason.TRUNCATED,
        FLOWS,
        ticket=BY_KERNEL,
        skb=AT_UPLINK,
    ),
    leaves("relay's, on the wire", sent(udp_tunnel(INNER_OUT)), Reason.LEARN_LEFT, UDP, skb=AT_UPLINK),
    leaves("other UDP, on the wire", from_pod(l4(dport=53)), None, UDP, skb=AT_UPLINK),
    arrives(
        "opened by BPF",
        to_pod(packet(PEER.pod, POD)),
        Reason.UNWRAPPED,
        FLOWS,
        ticket=BY_BPF | 5,
        skb=AT_OVERLAY,
        taught=True,
    ),
    arrives(
        "opened by the kernel", to_pod(packet(PEER.pod, POD)), None, FLOWS, ticket=BY_KERNEL, skb=AT_OVERLAY
    ),
    arrives(
        "opened by BPF for the kernel",
        vxlan(),
        Reason.LEARN_NEW,
        FLOWS,
        lambda node: grown(node.with_overlay()),
        verdict=REDIRECT,
        taught=True,
    ),
    arrives(
        "whose outer leg the kernel shall show",
        vxlan(),
        Reason.LEARN_YOUNG,
        FLOWS,
        lambda node: (young(node.with_overlay()), unknown_outer_leg(node))[0],
        taught=True,
    ),
    delivered("without a ticket", came(), None, FLOWS),
    delivered("delivered unchanged", came(), Reason.LEARN_DELIVERED, FLOWS, arrived),
    delivered("delivered from another source", came(HOST), Reason.LEARN_CHANGED, FLOWS, arrived),
    delivered("delivered twice", came(), Reason.LEARN_LATE, FLOWS, taken(arrived, "fl_to_pod", came())),
    delivered("with a ticket of long ago", came(), Reason.LEARN_LATE, FLOWS, ticket=999),
    delivered("short", came()[:40], Reason.TRUNCATED, FLOWS, arrived),
    delivered("multicast is no pod", came(dst=IPv4Address("224.0.0.22")), Reason.NOT_UNICAST, FLOWS, arrived),
    delivered("group MAC is no pod", came(mac=MULTICAST_MAC), Reason.NOT_UNICAST, FLOWS, arrived),
    delivered("not our subnet's", came(dst=OUTSIDE), Reason.NOT_OVERLAY, FLOWS, arrived),
]
