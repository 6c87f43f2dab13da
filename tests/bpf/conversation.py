"""One connection between a pod here and one on the peer, led through the four hooks step by step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract import abi
from flannel_ebpf.contract.abi import Reason
from tests.bpf.frames import from_pod, l4, on_wire, packet, udp_tunnel, vxlan
from tests.bpf.node import FLOWS, GATEWAY_MAC, PEER, POD, POD_MAC, POD_PORT, Node, Ran

TCP_KEY = abi.FlowKey(POD, PEER.pod, 4000, 5000, 6)
UDP_KEY = abi.FlowKey(POD, PEER.pod, 4000, 5000, 17)
NodeWith = Callable[[abi.Config], Node]


class Conversation:
    """Both directions of one connection between POD and PEER.pod, step by step through the four hooks."""

    def __init__(self, node: Node, kind: str) -> None:
        self.node, self.kind = node, kind
        self.mode = node.config.backend

    def enter(self, flags: str = "", **run: int) -> Ran:
        return self.node.run("fl_from_pod", bytes(from_pod(self._body(4000, 5000, flags))), **run)

    def leave(self, ran: Ran) -> Ran:
        raw = ran.frame[14:] if self.mode == abi.Mode.UDP else ran.frame
        return self.node.run("fl_to_peer", raw, mark=ran.mark)

    def arrive(self, flags: str = "") -> Ran:
        inner = packet(PEER.pod, POD, self._body(5000, 4000, flags))
        if self.mode == abi.Mode.DIRECT:
            return self.node.run("fl_from_peer", bytes(on_wire(inner)))
        tunnel = vxlan if self.mode == abi.Mode.VXLAN else udp_tunnel
        return self.node.run("fl_from_peer", bytes(tunnel(inner)))

    def deliver(self, ran: Ran, ifindex: int = POD_PORT) -> Ran:
        inner = packet(PEER.pod, POD, self._body(5000, 4000), ttl=62)
        return self.node.run("fl_to_pod", to_pod(inner), mark=ran.mark, ifindex=ifindex)

    def learn_tx(self) -> None:
        assert self.leave(self.enter()).reason == Reason.LEARN_LEFT

    def learn_rx(self) -> None:
        assert self.deliver(self.arrive()).reason == Reason.LEARN_DELIVERED

    def _body(self, sport: int, dport: int, flags: str = "") -> Packet:
        kind = f"{self.kind}:{flags}" if flags else self.kind
        if kind == "ping":
            return l4("ping" if sport == 4000 else "pong", sport=4000)
        return l4(kind, sport=sport, dport=dport)


def to_pod(inner: Packet, mac: Mac = POD_MAC) -> bytes:
    return bytes(Ether(src=str(GATEWAY_MAC), dst=str(mac)) / inner)


@pytest.fixture
def node(node_with: NodeWith) -> Node:
    grown = node_with(FLOWS)
    grown.fill_sketch()
    return grown


@pytest.fixture
def tcp(node: Node) -> Conversation:
    return Conversation(node, "tcp")


@pytest.fixture
def udp(node: Node) -> Conversation:
    return Conversation(node, "udp")
