"""One connection between a pod here and one on the peer, led through the four hooks step by step."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from flannel_ebpf.base.model import Mac
from flannel_ebpf.contract import abi, enums, learned
from flannel_ebpf.contract.enums import Reason
from tests.bpf.frames import from_pod, l4, on_wire, packet, udp_tunnel, vxlan
from tests.bpf.node import (
    FLOWS,
    GATEWAY_MAC,
    NEXT_HOP_MAC,
    OWN_VTEP,
    PEER,
    POD,
    POD_MAC,
    POD_PORT,
    Node,
    Ran,
)

TCP_KEY = learned.FlowKey(POD, PEER.pod, 4000, 5000, 6)
UDP_KEY = learned.FlowKey(POD, PEER.pod, 4000, 5000, 17)
PING_KEY = learned.FlowKey(POD, PEER.pod, 4000, 8, 1)
NodeWith = Callable[[abi.Config], Node]


class Conversation:
    """Both directions of one connection between POD and PEER.pod, step by step through the four hooks.

    The pod is the client: it sends SYN and echo requests.
    """

    def __init__(self, node: Node, kind: str) -> None:
        self.node, self.kind = node, kind
        self.mode = node.config.backend

    @property
    def key(self) -> learned.FlowKey:
        return {"tcp": TCP_KEY, "udp": UDP_KEY, "ping": PING_KEY}[self.kind]

    def enter(self, flags: str = "", **run: int) -> Ran:
        return self.node.run("fl_from_pod", bytes(from_pod(self._body(4000, 5000, flags))), **run)

    def leave(self, ran: Ran, flags: str = "", body: Packet | None = None, **ip: object) -> Ran:
        """Show the packet that entered where it leaves the kernel."""
        body = self._body(4000, 5000, flags) if body is None else body
        frame = leaving(self.mode, packet(**{"src": POD, "dst": PEER.pod, "body": body, "ttl": 63} | ip))
        return self.node.run("fl_to_peer", frame, ticket=ran.ticket)

    def arrive(self, flags: str = "") -> Ran:
        inner = packet(PEER.pod, POD, self._body(5000, 4000, flags))
        if self.mode == enums.Mode.DIRECT:
            return self.node.run("fl_from_peer", bytes(on_wire(inner)))
        tunnel = vxlan if self.mode == enums.Mode.VXLAN else udp_tunnel
        return self.node.run("fl_from_peer", bytes(tunnel(inner)))

    def deliver(
        self,
        ran: Ran,
        flags: str = "",
        ifindex: int = POD_PORT,
        src: IPv4Address = PEER.pod,
        body: Packet | None = None,
        **ip: object,
    ) -> Ran:
        """Show the packet that arrived where the kernel delivers it."""
        body = self._body(5000, 4000, flags) if body is None else body
        inner = packet(src, POD, body, **{"ttl": 62 if self.mode == enums.Mode.UDP else 63} | ip)
        return self.node.run("fl_to_pod", to_pod(inner), ticket=ran.ticket, ifindex=ifindex)

    def learn_tx(self, flags: str = "") -> None:
        assert self.leave(self.enter(flags), flags).reason == Reason.LEARN_LEFT

    def learn_rx(self, flags: str = "") -> None:
        assert self.deliver(self.arrive(flags), flags).reason == Reason.LEARN_DELIVERED

    def learn(self) -> None:
        """Have both directions carried by the kernel, as often as it takes."""
        self.learn_tx()
        self.learn_rx()

    def _body(self, sport: int, dport: int, flags: str = "") -> Packet:
        kind = f"{self.kind}:{flags}" if flags else self.kind
        if kind == "ping":
            return l4("ping" if sport == 4000 else "pong", sport=4000)
        return l4(kind, sport=sport, dport=dport)


def leaving(mode: enums.Mode, inner: Packet, mac: Mac | None = None) -> bytes:
    """Return a frame as the kernel sends it to the peer: into the tunnel, or to the next hop."""
    if mode == enums.Mode.UDP:
        return bytes(inner)
    to = mac or (PEER.vtep if mode == enums.Mode.VXLAN else NEXT_HOP_MAC)
    return bytes(Ether(src=str(OWN_VTEP), dst=str(to)) / inner)


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
