"""Packets of flows that are being learned, through all four tc programs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address

from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from flannel_ebpf.contract import abi
from flannel_ebpf.contract.abi import FlowBit, Reason
from tests.bpf.cases import HOST, MULTICAST_MAC, OUTSIDE, Case, pod_elsewhere
from tests.bpf.conversation import UDP_KEY
from tests.bpf.frames import from_pod, l4, packet, vxlan
from tests.bpf.node import FLOWS, GATEWAY_MAC, KERNEL, MARK, PEER, POD, POD_MAC, POD_PORT, Node

RX_KEY = abi.FlowKey(POD, PEER.pod, 5000, 4000, 17)
TX, RX = FlowBit.TX_ENTERED | FlowBit.TX_LEFT, FlowBit.RX_ARRIVED | FlowBit.RX_DELIVERED
OLD = 1  # ns after boot

enters, arrives = partial(Case, "fl_from_pod"), partial(Case, "fl_from_peer")
leaves, delivered = partial(Case, "fl_to_peer"), partial(Case, "fl_to_pod")


def young(node: Node) -> None:
    node.clear_sketch()


def young_and_elsewhere(node: Node) -> None:
    young(node)
    pod_elsewhere(node)


def grown(node: Node) -> None:
    node.fill_sketch()


def known_flow(bits: FlowBit, *, since: int = OLD, key: abi.FlowKey = UDP_KEY) -> Callable[[Node], None]:
    def setup(node: Node) -> None:
        node.fill_sketch()
        node.put_flow(key, abi.Flow(since, since, POD_PORT, bits))

    return setup


def to_pod_frame(dst: IPv4Address = POD, mac: str = str(POD_MAC), body: Packet | None = None) -> Packet:
    return Ether(src=str(GATEWAY_MAC), dst=mac) / packet(PEER.pod, dst, body, ttl=62)


LEARNING = [
    enters("flow's first packets", from_pod(), Reason.LEARN_YOUNG, config=FLOWS, setup=young),
    enters("flow without an entry", from_pod(), Reason.LEARN_NEW, config=FLOWS, setup=grown, marked=True),
    enters(
        "flow that never left",
        from_pod(),
        Reason.LEARN_NEW,
        config=FLOWS,
        setup=known_flow(FlowBit.TX_ENTERED),
        marked=True,
    ),
    enters(
        "flow open too long",
        from_pod(),
        Reason.LEARN_REVALIDATE,
        config=FLOWS,
        setup=known_flow(TX),
        marked=True,
    ),
    enters("SYN", from_pod(l4("tcp:S")), Reason.TCP_STATE, config=FLOWS),
    enters("FIN", from_pod(l4("tcp:FA")), Reason.TCP_STATE, config=FLOWS),
    enters("RST", from_pod(l4("tcp:R")), Reason.TCP_STATE, config=FLOWS),
    enters("SYN by subnets", from_pod(l4("tcp:S")), Reason.FAST_VXLAN),
    enters(
        "another pod's address, young flow",
        from_pod(),
        Reason.DROP_POD_SOURCE,
        config=FLOWS,
        setup=young_and_elsewhere,
    ),
    arrives("flow's first packets", vxlan(), Reason.LEARN_YOUNG, FLOWS, setup=young),
    arrives("flow without an entry", vxlan(), Reason.LEARN_NEW, FLOWS, setup=grown, marked=True),
    arrives(
        "flow that was never delivered",
        vxlan(),
        Reason.LEARN_NEW,
        config=FLOWS,
        setup=known_flow(FlowBit.RX_ARRIVED, key=RX_KEY),
        marked=True,
    ),
    arrives(
        "flow open too long",
        vxlan(),
        Reason.LEARN_REVALIDATE,
        config=FLOWS,
        setup=known_flow(RX, key=RX_KEY),
        marked=True,
    ),
    arrives("FIN", vxlan(packet(PEER.pod, POD, l4("tcp:FA"))), Reason.TCP_STATE, FLOWS, setup=grown),
    arrives("beyond our subnet", vxlan(packet(PEER.pod, OUTSIDE)), Reason.NO_POD, FLOWS, grown),
    leaves("unmarked, to a peer", from_pod(), None, config=FLOWS, verdict=KERNEL),
    delivered("unmarked, to a pod", from_pod(), None, config=FLOWS, verdict=KERNEL),
    leaves(
        "left unchanged",
        from_pod(),
        Reason.LEARN_LEFT,
        config=FLOWS,
        setup=known_flow(FlowBit.TX_ENTERED),
        mark=MARK,
    ),
    leaves(
        "left with another source",
        from_pod(src=HOST),
        Reason.LEARN_CHANGED,
        config=FLOWS,
        setup=known_flow(FlowBit.TX_ENTERED),
        mark=MARK,
    ),
    leaves(
        "left without having entered",
        from_pod(),
        Reason.LEARN_CHANGED,
        config=FLOWS,
        setup=known_flow(RX),
        mark=MARK,
    ),
    leaves("SYN left", from_pod(l4("tcp:S")), Reason.TCP_STATE, config=FLOWS, mark=MARK),
    leaves("IPv6 left", Ether() / IPv6() / l4(), Reason.NOT_IPV4, config=FLOWS, mark=MARK),
    leaves("short left", bytes(from_pod())[:40], Reason.TRUNCATED, config=FLOWS, mark=MARK),
    delivered(
        "delivered unchanged",
        to_pod_frame(),
        Reason.LEARN_DELIVERED,
        config=FLOWS,
        setup=known_flow(FlowBit.RX_ARRIVED, key=RX_KEY),
        mark=MARK,
    ),
    delivered(
        "delivered from another source",
        Ether(src=str(GATEWAY_MAC), dst=str(POD_MAC)) / packet(HOST, POD),
        Reason.LEARN_CHANGED,
        config=FLOWS,
        setup=known_flow(FlowBit.RX_ARRIVED, key=RX_KEY),
        mark=MARK,
    ),
    delivered("delivered, subnets", to_pod_frame(), Reason.LEARN_DELIVERED, mark=MARK),
    delivered("SYN delivered", to_pod_frame(body=l4("tcp:S")), Reason.TCP_STATE, FLOWS, mark=MARK),
    delivered("multicast is no pod", to_pod_frame(IPv4Address("224.0.0.22")), Reason.NOT_UNICAST, mark=MARK),
    delivered("group MAC is no pod", to_pod_frame(mac=MULTICAST_MAC), Reason.NOT_UNICAST, mark=MARK),
    delivered("not our subnet's", to_pod_frame(OUTSIDE), Reason.NOT_OVERLAY, mark=MARK),
]
