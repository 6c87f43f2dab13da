"""A row of the table of packets, and what its rows share: configurations, addresses, what a node knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from scapy.packet import Packet

from flannel_ebpf.contract import abi, enums
from flannel_ebpf.contract.enums import PodFlag, Reason
from tests.bpf.node import (
    DROP,
    KERNEL,
    OTHER_PORT,
    PEER,
    POD,
    REDIRECT,
    STRANGER,
    VXLAN,
    XDP_DROP,
    XDP_PASS,
    Node,
)

COUNT_ONLY = replace(VXLAN, source_check=enums.Check.COUNT)
NO_CHECK = replace(VXLAN, source_check=enums.Check.OFF)
MIXED = replace(VXLAN, direct_routing=True)

HOST = IPv4Address("192.0.2.77")
OUTSIDE = IPv4Address("203.0.113.5")
MULTICAST_MAC = "01:00:5e:00:00:16"


@dataclass(frozen=True)
class Case:
    """A packet, what the node knows, and how it must end.

    `setup` may return the ticket that the packet then carries. `taught`: it has one afterwards.
    """

    program: str
    name: str
    frame: Packet | bytes
    reason: Reason | None
    config: abi.Config = VXLAN
    setup: Callable[[Node], int | None] = lambda node: None
    verdict: int | None = None
    ticket: int = 0
    taught: bool = False
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


def tampered(frame: Packet, offset: int, value: bytes) -> bytes:
    raw = bytearray(bytes(frame))
    raw[offset : offset + len(value)] = value
    return bytes(raw)


def with_inner_type(frame: Packet, ethertype: int) -> bytes:
    """Return a vxlan frame that says something else is inside."""
    return tampered(frame, 62, ethertype.to_bytes(2, "big"))


def peer_mode(mode: enums.Mode) -> Callable[[Node], None]:
    return lambda node: node.add_peer(PEER, PEER.peer(mode))


def odd_member(node: Node) -> None:
    """STRANGER has 10.1.8.0/22, and fl_peers only /24s."""
    subnet = abi.SubnetKey(22, IPv4Address("10.1.8.0"))
    node.maps["fl_vteps"].update(abi.AddrKey(STRANGER.public_ip).pack(), subnet.pack())


def no_pod(node: Node) -> None:
    node.forget_pod(POD)


def shaped_pod(node: Node) -> None:
    node.add_pod(POD, flags=PodFlag.SHAPED)


def pod_elsewhere(node: Node) -> None:
    node.add_pod(POD, ifindex=OTHER_PORT)


def node_address(node: Node) -> None:
    """The pod's address is one of its node's own."""
    node.add_pod(POD, ifindex=2, flags=PodFlag.NODE)


def unknown_outer_leg(node: Node) -> None:
    """The kernel was not seen to exchange packets with the peer."""
    node.add_peer(PEER, PEER.peer(node.config.backend, outer=""))


def silent_daemon(node: Node) -> None:
    node.set_until(1)
