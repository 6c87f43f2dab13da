"""How each backend reaches its peers: pure functions from leases to kernel objects.

A backend answers four questions: what MTU do pods get, what does our own lease say, which leases are
peers, and which kernel objects carry packets to them. The kernel path it describes is complete by itself;
`datapath` describes the BPF entries that only make it faster.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from flannel_ebpf.base.config import NetworkConfig
from flannel_ebpf.base.family import NO_NODES, Address, Family, in_order
from flannel_ebpf.base.model import Lease, LeasePart, Mac, PathFacts, Skipped, Uplink
from flannel_ebpf.desired.backends import hostgw, udp, vxlan
from flannel_ebpf.desired.backends.harm import Judge, Surroundings, uncontested
from flannel_ebpf.desired.backends.peer import Node, Peer, Stack
from flannel_ebpf.desired.objects import Object

__all__ = [
    "Backend",
    "Node",
    "Paths",
    "Peer",
    "Stack",
    "Surroundings",
    "backend_of",
    "mtu",
    "objects",
    "obstacles",
    "overlay_of",
    "peers",
    "usable",
]

Paths = Mapping[Address, PathFacts]

_NO_NODE = {
    family: tuple(
        (family.bits - net.prefixlen, int(net.network_address) >> (family.bits - net.prefixlen))
        for net in nets
    )
    for family, nets in NO_NODES.items()
}
"""NO_NODES as numbers of bits to leave out and what the rest then is: ipaddress takes ten times as long, and
there are thousands of leases."""


class Backend(Protocol):
    """The shape shared by the modules `vxlan`, `hostgw` and `udp`; each function is about one family."""

    def overlay_name(self, config: NetworkConfig, family: Family) -> str:
        """Return the name of the overlay device, "" when the backend has none for that family."""

    def mtu(self, config: NetworkConfig, uplink: Uplink) -> int:
        """Return the MTU that pods get for the family of the uplink's address."""

    def obstacle(self, config: NetworkConfig, uplink: Uplink) -> str:
        """Return why packets of that family cannot be carried at all, "" when they can."""

    def lease_data(self, config: NetworkConfig, mac: Mac | None) -> tuple[str, Any]:
        """Return BackendType and BackendData (of IPv6: BackendV6Data) of our own lease."""

    def peers(
        self, stack: Stack, parts: Sequence[LeasePart], paths: Paths
    ) -> tuple[list[Peer], list[Skipped]]:
        """Return the leases we can send to, and those we cannot with the reason."""

    def objects(self, stack: Stack, peers: Sequence[Peer]) -> list[Object]:
        """Return every kernel object of the kernel path."""


_BACKENDS: Mapping[str, Backend] = {"vxlan": vxlan, "host-gw": hostgw, "udp": udp}


def backend_of(config: NetworkConfig) -> Backend:
    """Return the backend that the network config names."""
    return _BACKENDS[config.backend_type]


def overlay_of(stack: Stack) -> str:
    """Return the name of a family's overlay device, "" when there is none."""
    return backend_of(stack.config).overlay_name(stack.config, stack.family)


def obstacles(node: Node) -> dict[Family, str]:
    """Return the families that cannot be carried here at all, with the reason: the others go on without."""
    backend = backend_of(node.config)
    found = {stack.family: backend.obstacle(node.config, stack.uplink) for stack in node.stacks}
    return {family: why for family, why in found.items() if why}


def _carried(node: Node) -> list[Stack]:
    without = obstacles(node)
    return [stack for stack in node.stacks if stack.family not in without]


def mtu(node: Node) -> int:
    """Return the MTU that pods get (FLANNEL_MTU): one number, so the smallest of all families' carried."""
    stacks = _carried(node) or node.stacks
    return min(backend_of(node.config).mtu(node.config, stack.uplink) for stack in stacks)


def usable(
    node: Node, leases: Iterable[Lease], around: Mapping[Family, Surroundings]
) -> tuple[list[LeasePart], list[Skipped]]:
    """Part what leases say of this network's families from what no backend could follow, with the reason.

    A family that a lease lacks, or that cannot be followed, leaves its other one alone. Older leases come
    first.
    """
    found: list[LeasePart] = []
    skipped: list[Skipped] = []
    leases = sorted(leases, key=lambda lease: lease.create_revision)
    for stack in _carried(node):
        network, no_node = stack.network, _NO_NODE[stack.family]
        base, mask, length = int(network.network_address), int(network.netmask), network.prefixlen
        judge = Judge(stack, around.get(stack.family, Surroundings()))
        for lease in leases:
            part = lease.part(stack.family)
            if part is None:
                skipped.append(Skipped(str(lease.subnets[0]), f"has no {stack.family} subnet"))
                continue
            subnet, ip = part.subnet, int(part.public_ip)
            why = part.flaw
            if subnet.prefixlen < length or int(subnet.network_address) & mask != base:
                why = f"outside the network {network}"  # left from before the network's config was changed
            elif not why and any(ip >> shift == value for shift, value in no_node):
                why = f"public address {part.public_ip} is the address of no node"
            why = why or judge.against(part)
            if why:
                skipped.append(Skipped(str(subnet), why))
            else:
                found.append(part)
    return found, skipped


def peers(node: Node, parts: Sequence[LeasePart], paths: Paths) -> tuple[list[Peer], list[Skipped]]:
    """Return the peers of every family in order, and the parts of leases that are none with the reason.

    `parts` are in the order of their age: of two that cannot both be followed, the older one is.
    """
    backend = backend_of(node.config)
    found: list[Peer] = []
    skipped: list[Skipped] = []
    for stack in _carried(node):
        reached, unusable = backend.peers(
            stack, [it for it in parts if it.subnet.version == stack.family], paths
        )
        alone, contested = uncontested(stack, reached)
        found += sorted(alone, key=lambda peer: in_order(peer.subnet))
        skipped += [*unusable, *contested]
    return found, skipped


def objects(node: Node, peers: Sequence[Peer]) -> list[Object]:
    """Return every kernel object of the kernel path of every family."""
    backend = backend_of(node.config)
    return [
        obj
        for stack in _carried(node)
        for obj in backend.objects(stack, [peer for peer in peers if peer.subnet.version == stack.family])
    ]
