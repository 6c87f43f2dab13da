"""A peer, and the facts about this node that decide how it is reached."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network

from flannel_ebpf.base.config import NetworkConfig
from flannel_ebpf.base.model import Lease, Mac, PathFacts, Uplink, in_order
from flannel_ebpf.contract.abi import Mode


@dataclass(frozen=True, slots=True)
class Node:
    """This node in one network. `vtep_mac` is our device's address, None without a vxlan device."""

    config: NetworkConfig
    uplink: Uplink
    public_ip: IPv4Address
    subnet: IPv4Network
    vtep_mac: Mac | None = None


@dataclass(frozen=True, slots=True)
class Peer:
    """A remote subnet and the way there.

    `mtu` is the largest outer IPv4 packet towards `public_ip`; `on_link` is true when that is a neighbour
    on the uplink, so that no router lies between. `bpf`: programs take the udp format there, says its lease.
    """

    subnet: IPv4Network
    public_ip: IPv4Address
    mode: Mode
    mtu: int
    on_link: bool
    vtep_mac: Mac | None = None
    bpf: bool = False


def path_to(node: Node, lease: Lease, paths: Mapping[IPv4Address, PathFacts]) -> PathFacts:
    """Return what routing says of the way to a peer; when it says nothing, the uplink's MTU and a router."""
    return paths.get(lease.public_ip) or PathFacts(mtu=node.uplink.mtu, on_link=False)


def remote(node: Node, leases: Iterable[Lease]) -> list[Lease]:
    """Return the leases of other nodes, sorted, so that of two that claim one MAC the same always wins.

    A second lease under our own public address (left from an earlier subnet) is not remote either: the
    tunnel to it would end on this host.
    """
    others = (lease for lease in leases if lease.subnet != node.subnet and lease.public_ip != node.public_ip)
    return sorted(others, key=lambda lease: in_order(lease.subnet))
